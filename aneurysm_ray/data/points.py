"""Points and pixels: from a click on an image to patient space, and from there to the pixel of a source file.

A `SourceSlices` is a `Volume` without its voxels, small enough to travel between processes with a prepared volume.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.data.volume import Volume

SAME_PLACE_MM = 0.01
"""Copies of one image place a point within this."""


@dataclass(frozen=True)
class Mark:
    """A place that a table gives in space or in voxels, and not on an image that it names."""

    space: Literal["lps", "ras", "voxel"]
    """Of the coordinates: patient mm, or voxel indices (i, j, k) of a NIfTI file."""
    x: float
    y: float
    z: float
    location: str
    """One of `labels.LOCATIONS`, or nothing where it is unknown."""
    radius_mm: float | None = None
    ignored: bool = False
    """Neither an aneurysm to find nor its absence, such as a treated one."""


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


def locate(volume: Volume, sop_uid: str, x: float, y: float, frame: int | None = None) -> NDArray[np.float64] | None:
    """Return the voxel (z, y, x) of a point that was marked on one image of the series.

    `x` counts columns and `y` rows from the centre of the first pixel; `frame` counts from 0 in a multi-frame file.
    None where the image is not in the volume, or where the UID alone does not tell which one is meant.
    """
    found = [
        z
        for z, (uid, index) in enumerate(volume.instances)
        if uid == sop_uid and (frame is None or index == frame or _is_single(volume, sop_uid))
    ]
    return np.array((found[0], y, x), np.float64) if len(found) == 1 else None


def marked_mm(
    volume: Volume, sop_uid: str, x: float, y: float, frame: int | None = None
) -> tuple[NDArray[np.float64], bool] | None:
    """Return the patient position (x, y, z) in mm of a point as `locate` takes it, and whether its image was read.

    An image of the series that was left out - of another pass, a copy, a damaged one - places the point by its own
    geometry. None where no image has the UID, or several do at different places.
    """
    voxel = locate(volume, sop_uid, x, y, frame)
    if voxel is not None:
        return to_patient_mm(volume, voxel), True
    if any(uid == sop_uid for uid, _ in volume.instances):
        return None
    named = [image for image in volume.left_out if image.sop_uid == sop_uid]
    if frame is not None and len({image.frame for image in named}) > 1:
        named = [image for image in named if image.frame == frame]
    found = [image.origin_mm + y * image.row_mm + x * image.column_mm for image in named]
    if not found or any(np.abs(other - found[0]).max() > SAME_PLACE_MM for other in found):
        return None
    return found[0], False


def _is_single(volume: Volume, sop_uid: str) -> bool:
    """Whether one slice alone has the UID, so that a frame number given with it says nothing."""
    return sum(uid == sop_uid for uid, _ in volume.instances) == 1


def to_patient_mm(volume: Volume, zyx: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return patient (x, y, z) in mm of voxel coordinates (..., 3), z between the true positions of slices.

    Outside the stack the step of the nearest two slices goes on.
    """
    zyx = np.asarray(zyx, np.float64)
    below = np.clip(np.floor(zyx[..., 0]).astype(int), 0, len(volume.origins_mm) - 2)
    share = (zyx[..., 0] - below)[..., None]
    origin = (1 - share) * volume.origins_mm[below] + share * volume.origins_mm[below + 1]
    return np.asarray(origin + zyx[..., 1:2] * volume.affine[:3, 1] + zyx[..., 2:3] * volume.affine[:3, 2])
