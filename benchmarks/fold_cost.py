"""What does a fold cost beside its training steps, on a set larger than memory? And what does a patch cost to read?

    python benchmarks/fold_cost.py WORK --series 1600 --memory 8 [--epochs 2] [--presets v2,v5]

Writes prepared series at the real shape, 200 x 400 x 320 (25.6 MB each, 41 GB in all), then lets this process and its
page cache have so many GB (a memory cgroup, where this machine lets us make one). First, patches/s of one core from

  - this project's cache: cold (not in the page cache), from the page cache, and with the bytes that a patch reads;
  - what it had before: whole volumes as memory maps, and on a miss the decompression of the volume;
  - blosc2 files as nnU-Net keeps them (chunks of 32 x 64 x 64, `pip install blosc2`), MONAI's PersistentDataset and
    CacheDataset, whose unit is the volume.

Then whole folds: a network small enough for two cores to feed, with everything that a fold does - reading, steps,
validation, mining, writing its state and tables as `train` does - against the bare step on patches in memory. The last
epoch's full validation is scaled to a fold of 30 epochs: other epochs count as often as they would come.
"""

import argparse
import contextlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from aneurysm_ray import overrides, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.data import store
from aneurysm_ray.data.store import Point, PreparedVolume
from aneurysm_ray.labels import LABELS, LOCATIONS
from aneurysm_ray.learning import augment, checkpoint, engine, epoch, objective
from aneurysm_ray.learning.cache import open_cache
from aneurysm_ray.learning.cases import Case, from_table
from aneurysm_ray.learning.patches import cut

SHAPE = (200, 400, 320)
PATCH = (64, 96, 96)
EPOCHS = 30
"""Of the fold that is computed from what was measured."""

