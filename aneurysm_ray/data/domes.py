"""From a mask of aneurysms to points: one for each connected piece, with its size.

Each value of a mask is a kind of its own: pieces of two values that touch are two. Values that are ignored, such as
treated aneurysms, become places that are neither positive nor negative.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import pdist

CRUMB_VOXELS, CRUMB_MM3 = 3, 0.5
"""A piece smaller than both is left out where the value has larger ones: a slip of the brush."""
MAX_PIECES = 200
"""More than any head has: such a mask is of something else."""


@dataclass(frozen=True)
class Dome:
    """A connected piece of a mask of aneurysms."""

    centre_mm: tuple[float, float, float]
    """Patient (x, y, z), LPS: the centroid, or the voxel of the piece that is nearest to it, where that is outside."""
    equivalent_mm: float
    """Diameter of the ball of the same volume."""
    largest_mm: float
    """Distance between the two centres of its voxels farthest from each other, and a voxel's width."""
    value: int
    """In the mask."""
    ignored: bool
    """Neither positive nor negative."""

    @property
    def radius_mm(self) -> float:
        """Of the ball of the same volume."""
        return self.equivalent_mm / 2


def domes_of(labels: NDArray[Any], affine: NDArray[np.float64], ignored: Collection[int] = ()) -> tuple[Dome, ...]:
    """Return the pieces of a mask, of each value but 0, larger ones first.

    `labels` are on the mask's own three axes and `affine` (4, 4) maps an index on them to patient LPS in mm. Voxels
    that share a corner are connected. Raises ValueError where there are more pieces than a head can have aneurysms.
    """
    found: list[Dome] = []
    step_mm = np.linalg.norm(affine[:3, :3], axis=0)
    voxel_mm3 = abs(float(np.linalg.det(affine[:3, :3])))
    # Most of a mask is empty: looking at the box around what is not saves most of the work.
    (box,) = scipy.ndimage.find_objects((labels != 0).astype(np.uint8)) or (None,)
    if box is None:
        return ()
    corner = np.array([side.start for side in box])
    inside = labels[box]
    for value in np.unique(inside[inside != 0]):
        pieces, count = scipy.ndimage.label(inside == value, np.ones((3, 3, 3)))
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
        whole = ~((sizes < CRUMB_VOXELS) & (sizes * voxel_mm3 < CRUMB_MM3))
        kept = np.flatnonzero(whole if whole.any() else np.ones(count, bool))
        if len(kept) + len(found) > MAX_PIECES:
            raise ValueError(f"it has {count} separate pieces of the value {value}, more than a head has aneurysms")
        where = scipy.ndimage.find_objects(pieces)
        for index in kept:
            start = corner + [side.start for side in where[index]]
            voxels = np.argwhere(pieces[where[index]] == index + 1) + start
            mm = voxels @ affine[:3, :3].T + affine[:3, 3]
            equivalent = 2 * (len(voxels) * voxel_mm3 * 3 / (4 * np.pi)) ** (1 / 3)
            x, y, z = _centre(voxels, mm)
            found.append(
                Dome(
                    (float(x), float(y), float(z)),
                    float(equivalent),
                    _largest(mm) + float(step_mm.mean()),
                    int(value),
                    int(value) in ignored,
                )
            )
    return tuple(sorted(found, key=lambda dome: -dome.equivalent_mm))


def _centre(voxels: NDArray[np.intp], mm: NDArray[np.float64]) -> NDArray[np.float64]:
    middle = voxels.mean(axis=0)
    if (np.rint(middle) == voxels).all(axis=1).any():
        return np.asarray(mm.mean(axis=0))
    return np.asarray(mm[np.linalg.norm(mm - mm.mean(axis=0), axis=1).argmin()])


def _largest(mm: NDArray[np.float64]) -> float:
    """Return the largest distance between any two of some places, which two corners of their hull have."""
    if len(mm) > 50:
        try:
            mm = mm[ConvexHull(mm).vertices]
        except QhullError:  # they lie in one plane
            mm = mm[:: max(1, len(mm) // 2000)]
    return float(pdist(mm).max(initial=0.0))
