"""Does an exported graph answer as torch does, in every preset?

    python benchmarks/onnx_presets.py --width 16
    python benchmarks/onnx_presets.py --presets v2,v4 --series ../shared/data/dicom/mra_tof_head_derived_oblique

Builds two networks a preset with weights that answer differently everywhere, writes them as ONNX and as torch's
program, and prints the largest difference in probability from torch over patches of smooth noise and of plain noise,
or over the windows of real series that hold most light.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aneurysm_ray import overrides
from aneurysm_ray.config import Config
from aneurysm_ray.data import reading
from aneurysm_ray.data.window import bright_blood, to_uint8
from aneurysm_ray.labels import LABELS
from aneurysm_ray.learning import export, interchange, models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--width", type=int, default=None, help="Channels of the first stage; the preset's own if none."
    )
    parser.add_argument("--presets", default=",".join(overrides.PRESETS))
    parser.add_argument("--series", type=Path, nargs="*", default=[], help="Series to take windows of, not noise.")
    parser.add_argument("--windows", type=int, default=4, help="Windows of each series.")
    arguments = parser.parse_args()
    print("| preset | network | cells | spread of answers | ONNX | .pt2 |")
    print("|---|---|---|---:|---:|---:|")
    for name in arguments.presets.split(","):
        print(f"| {name} | " + " | ".join(compared(name, arguments)) + " |", flush=True)


def compared(preset: str, arguments: argparse.Namespace) -> list[str]:
    """Return the cells of a preset's row."""
    width = arguments.width
    changes = {"optim.precision": "float32", **({"model.width": width} if width else {})}
    config = overrides.build(overrides.preset(preset), changes)
    torch.manual_seed(0)
    networks = tuple(models.build(config.model).eval().requires_grad_(False) for _ in range(2))
    for network in networks:
        for weights in network.parameters():
            weights.add_(0.05 * weights.std().nan_to_num(0.1) * torch.randn_like(weights))
    count = len(LABELS)
    graph = interchange.Graph(export.TrainedModels(networks, config, np.full(count, 0.5), (None,) * count, "")).eval()
    if arguments.series:
        images = torch.cat([brightest(series, config, arguments.windows) for series in arguments.series])
    else:
        images = torch.cat([interchange._patches(config), torch.rand(1, 1, *config.patch.size)])
    with torch.inference_mode():
        expected = graph(images).numpy()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for writer, ending in ((interchange._write_onnx, "onnx"), (interchange._write_program, "pt2")):
            path = Path(folder) / f"model.{ending}"
            writer(graph, path)
            answer = interchange.onnx_answer(path)(images.numpy()) if ending == "onnx" else of_program(path, images)
            found.append(f"{np.abs(answer - expected).max():.1e}")
    cells = "×".join(map(str, expected.shape[2:]))
    return [
        f"{config.model.name}, {config.model.head}, width {config.model.width}",
        cells,
        f"{expected.std():.4f}",
        *found,
    ]


def brightest(series: Path, config: Config, count: int) -> torch.Tensor:
    """Return (count, 1, z, y, x): windows of a series, side by side, as networks see them; the brightest on average."""
    prepared = reading.read(series, config.volume).prepared
    seen = torch.from_numpy(bright_blood(to_uint8(prepared.voxels, prepared.window), prepared.modality)).float() / 255
    found = seen
    for axis, size in enumerate(config.patch.size):
        found = found.unfold(axis, size, size)
    windows = found.reshape(-1, 1, *config.patch.size)
    return windows[windows.mean((1, 2, 3, 4)).argsort(descending=True)[:count]]


def of_program(path: Path, images: torch.Tensor) -> np.ndarray:
    """Return what torch's exported program answers."""
    again: Any = torch.export.load(path).module()
    return np.asarray(again(images).numpy())


if __name__ == "__main__":
    main()
