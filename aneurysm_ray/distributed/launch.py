"""Run a study's trials with Ray Tune, and keep the search's tables and the terminal up to date."""

import logging
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import ray.train
import ray.tune
from optuna.trial import TrialState

from aneurysm_ray import location, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.distributed import (
    news,
    progress,
    record,
    room,
    search_tables,
    session,
    space,
    survival,
    trial_process,
)
from aneurysm_ray.distributed.searcher import StudyScheduler, StudySearcher

log = logging.getLogger(__name__)

_TRIALS_EVERY_SECONDS = 10.0
"""At most so often the table of trials is written for new values alone; a trial's begin and end are shown at once."""
_SETTINGS_OF_RAY = {
    # Tune writes progress.csv, result.json and TensorBoard files for every trial unless told not to.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A trial that failed reports its error in place of the metrics.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # The new reporter prints a box of settings even at verbosity 0.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Errors go to the trial's error.txt, not to the terminal.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Tune's own record of the search is never read: a search resumes from its study.
    "TUNE_GLOBAL_CHECKPOINT_S": "600",
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
        scaling = survival.scaling(resources, need)
        # The trial only waits for its workers: a CPU of its own could leave none for them. It waits on the head node,
        # the one whose loss ends the search anyway.
        request = {"node:__internal_head__": 0.001}
    searcher = StudySearcher(study, config, parameters)
    with session.environment(_SETTINGS_OF_RAY), news.Box() as box:
        lines = SearchLines(config, box, lambda: room.waits_for(need, session.free(), session.roomless(need)))
        gpus = need.get("GPU", 0.0) * resources.workers
        handle = box.handle

        def run_trial(sample: dict[str, Any]) -> None:
            trial_process.run(sample, base=config, out=out, fit=fit, box=handle, scaling=scaling)

        with progress.told(lines.status), tempfile.TemporaryDirectory(prefix="aneurysm-ray-") as scratch:
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
                    # Of what Tune writes nothing is read: the study and the trials' folders are the search's record.
                    name="tune",
                    storage_path=scratch,
                    callbacks=[Tables(study, config, parameters, out, gpus, lines)],
                    verbose=0,
                ),
            ).fit()


class SearchLines:
    """What the terminal says of a search: how it stands after every trial, and where its trials are in between."""

    def __init__(self, config: Config, box: news.Box, waits: Any) -> None:
        self.config = config
        self.box = box
        self.waits = waits
        self.running: dict[int, int] = {}
        """Trials that run: their number, and the epochs they have done."""
        self.steps: dict[int, news.Letter] = {}
        self.table = pd.DataFrame()
        self.begun = time.monotonic()
        self.ended = 0

    def status(self) -> str:
        """Say where the running trials are, in a line."""
        for letter in self.box.take():
            if letter["kind"] == "lost":
                log.info("trial %d  lost a worker (%s); it goes on from its last epoch", letter["trial"], letter["why"])
            else:
                self.steps[letter["trial"]] = letter
        where = [self._where(number, done) for number, done in sorted(self.running.items())]
        if not any(number in self.steps or done for number, done in self.running.items()):
            # Tune has given a trial room before it calls it running; what workers of its own want is another matter.
            where.append(self.waits() if self.config.resources.workers > 1 else "starts its process")
        return f"  trial {'; '.join(where)}" if self.running else f"  the next trial {self.waits()}"

    def _where(self, number: int, done: int) -> str:
        steps = self.config.optim.epochs * len(self.config.tune.folds)
        text = f"{number} epoch {min(done + 1, steps)}/{steps}"
        step = self.steps.get(number)
        return f"{text}, {step['what']} {step['done']:,}/{step['total']:,}" if step else text

    def end(self, number: int, table: pd.DataFrame) -> None:
        """Say how the search stands when a trial has ended."""
        self.ended += 1
        self.running.pop(number, None)
        log.info("%s", standing(table, self.config, self.ended, time.monotonic() - self.begun))


class Tables(ray.tune.Callback):
    """Write the tables as results come in, and clear up after trials that ended."""

    def __init__(
        self,
        study: optuna.Study,
        config: Config,
        parameters: tuple[space.Parameter, ...],
        out: Path,
        gpus: float,
        lines: SearchLines,
    ) -> None:
        self.study = study
        self.config = config
        self.parameters = parameters
        self.out = out
        self.gpus = gpus
        self.lines = lines
        self.curves = search_tables.Curves(out)
        self.written = 0.0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Show a trial from its start."""
        number = trial.config["number"]
        self.lines.running[number] = self.curves.steps(number)
        self._write()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Add an epoch to the curves."""
        if record.STEP not in result:
            return
        number = trial.config["number"]
        self.lines.running[number] = result[record.STEP]
        self.lines.steps.pop(number, None)
        self.curves.add(number)
        if time.monotonic() - self.written > _TRIALS_EVERY_SECONDS:
            self._write()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Take a trial that ran to its end or was stopped into account."""
        self._end(trial.config["number"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Keep the error of a trial whose process died; it has not ended if it will be handed out again."""
        number = trial.config["number"]
        self.lines.running.pop(number, None)
        rundir.write_text(trial_process.folder_of(self.out, number) / rundir.ERROR, Path(trial.error_file).read_text())
        if self.study.get_trials(deepcopy=False)[number].state == TrialState.RUNNING:
            log.info("* the process of trial %d died; the trial goes on from its last epoch", number)
        else:
            self._end(number)

    def _end(self, number: int) -> None:
        for checkpoints in location.matching(trial_process.folder_of(self.out, number), "fold_*"):
            location.remove_tree(checkpoints)
        self.lines.end(number, self._write())

    def _write(self) -> pd.DataFrame:
        table = search_tables.trials_table(self.study, self.config, self.parameters, self.gpus)
        rundir.write_csv(self.out / rundir.TRIALS, table)
        self.written = time.monotonic()
        return table


def standing(table: pd.DataFrame, config: Config, ended: int, seconds: float) -> str:
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
    return f"{line}   eta {progress.clock(seconds / max(ended, 1) * (config.tune.trials - done))}"


def _short(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _name(tune_trial: Any) -> str:
    return f"trial_{tune_trial.config['number']:04d}"
