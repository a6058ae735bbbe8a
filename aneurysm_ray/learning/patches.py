"""Patches cut from volumes and put together as batches, and the threads that do it ahead of the training step.

Shapes: B patches, P points (padded), axes (z, y, x).
"""

import concurrent.futures
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aneurysm_ray.learning.cases import Case
from aneurysm_ray.learning.sampler import Plan

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class Batch:
    """Patches with all that their targets are made of; see `targets`."""

    image_BZYX: Tensor
    """uint8, 0-255 over the window, float32 in [0, 1] once changed; zeros where a patch reaches past the end of its
    volume."""
    points_BP3: Tensor
    """float32, voxels of the patch."""
    labels_BP: Tensor
    """int64, location of each point; -1 where there is none."""
    base_BL: Tensor
    """float32, 0 or NaN."""
    cut_B32: Tensor
    """bool, whether the head goes on behind the first and last face along each axis."""
    spacing_B3: Tensor
    """float32, mm."""

    def __len__(self) -> int:
        return len(self.image_BZYX)

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device, without waiting for the copy where the memory is pinned."""
        return Batch(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})

    def pin(self) -> "Batch":
        """Copy into pinned memory, from which a GPU fetches by itself."""
        return Batch(**{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})

    def with_image(self, image: Tensor) -> "Batch":
        """Return the batch with another image."""
        return replace(self, image_BZYX=image)


def cut(
    cases: Sequence[Case],
    plan: Plan,
    chosen: NDArray[np.int64],
    size: tuple[int, int, int],
    voxels: Callable[[Case], NDArray[np.uint8]],
) -> Batch:
    """Cut the chosen patches of a plan from the volumes that `voxels` gives, such as `VolumeCache.voxels`."""
    image = np.zeros((len(chosen), *size), np.uint8)
    most = max((len(cases[plan.case[i]].points) for i in chosen), default=0)
    points = np.zeros((len(chosen), most, 3), np.float32)
    labels = np.full((len(chosen), most), -1, np.int64)
    base = np.empty((len(chosen), len(cases[0].targets)), np.float32)
    cut_faces = np.empty((len(chosen), 3, 2), bool)
    spacing = np.empty((len(chosen), 3), np.float32)
    for b, i in enumerate(chosen):
        case, start = cases[plan.case[i]], plan.start[i]
        z, y, x = (slice(first, first + length) for first, length in zip(start, size, strict=True))
        patch = voxels(case)[z, y, x]
        image[b, : patch.shape[0], : patch.shape[1], : patch.shape[2]] = patch
        count = len(case.points)
        points[b, :count] = case.points - start
        labels[b, :count] = case.point_labels
        base[b] = case.base
        cut_faces[b] = np.stack([start > 0, start + np.array(size) < np.array(case.shape)], 1)
        spacing[b] = case.spacing_mm
    arrays = (image, points, labels, base, cut_faces, spacing)
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
