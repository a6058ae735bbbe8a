"""Where the head is: a box of given extent from the top of the head, centred on it.

Only the image decides, never the labels, so that training and inference see the same box. What tells a head from arms,
cradles, tables and necks is that a large ball fits into it: the head's top is one radius above the highest place where
one does. All is found on a copy thinned to about 6 mm, so that it costs little next to decoding. Lengths are compared
to a hundredth of a mm: spacings are often round numbers, and a file's rounding must not decide what reaches a limit.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import ArrayLike, NDArray

from aneurysm_ray.data.resample import FINE_GRID, Axes, rounded
from aneurysm_ray.data.volume import Volume
from aneurysm_ray.errors import SeriesError

F32 = NDArray[np.float32]

THINNED_MM = 6.0
"""Spacing of the copy in which the head is looked for."""
BALL_MM = 48.0
"""Radius of a ball that fits into grown heads, 60 mm half wide at least, and hardly into arms, cradles or necks."""
WIDE_MM, BESIDE_MM = 60.0, 75.0
"""A ball of the first radius fits into most heads, and into the thickest arms only. What lies farther to the side of
where it fits than the second is no part of the head: heads are less than 85 mm half wide, and arms lie beside them."""
CROWN_MM = 16.0
"""Radius of the part of the head in which its top is looked for; it is nearly flat."""
BRIDGED_MM = 6.0
"""Gaps up to twice this are closed: bone is as dark as air in MR, and is air where it was subtracted."""
AIR_HU, FAT_HU, FAT_MM = -300.0, -20.0, 12.0
"""CT: above the first is tissue; foam, clothes and lungs are below. Between the two it is fat, which heads have no
farther than this from denser tissue, bone subtracted or not: of a cradle of -100 HU little is counted, or nothing."""
MR_FRACTION = 0.1
"""MR: below this share of the 98th percentile is air (BET's rule, Smith 2002)."""
AIR_NOISE = 2.0
"""MR: below this multiple of the 5th percentile of the values above 0 is air; noise lies around that percentile."""
MARGIN_MM = 4.0
"""Room above the top of the head."""
CENTRE_DEPTH_MM = 90.0
"""The box is centred on the part of the head this far down from its top: jaw and shoulders do not pull it."""
BRAIN_DEPTH_MM = 28.0
"""Inside the head by this much in an axial plane is brain, for the most part: scalp and skull are thinner."""


@dataclass(frozen=True, eq=False)
class Head:
    """Where the head of a scan is, and what the thinned copy shows of it."""

    top_mm: float
    """Its highest point along the patient's axis, or the scan's, where the scan cuts the head."""
    centre_mm: tuple[float, float]
    """Its middle from front to back and from right to left."""
    doubtful: bool
    """No ball fits: the top is the scan's, the centre that of all tissue."""
    zero: float
    """MR: the value of nothing, which is 0 unless air is clearly below it. CT: 0, as Hounsfield units need none."""
    brain: F32
    """(N,) MR: values inside the head on the thinned copy, less `zero`, those of its brain for the most part."""


@dataclass(frozen=True, eq=False)
class _Thinned:
    """A scan on few voxels, on the patient's axes, or those of the scan that are nearest to them.

    They are z, y and x, from feet to head, from front to back, from right to left."""

    values: F32
    places_mm: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
    """Where each voxel lies along these axes; on a tilted scan it hangs on more than one of a voxel's indices."""
    spacing_mm: tuple[float, float, float]


def patient_axes(frame: Axes) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return the frame's axis and its direction (+1 or -1) for each standard axis.

    Standard axes: z from feet to head, y from front to back, x from right to left; each gets the nearest one.
    """
    along = frame.directions[:, ::-1]  # along[axis] in patient (z, y, x)
    best = max(itertools.permutations(range(3)), key=lambda p: round(sum(abs(along[p[i], i]) for i in range(3)), 3))
    signs = [1 if along[best[i], i] >= 0 else -1 for i in range(3)]
    return (best[0], best[1], best[2]), (signs[0], signs[1], signs[2])


def find_head(volume: Volume, frame: Axes) -> Head:
    """Find the head of a scan. Raises SeriesError (`no_head`) for an image of one value."""
    thinned = _thin(volume, frame)
    if not thinned.values.max() > thinned.values.min():
        raise SeriesError("no_head", f"{volume.series_uid}: all voxels have one value, {thinned.values.flat[0]:g}")
    is_ct = volume.modality == "CT"
    zero = 0.0 if is_ct else _air_below_zero(thinned.values)
    for tissue in _ct_tissues(thinned) if is_ct else _mr_tissues(thinned):
        tissue = _closed(tissue, thinned)
        depth_mm = _distance_mm(tissue, thinned.spacing_mm)
        fits = _not_beside((depth_mm >= BALL_MM) & _off_the_border(thinned), depth_mm, thinned)
        if fits.any():
            break

    z, y, x = thinned.places_mm
    step = thinned.spacing_mm[0]
    edge = float(z.max()) + step / 2
    if fits.any():
        top = min(_top_mm(thinned, tissue, fits), edge)
        below_top = _compared(top - z)
        inside = tissue & (below_top >= 0) & (below_top <= CENTRE_DEPTH_MM)
        middle = [float(place[fits & inside].mean()) for place in (y, x)]
    else:
        top, inside = edge, tissue
        middle = [float(np.percentile(place[tissue], [2, 98]).mean()) for place in (y, x)]
    brain = thinned.values[:0] if is_ct else thinned.values[_brain(thinned, tissue, inside)] - np.float32(zero)
    return Head(top, (middle[0], middle[1]), not fits.any(), zero, brain.ravel())


def _not_beside(fits: NDArray[np.bool_], depth_mm: NDArray[np.float64], thinned: _Thinned) -> NDArray[np.bool_]:
    """Return where a ball fits, without what lies to the side of where a wide one does, as thick raised arms do.

    Where it does within a head's depth of its highest place is asked: of two arms and a head the middle is the head's.
    """
    z, _, x = thinned.places_mm
    wide = fits & (depth_mm >= WIDE_MM)
    if not wide.any():
        return fits
    upper = wide & (_compared(z[wide].max() - z) <= CENTRE_DEPTH_MM)
    near: NDArray[np.bool_] = fits & (_compared(np.abs(x - x[upper].mean())) <= BESIDE_MM)
    return near if near.any() else fits


def _top_mm(thinned: _Thinned, tissue: NDArray[np.bool_], fits: NDArray[np.bool_]) -> float:
    """Return how high the tissue goes on above the highest place where a ball fits, in a column as wide as a crown.

    It ends near the ball's own upper end, or a little above it where a narrow head stops the ball from the sides.
    """
    z, y, x = thinned.places_mm
    heights = z.mean(axis=(1, 2))
    level = max(np.flatnonzero(fits.any(axis=(1, 2))), key=lambda k: heights[k])
    middle = y[level][fits[level]].mean(), x[level][fits[level]].mean()
    ball = level
    for above in np.argsort(heights):
        crown = _compared(np.hypot(y[above] - middle[0], x[above] - middle[1])) <= CROWN_MM
        near = _compared(heights[above] - heights[ball]) <= BALL_MM + CROWN_MM
        if heights[level] < heights[above] and near and crown.any():
            if tissue[above][crown].mean() < 0.5:
                break
            level = above
    return float(heights[level]) + thinned.spacing_mm[0] / 2


def head_box(head: Head, volume: Volume, frame: Axes, extent_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    """Return (3, 2): the region of interest's first and last edge on each of the frame's axes, in mm.

    `extent_mm` is (z, y, x) on the standard axes. The box is cut to the scan, so a smaller scan keeps its size.
    """
    axes, signs = patient_axes(frame)
    edges = frame.edges_mm(volume.shape)
    edges_ZYX = np.array([np.sort(sign * edges[axis]) for axis, sign in zip(axes, signs, strict=True)])
    upper = min(head.top_mm + MARGIN_MM, edges_ZYX[0, 1])
    spans = [(upper - extent_mm[0], upper)]
    spans += [
        (centre - size / 2, centre + size / 2) for centre, size in zip(head.centre_mm, extent_mm[1:], strict=True)
    ]
    box_ZYX = np.clip(np.array(spans), edges_ZYX[:, :1], edges_ZYX[:, 1:])
    box = np.empty((3, 2))
    for axis, sign, span in zip(axes, signs, box_ZYX, strict=True):
        box[axis] = np.sort(sign * span)
    return box


def _ct_tissues(thinned: _Thinned) -> Iterator[NDArray[np.bool_]]:
    """Yield where a CT shows tissue, by Hounsfield units, and as an MR would show it: first what is more likely.

    Without any air, or without anything as dense as a head, values are hardly Hounsfield units.
    """
    values = thinned.values
    dense = values > FAT_HU
    reach = [2 * int(round(FAT_MM / mm, 3) + 0.5) + 1 for mm in thinned.spacing_mm]
    by_units = (values > AIR_HU) & scipy.ndimage.maximum_filter(dense, reach)
    if values.min() < AIR_HU and dense.any():
        yield by_units
        yield from _mr_tissues(thinned)
    else:
        yield from _mr_tissues(thinned)
        if values.max() > AIR_HU:
            yield values > AIR_HU


def _mr_tissues(thinned: _Thinned) -> Iterator[NDArray[np.bool_]]:
    yield thinned.values > _mr_threshold(thinned.values)


def _brain(thinned: _Thinned, tissue: NDArray[np.bool_], inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which voxels inside the head lie deep enough to be brain, or all where none does.

    Depth is measured within axial slices, so that how far a scan goes up or down changes nothing.
    """
    flat = (1e6, *thinned.spacing_mm[1:])
    deep = inside & (_distance_mm(tissue, flat) >= BRAIN_DEPTH_MM)
    return deep if deep.any() else inside


def _air_below_zero(values: F32) -> float:
    """Return the value of an MR scan's air where it is clearly below 0, as after a rescale meant for CT; else 0."""
    dark, bright = (float(value) for value in np.percentile(values, [1, 98]))
    return dark if dark < -MR_FRACTION * (bright - dark) else 0.0


def _mr_threshold(values: F32) -> float:
    """Return the value above which a voxel is tissue: above a share of the brightest, and above noise.

    What is noise is seen from the positive values: the logarithms are parted in two, and noise reaches up to twice the
    median of the lower part, but not into the upper one, as in a scan without air the darkest values are tissue.
    """
    darkest = min(float(values.min()), 0.0)
    positive = values[values > darkest] - np.float32(darkest)
    bright = float(np.percentile(positive, 98))
    parting = float(np.exp(_parting(np.log(np.maximum(positive, 0.02 * bright)))))
    lower = positive[positive <= parting]
    noise = AIR_NOISE * float(np.median(lower)) if lower.size else 0.0
    return darkest + max(MR_FRACTION * bright, min(noise, parting))


def _parting(values: F32) -> float:
    """Return the value that parts values in two of the largest variance between them (Otsu 1979)."""
    counts, edges = np.histogram(values, 128)
    centres = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1]
    above = values.size - below
    mass = np.cumsum(counts * centres)
    apart = mass[:-1] / np.maximum(below, 1) - (mass[-1] - mass[:-1]) / np.maximum(above, 1)
    return float(edges[1:-1][np.argmax(below * above * apart**2)])


