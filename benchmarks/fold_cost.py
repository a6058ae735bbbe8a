"""What does a fold cost beside its training steps, on a set larger than memory? And what does a patch cost to read?

    python benchmarks/fold_cost.py WORK --series 1600 --memory 8 [--presets v1,v4,v5] [--only folds]

Runs unattended and writes WORK/fold_cost.md line by line. Prepared series at the real shape, 200 x 400 x 320 (25.6 MB
each, 41 GB in all, 21 GB of files), are written once; then this process and its page cache have so many GB (a memory
cgroup of version 1, where this machine lets us make one), and torch one thread. Four parts:

  - readings: patches/s of one core from this project's cache, cold, from the page cache, and the bytes that a patch
    takes; from what it had before, memory maps of whole volumes, and on a miss the decompression of the volume; from
    blosc2 files as nnU-Net keeps them (`pip install blosc2`); from MONAI's PersistentDataset and CacheDataset.
  - folds: a network small enough to be fed by one more core, with all that a fold does - reading, steps, validation,
    mining, writing its state and tables as `train` does - against the bare step on patches in memory. Three epochs are
    run and counted as often as a fold of 30 on `--real` series has them: one that fills the cache, 28 like the second,
    one with the full validation, of which `--full` series are scored and the rest counted.
  - peers: the same steps fed by one thread from each storage, all volumes in random order, on the part of the set that
    the disk holds as whole arrays, with less memory.
  - search: epochs/s of so many trials at a time, each a process that trains on a part of the set: with one cache that
    they share, with a folder each, and with none.

Shares are of CPU time as well as of time on the clock. The second is what a user waits for, and holds on two idle
cores: one steps, one feeds. The first counts the work of both, and leaves out waiting for the disk. Where two cores
are two threads of one, the step itself is slower beside a busy one: it is measured like that too.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch

from aneurysm_ray import overrides, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.data import store
from aneurysm_ray.data.store import Point, PreparedVolume
from aneurysm_ray.labels import LABELS, LOCATIONS
from aneurysm_ray.learning import augment, checkpoint, engine, epoch, objective
from aneurysm_ray.learning.cache import Patch, Traffic, VolumeCache, open_cache
from aneurysm_ray.learning.cases import Case, from_table
from aneurysm_ray.learning.ensemble import write_heatmap
from aneurysm_ray.learning.patches import cut, prefetch

SHAPE = (200, 400, 320)
PATCH = (64, 96, 96)
EPOCHS = 30
"""Of the fold that is computed from what was measured."""

CHANGES = ("affine_probability", "gamma", "brightness", "contrast", "blur", "noise")

TINY: dict[str, Any] = {
    "volume.extent_mm": (160.0, 200.0, 160.0),
    "model.name": "small3d",
    "model.width": 4,
    "model.stem_stride": 4,
    "optim.batch_size": 32,
    "optim.precision": "float32",
    "feed.threads": 1,
    **{f"augment.{change}": 0.0 for change in CHANGES},
    "loss.vessel_weight": 0.0,
}
"""A network that takes some 350 patches/s of a core, and nothing for the CPU to change, as a GPU changes voxels itself:
what is left is to feed it, which another core does: a second thread would take the steps' own core from them."""

