"""Stand-ins for training that a search can be driven with: curves by formula, no volumes, no network."""

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from aneurysm_ray.config import Config


def curve(config: Config, fold: int, epoch: int) -> float:
    """Rise towards a height that is best at lr 1e-3, gamma 1 and a positive fraction of 0.6; fold 1 is 0.1 lower."""
    height = 0.9 - 0.1 * abs(math.log10(config.optim.lr) + 3) - 0.03 * abs(config.loss.focal_gamma - 1)
    height -= (config.sampler.positive_fraction - 0.6) ** 2
    return height * (1 - math.exp(-0.5 * (epoch + 1))) - 0.1 * fold


def epoch_result(config: Config, fold: int, epoch: int, seconds: float = 0.0) -> SimpleNamespace:
    """Return what `engine.fit` would yield, as far as a trial looks at it."""
    value = curve(config, fold, epoch)
    return SimpleNamespace(
        epoch=epoch,
        metrics={"val/score": value, "val/loss": 1 - value, "seconds": seconds + config.loss.focal_gamma},
        predictions=pd.DataFrame({"series_uid": ["1.2"], "fold": [fold], "Aneurysm Present": [value]}),
        state={"model": {}, "config": {}, "epoch": epoch},
    )


def fit(config: Config, fold: int, resume: dict[str, Any] | None, tell: Any = None) -> Iterator[SimpleNamespace]:
    """Train by formula, from the epoch after `resume`."""
    for epoch in range(resume["epoch"] + 1 if resume else 0, config.optim.epochs):
        yield epoch_result(config, fold, epoch)


def fit_that_fails(
    config: Config, fold: int, resume: dict[str, Any] | None, tell: Any = None
) -> Iterator[SimpleNamespace]:
    """Fail for half of the space, after one epoch; give no number at all for a tenth."""
    for result in fit(config, fold, resume):
        if config.loss.focal_gamma > 3.6:
            result.metrics["val/score"] = math.nan
        elif config.loss.focal_gamma > 2.0 and result.epoch == 1:
            raise ValueError(f"a gamma of {config.loss.focal_gamma:.3f} is too much")
        yield result


def fit_that_dies_once(
    config: Config, fold: int, resume: dict[str, Any] | None, tell: Any = None, *, marks: Path
) -> Iterator[Any]:
    """Kill the process of every trial in its third epoch, once; note each epoch that is trained."""
    for result in fit(config, fold, resume):
        mark = marks / f"{config.optim.lr:.12f}"
        if result.epoch == 2 and not mark.exists():
            mark.touch()
            os._exit(1)
        with open(f"{mark}.epochs", "a") as file:
            file.write(f"{result.epoch}\n")
        yield result


def slow_fit(
    config: Config, fold: int, resume: dict[str, Any] | None, tell: Any = None, *, seconds: float, log: Path
) -> Iterator[Any]:
    """Take `seconds` an epoch; note (process, lr, epoch) of each one."""
    for result in fit(config, fold, resume):
        time.sleep(seconds)
        with open(log, "a") as file:
            file.write(f"{os.getpid()},{config.optim.lr:.12f},{result.epoch}\n")
        yield result