def _thin(volume: Volume, frame: Axes) -> _Thinned:
    """Return every so many axial and coronal planes of a scan, averaged along x, so that little noise is left.

    On the patient's axes and counted from the feet, the front and the right, so that it is the same scan whatever axes
    its file has and whichever end it begins at. Most files are axial, whose rows memory gives fast.
    """
    axes, signs = patient_axes(frame)
    turned = volume.voxels.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
    spacing_mm = rounded(volume.spacing_mm, FINE_GRID)[list(axes)].tolist()
    steps = [max(1, round(round(THINNED_MM / mm, 3))) for mm in spacing_mm]
    rows = np.ascontiguousarray(turned[:: steps[0], :: steps[1]])
    if rows.size and not rows.max() > rows.min():
        # What is shown may lie between two of the planes that are kept.
        steps[:2] = [1, 1]
        rows = turned
    starts = np.arange(0, rows.shape[2], steps[2])
    counts = np.diff(np.append(starts, rows.shape[2]))
    values = np.add.reduceat(rows, starts, axis=2, dtype=np.float32)
    values /= counts.astype(np.float32)
    kept = np.arange(0, turned.shape[0], steps[0]), np.arange(0, turned.shape[1], steps[1]), starts + (counts - 1) / 2
    at: list[NDArray[Any]] = [starts, starts, starts]  # on the file's axes
    for standard, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        counted = kept[standard] if sign == 1 else turned.shape[standard] - 1 - kept[standard]
        at[axis] = counted.reshape([-1 if other == standard else 1 for other in range(3)])
    slices = np.arange(volume.shape[0])
    along = [
        np.interp(at[0], slices, places) + offset
        for places, offset in (
            (frame.slices_mm, 0.0),
            (frame.rows_mm, at[1] * frame.pitch_mm[0]),
            (frame.columns_mm, at[2] * frame.pitch_mm[1]),
        )
    ]
    z, y, x = (np.broadcast_to(sign * along[axis], values.shape) for axis, sign in zip(axes, signs, strict=True))
    spacing = [step * mm for step, mm in zip(steps, spacing_mm, strict=True)]
    # Levels of one value, such as those a scan was padded with, show nothing: the scan ends before them.
    shown = tuple(_shown(values, axis) for axis in range(3))
    return _Thinned(values[shown], (z[shown], y[shown], x[shown]), (spacing[0], spacing[1], spacing[2]))


