"""One trial of a search, from its sample to its last epoch: what runs inside a Ray Tune actor.

A trial's own folder is its state: the rows of its epochs, and the checkpoint of the fold it is in. Whatever ends a
trial's process - a crash, a lost node, the end of the search - the next process goes on from that folder.
"""

import contextlib
import json
import math
import os
import socket
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import ray.train
import ray.tune

from aneurysm_ray import location, overrides, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.distributed import failures, news, record, survival
from aneurysm_ray.errors import OutputError, RunDirError

if TYPE_CHECKING:
    from aneurysm_ray.learning.engine import EpochResult

TRIALS_DIR = "trials"


Tell = Callable[[str, int, int], None]
"""Told what is being done, how much of it is, and of how much."""
Fit = Callable[[Config, int, dict[str, Any] | None, Tell], Iterator["EpochResult"]]
"""Train one fold: (config, fold, state to resume from, whom to tell how far it is) to a result per epoch."""


def folder_of(out: Path, number: int) -> Path:
    """Return a trial's directory."""
    return out / TRIALS_DIR / f"trial_{number:04d}"


def run(
    sample: dict[str, Any],
    *,
    base: Config,
    out: Path,
    fit: Fit,
    box: Any = None,
    scaling: ray.train.ScalingConfig | None = None,
) -> None:
    """Run a trial in this process, or on the workers of `scaling`, and report every epoch to Tune.

    `box` is the driver's letter box, which is told how far an epoch is.

    An exception is reported as a result and not raised: it would come again, while what Tune retries - a process or
    node that died - may not.
    """
    folder = folder_of(out, sample["number"])
    about = {"trial": sample["number"]}
    try:
        claim(folder, sample)
        config = overrides.build(sample["params"], base=base)
        rundir.write_text(folder / rundir.CONFIG, overrides.to_toml(config))
        if scaling:
            _train_on_workers(config, folder, fit, scaling, box, about)
        else:
            for result in epochs(config, folder, fit, news.teller(box, about)):
                ray.tune.report(result)
    except Exception as error:
        with contextlib.suppress(OutputError):  # the disk may be what failed
            rundir.write_text(folder / rundir.ERROR, traceback.format_exc())
        ray.tune.report({record.ERROR: failures.told(error)})


def claim(folder: Path, sample: dict[str, Any]) -> None:
    """Make a folder a sample's, or find that it is; its results are of no other. Raises RunDirError."""
    path = folder / rundir.SAMPLE
    there = rundir.read_json(path) if path.exists() else None
    if there is None and not (folder / rundir.METRICS).exists():
        rundir.write_json(path, sample)
    elif there != json.loads(json.dumps(sample)):
        raise RunDirError(
            f"{folder} holds the results of another sample"
            + (f" (trial {there['number']} of {there['study']})" if there else "")
            + "; remove it, and resume with --retry-failed"
        )


def _train_on_workers(
    config: Config, folder: Path, fit: Fit, scaling: ray.train.ScalingConfig, box: Any, about: news.Letter
) -> None:
    """Run a trial with Ray Train; every epoch's result reaches Tune through Train's controller."""
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    os.environ.update(survival.patience(config.resources))
    with tempfile.TemporaryDirectory(prefix="aneurysm-ray-") as scratch:

        def make() -> TorchTrainer:
            return TorchTrainer(
                _worker,
                train_loop_config={
                    "config": config.model_dump(mode="json"),
                    "folder": str(folder),
                    "fit": fit,
                    "box": box,
                    "about": about,
                },
                scaling_config=scaling,
                torch_config=survival.Connection(),
                run_config=survival.run_config(
                    folder.name, scratch, config.resources, [TuneReportCallback(), news.Watch(box, about)]
                ),
            )

        survival.run(make, config.resources, lambda why: news.post(box, {**about, "kind": "lost", "why": why}))


def _worker(settings: dict[str, Any]) -> None:
    rank = ray.train.get_context().get_world_rank()
    config, folder = Config.model_validate(settings["config"]), location.place(settings["folder"])
    tell = news.teller(settings["box"] if rank == 0 else None, settings["about"])
    with failures.kept(folder):
        for result in epochs(config, folder, settings["fit"], tell, write=rank == 0):
            ray.train.report(result)


