"""Given vessel trees in place of the spline tree: NIfTI label maps, rendered in the synthetic head.

A map holds 0, 1 (vessel) and 2 (aneurysm dome), or the competition's 13 vessel labels. Each tree gives a positive and a
negative: the same tree without its dome, the stump smoothed away. A map of 13 labels gives negatives and their masks.
All renderings of a tree are one patient.

Such maps carry no location labels: the location of a dome is that of the nearest reference point of a standard Circle
of Willis, a rule of position and no reading by a radiologist.
"""

from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull, Delaunay, QhullError
from scipy.spatial.distance import pdist

from aneurysm_ray.errors import RequestError
from aneurysm_ray.phantom.grid import Grid, Pose
from aneurysm_ray.phantom.paint import Field

Array = NDArray[np.float64]

VESSEL, DOME = 1, 2
STUMP_MM = 2.5
"""Vessel this near to a removed dome is smoothed."""
CLOSED_VOXELS = 3
"""Slits of a dome's wall up to twice as wide are closed before it is filled."""
SMALLEST_DOME_MM3 = 2.0
"""Smaller remains of a dome in a map are no lesion anybody could see; they are dropped from both twins."""

# Where each location stands in head coordinates (mm); the side is the sign of x.
_PLACES: tuple[tuple[str, tuple[float, float, float]], ...] = (
    ("Infraclinoid Internal Carotid Artery", (9.5, -5, -14)),
    ("Infraclinoid Internal Carotid Artery", (19, 6, -27)),
    ("Supraclinoid Internal Carotid Artery", (10, -8, -1)),
    ("Supraclinoid Internal Carotid Artery", (13, -1, 7)),
    ("Middle Cerebral Artery", (24, -2, 5)),
    ("Middle Cerebral Artery", (33, 0, 5)),
    ("Middle Cerebral Artery", (42, 14, 14)),
    ("Anterior Cerebral Artery", (5, -9, 7)),
    ("Anterior Cerebral Artery", (2, -26, 34)),
    ("Posterior Communicating Artery", (10, 0, -1)),
)
_MIDDLE_PLACES: tuple[tuple[str, tuple[float, float, float]], ...] = (
    ("Anterior Communicating Artery", (0, -14, 8)),
    ("Basilar Tip", (0, 12, -1)),
    ("Other Posterior Circulation", (0, 15, -26)),
    ("Other Posterior Circulation", (0, 22, -48)),
    ("Other Posterior Circulation", (15, 21, 1)),
    ("Other Posterior Circulation", (-15, 21, 1)),
)
# Where the anterior communicating artery stands: (y, z) in head coordinates.
_COMMUNICATING_MM = (-14.0, 7.0)


@dataclass(frozen=True, eq=False)
class Dome:
    """One aneurysm of a label map; head coordinates in mm."""

    centre: Array
    diameter_mm: float
    """Largest distance between two of its voxels, plus one voxel."""
    location: str


@dataclass(frozen=True, eq=False)
class Tree:
    """A label map as points in head coordinates, laid so that its Circle of Willis meets the standard one."""

    vessels: tuple[tuple[int, Array], ...]
    """Value in a vessel mask (0 where the map does not tell) and (N, 3) centres of its voxels in mm."""
    domes: tuple[tuple[Dome, Array], ...]
    """Each dome with the centres of its voxels."""
    voxel_mm3: float


def tree_files(folder: Path) -> tuple[Path, ...]:
    """List the label maps of a folder, by name."""
    files = tuple(sorted([*folder.glob("*.nii"), *folder.glob("*.nii.gz")]))
    if not files:
        raise RequestError(f"{folder} holds no .nii or .nii.gz label map")
    return files


def read_tree(path: Path, with_domes: bool) -> Tree:
    """Read a label map, with its domes or without them and their stumps."""
    image = nibabel.load(path)
    labels = np.asarray(image.dataobj)
    kinds = set(np.unique(labels).tolist())
    if not kinds <= set(range(14)) or kinds <= {0}:
        raise RequestError(f"{path} holds labels {sorted(kinds)[:20]}; expected 1 vessel and 2 aneurysm, or 13 vessels")
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    thirteen = max(kinds) > DOME
    if not thirteen:
        labels = _with_whole_domes(labels)
    domes = [] if thirteen else _dome_voxels(labels, float(np.prod(spacing)))
    vessel = labels > 0 if thirteen else labels == VESSEL
    if domes and not with_domes:
        vessel = _without_stump(vessel, labels == DOME, spacing)
    points = np.argwhere(vessel) @ lps[:3, :3].T + lps[:3, 3]
    to_head = _circle_centre(points)
    values = labels[vessel] if thirteen else np.zeros(len(points), np.uint8)
    vessels = tuple((int(value), points[values == value] - to_head) for value in np.unique(values))
    found = []
    for voxels in domes if with_domes else []:
        dome_points = voxels @ lps[:3, :3].T + lps[:3, 3] - to_head
        centre = dome_points.mean(axis=0)
        found.append(
            (Dome(centre, _diameter(dome_points) + float(spacing.mean()), nearest_location(centre)), dome_points)
        )
    return Tree(vessels, tuple(found), float(np.prod(spacing)))


def tree_points(tree: Tree, spread: int = 40) -> Array:
    """Return (N, 3) every so many of a tree's voxel centres, to keep other things away from it."""
    return np.concatenate([points[::spread] for _, points in (*tree.vessels, *tree.domes)])


