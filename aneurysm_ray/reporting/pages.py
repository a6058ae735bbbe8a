"""The page of a prepared set, a run, a search or a prediction: picked by what the directory is, kept as report.html."""

from collections.abc import Callable, Sequence
from pathlib import Path

from aneurysm_ray import rundir
from aneurysm_ray.errors import RequestError, RunDirError
from aneurysm_ray.reporting import compare_runs, compare_searches, predict_page, run_page, search_page, set_page
from aneurysm_ray.reporting import page as pages
from aneurysm_ray.reporting.page import Page

PAGES: dict[str, Callable[[Path], Page]] = {
    "volumes": set_page.page,
    "train": run_page.page,
    "tune": search_page.page,
    "predict": predict_page.index_page,
}
"""Which page a directory of a kind gets."""

COMPARISONS: dict[str, Callable[[Sequence[Path]], Page]] = {"train": compare_runs.page, "tune": compare_searches.page}
"""Which page several directories of one kind get."""


def write_report(folder: Path) -> Path:
    """Write `report.html` into a prepared set, a run, a search or a prediction, and return its path.

    Raises RunDirError when the directory is none of these.
    """
    kind = rundir.kind(folder)
    if kind not in PAGES:
        raise RunDirError(
            f"{folder} holds {f'a {kind!r} run' if kind else 'no prepared set, run or search'}; nothing to report"
        )
    return pages.write(PAGES[kind](folder), folder / rundir.REPORT)


def compare(folders: Sequence[Path], out: Path) -> Path:
    """Write the page that compares several runs, or several searches, and return its path.

    Raises RequestError when they are of different kinds, or of a kind that is not compared.
    """
    kinds = {folder: rundir.kind(folder) for folder in folders}
    first = kinds[folders[0]]
    for folder, kind in kinds.items():
        if kind not in COMPARISONS:
            raise RequestError(f"{folder} is no training run or search; only these can be compared")
        if kind != first:
            raise RequestError(f"{folders[0]} is of kind {first!r}, {folder} of kind {kind!r}; compare runs with runs")
    return pages.write(COMPARISONS[first](folders), out)
