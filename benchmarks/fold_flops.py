"""How much of a fold's arithmetic is training, and how much validation, at the size of the real data?

    python benchmarks/fold_flops.py [--series 4348] [--folds 5] [--epochs 30]

Counts the floating-point operations of every preset's network by `torch.utils.flop_counter`, on tensors that hold
nothing: three forward passes for a training step, one for a window of validation. "Before" validates all held-out
series in full after every epoch, as this project did until 2026-11; "now" does what the preset's settings say. Windows
over air, which are not asked, count here.
"""

import argparse

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from aneurysm_ray import overrides
from aneurysm_ray.config import Config
from aneurysm_ray.learning import models, validation, windows

SHAPE = (200, 400, 320)
"""Voxels of a series at the real size."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=4348)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    held_out = options.series // options.folds
    print(
        "| preset | GFLOP a patch | windows, full / quick | training PFLOP "
        "| validation before | now | training's share before | now |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name in ("v1", "v2", "v3", "v4", "v5"):
        config = overrides.build(overrides.preset(name), {"optim.epochs": options.epochs})
        patches = config.sampler.patches_per_volume * (options.series - held_out) * options.epochs
        training = 3 * patches * flops(config, config.patch.size)
        full, quick = of_series(config), of_series(validation.quick(config))
        before = full[1] * held_out * options.epochs
        some = min(config.validation.series or held_out, held_out)
        now = sum(
            full[1] * held_out if validation.in_full(config, epoch) else quick[1] * some
            for epoch in range(options.epochs)
            if validation.due(config, epoch)
        )
        print(
            f"| {name} | {flops(config, config.patch.size) / 1e9:.1f} | {full[0]} / {quick[0]} | {training / 1e15:.2f} "
            f"| {before / 1e15:.2f} | {now / 1e15:.2f} "
            f"| {training / (training + before):.2f} | {training / (training + now):.2f} |"
        )


def of_series(config: Config) -> tuple[int, float]:
    """Return the windows in which a series is scored, and the operations that takes."""
    with FakeTensorMode():
        network = models.build(config.model)
    factor = 1 if network.pooled else config.inference.window
    overlap = config.inference.overlap
    size = windows.size(SHAPE, config.patch.size, factor, network.stride, overlap)
    layout = windows.layout(SHAPE, size, overlap, network.stride, pooled=network.pooled)
    count = len(layout.all_starts()) * (2 if config.inference.flip else 1)
    return count, count * flops(config, size)


def flops(config: Config, size: tuple[int, int, int]) -> float:
    """Return the operations of one forward pass."""
    with FakeTensorMode(), FlopCounterMode(display=False) as counter, torch.no_grad():
        models.build(config.model)(torch.empty(1, 1, *size))
    return float(counter.get_total_flops())


if __name__ == "__main__":
    main()
