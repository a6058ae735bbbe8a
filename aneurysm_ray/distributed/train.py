"""Cross-validation with Ray Train: one `TorchTrainer` per fold, folds side by side where the cluster has room.

The workers write straight into the run directory, which every node must see under one path. A fold's state is its
`checkpoint_last`: a worker that comes back after a loss and a run that is resumed by hand both start from it, so there
is one way to go on. Ray's own retries decide when; nothing is kept in Ray's snapshots.
"""

import concurrent.futures
import contextlib
import functools
import logging
import math
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import ray
import ray.train
import ray.train.torch
import torch

from aneurysm_ray import location, overrides, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.data import store
from aneurysm_ray.distributed import (
    begin,
    driver,
    failures,
    first_weights,
    news,
    outside,
    preflight,
    progress,
    room,
    session,
    survival,
)
from aneurysm_ray.distributed.fold_lines import FoldLines
from aneurysm_ray.errors import AneurysmRayError, OutputError, RequestError
from aneurysm_ray.reporting import tracking

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


def train(
    volumes: Path,
    out: Path,
    config: Config,
    *,
    folds: str = "0",
    resume: bool = False,
    tests: Sequence[Path] = (),
) -> dict[str, Any]:
    """Train and validate the chosen folds and write the run directory; return its summary.

    `tests` are prepared sets that the folds' ensemble scores once, at the end. Raises RequestError for a set without
    labels or with other volume settings, a test that is not one, a run directory that is taken, or resources that do
    not fit; AneurysmRayError when a fold fails more often than `resources.max_failures`.
    """
    location.check_reachable(volumes)
    config = preflight.settled(config)
    overrides.refuse_contradiction(config, volumes, rundir.read_volume_settings(volumes))
    chosen = parse_folds(folds, config.folds.count)
    table = begin.labelled(volumes)  # what is wrong with it names it as it was typed
    volumes, out = location.absolute(volumes), location.absolute(out)
    dealt = begin.deal(volumes, table, config)
    preflight.check_labels(table, dealt, chosen)
    preflight.check_network(config, dealt, chosen)
    preflight.check_masks(table, config)
    tests = outside.check(tests, volumes, table, config.stage)
    started = time.monotonic()
    with driver.alone(out), tracking.followed(out, config, "train"):
        run = begin.Run("train", volumes, dealt, out, config)
        run.check(resume=resume)
        outside.check_done(out, tests, chosen)
        unfinished = [fold for fold in chosen if not (rundir.fold_dir(out, fold) / FOLD_SUMMARY).exists()]
        preflight.check_states(out, unfinished)
        with session.connect():
            cluster = session.cluster()
            need = room.per_worker(config.resources, cluster, max(len(unfinished), 1))
            side_by_side = room.runs_at_once(config.resources, need, cluster, max(len(unfinished), 1))
            run.open()
            with rundir.keep_log(out):
                log.info(
                    "* fold %s: %s, %d training / %d validation volumes, %d worker(s) of %s, %d fold(s) at a time",
                    *(folds, config.model.name, (dealt["fold"] != chosen[0]).sum()),
                    *((dealt["fold"] == chosen[0]).sum(), config.resources.workers, room.said(need), side_by_side),
                )
                if unfinished or tests:
                    location.remove(out / rundir.SUMMARY)  # what has one is complete
                failed = _run_folds(unfinished, side_by_side, need, config, volumes, out)
        with rundir.keep_log(out):
            if failed:
                _say_failed(failed, chosen, out)
            for test in tests:
                outside.score(out, test)
            return _finish(out, config, time.monotonic() - started)


def _say_failed(failed: Mapping[int, str], chosen: list[int], out: Path) -> None:
    """Write the page of what there is and raise AneurysmRayError for the folds that failed."""
    from aneurysm_ray.reporting import pages

    try:
        with progress.told("writing the page"):
            pages.write_report(out)
    except OutputError as error:  # the disk may be what failed
        log.info("* %s", error)
    complete = [str(fold) for fold in chosen if fold not in failed]
    told = "; ".join(f"fold {fold} failed: {why}" for fold, why in sorted(failed.items()))
    rest = f". Fold {', '.join(complete)} is complete" if len(complete) == 1 else ""
    rest = f". Folds {', '.join(complete)} are complete" if len(complete) > 1 else rest
    raise AneurysmRayError(f"{told}{rest}. Mend the cause and add --resume to go on")


