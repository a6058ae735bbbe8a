"""How fast does the page of a prepared set open and filter in a browser? To reach: under 3 s for 1,000 series.

Run: python benchmarks/pages.py [SERIES ...]
Needs Chromium. Times are the page's own clock: from navigation to the end of its load event, with the first 36 pictures
in the document; and the median of filtering by each value of the first menu. Pictures are noise, the worst for JPEG.
"""

import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import synthetic_runs

from aneurysm_ray.reporting import pages

REPEATS = 3
PROBE = """<script>
addEventListener("load", () => {
  const loaded = performance.now(), menu = document.querySelector("[data-facet]"), times = [];
  for (const option of [...menu.options]) {
    const start = performance.now();
    menu.value = option.value;
    menu.dispatchEvent(new Event("change"));
    times.push(performance.now() - start);
  }
  times.sort((a, b) => a - b);
  document.documentElement.dataset.times = `${loaded} ${times[times.length >> 1]}`;
});
</script>"""


def open_page(page: Path) -> tuple[float, float]:
    """Return milliseconds to load and to filter."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        switches = ("headless", "no-sandbox", "disable-gpu", "no-first-run", f"user-data-dir={profile}", "dump-dom")
        command = ["chromium", *(f"--{switch}" for switch in switches), page.as_uri()]
        dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    loaded, filtered = re.findall(r'data-times="([\d.]+) ([\d.]+)"', dom)[0]
    return float(loaded), float(filtered)


def main() -> None:
    """Print a row per size."""
    if shutil.which("chromium") is None:
        sys.exit("error: this benchmark needs chromium")
    print("| series | page | load | filter |\n|---:|---:|---:|---:|")
    for count in [int(word) for word in sys.argv[1:]] or [100, 1000, 4348]:
        with tempfile.TemporaryDirectory() as folder:
            synthetic_runs.write_volumes(Path(folder), count, files=24)
            page = pages.write_report(Path(folder))
            page.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
            times = [open_page(page) for _ in range(REPEATS)]
            loaded, filtered = (statistics.median(column) for column in zip(*times, strict=True))
            size = page.stat().st_size / 1e6
            print(f"| {count:,} | {size:.1f} MB | {loaded / 1000:.2f} s | {filtered:.0f} ms |", flush=True)


if __name__ == "__main__":
    main()
