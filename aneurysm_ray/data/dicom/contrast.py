"""Which of two phases of a CT shows the brighter vessels: where headers do not say, the pixels do."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.data.dicom.files import OpenFiles
from aneurysm_ray.data.dicom.frames import Frame
from aneurysm_ray.data.dicom.passes import distances_mm
from aneurysm_ray.data.dicom.pixels import OpenPixels
from aneurysm_ray.data.dicom.quality import BadFile

SAMPLED_SLICES = 16
ENHANCED_HU = 80
"""A voxel is brighter in one phase when it differs by more; noise of a head CT is 5-30 HU."""
VESSEL_HU = 120, 800
"""Where contrast lifts a vessel to."""
LEAST_SHARE = 3e-4
"""Share of all voxels that must be vessels in one phase only; the arteries of a head fill about a thousandth."""


def brighter_vessels(one: Sequence[Frame], other: Sequence[Frame], files: OpenFiles) -> bool:
    """Whether a second pass of a CT over the same slices shows vessels that the first one does not.

    Counts voxels that are vessels in one pass and dark in the other, both ways: what moved between the passes adds to
    both counts, and an offset of the whole image to neither by more than to the other. False where pixels cannot be
    read.
    """
    at_mm, its_mm = distances_mm([one[0], *one])[1:], distances_mm([one[0], *other])[1:]
    chosen = np.unique(np.linspace(0, len(one) - 1, min(SAMPLED_SLICES, len(one))).round().astype(int))
    gained = lost = total = 0
    try:
        for index in np.argsort(at_mm)[chosen].tolist():
            first = _values(one[index], files)
            second = _values(other[int(np.argmin(np.abs(its_mm - at_mm[index])))], files)
            # What a whole image is lifted by is no contrast.
            lifted = second - first - np.median(second - first)
            gained += int(np.count_nonzero((lifted > ENHANCED_HU) & _vessel(second)))
            lost += int(np.count_nonzero((lifted < -ENHANCED_HU) & _vessel(first)))
            total += first.size
    except BadFile:
        return False
    return gained - lost > LEAST_SHARE * total and gained > 2 * lost


def _vessel(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    return (values >= VESSEL_HU[0]) & (values <= VESSEL_HU[1])


def _values(frame: Frame, files: OpenFiles) -> NDArray[np.float32]:
    words = np.empty(frame.shape, np.int16)
    OpenPixels(frame.stored, files).read(frame.index, words)
    stored = words if frame.stored.signed else words.view(np.uint16)
    return stored.astype(np.float32) * np.float32(frame.slope) + np.float32(frame.intercept)
