"""Where the slices of a series lie in space: from a patient position to the pixel of a source file.

A `SourceSlices` is a `Volume` without its voxels, small enough to travel between processes with a prepared volume.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.data.volume import Volume


@dataclass(frozen=True)
class SourcePixel:
    """A place in a source file."""

    sop_uid: str
    frame: int
    """Index from 0; 0 in a file of one frame."""
    row: float
    column: float
    """Indices from 0 to pixel centres, as in the competition's tables: column is their x, row their y."""
    distance_mm: float
    """Distance of the patient position from the plane of this slice."""


@dataclass(frozen=True, eq=False)
class SourceSlices:
    """The grid of every slice of a series, in patient coordinates (x, y, z) in mm, LPS."""

    origins_mm: NDArray[np.float64]
    """(Z, 3): centre of pixel (0, 0) of each slice; slices may be uneven or stepped by a gantry tilt."""
    row_mm: NDArray[np.float64]
    """(3,): step from one row to the next."""
    column_mm: NDArray[np.float64]
    """(3,): step from one column to the next."""
    rows: int
    columns: int
    instances: tuple[tuple[str, int], ...]
    """(SOP Instance UID, frame index from 0) of each slice."""

    def pixel(self, position_mm: NDArray[np.float64]) -> SourcePixel:
        """Return the pixel nearest to a patient position (x, y, z) in mm, in the slice whose plane is nearest.

        Row and column are not clipped: a position beside the images has indices outside them.
        """
        normal = np.cross(self.row_mm, self.column_mm)
        normal /= np.linalg.norm(normal)
        offsets = position_mm - self.origins_mm
        distances = np.abs(offsets @ normal)
        nearest = int(np.argmin(distances))
        # Least squares, since rounded direction cosines are not quite perpendicular.
        steps = np.stack([self.row_mm, self.column_mm], axis=1)
        row, column = np.linalg.lstsq(steps, offsets[nearest], rcond=None)[0]
        sop_uid, frame = self.instances[nearest]
        return SourcePixel(sop_uid, frame, float(row), float(column), float(distances[nearest]))


def source_slices(volume: Volume) -> SourceSlices:
    """Return the slice grid of a volume as it was read, before any reorientation."""
    return SourceSlices(
        origins_mm=volume.origins_mm,
        row_mm=volume.affine[:3, 1].copy(),
        column_mm=volume.affine[:3, 2].copy(),
        rows=volume.voxels.shape[1],
        columns=volume.voxels.shape[2],
        instances=volume.instances,
    )
