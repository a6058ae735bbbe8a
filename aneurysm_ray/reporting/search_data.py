"""What a search's directory holds: its trials, their curves and the objectives, whether it has ended or not."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from aneurysm_ray import rundir
from aneurysm_ray.config import Config
from aneurysm_ray.errors import RunDirError

PARAM = "param/"
STATES = ("COMPLETE", "PRUNED", "FAIL", "RUNNING")
STATE_WORDS = {"COMPLETE": "complete", "PRUNED": "stopped early", "FAIL": "failed", "RUNNING": "unfinished"}


@dataclass(frozen=True, eq=False)
class SearchData:
    """A search as its page sees it."""

    folder: Path
    config: Config
    provenance: dict[str, Any]
    summary: dict[str, Any]
    """summary.json; empty while the search goes on."""
    trials: pd.DataFrame
    """trials.csv in order of trial; `value` is a number, NaN where a trial has none."""
    curves: pd.DataFrame
    """trial, step (epochs done, from 1) and the metrics."""

    @property
    def metrics(self) -> list[str]:
        """The objectives, the first of which ranks trials."""
        return [name.strip() for name in self.config.tune.metric.split(",")]

    @property
    def signs(self) -> list[float]:
        """For each objective 1 where more is better, -1 where less is."""
        modes = [mode.strip() for mode in self.config.tune.mode.split(",")]
        modes = modes * len(self.metrics) if len(modes) == 1 else modes
        return [1.0 if mode == "max" else -1.0 for mode in modes]

    @property
    def keys(self) -> list[str]:
        """The dotted keys that were searched."""
        return [column.removeprefix(PARAM) for column in self.trials.columns if column.startswith(PARAM)]

    @property
    def complete(self) -> pd.DataFrame:
        """The trials that ran to their end and have a value."""
        return self.trials[(self.trials["state"] == "COMPLETE") & self.trials["value"].notna()]

    @property
    def best(self) -> int | None:
        """Number of the best complete trial by the first objective."""
        done = self.complete
        return int(done["trial"].iloc[int(np.argmax(self.signs[0] * done["value"]))]) if len(done) else None

    @property
    def default(self) -> int | None:
        """Number of the trial of the default configuration."""
        origins = self.trials["origin"] if "origin" in self.trials else pd.Series(dtype=str)
        chosen = self.trials.loc[origins == "default", "trial"] if len(origins) else self.trials["trial"].head(1)
        return int(chosen.iloc[-1]) if len(chosen) else None  # the last, where it failed and was tried again

    @property
    def uses_gpus(self) -> bool:
        """Whether trials held GPUs, so that cost is told in GPU-hours and not in trial-hours."""
        return bool(self.trials.get("gpu_seconds", pd.Series([0.0])).fillna(0).sum() > 0)

    def is_log(self, key: str) -> bool:
        """Whether a key was drawn on a logarithmic scale."""
        return any(word.startswith(("log", "qlog")) for word in self.config.tune.space.get(key, {}))

    def is_number(self, key: str) -> bool:
        """Whether a key's values are numbers, and not names, lists or switches."""
        column = self.trials[PARAM + key]
        return bool(pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column))

    def predictions(self, trial: int) -> pd.DataFrame | None:
        """Return a trial's predictions, or None where it left none."""
        try:
            table = rundir.read_csv(trial_dir(self.folder, trial) / rundir.PREDICTIONS)
        except RunDirError:
            return None
        return table if len(table) else None


def trial_dir(folder: Path, trial: int) -> Path:
    """Return a trial's directory."""
    return folder / "trials" / f"trial_{trial:04d}"


def read_search(folder: Path) -> SearchData:
    """Read a search's directory, ended or not. Raises RunDirError for a damaged file or a missing configuration."""
    columns = ["trial", "state", "value", "epochs", "started", "seconds", "gpu_seconds", "worker", "error"]
    trials = rundir.read_csv(folder / rundir.TRIALS) if (folder / rundir.TRIALS).exists() else pd.DataFrame()
    for column in columns:
        if column not in trials:
            trials[column] = pd.Series(np.nan, index=trials.index, dtype=object)
    trials["value"] = pd.to_numeric(trials["value"], errors="coerce")
    try:
        curves = rundir.read_csv(folder / rundir.CURVES)
    except RunDirError:  # a search without a finished epoch leaves an empty file
        curves = pd.DataFrame({"trial": pd.Series(dtype=int)})
    if "step" not in curves:
        curves["step"] = curves["epoch"] + 1 if "epoch" in curves else pd.Series(dtype=int)
    return SearchData(
        folder=folder,
        config=rundir.read_config(folder),
        provenance=rundir.read_json(folder / rundir.PROVENANCE) if (folder / rundir.PROVENANCE).exists() else {},
        summary=rundir.read_json(folder / rundir.SUMMARY) if (folder / rundir.SUMMARY).exists() else {},
        trials=trials.sort_values("trial").reset_index(drop=True),
        curves=curves,
    )
