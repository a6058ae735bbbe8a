"""From a series as it lies on disk to its 14 probabilities and its candidates as places in the source files.

A series is a folder or archive of DICOM files, or a prepared volume (`.parquet`); all three give the same numbers.
What cannot be read gets the training prevalence and says why, so that every series has an answer.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from aneurysm_ray.config import VolumeConfig
from aneurysm_ray.data import dicom, preprocess, store
from aneurysm_ray.data.slices import SourceSlices, source_slices
from aneurysm_ray.data.store import PreparedVolume
from aneurysm_ray.errors import RunDirError, SeriesError
from aneurysm_ray.learning import ensemble
from aneurysm_ray.learning.ensemble import HeatMap
from aneurysm_ray.learning.export import Ensemble

CANDIDATE_COLUMNS = (*("x_mm", "y_mm", "z_mm", "sop_uid", "frame", "row", "column", "probability", "location"),)
"""Columns of a series' candidates. frame, row and column count from 0; empty where the source files are not at hand."""


@dataclass(frozen=True, eq=False)
class Reading:
    """A series, read and prepared."""

    prepared: PreparedVolume
    slices: SourceSlices | None
    """None for a prepared volume, which no longer knows its files."""
    seconds: dict[str, float]
    """Seconds by stage."""


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


def read(path: Path, config: VolumeConfig) -> Reading:
    """Read and prepare a series. Raises SeriesError when it cannot be a volume."""
    start = time.perf_counter()
    if path.suffix == ".parquet":
        try:
            prepared = store.read_volume(path)
        except RunDirError as error:
            raise SeriesError("bad_archive", str(error)) from error
        return Reading(prepared, None, {"read": time.perf_counter() - start})
    volume = dicom.read_series(path)
    read_at = time.perf_counter()
    prepared = preprocess.prepare_series(volume, config)
    seconds = {"read": read_at - start, "prepare": time.perf_counter() - read_at}
    return Reading(prepared, source_slices(volume), seconds)


def score(trained: Ensemble, reading: Reading, device: torch.device | str) -> Answer:
    """Score a series and find its candidates' places in the source files."""
    start = time.perf_counter()
    found = ensemble.score_volume(trained.models, reading.prepared, trained.config, device)
    candidates = located(found.candidates, reading.slices)
    seconds = {**reading.seconds, "score": time.perf_counter() - start}
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


def fall_back(trained: Ensemble, error: SeriesError) -> Answer:
    """Return the training prevalence as the answer for a series that could not be read."""
    none = pd.DataFrame(columns=list(CANDIDATE_COLUMNS))
    return Answer(trained.prevalence, none, None, {}, error.reason, str(error))


def predict_series(trained: Ensemble, path: Path, device: torch.device | str) -> Answer:
    """Read, prepare and score one series in this process; whatever is wrong with the series becomes the fall-back."""
    try:
        reading = read(path, trained.config.volume)
    except SeriesError as error:
        return fall_back(trained, error)
    return score(trained, reading, device)
