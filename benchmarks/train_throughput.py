"""How much of the bare step's speed is left when patches are fed, augmented and turned into targets?

    python benchmarks/train_throughput.py [--device cuda] [--steps 20] [--threads 1] [key=value ...]

Runs without Ray. In one process and on one set of random volumes, in turns: the bare step on tensors that are already
on the device; the whole training loop, `learning.engine.fit`; and the same network, loss and optimiser fed by MONAI's
PersistentDataset and CacheDataset with its own random crop, flip, affine, noise and intensity transforms in a
DataLoader. Every turn of a loop stands between two turns of the bare step and is compared with their mean, so that a
machine that becomes slower or faster meanwhile does not decide. Prints a Markdown table of medians over rounds, with
the least and the greatest share, and the achieved share of the device's measured peak. On the CPU one core is left to
feed unless `--threads` says otherwise. Beside shares of time on the clock stand those of this process's CPU time, which
are what one core would show, `taskset -c 1`, and hold while others use it too. With `--masks` volumes have masks of
vessels and domes, which a grid network cuts, changes and learns (`model.head=grid`); `--ours` leaves MONAI's loops out.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import monai.data
import monai.transforms as mt
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from aneurysm_ray import overrides
from aneurysm_ray.config import Config
from aneurysm_ray.data import store
from aneurysm_ray.labels import LABELS, LOCATIONS, PRESENT_INDEX
from aneurysm_ray.learning import engine, losses, models, optim

SHAPE = (128, 160, 128)
DEFAULTS: dict[str, Any] = {
    "model.name": "resnet3d18",
    "patch.size": (48, 48, 48),
    "optim.batch_size": 8,
    "optim.epochs": 2,
    "inference.overlap": 0.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=20, help="steps per turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--volumes", type=int, default=16)
    parser.add_argument("--loaders", type=int, default=2, help="worker processes of MONAI's DataLoader")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=max(1, cores - 1), help="torch's threads on the CPU")
    parser.add_argument("--masks", action="store_true", help="volumes have masks of vessels and domes")
    parser.add_argument("--ours", action="store_true", help="measure this project's loop alone")
    parser.add_argument("settings", nargs="*", help="key=value overrides")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(options.threads)
    folder = Path(tempfile.mkdtemp(prefix="throughput"))
    try:
        _compare(options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _compare(options: argparse.Namespace, folder: Path) -> None:
    device = torch.device(options.device)
    config = overrides.build(
        DEFAULTS,
        {"feed.cache_dir": str(folder / "cache")},
        dict(overrides.parse_override(text) for text in options.settings),
    )
    per_volume = -(-options.steps * config.optim.batch_size // options.volumes)
    config = overrides.build({"sampler.patches_per_volume": per_volume}, base=config)
    _write_set(folder, options.volumes, masks=options.masks)
    step = _bare_step(config, device)
    image, target = (t.to(device) for t in _random_batch(config))

    def alone() -> tuple[float, float]:
        speed, _, cpu_rate = _timed(step, ((image, target) for _ in range(options.steps)), device)
        return speed, cpu_rate

    ways: dict[str, Callable[[], tuple[float, float, float]]] = {
        "aneurysm_ray `fit`": lambda: _fit(config, folder, device)
    }
    if not options.ours:
        persistent = monai.data.PersistentDataset(_items(folder), _transforms(config), cache_dir=folder / "persistent")
        cached = monai.data.CacheDataset(_items(folder), _transforms(config), progress=False)
        ways |= {
            "MONAI PersistentDataset + DataLoader": lambda: _timed(step, _loader(persistent, config, options), device),
            "MONAI CacheDataset + DataLoader": lambda: _timed(step, _loader(cached, config, options), device),
        }
    for way in ways.values():  # fills caches
        way()
    before = alone()
    bare_speeds = [before[0]]
    turns: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            speed, waited, cpu_rate = way()
            after = alone()
            share, cpu_share = (2 * a / (b + c) for a, b, c in zip((speed, cpu_rate), before, after, strict=True))
            turns[name].append((speed, share, cpu_share, waited))
            bare_speeds.append(after[0])
            before = after
    bare = statistics.median(bare_speeds)
    print(f"{config.model.name} {config.model.head}, batch {config.optim.batch_size} of {list(config.patch.size)}, "
          f"{options.steps} steps a turn, {options.rounds} rounds, {_describe(device)}\n")  # fmt: skip
    print("| loop | patches/s | of the bare step | least to greatest | by CPU time | least to greatest | waiting |")
    print("|---|---|---|---|---|---|---|")
    print(f"| bare step, tensors on the device | {bare:.2f} | 1 | | 1 | | |")
    for name, measured in turns.items():
        speeds, *shares, waits = zip(*measured, strict=True)
        told = " | ".join(f"{statistics.median(s):.3f} | {min(s):.3f} to {max(s):.3f}" for s in shares)
        print(f"| {name} | {statistics.median(speeds):.2f} | {told} | {statistics.median(waits):.3f} |")
    with FlopCounterMode(display=False) as counter:
        step(image, target)
    rate = counter.get_total_flops() / len(image) * bare
    peak = _peak(config, device)
    print(f"\nbare step: {rate / 1e9:.1f} GFLOP/s, {rate / peak:.2f} of a large matrix product's {peak / 1e9:.1f}")


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _bare_step(config: Config, device: torch.device) -> Callable[[Tensor, Tensor], None]:
    """Return one optimiser step as `engine` makes it, without feeding, augmentation and targets."""
    network = models.build(config.model).to(device)
    optimizer, average = optim.adamw(network, config.optim), optim.Ema(network, config.optim.ema_decay)
    weights = torch.ones(len(LABELS), device=device)

    def step(image: Tensor, target: Tensor) -> None:
        with optim.autocast(config.optim, device):
            answer = network(image)
        loss = losses.patch_losses(answer.cells.mean((2, 3, 4)), target, config.loss, weights).mean()
        if answer.vessels is not None:
            loss = loss + answer.vessels.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(network, 0)

    return step


def _random_batch(config: Config) -> tuple[Tensor, Tensor]:
    batch = config.optim.batch_size
    return torch.rand(batch, 1, *config.patch.size), (torch.rand(batch, len(LABELS)) < 0.1).float()


def _timed(
    step: Callable[[Tensor, Tensor], None], batches: Iterator[tuple[Tensor, Tensor]], device: torch.device
) -> tuple[float, float, float]:
    """Return patches per second, the share of time spent waiting for a batch, and patches per CPU second."""
    _synchronise(device)
    started, cpu, waited, patches = time.perf_counter(), time.process_time(), 0.0, 0
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        if batch is not None:
            batch = (batch[0].to(device, non_blocking=True), batch[1].to(device, non_blocking=True))
        waited += time.perf_counter() - asked
        if batch is None:
            break
        step(*batch)
        patches += len(batch[0])
    _synchronise(device)
    seconds = time.perf_counter() - started
    return patches / seconds, waited / seconds, patches / (time.process_time() - cpu)


def _fit(config: Config, folder: Path, device: torch.device) -> tuple[float, float, float]:
    """Return the same of the second epoch of a fold, the first one having filled the cache."""
    table, told, ends = store.volumes_table(folder), {}, []
    for result in engine.fit(config, folder, table, table[:0], device=device):
        told = result.metrics
        ends.append(time.process_time())
    patches = -(-len(table) * config.sampler.patches_per_volume // config.optim.batch_size) * config.optim.batch_size
    return told["patches_per_s"], told["data_wait_fraction"], patches / (ends[1] - ends[0])


def _write_set(folder: Path, count: int, *, masks: bool) -> None:
    """Write random volumes as a prepared set and, for MONAI, as arrays with a mask of the point."""
    rng, rows = np.random.default_rng(0), []
    for index in range(count):
        voxels = rng.integers(0, 255, SHAPE, np.uint8)
        place = rng.integers(12, np.array(SHAPE) - 12)
        targets = np.zeros(len(LABELS), np.float32)
        targets[[index % 13, PRESENT_INDEX]] = 1
        prepared = store.PreparedVolume(
            series_uid=f"1.{index}",
            patient=f"p{index}",
            modality="CTA",
            plane="axial",
            voxels=voxels,
            affine=np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], np.float64),
            targets=targets,
            points=(store.Point(*(float(n) for n in place), LOCATIONS[index % 13]),),
            quality=(),
            source_digest="",
            vessels=(voxels > 200).astype(np.uint8) if masks else None,
            domes=_ball(place).astype(np.uint8) if masks else None,
        )
        path = store.write_volume(folder, prepared, overrides.volume_identity(Config()))
        rows.append(store.table_row(prepared, path.stat().st_size))
        mask = np.zeros(SHAPE, np.uint8)
        mask[tuple(slice(n - 2, n + 3) for n in place)] = 1
        np.save(folder / f"image{index}.npy", voxels)
        np.save(folder / f"mask{index}.npy", mask)
    store.write_table(folder, rows)


def _ball(place: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.norm(np.indices(SHAPE).T - place, axis=-1).T < 5)


def _items(folder: Path) -> list[dict[str, Any]]:
    return [
        {"image": str(path), "mask": str(path.with_name(path.name.replace("image", "mask"))), "label": i % 13}
        for i, path in enumerate(sorted(folder.glob("image*.npy")))
    ]


def _transforms(config: Config) -> mt.Compose:
    """Return MONAI's own transforms for what `learning.augment` and `learning.sampler` do."""
    change, both = config.augment, ["image", "mask"]
    turn = float(np.deg2rad(change.rotate_deg))
    return mt.Compose(
        [
            mt.LoadImaged(both, reader="NumpyReader"),
            mt.EnsureChannelFirstd(both, channel_dim="no_channel"),
            mt.ScaleIntensityRanged("image", 0, 255, 0, 1),
            mt.RandCropByPosNegLabeld(
                both, "mask", config.patch.size, pos=config.sampler.positive_fraction,
                neg=1 - config.sampler.positive_fraction, num_samples=config.sampler.patches_per_volume,
            ),
            mt.RandFlipd(both, change.flip, 2),
            mt.RandAffined(
                both, prob=change.affine_probability, rotate_range=[turn] * 3, scale_range=[change.scale] * 3,
                mode=["bilinear", "nearest"], padding_mode="zeros",
            ),
            mt.RandScaleIntensityd("image", change.contrast, prob=1.0),
            mt.RandShiftIntensityd("image", change.brightness, prob=1.0),
            mt.RandGaussianNoised("image", prob=1.0, std=change.noise),
        ]
    )  # fmt: skip