def _run_folds(
    folds: list[int], side_by_side: int, need: Mapping[str, float], config: Config, volumes: Path, out: Path
) -> dict[int, str]:
    """Run folds in threads that each wait for one Ray Train controller; return why each that failed did.

    A fold that fails leaves the others alone.
    """
    failed: dict[int, str] = {}
    if not folds:
        return failed
    lines = FoldLines(
        folds,
        config.optim,
        lambda runs: room.waits_for(need, session.free(), session.roomless(need), runs),
    )
    with (
        news.Box() as box,
        session.environment(survival.patience(config.resources)),
        progress.told(lines.status),
        tempfile.TemporaryDirectory(prefix="aneurysm-ray-") as scratch,
    ):
        what = (need, config, volumes, out, box.handle, scratch)
        waiting = deque(folds)
        running: dict[concurrent.futures.Future[None], int] = {}
        while waiting or running:
            while waiting and len(running) < side_by_side:
                fold = waiting.popleft()
                running[_in_thread(_run_fold, fold, *what)] = fold
            done, _ = concurrent.futures.wait(
                running, timeout=_POLL_SECONDS, return_when=concurrent.futures.FIRST_COMPLETED
            )
            lines.running = {fold for future, fold in running.items() if future not in done}
            lines.read(box.take())
            for future in done:
                fold = running.pop(future)
                if error := future.exception():
                    failed[fold] = failures.told(error)
                    log.info("fold %d  failed: %s", fold, failed[fold])
    return failed


def _in_thread(work: Callable[..., None], *words: Any) -> concurrent.futures.Future[None]:
    """Do work in a thread that dies with its process.

    Python waits at its end for the threads of a pool, and one that asks a Ray that is gone may wait for ever: a command
    that was interrupted would never end.
    """
    future: concurrent.futures.Future[None] = concurrent.futures.Future()

    def do() -> None:
        try:
            work(*words)
            future.set_result(None)
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=do, name="fold", daemon=True).start()
    return future


def _run_fold(
    fold: int, need: Mapping[str, float], config: Config, volumes: Path, out: Path, box: Any, scratch: str
) -> None:
    """Train one fold; returns when its summary is written. Raises Ray's TrainingFailedError."""
    about = {"fold": fold}
    settings = {
        "fold": fold,
        "config": config.model_dump(mode="json"),
        "volumes": str(volumes),
        "out": str(out),
        "box": box,
    }

    def make() -> ray.train.torch.TorchTrainer:
        return ray.train.torch.TorchTrainer(
            _worker,
            train_loop_config=settings,
            scaling_config=survival.scaling(config.resources, need),
            torch_config=survival.Connection(),
            run_config=survival.run_config(f"fold_{fold}", scratch, config.resources, [news.Watch(box, about)]),
        )

    survival.run(make, config.resources, lambda why: news.post(box, {**about, "kind": "lost", "why": why}))


def _worker(settings: dict[str, Any]) -> None:
    """Run one rank of one fold, from where its last checkpoint stands to its end."""
    from aneurysm_ray.learning import checkpoint, profiling

    config = Config.model_validate(settings["config"])
    fold, volumes, out = settings["fold"], location.place(settings["volumes"]), location.place(settings["out"])
    folder = rundir.fold_dir(out, fold)
    last = folder / rundir.CHECKPOINT_LAST
    first = ray.train.get_context().get_world_rank() == 0
    resume = checkpoint.load(last) if (last / checkpoint.STATE).exists() else None
    about = {"fold": fold}
    if first:
        news.post(settings["box"], {**about, "kind": "begin", **_whereabouts(resume)})
    tell = news.teller(settings["box"] if first else None, about)
    saver = checkpoint.Saver(last)
    with failures.kept(folder), contextlib.ExitStack() as closing:
        if config.profile and first:
            tell = closing.enter_context(profiling.profiled(folder / rundir.PROFILE, tell))
        for result in fit_fold(config, fold, resume, tell, volumes=volumes, folds=out / rundir.FOLDS):
            if first:
                _write_epoch(folder, result, saver)
                if config.tensorboard:
                    _write_events(folder / rundir.TENSORBOARD, result.metrics)
            ray.train.report(result.metrics)
        if first:
            saver.wait()
            _write_fold_summary(folder, fold)


