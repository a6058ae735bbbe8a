"""Cross-validation with Ray Train: one `TorchTrainer` per fold, folds side by side where the cluster has room.

The workers write straight into the run directory, which every node must see under one path. A fold's state is its
`checkpoint_last`: a worker that comes back after a loss and a run that is resumed by hand both start from it, so there
is one way to go on. Ray's own retries decide when; nothing is kept in Ray's snapshots.
"""

import concurrent.futures
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import ray
import ray.train
import ray.train.torch

from aneurysm_ray import provenance, rundir
from aneurysm_ray.config import Config, ResourcesConfig
from aneurysm_ray.data import folds as fold_tables
from aneurysm_ray.data import store
from aneurysm_ray.distributed import session
from aneurysm_ray.errors import AneurysmRayError, RequestError
from aneurysm_ray.labels import LABELS

log = logging.getLogger(__name__)

FOLD_SUMMARY = rundir.SUMMARY
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Plan:
    """What one fold takes from the cluster, and how many folds fit side by side."""

    gpus_per_worker: float
    side_by_side: int


def plan(resources: ResourcesConfig, cluster: dict[str, float], folds: int) -> Plan:
    """Decide GPUs per worker and folds at a time from a cluster's total resources.

    Raises RequestError when not even one fold fits, since Ray would wait for ever.
    """
    gpus, cpus = cluster.get("GPU", 0.0), cluster.get("CPU", 0.0)
    per_worker = resources.gpus_per_worker
    if per_worker < 0:
        per_worker = 1.0 if gpus >= 1 else 0.0
    least = resources.min_workers or resources.workers
    if per_worker and least * per_worker > gpus:
        raise RequestError(
            f"{least} workers with {per_worker:g} GPUs each need {least * per_worker:g} GPUs; "
            f"the cluster has {gpus:g}. Use fewer resources.workers or a smaller resources.gpus_per_worker"
        )
    if least * resources.cpus_per_worker > cpus:
        raise RequestError(
            f"{least} workers with {resources.cpus_per_worker:g} CPUs each need "
            f"{least * resources.cpus_per_worker:g} CPUs; the cluster has {cpus:g}. "
            "Use fewer resources.workers or a smaller resources.cpus_per_worker"
        )
    room = math.floor(cpus / (resources.workers * resources.cpus_per_worker))
    if per_worker:
        room = min(room, math.floor(gpus / (resources.workers * per_worker)))
    return Plan(per_worker, max(1, min(room, folds)))


def parse_folds(text: str, count: int) -> list[int]:
    """Read `all`, `0` or `0,2`. Raises RequestError for a fold outside 0..count-1."""
    if text.strip() == "all":
        return list(range(count))
    try:
        chosen = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise RequestError(f"--fold {text!r} is not a fold, a list such as 0,1 or the word all") from None
    if outside := [fold for fold in chosen if not 0 <= fold < count]:
        raise RequestError(f"there is no fold {outside[0]}: folds.count={count} makes folds 0 to {count - 1}")
    return chosen


def train(volumes: Path, out: Path, config: Config, *, folds: str = "0", resume: bool = False) -> dict[str, Any]:
    """Train and validate the chosen folds and write the run directory; return its summary.

    Raises RequestError for a set without labels, a run directory that is taken, or resources that do not fit;
    AneurysmRayError when a fold fails more often than `resources.max_failures`.
    """
    volumes, out = volumes.resolve(), out.resolve()
    table = labelled(store.volumes_table(volumes), volumes)
    chosen = parse_folds(folds, config.folds.count)
    started = time.monotonic()
    if config.init:
        log.info("* %s: %s", config.init, _transfer(config))
    facts = {"volumes": str(volumes), "volumes_digest": provenance.file_digest(volumes / rundir.VOLUMES)}
    rundir.create(out, config, provenance.describe("train", **facts), resume=resume)
    assignment = fold_tables.assign(table, config.folds)
    rundir.write_csv(out / rundir.FOLDS, assignment)
    with rundir.keep_log(out), session.connect():
        layout = plan(config.resources, session.resources(), len(chosen))
        unfinished = [fold for fold in chosen if not (rundir.fold_dir(out, fold) / FOLD_SUMMARY).exists()]
        log.info(
            "* fold %s: %s, %d training / %d validation volumes, %d worker(s) with %g CPUs and %g GPUs",
            folds,
            config.model.name,
            (assignment["fold"] != chosen[0]).sum(),
            (assignment["fold"] == chosen[0]).sum(),
            config.resources.workers,
            config.resources.cpus_per_worker,
            layout.gpus_per_worker,
        )
        _run_folds(unfinished, layout, config, volumes, out)
    return _finish(out, chosen, config, time.monotonic() - started)


