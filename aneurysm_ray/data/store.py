"""A prepared volume as one Parquet row, and back; the table of a prepared set."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Point:
    """A labelled aneurysm in a prepared volume."""

    z: float
    y: float
    x: float
    """Voxel coordinates in the stored volume; may lie outside it."""
    location: str
    """One of `labels.LOCATIONS`."""


@dataclass(frozen=True, eq=False)
class PreparedVolume:
    """A series as training and inference see it: reoriented, cropped to the region of interest, resampled, windowed."""

    series_uid: str
    patient: str
    """Keyed hash of the patient, never the ID."""
    modality: str
    """CTA, MRA, MRI T2 or MRI T1post where a table says so, else DICOM's CT or MR."""
    plane: str
    """Plane in which the series was acquired."""
    voxels: NDArray[np.uint8] | NDArray[np.int16]
    """(Z, Y, X) in the standard orientation: z from feet to head, y from front to back, x from right to left."""
    affine: NDArray[np.float64]
    """(4, 4): stored voxel index (z, y, x, 1) to patient (x, y, z, 1) in mm, LPS."""
    targets: NDArray[np.float32]
    """(14,) in the order of `labels.LABELS`; NaN where no table says."""
    points: tuple[Point, ...]
    quality: tuple[str, ...]
    source_digest: str

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel spacing (z, y, x) in mm."""
        z, y, x = (float(np.linalg.norm(self.affine[:3, axis])) for axis in range(3))
        return z, y, x
