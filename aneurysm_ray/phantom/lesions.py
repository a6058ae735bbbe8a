"""Saccular aneurysms: where they sit, how large they are, and their shape.

Sizes are log-normal with median 4.5 mm and sigma 0.45 (1,373 CTA lesions of the literature), necks follow published
ones. Domes are rounder than published (longest to shortest axis 1.35 in the median, not 1.65), so that the small ones
can be seen at the coarse voxels a demonstration uses. A dome stands on the wall of its parent vessel, its centre
outside that lumen. Varied domes are larger, longer and lower (see `VARIED`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from aneurysm_ray.phantom.vessels import Tube

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Build:
    """How the domes of a phantom are built; lengths in mm."""

    median_mm: float = 4.5
    """Median of the longest diameter."""
    elongation: tuple[float, float, float] = (1.35, 0.13, 2.0)
    """Longest to shortest axis: median, sigma of its logarithm, and most."""
    stands_off: tuple[float, float] | None = None
    """Distance of the centre from the parent's wall as a share of the half height, least and most; None: 0.9."""
    strength: tuple[float, float] = (0.85, 1.0)
    """Share of the arterial signal, least and most."""


PLAIN = Build()
VARIED = Build(5.3, (1.5, 0.25, 2.2), (0.35, 0.95), (0.95, 1.05))
"""Real domes are broad-based more often than on a stalk, and need not be darker than the vessel they stand on."""


@dataclass(frozen=True, eq=False)
class Site:
    """A place where an aneurysm of one location may grow; head coordinates in mm."""

    location: str
    wall_of: str
    """Name of the parent tube."""
    origin: Array
    """Point on the parent's centre line."""
    parent_radius_mm: float
    direction: Array
    """Unit vector along which the dome leaves the vessel, on average."""
    weight: float


@dataclass(frozen=True, eq=False)
class Lesion:
    """A dome on a neck; head coordinates in mm."""

    location: str
    centre: Array
    diameter_mm: float
    """Longest diameter of the dome."""
    axes: Array
    """(3, 3): unit axes of the dome as rows."""
    radii_mm: Array
    """(3,): half axes of the dome; the first is the longest."""
    neck: Array
    """(2, 3): the neck's ends, on the parent's centre line and in the dome."""
    neck_radius_mm: float
    bleb: tuple[Array, float] | None
    """Centre and radius of a daughter sac."""


def sites_of(tubes: Sequence[Tube]) -> tuple[Site, ...]:
    """List the places where aneurysms grow in this head: forks and outer walls, weighted as they occur."""
    by_name = {tube.name: tube for tube in tubes}
    sites: list[Site] = []

    def add(tube: str, share: float, direction: Sequence[float], weight: float, location: str | None = None) -> None:
        parent = by_name[tube]
        index = round(share * (len(parent.points) - 1))
        unit = np.array(direction, float) / np.linalg.norm(direction)
        where = location or parent.location
        assert where is not None, tube
        sites.append(Site(where, tube, parent.points[index], float(parent.radii_mm[index]), unit, weight))

    for letter, sign in (("L", 1), ("R", -1)):
        side = "Left" if letter == "L" else "Right"
        add(f"ICA siphon {letter}", 0.65, (sign * 0.8, -0.7, -0.2), 1)
        add(f"ICA siphon {letter}", 0.4, (-sign, 0.1, 0.2), 1)
        add(f"ICA siphon {letter}", 0.9, (-sign, -0.2, 0.1), 1)
        add(f"ICA supra {letter}", 0.15, (-sign * 0.3, -0.5, 1), 2)
        add(f"ICA supra {letter}", 0.3, (-sign, 0.2, -0.2), 1)
        add(f"ICA supra {letter}", 1.0, (sign * 0.3, 0.2, 1), 2)
        add(f"M1 {letter}", 1.0, (sign, -0.2, 0), 5)
        add(f"M1 {letter}", 0.5, (0, -0.5, 0.8), 1)
        add(f"M2 superior {letter}", 0.35, (sign, -0.6, 0.4), 0.6)
        add(f"A1 {letter}", 1.0, (0, -1, 0.3), 3, "Anterior Communicating Artery")
        add(f"A2 {letter}", 1.0, (sign * 0.2, -1, 0.5), 3)
        add(f"A1 {letter}", 0.5, (0, -0.4, 1), 0.7)
        add(f"SCA {letter}", 0.05, (sign, 0.2, 0.5), 1)
        add(f"PICA {letter}", 0.0, (sign * 0.4, 0.2, 1), 1.5)
        add(f"P2 {letter}", 0.0, (sign, 0, 0.6), 1)
        pcom = f"{side} Posterior Communicating Artery"
        add(f"ICA supra {letter}", 0.55, (sign * 0.5, 1, -0.5), 3, pcom)
    add("ACom", 0.5, (0, -0.6, 1), 2)
    add("ACom", 0.5, (0, -0.8, -0.7), 2)
    add("basilar tip", 1.0, (0, 0, 1), 4)
    add("basilar", 0.05, (0, -0.6, 0.2), 0.8)
    return tuple(sites)


