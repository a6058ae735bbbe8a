"""Patches cut from volumes and put together as batches, and the threads that do it ahead of the training step.

Shapes: B patches, P points (padded), axes (z, y, x).
"""

import concurrent.futures
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aneurysm_ray.data.masks import UNKNOWN
from aneurysm_ray.data.window import bright_blood
from aneurysm_ray.learning.cache import Patch
from aneurysm_ray.learning.cases import Case
from aneurysm_ray.learning.sampler import Plan

ALIGNED = 16
"""Tensors that share memory begin at multiples of so many bytes."""

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class Batch:
    """Patches with all that their targets are made of; see `targets`."""

    image_BZYX: Tensor
    """uint8, 0-255 over the window (`bright_blood`), float32 in [0, 1] once changed; zeros where a patch reaches past
    the end of its volume."""
    points_BP3: Tensor
    """float32, voxels of the patch."""
    labels_BP: Tensor
    """int64, location of each point; -1 where there is none."""
    radii_mm_BP: Tensor
    """float32, radius of each point's aneurysm; NaN where it is not known."""
    base_BL: Tensor
    """float32, 0 or NaN."""
    cut_B32: Tensor
    """bool, whether the head goes on behind the first and last face along each axis."""
    spacing_B3: Tensor
    """float32, mm."""
    kind_B: Tensor
    """int64, index into `sampler.KINDS`."""
    vessels_BZYX: Tensor | None = None
    """uint8, class of the vessel in each voxel, 0 for none, 255 where it is not known: in series without a mask, past
    the end of a volume, and where a move brought in what no mask shows. None where no network asked for masks."""
    domes_BZYX: Tensor | None = None
    """uint8, 1 inside the dome of an aneurysm, 0 outside, 255 where it is not known; None likewise."""

    def __len__(self) -> int:
        return len(self.image_BZYX)


@dataclass(frozen=True, eq=False)
class Packed:
    """Tensors as one tensor of bytes."""

    bytes_N: Tensor
    layout: tuple[tuple[str, torch.dtype, tuple[int, ...], int], ...]
    """Name, type, shape and first byte of each."""

    def to(self, device: torch.device) -> dict[str, Tensor]:
        """Copy to a device in one go, without waiting where the memory is pinned; return the tensors by name."""
        return replace(self, bytes_N=self.bytes_N.to(device, non_blocking=True)).tensors()

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors, which share this one's memory."""
        found = {}
        for name, dtype, shape, offset in self.layout:
            size = math.prod(shape) * dtype.itemsize
            found[name] = self.bytes_N[offset : offset + size].view(dtype).view(shape)
        return found


def pack(tensors: Mapping[str, Tensor], *, pin: bool) -> Packed:
    """Copy tensors into one, in pinned memory if asked."""
    layout, offset = [], 0
    for name, tensor in tensors.items():
        layout.append((name, tensor.dtype, tuple(tensor.shape), offset))
        offset = -(-(offset + tensor.nbytes) // ALIGNED) * ALIGNED
    packed = Packed(torch.zeros(offset, dtype=torch.uint8, pin_memory=pin), tuple(layout))
    for name, view in packed.tensors().items():
        view.copy_(tensors[name])
    return packed


class Door(Protocol):
    """What gives parts of volumes, such as `VolumeCache.patch`."""

    def __call__(
        self, case: Case, start: NDArray[np.int64], size: tuple[int, int, int], *, masks: bool = False
    ) -> Patch: ...


def no_voxels(case: Case, start: NDArray[np.int64], size: tuple[int, int, int], *, masks: bool = False) -> Patch:
    """Give none, to whoever needs a patch's points alone."""
    return Patch(np.zeros((0, 0, 0), np.uint8))


def cut(
    cases: Sequence[Case],
    plan: Plan,
    chosen: NDArray[np.int64],
    size: tuple[int, int, int],
    patch_of: Door,
    *,
    masks: bool = False,
) -> Batch:
    """Cut the chosen patches of a plan, with masks of vessels and domes if asked."""
    image = np.zeros((len(chosen), *size), np.uint8)
    shown = {name: np.full(image.shape, UNKNOWN, np.uint8) for name in ("vessels", "domes") if masks}
    most = max((len(cases[plan.case[i]].points) for i in chosen), default=0)
    points = np.zeros((len(chosen), most, 3), np.float32)
    labels = np.full((len(chosen), most), -1, np.int64)
    radii = np.full((len(chosen), most), np.nan, np.float32)
    base = np.empty((len(chosen), len(cases[0].targets)), np.float32)
    cut_faces = np.empty((len(chosen), 3, 2), bool)
    spacing = np.empty((len(chosen), 3), np.float32)
    kind = plan.kind[chosen]
    for b, i in enumerate(chosen):
        case, start = cases[plan.case[i]], plan.start[i]
        patch = patch_of(case, start, size, masks=masks)
        z, y, x = patch.voxels.shape
        image[b, :z, :y, :x] = bright_blood(patch.voxels, case.modality)
        for name, array in shown.items():
            if (mask := getattr(patch, name)) is not None:
                array[b, :z, :y, :x] = mask
        count = len(case.points)
        points[b, :count] = case.points - start
        labels[b, :count] = case.point_labels
        radii[b, :count] = case.point_radii_mm
        base[b] = case.base
        cut_faces[b] = np.stack([start > 0, start + np.array(size) < np.array(case.shape)], 1)
        spacing[b] = case.spacing_mm
    arrays = (image, points, labels, radii, base, cut_faces, spacing, kind, *shown.values())
    return Batch(*(torch.from_numpy(array) for array in arrays))


def prefetch(make: Callable[[Item], Made], items: Iterable[Item], threads: int, ahead: int) -> Iterator[Made]:
    """Yield `make(item)` in order, made by threads at most `ahead` items in advance; with 0 threads made on demand.

    An exception of `make` is raised where its item was due.
    """
    if threads == 0:
        yield from map(make, items)
        return
    with concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="feed") as pool:
        waiting: deque[concurrent.futures.Future[Made]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
