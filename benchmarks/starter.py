"""Make the starter weights of the package, from synthetic heads alone.

    python benchmarks/starter.py WORK

Writes 640 varied phantoms of four modalities (seed 18) as DICOM into WORK, prepares them, trains the networks of
`--preset starter` on 600 of them for six epochs, 144,000 patches (about half an hour of one core), and exports them
into the package. The other 40 judge. Each step goes on where it stopped.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from aneurysm_ray.learning import export, starter

NOTE = (
    "starter weights: learnt from synthetic heads alone, never from a patient; for research and as first weights for "
    "training, and for no decision about anybody"
)
PHANTOM = ["--count", "640", "--seed", "18", "--varied", "--domes", "--min-mm", "3", "--max-mm", "18"]
VOLUME = ["volume.spacing_mm=[0.8,0.8,0.8]"]
TRAIN = [
    *("--preset", "starter", "--fold", "0", "--epochs", "6", "folds.count=16", "validation.every=2"),
    *("resources.cpus_per_worker=1", "feed.threads=1"),
]


def main(work: Path) -> None:
    dicom, volumes, run = work / "dicom", work / "volumes", work / "run"
    if not (dicom / "train.csv").exists():
        shutil.rmtree(dicom, ignore_errors=True)
        _run("phantom", dicom, *PHANTOM)
    _run("prepare", dicom, volumes, *VOLUME)
    resume = ["--resume"] if run.exists() else []
    _run("train", volumes, "--out", run, *(resume or TRAIN))
    starter.FILE.parent.mkdir(exist_ok=True)
    export.export_run(run, starter.FILE, NOTE)
    print(f"{starter.FILE} ({starter.FILE.stat().st_size / 1e6:.1f} MB)")


def _run(*words: object) -> None:
    subprocess.run([Path(sys.executable).with_name("aneurysm-ray"), *map(str, words)], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
