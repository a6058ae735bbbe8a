"""Implicit shapes: signed distances in mm to ellipsoids, cones with round ends, and unions of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Real = NDArray[np.floating[Any]]


def ellipsoid(x: F32, y: F32, z: F32, centre: Sequence[float], radii: Sequence[float]) -> F32:
    """Return the first-order distance to an ellipsoid along the axes."""
    parts = [(a - c) / r for a, c, r in zip((x, y, z), centre, radii, strict=True)]
    k0 = np.sqrt(parts[0] ** 2 + parts[1] ** 2 + parts[2] ** 2)
    k1 = np.sqrt(sum((part / r) ** 2 for part, r in zip(parts, radii, strict=True)))
    return np.asarray(k0 * (k0 - 1) / np.maximum(k1, 1e-4), np.float32)


def capsule(x: F32, y: F32, z: F32, start: Sequence[float], end: Sequence[float], radii: tuple[float, float]) -> F32:
    """Return the distance to a cone from start to end, its ends round."""
    along = [b - a for a, b in zip(start, end, strict=True)]
    length2 = sum(v * v for v in along)
    dx, dy, dz = x - start[0], y - start[1], z - start[2]
    share = np.clip((dx * along[0] + dy * along[1] + dz * along[2]) / length2, 0, 1)
    square = (dx - share * along[0]) ** 2 + (dy - share * along[1]) ** 2 + (dz - share * along[2]) ** 2
    return np.asarray(np.sqrt(square) - (radii[0] + share * (radii[1] - radii[0])), np.float32)


def nearest(distances: Sequence[Real], growth_mm: NDArray[np.float64] | None = None) -> F32:
    """Distance to the union of shapes, each grown by so much."""
    if growth_mm is not None:
        distances = [shape - np.float32(growth) for shape, growth in zip(distances, growth_mm, strict=True)]
    return np.asarray(np.minimum.reduce(distances), np.float32)
