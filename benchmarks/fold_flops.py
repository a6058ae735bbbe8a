"""How much of a fold's arithmetic is training, and how much validation, at the size of the real data?

    python benchmarks/fold_flops.py [--series 4348] [--folds 5] [--epochs 30]

Counts the floating-point operations of every preset's network by `torch.utils.flop_counter`, on tensors that hold
nothing: three forward passes for a training step, one for a window of validation. "Before" validates all held-out
series in full after every epoch, as this project did until 2026-11; "now" does what the preset's settings say. Windows
over air, which are not asked, count here: of a set's they are what `--air` says.

    python benchmarks/fold_flops.py --variants        what v4's share would be with fewer windows
    python benchmarks/fold_flops.py --air VOLUMES     the share of a prepared set's windows that hold zeros only
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from aneurysm_ray import overrides
from aneurysm_ray.config import Config
from aneurysm_ray.data import store
from aneurysm_ray.learning import models, validation, windows
from aneurysm_ray.learning.cases import from_table

SHAPE = (200, 400, 320)
"""Voxels of a series at the real size."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=4348)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--variants", action="store_true", help="v4 with other windows")
    parser.add_argument("--air", type=Path, help="a prepared set")
    options = parser.parse_args()
    if options.air:
        air(options.air)
        return
    print(
        "| preset | GFLOP a patch | windows, full / quick | training PFLOP "
        "| validation before | now | training's share before | now |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    presets: dict[str, dict[str, Any]] = {name: overrides.preset(name) for name in ("v1", "v2", "v3", "v4", "v5")}
    if options.variants:
        presets = {
            f"v4, overlap {overlap:g}{', flips' * flip}": {
                **presets["v4"], "inference.overlap": overlap, "inference.flip": flip,
            }
            for overlap in (0.625, 0.5, 0.375)
            for flip in (True, False)
        }  # fmt: skip
    held_out = options.series // options.folds
    for name, settings in presets.items():
        config = overrides.build(settings, {"optim.epochs": options.epochs})
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


def air(volumes: Path, count: int = 12) -> None:
    """Print how many windows of v4 and v3 over some series of a set are empty, by blocks as `windows.empty` has it."""
    print(
        "| modality | voxels | zeros | v4: windows | empty | v3: windows | empty |\n|---|---|---:|---:|---:|---:|---:|"
    )
    for case in from_table(store.volumes_table(volumes)[:count], volumes):
        voxels = store.read_volume(case.path, masks=False).voxels
        cells = [case.modality, "×".join(map(str, case.shape)), f"{(voxels == 0).mean():.2f}"]
        # A window is 32 mm wide whatever the spacing.
        z, y, x = (max(8, 8 * round(32 / float(mm) / 8)) for mm in case.spacing_mm)
        for name in ("v4", "v3"):
            overlap = overrides.build(overrides.preset(name)).inference.overlap
            starts = windows.layout(case.shape, (z, y, x), overlap, 1, pooled=True).all_starts()
            cells += [str(len(starts)), f"{windows.empty(voxels, starts, (z, y, x)).mean():.3f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


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
