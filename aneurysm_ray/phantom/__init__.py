"""Synthetic head CTA and MRA series with labelled aneurysms, written as a data set of real DICOM files.

The layout is the competition's (see `data.dataset`), with one table more: phantom.csv, the truth that no localizer
tells, by aneurysm: its centre and diameter in mm. Nothing in it comes from a patient, unless `geometry` renders
vessel trees that do.
"""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import threadpoolctl

from aneurysm_ray.errors import RequestError
from aneurysm_ray.phantom.options import PhantomOptions, SeriesPlan, plan_series
from aneurysm_ray.phantom.tables import SeriesRows, store_series, write_tables

__all__ = ["PhantomOptions", "SeriesPlan", "plan_series", "write_dataset"]


def write_dataset(
    out: Path, options: PhantomOptions, progress: Callable[[int, int], None] = lambda done, total: None
) -> Path:
    """Write a synthetic data set into a new folder and return it.

    `progress` is called with the number of finished series and of all, the first time with 0. All is written beside
    `out` and renamed at the end; what a run that was cut short left there is removed by the next.

    Raises RequestError if `out` exists and is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"{out} exists already; name a new folder, or remove it first")
    plans = plan_series(options)
    part = out.with_name(out.name + ".phantom.tmp")
    shutil.rmtree(part, ignore_errors=True)
    (part / "series").mkdir(parents=True)
    rows = []
    progress(0, len(plans))
    for row in _stored(part / "series", options, plans):
        rows.append(row)
        progress(len(rows), len(plans))
    write_tables(part, rows)
    part.replace(out)
    return out


def _stored(folder: Path, options: PhantomOptions, plans: tuple[SeriesPlan, ...]) -> Iterator[SeriesRows]:
    one = partial(store_series, folder, replace(options, workers=1))
    if options.workers == 1:
        yield from map(one, plans)
        return
    # Forked children of a process with threads can hang, and those of Ray or torch have many: spawn.
    workers = min(options.workers, len(plans))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_use_one_thread) as pool:
        yield from pool.map(one, plans)


def _use_one_thread() -> None:
    # As many BLAS threads in every process as there are cores spend more than half of the time waiting for each other.
    threadpoolctl.threadpool_limits(1)
