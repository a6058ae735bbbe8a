"""Antialiased separable resampling of slices in space onto a regular grid, on their true positions.

A series is a stack of parallel slices: `Axes` gives each slice's place along the slice normal and its shift within
the slice plane, so uneven spacing and gantry tilt are ordinary input. Every slice is resampled within its plane with
its own shift, then the results are blended along the normal with weights of the true positions: one pass, no second
blur.

The kernel is a triangle (linear interpolation) widened to the target's spacing where that is coarser than the source,
which is what `torch.nn.functional.interpolate(antialias=True)` and Pillow do. Weights are sparse, so a pass costs its
taps rather than a dense product, and no BLAS threads are involved: results are the same on every run.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from aneurysm_ray.data.volume import Volume, largest_gap_mm, typical_step_mm
from aneurysm_ray.errors import SeriesError

Positions = NDArray[np.float64]

GRID_MM, FINE_GRID = 2.0**-10, 2.0**-16
"""Places count to a micrometre, directions and distances of pixels finer, as many add up. Powers of two, since short
decimals and usual pixel spacings (a field of view over 512 or 1024) do not lie halfway between their multiples."""
SHIFT_TOLERANCE_MM = 0.01
"""Slices shifted within their plane by less than this share one set of weights."""


@dataclass(frozen=True, eq=False)
class Axes:
    """A series' own axes: 0 along the slice normal, 1 along columns of pixels (rows change), 2 along rows of pixels.

    Voxel (k, r, c) lies at (slices_mm[k], rows_mm[k] + r · pitch_mm[0], columns_mm[k] + c · pitch_mm[1]) on these axes,
    whose origin is the patient's.
    """

    directions: NDArray[np.float64]
    """(3, 3): unit vectors of axes 0, 1, 2 in patient (x, y, z)."""
    slices_mm: Positions
    """(Z,) increasing."""
    rows_mm: Positions
    """(Z,) position of each slice's first row; constant without tilt."""
    columns_mm: Positions
    """(Z,) position of each slice's first column."""
    pitch_mm: tuple[float, float]
    """Distance between rows and between columns."""

    def edges_mm(self, shape: tuple[int, int, int]) -> NDArray[np.float64]:
        """Return (3, 2): first and last edge of a volume of `shape` on each axis, half a voxel beyond the centres."""
        gaps = np.diff(self.slices_mm)
        return np.array(
            [
                [self.slices_mm[0] - gaps[0] / 2, self.slices_mm[-1] + gaps[-1] / 2],
                [self.rows_mm.min() - self.pitch_mm[0] / 2, self.rows_mm.max() + (shape[1] - 0.5) * self.pitch_mm[0]],
                [
                    self.columns_mm.min() - self.pitch_mm[1] / 2,
                    self.columns_mm.max() + (shape[2] - 0.5) * self.pitch_mm[1],
                ],
            ]
        )


def frame_of(volume: Volume) -> Axes:
    """Return a volume's own axes. Raises SeriesError (`no_geometry`) when two slices lie at one position.

    Numbers are rounded, so that a scan has the same axes from DICOM's decimals as from NIfTI's float32.
    """
    row, column = volume.affine[:3, 1], volume.affine[:3, 2]
    pitch = float(rounded(np.linalg.norm(row), FINE_GRID)), float(rounded(np.linalg.norm(column), FINE_GRID))
    u, v = (rounded(step / np.linalg.norm(step), FINE_GRID) for step in (column, row))
    u /= np.linalg.norm(u)
    v -= (v @ u) * u
    v /= np.linalg.norm(v)
    normal = np.cross(u, v)
    if (volume.origins_mm[-1] - volume.origins_mm[0]) @ normal < 0:
        normal = -normal
    directions = np.array([normal, v, u])
    slices, rows, columns = (_on_a_line(volume.origins_mm @ direction) for direction in directions)
    if len(slices) < 2 or np.diff(slices).min() <= 0:
        raise SeriesError("no_geometry", f"{volume.series_uid}: slices do not lie one after another along their normal")
    return Axes(directions, slices, rows, columns, pitch)


