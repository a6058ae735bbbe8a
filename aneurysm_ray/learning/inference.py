"""From a series as it lies on disk to its 14 probabilities and its candidates as places in the source files.

A series is a folder or archive of DICOM files, or a prepared volume (`.parquet`); all three give the same numbers.
What cannot be read gets the training prevalence and says why, so that every series has an answer.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from aneurysm_ray.config import VolumeConfig
from aneurysm_ray.data import reading
from aneurysm_ray.data.guard import Guard
from aneurysm_ray.data.points import SourceSlices
from aneurysm_ray.data.reading import Reading
from aneurysm_ray.errors import SeriesError
from aneurysm_ray.learning import ensemble
from aneurysm_ray.learning.ensemble import HeatMap
from aneurysm_ray.learning.export import TrainedModels

Read = Callable[[Path, VolumeConfig], Reading]

CANDIDATE_COLUMNS = ("x_mm", "y_mm", "z_mm", "sop_uid", "frame", "row", "column", "probability", "location")
"""Columns of a series' candidates. frame, row and column count from 0; empty where the source files are not at hand."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What the models say of a series, or why they cannot."""

    probabilities: NDArray[np.float64]
    """(14,)"""
    candidates: pd.DataFrame
    """Columns of CANDIDATE_COLUMNS, the most probable first."""
    heatmap: HeatMap | None
    seconds: dict[str, float]
    reason: str = ""
    """Empty, or a key of `errors.SERIES_REASONS`: then the probabilities are the training prevalence."""
    message: str = ""


def score(trained: TrainedModels, series: Reading, device: torch.device | str) -> Answer:
    """Score a series and find its candidates' places in the source files."""
    start = time.perf_counter()
    found = ensemble.score_volume(trained.models, series.prepared, trained.config, device)
    candidates = located(found.candidates, series.slices)
    seconds = {**series.seconds, "score": time.perf_counter() - start}
    return Answer(found.probabilities, candidates, found.heatmap, seconds)


def located(candidates: pd.DataFrame, slices: SourceSlices | None) -> pd.DataFrame:
    """Add sop_uid, frame, row and column to candidates that have x_mm, y_mm, z_mm."""
    table = candidates.reset_index(drop=True)
    if slices is None:
        table = table.assign(sop_uid="", frame=np.nan, row=np.nan, column=np.nan)
    else:
        pixels = [slices.pixel(position) for position in table[["x_mm", "y_mm", "z_mm"]].to_numpy(np.float64)]
        table = table.assign(
            sop_uid=[pixel.sop_uid for pixel in pixels],
            frame=[pixel.frame for pixel in pixels],
            row=[pixel.row for pixel in pixels],
            column=[pixel.column for pixel in pixels],
        )
    return table.loc[:, list(CANDIDATE_COLUMNS)]


def fall_back(trained: TrainedModels, error: SeriesError) -> Answer:
    """Return the training prevalence as the answer for a series that could not be read."""
    none = pd.DataFrame(columns=list(CANDIDATE_COLUMNS))
    return Answer(trained.prevalence, none, None, {}, error.reason, str(error))


def answer(trained: TrainedModels, path: Path, device: torch.device | str, read: Read = reading.read) -> Answer:
    """Read, prepare and score one series; whatever is wrong with the series becomes the fall-back."""
    try:
        return score(trained, read(path, trained.config.volume), device)
    except SeriesError as error:
        return fall_back(trained, error)


def guarded(guard: Guard, timeout_seconds: float) -> Read:
    """Return a `reading.read` that runs in a guard's child, where no file can crash, hang or exhaust this process."""
    return lambda path, config: guard.run(reading.read, path, config, timeout_seconds=timeout_seconds)
