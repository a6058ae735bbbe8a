"""Vessels beyond anatomy: heads that differ more than people do, so that what a network learns is not theirs alone.

A network trained on shapes randomised far beyond reality takes reality for one more variation (Tobin et al. 2017,
arXiv:1703.06907). The paths of the usual arteries are warped together, so that they stay joined; they widen and narrow,
end bluntly or are parted as where flow is slow, and strangers run among them. They are narrower by a quarter, so that
they hold as much blood as the real trees that the phantom was held against.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.phantom.lesions import Site
from aneurysm_ray.phantom.vessels import STEP_MM, Tube, lay_tube

Array = NDArray[np.float64]

MAIN = ("ICA", "M1", "A1", "A2", "P1", "V4", "PCom", "ACom", "basilar")
"""Beginnings of the names of vessels that are never cut, and on which aneurysms may stand anywhere."""
CALIBRE = 0.76
WAVES = 10
WAVE_MM = (12.0, 60.0)
SLOPE = 0.14
"""Standard deviation of one wave's slope along each axis; all together seldom fold space."""
STRANGERS = 8
"""Mean number of a head's vessels that lead nowhere."""
PLACES = 60
"""Places along the main vessels from which those of a head's aneurysms are taken."""


def vary(rng: np.random.Generator, tubes: Sequence[Tube]) -> tuple[Tube, ...]:
    """Return vessels with their paths warped, calibres changed, ends cut and strangers added."""
    waves = [_draw_wave(rng) for _ in range(WAVES)]
    calibre = CALIBRE * rng.lognormal(0, 0.16)
    varied: list[Tube] = []
    for tube in [*tubes, *(_draw_stranger(rng, tubes, number) for number in range(int(rng.poisson(STRANGERS))))]:
        points = tube.points + sum(_push(tube.points, *wave) for wave in waves)
        radii = tube.radii_mm * calibre * rng.lognormal(0, 0.15) * _draw_beads(rng, len(points))
        if rng.random() < 0.15:  # an infundibulum
            distance = np.arange(len(points)) * STEP_MM
            radii = np.maximum(radii, rng.uniform(0.8, 1.6) * np.clip(1 - distance / rng.uniform(2.5, 5), 0, 1))
        varied += _cut(rng, replace(tube, points=points, radii_mm=np.clip(radii, 0.2, 3.5)))
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


def _draw_wave(rng: np.random.Generator) -> tuple[Array, Array, float]:
    """Draw a plane wave of displacement: its wave vector, its size in mm, its phase."""
    length = float(np.exp(rng.uniform(*np.log(WAVE_MM))))
    along = rng.normal(size=3)
    along *= 2 * np.pi / length / np.linalg.norm(along)
    return along, rng.normal(size=3) * SLOPE * length / (2 * np.pi), float(rng.uniform(0, 2 * np.pi))


def _push(points: Array, along: Array, size: Array, phase: float) -> Array:
    return np.asarray(np.sin(points @ along + phase)[:, None] * size)


def _draw_beads(rng: np.random.Generator, count: int) -> Array:
    """Draw the factor by which a vessel is wider or narrower at each of its points."""
    distance = np.arange(count) * STEP_MM
    waves = sum(
        rng.normal(0, 0.12) * np.sin(2 * np.pi * (distance / wave_mm + rng.random()))
        for wave_mm in np.exp(rng.uniform(np.log(5), np.log(40), 4))
    )
    return np.asarray(np.exp(waves))


def _cut(rng: np.random.Generator, tube: Tube) -> list[Tube]:
    """Cut three branches in ten short, or in two with a gap."""
    count = len(tube.points)
    if count < 10 or tube.name.startswith(MAIN) or rng.random() > 0.3:
        return [tube]
    first = int(rng.uniform(0.35, 0.9) * count)
    near = replace(tube, points=tube.points[:first], radii_mm=tube.radii_mm[:first])
    beyond = first + round(rng.uniform(3, 9) / STEP_MM)
    if rng.random() < 0.5 or count - beyond < 3:
        return [near]
    far = replace(tube, name=f"{tube.name} beyond", points=tube.points[beyond:], radii_mm=tube.radii_mm[beyond:])
    return [near, far]


def _draw_stranger(rng: np.random.Generator, tubes: Sequence[Tube], number: int) -> Tube:
    """Draw a vessel that begins on another or beside it and runs anywhere."""
    parent = tubes[int(rng.integers(len(tubes)))]
    start = parent.points[int(rng.integers(len(parent.points)))] + rng.normal(0, 3, 3) * (rng.random() < 0.5)
    steps = rng.normal(size=3) + rng.normal(0, 0.7, (6, 3))
    nodes = start + np.concatenate([np.zeros((1, 3)), np.cumsum(steps, axis=0) * rng.uniform(2, 6)])
    radius = float(np.exp(rng.uniform(np.log(0.4), np.log(1.8))))
    ends = (radius, radius * rng.uniform(0.4, 1))
    return lay_tube(rng, f"stranger {number}", None, nodes, ends, 1.0, rng.uniform(0.8, 1))
