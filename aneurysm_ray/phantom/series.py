"""One synthetic series from its plan: draw the head, grow the aneurysms, lay the grid, render, and keep the truth."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.data.dataset import SEGMENTATION_VALUES
from aneurysm_ray.labels import LOCATIONS
from aneurysm_ray.phantom.appearance import draw_appearance, draw_varied_appearance
from aneurysm_ray.phantom.clutter import draw_clutter
from aneurysm_ray.phantom.geometry import Tree, paint_tree, read_tree, tree_points
from aneurysm_ray.phantom.grid import Grid, Pose, draw_pose
from aneurysm_ray.phantom.head import draw_anatomy, plain_anatomy
from aneurysm_ray.phantom.lesions import PLAIN, VARIED, Build, Lesion, Site, draw_diameter_mm, grow, sites_of
from aneurysm_ray.phantom.options import PhantomOptions, SeriesPlan
from aneurysm_ray.phantom.paint import Field
from aneurysm_ray.phantom.render import RENDER_SLICE_MM, acquire, compose, edge_mm, paint_arteries, paint_veins
from aneurysm_ray.phantom.scans import draw_grid, draw_neck, reaches_the_neck, surround
from aneurysm_ray.phantom.variety import sites_anywhere, vary
from aneurysm_ray.phantom.veins import draw_veins
from aneurysm_ray.phantom.vessels import Tube, draw_arteries

Array = NDArray[np.float64]

# Positive series of the competition's data by location, in the order of LOCATIONS.
_LOCATION_WEIGHT = (78, 98, 331, 277, 219, 294, 363, 46, 56, 86, 101, 110, 113)

FAULT_SPACING_MM = 2.0
"""Series that stand for a defect are small: nobody trains on them."""

ANYWHERE = 0.25
"""Varied phantoms: share of heads whose aneurysms stand anywhere."""


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
    thin = max(FAULT_SPACING_MM, options.spacing_mm or 0) if plan.fault else options.spacing_mm
    grid = draw_grid(rng, plan.modality, plan.plane, plan.scan, pose, thin, varied=options.varied)
    parts = int(np.ceil(grid.spacing_mm[0] / RENDER_SLICE_MM))
    fine = grid.with_thinner_slices(parts)
    look = (draw_varied_appearance if options.varied else draw_appearance)(rng, plan.modality)
    anatomy, look = surround(plan.scan, plan.modality, draw_anatomy(rng) if options.varied else plain_anatomy(), look)
    edge = edge_mm(fine, look)
    veins = draw_veins(rng, varied=options.varied)
    if plan.tree:
        assert options.geometry is not None
        tree = read_tree(options.geometry / plan.tree, plan.lesions > 0)
        blood = _given_tree(tree, fine, pose, edge)
        clutter = draw_clutter(rng, plan.modality, look, (), tree_points(tree), veins, varied=options.varied)
    else:
        arteries = draw_arteries(rng)
        if options.varied:
            arteries = vary(rng, arteries)
        lesions = _grow_all(rng, options, arteries, plan.lesions, grid, pose)
        if reaches_the_neck(grid, pose):
            feeding, draining = draw_neck(rng, arteries)
            arteries, veins = arteries + feeding, veins + draining
        blood = _spline_tree(rng, VARIED if options.varied else PLAIN, arteries, lesions, fine, pose, edge)
        clutter = draw_clutter(rng, plan.modality, look, arteries, None, veins, varied=options.varied)
    painted = paint_veins(fine, pose, veins, edge)
    image = compose(rng, fine, pose, look, anatomy, blood.field, blood.strengths, blood.first_lesion, painted, clutter)
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


def _given_tree(tree: Tree, grid: Grid, pose: Pose, edge: float) -> _Blood:
    seen = [dome for dome in tree.domes if _in_grid(pose.to_patient(dome[0].centre), grid)]
    first = 1 + len(tree.vessels)
    return _Blood(
        paint_tree(grid, pose, replace(tree, domes=tuple(seen)), edge),
        np.array([0] + [1] * (first - 1 + len(seen)), np.float32),
        np.array([0, *(value for value, _ in tree.vessels), *(0 for _ in seen)], np.uint8),
        first,
        tuple(_truth(dome.location, dome.centre, dome.diameter_mm * pose.size, pose) for dome, _ in seen),
    )


def _grow_all(
    rng: np.random.Generator,
    options: PhantomOptions,
    tubes: Sequence[Tube],
    count: int,
    grid: Grid,
    pose: Pose,
) -> list[Lesion]:
    build = VARIED if options.varied else PLAIN
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


def _middle_slices(painted: Field, parts: int) -> NDArray[np.uint8]:
    """Owner of every voxel whose centre lies inside an artery or aneurysm, on the slices as acquired."""
    at = slice(parts // 2, None, parts)
    return np.where(painted.distance_mm[at] < 0, painted.owner[at], 0).astype(np.uint8)


def _truth(location: str, centre: Array, diameter_mm: float, pose: Pose) -> TrueLesion:
    x, y, z = (float(value) for value in pose.to_patient(centre))
    return TrueLesion(location, (x, y, z), diameter_mm)
