"""What does a GPU do here? One script for the eight minutes that one is at hand.

    python benchmarks/gpu.py [--device cuda] [--steps 40] [--presets v1,v2,v3,v4,v5]

Runs the GPU tests; then, for every preset at its default size, the step on patches that are on the device already, the
whole training loop `learning.engine.fit` on volumes in the cache, what share of the device's measured peak the step
reaches, and how often it makes the host wait (`torch.cuda.set_sync_debug_mode`); then, for v2, MONAI's loops beside it
(`train_throughput.py`). Without a GPU it is a rehearsal: small networks, few steps, numbers that mean nothing.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from aneurysm_ray import overrides
from aneurysm_ray.config import Config
from aneurysm_ray.data import store
from aneurysm_ray.labels import LABELS, LOCATIONS
from aneurysm_ray.learning import augment, engine, epoch, objective
from aneurysm_ray.learning.cache import open_cache
from aneurysm_ray.learning.cases import from_table
from aneurysm_ray.learning.patches import cut

REHEARSAL: dict[str, Any] = {"model.name": "small3d", "model.width": 4, "patch.size": (16, 16, 16)}
SHAPE = (96, 128, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--presets", default="v1,v2,v3,v4,v5")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", choices=["tests", "steps", "monai"], help="one of the three parts")
    options = parser.parse_args()
    device = torch.device(options.device)
    here = Path(__file__).parent
    print(f"{torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU: a rehearsal'}\n", flush=True)
    if options.only in (None, "tests") and device.type == "cuda":
        subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(here.parent / "tests")], check=False)
    if options.only in (None, "steps"):
        steps(options, device)
    if options.only in (None, "monai") and device.type == "cuda":
        words = ["--device", options.device, "--rounds", "3", "--loaders", "8", f"optim.batch_size={options.batch}"]
        subprocess.run([sys.executable, str(here / "train_throughput.py"), *words], check=True)


def steps(options: argparse.Namespace, device: torch.device) -> None:
    """Print a row for each preset."""
    print("| preset | bare step, patches/s | whole loop | ratio | TFLOP/s | of the peak | waits a step |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as work:
        volumes = Path(work) / "volumes"
        make_set(volumes)
        for name in options.presets.split(","):
            config = overrides.build(
                overrides.preset(name),
                {
                    "optim.batch_size": options.batch,
                    "optim.epochs": 2,
                    "sampler.patches_per_volume": max(1, options.steps * options.batch // 8),
                    "sampler.hard_negative_fraction": 0.0,
                    "feed.cache_dir": f"{work}/cache",
                    "feed.threads": 12 if device.type == "cuda" else 1,
                    "feed.prefetch": 16,
                    "loss.vessel_weight": 0.0,
                },
                REHEARSAL if device.type == "cpu" else {},
            )
            print(row(name, config, volumes, options, device), flush=True)


def make_set(folder: Path, count: int = 10) -> None:
    """Write prepared volumes of noise, half of them with a point."""
    rng = np.random.default_rng(0)
    config = Config()
    rows = []
    for index in range(count):
        targets = np.zeros(len(LABELS), np.float32)
        targets[[index % 13, -1]] = index % 2
        centre = rng.uniform(0.4, 0.6, 3) * SHAPE
        prepared = store.PreparedVolume(
            series_uid=f"1.2.{index}", patient=f"p{index}", modality="CTA", plane="axial",
            voxels=rng.integers(0, 255, SHAPE).astype(np.uint8),
            affine=np.diag([0.5, 0.5, 0.8, 1.0])[[2, 1, 0, 3]], targets=targets,
            points=(store.Point(*centre, LOCATIONS[index % 13]),) if index % 2 else (), quality=(), source_digest="",
        )  # fmt: skip
        path = store.write_volume(folder, prepared, overrides.volume_identity(config))
        rows.append(store.table_row(prepared, path.stat().st_size))
    store.write_table(folder, rows)


def row(name: str, config: Config, volumes: Path, options: argparse.Namespace, device: torch.device) -> str:
    """Measure a preset."""
    table = store.volumes_table(volumes)
    cases = from_table(table[2:], volumes)
    learner = engine._start(config, cases, 0, device, lambda network: network, None)
    plan = engine._plan(cases, config, 0, 0, ())
    cache = open_cache(volumes, config.feed)
    masks = objective.needs_masks(config, cases)
    packed: list[epoch.MicroBatches] = []
    ready: list[epoch.MicroBatches] = []
    for step in np.arange(2 * options.batch).reshape(2, -1) % len(plan):
        batch = cut(cases, plan, step, config.patch.size, cache.patch, masks=masks)
        batch, changes = augment.prepare(batch, augment.draw(config.augment, (0, 0, 0), step))
        one = augment.packed(batch, changes, pin=device.type == "cuda")
        packed.append([one])
        ready.append([epoch.examples(*one.to(device), config, learner.network)])

    def steps(made: list[epoch.MicroBatches], count: int) -> float:
        begun = time.perf_counter()
        feed = (made[number % 2] for number in range(count))
        epoch.train_epoch(learner, feed, count * options.batch, config, 1, device, lambda *_: None)
        return count * options.batch / (time.perf_counter() - begun)

    steps(ready, 5)
    speed = steps(ready, options.steps)
    with FlopCounterMode(display=False) as counter:
        learner.network(torch.rand(options.batch, 1, *config.patch.size, device=device))
    rate = 3 * counter.get_total_flops() / options.batch * speed
    waits = float("nan")
    if device.type == "cuda":
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            steps(packed, 10)
            torch.cuda.set_sync_debug_mode("default")
        # The last one fetches the losses of the epoch.
        waits = (sum("synchroniz" in str(warning.message) for warning in seen) - 1) / 10
    results = list(engine.fit(config, volumes, table[2:], table[:2], device=device))
    whole = results[-1].metrics["patches_per_s"]
    return (
        f"| {name} | {speed:.0f} | {whole:.0f} | {whole / speed:.2f} | {rate / 1e12:.2f} | {rate / peak(device):.2f} "
        f"| {waits:.1f} |"
    )


def peak(device: torch.device, size: int = 4096) -> float:
    """Return the FLOP/s of a large product in bfloat16."""
    size = size if device.type == "cuda" else 512
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    for _ in range(20):
        a @ a
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 20 * 2 * size**3 / (time.perf_counter() - begun)


if __name__ == "__main__":
    main()