TINY: dict[str, Any] = {
    "volume.extent_mm": (160.0, 200.0, 160.0),
    "model.name": "small3d",
    "model.width": 4,
    "model.stem_stride": 4,
    "optim.batch_size": 32,
    "optim.precision": "float32",
    "augment.affine_probability": 0.0,
    "augment.noise": 0.0,
    "augment.gamma": 0.0,
    "loss.vessel_weight": 0.0,
    "feed.threads": 2,
}
"""A network that costs less than reading its patches does."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--series", type=int, default=1600)
    parser.add_argument("--memory", type=float, default=8.0, help="GB for this process and its page cache; 0: no limit")
    parser.add_argument("--epochs", type=int, default=2, help="epochs that are run of each fold")
    parser.add_argument("--presets", default="v1,v2,v3,v4,v5")
    parser.add_argument("--patches", type=int, default=300, help="patches of each reading")
    options = parser.parse_args()
    volumes = options.work / "volumes"
    if not (volumes / rundir.VOLUMES).exists():
        make_set(volumes, options.series)
    with limited(options.memory) as limit:
        print(f"{options.series} series of {np.prod(SHAPE) / 1e6:.1f} MB, memory limit: {limit}\n", flush=True)
        readings(volumes, options)
        print("\n| preset | patches/s, bare step | whole fold, 30 epochs | ratio | where a fold's time goes |")
        print("|---|---:|---:|---:|---|")
        for name in options.presets.split(","):
            print(fold(name, volumes, options), flush=True)


def make_set(folder: Path, count: int) -> None:
    """Write prepared series, no two of them alike: heads of smooth noise in air."""
    rng = np.random.default_rng(0)
    config = overrides.build(TINY)
    bases = [_head(rng) for _ in range(4)]
    rows = []
    for index in range(count):
        voxels = np.roll(bases[index % 4], index // 4, axis=index % 3) ^ (index % 7 > 3)
        positive = index % 2 == 0
        targets = np.zeros(len(LABELS), np.float32)
        targets[[index % 13, -1]] = positive
        centre = rng.uniform(0.3, 0.7, 3) * SHAPE
        prepared = PreparedVolume(
            series_uid=f"1.2.{index}", patient=f"p{index}", modality=("CTA", "MRA")[index % 3 > 0], plane="axial",
            voxels=voxels, affine=np.diag([0.5, 0.5, 0.8, 1.0])[[2, 1, 0, 3]], targets=targets,
            points=(Point(*centre, LOCATIONS[index % 13]),) if positive else (), quality=(), source_digest="",
        )  # fmt: skip
        path = store.write_volume(folder, prepared, overrides.volume_identity(config))
        rows.append(store.table_row(prepared, path.stat().st_size))
    rundir.write_json(folder / rundir.PREPARE, {"kind": "volumes", "volume": config.volume.model_dump(mode="json")})
    store.write_table(folder, rows)


def _head(rng: np.random.Generator) -> np.ndarray:
    small = torch.from_numpy(rng.normal(size=(1, 1, 25, 50, 40)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(small, size=SHAPE, mode="trilinear")[0, 0].numpy()
    z, y, x = np.ogrid[-1 : 1 : SHAPE[0] * 1j, -1 : 1 : SHAPE[1] * 1j, -1 : 1 : SHAPE[2] * 1j]
    inside = z**2 * 0.4 + y**2 + x**2 < 1
    return (np.clip(90 + 25 * smooth + rng.normal(0, 6, SHAPE), 1, 255) * inside).astype(np.uint8)


@contextlib.contextmanager
def limited(gigabytes: float) -> Iterator[str]:
    """Give this process and the page cache of what it reads so much memory."""
    group = Path(f"/sys/fs/cgroup/memory/fold_cost_{os.getpid()}")
    if not gigabytes or not group.parent.is_dir():
        yield "none" if not gigabytes else "none: this machine has no memory cgroups of version 1"
        return
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(int(gigabytes * 2**30)))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield f"{gigabytes:g} GB"
        print(f"\npeak memory with page cache {int((group / 'memory.max_usage_in_bytes').read_text()) / 2**30:.1f} GB")
    finally:
        (group.parent / "cgroup.procs").write_text(str(os.getpid()))
        with contextlib.suppress(OSError):
            group.rmdir()


def forget(paths: Iterator[Path]) -> None:
    """Take files out of the page cache."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def readings(volumes: Path, options: argparse.Namespace) -> None:
    """Print what a patch costs from each kind of storage."""
    cases = from_table(store.volumes_table(volumes), volumes)[:16]
    rng = np.random.default_rng(1)
    starts = [rng.integers(0, np.array(SHAPE) - PATCH) for _ in range(options.patches)]
    wanted = [(cases[i % len(cases)], start) for i, start in enumerate(starts)]
    work = Path(tempfile.mkdtemp(dir=options.work))
    config = overrides.build(TINY, {"feed.cache_dir": str(work / "bricks")})
    cache = open_cache(volumes, config.feed)
    miss = _each(lambda case, start: cache.patch(case, start, PATCH).voxels, wanted[: len(cases)])
    arrays = {}
    for case in cases:
        arrays[case.series_uid] = path = work / f"{case.series_uid}.npy"
        np.save(path, store.read_volume(case.path).voxels)

    def mapped(case: Case, start: np.ndarray) -> np.ndarray:
        return np.array(np.load(arrays[case.series_uid], mmap_mode="r")[_box(start)])

    def bricks(case: Case, start: np.ndarray) -> np.ndarray:
        return cache.patch(case, start, PATCH).voxels

    def decompressed(case: Case, start: np.ndarray) -> np.ndarray:
        return store.read_volume(case.path, masks=False).voxels[_box(start)]

    kinds: dict[str, tuple[Callable[[Case, np.ndarray], np.ndarray], Iterator[Path] | list[Path]]] = {
        "cache of cubes": (bricks, list(cache.folder.glob("*.bricks"))),
        "memory maps of whole volumes (before)": (mapped, list(arrays.values())),
        "decompressing the set's own file (before: a miss)": (decompressed, [case.path for case in cases]),
        **_peers(cases, work),
    }
    print("| storage | cold | page cache | GB of 16 series |")
    print("|---|---:|---:|---:|")
    for name, (read, files) in kinds.items():
        few = wanted if name.startswith(("cache", "memory", "blosc2")) else wanted[:32]
        forget(iter(files))
        cold = _each(read, few[:64])
        warm = statistics.median(_each(read, few) for _ in range(3))
        size = sum(path.stat().st_size for path in files) / 1e9
        print(f"| {name} | {1 / cold:.0f} | {1 / warm:.0f} | {size:.2f} |", flush=True)
    before = cache.traffic.bytes_read
    _each(bricks, wanted)
    share = (cache.traffic.bytes_read - before) / len(wanted) / np.prod(PATCH)
    print(
        f"\npatches/s of one core (CPU time); a first miss {1000 * miss:.0f} ms; bytes read {share:.2f} of the patch's"
    )
    shutil.rmtree(work)


def _peers(cases: tuple[Case, ...], work: Path) -> dict[str, Any]:
    kinds: dict[str, Any] = {}
    with contextlib.suppress(ImportError):
        import blosc2

        blosc2.set_nthreads(1)
        files = {case.series_uid: work / f"{case.series_uid}.b2nd" for case in cases}
        for case in cases:
            voxels = store.read_volume(case.path).voxels
            blosc2.asarray(
                voxels, chunks=(32, 64, 64), blocks=(16, 32, 32), urlpath=str(files[case.series_uid]), mode="w"
            )
        kinds["blosc2, as nnU-Net keeps its data"] = (
            lambda case, start: blosc2.open(str(files[case.series_uid]), mode="r")[_box(start)],
            list(files.values()),
        )
    from monai.data import CacheDataset, PersistentDataset
    from monai.transforms import Compose, Lambda

    index = {case.series_uid: i for i, case in enumerate(cases)}
    load = Compose([Lambda(lambda path: torch.from_numpy(store.read_volume(path).voxels.copy()))])
    paths = [str(case.path) for case in cases]
    stored = PersistentDataset(paths, load, cache_dir=work / "monai")
    for i in range(len(stored)):
        stored[i]
    held = CacheDataset(paths, load, progress=False)
    kinds["MONAI PersistentDataset"] = (
        lambda case, start: stored[index[case.series_uid]][_box(start)].numpy().copy(),
        list((work / "monai").glob("*.pt")),
    )
    kinds["MONAI CacheDataset, all in memory"] = (
        lambda case, start: held[index[case.series_uid]][_box(start)].numpy().copy(),
        [],
    )
    return kinds