def draw_diameter_mm(rng: np.random.Generator, low_mm: float, high_mm: float, build: Build = PLAIN) -> float:
    """Draw a longest diameter from a log-normal distribution, the published one unless varied, cut to a range."""
    for _ in range(10_000):
        diameter = float(rng.lognormal(np.log(build.median_mm), 0.45))
        if low_mm <= diameter <= high_mm:
            return diameter
    return float(rng.uniform(low_mm, high_mm))


def grow(
    rng: np.random.Generator,
    site: Site,
    diameter_mm: float,
    tubes: Sequence[Tube],
    size: float = 1.0,
    build: Build = PLAIN,
) -> Lesion:
    """Grow a dome of a given longest diameter at a site, turned away from the vessels around it.

    `size` is the head's: head coordinates are that much smaller than patient mm, in which the diameter is given.
    """
    longest = diameter_mm / 2 / size
    median, sigma, most = build.elongation
    ratio = float(np.clip(rng.lognormal(np.log(median), sigma), 1.05, most))
    radii = np.array([longest, longest / np.sqrt(ratio), longest / ratio])
    upright = rng.random() < 0.65
    height = radii[0] if upright else radii[1]
    reach = site.parent_radius_mm + (rng.uniform(*build.stands_off) if build.stands_off else 0.9) * height
    others = [tube for tube in tubes if tube.name != site.wall_of]
    other_points = np.concatenate([tube.points for tube in others])
    other_radii = np.concatenate([tube.radii_mm for tube in others])
    parent = next(tube for tube in tubes if tube.name == site.wall_of)

    best, best_room = site.direction, -np.inf
    for _ in range(16):
        direction = site.direction + rng.normal(0, 0.35, 3)
        direction /= np.linalg.norm(direction)
        centre = site.origin + direction * reach
        to_parent = np.min(np.linalg.norm(parent.points - centre, axis=1) - parent.radii_mm)
        to_others = np.min(np.linalg.norm(other_points - centre, axis=1) - other_radii)
        room = min(to_parent - 0.75 * height, to_others - 0.6 * height)
        if room > best_room:
            best, best_room = direction, room
    centre = site.origin + best * reach
    neck_mm = float(np.clip(rng.lognormal(np.log(3.2), 0.2), 1.8, 4.8)) / size
    neck_radius = min(neck_mm / 2, 0.8 * radii[1], 1.3 * site.parent_radius_mm)
    bleb = None
    if diameter_mm > 4 and rng.random() < 0.3:
        aside = best + rng.normal(0, 0.5, 3)
        bleb = (centre + aside / np.linalg.norm(aside) * radii[1] * 0.85, float(radii[2] * rng.uniform(0.4, 0.6)))
    return Lesion(
        site.location,
        centre,
        diameter_mm,
        _axes_along(rng, best, upright),
        radii,
        np.stack([site.origin, centre]),
        neck_radius,
        bleb,
    )


def _axes_along(rng: np.random.Generator, direction: Array, upright: bool) -> Array:
    """Return three unit axes, the dome's first (upright) or second along a direction, the rest turned at random."""
    helper = rng.normal(size=3)
    second = np.cross(direction, helper)
    second /= np.linalg.norm(second)
    third = np.cross(direction, second)
    turned = Rotation.from_rotvec(direction * rng.uniform(0, np.pi)).apply(np.stack([second, third]))
    rows = [direction, *turned] if upright else [turned[0], direction, turned[1]]
    return np.stack(rows)
