"""Small prepared sets for the tests of learning: noise, straight vessels, bright balls as aneurysms."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aneurysm_ray import overrides, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.data import store
from aneurysm_ray.labels import LABELS, LOCATIONS, PRESENT_INDEX

SITES = {
    "Right Middle Cerebral Artery": (0.5, 0.5, 0.25),
    "Left Middle Cerebral Artery": (0.5, 0.5, 0.75),
    "Basilar Tip": (0.4, 0.7, 0.5),
}
"""Where an aneurysm of each location lies, as a share (z, y, x) of the volume; x runs from right to left."""

SMALL: dict[str, Any] = {
    "model.name": "small3d",
    "model.width": 8,
    "patch.size": (24, 24, 24),
    "patch.border_mm": 2.0,
    "sampler.patches_per_volume": 4,
    "patch.radius_mm": 4.0,
    "patch.ignore_mm": 7.0,
    "augment.affine_probability": 0.0,
    "optim.batch_size": 8,
    "optim.epochs": 2,
    "optim.lr": 2e-3,
    "optim.precision": "float32",
    "inference.overlap": 0.25,
    "feed.threads": 0,
    "resources.cpus_per_worker": 1,
}
"""Overrides with which an epoch takes a second."""

_ONE_AT_A_TIME = threading.Lock()


def small_config(folder: Path, **changes: Any) -> Config:
    """Return a quick configuration whose cache lies beside the set; `optim__lr=1` overrides."""
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return overrides.build(SMALL, {"feed.cache_dir": str(folder / "cache")}, named)


def volume(
    index: int, positive: bool, seed: int = 0, shape: tuple[int, int, int] = (32, 40, 40), masks: bool = False
) -> store.PreparedVolume:
    """Make one volume of 1 mm voxels; a positive one has a ball of 3-4 mm radius at one of the SITES.

    With masks its straight vessels are of classes 8, 9 and 10, and the ball is its dome.
    """
    rng = np.random.default_rng((seed, index))
    voxels = rng.normal(50, 12, shape)
    vessels, domes = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for vessel in range(8, 11):
        y, x = rng.integers(6, shape[1] - 6), rng.integers(6, shape[2] - 6)
        voxels[:, y - 1 : y + 1, x - 1 : x + 1] += 120
        vessels[:, y - 1 : y + 1, x - 1 : x + 1] = vessel
    targets, points = np.zeros(len(LABELS), np.float32), ()
    if positive:
        location = list(SITES)[int(rng.integers(len(SITES)))]
        centre = np.array(SITES[location]) * shape + rng.uniform(-2, 2, 3)
        distance = np.linalg.norm(np.indices(shape).T - centre, axis=-1).T
        dome = distance < rng.uniform(3, 4)
        voxels[dome] += 140
        domes[dome] = 1
        targets[[LOCATIONS.index(location), PRESENT_INDEX]] = 1
        points = (store.Point(*(float(c) for c in centre), location),)
    affine = np.array([[0, 0, 1, -20], [0, 1, 0, -20], [1, 0, 0, 5], [0, 0, 0, 1]], np.float64)
    return store.PreparedVolume(
        series_uid=f"1.2.{seed}.{index}",
        patient=f"p{seed}_{index}",
        modality="CTA",
        plane="axial",
        voxels=np.clip(voxels, 0, 255).astype(np.uint8),
        affine=affine,
        targets=targets,
        points=points,
        quality=(),
        source_digest=str(index),
        vessels=vessels if masks else None,
        domes=domes if masks else None,
    )


def describe_set(folder: Path, config: Config) -> None:
    """Write what a prepared set says of itself."""
    rundir.write_json(folder / rundir.PREPARE, {"kind": "volumes", "volume": config.volume.model_dump(mode="json")})


def write_set(
    folder: Path, count: int, seed: int = 0, shape: tuple[int, int, int] = (32, 40, 40), masks: Sequence[int] = ()
) -> Path:
    """Write a prepared set of `count` volumes, every second one positive, some with masks; return its folder."""
    config = overrides.volume_identity(Config())
    rows = []
    for index in range(count):
        prepared = volume(index, index % 2 == 0, seed, shape, index in masks)
        path = store.write_volume(folder, prepared, config)
        rows.append(store.table_row(prepared, path.stat().st_size))
    store.write_table(folder, rows)
    describe_set(folder, Config())
    return folder


def fold_without_ray(fold: int, need: Any, config: Config, volumes: Path, out: Path, *_: Any) -> None:
    """Train a fold here, for tests of what comes after folds, in place of `train._run_fold`, which starts processes."""
    # Here, so that processes which tests start to read a set need not load torch.
    from aneurysm_ray.distributed import first_weights, train
    from aneurysm_ray.learning import checkpoint, engine

    folder = rundir.fold_dir(out, fold)
    dealt = rundir.read_csv(out / rundir.FOLDS).set_index("series_uid")["fold"]
    table = store.volumes_table(volumes)
    held_out = table["series_uid"].map(dealt) == fold
    saver = checkpoint.Saver(folder / rundir.CHECKPOINT_LAST)
    init = checkpoint.read_weights(first_weights.of_fold(config.init, fold)) if config.init else None
    with _ONE_AT_A_TIME:  # torch has one generator and one choice of algorithms for all threads
        for result in engine.fit(config, volumes, table[~held_out], table[held_out], fold=fold, init=init):
            train._write_epoch(folder, result, saver)
        saver.wait()
    train._write_fold_summary(folder, fold)
