"""Vessels beyond anatomy: heads that differ more than people do, so that what a network learns is not theirs alone.

A network trained on shapes randomised far beyond reality takes reality for one more variation (Tobin et al. 2017,
arXiv:1703.06907). The paths of the usual arteries are warped together, so that they stay joined; they widen and narrow,
end bluntly or taper away, and strangers run among them. How wild a head is, is drawn too: some are nearly people's,
some nobody's. Calibres change by waves in space, so that vessels which meet are equally wide where they do: a step
there would look like a dome in heads with and without one, and no shape could be told from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.phantom.lesions import Site
from aneurysm_ray.phantom.vessels import STEP_MM, Tube, lay_tube

Array = NDArray[np.float64]

MAIN = ("ICA", "M1", "A1", "A2", "P1", "V4", "PCom", "ACom", "basilar")
"""Beginnings of the names of vessels that are never cut, and on which aneurysms may stand anywhere."""
CALIBRE = 0.95
"""Width against the plain phantom's, whose arteries hold more blood than real trees do; carotids of 5 mm occur too."""
WAVES = 10
WAVE_MM = (12.0, 60.0)
SLOPE = 0.14
"""Standard deviation of one wave's slope along each axis in the wildest head; all together seldom fold space."""
PLACES = 60
"""Places along the main vessels from which those of a head's aneurysms are taken."""
ENTRANCES = ("ICA petrous", "V4")
"""Beginnings of the names of vessels that come from below, where a scan may cut them."""


@dataclass(frozen=True)
class Wildness:
    """How far one head's vessels go from anatomy."""

    calibre: float
    """Width of all vessels against the plain phantom's."""
    slow: float
    """Standard deviation of the logarithm of calibre over centimetres."""
    quick: float
    """Likewise over millimetres: beads."""
    apart: float
    """Likewise from one vessel to another, whether they meet or not."""
    slope: float
    """Standard deviation of a wave's slope."""
    infundibula: float
    """Share of the branches that begin with a cone."""
    cut: float
    """Share of the branches that are cut short."""
    blunt: float
    """Share of the ends that do not taper."""
    strangers: int
    """Vessels that lead nowhere."""


def draw_wildness(rng: np.random.Generator) -> Wildness:
    """Draw how wild a head is to be."""
    return Wildness(
        calibre=CALIBRE * float(rng.lognormal(0, 0.22)),
        slow=float(rng.uniform(0.04, 0.2)),
        quick=float(rng.uniform(0.02, 0.12)),
        apart=float(rng.uniform(0, 0.12)),
        slope=SLOPE * float(rng.uniform(0.3, 1.1)),
        infundibula=float(rng.uniform(0, 0.25)),
        cut=float(rng.uniform(0, 0.5)),
        blunt=float(rng.uniform(0, 0.5)),
        strangers=int(rng.poisson(rng.uniform(0, 9))),
    )


def vary(rng: np.random.Generator, tubes: Sequence[Tube]) -> tuple[Tube, ...]:
    """Return vessels with their paths warped, calibres changed, ends cut and strangers added."""
    wild = draw_wildness(rng)
    waves = [_draw_wave(rng, wild.slope) for _ in range(WAVES)]
    slow, quick = _Swell(rng, 6, (40.0, 160.0), wild.slow), _Swell(rng, 8, (8.0, 40.0), wild.quick)
    varied: list[Tube] = []
    for tube in [*tubes, *(_draw_stranger(rng, tubes, number) for number in range(wild.strangers))]:
        points = tube.points + sum(_push(tube.points, *wave) for wave in waves)
        swell = slow(tube.points) + quick(tube.points) + rng.normal(0, wild.apart)
        radii = tube.radii_mm * wild.calibre * np.exp(swell)
        if not tube.name.startswith(MAIN) and rng.random() < wild.infundibula:
            radii = np.maximum(radii, _cone(rng, len(points)))
        changed = replace(tube, points=points, radii_mm=np.clip(radii, 0.2, 3.5))
        varied.append(_ended(rng, changed, wild))
    return tuple(varied)


