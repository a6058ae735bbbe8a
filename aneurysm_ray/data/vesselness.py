"""Where vessels may be, from intensities alone: what is thin and brighter than its surroundings.

For sets without vessel masks, to draw negative patches on vessels. It finds every thin bright thing, bone and veins
too. On phantoms its blocks hold or touch all of MRA's vessel voxels and 0.4 to 0.7 of those of CTA, T1post and T2,
which is plenty to draw from and too few to search for aneurysms in.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

GRID_MM = 1.6
"""Voxels are gathered to about this size, on which arteries are still two or three wide."""
THIN_MM = 11.0
"""What is wider than this in its axial plane, both ways, is no vessel (a white top-hat by a square, Serra 1982). On
phantoms a cube finds no more of the vessels, and single planes can be looked at alone."""
CLIP = 110
"""Voxels count as this at most, of 255, so that bone does not stand out more than arteries."""
SHARE = 0.08
"""Share of the head's voxels that stand out most and are taken for vessels."""
PLACES = 64
"""Vessel voxels kept per series."""
STEP = 4
"""One plane of blocks in so many is searched for places: 64 of them are found in a quarter of the head as well."""

Sums = NDArray[np.unsignedinteger[Any]]


def vessel_map(voxels: NDArray[np.uint8], spacing_mm: Sequence[float], modality: str) -> NDArray[np.bool_]:
    """Return which blocks of a windowed volume (Z, Y, X) may hold vessel, each of `factors` voxels.

    Planes of blocks know nothing of each other, but for the threshold that they share. In T2 flowing blood is dark, in
    all other scans bright.
    """
    factor = factors(spacing_mm, voxels.shape)
    blocks = _block_sums(voxels, factor)
    head = blocks > 0
    _, height, width = (2 * round(THIN_MM / 2 / (f * s)) + 1 for f, s in zip(factor, spacing_mm, strict=True))
    if "T2" in modality:
        hat = _opened(blocks, (height, width), np.maximum, np.minimum) - blocks
        hat *= head
    else:
        blocks = np.minimum(blocks, blocks.dtype.type(CLIP * np.prod(factor)))
        hat = blocks - _opened(blocks, (height, width), np.minimum, np.maximum)
    found: NDArray[np.bool_] = hat > _threshold(hat, int(SHARE * np.count_nonzero(head)))
    return found


def _block_sums(voxels: NDArray[np.uint8], factor: tuple[int, int, int]) -> Sums:
    """Return the sums of whole blocks. Planes are added to planes, and whole numbers as small as will do: that is what
    processors do fastest."""
    sums: Sums = voxels
    dtype = np.uint16 if 255 * np.prod(factor) < 2**16 else np.uint32
    for axis, count in enumerate(factor):
        end = sums.shape[axis] // count * count
        first, *others = (sums[(slice(None),) * axis + (slice(start, end, count),)] for start in range(count))
        sums = first.astype(dtype)
        for other in others:
            np.add(sums, other, out=sums)
    return sums


def _opened(values: Sums, size: tuple[int, int], first: np.ufunc, second: np.ufunc) -> Sums:
    """Return planes opened by a rectangle (rows, columns), where `first` is the minimum and `second` the maximum, and
    closed the other way round."""
    for extreme in (first, second):
        for axis, width in zip((1, 2), size, strict=True):
            values = _running(extreme, values, width, axis)
    return values


def _running(extreme: np.ufunc, values: Sums, width: int, axis: int) -> Sums:
    """Return the extreme of each voxel's neighbours in a window of odd width: scipy's minimum or maximum filter in mode
    `nearest`, at a tenth of its time, by windows of 2, 4, ... voxels."""
    edges = [(0, 0)] * 3
    edges[axis] = (width // 2, width // 2)
    values, reached = np.pad(values, edges, mode="edge"), 1
    before: tuple[slice, ...] = (slice(None),) * axis
    while reached < width:
        step = min(reached, width - reached)
        values = extreme(values[(*before, slice(None, -step))], values[(*before, slice(step, None))])
        reached += step
    return values


def _threshold(values: Sums, most: int) -> int:
    """Return the least number that no more than `most` of some values exceed."""
    low, high = 0, int(values.max(initial=0))
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if np.count_nonzero(values > middle) > most else (low, middle)
    return low


def factors(spacing_mm: Sequence[float], shape: Sequence[int]) -> tuple[int, int, int]:
    """Return how many voxels along each axis (z, y, x) a block of `vessel_map` has in a volume of some shape."""
    z, y, x = (min(count, max(1, round(GRID_MM / spacing))) for spacing, count in zip(spacing_mm, shape, strict=True))
    return z, y, x


def vessel_places(
    voxels: NDArray[np.uint8],
    spacing_mm: Sequence[float],
    modality: str,
    vessels: NDArray[np.uint8] | None,
) -> NDArray[np.int16]:
    """Return up to 64 voxels (z, y, x) on vessels: of the mask where there is one, else of `vessel_map`.

    Which ones is drawn alike for equal volumes.
    """
    if vessels is not None:
        return _drawn((vessels > 0) & (vessels < 255)).astype(np.int16)
    factor = factors(spacing_mm, voxels.shape)
    count = voxels.shape[0] // factor[0]
    planes = np.arange(count // 2 % STEP, count, STEP)
    searched = voxels[(planes[:, None] * factor[0] + np.arange(factor[0])).ravel()]
    places = _drawn(vessel_map(searched, spacing_mm, modality))
    places[:, 0] = planes[places[:, 0]]
    centres: NDArray[np.int16] = np.rint((places + 0.5) * factor - 0.5).astype(np.int16)
    return centres


def _drawn(found: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return up to 64 of the places (z, y, x) where something was found."""
    places = np.flatnonzero(found)
    chosen = np.random.default_rng(0).permutation(len(places))[:PLACES]
    return np.stack(np.unravel_index(places[chosen], found.shape), axis=1)