def _box(start: np.ndarray) -> tuple[slice, ...]:
    return tuple(slice(first, first + length) for first, length in zip(start.tolist(), PATCH, strict=True))


def _each(read: Callable[[Case, np.ndarray], np.ndarray], wanted: list[tuple[Case, np.ndarray]]) -> float:
    """Return the CPU seconds of one reading."""
    begun = time.process_time()
    for case, start in wanted:
        assert read(case, start).size == np.prod(PATCH)
    return (time.process_time() - begun) / len(wanted)


def fold(name: str, volumes: Path, options: argparse.Namespace) -> str:
    """Run some epochs of a preset's fold and return its row."""
    preset = {
        key: value for key, value in overrides.preset(name).items() if not key.startswith(("model.name", "patch"))
    }
    work = options.work / "folds"
    config = overrides.build(
        preset, TINY, {"optim.epochs": options.epochs, "feed.cache_dir": str(options.work / "cache")}
    )
    table = store.volumes_table(volumes)
    held_out = np.arange(len(table)) % 5 == 0
    shutil.rmtree(work, ignore_errors=True)
    saver = checkpoint.Saver(work / rundir.CHECKPOINT_LAST)
    for result in engine.fit(config, volumes, table[~held_out], table[held_out]):
        rundir.write_csv(work / rundir.METRICS, pd.DataFrame(result.state["history"]))
        if len(result.predictions):
            rundir.write_csv(work / rundir.PREDICTIONS, result.predictions)
        for uid, heatmap in result.heatmaps.items():
            engine_heatmap(work, uid, heatmap)
        saver.save(result.state)
    saver.wait()
    history = pd.DataFrame(result.state["history"])
    parts = [f"seconds/{part}" for part in ("feed", "steps", "validation", "mining", "writing")]
    # The first epoch fills the cache, the last validates in full; all between are as the second to last.
    first, usual, last = history.iloc[0], history.iloc[max(len(history) - 2, 0)], history.iloc[-1]
    usual_seconds = usual[parts].copy()
    usual_seconds["seconds/mining"] = history["seconds/mining"].max() / config.sampler.hard_negative_every
    if len(history) > 2:
        usual_seconds["seconds/feed"] = history["seconds/feed"].iloc[1:].mean()
    else:
        usual_seconds["seconds/feed"] = last["seconds/feed"]
    total = first[parts] + (EPOCHS - 2) * usual_seconds
    total["seconds/validation"] = (EPOCHS - 1) * usual["seconds/validation"] + last["seconds/validation"]
    total["seconds/steps"] = EPOCHS * history["seconds/steps"].mean()
    total["seconds/feed"] += last["seconds/feed"]
    patches = EPOCHS * config.sampler.patches_per_volume * int((~held_out).sum())
    whole, bare = patches / total.sum(), bare_step(config, from_table(table[:16], volumes), volumes)
    where = ", ".join(f"{part.removeprefix('seconds/')} {100 * total[part] / total.sum():.0f} %" for part in parts)
    return f"| {name} | {bare:.0f} | {whole:.0f} | {whole / bare:.2f} | {where} |"


def engine_heatmap(work: Path, uid: str, heatmap: Any) -> None:
    """Write a heat map as `train` does."""
    from aneurysm_ray.learning.ensemble import write_heatmap

    write_heatmap(work / rundir.HEATMAPS / f"{uid}.npz", heatmap)


def bare_step(config: Config, cases: tuple[Case, ...], volumes: Path, steps: int = 150) -> float:
    """Return the patches/s of steps on batches that lie in memory, ready made."""
    device = torch.device("cpu")
    learner = engine._start(config, cases, 0, device, lambda network: network, None)
    plan = engine._plan(cases, config, 0, 0, ())
    cache = open_cache(volumes, config.feed)
    made = []
    for step in np.arange(8 * config.optim.batch_size).reshape(8, -1) % len(plan):
        batch = cut(cases, plan, step, config.patch.size, cache.patch, masks=objective.needs_masks(config, cases))
        batch, changes = augment.prepare(batch, augment.draw(config.augment, (0, 0, 0), step))
        made.append([(augment.apply(batch, changes), changes)])
    epoch.train_epoch(learner, iter(made), 8 * config.optim.batch_size, config, 1, device, lambda *_: None)
    begun = time.perf_counter()
    feed = (made[number % 8] for number in range(steps))
    epoch.train_epoch(learner, feed, steps * config.optim.batch_size, config, 1, device, lambda *_: None)
    return steps * config.optim.batch_size / (time.perf_counter() - begun)


if __name__ == "__main__":
    sys.exit(main())