def nearest_location(point: Array) -> str:
    """Name the location whose reference point is nearest to a point in head coordinates."""
    named = [(name, np.array(place)) for name, place in _MIDDLE_PLACES]
    for name, place in _PLACES:
        named += [(f"Left {name}", np.array(place)), (f"Right {name}", np.array(place) * (-1, 1, 1))]
    return min(named, key=lambda item: float(np.linalg.norm(item[1] - point)))[0]


def paint_tree(grid: Grid, pose: Pose, tree: Tree, edge_mm: float) -> Field:
    """Paint a tree: its vessels as owners from 1 on, then its domes.

    Voxels of the map are shared out to the eight grid voxels around them, which gives the filled share of each: exact
    partial volume, as long as the grid is no finer than the map. That share stands in for a distance near the surface.
    """
    owner = np.zeros(grid.shape, np.uint8)
    most = np.zeros(grid.shape, np.float32)
    total = np.zeros(grid.shape, np.float32)
    parts = [points for _, points in (*tree.vessels, *tree.domes)]
    for number, points in enumerate(parts, start=1):
        share = _filled(grid, pose, points, tree.voxel_mm3)
        owner[share > most] = number
        np.maximum(most, share, out=most)
        total += share
    distance = (0.5 - np.clip(total, 0, 1)) * np.float32(edge_mm)
    return Field(distance.astype(np.float32), owner, grid.spacing_mm)


def _filled(grid: Grid, pose: Pose, points: Array, voxel_mm3: float) -> NDArray[np.float32]:
    at = grid.to_index(pose.to_patient(points))
    at = at[np.all((at >= 0) & (at < np.array(grid.shape) - 1), axis=1)]
    low = at.astype(np.intp)
    high_share = at - low
    out = np.zeros(int(np.prod(grid.shape)))
    volume = voxel_mm3 * pose.size**3 / float(np.prod(grid.spacing_mm))
    for corner in np.ndindex(2, 2, 2):
        weights = np.prod(np.where(corner, high_share, 1 - high_share), axis=1)
        flat = np.ravel_multi_index(tuple((low + corner).T), grid.shape)
        out += np.bincount(flat, weights=weights * volume, minlength=len(out))
    return out.reshape(grid.shape).astype(np.float32)


def _dome_voxels(labels: NDArray[np.integer], voxel_mm3: float) -> list[NDArray[np.intp]]:
    parts, count = ndimage.label(labels == DOME, np.ones((3, 3, 3)))
    voxels = [np.argwhere(parts == number) for number in range(1, count + 1)]
    return [part for part in voxels if len(part) * voxel_mm3 >= SMALLEST_DOME_MM3]


def _with_whole_domes(labels: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Give a dome what it encloses: maps drawn from surfaces have vessel or nothing in it, and slits in its wall."""
    whole = labels.astype(np.uint8)
    ball = ndimage.iterate_structure(ndimage.generate_binary_structure(3, 1), CLOSED_VOXELS)
    parts, _ = ndimage.label(labels == DOME, np.ones((3, 3, 3)))
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        at = np.argwhere(parts[box] == number)
        if len(at) < 5 or np.any(np.ptp(at, axis=0) == 0):
            continue
        closed = ndimage.binary_closing(np.pad(labels[box] > 0, CLOSED_VOXELS), ball)
        closed = ndimage.binary_fill_holes(closed)[(slice(CLOSED_VOXELS, -CLOSED_VOXELS),) * 3]
        try:
            corners = at[ConvexHull(at).vertices]
            inside = Delaunay(corners).find_simplex(np.argwhere(closed)) >= 0
        except QhullError:  # all in one plane
            continue
        z, y, x = np.argwhere(closed)[inside].T
        whole[box][z, y, x] = DOME
    return whole


def _without_stump(vessel: NDArray[np.bool_], dome: NDArray[np.bool_], spacing: Array) -> NDArray[np.bool_]:
    """Open the vessel's mask where a dome was cut off, so that no neck remains."""
    at = np.argwhere(dome)
    margin = np.ceil((STUMP_MM + 2) / spacing).astype(int)
    low = np.maximum(at.min(axis=0) - margin, 0)
    high = np.minimum(at.max(axis=0) + margin + 1, vessel.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    near = ndimage.distance_transform_edt(~dome[box], sampling=spacing) < STUMP_MM
    ball = ndimage.iterate_structure(ndimage.generate_binary_structure(3, 1), 2)
    opened = ndimage.binary_opening(np.pad(vessel[box], 2, mode="edge"), ball)[2:-2, 2:-2, 2:-2]
    out = vessel.copy()
    out[box] &= opened | ~near
    return out


def _diameter(points: Array) -> float:
    if len(points) > 10 and np.all(np.ptp(points, axis=0) > 0):
        points = points[ConvexHull(points).vertices]
    return float(pdist(points).max()) if len(points) > 1 else 0.0


def _circle_centre(points: Array) -> Array:
    """Find the point of a tree that stands for the origin of head coordinates.

    The anterior cerebral arteries are the foremost vessels at the midline, and the lowest of them meet at the anterior
    communicating artery. Good to several millimetres, which is all a head needs.
    """
    middle = (points[:, 0].min() + points[:, 0].max()) / 2
    near = points[np.abs(points[:, 0] - middle) < 4]
    near = near if len(near) else points
    front = near[near[:, 1] < np.quantile(near[:, 1], 0.02) + 14]
    level = float(np.quantile(front[:, 2], 0.03))
    back = float(np.median(front[front[:, 2] < level + 3, 1]))
    return np.array([middle, back, level]) - (0, *_COMMUNICATING_MM)
