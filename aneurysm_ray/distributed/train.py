"""Cross-validation with Ray Train: one `TorchTrainer` per fold, folds side by side where the cluster has room.

The workers write straight into the run directory, which every node must see under one path. A fold's state is its
`checkpoint_last`: a worker that comes back after a loss and a run that is resumed by hand both start from it, so there
is one way to go on. Ray's own retries decide when; nothing is kept in Ray's snapshots.
"""

import concurrent.futures
import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import ray
import ray.train
import ray.train.torch

from aneurysm_ray import overrides, provenance, rundir
from aneurysm_ray.config import Config, ResourcesConfig
from aneurysm_ray.data import doubts, store
from aneurysm_ray.data import folds as fold_tables
from aneurysm_ray.distributed import room, session
from aneurysm_ray.errors import AneurysmRayError, RequestError
from aneurysm_ray.labels import LABELS

if TYPE_CHECKING:
    from aneurysm_ray.learning.engine import EpochResult

log = logging.getLogger(__name__)

FOLD_SUMMARY = rundir.SUMMARY
_POLL_SECONDS = 0.5


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

    Raises RequestError for a set without labels or with other volume settings, a run directory that is taken, or
    resources that do not fit; AneurysmRayError when a fold fails more often than `resources.max_failures`.
    """
    overrides.refuse_contradiction(config, volumes, rundir.read_volume_settings(volumes))
    table = labelled(store.volumes_table(volumes), volumes)
    volumes, out = volumes.resolve(), out.resolve()
    chosen = parse_folds(folds, config.folds.count)
    started = time.monotonic()
    if config.init:
        log.info("* %s: %s", config.init, _transfer(config))
    facts = {"volumes": str(volumes), "volumes_digest": provenance.file_digest(volumes / rundir.VOLUMES)}
    rundir.create(out, config, provenance.describe("train", **facts), resume=resume)
    assignment = fold_tables.assign(table, config.folds)
    rundir.write_csv(out / rundir.FOLDS, assignment)
    with rundir.keep_log(out), session.connect():
        need = room.per_worker(config.resources, session.resources())
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        side_by_side = room.runs_at_once(config.resources, need, nodes, session.growth(), asked=len(chosen))
        unfinished = [fold for fold in chosen if not (rundir.fold_dir(out, fold) / FOLD_SUMMARY).exists()]
        log.info(
            "* fold %s: %s, %d training / %d validation volumes, %d worker(s) of %s, %d fold(s) at a time",
            *(folds, config.model.name, (assignment["fold"] != chosen[0]).sum()),
            *((assignment["fold"] == chosen[0]).sum(), config.resources.workers),
            *(" and ".join(f"{amount:g} {name}s" for name, amount in need.items()), side_by_side),
        )
        _run_folds(unfinished, side_by_side, need, config, volumes, out)
    return _finish(out, config, time.monotonic() - started)


def labelled(table: pd.DataFrame, volumes: Path) -> pd.DataFrame:
    """Return the rows of a prepared set's table that can be learned from. Raises RequestError when there are none."""
    kept = table[table[LABELS[-1]].notna()]
    if kept.empty:
        raise RequestError(
            f"{volumes}: no volume has labels to train on; prepare a data set that has a train.csv beside its series"
        )
    if len(kept) < len(table):
        log.info("* %d of %d volumes have no labels and are left out", len(table) - len(kept), len(table))
    if unseen := int(unseen_positives(kept).sum()):
        log.info(
            "* %d of %d positive volumes have every point outside: no patch shows their aneurysm, and the score counts "
            "them as misses; a larger volume.extent_mm may hold it",
            *(unseen, int((kept[LABELS[-1]] > 0.5).sum())),
        )
    return kept.reset_index(drop=True)


def unseen_positives(table: pd.DataFrame) -> "pd.Series[bool]":
    """Say of each row of a prepared set's table whether its series is positive by points that are all outside."""
    return pd.Series(
        [
            bool(row[LABELS[-1]] > 0.5 and len(row["points"]))
            and not any(doubts.is_inside([p[axis] for axis in "zyx"], row["shape"]) for p in row["points"])
            for row in table.to_dict("records")
        ],
        index=table.index,
        dtype=bool,
    )


def _transfer(config: Config) -> str:
    """Say what the file of `init` gives the network. Raises RunDirError when it cannot be used."""
    from aneurysm_ray.learning import checkpoint, models

    return str(checkpoint.transfer(models.build(config.model), checkpoint.read_weights(Path(config.init))))


def _run_folds(
    folds: list[int], side_by_side: int, need: Mapping[str, float], config: Config, volumes: Path, out: Path
) -> None:
    """Run folds in threads that each wait for one Ray Train controller; log every epoch as it lands."""
    pool = concurrent.futures.ThreadPoolExecutor(side_by_side)
    shown: dict[int, int] = {}
    try:
        running = {pool.submit(_run_fold, fold, need, config, volumes, out): fold for fold in folds}
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


