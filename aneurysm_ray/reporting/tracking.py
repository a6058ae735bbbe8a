"""Follow a run's directory into MLflow or Weights & Biases (`tracker=mlflow`, `tracker=wandb`), folds and trials too.

A thread of the driver reads the tables that a run writes anyway and sends what is new, so that a server that is slow or
gone costs a run nothing. Address, experiment and credentials are the trackers' own: MLFLOW_TRACKING_URI and its kin,
without which MLflow keeps its files in this folder; W&B writes `wandb/` here, for `wandb sync`, unless WANDB_MODE is
online. What was sent is noted in tracker.json, so that a run that goes on, or is sent again, goes on there too.
Artefacts are linked and not copied.
"""

import contextlib
import importlib.util
import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from aneurysm_ray import location, overrides, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.errors import RequestError, RunDirError

log = logging.getLogger(__name__)

EXPERIMENT = "aneurysm_ray"
"""Unless MLFLOW_EXPERIMENT_NAME or WANDB_PROJECT says otherwise."""
EVERY_SECONDS = 5.0
TRACKED = "tracker.json"
_METRICS_A_CALL, _PARAMETERS_A_CALL = 1000, 100
"""What MLflow's servers take at once."""
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""MLflow's own would let a run whose server died wait for it for minutes at its end."""
_ENDS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}


@dataclass(frozen=True, eq=False)
class Child:
    """A fold or a trial, as its tables stand."""

    name: str
    parameters: Mapping[str, Any]
    metrics: pd.DataFrame
    """A row an epoch."""
    step: str
    """Column of `metrics` that counts them."""
    status: str
    """FINISHED, FAILED or KILLED; empty while it runs."""


@contextlib.contextmanager
def followed(out: Path, config: Config, kind: str) -> Iterator[None]:
    """Send what a run writes into its directory while the block runs, if `config.tracker` says so.

    Raises RequestError, before the block, for a tracker that is not installed or does not answer.
    """
    if not config.tracker:
        yield
        return
    tracker = Tracker(out, config, kind)
    ended = threading.Event()
    thread = threading.Thread(target=_follow, args=(tracker, ended), name="tracker", daemon=True)
    thread.start()
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        ended.set()
        thread.join()
        _tried(lambda: tracker.end(status))


def _follow(tracker: "Tracker", ended: threading.Event) -> None:
    told = False
    while not ended.wait(EVERY_SECONDS):
        if not _tried(tracker.send, quiet=told):
            told = True


def _tried(send: Any, quiet: bool = False) -> bool:
    """Send, and say at most that it could not be: no tracker is worth a run. The next time sends what is missing."""
    try:
        send()
    except Exception as error:
        if not quiet:
            log.warning("* the tracker does not take this run's numbers (%s: %s)", type(error).__name__, _first(error))
        return False
    return True


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


