"""The page of a prepared set, a run or a search: picked by what the directory is, written into it as report.html."""

from collections.abc import Callable
from pathlib import Path

from aneurysm_ray import rundir
from aneurysm_ray.errors import RunDirError
from aneurysm_ray.reporting import page as pages
from aneurysm_ray.reporting import run_page, set_page
from aneurysm_ray.reporting.page import Page

PAGES: dict[str, Callable[[Path], Page]] = {"volumes": set_page.page, "train": run_page.page}
"""Which page a directory of a kind gets."""


def write_report(folder: Path) -> Path:
    """Write `report.html` into a prepared set, a run or a search, and return its path.

    Raises RunDirError when the directory is none of these.
    """
    kind = rundir.kind(folder)
    if kind not in PAGES:
        raise RunDirError(
            f"{folder} holds {f'a {kind!r} run' if kind else 'no prepared set, run or search'}; nothing to report"
        )
    return pages.write(PAGES[kind](folder), folder / rundir.REPORT)
