"""The Optuna study of a search: its only record, which Ray Tune draws from and reports to (`searcher.py`).

Nothing is kept in Tune's pickles: a search that was killed goes on by opening its study again, first with the trials
found RUNNING, then with new ones.
"""

import math
import secrets
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.pruners import BasePruner, NopPruner
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from aneurysm_ray import location, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.distributed import space
from aneurysm_ray.distributed.object_journal import ObjectJournal
from aneurysm_ray.errors import ConfigError, RequestError
from aneurysm_ray.search_config import TuneConfig

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
RETRY_OF = "retry_of"
"""Attribute of a trial: number of the failed one that it tries again."""
DIRECTORY = "directory"
"""Attribute of a study: where its search was last driven."""
SECONDS = "seconds_total"
"""Key of the seconds a trial has taken so far, over all attempts."""
PROGRESS = "progress"
"""Attribute of a trial: steps, seconds and worker, as of its last epoch."""

DEFAULT = "default"
"""Origin of the trial of the default configuration."""
START = "start"
"""Origin of the trials spread over the space, before their number."""

GOOD_SHARE = 0.05
"""Share of the trials that have ended that TPE takes for good ones, where trials are stopped.

Complete trials rank before stopped ones, and few are complete: with Optuna's own share of 0.1 nearly all of those are
good, also the ones that nothing was there yet to stop by.
"""


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


def open_study(config: TuneConfig, out: Path) -> optuna.Study:
    """Create the study of the search in a directory, or open it again.

    It lives in the directory's journal, or in the database that `tune.storage` names. The directory keeps its name,
    which no other study has, so that a search may be renamed and copied. Raises RequestError when the database cannot
    be opened, or when the directory is a copy and its study, in a database, that of the original.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not (out / rundir.STUDY).exists():
        rundir.write_json(out / rundir.STUDY, {"name": f"{out.name}-{secrets.token_hex(4)}"})
    name = rundir.read_json(out / rundir.STUDY)["name"]
    study = optuna.create_study(
        storage=_storage(config, out / rundir.JOURNAL),
        study_name=name,
        load_if_exists=True,
        directions=["maximize" if mode == "max" else "minimize" for mode in modes(config)],
    )
    before = study.user_attrs.get(DIRECTORY, str(out))
    if config.storage and before != str(out) and _name_in(location.place(before)) == name:
        raise RequestError(
            f"{out} is a copy of {before}, whose study {name} is in {config.storage}; go on there, or search anew with "
            "another --out"
        )
    if study.user_attrs.get(DIRECTORY) != str(out):
        study.set_user_attr(DIRECTORY, str(out))
    return study


def _name_in(out: Path) -> str:
    return str(rundir.read_json(out / rundir.STUDY)["name"]) if (out / rundir.STUDY).exists() else ""


def _storage(config: TuneConfig, journal: Path) -> BaseStorage:
    if config.storage:
        return _database(config.storage)
    if location.is_remote(journal):
        return JournalStorage(ObjectJournal(journal))
    mend_journal(journal)
    return JournalStorage(JournalFileBackend(str(journal)))


def check_storage(config: TuneConfig) -> None:
    """Raise RequestError when the database of a search cannot be opened."""
    if config.storage:
        _database(config.storage)


def _database(url: str) -> RDBStorage:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return RDBStorage(url)
    except (ImportError, optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
        first = str(error).strip().partition("\n")[0]
        raise RequestError(f"tune.storage = {url!r} cannot be opened: {first}") from error


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


def retry_failed(study: optuna.Study) -> int:
    """Queue every failed trial's sample again, which has not been since; return how many."""
    failed = [
        trial
        for trial in study.get_trials(deepcopy=False, states=[TrialState.FAIL])
        if trial.number not in superseded(study)
    ]
    for trial in failed:
        kept = {key: trial.user_attrs[key] for key in ("origin", "held") if key in trial.user_attrs}
        study.enqueue_trial(trial.params, user_attrs={**kept, RETRY_OF: trial.number})
    return len(failed)


def superseded(study: optuna.Study) -> set[int]:
    """Return the numbers of failed trials that have been queued again; they count no more."""
    return {trial.user_attrs[RETRY_OF] for trial in study.get_trials(deepcopy=False) if RETRY_OF in trial.user_attrs}


