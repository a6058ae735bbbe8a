"""The search itself: an Optuna study that Ray Tune draws from and reports to, and the scheduler that stops trials.

The study is the only record of a search. Ray's own OptunaSearch tells stopped trials as COMPLETE with the value they
had when they were stopped, and loses the last report; here they are PRUNED with every intermediate value, and the
sampler ranks them as what they are. Nothing is kept in Tune's pickles: a search that was killed goes on by opening its
study again, first with the trials found RUNNING, then with new ones.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher

from aneurysm_ray.config import Config, TuneConfig
from aneurysm_ray.distributed import space
from aneurysm_ray.errors import ConfigError, RequestError

STEP = "step"
"""Key of a result's place in its trial: epochs done over all its folds, from 1."""
FINISHED = "finished"
"""Key of a result that is true in a trial's last one."""
ERROR = "error"
"""Key of a result that carries the text of an exception instead of metrics."""
WORKER = "worker"
"""Key of where a trial ran: host and process."""
DEATHS = "deaths"
"""Attribute of a trial: how many of its processes died."""
SECONDS = "seconds_total"
"""Key of the seconds a trial has taken so far, over all attempts."""

START = "start"
"""Origin of the trials spread over the space, before their number."""

GOOD_SHARE = 0.05
"""Share of the trials that have ended that TPE takes for good ones, where trials are stopped.

Complete trials rank before stopped ones, and few are complete: with Optuna's own share of 0.1 nearly all of those are
good, also the ones that nothing was there yet to stop by.
"""

DONE = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def metrics(config: TuneConfig) -> list[str]:
    """Return the metrics to optimise."""
    return [name.strip() for name in config.metric.split(",")]


def modes(config: TuneConfig) -> list[str]:
    """Return max or min for each metric. Raises ConfigError when they do not match."""
    found = [mode.strip() for mode in config.mode.split(",")]
    if len(found) == 1:
        found *= len(metrics(config))
    if len(found) != len(metrics(config)) or any(mode not in ("max", "min") for mode in found):
        raise ConfigError(f"tune.mode = {config.mode!r} is not max or min, one for each of {config.metric!r}")
    return found