class Tracker:
    """A run of a directory in a tracker, and what of it was sent."""

    def __init__(self, out: Path, config: Config, kind: str) -> None:
        """Connect. Raises RequestError."""
        self.out, self.config, self.kind = out, config, kind
        self.client = _MLflow() if config.tracker == "mlflow" else _WandB()
        there: dict[str, Any] = rundir.read_json(out / TRACKED) if (out / TRACKED).exists() else {}
        self.runs: dict[str, str] = there.get("runs", {}) if there.get("experiment") == self.client.experiment else {}
        self.sent: dict[str, int] = there.get("sent", {}) if self.runs else {}
        self.begun: set[str] = set()

    def send(self) -> None:
        """Send what is new. Raises whatever the tracker raises."""
        if not (self.out / rundir.CONFIG).exists():
            return
        parent = self._run("", dict(_settings(self.config)), "")
        for child in children(self.out, self.kind):
            run = self._run(child.name, child.parameters, parent)
            before = self.sent.get(child.name, 0)
            self.client.log(run, child.metrics.iloc[before:], child.step)
            self.sent[child.name] = len(child.metrics)
            if child.status and self.sent.get(f"{child.name} ended") != 1:
                self.client.end(run, child.status)
                self.sent[f"{child.name} ended"] = 1
        self._keep()

    def end(self, status: str) -> None:
        """Send the rest, the summary's numbers, and how the run ended."""
        self.send()
        if parent := self.runs.get(""):
            if (self.out / rundir.SUMMARY).exists():
                self.client.log(parent, pd.DataFrame([_numbers(rundir.read_json(self.out / rundir.SUMMARY))]), "")
            self.client.end(parent, status)
        self.client.close()

    def _run(self, name: str, parameters: Mapping[str, Any], parent: str) -> str:
        if name not in self.begun:
            known = self.runs.get(name, "")
            links = {
                "kind": self.kind if not name else name.split("_")[0],
                "directory": str(self.out),
                "report": str(self.out / rundir.REPORT),
            }
            self.runs[name] = self.client.begin(known, f"{self.out.name} {name}".strip(), links, parent)
            self.begun.add(name)
            self._keep()
            if not known:
                self.client.set_parameters(self.runs[name], parameters)
        return self.runs[name]

    def _keep(self) -> None:
        kept = {"experiment": self.client.experiment, "runs": self.runs, "sent": self.sent}
        rundir.write_json(self.out / TRACKED, kept)


class _MLflow:
    """Runs on the server of MLFLOW_TRACKING_URI, or in this folder."""

    def __init__(self) -> None:
        """Find or make the experiment. Raises RequestError."""
        _check_installed("mlflow")
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        import mlflow

        self.client = mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        try:
            found = self.client.get_experiment_by_name(name)
            self.experiment = str(found.experiment_id if found else self.client.create_experiment(name))
        # Of the server, of requests, of the file system.
        except Exception as error:
            raise RequestError(
                f"MLflow at {mlflow.get_tracking_uri()} does not answer ({type(error).__name__}: {_first(error)}); "
                "mend MLFLOW_TRACKING_URI, start the server, or leave tracker=mlflow out"
            ) from error

    def begin(self, known: str, name: str, links: Mapping[str, str], parent: str) -> str:
        """Return the run that is known, or a new one."""
        if known:
            return known
        tags = {"mlflow.runName": name, "mlflow.source.name": "aneurysm-ray", **links}
        if parent:
            tags["mlflow.parentRunId"] = parent
        return str(self.client.create_run(self.experiment, tags=tags).info.run_id)

    def set_parameters(self, run: str, parameters: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        all_of_them = [Param(key, str(value)[:500]) for key, value in parameters.items()]
        for first in range(0, len(all_of_them), _PARAMETERS_A_CALL):
            self.client.log_batch(run, params=all_of_them[first : first + _PARAMETERS_A_CALL])

    def log(self, run: str, table: pd.DataFrame, step: str) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now, number) for number, row in _rows(table, step) for name, value in row.items()
        ]
        for first in range(0, len(metrics), _METRICS_A_CALL):
            self.client.log_batch(run, metrics=metrics[first : first + _METRICS_A_CALL])

    def end(self, run: str, status: str) -> None:
        self.client.set_terminated(run, status)

    def close(self) -> None:
        """Let go of runs that have not ended, which another driver may go on with: nothing is held here."""