def epochs(
    config: Config, folder: Path, fit: Fit, tell: Tell = lambda what, done, total: None, *, write: bool = True
) -> Iterator[dict[str, Any]]:
    """Train a trial's folds one after another, from where its folder stands; yield a result for Tune per epoch.

    A result holds the epoch's metrics, `record.STEP`, `record.FINISHED` and the objectives under their own names: the
    mean of their value in this epoch and in the last epoch of each fold before. The results of earlier processes come
    first, once more: the last one may have died with its process on the way to Tune.
    """
    from aneurysm_ray.learning import checkpoint

    rows = read_rows(folder)
    for count in range(1, len(rows) + 1):
        yield _result(rows[:count], config)
    if rows and rows[-1][record.STEP] == config.optim.epochs * len(config.tune.folds):
        return
    begun = time.monotonic() - (rows[-1][record.SECONDS] if rows else 0.0)
    for index, fold in enumerate(config.tune.folds):
        first_step = index * config.optim.epochs + 1
        if rows and rows[-1][record.STEP] >= first_step + config.optim.epochs - 1:
            continue
        last = rundir.fold_dir(folder, fold) / rundir.CHECKPOINT_LAST
        saver, saved = checkpoint.Saver(last), -math.inf
        for result in fit(config, fold, checkpoint.load(last) if (last / checkpoint.STATE).exists() else None, tell):
            row = {
                record.STEP: first_step + result.epoch,
                "fold": fold,
                **result.metrics,
                "epoch": result.epoch,
                "parameters": count_parameters(result.state),
                record.SECONDS: time.monotonic() - begun,
                record.WORKER: f"{socket.gethostname()}:{os.getpid()}",
            }
            # A kill between the row and the checkpoint makes the epoch come again; its row is then replaced.
            rows = [*(earlier for earlier in rows if earlier[record.STEP] < row[record.STEP]), row]
            if write:
                if len(result.predictions):
                    _write_predictions(folder, fold, result.predictions)
                rundir.write_csv(folder / rundir.METRICS, pd.DataFrame(rows))
                if result.epoch + 1 < config.optim.epochs and time.monotonic() - saved >= config.tune.save_seconds:
                    saver.save(result.state)
                    saved = time.monotonic()
            yield _result(rows, config)
        saver.wait()
        if write:
            location.remove_tree(last.parent)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a trial's epochs, oldest first; none when it has not finished one."""
    path = folder / rundir.METRICS
    records = rundir.read_csv(path).to_dict("records") if path.exists() else []
    return [{str(key): value for key, value in row.items()} for row in records]


def count_parameters(state: dict[str, Any]) -> int:
    """Return the number of weights in an epoch's state."""
    return sum(int(tensor.numel()) for tensor in state.get("model", {}).values() if hasattr(tensor, "numel"))


def objectives(rows: list[dict[str, Any]], config: Config) -> dict[str, float]:
    """Return each objective after a trial's last row: the mean over its folds so far of the fold's last epoch that was
    validated."""
    from aneurysm_ray.learning import validation

    validated = [row for row in rows if validation.due(config, int(row["epoch"]))] or rows[:1]
    last_of_fold = {row["fold"]: row for row in validated}
    return {
        name: sum(row.get(name, float("nan")) for row in last_of_fold.values()) / len(last_of_fold)
        for name in record.metrics(config.tune)
    }


def _result(rows: list[dict[str, Any]], config: Config) -> dict[str, Any]:
    row = rows[-1]
    finished = row[record.STEP] == config.optim.epochs * len(config.tune.folds)
    return {**row, **objectives(rows, config), record.FINISHED: finished}


def _write_predictions(folder: Path, fold: int, table: pd.DataFrame) -> None:
    path = folder / rundir.PREDICTIONS
    if path.exists():
        earlier = rundir.read_csv(path)
        table = pd.concat([earlier[earlier["fold"] != fold], table], ignore_index=True)
    rundir.write_csv(path, table)
