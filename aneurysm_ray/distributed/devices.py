"""Where a worker computes: on what Ray reserved for it, and on nothing else.

Training, trials and predictions ask here. Where nothing was reserved, a GPU that happens to be visible belongs to
others: Ray 2.60 hides none from a worker that asked for none.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import ray
import torch

from aneurysm_ray.errors import AneurysmRayError

VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
"""What Ray writes the GPUs of a process into, NVIDIA's or AMD's; torch counts from 0 within it."""


@dataclass(frozen=True)
class Place:
    """What a worker may use."""

    device: str
    """cpu, or cuda with its index."""
    threads: int
    """For computing on the CPU."""


def reserved() -> Place:
    """Return what Ray reserved for the task or actor that asks. Raises AneurysmRayError when torch cannot use it."""
    context = ray.get_runtime_context()
    gpus = [str(name) for name in context.get_accelerator_ids().get("GPU", [])]
    cpus = context.get_assigned_resources().get("CPU", 0.0)
    return Place(_device(gpus), max(1, int(cpus)))


def here() -> str:
    """Return the device of a process that asked Ray for nothing: a GPU is its own on a machine of no cluster."""
    if os.environ.get("RAY_ADDRESS"):
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"


def use(place: Place) -> str:
    """Give torch the place's threads; return its device."""
    torch.set_num_threads(place.threads)
    return place.device


def _device(gpus: Sequence[str]) -> str:
    if not gpus:
        return "cpu"
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    visible = next((os.environ[name].split(",") for name in VISIBLE if os.environ.get(name)), None)
    index = visible.index(gpus[0]) if visible and gpus[0] in visible else int(gpus[0]) if gpus[0].isdigit() else usable
    if index >= usable:
        raise AneurysmRayError(
            f"Ray reserved GPU {gpus[0]} here, and torch {torch.__version__} can use {usable} GPUs; install a torch "
            "built for this GPU and its driver, or set resources.gpus_per_worker=0 to compute on the CPU"
        )
    return f"cuda:{index}"
