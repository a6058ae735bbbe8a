"""The grid of an image in patient space, and the pose of a head in it.

Anatomy is written in head coordinates: mm, x to the left, y to the back, z to the top, the origin at the roof of the
sella. A pose carries it to patient coordinates (LPS), a grid from there to voxels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]

# Directions of (slice, row index, column index) in patient space for the three planes, as scanners write them.
_AXES = {
    "axial": ((0, 0, 1), (0, 1, 0), (1, 0, 0)),
    "coronal": ((0, 1, 0), (0, 0, -1), (1, 0, 0)),
    "sagittal": ((-1, 0, 0), (0, 0, -1), (0, 1, 0)),
}


@dataclass(frozen=True, eq=False)
class Pose:
    """A similarity from head to patient coordinates."""

    matrix: Array
    """(3, 3): rotation times size."""
    shift_mm: Array

    def to_patient(self, points: Array) -> Array:
        """Carry (..., 3) head coordinates to patient mm."""
        return points @ self.matrix.T + self.shift_mm

    @property
    def size(self) -> float:
        """Size of this head against the standard one."""
        return float(np.cbrt(np.linalg.det(self.matrix)))


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular grid with orthogonal axes."""

    shape: tuple[int, int, int]
    """(z, y, x) in voxels."""
    affine: Array
    """(4, 4): voxel index (z, y, x, 1) to patient (x, y, z, 1) in mm."""

    @property
    def spacing_mm(self) -> Array:
        """(3,): distance between voxel centres along (z, y, x)."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    def to_local(self, points_mm: Array) -> Array:
        """Carry (..., 3) patient points to (z, y, x) mm along the grid's own axes, from the centre of voxel 0."""
        return np.asarray((points_mm - self.affine[:3, 3]) @ self.affine[:3, :3] / self.spacing_mm)

    def to_index(self, points_mm: Array) -> Array:
        """Carry (..., 3) patient points to fractional voxel indices (z, y, x)."""
        return self.to_local(points_mm) / self.spacing_mm

    def with_thinner_slices(self, parts: int) -> "Grid":
        """Return the grid with every slice cut into `parts` slices."""
        affine = self.affine.copy()
        affine[:3, 0] /= parts
        affine[:3, 3] -= affine[:3, 0] * (parts - 1) / 2
        z, y, x = self.shape
        return Grid((z * parts, y, x), affine)


def make_grid(plane: str, centre_mm: Array, extent_mm: Array, spacing_mm: Array, tilt_degrees: Array) -> Grid:
    """Lay a grid around a patient point.

    `extent_mm` and `spacing_mm` are (slice, row, column); the tilt turns the planes about patient x, y and z.
    """
    axes = np.array(_AXES[plane], float) @ Rotation.from_euler("xyz", tilt_degrees, degrees=True).as_matrix().T
    count = np.maximum(np.round(extent_mm / spacing_mm).astype(int), 1)
    affine = np.eye(4)
    affine[:3, :3] = axes.T * spacing_mm
    affine[:3, 3] = centre_mm - affine[:3, :3] @ ((count - 1) / 2)
    return Grid((int(count[0]), int(count[1]), int(count[2])), affine)


def draw_pose(rng: np.random.Generator) -> Pose:
    """Draw a head's size, the way it lies and where."""
    rotation = Rotation.from_euler("xyz", rng.normal(0, (4, 2, 2.5)), degrees=True).as_matrix()
    return Pose(rotation * rng.uniform(0.94, 1.06), rng.normal(0, (6, 8, 20)))