PARTS = ("feed", "steps", "validation", "mining", "writing")
OF_A_SEARCH, EPOCHS_OF_A_TRIAL = 40, 3
"""Series that trials train on, and epochs that each takes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--series", type=int, default=1600)
    parser.add_argument("--memory", type=float, default=8.0, help="GB for this process and its page cache; 0: no limit")
    parser.add_argument("--cache", type=float, default=-1.0, help="GB of the cache on disk, as feed.cache_gb")
    parser.add_argument("--presets", default="v1,v2,v3,v4,v5")
    parser.add_argument("--patches", type=int, default=300, help="patches of each reading")
    parser.add_argument("--full", type=int, default=20, help="held-out series whose full validation is measured")
    parser.add_argument("--peers", type=int, default=240, help="series of the comparison with other storage")
    parser.add_argument("--peers-memory", type=float, default=1.5, help="GB that comparison may have")
    parser.add_argument("--steps", type=int, default=64, help="steps of each turn of that comparison")
    parser.add_argument("--real", type=int, default=4348, help="series of the data set whose fold is computed")
    parser.add_argument("--trials", type=int, default=8, help="trials at a time of the search")
    parser.add_argument("--only", choices=["readings", "folds", "peers", "search"], help="one of the four parts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    volumes = options.work / "volumes"
    if not (volumes / rundir.VOLUMES).exists():
        make_set(volumes, options.series)
    table = store.volumes_table(volumes)
    with open(options.work / "fold_cost.md", "a") as file:

        def say(line: str) -> None:
            print(line, flush=True)
            print(line, file=file, flush=True)

        said = f"{time.strftime('%Y-%m-%d %H:%M')}, {len(table)} series of {np.prod(SHAPE) / 1e6:.1f} MB, "
        if options.only in (None, "readings"):
            with limited(options.memory) as limit:
                say(f"\n{said}memory {limit.said}; patches/s of one core by CPU time\n")
                readings(volumes, options, say)
        if options.only in (None, "folds"):
            say(f"\n{said}folds\n")
            say(FOLDS_HEAD + "\n|" + "---|" * FOLDS_HEAD.count(" | ") + "---|")
            for name in options.presets.split(","):
                with limited(options.memory) as limit:
                    say(fold(name, volumes, options, limit))
        if options.only in (None, "peers"):
            part = min(options.peers, len(table))
            with limited(options.peers_memory) as limit:
                say(f"\n{said}of them {part}, memory {limit.said}; steps of {TINY['optim.batch_size']} patches\n")
                peers(volumes, table[:part], options, say)
        if options.only in (None, "search"):
            part = min(OF_A_SEARCH, len(table))
            say(f"\n{said}of them {part}; {options.trials} trials at a time\n")
            search(volumes, table[:part], options, say)


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


class Limit:
    """How much memory this process and the page cache of what it reads may have, and have had at most."""

    def __init__(self, group: Path | None, said: str) -> None:
        self.group, self.said = group, said

    def peak_gb(self) -> float:
        """Return the most of both since this was asked last; NaN where there is no limit."""
        if self.group is None:
            return float("nan")
        peak = int((self.group / "memory.max_usage_in_bytes").read_text()) / 2**30
        (self.group / "memory.max_usage_in_bytes").write_text("0")
        return peak

    def own_gb(self) -> float:
        """Return what this process has of it, without page cache."""
        if self.group is None:
            return float("nan")
        rows = dict(line.split() for line in (self.group / "memory.stat").read_text().splitlines())
        return int(rows["total_rss"]) / 2**30


@contextlib.contextmanager
def limited(gigabytes: float) -> Iterator[Limit]:
    """Give this process and the page cache of what it reads so much memory."""
    group = Path(f"/sys/fs/cgroup/memory/fold_cost_{os.getpid()}")
    if not gigabytes or not group.parent.is_dir():
        yield Limit(None, "not limited" if not gigabytes else "not limited: no memory cgroups of version 1 here")
        return
    group.mkdir(exist_ok=True)  # a process that was started in it may outlive its first use
    (group / "memory.limit_in_bytes").write_text(str(int(gigabytes * 2**30)))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield Limit(group, f"{gigabytes:.1f} GB")
    finally:
        (group.parent / "cgroup.procs").write_text(str(os.getpid()))
        (group / "memory.force_empty").write_text("0")
        with contextlib.suppress(OSError):
            group.rmdir()


def forget(paths: Iterator[Path]) -> None:
    """Take files out of the page cache."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def readings(volumes: Path, options: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Say what a patch costs from each kind of storage."""
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
    say("| storage | cold | page cache | GB of 16 series |\n|---|---:|---:|---:|")
    for name, (read, files) in kinds.items():
        few = wanted if name.startswith(("cache", "memory", "blosc2")) else wanted[:32]
        forget(iter(files))
        cold = _each(read, few[:64])
        warm = statistics.median(_each(read, few) for _ in range(3))
        size = sum(path.stat().st_size for path in files) / 1e9
        say(f"| {name} | {1 / cold:.0f} | {1 / warm:.0f} | {size:.2f} |")
    before = cache.traffic.bytes_read
    _each(bricks, wanted)
    share = (cache.traffic.bytes_read - before) / len(wanted) / np.prod(PATCH)
    say(f"\nA first miss {1000 * miss:.0f} ms; bytes read {share:.2f} of the patch's")
    shutil.rmtree(work)


Reader = Callable[[Case, np.ndarray], np.ndarray]


