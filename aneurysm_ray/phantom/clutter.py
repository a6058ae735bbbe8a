"""What lies in a head beside its vessels and is no aneurysm: plaques, stones, bulbs of veins, spots, spurs of bone.

It lies in heads with and without aneurysm alike. A detector that meets the first calcified pineal gland or bulging vein
of its life on a patient takes it for a dome.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from aneurysm_ray.phantom.appearance import Appearance
from aneurysm_ray.phantom.vessels import Tube

Array = NDArray[np.float64]

CLEAR_MM = 2.5
"""Room between a thing that may look like blood and the wall of an artery: nearer, it would be a dome to anybody."""
CLINOIDS = ("ICA siphon", "ICA supra")
"""Beginnings of the names of arteries that bone touches."""

_LARGE = ("ICA siphon", "ICA supra", "ICA petrous", "V4", "M1", "basilar")
# Pineal gland, choroid plexus of both sides, falx, basal ganglia of both sides; mm of head coordinates.
_STONE_PLACES = ((0, 44, 12), (19, 38, 25), (-19, 38, 25), (0, -30, 60), (0, 30, 74), (18, 4, 14), (-18, 4, 14))


@dataclass(frozen=True, eq=False)
class Blob:
    """An ellipsoid of one value; head coordinates in mm."""

    centre: Array
    axes: Array
    """(3, 3): unit axes as rows."""
    radii_mm: Array
    """(3,): half axes."""
    value: float


@dataclass(frozen=True)
class Clutter:
    """Blobs of a head, by whether they lie under the vessels or over them."""

    under: tuple[Blob, ...]
    over: tuple[Blob, ...]


def draw_clutter(
    rng: np.random.Generator,
    modality: str,
    look: Appearance,
    arteries: Sequence[Tube],
    blood: Array | None,
    veins: Sequence[Tube],
    *,
    varied: bool,
) -> Clutter:
    """Draw what lies about in a head. A varied one has more of it, in more places and greys.

    Spots keep clear of the arteries and of `blood`, (N, 3) points in an artery that is given as such, whose walls bear
    no plaques. Spurs of compact bone and air cells may touch them, as the clinoid processes do.
    """
    rate = 2.0 if varied else 1.0
    plaques = _plaques(rng, look, arteries, rate) if modality == "CTA" else []
    bulbs = _bulbs(rng, look, veins, 1.5 * rate)
    stones = _stones(rng, modality, look, varied=varied)
    free = _Room(arteries, blood)
    spots = _spots(rng, modality, look, free, 0.7 * rate)
    spurs = []
    if varied and not look.without_bone:
        spurs = _spurs(rng, look, free, arteries, 3 * rate) + _clinoids(rng, look, free, arteries, rate)
    return Clutter(tuple(bulbs + spots + spurs), tuple(plaques + stones))


class _Room:
    """Asks whether a place is clear of arteries."""

    def __init__(self, arteries: Sequence[Tube], blood: Array | None) -> None:
        points = [tube.points for tube in arteries] + ([] if blood is None else [blood])
        radii = [tube.radii_mm for tube in arteries] + ([] if blood is None else [np.full(len(blood), 1.0)])
        self._tree = cKDTree(np.concatenate(points))
        self._radii = np.concatenate(radii)

    def is_clear(self, point: Array, radius_mm: float, clear_mm: float = CLEAR_MM) -> bool:
        distances, indices = self._tree.query(point, k=min(8, len(self._radii)))
        return bool(np.all(distances - self._radii[indices] > radius_mm + clear_mm))


def _plaques(rng: np.random.Generator, look: Appearance, arteries: Sequence[Tube], rate: float) -> list[Blob]:
    """Calcified plaques: thin plates in the walls of the large arteries."""
    large = [tube for tube in arteries if tube.name.startswith(_LARGE)]
    blobs: list[Blob] = []
    for _ in range(int(rng.poisson(3 * rate)) if large else 0):
        tube = large[int(rng.integers(len(large)))]
        index = int(rng.integers(1, len(tube.points)))
        along = tube.points[index] - tube.points[index - 1]
        along /= np.linalg.norm(along)
        outward = np.cross(along, rng.normal(size=3))
        outward /= np.linalg.norm(outward)
        axes = np.stack([outward, along, np.cross(outward, along)])
        radii = np.array([rng.uniform(0.4, 0.9), rng.uniform(0.7, 2.5), rng.uniform(0.6, 1.5)])
        wall = tube.points[index] + outward * tube.radii_mm[index]
        blobs.append(Blob(wall, axes, radii, float(rng.uniform(300, 1100))))
    return blobs


def _stones(rng: np.random.Generator, modality: str, look: Appearance, *, varied: bool) -> list[Blob]:
    """Calcified pineal gland, choroid plexus, falx and basal ganglia: bright in CT, dark in MR."""
    blobs = []
    for place in _STONE_PLACES[: None if varied else 3]:
        if rng.random() > (0.6 if varied else 0.5):
            continue
        centre = np.array(place) + rng.normal(0, 3.0 if varied else 1.0, 3)
        radius = float(np.exp(rng.uniform(np.log(0.6), np.log(4.0 if varied else 3.0))))
        if modality == "CTA":
            value = rng.uniform(80, 1000) if varied else rng.uniform(150, 500)
        else:
            value = look.tissue["white"] * rng.uniform(0, 0.6)
        blobs.append(_blob(rng, centre, radius, float(value)))
    return blobs


def _bulbs(rng: np.random.Generator, look: Appearance, veins: Sequence[Tube], rate: float) -> list[Blob]:
    """Places where a vein is wider than elsewhere, round as a dome."""
    blobs = []
    for _ in range(int(rng.poisson(rate))):
        vein = veins[int(rng.integers(len(veins)))]
        index = int(rng.integers(len(vein.points)))
        radius = float(vein.radii_mm[index]) + rng.uniform(0.3, 2.2)
        centre = vein.points[index] + rng.normal(0, 0.4 * radius, 3)
        blobs.append(_blob(rng, centre, radius, look.vein * rng.uniform(0.9, 1.05)))
    return blobs


def _spots(rng: np.random.Generator, modality: str, look: Appearance, free: _Room, rate: float) -> list[Blob]:
    """Cysts, bleedings and tumours of the brain, in any grey from water to blood."""
    greys = sorted((look.tissue["csf"], look.artery if modality != "MRI T2" else look.tissue["csf"] * 0.3))
    blobs = []
    for _ in range(int(rng.poisson(rate))):
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        centre = np.array((0, 18, 22)) + direction * rng.uniform(0, 1) ** (1 / 3) * np.array((60, 76, 54))
        radius = float(np.exp(rng.uniform(np.log(1.0), np.log(7.0))))
        if free.is_clear(centre, radius):
            blobs.append(_blob(rng, centre, radius, float(rng.uniform(greys[0], greys[1]))))
    return blobs


def _spurs(
    rng: np.random.Generator, look: Appearance, free: _Room, arteries: Sequence[Tube], rate: float
) -> list[Blob]:
    """Knobs of bone and air cells about the skull base, and beside the carotids."""
    beside = [tube for tube in arteries if tube.name.startswith(CLINOIDS)]
    blobs = []
    for _ in range(int(rng.poisson(rate))):
        radius = float(np.exp(rng.uniform(np.log(0.8), np.log(4.5))))
        if beside and rng.random() < 0.4:
            tube = beside[int(rng.integers(len(beside)))]
            index = int(rng.integers(len(tube.points)))
            aside = rng.normal(size=3)
            aside *= (tube.radii_mm[index] + radius + rng.uniform(0.2, 2.5)) / np.linalg.norm(aside)
            centre = tube.points[index] + aside
        else:
            centre = np.array((0, 0, -16)) + rng.normal(0, (26, 24, 12))
        value, clear_mm = (look.cortical_bone, 0.0) if rng.random() < 0.6 else (look.marrow, CLEAR_MM)
        if rng.random() < 0.15:
            value, clear_mm = look.tissue["air"], 0.0
        if free.is_clear(centre, radius, clear_mm):
            blobs.append(_blob(rng, centre, radius, value))
    return blobs


def _clinoids(
    rng: np.random.Generator, look: Appearance, free: _Room, arteries: Sequence[Tube], rate: float
) -> list[Blob]:
    """Processes of bone that end in a knob beside a carotid, as the clinoid ones do: round and bright as a dome is."""
    beside = [tube for tube in arteries if tube.name.startswith(CLINOIDS)]
    blobs = []
    for tube in beside:
        for _ in range(int(rng.poisson(0.7 * rate))):
            index = int(rng.integers(len(tube.points)))
            tip_mm, gap_mm, length_mm = rng.uniform(1.0, 3.5), rng.uniform(0.1, 2.0), rng.uniform(6, 16)
            aside = rng.normal(size=3)
            aside /= np.linalg.norm(aside)
            knob = tube.points[index] + aside * (tube.radii_mm[index] + tip_mm + gap_mm)
            away = aside + rng.normal(0, 0.6, 3)
            away /= np.linalg.norm(away)
            wider = rng.uniform(0.0, 0.25)
            for along in np.arange(0, length_mm, max(0.6 * tip_mm, 1.0)):
                centre, radius = knob + along * away, tip_mm + wider * along
                if free.is_clear(centre, radius, 0.0):
                    blobs.append(_blob(rng, centre, radius, look.cortical_bone))
    return blobs


def _blob(rng: np.random.Generator, centre: Array, radius_mm: float, value: float) -> Blob:
    axes = Rotation.random(rng=rng).as_matrix()
    return Blob(centre, axes, radius_mm * np.exp(rng.normal(0, 0.2, 3)), value)
