"""Where the head is: a box of given extent from the top of the head, centred on it.

Only the image decides, never the labels, so that training and inference see the same box. The head is found on a copy
thinned to about 4 mm: voxels above an air threshold, opened to lose tables and straps, largest connected part.
"""

import itertools

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from aneurysm_ray.data.resample import Axes
from aneurysm_ray.data.volume import Volume
from aneurysm_ray.errors import SeriesError

THINNED_MM = 4.0
"""Spacing of the copy in which the head is looked for."""
AIR_HU = -300.0
"""CT: above this is tissue; foam, clothes and lungs are below."""
MR_FRACTION = 0.1
"""MR, and CT whose values are no Hounsfield units: tissue is above this share of the range from the 2nd to the 98th
percentile (BET's rule, Smith 2002)."""
TOP_AREA_MM2 = 600.0
"""The top of the head is the highest level at which the head is at least this large."""
MARGIN_MM = 4.0
"""Room above the top of the head."""
CENTRE_DEPTH_MM = 110.0
"""The box is centred on the part of the head this far down from its top: jaw and shoulders do not pull it."""


def patient_axes(frame: Axes) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return the frame's axis and its direction (+1 or -1) for each standard axis.

    Standard axes: z from feet to head, y from front to back, x from right to left; each gets the nearest one.
    """
    along = frame.directions[:, ::-1]  # along[axis] in patient (z, y, x)
    best = max(itertools.permutations(range(3)), key=lambda p: sum(abs(along[p[i], i]) for i in range(3)))
    signs = [1 if along[best[i], i] >= 0 else -1 for i in range(3)]
    return (best[0], best[1], best[2]), (signs[0], signs[1], signs[2])


def tissue_threshold(volume: Volume) -> float:
    """Return the value above which a voxel is tissue. Raises SeriesError (`no_head`) for an image of one value."""
    values = _thinned(volume)[1]
    if volume.modality == "CT" and values.max() > AIR_HU:
        return AIR_HU
    low, high = np.percentile(values, [2, 98])
    if not high > low:
        # A projection of vessels alone is nearly all background.
        low, high = values.min(), values.max()
    if not high > low:
        raise SeriesError("no_head", f"{volume.series_uid}: all voxels have one value, {low:g}")
    return float(low + MR_FRACTION * (high - low))


def _thinned(volume: Volume) -> tuple[tuple[int, int, int], NDArray[np.int16] | NDArray[np.float32]]:
    z, y, x = (max(1, round(THINNED_MM / spacing)) for spacing in volume.spacing_mm)
    return (z, y, x), volume.voxels[::z, ::y, ::x]


def head_box(
    volume: Volume, frame: Axes, extent_mm: tuple[float, float, float], threshold: float
) -> NDArray[np.float64]:
    """Return (3, 2): the region of interest's first and last edge on each of the frame's axes, in mm.

    `extent_mm` is (z, y, x) on the standard axes. The box is cut to the scan, so a smaller scan keeps its size.
    `threshold` is that of `tissue_threshold`, so that some voxel is above it.
    """
    steps, values = _thinned(volume)
    mask = values > threshold
    # Opened within slices only: thick slices have too few neighbours along the normal.
    opened = scipy.ndimage.binary_opening(mask, np.ones((1, 3, 3), bool))
    parts, _ = scipy.ndimage.label(opened if opened.any() else mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    k, r, c = (index * step for index, step in zip(np.nonzero(parts == sizes.argmax()), steps, strict=True))
    points = np.stack(
        [
            frame.slices_mm[k],
            frame.rows_mm[k] + r * frame.pitch_mm[0],
            frame.columns_mm[k] + c * frame.pitch_mm[1],
        ]
    )
    axes, signs = patient_axes(frame)
    head_ZYX = np.stack([sign * points[axis] for axis, sign in zip(axes, signs, strict=True)])
    edges = frame.edges_mm(volume.shape)
    edges_ZYX = np.array([np.sort(sign * edges[axis]) for axis, sign in zip(axes, signs, strict=True)])

    cell_mm3 = float(np.prod([step * spacing for step, spacing in zip(steps, volume.spacing_mm, strict=True)]))
    top = _top_mm(head_ZYX[0], cell_mm3, max(THINNED_MM, steps[0] * volume.spacing_mm[0])) + MARGIN_MM
    upper = head_ZYX[0] >= top - CENTRE_DEPTH_MM
    box_ZYX = np.empty((3, 2))
    box_ZYX[0] = min(top, edges_ZYX[0, 1]) - extent_mm[0], min(top, edges_ZYX[0, 1])
    for axis in (1, 2):
        centre = np.percentile(head_ZYX[axis][upper], [2, 98]).mean()
        box_ZYX[axis] = centre - extent_mm[axis] / 2, centre + extent_mm[axis] / 2
    box_ZYX = np.clip(box_ZYX, edges_ZYX[:, :1], edges_ZYX[:, 1:])
    box = np.empty((3, 2))
    for axis, sign, span in zip(axes, signs, box_ZYX, strict=True):
        box[axis] = np.sort(sign * span)
    return box


def _top_mm(heights_mm: NDArray[np.float64], cell_mm3: float, bin_mm: float) -> float:
    """Return the upper edge of the highest level of at least TOP_AREA_MM2, or of the largest where none is so large."""
    edges = np.arange(heights_mm.min() - bin_mm / 2, heights_mm.max() + 1.5 * bin_mm, bin_mm)
    area = np.histogram(heights_mm, edges)[0] * cell_mm3 / bin_mm
    wide = np.flatnonzero(area >= min(TOP_AREA_MM2, area.max()))
    return float(edges[wide[-1] + 1])
