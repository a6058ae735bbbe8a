"""What does bfloat16 save on a CPU, and what does it do to gradients?

    python benchmarks/half.py [--rounds 5] [--batch 4]

For every network and preset size: patches/s of one thread for a forward and a backward pass, float32 and bfloat16
(`optim.autocast`) in turns, by CPU time, medians; and the least cosine of any layer's gradient between the two, on one
batch, with weights as they are drawn and after `--settle` steps of training on noise. Networks have a quarter of their
width, as they do when they are tried on CPUs.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from torch import Tensor

from aneurysm_ray import overrides
from aneurysm_ray.config import Config
from aneurysm_ray.learning import models, optim

CASES: dict[str, dict[str, Any]] = {
    "small3d, grid, 32³": {"model.name": "small3d", "model.head": "grid", "patch.size": (32, 32, 32)},
    "small3d, pooled, 32³": {"model.name": "small3d", "patch.size": (32, 32, 32)},
    "resnet3d10, pooled, 32³": {"model.name": "resnet3d10", "patch.size": (32, 32, 32)},
    "resnet3d18, pooled, 40×64×64": {"model.name": "resnet3d18"},
    "resnet3d18, grid, 40×64×64": {"model.name": "resnet3d18", "model.head": "grid"},
    "resnet3d34, pooled, 40×64×64": {"model.name": "resnet3d34"},
    "resnet3d50, pooled, 40×64×64": {"model.name": "resnet3d50"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--settle", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | float32, patches/s | bfloat16 | ratio | worst cosine, drawn | after some steps | layer |")
    print("|---|---:|---:|---:|---:|---:|---|")
    for name, settings in CASES.items():
        print(row(name, overrides.build({"model.width": 16, **settings}), options), flush=True)


def row(name: str, config: Config, options: argparse.Namespace) -> str:
    """Measure a network."""
    torch.manual_seed(0)
    network = models.build(config.model).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    image = torch.rand(options.batch, 1, *config.patch.size).to(memory_format=torch.channels_last_3d)
    drawn = worst(network, image)[0]
    optimizer = optim.adamw(network, config.optim)
    for _ in range(options.settle):
        optimizer.zero_grad()
        step(network, image, "float32")
        optimizer.step()
    cosine, layer = worst(network, image)
    seconds: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for _ in range(options.rounds):
        for precision, taken in seconds.items():
            begun = time.process_time()
            step(network, image, precision)
            taken.append(time.process_time() - begun)
    exact, half = (options.batch / statistics.median(taken) for taken in seconds.values())
    ratio = statistics.median(a / b for a, b in zip(*seconds.values(), strict=True))
    return f"| {name} | {exact:.1f} | {half:.1f} | {ratio:.2f} | {drawn:.4f} | {cosine:.4f} | {layer} |"


def step(network: models.Network, image: Tensor, precision: str) -> None:
    """Add the gradients of a loss of all cells to the network's."""
    with optim.autocast(overrides.build({"optim.precision": precision}).optim, image.device):
        answer = network(image)
    loss = (answer.cells.float() - 1).square().mean()
    if answer.vessels is not None:
        loss = loss + (answer.vessels.float() - 1).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]


def worst(network: models.Network, image: Tensor) -> tuple[float, str]:
    """Return the least cosine between a layer's gradients in the two precisions, and the layer's name."""
    found = []
    for precision in ("float32", "bfloat16"):
        network.zero_grad()
        step(network, image, precision)
        found.append({key: value.grad.flatten().clone() for key, value in network.named_parameters()})  # type: ignore
    network.zero_grad()
    cosines = {key: float(torch.cosine_similarity(value, found[1][key], dim=0)) for key, value in found[0].items()}
    layer = min(cosines, key=lambda key: cosines[key])
    return cosines[layer], layer


if __name__ == "__main__":
    main()