def scaling(resources: ResourcesConfig, need: Mapping[str, float]) -> ray.train.ScalingConfig:
    """Say to Ray Train how many workers to hold and what each needs."""
    return ray.train.ScalingConfig(
        num_workers=(resources.min_workers, resources.workers) if resources.min_workers else resources.workers,
        use_gpu="GPU" in need,
        resources_per_worker=dict(need),
    )


def _run_fold(fold: int, need: Mapping[str, float], config: Config, volumes: Path, out: Path) -> None:
    """Train one fold; returns when its summary is written. Raises Ray's TrainingFailedError."""
    failures = config.resources.max_failures
    settings = {
        "fold": fold,
        "config": config.model_dump(mode="json"),
        "volumes": str(volumes),
        "out": str(out),
    }
    ray.train.torch.TorchTrainer(
        _worker,
        train_loop_config=settings,
        scaling_config=scaling(config.resources, need),
        run_config=ray.train.RunConfig(
            name=f"fold_{fold}",
            storage_path=str(out / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=failures, controller_failure_limit=failures),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    ).fit()


def _worker(settings: dict[str, Any]) -> None:
    """Run one rank of one fold, from where its last checkpoint stands to its end."""
    from aneurysm_ray.learning import checkpoint

    config = Config.model_validate(settings["config"])
    fold, volumes, out = settings["fold"], Path(settings["volumes"]), Path(settings["out"])
    folder = rundir.fold_dir(out, fold)
    last = folder / rundir.CHECKPOINT_LAST
    first = ray.train.get_context().get_world_rank() == 0
    resume = checkpoint.load(last) if (last / checkpoint.STATE).exists() else None
    for result in fit_fold(config, fold, resume, volumes=volumes, folds=out / rundir.FOLDS):
        if first:
            _write_epoch(folder, result)
            if config.tensorboard:
                _write_events(folder / rundir.TENSORBOARD, result.metrics)
        ray.train.report(result.metrics)
    if first:
        _write_fold_summary(folder, fold)


def fit_fold(
    config: Config, fold: int, resume: dict[str, Any] | None, *, volumes: Path, folds: Path
) -> Iterator["EpochResult"]:
    """Train one fold of prepared volumes in this process: alone, or as one rank of a Ray Train group.

    `folds` is the table of series and folds; `resume` the state of an earlier epoch. torch is imported here, since
    Ray's controller loads this file too and should stay small.
    """
    import ray.train.torch
    import torch

    from aneurysm_ray.learning import checkpoint, engine

    torch.set_num_threads(max(1, int(config.resources.cpus_per_worker)))
    table = store.volumes_table(volumes)
    assignment = rundir.read_csv(folds).set_index("series_uid")["fold"]
    table = table[table["series_uid"].isin(assignment.index)].reset_index(drop=True)
    held_out = table["series_uid"].map(assignment) == fold
    rank, world, device = 0, 1, "cuda" if torch.cuda.is_available() else "cpu"
    if config.resources.workers > 1:
        context = ray.train.get_context()
        rank, world, device = context.get_world_rank(), context.get_world_size(), str(ray.train.torch.get_device())
    return engine.fit(
        config,
        volumes,
        table[~held_out].reset_index(drop=True),
        table[held_out].reset_index(drop=True),
        fold=fold,
        rank=rank,
        world_size=world,
        device=device,
        # An elastic group may be down to one worker, which has nobody to be parallel with.
        wrap=ray.train.torch.prepare_model if world > 1 else lambda network: network,
        resume=resume,
        init=checkpoint.read_weights(Path(config.init)) if config.init else None,
    )


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


def _write_events(folder: Path, metrics: Mapping[str, float]) -> None:
    """Write an epoch's metrics for TensorBoard; one that is repeated after a loss replaces what it wrote before."""
    from tensorboardX import SummaryWriter  # a part of ray[tune]

    epoch = int(metrics["epoch"])
    with SummaryWriter(str(folder), purge_step=epoch, filename_suffix=f".epoch{epoch:04d}") as writer:
        for name, value in metrics.items():
            if name != "epoch" and not math.isnan(value):
                writer.add_scalar(name.replace(" ", "_"), value, epoch)


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
            "best_epoch": int(history["val/score"].fillna(-1).to_numpy().argmax()),
            "epochs": len(history),
            "seconds": float(history["seconds"].sum()),
            "data_wait_fraction": _number(history["data_wait_fraction"].mean()),
        },
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _finish(out: Path, config: Config, seconds: float) -> dict[str, Any]:
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