def _collate(samples: list[Any]) -> tuple[Tensor, Tensor]:
    patches = [patch for sample in samples for patch in sample]
    target = torch.zeros(len(patches), len(LABELS))
    for i, patch in enumerate(patches):
        if patch["mask"].any():
            target[i, [patch["label"], PRESENT_INDEX]] = 1
    return torch.stack([patch["image"].as_tensor() for patch in patches]).float(), target


def _loader(dataset: Any, config: Config, options: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of the training loop's size: a volume's patches come together and are dealt out."""
    loader = DataLoader(dataset, batch_size=1, shuffle=True, num_workers=options.loaders, collate_fn=_collate)
    size = config.optim.batch_size
    images, targets = torch.empty(0), torch.empty(0)
    for image, target in loader:
        images, targets = (
            torch.cat(pair) if len(pair[0]) else pair[1] for pair in ((images, image), (targets, target))
        )
        while len(images) >= size:
            yield images[:size], targets[:size]
            images, targets = images[size:], targets[size:]


def _peak(config: Config, device: torch.device) -> float:
    """Return the FLOP/s of a large matrix product in the arithmetic of the step, the best of five."""
    side = 8192 if device.type == "cuda" else 1536
    with optim.autocast(config.optim, device):
        dtype = (torch.ones(2, 2, device=device) @ torch.ones(2, 2, device=device)).dtype
    a = torch.randn(side, side, device=device, dtype=dtype)
    best = 0.0
    for _ in range(6):
        _synchronise(device)
        started = time.perf_counter()
        a @ a
        _synchronise(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best


if __name__ == "__main__":
    main()