def _shown(values: F32, axis: int) -> slice:
    """Return from where to where along an axis a scan shows anything: levels of more than one value."""
    others = tuple(other for other in range(3) if other != axis)
    shown = np.flatnonzero(values.max(axis=others) > values.min(axis=others))
    return slice(shown[0], shown[-1] + 1) if len(shown) else slice(None)


def _closed(tissue: NDArray[np.bool_], thinned: _Thinned) -> NDArray[np.bool_]:
    """Return tissue with its gaps closed."""
    reach = [int(round(BRIDGED_MM / mm, 3) + 0.5) for mm in thinned.spacing_mm]
    size = [2 * n + 1 for n in reach]
    padded = np.pad(tissue, [(n, n) for n in reach], mode="edge")
    closed = scipy.ndimage.minimum_filter(scipy.ndimage.maximum_filter(padded, size), size)
    inner = tuple(slice(n, n + length) for n, length in zip(reach, tissue.shape, strict=True))
    return np.asarray(closed[inner] | tissue)


def _distance_mm(mask: NDArray[np.bool_], spacing_mm: Sequence[float]) -> NDArray[np.float64]:
    """Return the distance of each voxel to the nearest one outside the mask, to a hundredth; infinite where none is.

    What the scan cuts off is not outside, since nobody knows it to be air.
    """
    if mask.all():
        return np.full(mask.shape, np.inf)
    return _compared(scipy.ndimage.distance_transform_edt(mask, sampling=spacing_mm))


def _compared(lengths_mm: ArrayLike) -> NDArray[np.float64]:
    """Return lengths to a hundredth, as they are compared with limits."""
    return np.asarray(np.round(np.asarray(lengths_mm, np.float64), 2))


def _off_the_border(thinned: _Thinned) -> NDArray[np.bool_]:
    """Say which voxels may be a ball's centre: not those at the border of the field of view, behind which a table or a
    shoulder that it cuts off would count as tissue without end."""
    may = np.ones(thinned.values.shape, bool)
    for axis in (1, 2):
        n, mm = thinned.values.shape[axis], thinned.spacing_mm[axis]
        away_mm = _compared(np.minimum(np.arange(n), np.arange(n)[::-1]) * mm)
        away = away_mm >= _compared(min(BALL_MM / 2, n * mm / 4))
        may &= away.reshape([n if a == axis else 1 for a in range(3)])
    return may