def _whereabouts(resume: Mapping[str, Any] | None) -> dict[str, Any]:
    """Say where a fold begins, or goes on from an earlier state."""
    from aneurysm_ray.distributed import devices

    place, size = devices.reserved(), ray.train.get_context().get_world_size()
    device = place.device if place.device != "cpu" else f"{place.threads} thread(s)"
    scores = [row["val/score"] for row in resume["history"]] if resume else []
    return {
        "epoch": resume["epoch"] + 1 if resume else 0,
        "best": max((score for score in scores if not math.isnan(score)), default=math.nan),
        "where": f"{size} worker(s), the first with {device} on {socket.gethostname()}",
    }


def fit_fold(
    config: Config,
    fold: int,
    resume: dict[str, Any] | None,
    tell: Callable[[str, int, int], None],
    *,
    volumes: Path,
    folds: Path,
) -> Iterator["EpochResult"]:
    """Train one fold of prepared volumes in a worker of Ray's: alone, or as one rank of a Ray Train group.

    `folds` is the table of series and folds; `resume` the state of an earlier epoch; `tell` is told how far an epoch
    is. What learns is imported here, since Ray's controller and the command load this file too and need none of it.
    """
    from aneurysm_ray.distributed import devices
    from aneurysm_ray.learning import checkpoint, engine

    device = devices.use(devices.reserved())
    table = store.volumes_table(volumes)
    assignment = rundir.read_csv(folds).set_index("series_uid")["fold"]
    table = table[table["series_uid"].isin(assignment.index)].reset_index(drop=True)
    held_out = table["series_uid"].map(assignment) == fold
    rank, world = 0, 1
    if config.resources.workers > 1:
        context = ray.train.get_context()
        rank, world = context.get_world_rank(), context.get_world_size()
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
        wrap=functools.partial(ray.train.torch.prepare_model, move_to_device=torch.device(device))
        if world > 1
        else lambda network: network,
        resume=resume,
        init=checkpoint.read_weights(first_weights.of_fold(config.init, fold)) if config.init else None,
        tell=tell,
    )


def _write_epoch(folder: Path, result: Any, saver: Any) -> None:
    """Write an epoch's tables, then its checkpoint: a crash in between repeats the epoch and writes the same again."""
    from aneurysm_ray.learning import ensemble

    rundir.write_csv(folder / rundir.METRICS, pd.DataFrame(result.state["history"]))
    if len(result.predictions):
        rundir.write_csv(folder / rundir.PREDICTIONS, result.predictions)
        rundir.write_csv(folder / rundir.CANDIDATES, result.candidates)
    for uid, heatmap in result.heatmaps.items():
        ensemble.write_heatmap(folder / rundir.HEATMAPS / f"{uid}.npz", heatmap)
    saver.save(result.state)


def _write_events(folder: Path, metrics: Mapping[str, float]) -> None:
    """Write an epoch's metrics for TensorBoard; one that is repeated after a loss replaces what it wrote before."""
    from tensorboardX import SummaryWriter  # a part of ray[tune]

    epoch = int(metrics["epoch"])
    with (
        location.folder(folder) as here,
        SummaryWriter(str(here), purge_step=epoch, filename_suffix=f".epoch{epoch:04d}") as writer,
    ):
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
    from aneurysm_ray.reporting import pages, words

    complete = [fold for fold in range(config.folds.count) if (rundir.fold_dir(out, fold) / FOLD_SUMMARY).exists()]
    for name in (rundir.PREDICTIONS, rundir.CANDIDATES):
        tables = [rundir.read_csv(rundir.fold_dir(out, fold) / name) for fold in complete]
        rundir.write_csv(out / name, pd.concat([table for table in tables if len(table)] or tables, ignore_index=True))
    predictions = rundir.read_csv(out / rundir.PREDICTIONS)
    summary = {
        "kind": "train",
        **metrics.summarise(predictions, config.stage),
        "folds": [rundir.read_json(rundir.fold_dir(out, fold) / FOLD_SUMMARY) for fold in complete],
        "tests": outside.summaries(out),
        "seconds": seconds,
    }
    if summary["note"]:
        log.info("* %s", summary["note"])
    if config.chosen.folds:
        summary["unpicked"] = metrics.unpicked(predictions, config)
        log.info("* %s", words.picked(config.chosen.folds, summary["unpicked"]))
    rundir.write_json(out / rundir.SUMMARY, summary)
    with progress.told("writing the page"):
        pages.write_report(out)
    return summary
