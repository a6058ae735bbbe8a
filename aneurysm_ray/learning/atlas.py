"""A lesion atlas: where in the stored region the aneurysms of the training series lie.

Arteries of the skull's base fill a small part of a head, and false alarms lie in all of it. The atlas says of each
place how near those of training were, and 1 wherever they are usual: it parts places of aneurysms from bone, face and
scalp, and never prefers one such place to another.

Axes are (z, y, x); a place is a share of the region's size, as regions of different scans differ in size.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from aneurysm_ray.learning.cases import IGNORED, Case

SIZE = 24
"""Cells of the atlas along each axis."""
REACH_MM = 16.0
"""Standard deviation of the Gaussian that stands for each point."""
USUAL = 0.02
"""Share of the training's own points that lie at places where the atlas is below 1."""
LEAST_POINTS = 30
"""From fewer points nothing is learnt: the atlas stays that of the first weights, or 1 everywhere."""


def learn(cases: Sequence[Case]) -> NDArray[np.float32] | None:
    """Return the atlas (SIZE, SIZE, SIZE), 0 to 1, of the aneurysms of some series, None of too few."""
    known = [
        ((case.points[j] + 0.5) / case.shape, case.shape * case.spacing_mm)
        for case in cases
        for j in np.flatnonzero(case.point_labels != IGNORED)
    ]
    points = np.array([place for place, _ in known]).reshape(-1, 3)
    inside = ((points >= 0) & (points <= 1)).all(1)
    points = points[inside]
    if len(points) < LEAST_POINTS:
        return None
    extent_mm = np.mean([extent for _, extent in known], 0)
    centres = (np.arange(SIZE) + 0.5) / SIZE
    # A Gaussian is the product of its axes: (points, cells) each.
    z, y, x = (
        np.exp(-0.5 * ((points[:, axis, None] - centres) * extent_mm[axis] / REACH_MM) ** 2) for axis in range(3)
    )
    density = np.einsum("pz,py,px->zyx", z, y, x)
    usual = np.quantile(_at(density, points.T), USUAL)
    learnt: NDArray[np.float32] = np.minimum(1, density / usual).astype(np.float32)
    return learnt


def on_cells(
    atlas: NDArray[np.float32],
    first: NDArray[np.float64],
    step: NDArray[np.float64],
    cells: Sequence[int],
    shape: Sequence[int],
) -> NDArray[np.float64]:
    """Return an atlas' values (z, y, x) at the cells of a grid.

    Cell i is centred on voxel first + i * step of a volume of `shape`.
    """
    axes = [(first[a] + step[a] * np.arange(cells[a]) + 0.5) / shape[a] for a in range(3)]
    return _at(atlas, np.stack(np.meshgrid(*axes, indexing="ij")))


def _at(values: NDArray[np.floating], share: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the values at places (3, ...) between its cells."""
    found: NDArray[np.float64] = map_coordinates(values.astype(np.float64), share * SIZE - 0.5, order=1, mode="nearest")
    return found
