"""Run a study's trials with Ray Tune, and keep the search's tables and the terminal up to date."""

import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import ray.train
import ray.tune
from optuna.trial import TrialState

from aneurysm_ray import rundir
from aneurysm_ray.config import Config
from aneurysm_ray.distributed import search_tables, session, space, train, trial_process
from aneurysm_ray.distributed.searcher import StudyScheduler, StudySearcher

log = logging.getLogger(__name__)

_TABLES_EVERY_SECONDS = 2.0
_SETTINGS_OF_RAY = {
    # Tune writes progress.csv, result.json and TensorBoard files for every trial unless told not to.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A trial that failed reports its error in place of the metrics.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # The new reporter prints a box of settings even at verbosity 0.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Errors go to the trial's error.txt, not to the terminal.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}


def launch(
    study: optuna.Study,
    config: Config,
    parameters: tuple[space.Parameter, ...],
    out: Path,
    fit: trial_process.Fit,
    *,
    need: Mapping[str, float],
    at_once: int,
) -> None:
    """Run the trials that a study has left, `at_once` at a time, on workers that take `need` each.

    Returns when all have ended, or earlier when the user presses Ctrl-C, which Tune handles.
    """
    resources = config.resources
    if resources.workers == 1:
        scaling = None
        request = {name.lower(): amount for name, amount in need.items()}
    else:
        scaling = train.scaling(resources, need)
        # The trial only waits for its workers: a CPU of its own could leave none for them. It waits on the head node,
        # the one whose loss ends the search anyway.
        request = {"node:__internal_head__": 0.001}

    def run_trial(sample: dict[str, Any]) -> None:
        trial_process.run(sample, base=config, out=out, fit=fit, scaling=scaling)

    searcher = StudySearcher(study, config, parameters)
    with session.environment(_SETTINGS_OF_RAY):
        ray.tune.Tuner(
            ray.tune.with_resources(run_trial, request),
            tune_config=ray.tune.TuneConfig(
                search_alg=searcher,
                scheduler=StudyScheduler(searcher),
                num_samples=-1,  # the study says when there are enough
                max_concurrent_trials=at_once,
                # A process that has imported torch serves the next trial at once.
                reuse_actors=scaling is None,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=ray.tune.RunConfig(
                name=time.strftime("%Y%m%dT%H%M%S"),
                storage_path=str(out / "ray"),
                callbacks=[Tables(study, config, parameters, out, gpus=need.get("GPU", 0.0) * resources.workers)],
                verbose=0,
            ),
        ).fit()


class Tables(ray.tune.Callback):
    """Write the tables as results come in, say how the search stands, and clear up after trials that ended."""

    def __init__(
        self, study: optuna.Study, config: Config, parameters: tuple[space.Parameter, ...], out: Path, gpus: float
    ) -> None:
        self.study = study
        self.config = config
        self.parameters = parameters
        self.out = out
        self.gpus = gpus
        self.written = 0.0
        self.begun = time.monotonic()
        self.ended = 0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Show a trial from its start."""
        self._write()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Write the tables, at most every few seconds."""
        if time.monotonic() - self.written > _TABLES_EVERY_SECONDS:
            self._write()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Take a trial that ran to its end or was stopped into account."""
        self._end(trial.config["number"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Keep the error of a trial whose process died; it has not ended if it will be handed out again."""
        number = trial.config["number"]
        rundir.write_text(trial_process.folder_of(self.out, number) / rundir.ERROR, Path(trial.error_file).read_text())
        if self.study.get_trials(deepcopy=False)[number].state == TrialState.RUNNING:
            log.info("* the process of trial %d died; the trial goes on from its last epoch", number)
        else:
            self._end(number)

    def _end(self, number: int) -> None:
        self.ended += 1
        for checkpoints in trial_process.folder_of(self.out, number).glob("fold_*"):
            shutil.rmtree(checkpoints, ignore_errors=True)
        log.info("%s", progress(self._write(), self.config, self.ended, time.monotonic() - self.begun))

    def _write(self) -> pd.DataFrame:
        table = search_tables.write(self.study, self.config, self.parameters, self.out, self.gpus)
        self.written = time.monotonic()
        return table


def progress(table: pd.DataFrame, config: Config, ended: int, seconds: float) -> str:
    """Say in one line how a search stands; `ended` trials ended in the last `seconds`."""
    count = table["state"].value_counts()
    done = sum(int(count.get(state, 0)) for state in ("COMPLETE", "PRUNED", "FAIL"))
    line = f"trial {done}/{config.tune.trials}  {count.get('RUNNING', 0)} running  "
    line += f"{count.get('PRUNED', 0)} stopped  {count.get('FAIL', 0)} failed"
    best = search_tables.best_of(table, config)
    if best is not None:
        row = table.set_index("trial").loc[best]
        changed = " ".join(f"{key.split('.')[-1]}={_short(row[f'param/{key}'])}" for key in config.tune.space)
        line += f"   best {row['value']:.3f} (trial {best}: {changed})"
    hours = table["gpu_seconds"].sum() / 3600
    if hours:
        line += f"   {hours:.1f} GPU-h"
    left = seconds / max(ended, 1) * (config.tune.trials - done)
    return f"{line}   eta {left // 3600:.0f}:{left % 3600 // 60:02.0f}:{left % 60:02.0f}"


def _short(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _name(tune_trial: Any) -> str:
    return f"trial_{tune_trial.config['number']:04d}"
