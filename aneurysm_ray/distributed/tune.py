"""Search hyperparameters with Ray Tune and Optuna: what is tried is the study's, what runs where and when is Tune's."""

import functools
import logging
from pathlib import Path
from typing import Any

from aneurysm_ray import location, overrides, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.distributed import (
    begin,
    driver,
    launch,
    preflight,
    progress,
    record,
    room,
    search_tables,
    session,
    space,
    train,
    trial_process,
)
from aneurysm_ray.errors import AneurysmRayError, ConfigError, did_you_mean
from aneurysm_ray.labels import LABELS
from aneurysm_ray.reporting import tracking
from aneurysm_ray.search_config import TuneConfig

log = logging.getLogger(__name__)

FREED = ("tune.trials", "tune.concurrent")
"""Settings that a resumed search may have anew: it can be made longer, or narrower."""

TPE_TURNS = 4
"""Least number of times that TPE sees the results of trials before it proposes the last ones: what runs at the same
time is proposed without knowing of each other."""

METRICS = (
    *("val/score", "val/auc_present", "val/loss", "train/loss", *(f"val/auc/{label}" for label in LABELS)),
    *("seconds", "patches_per_s", "data_wait_fraction", "lr", "parameters", record.SECONDS),
)
"""What a trial reports and a search can optimise."""


def tune(
    volumes: Path,
    out: Path,
    config: Config,
    *,
    resume: bool = False,
    retry_failed: bool = False,
    then_train: bool = False,
) -> dict[str, Any]:
    """Search the space of `config.tune` over prepared volumes and write the search's directory; return its summary.

    `retry_failed` runs the samples of a resumed search's failed trials again, each as a trial of its own.

    `then_train` trains the best configuration on all folds into `out/train_<trial>` and adds its out-of-fold score to
    the summary, also without the folds that chose it. Raises RequestError for a request that cannot work, before
    anything starts, and AneurysmRayError when no trial ran to its end.
    """
    from aneurysm_ray.reporting import pages

    location.check_reachable(volumes)
    config = preflight.settled(config)
    overrides.refuse_contradiction(config, volumes, rundir.read_volume_settings(volumes))
    parameters = check(config)
    table = begin.labelled(volumes)  # what is wrong with it names it as it was typed
    volumes, out = location.absolute(volumes), location.absolute(out)
    dealt = begin.deal(volumes, table, config)
    preflight.check_labels(table, dealt, config.tune.folds)
    if left_out := preflight.unjudged(table, dealt, config.tune.folds):
        log.info("* trials are judged without %s: only one class occurs among their patients", ", ".join(left_out))
    preflight.check_metrics(config, table, dealt)
    preflight.check_network(config, dealt, config.tune.folds)
    preflight.check_samples(config, dealt, space.probes(parameters))
    record.check_storage(config.tune)
    with driver.alone(out):
        run = begin.Run("tune", volumes, dealt, out, config, FREED)
        run.check(resume=resume)
        with tracking.followed(out, config, "tune"), session.connect(dashboard=config.resources.workers > 1):
            run.open()
            with rundir.keep_log(out):
                fit = functools.partial(train.fit_fold, volumes=volumes, folds=out / rundir.FOLDS)
                summary = run_search(out, config, fit, retry_failed=retry_failed)
                if then_train and not summary["interrupted"] and summary["best"]:
                    pages.write_report(out)  # the search is to be read whatever becomes of what follows
                    summary["train"] = _train_best(volumes, out, summary["best"]["trial"])
                    rundir.write_json(out / rundir.SUMMARY, summary)
        with progress.told("writing the page"):
            pages.write_report(out)
    if not summary["interrupted"] and not summary["complete"]:
        errors = rundir.read_csv(out / rundir.TRIALS)["error"].dropna()
        reason = f"; the first failed with: {errors.iloc[0]}" if len(errors) else ""
        raise AneurysmRayError(f"no trial of {out} ran to its end{reason}")
    return summary


def check(config: Config) -> tuple[space.Parameter, ...]:
    """Check all that can be checked before Ray starts; return the space. Raises ConfigError."""
    settings = config.tune
    for name in record.metrics(settings):
        if name not in METRICS:
            raise ConfigError(f"tune.metric: no metric {name!r}{did_you_mean(name, METRICS)}")
    record.modes(settings)
    if not settings.folds or len(set(settings.folds)) < len(settings.folds):
        raise ConfigError(f"tune.folds = {list(settings.folds)} must name at least one fold, and each once")
    if outside := [fold for fold in settings.folds if not 0 <= fold < config.folds.count]:
        raise ConfigError(f"tune.folds: there is no fold {outside[0]}; folds.count is {config.folds.count}")
    parameters = space.parse(config)
    record.check_points(config, parameters)
    return parameters


def run_search(out: Path, config: Config, fit: trial_process.Fit, *, retry_failed: bool = False) -> dict[str, Any]:
    """Run the trials that a search has left, on the Ray that is connected, and write its files.

    `fit` trains one fold of one trial. Ctrl-C ends the search with what there is: `interrupted` is true in the summary.
    """
    out, parameters = location.absolute(out), check(config)
    cluster = session.cluster()
    asked = config.tune.concurrent or _enough(config.tune)
    need = room.per_worker(config.resources, cluster, asked)
    at_once = room.runs_at_once(config.resources, need, cluster, asked)
    gpus = need.get("GPU", 0.0) * config.resources.workers
    study = record.open_study(config.tune, out)
    record.enqueue(study, config, parameters)
    if retry_failed and (retried := record.retry_failed(study)):
        log.info("* %d failed trial(s) to be tried again", retried)
    left = config.tune.trials - record.counted(study, ended=True)
    log.info(
        "* %d of %d trials to run, %d at a time, each with %d worker(s) of %s",
        *(max(left, 0), config.tune.trials, at_once, config.resources.workers),
        room.said(need),
    )
    if not config.tune.concurrent and left > at_once == asked:
        log.info("  (so few that each learns from those before it; tune.concurrent=%d asks for all)", left)
    search_tables.write(study, config, parameters, out, gpus)
    if left > 0:
        location.remove(out / rundir.SUMMARY)  # what has one has ended
        launch.launch(study, config, parameters, out, fit, need=need, at_once=at_once)
    table = search_tables.write(study, config, parameters, out, gpus)
    best = search_tables.write_best(table, config, out)
    summary = search_tables.summary(study, table, config, best)
    rundir.write_json(out / rundir.SUMMARY, summary)
    return summary


def _enough(config: TuneConfig) -> int:
    """Return how many trials at a time a search asks for by itself: so few that TPE learns from those before."""
    return config.trials if config.sampler == "random" else -(-config.trials // TPE_TURNS)


def _train_best(volumes: Path, out: Path, number: int) -> dict[str, Any]:
    best = overrides.build(overrides.read_toml(out / rundir.BEST))
    folder = rundir.trained_dir(out, number)
    return train.train(volumes, folder, best, folds="all", resume=folder.exists())