def open_study(config: TuneConfig, journal: Path, name: str, *, resume: bool) -> optuna.Study:
    """Create the study of a search, or open it again to resume.

    It lives in `journal`, or in the database that `tune.storage` names. Raises RequestError when the database cannot
    be opened or already holds a study of this name that is not to be resumed.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = _storage(config, journal)
        return optuna.create_study(
            storage=storage,
            study_name=name,
            load_if_exists=resume,
            directions=["maximize" if mode == "max" else "minimize" for mode in modes(config)],
        )
    except optuna.exceptions.DuplicatedStudyError as error:
        raise RequestError(
            f"{config.storage} already holds a study {name!r}; add --resume to go on with it, or choose another --out"
        ) from error
    except (ImportError, optuna.exceptions.StorageInternalError, *_database_errors()) as error:
        raise RequestError(f"tune.storage = {config.storage!r} cannot be opened: {error}") from error


def _storage(config: TuneConfig, journal: Path) -> BaseStorage:
    if config.storage:
        return RDBStorage(config.storage)
    mend_journal(journal)
    return JournalStorage(JournalFileBackend(str(journal)))


def _database_errors() -> tuple[type[Exception], ...]:
    from sqlalchemy.exc import SQLAlchemyError

    return (SQLAlchemyError,)


def mend_journal(journal: Path) -> None:
    """Undo what a kill in the middle of a write leaves behind: half a last line, and a lock that nobody holds.

    Only a search's own driver may call this: it takes every lock for a dead one.
    """
    if journal.exists():
        text = journal.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            with journal.open("r+b") as file:
                file.truncate(whole)
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)


def enqueue(study: optuna.Study, config: Config, parameters: tuple[space.Parameter, ...]) -> None:
    """Queue the default configuration, then `tune.points`, unless they are already in the study.

    Raises ConfigError for a point that names a key outside the space or a value that could not be drawn.
    """
    present = _origins(study)
    for origin, inside, held in _first_points(config, parameters):
        if origin not in present:
            study.enqueue_trial(inside, user_attrs={"origin": origin, "held": held})


def _origins(study: optuna.Study) -> set[str | None]:
    return {trial.user_attrs.get("origin") for trial in study.get_trials(deepcopy=False)}


def startup_trials(config: TuneConfig) -> int:
    """Return how many trials are spread over the space before TPE proposes any: half of them at most."""
    return min(config.startup_trials, max(config.trials - 1, 0) // 2)


def check_points(config: Config, parameters: tuple[space.Parameter, ...]) -> None:
    """Raise ConfigError for a point of `tune.points` that the space does not hold."""
    _first_points(config, parameters)


def _first_points(
    config: Config, parameters: tuple[space.Parameter, ...]
) -> list[tuple[str, dict[str, Any], list[str]]]:
    keys = {parameter.key for parameter in parameters}
    # The default may lie outside a space that was chosen around something else; it is tried all the same.
    points = [("default", *space.point({}, parameters, config))]
    for number, values in enumerate(config.tune.points):
        if unknown := sorted(set(values) - keys):
            raise ConfigError(f"tune.points[{number}]: {unknown[0]} is not in tune.space ({', '.join(sorted(keys))})")
        inside, outside = space.point(values, parameters, config)
        if given := [key for key in outside if key in values]:
            raise ConfigError(f"tune.points[{number}]: {given[0]} = {values[given[0]]!r} lies outside tune.space")
        points.append((f"point {number}", inside, outside))
    return points


def sampler(config: TuneConfig, number: int) -> optuna.samplers.BaseSampler:
    """Return the sampler that draws trial `number`.

    Its seed derives from the search's seed and the number, so a resumed search draws what an uninterrupted one would,
    given the same results; a sampler that starts again would repeat its first draws.
    """
    seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
    if config.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        # Optuna marks `group`, which conditional keys need to be drawn jointly, as experimental since 2.8, and means to
        # drop `gamma` in 6.0.
        for category in (optuna.exceptions.ExperimentalWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        return optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=(startup_trials(config) + 1) // 2,
            multivariate=True,
            group=True,
            constant_liar=True,
            gamma=_good if config.prune and len(metrics(config)) == 1 else None,
        )


def _good(ended: int) -> int:
    return math.ceil(GOOD_SHARE * ended)


class StudySearch(Searcher):
    """Hand a study's trials to Tune and carry their results back.

    `suggest` gives {"number": the study's trial number, "params": dotted overrides}. A trial whose process died is
    handed out again and goes on from its checkpoint, `resources.max_failures` times at most. Tune's own retries do not
    cover a process that dies between two trials.
    """

    def __init__(self, study: optuna.Study, config: Config, parameters: tuple[space.Parameter, ...]) -> None:
        super().__init__(metric=metrics(config.tune), mode=modes(config.tune))
        self.study = study
        self.config = config
        self.parameters = parameters
        self.unfinished = running(study)
        self.trials: dict[str, optuna.Trial] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return an interrupted trial again, or a new one; FINISHED when `tune.trials` have ended.

        None asks Tune to come back: a trial that runs may yet have to be handed out again.
        """
        begun = sum(t.state != TrialState.WAITING for t in self.study.get_trials(deepcopy=False))
        if self.unfinished:
            trial = self.unfinished.pop(0)
        elif begun < self.config.tune.trials:
            self.study.sampler = sampler(self.config.tune, begun)
            self._queue_start()
            trial = self.study.ask()
            trial.set_user_attr("started", _now())
        else:
            return None if self.trials else str(self.FINISHED)
        self.trials[trial_id] = trial
        # What was drawn before an interruption is returned again; only what was not is drawn now.
        return {"number": trial.number, "params": space.suggest(trial, self.parameters, self.config)}

    def _queue_start(self) -> None:
        """Queue the next point of TPE's start, when those that were given are drawn."""
        if self.config.tune.sampler != "tpe" or self.study.get_trials(deepcopy=False, states=[TrialState.WAITING]):
            return
        present = _origins(self.study)
        spread = space.spread(self.parameters, startup_trials(self.config.tune), self.config.tune.seed)
        for number, values in enumerate(spread):
            if (origin := f"{START} {number}") not in present:
                inside, _ = space.point(values, self.parameters, self.config)
                self.study.enqueue_trial(inside, user_attrs={"origin": origin})
                return

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Report an epoch's value to the study."""
        report(self.trials[trial_id], result, self.metric)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study how a trial ended.

        Tune passes a stopped trial's last result here and not to `on_trial_result`. A result that is not `done`
        belongs to a trial that was cut off with the search: it stays RUNNING, to be resumed.
        """
        trial = self.trials.pop(trial_id)
        if error:
            deaths = trial.user_attrs.get(DEATHS, 0) + 1
            trial.set_user_attr(DEATHS, deaths)
            if deaths <= self.config.resources.max_failures:
                self.unfinished.append(trial)
            else:
                finish(trial, failed=f"the trial's process died {deaths} time(s)")
        elif result and result.get("done"):
            report(trial, result, self.metric)
            conclude(trial, result, self.metric)

    def save(self, checkpoint_path: str) -> None:
        """Write nothing of value: a search resumes from its study. Tune renames this file, so it must be there."""
        Path(checkpoint_path).touch()


def running(study: optuna.Study) -> list[optuna.Trial]:
    """Return the trials that were begun and have no end: after a restart, those to go on with."""
    return [
        optuna.Trial(study, trial._trial_id)
        for trial in study.get_trials(deepcopy=False)
        if trial.state == TrialState.RUNNING
    ]


def report(trial: optuna.Trial, result: Mapping[str, Any], names: list[str]) -> None:
    """Write one epoch's value and the trial's running totals to the study.

    Optuna takes intermediate values of a single objective only; a value that is not finite is left out. A trial that
    goes on after its process died reports its earlier epochs again, which turns no total back.
    """
    if STEP not in result:
        return
    value = result.get(names[0])
    if len(names) == 1 and value is not None and math.isfinite(value) and result[STEP] not in _reported(trial):
        trial.report(float(value), result[STEP])
    if result[STEP] >= trial.user_attrs.get(STEP, 0):
        for key in (STEP, SECONDS, WORKER):
            if key in result:
                trial.set_user_attr(key, result[key])


def conclude(trial: optuna.Trial, result: Mapping[str, Any], names: list[str]) -> None:
    """Close a trial by its last result: COMPLETE when it ran to its end, PRUNED when it was stopped, else FAIL."""
    values = [result.get(name, math.nan) for name in names]
    if ERROR in result:
        finish(trial, failed=result[ERROR])
    elif not all(math.isfinite(value) for value in values):
        finish(trial, failed=f"{', '.join(names)} was not a number after {result.get(STEP, 0)} epochs")
    elif result.get(FINISHED):
        finish(trial, values=values)
    else:
        finish(trial)


def finish(trial: optuna.Trial, *, values: list[float] | None = None, failed: str = "") -> None:
    """Tell the study that a trial is COMPLETE with its values, FAIL with a reason, or PRUNED."""
    trial.set_user_attr("ended", _now())
    if failed:
        trial.set_user_attr(ERROR, failed)
        trial.study.tell(trial, state=TrialState.FAIL)
    elif values is not None:
        trial.study.tell(trial, values)
    else:
        trial.study.tell(trial, state=TrialState.PRUNED)


def _reported(trial: optuna.Trial) -> Mapping[int, float]:
    values: Mapping[int, float] = trial.storage.get_trial(trial._trial_id).intermediate_values
    return values


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class StudyASHA(ASHAScheduler):
    """Ray's asynchronous successive halving over epochs, which knows what the study knew before a restart."""

    def __init__(self, study: optuna.Study, config: Config) -> None:
        steps = config.optim.epochs * len(config.tune.folds)
        super().__init__(
            time_attr=STEP,
            metric=metrics(config.tune)[0],
            mode=modes(config.tune)[0],
            max_t=steps,
            grace_period=min(config.tune.grace_epochs, steps),
            reduction_factor=config.tune.reduction_factor,
            # The trial ends by itself; stopping it at its last step would gain nothing.
            stop_last_trials=False,
        )
        self._grace = min(config.tune.grace_epochs, steps)
        for trial in study.get_trials(deepcopy=False):
            self._replay(trial)

    def _replay(self, trial: FrozenTrial) -> None:
        key = _Key(str(trial.number))
        super().on_trial_add(None, key)
        for step, value in sorted(trial.intermediate_values.items()):
            super().on_trial_result(None, key, {STEP: step, self._metric: value})

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Register a trial under its number in the study, by which it is known when it comes back after a death."""
        super().on_trial_add(tune_controller, _key(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide whether a trial goes on.

        The default configuration is never stopped: it is what the best is held against. One whose metric is not a
        number stops when its grace is over.
        """
        value = result.get(self._metric)
        if STEP in result and value is not None and not math.isfinite(value):
            over = result[STEP] >= self._grace
            return str(TrialScheduler.STOP if over else TrialScheduler.CONTINUE)
        decision = str(super().on_trial_result(tune_controller, _key(trial), result))
        return str(TrialScheduler.CONTINUE) if trial.config["number"] == 0 else decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Take a trial's last result into account."""
        super().on_trial_complete(tune_controller, _key(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Forget a trial that never ran."""
        super().on_trial_remove(tune_controller, _key(trial))


@dataclass(frozen=True)
class _Key:
    """What ASHA looks at of a trial."""

    trial_id: str


def _key(trial: Any) -> _Key:
    return _Key(str(trial.config["number"]))