class _WandB:
    """Runs of Weights & Biases, those of a directory as one group: files in this folder unless WANDB_MODE is online."""

    def __init__(self) -> None:
        _check_installed("wandb")
        self.experiment = os.environ.get("WANDB_PROJECT", EXPERIMENT)
        self.named: dict[str, dict[str, Any]] = {}
        self.open: dict[str, Any] = {}

    def begin(self, known: str, name: str, links: Mapping[str, str], parent: str) -> str:
        """Return the run that is known, or a new one; it is opened when there is something to say."""
        run = known or uuid.uuid4().hex[:16]
        self.named[run] = {"name": name, "group": parent or run, "job_type": links["kind"], "config": dict(links)}
        return run

    def set_parameters(self, run: str, parameters: Mapping[str, Any]) -> None:
        plain = {key: value if isinstance(value, int | float) else str(value) for key, value in parameters.items()}
        self._opened(run).config.update(plain, allow_val_change=True)

    def log(self, run: str, table: pd.DataFrame, step: str) -> None:
        for number, row in _rows(table, step):
            if step:
                self._opened(run).log(row, step=number)
            else:
                self._opened(run).summary.update(row)

    def end(self, run: str, status: str) -> None:
        self._opened(run).finish(exit_code=0 if status == "FINISHED" else 1)
        del self.open[run]

    def close(self) -> None:
        """Let go of runs that have not ended, which another driver may go on with."""
        for run in list(self.open):
            self.end(run, "")

    def _opened(self, run: str) -> Any:
        """Return a run, opened again where an earlier driver began it."""
        if run not in self.open:
            import wandb

            # Numbers only: no console, code or requirements, which hold names of people and places.
            quiet = wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True)
            quiet.x_disable_meta = quiet.x_disable_stats = quiet.x_disable_machine_info = True
            quiet.x_save_requirements = False
            self.open[run] = wandb.init(
                project=self.experiment,
                id=run,
                resume="allow",
                reinit="create_new",
                mode="online" if os.environ.get("WANDB_MODE") == "online" else "offline",
                settings=quiet,
                **self.named[run],
            )
        return self.open[run]


def _check_installed(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise RequestError(f"tracker={package} needs a package that is not here: pip install -e '.[{package}]'")


def _rows(table: pd.DataFrame, step: str) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield the step and the finite numbers of each row."""
    for row in table.to_dict("records"):
        numbers = {
            str(name): float(value)
            for name, value in row.items()
            if name != step and isinstance(value, int | float | np.number) and math.isfinite(value)
        }
        yield int(row[step]) if step else 0, numbers


def children(out: Path, kind: str) -> list[Child]:
    """Return the folds of a training run, or the trials of a search, as far as they are."""
    return _trials(out) if kind == "tune" else _folds(out)


def _folds(out: Path) -> list[Child]:
    found = []
    for folder in location.matching(out, "fold_*"):
        if (table := _table(folder / rundir.METRICS)) is not None:
            status = "FINISHED" if (folder / rundir.SUMMARY).exists() else ""
            found.append(Child(folder.name, {"fold": folder.name.removeprefix("fold_")}, table, "epoch", status))
    return found


def _trials(out: Path) -> list[Child]:
    trials = _table(out / rundir.TRIALS)
    found = []
    for row in () if trials is None else trials.to_dict("records"):
        name = f"trial_{int(row['trial']):04d}"
        table = _table(out / "trials" / name / rundir.METRICS)
        parameters = {str(k).removeprefix("param/"): v for k, v in row.items() if str(k).startswith("param/")}
        chosen = {key: value for key, value in parameters.items() if not (isinstance(value, float) and value != value)}
        status = _ENDS.get(str(row["state"]), "")
        metrics = pd.DataFrame(columns=["step"]) if table is None else table
        found.append(Child(name, {**chosen, "trial": int(row["trial"])}, metrics, "step", status))
    return found


def _table(path: Path) -> pd.DataFrame | None:
    try:
        return rundir.read_csv(path) if path.exists() else None
    except RunDirError:
        return None


def _settings(config: Config) -> Iterator[tuple[str, Any]]:
    for key, _, _ in overrides.dotted_keys():
        yield key, overrides.value(config, key)


def _numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a summary that are worth a column, those of scores by their own names."""
    found: dict[str, float] = {}
    for name in ("score", "auc_present"):
        for part, value in (summary.get(name) or {}).items():
            if value is not None:
                found[name if part == "value" else f"{name}/{part}"] = value
    for test in summary.get("tests", ()):
        if (value := test["score"]["value"]) is not None:
            found[f"test/{test['name']}/score"] = value
    more = {"best": (summary.get("best") or {}).get("value"), "seconds": summary.get("seconds")}
    return {**found, **{name: value for name, value in more.items() if isinstance(value, int | float)}}
