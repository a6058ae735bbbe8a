"""A series as a volume in patient space, and pure functions on it: reorient, crop, resample, window, normalise.

Arrays are (Z, Y, X). An affine maps a voxel index (z, y, x, 1) to patient coordinates (x, y, z, 1) in mm, DICOM's LPS:
x grows to the patient's left, y to the back, z to the head (PS3.3 C.7.6.2.1.1).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_GAP_MM, MAX_GAP_STEPS = 12.0, 3.0
"""Nothing is made up between slices farther apart than both: in mm, and in steps of the series."""
TIE_MM = 1e-3
"""What differs by less is equal: positions are often round numbers, which files keep with different rounding."""


@dataclass(frozen=True, eq=False)
class LeftOut:
    """An image of the series that is not in the volume, in patient space: points may have been marked on it."""

    sop_uid: str
    frame: int
    """Index from 0; 0 in a file of one frame."""
    origin_mm: NDArray[np.float64]
    """(3,): centre of pixel (0, 0)."""
    row_mm: NDArray[np.float64]
    """(3,): step from one row to the next."""
    column_mm: NDArray[np.float64]
    """(3,): step from one column to the next."""


@dataclass(frozen=True, eq=False)
class Volume:
    """One CT or MR series as slices in space.

    `origins_mm` holds the true position (x, y, z) of each slice's first pixel centre; `affine` is the regular grid that
    fits them best, so that the two differ only where slices are missing or uneven. Gantry tilt shows in both as a step
    between slices that is not along the slice normal.
    """

    voxels: NDArray[np.int16] | NDArray[np.float32]
    """(Z, Y, X): Hounsfield units for CT, rescaled values for MR; int16 unless the rescale is not integral."""
    affine: NDArray[np.float64]
    """(4, 4): voxel index (z, y, x, 1) to patient (x, y, z, 1) in mm."""
    origins_mm: NDArray[np.float64]
    """(Z, 3): patient position of the centre of voxel (z, 0, 0)."""
    modality: str
    """DICOM Modality (0008,0060): CT or MR."""
    series_uid: str
    patient_id: str = ""
    """Patient ID (0010,0020) as it stands in the file; never stored, only hashed with a key."""
    quality: tuple[str, ...] = ()
    """Codes of everything that was repaired or assumed; keys of `data.dicom.QUALITY`."""
    instances: tuple[tuple[str, int], ...] = ()
    """(SOP Instance UID, frame index from 0) of each slice, in slice order."""
    padding: int | None = None
    """Value that voxels outside the scanned field had, after rescale; they hold background now (-1024 HU in CT, else
    0). None where there are none."""
    dropped: tuple[tuple[str, str], ...] = ()
    """(file name, why) of everything in the series that is not in the volume."""
    left_out: tuple[LeftOut, ...] = ()
    """Images of the series among these that have a place in space."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size (z, y, x) in voxels."""
        z, y, x = self.voxels.shape
        return z, y, x

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along (z, y, x), in mm; z is measured along the slice normal."""
        row, column = self.affine[:3, 1], self.affine[:3, 2]
        normal = np.cross(column, row)
        normal /= np.linalg.norm(normal)
        return (
            abs(float(self.affine[:3, 0] @ normal)),
            float(np.linalg.norm(row)),
            float(np.linalg.norm(column)),
        )

    @property
    def plane(self) -> str:
        """`axial`, `coronal` or `sagittal`: the patient axis nearest to the slice normal."""
        normal = np.cross(self.affine[:3, 2], self.affine[:3, 1])
        return ("sagittal", "coronal", "axial")[int(np.argmax(np.abs(normal)))]


def typical_step_mm(steps_mm: NDArray[np.float64]) -> float:
    """Return the step by which most of a stack's length is covered; 0 where there is none.

    Tiny steps, between images of one slice, and gaps count for little.
    """
    steps = np.sort(np.minimum(steps_mm, MAX_GAP_MM))
    steps = steps[steps > 0.01]
    return float(steps[np.searchsorted(np.cumsum(steps), steps.sum() / 2)]) if len(steps) else 0.0


def largest_gap_mm(steps_mm: NDArray[np.float64]) -> float:
    """Return the widest gap of a stack with these steps that may be interpolated."""
    return max(MAX_GAP_MM, MAX_GAP_STEPS * typical_step_mm(steps_mm)) + TIE_MM