def rounded(values: ArrayLike, grid: float) -> NDArray[np.float64]:
    """Return numbers as multiples of a grid."""
    return np.asarray(np.rint(np.asarray(values, np.float64) / grid) * grid)


def _on_a_line(places_mm: Positions) -> Positions:
    """Return places rounded: those in even steps by the first and the last, others one by one."""
    even = np.linspace(places_mm[0], places_mm[-1], len(places_mm))
    if np.abs(even - places_mm).max() < GRID_MM:
        first, last = rounded(places_mm[[0, -1]], GRID_MM)
        return np.linspace(first, last, len(places_mm))
    return rounded(places_mm, GRID_MM)


def weights(
    source_mm: Positions, target_mm: Positions, spacing_mm: float, *, max_gap_mm: float = np.inf
) -> tuple[NDArray[np.intp], Positions]:
    """Return for each target the indices of the samples it takes from increasing `source_mm`, and their weights.

    A target between samples further apart than `spacing_mm` is interpolated linearly from its two neighbours; elsewhere
    the triangle of half-width `spacing_mm` weighs every sample by the stretch of line it stands for. Rows sum to 1,
    except those of targets more than half a step outside the samples: these are 0. A gap wider than `max_gap_mm` is
    outside as well: it is no further filled than by half a step on either side.
    """
    gaps = np.diff(source_mm)
    wide = gaps > max_gap_mm
    step = typical_step_mm(gaps)
    below = np.clip(np.searchsorted(source_mm, target_mm, "right") - 1, 0, len(gaps) - 1)
    gap = gaps[below]
    stretch = np.empty_like(source_mm)
    steps = np.where(wide, step, gaps)
    stretch[1:-1] = (steps[1:] + steps[:-1]) / 2
    stretch[0], stretch[-1] = steps[0], steps[-1]
    half = np.maximum(gap, spacing_mm)
    linear = gap >= spacing_mm
    first = np.where(linear, below, np.searchsorted(source_mm, target_mm - half, "right"))
    last = np.where(linear, below + 2, np.searchsorted(source_mm, target_mm + half, "left"))
    taps = first[:, None] + np.arange(max(1, int((last - first).max())))
    used = taps < last[:, None]
    taps = np.minimum(taps, len(source_mm) - 1)
    value = np.maximum(1 - np.abs(source_mm[taps] - target_mm[:, None]) / half[:, None], 0) * used
    value *= np.where(linear[:, None], 1, stretch[taps])
    outside = (target_mm < source_mm[0] - steps[0] / 2 - 1e-6) | (target_mm > source_mm[-1] + steps[-1] / 2 + 1e-6)
    if wide.any():
        from_below, from_above = target_mm - source_mm[below], source_mm[below + 1] - target_mm
        in_gap = wide[below] & (from_below > 0) & (from_above > 0)
        outside |= in_gap & (np.minimum(from_below, from_above) > step / 2 + 1e-6)
        nearest = np.where(from_below <= from_above, below, below + 1)
        value[in_gap] = taps[in_gap] == nearest[in_gap, None]
    total = value.sum(axis=1)
    # A target within the half step beyond the last sample takes that sample.
    value[:, 0] += (total == 0) & ~outside
    value[outside] = 0
    return taps, value / np.where(total == 0, 1, total)[:, None]


