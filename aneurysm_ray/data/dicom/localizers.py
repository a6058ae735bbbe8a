"""From a point on an image - SOP Instance UID, column, row, frame - to a voxel of the volume and to patient space."""

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.data.volume import Volume


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
