"""Distances to shapes, painted into a volume block by block: tubes with changing radius, and ellipsoids.

A field holds, for each voxel, the signed distance in mm to the nearest painted surface (negative inside) and the number
of the shape it belongs to. Coordinates are mm along the grid's own axes (z, y, x), see `Grid.to_local`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
FAR_MM = 50.0


@dataclass(frozen=True, eq=False)
class Field:
    """Signed distance and owner of every voxel of a grid."""

    distance_mm: NDArray[np.float32]
    owner: NDArray[np.uint8]
    """Number of the shape nearest to the voxel; 0 far from all."""
    spacing_mm: Array


def empty_field(shape: tuple[int, int, int], spacing_mm: Array) -> Field:
    """Return a field with nothing in it."""
    return Field(np.full(shape, FAR_MM, np.float32), np.zeros(shape, np.uint8), spacing_mm)


def paint_tube(field: Field, points: Array, radii_mm: Array, owner: int, reach_mm: float) -> None:
    """Paint a chain of cones through (N, 3) points; distances are right up to `reach_mm` from its surface."""
    for start, end, first, last in zip(points[:-1], points[1:], radii_mm[:-1], radii_mm[1:], strict=True):
        margin = max(first, last) + reach_mm
        along = end - start
        length2 = float(along @ along) + 1e-9
        cone = partial(_cone, start=start, along=along, length2=length2, radius=first, growth=last - first)
        _paint(field, np.minimum(start, end) - margin, np.maximum(start, end) + margin, owner, cone)


def paint_ellipsoid(field: Field, centre: Array, axes: Array, radii_mm: Array, owner: int, reach_mm: float) -> None:
    """Paint an ellipsoid with unit `axes` as rows (z, y, x) and a radius along each."""
    margin = float(radii_mm.max()) + reach_mm
    ellipsoid = partial(_ellipsoid, centre=centre, axes=axes, radii=radii_mm)
    _paint(field, centre - margin, centre + margin, owner, ellipsoid)


def _cone(
    z: Array, y: Array, x: Array, start: Array, along: Array, length2: float, radius: float, growth: float
) -> Array:
    z, y, x = z - start[0], y - start[1], x - start[2]
    share = np.clip((z * along[0] + y * along[1] + x * along[2]) / length2, 0, 1)
    square = (z - share * along[0]) ** 2 + (y - share * along[1]) ** 2 + (x - share * along[2]) ** 2
    return np.asarray(np.sqrt(square) - (radius + share * growth))


def _ellipsoid(z: Array, y: Array, x: Array, centre: Array, axes: Array, radii: Array) -> Array:
    """First-order distance to an ellipsoid: k0 (k0 - 1) / k1 with k0 = |p / r| and k1 = |p / r^2|."""
    z, y, x = z - centre[0], y - centre[1], x - centre[2]
    turned = [z * axis[0] + y * axis[1] + x * axis[2] for axis in axes]
    k0 = np.sqrt(sum((part / radius) ** 2 for part, radius in zip(turned, radii, strict=True)))
    k1 = np.sqrt(sum((part / radius**2) ** 2 for part, radius in zip(turned, radii, strict=True)))
    # At the very centre both are 0; the distance there is minus the smallest radius.
    return np.asarray(np.where(k1 > 1e-6, k0 * (k0 - 1) / np.maximum(k1, 1e-6), -radii.min()))


def _paint(field: Field, low: Array, high: Array, owner: int, distance: Callable[[Array, Array, Array], Array]) -> None:
    shape = field.distance_mm.shape
    first = np.maximum(np.floor(low / field.spacing_mm), 0).astype(int)
    last = np.minimum(np.ceil(high / field.spacing_mm) + 1, shape).astype(int)
    if np.any(first >= last):
        return
    z, y, x = (
        np.arange(a, b, dtype=np.float32) * np.float32(step)
        for a, b, step in zip(first, last, field.spacing_mm, strict=True)
    )
    block = (slice(first[0], last[0]), slice(first[1], last[1]), slice(first[2], last[2]))
    new = distance(z[:, None, None], y[None, :, None], x[None, None, :])
    nearer = new < field.distance_mm[block]
    np.copyto(field.distance_mm[block], new, where=nearer, casting="same_kind")
    np.copyto(field.owner[block], np.uint8(owner), where=nearer)