class _PlaneAxis:
    """The weights along one axis of the slice plane, kept while neighbouring slices share their shift.

    They are those of `weights` for even samples. With gantry tilt they are wanted for every slice, so they are written
    into one matrix by arithmetic alone.
    """

    def __init__(self, count: int, pitch_mm: float, targets_mm: Positions, spacing_mm: float) -> None:
        self.count, self.pitch_mm = count, pitch_mm
        self.targets = targets_mm / pitch_mm
        self.half = max(1.0, spacing_mm / pitch_mm)
        self.steps = np.arange(int(np.ceil(2 * self.half)) + 1)
        reach = int(self.targets[-1] - self.targets[0] + 2 * self.half) + 3
        self.length = min(count, reach)
        # Transposing rows of a multiple of 64 floats runs into few cache sets and takes six times as long (at 512).
        self.width = self.length + (8 if self.length % 64 == 0 else 0)
        size = len(targets_mm) * len(self.steps)
        indptr = np.arange(0, size + 1, len(self.steps), dtype=np.int32)
        arrays = np.zeros(size, np.float32), np.zeros(size, np.int32), indptr
        self.matrix = scipy.sparse.csr_array(arrays, shape=(len(targets_mm), self.width))
        self.first_mm = np.inf
        self.span = slice(0, self.length)

    def at(self, first_mm: float) -> tuple[slice, scipy.sparse.csr_array]:
        """Return the pixels used of a slice whose first pixel lies at `first_mm`, and the (targets, width) weights."""
        if abs(first_mm - self.first_mm) > SHIFT_TOLERANCE_MM:
            self.first_mm = first_mm
            place = self.targets - first_mm / self.pitch_mm
            taps = np.floor(place - self.half).astype(np.int32)[:, None] + (self.steps + 1)
            value = np.maximum(1 - np.abs(taps - place[:, None]) / self.half, 0)
            value *= (taps >= 0) & (taps < self.count)
            value[(place < -0.5 - 1e-6) | (place > self.count - 0.5 + 1e-6)] = 0
            total = value.sum(axis=1)
            start = min(max(int(taps[0, 0]), 0), self.count - self.length)
            self.span = slice(start, start + self.length)
            self.matrix.data[:] = (value / np.where(total == 0, 1, total)[:, None]).ravel()
            self.matrix.indices[:] = np.clip(taps - start, 0, self.length - 1).ravel()
        return self.span, self.matrix


def resample(
    voxels: NDArray[np.int16] | NDArray[np.float32],
    frame: Axes,
    targets_mm: tuple[Positions, Positions, Positions],
    spacing_mm: tuple[float, float, float],
    *,
    background: float = 0.0,
) -> Iterator[NDArray[np.float32]]:
    """Yield one float32 (Y, X) slice for each of `targets_mm[0]`, sampled at the increasing positions on the axes.

    `spacing_mm` is the distance between targets along each axis. Everything outside the slices is `background`. A slice
    is valid until the next one is asked for; only the source slices that the next ones need are kept.
    """
    gap_mm = largest_gap_mm(np.diff(frame.slices_mm))
    taps, blend = weights(frame.slices_mm, targets_mm[0], spacing_mm[0], max_gap_mm=gap_mm)
    last_use = np.full(len(voxels), -1)
    for index in range(len(taps)):
        last_use[taps[index, blend[index] > 0]] = index
    row_axis = _PlaneAxis(voxels.shape[1], frame.pitch_mm[0], targets_mm[1], spacing_mm[1])
    column_axis = _PlaneAxis(voxels.shape[2], frame.pitch_mm[1], targets_mm[2], spacing_mm[2])
    slice_YX = np.zeros((row_axis.width, column_axis.width), np.float32)
    planes_XY: dict[int, NDArray[np.float32]] = {}
    out_XY = np.empty((len(targets_mm[2]), len(targets_mm[1])), np.float32)
    scaled_XY = np.empty_like(out_XY)
    for index in range(len(taps)):
        out_XY.fill(background)
        for k, weight in zip(taps[index].tolist(), blend[index].astype(np.float32), strict=True):
            if weight > 0 and k not in planes_XY:
                rows, down = row_axis.at(frame.rows_mm[k])
                columns, across = column_axis.at(frame.columns_mm[k])
                pixels = voxels[k, rows, columns]
                inside_YX = slice_YX[: pixels.shape[0], : pixels.shape[1]]
                # Less the background, so that what lies outside the slice is 0 and needs no weight.
                np.subtract(pixels, np.float32(background), out=inside_YX, dtype=np.float32)
                planes_XY[k] = across @ np.ascontiguousarray((down @ slice_YX).T)
            if weight > 0:
                out_XY += np.multiply(planes_XY[k], weight, out=scaled_XY)
        planes_XY = {k: plane for k, plane in planes_XY.items() if last_use[k] > index}
        yield out_XY.T