def _peers(cases: Sequence[Case], work: Path, share: float = 1.0) -> dict[str, tuple[Reader, list[Path]]]:
    """Return what gives a patch from other storage, and its files; CacheDataset holds a share of the volumes."""
    kinds: dict[str, tuple[Reader, list[Path]]] = {}
    with contextlib.suppress(ImportError):
        import blosc2

        blosc2.set_nthreads(1)
        files = {case.series_uid: work / f"{case.series_uid}.b2nd" for case in cases}
        for case in cases:
            _save_blosc2(files[case.series_uid], store.read_volume(case.path).voxels)

        def blocks(case: Case, start: np.ndarray) -> np.ndarray:
            return np.asarray(blosc2.open(str(files[case.series_uid]), mode="r", mmap_mode="r")[_box(start)])

        kinds["blosc2, as nnU-Net keeps its data"] = blocks, list(files.values())
    from monai.data import CacheDataset, PersistentDataset
    from monai.transforms import Compose, Lambda

    index = {case.series_uid: i for i, case in enumerate(cases)}
    load = Compose([Lambda(lambda path: torch.from_numpy(store.read_volume(path).voxels.copy()))])
    paths = [str(case.path) for case in cases]
    stored = PersistentDataset(paths, load, cache_dir=work / "monai")
    for i in range(len(stored)):
        stored[i]
    held = CacheDataset(paths, load, cache_rate=share, progress=False, num_workers=1)

    def of(dataset: Any) -> Reader:
        return lambda case, start: dataset[index[case.series_uid]][_box(start)].numpy().copy()

    kinds["MONAI PersistentDataset"] = of(stored), list((work / "monai").glob("*.pt"))
    kinds[f"MONAI CacheDataset, {100 * share:.0f} % in memory"] = of(held), []
    return kinds


def _save_blosc2(path: Path, voxels: np.ndarray) -> None:
    """Write a volume with nnU-Net's codec (2.6: Zstandard at level 8) in chunks of about a patch."""
    import blosc2

    parameters = blosc2.CParams(codec=blosc2.Codec.ZSTD, clevel=8, nthreads=1)
    blosc2.asarray(voxels, chunks=(64, 96, 96), blocks=(16, 32, 32), urlpath=str(path), mode="w", cparams=parameters)


def _box(start: np.ndarray) -> tuple[slice, ...]:
    return tuple(slice(first, first + length) for first, length in zip(start.tolist(), PATCH, strict=True))


def _each(read: Callable[[Case, np.ndarray], np.ndarray], wanted: list[tuple[Case, np.ndarray]]) -> float:
    """Return the CPU seconds of one reading."""
    begun = time.process_time()
    for case, start in wanted:
        assert read(case, start).size == np.prod(PATCH)
    return (time.process_time() - begun) / len(wanted)


FOLDS_HEAD = (
    "| preset | bare step, patches/s | beside a busy core | whole fold | share | of the step beside a busy core | "
    "share by CPU time | misses, % | bytes read of a patch's | "
    "memory, GB | of it this process | where a fold's time goes |"
)