def counted(study: optuna.Study, *, ended: bool = False) -> int:
    """Return how many trials of a search have begun, or have ended; those tried again count once."""
    waits = (TrialState.WAITING, TrialState.RUNNING) if ended else (TrialState.WAITING,)
    without = superseded(study)
    return sum(t.state not in waits and t.number not in without for t in study.get_trials(deepcopy=False))


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
    points = [(DEFAULT, *space.point({}, parameters, config))]
    for number, values in enumerate(config.tune.points):
        if unknown := sorted(set(values) - keys):
            raise ConfigError(f"tune.points[{number}]: {unknown[0]} is not in tune.space ({', '.join(sorted(keys))})")
        inside, outside = space.point(values, parameters, config)
        if given := [key for key in outside if key in values]:
            raise ConfigError(f"tune.points[{number}]: {given[0]} = {values[given[0]]!r} lies outside tune.space")
        points.append((f"point {number}", inside, outside))
    return points


def queue_start(study: optuna.Study, config: Config, parameters: tuple[space.Parameter, ...]) -> None:
    """Queue the next point of TPE's start, when those that were given are drawn."""
    if config.tune.sampler != "tpe" or study.get_trials(deepcopy=False, states=[TrialState.WAITING]):
        return
    present = _origins(study)
    spread = space.spread(parameters, startup_trials(config.tune), config.tune.seed)
    for number, values in enumerate(spread):
        if (origin := f"{START} {number}") not in present:
            inside, _ = space.point(values, parameters, config)
            study.enqueue_trial(inside, user_attrs={"origin": origin})
            return


def grace(config: Config) -> int:
    """Return the epochs before which no trial is stopped."""
    first = max(config.tune.grace_epochs, config.validation.every)
    return min(first, config.optim.epochs * len(config.tune.folds))


class Halving(BasePruner):
    """Asynchronous successive halving over epochs (Li et al. 2020), cut where Ray's ASHA cuts.

    A trial that comes to a rung - `grace` epochs, `factor` times as many, and so on - is stopped when it lies below the
    values of the others there, interpolated at a share of 1 - 1/factor. All it knows are the intermediate values in the
    study. Optuna's own lets only the best of fewer than `factor` pass, which took 31 % of 64 full trials where most
    learning curves cross, and this one 24 % (`benchmarks/search.py`).
    """

    def __init__(self, grace: int, factor: int) -> None:
        self.grace = grace
        self.factor = factor

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Say whether a trial is to be stopped at its last step."""
        step = trial.last_step or 0
        rungs = [self.grace]
        while rungs[-1] < step:
            rungs.append(rungs[-1] * self.factor)
        if step not in rungs:
            return False
        sign = 1 if study.direction == StudyDirection.MAXIMIZE else -1
        others = [
            sign * other.intermediate_values[step]
            for other in study.get_trials(deepcopy=False)
            if step in other.intermediate_values and other.number != trial.number
        ]
        mine = sign * trial.intermediate_values[step]
        return bool(others) and bool(mine < np.percentile(others, 100 * (1 - 1 / self.factor)))


def pruner(config: Config) -> BasePruner:
    """Return what says which trials to stop."""
    if not config.tune.prune or len(metrics(config.tune)) > 1:
        return NopPruner()
    return Halving(grace(config), config.tune.reduction_factor)


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


def running(study: optuna.Study) -> list[optuna.Trial]:
    """Return the trials that were begun and have no end: after a restart, those to go on with."""
    return [
        optuna.Trial(study, trial._trial_id)
        for trial in study.get_trials(deepcopy=False)
        if trial.state == TrialState.RUNNING
    ]


def report(trial: optuna.Trial, result: Mapping[str, Any], names: list[str]) -> bool:
    """Write one epoch's value and the trial's running totals to the study; say whether the value was new to it.

    Optuna takes intermediate values of a single objective only; a value that is not finite is left out. A trial that
    goes on after its process died reports its earlier epochs again, which turns no total back.
    """
    if STEP not in result:
        return False
    value = result.get(names[0], math.nan)
    new = len(names) == 1 and math.isfinite(value) and result[STEP] not in _reported(trial)
    if new:
        trial.report(float(value), result[STEP])
    if result[STEP] >= trial.user_attrs.get(PROGRESS, {}).get(STEP, 0):
        # One attribute for all: each is a line in the journal that is waited for until it is on the disk.
        trial.set_user_attr(PROGRESS, {key: result[key] for key in (STEP, SECONDS, WORKER) if key in result})
    return new


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
    trial.set_user_attr("ended", now())
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


def now() -> str:
    """Return the time as a study keeps it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
