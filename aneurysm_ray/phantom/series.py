"""One synthetic series from its plan: draw the head, grow the aneurysms, lay the grid, render, and keep the truth."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.data.dataset import SEGMENTATION_VALUES
from aneurysm_ray.labels import LOCATIONS
from aneurysm_ray.phantom.geometry import paint_tree, read_tree
from aneurysm_ray.phantom.grid import Grid, Pose, draw_pose, make_grid
from aneurysm_ray.phantom.lesions import PLAIN, VARIED, Build, Lesion, Site, draw_diameter_mm, grow, sites_of
from aneurysm_ray.phantom.options import PhantomOptions, SeriesPlan
from aneurysm_ray.phantom.paint import Field
from aneurysm_ray.phantom.render import (
    RENDER_SLICE_MM,
    acquire,
    compose,
    draw_appearance,
    edge_mm,
    paint_arteries,
    paint_veins,
)
from aneurysm_ray.phantom.variety import sites_anywhere, vary
from aneurysm_ray.phantom.veins import draw_veins
from aneurysm_ray.phantom.vessels import Tube, draw_arteries

Array = NDArray[np.float64]

# Positive series of the competition's data by location, in the order of LOCATIONS.
_LOCATION_WEIGHT = (78, 98, 331, 277, 219, 294, 363, 46, 56, 86, 101, 110, 113)

FAULT_SPACING_MM = 2.0
"""Series that stand for a defect are small: nobody trains on them."""

SLOW_FLOW, ANYWHERE = 0.3, 0.25
"""Varied phantoms: share of MRA whose domes darken inwards, and of heads whose aneurysms stand anywhere."""

# Field of view (slice, row, column) in mm and its centre in head coordinates, by modality and plane.
_VIEW: dict[tuple[str, str], tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    ("CTA", "axial"): ((144, 205, 205), (0, 16, 24)),
    ("MRA", "axial"): ((96, 205, 180), (0, 16, 3)),
    ("MRA", "coronal"): ((116, 170, 180), (0, 12, 12)),
    ("MRA", "sagittal"): ((126, 170, 205), (0, 16, 12)),
    ("thick", "axial"): ((145, 205, 180), (0, 16, 23)),
    ("thick", "coronal"): ((180, 180, 180), (0, 16, 12)),
    ("thick", "sagittal"): ((150, 180, 205), (0, 16, 12)),
}


@dataclass(frozen=True)
class TrueLesion:
    """What is true of one aneurysm of a series."""

    location: str
    centre_mm: tuple[float, float, float]
    """Patient coordinates."""
    diameter_mm: float


@dataclass(frozen=True, eq=False)
class Rendered:
    """A finished series, before it is written."""

    plan: SeriesPlan
    grid: Grid
    voxels: NDArray[np.int16]
    """(Z, Y, X): Hounsfield units or MR signal."""
    vessels: NDArray[np.uint8]
    """(Z, Y, X): values of `dataset.SEGMENTATION_VALUES`."""
    aneurysms: NDArray[np.uint8]
    """(Z, Y, X): 1 + index into `lesions` inside an aneurysm, else 0."""
    lesions: tuple[TrueLesion, ...]
    patient: str
    thickness_mm: float


def make_series(options: PhantomOptions, plan: SeriesPlan) -> Rendered:
    """Make one series; equal options and plan give equal voxels."""
    rng = np.random.default_rng([options.seed, 2, plan.index])
    pose = draw_pose(rng)
    grid = draw_grid(rng, options, plan, pose)
    parts = int(np.ceil(grid.spacing_mm[0] / RENDER_SLICE_MM))
    fine = grid.with_thinner_slices(parts)
    look = draw_appearance(rng, plan.modality)
    edge = edge_mm(fine)
    if plan.tree:
        assert options.geometry is not None
        blood = _given_tree(options.geometry / plan.tree, plan.lesions > 0, fine, pose, edge)
        stones: list[tuple[Array, float, float]] = []
    else:
        build = VARIED if options.varied else PLAIN
        arteries = draw_arteries(rng)
        if options.varied:
            arteries = vary(rng, arteries)
            if plan.modality == "MRA":
                slow_flow = rng.uniform(0, 0.04)
                look = replace(look, slow_flow=slow_flow if rng.random() < SLOW_FLOW else 0.0)
        lesions = _grow_all(rng, options, build, plan.lesions, arteries, grid, pose)
        blood = _spline_tree(rng, build, arteries, lesions, fine, pose, edge)
        stones = _calcify(rng, arteries, pose) if plan.modality == "CTA" else []
    veins = paint_veins(fine, pose, draw_veins(rng), edge)
    image = compose(rng, fine, pose, look, blood.field, blood.strengths, blood.first_lesion, veins, stones)
    inside = _middle_slices(blood.field, parts)
    return Rendered(
        plan,
        grid,
        acquire(rng, image, parts, look, plan.modality == "CTA"),
        blood.values[inside],
        np.where(inside >= blood.first_lesion, inside - (blood.first_lesion - 1), 0).astype(np.uint8),
        blood.lesions,
        f"phantom-{plan.tree.split('.')[0]}" if plan.tree else f"phantom-{options.seed}-{plan.index:05d}",
        float(grid.spacing_mm[0]),
    )


@dataclass(frozen=True, eq=False)
class _Blood:
    """Painted arteries and aneurysms."""

    field: Field
    strengths: NDArray[np.float32]
    """Share of the arterial signal by owner."""
    values: NDArray[np.uint8]
    """Value in the vessel mask by owner; aneurysms have 0."""
    first_lesion: int
    """Owner of the first aneurysm; the others follow."""
    lesions: tuple[TrueLesion, ...]


def _spline_tree(
    rng: np.random.Generator,
    build: Build,
    tubes: Sequence[Tube],
    lesions: Sequence[Lesion],
    grid: Grid,
    pose: Pose,
    edge: float,
) -> _Blood:
    values = [0, *(SEGMENTATION_VALUES.get(tube.location or "", 0) for tube in tubes)]
    return _Blood(
        paint_arteries(grid, pose, tubes, lesions, edge),
        np.array([0, *(tube.strength for tube in tubes), *(rng.uniform(*build.strength) for _ in lesions)], np.float32),
        np.array(values + [0] * len(lesions), np.uint8),
        len(tubes) + 1,
        tuple(_truth(lesion.location, lesion.centre, lesion.diameter_mm, pose) for lesion in lesions),
    )


def _given_tree(path: Path, with_domes: bool, grid: Grid, pose: Pose, edge: float) -> _Blood:
    tree = read_tree(path, with_domes)
    seen = [dome for dome in tree.domes if _in_grid(pose.to_patient(dome[0].centre), grid)]
    first = 1 + len(tree.vessels)
    return _Blood(
        paint_tree(grid, pose, replace(tree, domes=tuple(seen)), edge),
        np.array([0] + [1] * (first - 1 + len(seen)), np.float32),
        np.array([0, *(value for value, _ in tree.vessels), *(0 for _ in seen)], np.uint8),
        first,
        tuple(_truth(dome.location, dome.centre, dome.diameter_mm * pose.size, pose) for dome, _ in seen),
    )


def draw_grid(rng: np.random.Generator, options: PhantomOptions, plan: SeriesPlan, pose: Pose) -> Grid:
    """Lay the slices of a series over a head as a technician would."""
    kind = plan.modality if plan.modality in ("CTA", "MRA") else "thick"
    extent, centre = _VIEW[kind, plan.plane]
    thin = max(FAULT_SPACING_MM, options.spacing_mm or 0) if plan.fault else options.spacing_mm
    if kind == "thick":
        spacing = np.array([max(rng.uniform(3.5, 5.5), thin or 0), thin or 0.8, thin or 0.8])
    else:
        plane = {"CTA": 205 / 256, "MRA": 0.75}[kind]
        slices = {"CTA": 144 / 128, "MRA": 0.75}[kind]
        spacing = np.array([thin or slices, thin or plane, thin or plane])
    if thin is None:
        spacing *= rng.uniform(1.0, 1.1)
    # A CT gantry stays upright; MR slices follow the head as far as the planner cares.
    tilt = np.zeros(3) if kind == "CTA" else rng.normal(0, (4, 1, 1))
    shift = rng.normal(0, (1.5, 2, 2))
    return make_grid(plan.plane, pose.to_patient(np.array(centre) + shift), np.array(extent, float), spacing, tilt)


def _grow_all(
    rng: np.random.Generator,
    options: PhantomOptions,
    build: Build,
    count: int,
    tubes: Sequence[Tube],
    grid: Grid,
    pose: Pose,
) -> list[Lesion]:
    anywhere = options.varied and rng.random() < ANYWHERE
    drawn = sites_anywhere(rng, tubes) if anywhere else sites_of(tubes)
    visible = [site for site in drawn if _in_view(site, grid, pose)]
    grown: list[Lesion] = []
    for _ in range(count):
        here = sorted({site.location for site in visible}, key=LOCATIONS.index)
        if not here:
            break
        weights = np.array([_LOCATION_WEIGHT[LOCATIONS.index(location)] for location in here], float)
        location = here[int(rng.choice(len(here), p=weights / weights.sum()))]
        sites = [site for site in visible if site.location == location]
        chances = np.array([site.weight for site in sites])
        site = sites[int(rng.choice(len(sites), p=chances / chances.sum()))]
        diameter_mm = draw_diameter_mm(rng, options.min_mm, options.max_mm, build)
        grown.append(grow(rng, site, diameter_mm, tubes, pose.size, build))
        visible = [other for other in visible if np.linalg.norm(other.origin - site.origin) > 8]
    return grown


def _in_view(site: Site, grid: Grid, pose: Pose) -> bool:
    return _in_grid(pose.to_patient(site.origin + 5 * site.direction), grid)


def _in_grid(point_mm: Array, grid: Grid) -> bool:
    """Whether a patient point lies in the grid, 4 mm from its border at least."""
    index, margin = grid.to_index(point_mm), 4 / grid.spacing_mm
    return bool(np.all(index > margin) and np.all(index < np.array(grid.shape) - 1 - margin))


def _calcify(rng: np.random.Generator, tubes: Sequence[Tube], pose: Pose) -> list[tuple[Array, float, float]]:
    """Put plaques on the walls of the large arteries, and stones into the pineal gland and the choroid plexus."""
    large = [tube for tube in tubes if tube.name.startswith(("ICA siphon", "ICA supra", "ICA petrous", "V4", "M1"))]
    stones = []
    for _ in range(int(rng.poisson(3))):
        tube = large[int(rng.integers(len(large)))]
        index = int(rng.integers(1, len(tube.points)))
        along = tube.points[index] - tube.points[index - 1]
        across = np.cross(along, rng.normal(size=3))
        wall = tube.points[index] + across / np.linalg.norm(across) * tube.radii_mm[index]
        stones.append((pose.to_patient(wall), float(rng.uniform(0.5, 1.3)), float(rng.uniform(300, 900))))
    for place in ((0, 44, 12), (19, 38, 25), (-19, 38, 25)):
        if rng.random() < 0.5:
            centre = pose.to_patient(np.array(place) + rng.normal(0, 1, 3))
            stones.append((centre, float(rng.uniform(1, 3)), float(rng.uniform(150, 500))))
    return stones


def _middle_slices(painted: Field, parts: int) -> NDArray[np.uint8]:
    """Owner of every voxel whose centre lies inside an artery or aneurysm, on the slices as acquired."""
    at = slice(parts // 2, None, parts)
    return np.where(painted.distance_mm[at] < 0, painted.owner[at], 0).astype(np.uint8)


def _truth(location: str, centre: Array, diameter_mm: float, pose: Pose) -> TrueLesion:
    x, y, z = (float(value) for value in pose.to_patient(centre))
    return TrueLesion(location, (x, y, z), diameter_mm)