def fold(name: str, volumes: Path, options: argparse.Namespace, limit: Limit) -> str:
    """Run some epochs of a preset's fold and return its row."""
    preset = {
        key: value for key, value in overrides.preset(name).items() if not key.startswith(("model.name", "patch"))
    }
    work, kept = options.work / "folds", options.work / "cache"
    # The first epoch fills the cache, the second is as most are, the third validates in full.
    changes = {"optim.epochs": 3, "feed.cache_dir": str(kept), "feed.cache_gb": options.cache}
    config = overrides.build(preset, TINY, changes)
    table = store.volumes_table(volumes)
    held_out = np.arange(len(table)) % 5 == 0
    some = table[held_out][: options.full]
    for folder in (work, kept):
        shutil.rmtree(folder, ignore_errors=True)
    caches: list[VolumeCache] = []
    traffic: list[Traffic] = []

    def opened(*words: Any) -> VolumeCache:
        caches.append(open_cache(*words))
        return caches[-1]

    def tell(what: str, done: int, total: int) -> None:
        if what == "training" and done in (1, total):  # what training took, validation left out
            traffic.append(replace(caches[-1].traffic))

    saver = checkpoint.Saver(work / rundir.CHECKPOINT_LAST)
    cpu, clock, begun = [], [], (time.process_time(), time.perf_counter())
    limit.peak_gb()
    with mock.patch.object(engine, "open_cache", opened):
        for result in engine.fit(config, volumes, table[~held_out], some, tell=tell):
            rundir.write_csv(work / rundir.METRICS, pd.DataFrame(result.state["history"]))
            if len(result.predictions):
                rundir.write_csv(work / rundir.PREDICTIONS, result.predictions)
            for uid, heatmap in result.heatmaps.items():
                write_heatmap(work / rundir.HEATMAPS / f"{uid}.npz", heatmap)
            saver.save(result.state)
            now = (time.process_time(), time.perf_counter())
            cpu.append(now[0] - begun[0]), clock.append(now[1] - begun[1])
            begun = now
    saver.wait()
    peak, own = limit.peak_gb(), limit.own_gb()
    history = pd.DataFrame(result.state["history"])[[f"seconds/{part}" for part in PARTS]]
    # As often as a fold of the real data has each: patches, series looked at quickly, series scored in full.
    valid, trained = options.real // 5, options.real - options.real // 5
    quick = min(config.validation.series or valid, valid) / len(some)
    scale = np.full(history.shape, trained / int((~held_out).sum()))
    scale[:, PARTS.index("validation")] = [quick, quick, valid / len(some)]
    scale[:, PARTS.index("writing")] = 1.0
    epochs = history.to_numpy() * scale
    epochs[:, PARTS.index("mining")] = [0.0, history["seconds/mining"].max() / config.sampler.hard_negative_every, 0.0]
    of_fold = epochs[0] + (EPOCHS - 2) * epochs[1] + epochs[2]
    # The same by CPU time, each epoch's as its seconds on the clock divide it.
    of_cpu = [epochs[i].sum() * cpu[i] / clock[i] for i in range(3)]
    patches = EPOCHS * config.sampler.patches_per_volume * trained
    bare, bare_cpu = bare_step(config, from_table(table[:16], volumes), volumes)
    with busy(table, volumes):
        beside, _ = bare_step(config, from_table(table[:16], volumes), volumes)
    whole, by_cpu = patches / of_fold.sum(), patches / (of_cpu[0] + (EPOCHS - 2) * of_cpu[1] + of_cpu[2])
    # Of the second epoch, without the batches that were made before its first step.
    asked, missed, read = (getattr(traffic[3], key) - getattr(traffic[2], key) for key in vars(traffic[3]))
    share, misses, taken = by_cpu / bare_cpu, 100 * missed / max(asked, 1), read / max(asked, 1) / np.prod(PATCH)
    where = ", ".join(f"{part} {100 * of:.0f} %" for part, of in zip(PARTS, of_fold / of_fold.sum(), strict=True))
    return (
        f"| {name} | {bare:.0f} | {beside:.0f} | {whole:.0f} | {whole / bare:.2f} | {whole / beside:.2f} | "
        f"{share:.2f} | {misses:.1f} | {taken:.2f} | "
        f"{peak:.1f} | {own:.1f} | {where} |"
    )