def labelled(table: pd.DataFrame, volumes: Path) -> pd.DataFrame:
    """Return the rows of a prepared set's table that can be learned from. Raises RequestError when there are none."""
    kept = table[table[LABELS[-1]].notna()]
    if kept.empty:
        raise RequestError(
            f"{volumes}: no volume has labels to train on; prepare a data set that has a train.csv beside its series"
        )
    if len(kept) < len(table):
        log.info("* %d of %d volumes have no labels and are left out", len(table) - len(kept), len(table))
    return kept.reset_index(drop=True)


def _transfer(config: Config) -> str:
    """Say what the file of `init` gives the network. Raises RunDirError when it cannot be used."""
    from aneurysm_ray.learning import checkpoint, models

    return str(checkpoint.transfer(models.build(config.model), checkpoint.read_weights(Path(config.init))))


def _run_folds(folds: list[int], layout: Plan, config: Config, volumes: Path, out: Path) -> None:
    """Run folds in threads that each wait for one Ray Train controller; log every epoch as it lands."""
    pool = concurrent.futures.ThreadPoolExecutor(layout.side_by_side)
    shown: dict[int, int] = {}
    try:
        running = {pool.submit(_run_fold, fold, layout, config, volumes, out): fold for fold in folds}
        while running:
            done, _ = concurrent.futures.wait(
                running, timeout=_POLL_SECONDS, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for fold in list(running.values()):
                _log_epochs(out, fold, config.optim.epochs, shown)
            for future in done:
                fold = running.pop(future)
                if error := future.exception():
                    raise AneurysmRayError(
                        f"fold {fold} failed: {_first_line(error)}; mend the cause and add --resume to go on"
                    ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _first_line(error: BaseException) -> str:
    """Return the last line of an error's text, where Ray puts the worker's own message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _log_epochs(out: Path, fold: int, epochs: int, shown: dict[int, int]) -> None:
    path = rundir.fold_dir(out, fold) / rundir.METRICS
    if not path.exists():
        return
    table = rundir.read_csv(path)
    best = table["val/score"].max() if len(table) else math.nan
    for _, row in table.iloc[shown.get(fold, 0) :].iterrows():
        left = row["seconds"] * (epochs - 1 - row["epoch"])
        log.info(
            "fold %d  epoch %3d/%d  loss %.3f/%.3f  score %.3f (best %.3f)  %.0f patches/s  lr %.1e  eta %d:%02d",
            *(fold, row["epoch"] + 1, epochs, row["train/loss"], row["val/loss"], row["val/score"], best),
            *(row["patches_per_s"], row["lr"], left // 60, left % 60),
        )
    shown[fold] = len(table)


def _run_fold(fold: int, layout: Plan, config: Config, volumes: Path, out: Path) -> None:
    """Train one fold; returns when its summary is written. Raises Ray's TrainingFailedError."""
    resources = config.resources
    trainer = ray.train.torch.TorchTrainer(
        _worker,
        train_loop_config={
            "fold": fold,
            "config": config.model_dump(mode="json"),
            "volumes": str(volumes),
            "out": str(out),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=(resources.min_workers, resources.workers) if resources.min_workers else resources.workers,
            use_gpu=layout.gpus_per_worker > 0,
            resources_per_worker={
                "CPU": resources.cpus_per_worker,
                **({"GPU": layout.gpus_per_worker} if layout.gpus_per_worker else {}),
            },
        ),
        run_config=ray.train.RunConfig(
            name=f"fold_{fold}",
            storage_path=str(out / "ray"),
            failure_config=ray.train.FailureConfig(
                max_failures=resources.max_failures, controller_failure_limit=resources.max_failures
            ),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    trainer.fit()


def _worker(settings: dict[str, Any]) -> None:
    """Run one rank of one fold; torch is imported here, as Ray's controller loads this file too."""
    import torch

    from aneurysm_ray.learning import checkpoint, engine

    config = Config.model_validate(settings["config"])
    fold, volumes, out = settings["fold"], Path(settings["volumes"]), Path(settings["out"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(max(1, int(config.resources.cpus_per_worker)))
    table = store.volumes_table(volumes)
    assignment = rundir.read_csv(out / rundir.FOLDS).set_index("series_uid")["fold"]
    table = table[table["series_uid"].isin(assignment.index)].reset_index(drop=True)
    held_out = table["series_uid"].map(assignment) == fold
    folder = rundir.fold_dir(out, fold)
    last = folder / rundir.CHECKPOINT_LAST
    results = engine.fit(
        config,
        volumes,
        table[~held_out].reset_index(drop=True),
        table[held_out].reset_index(drop=True),
        fold=fold,
        rank=rank,
        world_size=world,
        device=str(ray.train.torch.get_device()),
        wrap=ray.train.torch.prepare_model if world > 1 else lambda model: model,
        resume=checkpoint.load(last) if (last / checkpoint.STATE).exists() else None,
        init=checkpoint.read_weights(Path(config.init)) if config.init else None,
    )
    for result in results:
        if rank == 0:
            _write_epoch(folder, result)
        ray.train.report(result.metrics)
    if rank == 0:
        _write_fold_summary(folder, fold)


def _write_epoch(folder: Path, result: Any) -> None:
    """Write an epoch's tables, then its checkpoint: a crash in between repeats the epoch and writes the same again."""
    from aneurysm_ray.learning import checkpoint, ensemble

    history = pd.DataFrame(result.state["history"])
    rundir.write_csv(folder / rundir.METRICS, history)
    rundir.write_csv(folder / rundir.PREDICTIONS, result.predictions)
    rundir.write_csv(folder / rundir.CANDIDATES, result.candidates)
    for uid, heatmap in result.heatmaps.items():
        ensemble.write_heatmap(folder / rundir.HEATMAPS / f"{uid}.npz", heatmap)
    if history["val/score"].iloc[-1] >= history["val/score"].max():
        checkpoint.save(folder / rundir.CHECKPOINT_BEST, result.state)
    checkpoint.save(folder / rundir.CHECKPOINT_LAST, result.state)


def _write_fold_summary(folder: Path, fold: int) -> None:
    """Write the file that means the fold is complete; its numbers are the last epoch's, which nothing was picked by."""
    history = rundir.read_csv(folder / rundir.METRICS)
    last = history.iloc[-1]
    rundir.write_json(
        folder / FOLD_SUMMARY,
        {
            "fold": fold,
            "score": _number(last["val/score"]),
            "auc_present": _number(last["val/auc_present"]),
            "best_epoch": int(history["val/score"].fillna(-1).idxmax()),
            "epochs": len(history),
            "seconds": float(history["seconds"].sum()),
            "data_wait_fraction": _number(history["data_wait_fraction"].mean()),
        },
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _finish(out: Path, folds: list[int], config: Config, seconds: float) -> dict[str, Any]:
    """Join the folds' out-of-fold tables, compute the score with its interval, and write the summary and the page."""
    from aneurysm_ray.learning import metrics
    from aneurysm_ray.reporting import pages

    complete = [fold for fold in range(config.folds.count) if (rundir.fold_dir(out, fold) / FOLD_SUMMARY).exists()]
    for name in (rundir.PREDICTIONS, rundir.CANDIDATES):
        tables = [rundir.read_csv(rundir.fold_dir(out, fold) / name) for fold in complete]
        rundir.write_csv(out / name, pd.concat([table for table in tables if len(table)] or tables, ignore_index=True))
    summary = {
        "kind": "train",
        **metrics.summarise(rundir.read_csv(out / rundir.PREDICTIONS)),
        "folds": [rundir.read_json(rundir.fold_dir(out, fold) / FOLD_SUMMARY) for fold in complete],
        "seconds": seconds,
    }
    rundir.write_json(out / rundir.SUMMARY, summary)
    pages.write_report(out)
    return summary
