"""A run's models as a MONAI Bundle, which MONAI's own runner and MONAI Label, for 3D Slicer, take.

A folder: `models/model.ts`, TorchScript that needs nothing of this package, `configs/inference.json`, which says with
MONAI's transforms what comes before and after it, and `configs/metadata.json` (MONAI Bundle Specification). Transforms
of MONAI find no head and no window of MR: the whole scan is searched, without atlas, and `low` and `high` of MR are the
caller's to give.
"""

import importlib.metadata
import io
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aneurysm_ray import __version__, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.labels import LOCATIONS, PRESENT_INDEX

MODEL, INFERENCE, METADATA = "models/model.ts", "configs/inference.json", "configs/metadata.json"
CELL = 4
"""Voxels between answers where a network has one a patch; those of a grid network lie at its own stride."""
THRESHOLD = 0.5
"""Probability of an aneurysm from which a cell is of the mask, unless the caller gives another."""
CHANNELS = ("background", *LOCATIONS)
"""What a bundle's network answers, and the values of its mask: MONAI has the background first."""


class Network(nn.Module):
    """Patches (B, 1, z, y, x) in [0, 1] to probabilities (B, 14, cz, cy, cx) of CHANNELS.

    A cell is `step` voxels wide, so that the answers of sliding windows join to a map of the volume.
    """

    def __init__(self, graph: nn.Module, config: Config, step: int) -> None:
        super().__init__()
        self.graph, self.config, self.step = graph, config, step

    def forward(self, image: Tensor) -> Tensor:
        found = self.graph(image)
        present = found[:, PRESENT_INDEX : PRESENT_INDEX + 1]
        ordered = torch.cat([1 - present, found[:, :PRESENT_INDEX]], 1)
        cells = [length // self.step for length in image.shape[2:]]
        return nn.functional.interpolate(ordered, size=cells, mode="nearest")


def script(network: Network, example: Tensor) -> Any:
    """Return a network as TorchScript, for patches like the example."""
    with warnings.catch_warnings(), torch.inference_mode():
        # Tracing warns of each branch that it takes for good; torch wants its exported programs in the place of
        # TorchScript, which is what MONAI Label takes.
        warnings.simplefilter("ignore")
        return torch.jit.trace(network, (example,), check_trace=False)  # type: ignore[no-untyped-call]


def write(network: Network, traced: Any, out: Path) -> None:
    """Write a network and its `script` as a bundle, the metadata last. Raises OutputError."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(traced, buffer)
    with rundir.atomic(out / MODEL, "wb") as file:
        file.write(buffer.getvalue())
    for name, told in ((INFERENCE, _inference(network.config, network.step)), (METADATA, _metadata(network.config))):
        with rundir.atomic(out / name) as text:
            text.write(json.dumps(told, indent=2) + "\n")


def step_of(config: Config, network: Any) -> int:
    """Return the voxels from one answer of a network to the next."""
    return math.gcd(CELL, *config.patch.size) if network.pooled else int(network.stride)


def _inference(config: Config, step: int) -> dict[str, Any]:
    """Return what MONAI does before and after the network; `@name` is another entry, `$` begins Python."""
    mask = (
        "$lambda found: torch.where(found[:1] <= 1 - @threshold, found[1:].argmax(0, keepdim=True) + 1, 0)"
        f".float().repeat_interleave({step}, 1).repeat_interleave({step}, 2).repeat_interleave({step}, 3)"
    )
    before = [
        {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "SPL"},  # z to the head, y to the back, x to the left
        {"_target_": "Spacingd", "keys": "image", "pixdim": list(config.volume.spacing_mm), "mode": "bilinear"},
        {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": "@low", "a_max": "@high"}
        | {"b_min": 0.0, "b_max": 1.0, "clip": True},
        {"_target_": "DivisiblePadd", "keys": "image", "k": step, "method": "end"},
    ]
    after = [
        {"_target_": "Lambdad", "keys": "pred", "func": mask},
        {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"}
        | {"nearest_interp": True, "to_tensor": True},
        {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "aneurysms"}
        | {"output_dtype": "$numpy.uint8", "resample": False},
    ]
    low, high = config.volume.window_hu
    return {
        "imports": ["$import numpy", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": ".",
        "image": "$@dataset_dir + '/image.nii.gz'",
        "output_dir": "$@bundle_root + '/eval'",
        "low": low,
        "high": high,
        "threshold": THRESHOLD,
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": f"$torch.jit.load(@bundle_root + '/{MODEL}', map_location=@device).eval()",
        "preprocessing": {"_target_": "Compose", "transforms": before},
        "dataset": {"_target_": "Dataset", "data": "$[{'image': @image}]", "transform": "@preprocessing"},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(config.patch.size),
            "sw_batch_size": config.inference.batch_size,
            "overlap": config.inference.overlap,
            "mode": "gaussian",
        },
        "postprocessing": {"_target_": "Compose", "transforms": after},
        "predict": "$lambda sample: {**sample, 'pred': @inferer(sample['image'][None].to(@device), @network_def)[0]}",
        "run": ["$torch.set_grad_enabled(False)", "$@postprocessing(@predict(@dataset[0]))"],
    }


def _metadata(config: Config) -> dict[str, Any]:
    image = {
        "type": "image",
        "format": "hounsfield",
        "modality": "CTA",
        "num_channels": 1,
        "spatial_shape": list(config.patch.size),
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": True,
        "channel_def": {"0": "image"},
    }
    answer = {
        "type": "probabilities",
        "format": "segmentation",
        "num_channels": len(CHANNELS),
        "spatial_shape": list(config.patch.size),
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": True,
        "channel_def": {str(index): name for index, name in enumerate(CHANNELS)},
    }
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
        "meta_schema_20240725.json",
        "version": __version__,
        "changelog": {__version__: "exported by aneurysm-ray"},
        "monai_version": importlib.metadata.version("monai"),
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"nibabel": "5"},
        "name": "Intracranial aneurysms",
        "task": "Detection of intracranial aneurysms",
        "description": "Networks of aneurysm_ray: where in a head an aneurysm is, and of which artery.",
        "authors": "aneurysm_ray",
        "copyright": "",
        "intended_use": "Research only: not a medical device, nothing here is validated for diagnosis.",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": answer}},
    }
