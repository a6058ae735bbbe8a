"""Are a CT's values Hounsfield units? Air is -1000, tissue about 0, bone some hundreds: a head has all three."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.data.dicom.frames import Frame

Voxels = NDArray[np.int16] | NDArray[np.float32]
Rescale = tuple[bool, float, float]

SAMPLED_SLICES, SAMPLED_STEP = 8, 4
"""Slices that are looked at, and each so-manieth pixel of them both ways: shares need no more."""
AIR_HU, TISSUE_HU = (-1150, -850), (-150, 150)
TWICE_INTERCEPT = -500
"""A larger intercept moves air and tissue by too little to tell."""
LEAST_SHARE = 0.02
"""Of the voxels of a head CT, air and tissue are each a larger share."""
TISSUE_LEFT = 0.25
"""Where the intercept was added twice, tissue is where air should be, and only dense bone comes to lie where it was."""
NO_AIR_HU, BELOW_AIR_HU, NOTHING_DENSE_HU = -300, -1200, 200
DOUBTFUL_SHARE = 0.01
"""Share of voxels far below air that noise does not explain."""


def rescale_of(frame: Frame) -> Rescale:
    """Return the sign of a frame's stored values and its rescale, by which slices of one making are known."""
    return frame.stored.signed, frame.slope, frame.intercept


def rescaled_twice(frames: Sequence[Frame], voxels: Voxels) -> set[Rescale]:
    """Return those rescales of a CT by which its Hounsfield units were moved a second time.

    The stored values then look like a head by themselves - air at -1000, tissue at 0 - and those of the volume do not.
    """
    found = set()
    for rescale in {rescale_of(frame) for frame in frames if frame.modality == "CT" and frame.stored.lut is None}:
        signed, slope, intercept = rescale
        if signed and slope == 1 and intercept <= TWICE_INTERCEPT:  # unsigned values know no air at -1000
            places = [place for place, frame in enumerate(frames) if rescale_of(frame) == rescale]
            some = _sample(voxels, places)
            stored = some - np.float32(intercept)
            tissue = _share(stored, TISSUE_HU)
            if min(_share(stored, AIR_HU), tissue) > LEAST_SHARE and _share(some, TISSUE_HU) < TISSUE_LEFT * tissue:
                found.add(rescale)
    return found


def looks_like_hu(voxels: Voxels, offset: float = 0.0) -> bool:
    """Whether values have the air and the tissue of a head CT once `offset` is added to them."""
    some = _sample(voxels, range(len(voxels))) + np.float32(offset)
    return min(_share(some, AIR_HU), _share(some, TISSUE_HU)) > LEAST_SHARE


def hu_doubtful(voxels: Voxels) -> bool:
    """Whether values shown as Hounsfield units lack air, go far below it, or hold nothing dense."""
    some = _sample(voxels, range(len(voxels)))
    # One value for all that lies outside the scanned circle is usual and harmless.
    below = float(((some < BELOW_AIR_HU) & (some > some.min())).mean())
    return bool(some.min() > NO_AIR_HU or below > DOUBTFUL_SHARE or some.max() < NOTHING_DENSE_HU)


def _sample(voxels: Voxels, places: Sequence[int]) -> NDArray[np.float32]:
    chosen = places[:: max(1, len(places) // SAMPLED_SLICES)]
    return np.array([voxels[place, ::SAMPLED_STEP, ::SAMPLED_STEP] for place in chosen], np.float32)


def _share(values: NDArray[np.float32], limits: tuple[int, int]) -> float:
    return float(((values >= limits[0]) & (values <= limits[1])).mean())
