"""Intensity: which values of a series become 0 and 255. The only rule, of preparation, cache and inference alike.

CT is windowed in Hounsfield units. MR has no unit, so its window is measured in medians of the brain, 0 at 0: how much
air a scan covers does not matter then, and how much of the head no more than its tissue and the coil vary from level to
level; vessels keep their contrast to the brain, and nothing is clipped below the brightest artery. A window is found
before resampling, stored with its volume, and applied in one place.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.config import VolumeConfig
from aneurysm_ray.data.region import Head

AROUND_BRAIN = (0.75, 1.33)
"""Multiples of the brain's median between which values count as brain: neither bone, air and muscle nor fat, vessels
and, in T2, fluid."""


class Window(NamedTuple):
    """The values that become 0 and 255, `low` the smaller one."""

    low: float
    high: float


DARK_BLOOD = ("MRI T2",)
"""Modalities in which flowing blood is dark."""

BRAIN = 51
"""Grey of the brain in MR at the default `volume.window_medians`."""

_NEGATIVE: NDArray[np.uint8] = np.clip(3 * BRAIN - 2 * np.arange(256), 0, 255).astype(np.uint8)

AS_STORED = Window(0.0, 255.0)
"""The window of values that are as networks see them."""


def find_window(modality: str, head: Head, config: VolumeConfig) -> Window:
    """Return the window of a scan whose head was found, in the units of its voxels; `modality` is DICOM's."""
    if modality == "CT":
        return Window(*config.window_hu)
    median = brain_median(head.brain)
    low, high = config.window_medians
    return Window(low * median + head.zero, high * median + head.zero)


def brain_median(values: NDArray[np.float32]) -> float:
    """Return the median of those values that lie around it; of positive ones at least, 1 where there is none."""
    values = values[values > 0]
    if not values.size:
        return 1.0
    middle = float(np.median(values))
    for _ in range(20):
        near = values[(values > AROUND_BRAIN[0] * middle) & (values < AROUND_BRAIN[1] * middle)]
        before, middle = middle, float(np.median(near))
        if abs(middle - before) <= 1e-3 * before:
            break
    return middle


def to_uint8(values: NDArray[Any], window: Window) -> NDArray[np.uint8]:
    """Return values on the scale that networks see: 0-255 over the window, rounded; uint8 values are on it already."""
    if values.dtype == np.uint8:
        seen: NDArray[np.uint8] = values
        return seen
    scaled = np.subtract(values, np.float32(window.low), dtype=np.float32)
    scaled *= np.float32(255 / (window.high - window.low))
    np.clip(scaled, 0, 255, out=scaled)
    scaled += np.float32(0.5)
    rounded: NDArray[np.uint8] = scaled.astype(np.uint8)
    return rounded


def bright_blood(values: NDArray[np.uint8], modality: str) -> NDArray[np.uint8]:
    """Return windowed values as networks are shown them: where blood is dark (T2) as a negative.

    The same dark thread is an artery in T2 and a furrow of the brain in angiography, and nothing in a patch of some
    centimetres says which scan it is of. In the negative the brain keeps its grey, vessels are
    up to three times as bright, and fluid is black.
    """
    return _NEGATIVE[values] if modality in DARK_BLOOD else values
