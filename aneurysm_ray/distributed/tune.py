"""Search hyperparameters with Ray Tune and Optuna: what is tried is the study's, what runs where and when is Tune's."""

import contextlib
import fcntl
import functools
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from aneurysm_ray import overrides, provenance, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.data import folds as fold_tables
from aneurysm_ray.data import store
from aneurysm_ray.distributed import launch, room, search, session, space, train, trial, trials
from aneurysm_ray.errors import AneurysmRayError, ConfigError, RequestError, did_you_mean
from aneurysm_ray.labels import LABELS

log = logging.getLogger(__name__)

METRICS = (
    *("val/score", "val/auc_present", "val/loss", "train/loss", *(f"val/auc/{label}" for label in LABELS)),
    *("seconds", "patches_per_s", "data_wait_fraction", "lr", "parameters", search.SECONDS),
)
"""What a trial reports and a search can optimise."""


def tune(volumes: Path, out: Path, config: Config, *, resume: bool = False, then_train: bool = False) -> dict[str, Any]:
    """Search the space of `config.tune` over prepared volumes and write the search's directory; return its summary.

    `then_train` trains the best configuration on all folds into `out/train` and adds its out-of-fold score, which
    nothing was picked by, to the summary. Raises RequestError for a request that cannot work, before anything starts,
    and AneurysmRayError when no trial ran to its end.
    """
    from aneurysm_ray.reporting import pages

    overrides.refuse_contradiction(config, volumes, rundir.read_volume_settings(volumes))
    volumes, out = volumes.resolve(), out.resolve()
    check(config)
    table = train.labelled(store.volumes_table(volumes), volumes)
    facts = {"volumes": str(volumes), "volumes_digest": provenance.file_digest(volumes / rundir.VOLUMES)}
    open_directory(out, config, provenance.describe("tune", **facts), resume=resume)
    rundir.write_csv(out / rundir.FOLDS, fold_tables.assign(table, config.folds))
    with rundir.keep_log(out), session.connect(dashboard=config.resources.workers > 1):
        fit = functools.partial(train.fit_fold, volumes=volumes, folds=out / rundir.FOLDS)
        summary = run_search(out, config, fit, resume=resume)
        if then_train and not summary["interrupted"] and summary["best"]:
            summary["train"] = _train_best(volumes, out, resume=resume)
            rundir.write_json(out / rundir.SUMMARY, summary)
    pages.write_report(out)
    if not summary["interrupted"] and not summary["complete"]:
        errors = rundir.read_csv(out / rundir.TRIALS)["error"].dropna()
        reason = f"; the first failed with: {errors.iloc[0]}" if len(errors) else ""
        raise AneurysmRayError(f"no trial of {out} ran to its end{reason}")
    return summary


def check(config: Config) -> tuple[space.Parameter, ...]:
    """Check all that can be checked before Ray starts; return the space. Raises ConfigError."""
    settings = config.tune
    for name in search.metrics(settings):
        if name not in METRICS:
            raise ConfigError(f"tune.metric: no metric {name!r}{did_you_mean(name, METRICS)}")
    search.modes(settings)
    if not settings.folds or len(set(settings.folds)) < len(settings.folds):
        raise ConfigError(f"tune.folds = {list(settings.folds)} must name at least one fold, and each once")
    if outside := [fold for fold in settings.folds if not 0 <= fold < config.folds.count]:
        raise ConfigError(f"tune.folds: there is no fold {outside[0]}; folds.count is {config.folds.count}")
    parameters = space.parse(config)
    search.check_points(config, parameters)
    return parameters


def open_directory(out: Path, config: Config, facts: dict[str, Any], *, resume: bool) -> None:
    """Make a search's directory, or reopen it; a resumed search may ask for more trials than it was begun with."""
    if resume and (out / rundir.CONFIG).exists():
        there = rundir.read_config(out)
        freed = {"tune.trials": config.tune.trials, "tune.concurrent": config.tune.concurrent}
        if overrides.build(freed, base=there) == config != there:
            rundir.write_text(out / rundir.CONFIG, overrides.to_toml(config))
    rundir.create(out, config, facts, resume=resume)


def run_search(out: Path, config: Config, fit: trial.Fit, *, resume: bool = False) -> dict[str, Any]:
    """Run the trials that a search has left, on the Ray that is connected, and write its files.

    `fit` trains one fold of one trial. Ctrl-C ends the search with what there is: `interrupted` is true in the summary.
    """
    out, parameters = out.resolve(), check(config)
    need = room.per_worker(config.resources, session.resources())
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    at_once = room.runs_at_once(config.resources, need, nodes, session.growth(), config.tune.concurrent)
    gpus = need.get("GPU", 0.0) * config.resources.workers
    with _only_driver(out):
        study = search.open_study(config.tune, out / rundir.JOURNAL, out.name, resume=resume)
        search.enqueue(study, config, parameters)
        left = config.tune.trials - sum(t.state in search.DONE for t in study.get_trials(deepcopy=False))
        log.info(
            "* %d of %d trials to run, %d at a time, each with %d worker(s) of %s",
            *(max(left, 0), config.tune.trials, at_once, config.resources.workers),
            " and ".join(f"{amount:g} {name}s" for name, amount in need.items()),
        )
        trials.write(study, config, parameters, out, gpus)
        if left > 0:
            launch.launch(study, config, parameters, out, fit, need=need, at_once=at_once)
        table = trials.write(study, config, parameters, out, gpus)
        best = trials.write_best(table, config, out)
        summary = trials.summary(study, table, config, best)
        rundir.write_json(out / rundir.SUMMARY, summary)
    shutil.rmtree(out / "ray", ignore_errors=True)
    return summary


def _train_best(volumes: Path, out: Path, *, resume: bool) -> dict[str, Any]:
    best = overrides.build(overrides.read_toml(out / rundir.BEST))
    folder = out / "train"
    return train.train(volumes, folder, best, folds="all", resume=resume and folder.exists())


@contextlib.contextmanager
def _only_driver(out: Path) -> Iterator[None]:
    """Hold the directory's lock, so that a search cannot be resumed while it still runs.

    The kernel drops the lock with the process, however it ends. Raises RequestError when another process holds it.
    """
    with open(out / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RequestError(f"{out} belongs to a search that is still running; wait for it or stop it") from error
        yield