def peers(volumes: Path, table: pd.DataFrame, options: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Say how fast the same steps are when patches come from each kind of storage, volumes in random order."""
    work = Path(tempfile.mkdtemp(dir=options.work))
    cases = from_table(table, volumes)
    config = overrides.build(TINY, {"feed.cache_dir": str(work / "bricks"), "feed.cache_gb": 1000.0})
    cache = open_cache(volumes, config.feed)
    for case in cases:
        cache.patch(case, np.zeros(3, np.int64), PATCH)
    share = 0.3 * (options.peers_memory or 1e9) * 2**30 / (len(cases) * np.prod(SHAPE))  # this process needs the rest
    doors: dict[str, Reader] = {"cache of cubes": lambda case, start: cache.patch(case, start, PATCH).voxels}
    doors |= {name: read for name, (read, _) in _peers(cases, work, min(share, 1.0)).items()}
    bare, bare_cpu = bare_step(config, cases[:16], volumes)
    say("| storage | patches/s of the steps | of the bare step | by CPU time |\n|---|---:|---:|---:|")
    say(f"| in memory, ready made: the bare step | {bare:.0f} | 1 | 1 |")
    for name, read in doors.items():
        speed, by_cpu = fed(config, cases, read, options.steps)
        say(f"| {name} | {speed:.0f} | {speed / bare:.2f} | {by_cpu / bare_cpu:.2f} |")
    shutil.rmtree(work)


def search(volumes: Path, table: pd.DataFrame, options: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Say how many epochs/s trials take together by what of a cache they share."""
    say("| cache | epochs/s of all trials | CPU s an epoch | GB on disk |\n|---|---:|---:|---:|")
    for name, shared in (
        ("one that all share", True),
        ("a folder each", False),
        ("none: volumes are decompressed", None),
    ):
        work = Path(tempfile.mkdtemp(dir=options.work))
        folders = [work / ("all" if shared else f"trial{number}") for number in range(options.trials)]
        gigabytes = 0.0 if shared is None else 1000.0
        begun, before = time.perf_counter(), os.times()
        with multiprocessing.get_context("spawn").Pool(options.trials) as pool:
            pool.starmap(trial, [(volumes, table, folder, gigabytes, seed) for seed, folder in enumerate(folders)], 1)
            pool.close()
            pool.join()
        seconds, now = time.perf_counter() - begun, os.times()
        epochs = options.trials * EPOCHS_OF_A_TRIAL
        cpu = now.children_user + now.children_system - before.children_user - before.children_system
        size = sum(path.stat().st_size for path in work.rglob("*.bricks")) / 1e9
        say(f"| {name} | {epochs / seconds:.2f} | {cpu / epochs:.2f} | {size:.2f} |")
        shutil.rmtree(work)


def trial(volumes: Path, table: pd.DataFrame, cache: Path, gigabytes: float, seed: int) -> None:
    """Train one trial of a search."""
    torch.set_num_threads(1)
    changes = {
        "optim.epochs": EPOCHS_OF_A_TRIAL,
        "feed.cache_dir": str(cache),
        "feed.cache_gb": gigabytes,
        "seed": seed,
    }
    held_out = np.arange(len(table)) % 5 == 0
    for _ in engine.fit(overrides.build(TINY, changes), volumes, table[~held_out], table[held_out]):
        pass


def fed(config: Config, cases: tuple[Case, ...], read: Reader, steps: int) -> tuple[float, float]:
    """Return patches/s, on the clock and by CPU time, of steps that one thread feeds from some storage."""
    device, size = torch.device("cpu"), config.optim.batch_size
    learner = engine._start(config, cases, 0, device, lambda network: network, None)
    plan = engine._plan(cases, config, 0, 0, ())

    def door(case: Case, start: np.ndarray, _: tuple[int, int, int], *, masks: bool = False) -> Patch:
        return Patch(read(case, np.asarray(start)))

    def make(step: np.ndarray) -> epoch.MicroBatches:
        batch = cut(cases, plan, step, PATCH, door)
        batch, changes = augment.prepare(batch, augment.draw(config.augment, (0, 0, 0), step))
        return [epoch.examples(batch, changes, config, learner.network)]

    feed = prefetch(make, np.arange(steps * size).reshape(steps, size) % len(plan), 1, config.feed.prefetch)
    begun = time.perf_counter(), time.process_time()
    epoch.train_epoch(learner, feed, steps * size, config, 1, device, lambda *_: None)
    return steps * size / (time.perf_counter() - begun[0]), steps * size / (time.process_time() - begun[1])


@contextlib.contextmanager
def busy(table: pd.DataFrame, volumes: Path) -> Iterator[None]:
    """Keep another core busy with what feeding does most of: decompressing volumes."""
    process = multiprocessing.get_context("spawn").Process(target=_decompress, args=(from_table(table[:16], volumes),))
    process.start()
    time.sleep(5)  # it imports first
    try:
        yield
    finally:
        process.terminate()
        process.join()


def _decompress(cases: Sequence[Case]) -> None:
    for case in itertools.cycle(cases):
        store.read_volume(case.path, masks=False)


def bare_step(config: Config, cases: tuple[Case, ...], volumes: Path, steps: int = 100) -> tuple[float, float]:
    """Return the patches/s, on the clock and by CPU time, of steps on batches that lie in memory, ready made."""
    device = torch.device("cpu")
    learner = engine._start(config, cases, 0, device, lambda network: network, None)
    plan = engine._plan(cases, config, 0, 0, ())
    cache = open_cache(volumes, config.feed)
    made = []
    for step in np.arange(8 * config.optim.batch_size).reshape(8, -1) % len(plan):
        batch = cut(cases, plan, step, config.patch.size, cache.patch, masks=objective.needs_masks(config, cases))
        batch, changes = augment.prepare(batch, augment.draw(config.augment, (0, 0, 0), step))
        made.append([epoch.examples(batch, changes, config, learner.network)])
    epoch.train_epoch(learner, iter(made), 8 * config.optim.batch_size, config, 1, device, lambda *_: None)
    begun = time.perf_counter(), time.process_time()
    feed = (made[number % 8] for number in range(steps))
    patches = steps * config.optim.batch_size
    epoch.train_epoch(learner, feed, patches, config, 1, device, lambda *_: None)
    return patches / (time.perf_counter() - begun[0]), patches / (time.process_time() - begun[1])


if __name__ == "__main__":
    sys.exit(main())
