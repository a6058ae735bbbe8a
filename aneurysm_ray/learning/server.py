"""The competition's predict function: a series path in, a one-row table of 14 probabilities out, whatever happens.

The server that calls it gives one series at a time and a budget over all of them. So the folds are dealt to the GPUs,
which answer side by side, and as many folds are asked as the time saved or lost so far allows.
"""

import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from aneurysm_ray.data.guard import Guard
from aneurysm_ray.labels import LABELS
from aneurysm_ray.learning import ensemble, export, inference
from aneurysm_ray.learning.inference import Read

log = logging.getLogger("aneurysm_ray")

READ_SECONDS = 600.0
"""Longest reading of one series; the gateway itself gives up after 1800."""
READ_MEMORY_MB = 6000


def devices() -> list[str]:
    """Return every GPU, or the CPU where there is none."""
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]


class Predictor:
    """Answers one series after another; never raises, and keeps to a mean time per series.

    `share` is the folder the server copies series to; a series inside it is deleted once it is answered, since the
    server leaves that to the one it serves.
    """

    def __init__(
        self,
        model: Path,
        *,
        seconds_per_series: float = 15.0,
        share: Path | None = None,
        read: Read | None = None,
        on: Sequence[str] = (),
    ) -> None:
        self.devices = list(on) or devices()
        self.trained = export.load(model)
        for number, network in enumerate(self.trained.models):
            network.to(self.devices[number % len(self.devices)])
        self.seconds_per_series = seconds_per_series
        self.share = share
        self.read = read or inference.guarded(Guard(READ_MEMORY_MB), READ_SECONDS)
        self.series = 0
        self.spent = 0.0
        self.round_seconds = 0.0
        """Time in which every device asks one network; 0 until it is known."""

    def __call__(self, series_path: str) -> pd.DataFrame:
        """Return one row with the 14 probabilities in the competition's order."""
        start = time.perf_counter()
        try:
            probabilities = self._probabilities(Path(series_path), start)
        # The server counts an exception as the end of the submission: any answer is better.
        except Exception as error:
            log.warning("%s: training prevalence instead (%s: %s)", series_path, type(error).__name__, error)
            probabilities = self.trained.prevalence
        self._delete(Path(series_path))
        self.series += 1
        self.spent += time.perf_counter() - start
        return pd.DataFrame([probabilities], columns=list(LABELS))

    def _probabilities(self, path: Path, start: float) -> NDArray[np.float64]:
        reading = self.read(path, self.trained.config.volume)
        scoring = time.perf_counter()
        rounds = self.rounds(scoring - start)
        networks = self.trained.models[: rounds * len(self.devices)]
        score = ensemble.score_volume(networks, reading.prepared, self.trained.config, self.devices[0])
        self.round_seconds = (time.perf_counter() - scoring) / rounds
        if not np.isfinite(score.probabilities).all():
            raise ArithmeticError("the models answered with values that are not finite")
        return score.probabilities

    def rounds(self, reading_seconds: float) -> int:
        """Return how many networks each device may ask for this series, at least one."""
        most = -(-len(self.trained.models) // len(self.devices))
        if not self.round_seconds:
            return most
        left = self.seconds_per_series * (self.series + 1) - self.spent - reading_seconds
        return int(np.clip(left / self.round_seconds, 1, most))

    def _delete(self, path: Path) -> None:
        if self.share is not None and path.resolve().is_relative_to(self.share.resolve()):
            shutil.rmtree(self.share, ignore_errors=True)