def sites_anywhere(rng: np.random.Generator, tubes: Sequence[Tube]) -> tuple[Site, ...]:
    """Draw places for aneurysms along the main vessels, on the outside of their bends more than within."""
    main = [tube for tube in tubes if tube.name.startswith(MAIN) and len(tube.points) > 3]
    length = np.array([len(tube.points) for tube in main], float)
    sites = []
    for _ in range(PLACES):
        tube = main[int(rng.choice(len(main), p=length / length.sum()))]
        index = int(rng.integers(1, len(tube.points) - 1))
        along = tube.points[index + 1] - tube.points[index - 1]
        along /= np.linalg.norm(along)
        across = np.cross(along, rng.normal(size=3))
        outward = 2 * tube.points[index] - tube.points[index + 1] - tube.points[index - 1]
        across = across / np.linalg.norm(across) + 2 * (outward - along * (outward @ along))
        assert tube.location is not None  # all of `MAIN` have one
        unit = across / np.linalg.norm(across)
        sites.append(Site(tube.location, tube.name, tube.points[index], float(tube.radii_mm[index]), unit, 1.0))
    return tuple(sites)


class _Swell:
    """A smooth random number for every place, of a given standard deviation, from waves of given lengths."""

    def __init__(self, rng: np.random.Generator, count: int, length_mm: tuple[float, float], deviation: float) -> None:
        along = rng.normal(size=(count, 3))
        lengths = np.exp(rng.uniform(np.log(length_mm[0]), np.log(length_mm[1]), count))
        self._along = along * (2 * np.pi / lengths / np.linalg.norm(along, axis=1))[:, None]
        self._size = deviation * np.sqrt(2 / count) * rng.normal(size=count)
        self._phase = rng.uniform(0, 2 * np.pi, count)

    def __call__(self, points: Array) -> Array:
        return np.asarray(np.sin(points @ self._along.T + self._phase) @ self._size)


def _draw_wave(rng: np.random.Generator, slope: float) -> tuple[Array, Array, float]:
    """Draw a plane wave of displacement: its wave vector, its size in mm, its phase."""
    length = float(np.exp(rng.uniform(*np.log(WAVE_MM))))
    along = rng.normal(size=3)
    along *= 2 * np.pi / length / np.linalg.norm(along)
    return along, rng.normal(size=3) * slope * length / (2 * np.pi), float(rng.uniform(0, 2 * np.pi))


def _push(points: Array, along: Array, size: Array, phase: float) -> Array:
    return np.asarray(np.sin(points @ along + phase)[:, None] * size)


def _cone(rng: np.random.Generator, count: int) -> Array:
    """Draw the radii of an infundibulum: a cone at a branch's beginning."""
    distance = np.arange(count) * STEP_MM
    return np.asarray(rng.uniform(0.8, 1.5) * np.clip(1 - distance / rng.uniform(2.5, 5), 0, 1))


def _ended(rng: np.random.Generator, tube: Tube, wild: Wildness) -> Tube:
    """Cut a branch short or let it taper away; begin a vessel from below higher up, as where a scan ends."""
    count = len(tube.points)
    if tube.name.startswith(MAIN):
        if not (tube.name.startswith(ENTRANCES) and count > 12 and rng.random() < 0.25):
            return tube
        first = int(rng.uniform(0.1, 0.4) * count)
        return replace(tube, points=tube.points[first:], radii_mm=tube.radii_mm[first:])
    last = int(rng.uniform(0.35, 0.9) * count) if count >= 10 and rng.random() < wild.cut else count
    radii = tube.radii_mm[:last]
    if rng.random() >= wild.blunt:
        to_end = np.arange(last)[::-1] * STEP_MM
        radii = np.maximum(radii * np.clip(0.35 + to_end / rng.uniform(5, 12), 0, 1), 0.18)
    return replace(tube, points=tube.points[:last], radii_mm=radii)


def _draw_stranger(rng: np.random.Generator, tubes: Sequence[Tube], number: int) -> Tube:
    """Draw a vessel that begins on another or beside it and runs anywhere."""
    parent = tubes[int(rng.integers(len(tubes)))]
    start = parent.points[int(rng.integers(len(parent.points)))] + rng.normal(0, 3, 3) * (rng.random() < 0.5)
    steps = rng.normal(size=3) + rng.normal(0, 0.7, (6, 3))
    nodes = start + np.concatenate([np.zeros((1, 3)), np.cumsum(steps, axis=0) * rng.uniform(2, 6)])
    radius = float(np.exp(rng.uniform(np.log(0.4), np.log(1.8))))
    ends = (radius, radius * rng.uniform(0.4, 1))
    return lay_tube(rng, f"stranger {number}", None, nodes, ends, 1.0, rng.uniform(0.8, 1))
