"""Which patches of which volumes an epoch trains on: one seeded plan that all workers share.

The plan of (seed, fold, epoch) does not depend on the number of workers; each takes its slice of every global batch.
So one worker and two see the same batches, no patch is seen twice or lost, and a resumed run draws what a straight one
does. (Ray's `prepare_data_loader` would replace a weighted sampler by its own, with only a warning.)

Draws are stratified: the number of patches around a point is exact, and points, locations and series are drawn by
systematic resampling, whose counts are within one of their expectation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.config import SamplerConfig
from aneurysm_ray.data.doubts import is_inside
from aneurysm_ray.learning.cases import IGNORED, Case

KINDS = ("anywhere", "point", "hard", "site", "vessel")
ANYWHERE, POINT, HARD, SITE, VESSEL = range(len(KINDS))
"""Kinds of patch: anywhere without a point, around a point, where the model was wrong, without a point at a place where
another series of the modality has one, without a point on a vessel."""

TRIES = 20
"""How often a background patch is drawn again because a point lies in it or near it."""

HARD_JITTER = 0.25
"""A hard negative lies within this share of the patch's size from its centre."""


@dataclass(frozen=True)
class HardNegative:
    """A place without an aneurysm that the model took for one."""

    series_uid: str
    z: float
    y: float
    x: float
    probability: float


@dataclass(frozen=True, eq=False)
class Plan:
    """The patches of one epoch, in order; every `batch_size` of them are one step of all workers together."""

    case: NDArray[np.int64]
    """(N,): index of the series."""
    start: NDArray[np.int64]
    """(N, 3): first voxel (z, y, x) of the patch."""
    kind: NDArray[np.int64]
    """(N,): index into KINDS."""

    def __len__(self) -> int:
        return len(self.case)


def plan_epoch(
    cases: Sequence[Case],
    config: SamplerConfig,
    size: tuple[int, int, int],
    border_mm: float,
    batch_size: int,
    seed: tuple[int, ...],
    hard: Sequence[HardNegative] = (),
) -> Plan:
    """Draw the patches of an epoch: `patches_per_volume` a series on average, rounded up to whole batches.

    A patch around a point has it at a random place inside by `border_mm`. Background patches come from series whose
    series-level label is known away from points. `seed` is (seed, fold, epoch).

    """
    rng = np.random.default_rng((*seed, 0x5A))
    usable = range(len(cases))
    batches = -(-config.patches_per_volume * len(usable) // batch_size)
    count = batches * batch_size
    if not config.oversample:
        case = _systematic(np.ones(len(usable)), count, rng)
        starts = np.array([_anywhere(cases[i], size, rng) for i in case], np.int64)
        return Plan(case, starts, np.full(count, ANYWHERE))

    points = [(i, j) for i in usable for j in range(len(cases[i].points)) if _is_to_find(cases[i], j)]
    n_points = round(config.positive_fraction * count) if points else 0
    clean = [i for i in usable if not np.isnan(cases[i].base[-1])] or usable
    by_uid = {case.series_uid: i for i, case in enumerate(cases)}
    known_hard = [h for h in hard if h.series_uid in by_uid]
    n_hard = round(config.hard_negative_fraction * (count - n_points)) if known_hard else 0

    case_index, start, kind = [], [], []
    if n_points:
        weights = _point_weights([int(cases[i].point_labels[j]) for i, j in points], config.location_balance)
        for index in _systematic(weights, n_points, rng):
            i, j = points[index]
            case_index.append(i)
            start.append(_around(cases[i], cases[i].points[j], size, border_mm, rng))
            kind.append(POINT)
    if n_hard:
        for index in _systematic(np.array([h.probability for h in known_hard]), n_hard, rng):
            h = known_hard[index]
            i = by_uid[h.series_uid]
            case_index.append(i)
            start.append(_near(cases[i], np.array([h.z, h.y, h.x]), size, rng))
            kind.append(HARD)
    n_others = count - n_points - n_hard
    of_site = points and config.site_fraction
    kinds = np.repeat(
        [SITE, VESSEL, ANYWHERE],
        _shares([of_site or 0.0, config.vessel_fraction, 1 - (of_site or 0.0) - config.vessel_fraction], n_others),
    )
    for which, index in zip(kinds, _systematic(np.ones(len(clean)), n_others, rng), strict=True):
        i = clean[index]
        places = _places(int(which), cases, points, cases[i], rng)
        case_index.append(i)
        start.append(_away(cases[i], size, border_mm, rng, places))
        kind.append(int(which) if places or which == ANYWHERE else ANYWHERE)
    order = rng.permutation(count)
    return Plan(np.array(case_index)[order], np.array(start, np.int64)[order], np.array(kind)[order])


def gathered(plan: Plan, cases: Sequence[Case], groups: int, seed: tuple[int, ...]) -> Plan:
    """Return a plan in which the patches of a volume come close together: within one `groups`-th of the epoch.

    For sets that do not fit into the cache: a volume is then read at most once an epoch, and not once a patch. Volumes
    come in an order of their own in every epoch, one after another rather than many at once, since reading them is
    what takes long; those with points and those without are spread evenly, so that every part draws as the whole does.
    """
    if groups <= 1:
        return plan
    rng = np.random.default_rng((*seed, 0x6A))
    marked = np.array([len(case.points) > 0 for case in cases])
    middle = np.empty(len(cases))
    for kind in (marked, ~marked):
        count = int(kind.sum())
        middle[kind] = (rng.permutation(count) + rng.random()) / max(count, 1)
    at = middle[plan.case] + rng.uniform(-0.5, 0.5, len(plan)) / groups
    order = np.argsort(1 - np.abs(1 - np.abs(at)), kind="stable")  # what lies beyond an end is as far within it
    return Plan(plan.case[order], plan.start[order], plan.kind[order])


def rank_batches(plan: Plan, batch_size: int, rank: int, world_size: int) -> list[NDArray[np.int64]]:
    """Return, for each step, the positions in the plan that a rank works on: its part of each global batch."""
    steps = np.arange(len(plan)).reshape(-1, batch_size)
    return [np.array_split(step, world_size)[rank] for step in steps]


def _systematic(weights: NDArray[np.float64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw `count` indices, each as often as its share of the weights, to within one; in random order."""
    if count == 0:
        return np.empty(0, np.int64)
    # A random order first, so that which of several equal indices gets the odd draw is a matter of chance.
    order = rng.permutation(len(weights))
    edges = np.cumsum(weights[order] / weights.sum())
    ticks = (np.arange(count) + rng.random()) / count
    drawn = order[np.minimum(np.searchsorted(edges, ticks, side="right"), len(weights) - 1)]
    return rng.permutation(drawn).astype(np.int64)


def _point_weights(labels: Sequence[int], balance: float) -> NDArray[np.float64]:
    """Weigh points: at balance 0 all alike, at 1 every location that occurs alike, in between a mixture."""
    index = np.array(labels)
    counts = np.bincount(index)
    by_location = 1 / (counts[index] * (counts > 0).sum())
    weights: NDArray[np.float64] = (1 - balance) / len(index) + balance * by_location
    return weights


def _is_to_find(case: Case, j: int) -> bool:
    return case.point_labels[j] != IGNORED and is_inside(case.points[j].tolist(), case.shape)


def _last_start(case: Case, size: tuple[int, int, int]) -> NDArray[np.int64]:
    """Return the last start of a patch that stays inside; 0 where the volume is smaller, which is padded at its end."""
    last: NDArray[np.int64] = np.maximum(np.array(case.shape) - np.array(size), 0)
    return last


def _anywhere(case: Case, size: tuple[int, int, int], rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.integers(0, _last_start(case, size), endpoint=True)


def _around(
    case: Case, point: NDArray[np.float32], size: tuple[int, int, int], border_mm: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    border = np.minimum(border_mm / case.spacing_mm, (np.array(size) - 1) / 2)
    low = np.ceil(point - (np.array(size) - 0.5 - border))
    high = np.maximum(np.floor(point + 0.5 - border), low)
    drawn = rng.integers(low.astype(np.int64), high.astype(np.int64), endpoint=True)
    return np.asarray(np.clip(drawn, 0, _last_start(case, size)))


def _near(
    case: Case, centre: NDArray[np.float64], size: tuple[int, int, int], rng: np.random.Generator
) -> NDArray[np.int64]:
    offset = rng.uniform(-HARD_JITTER, HARD_JITTER, 3) * np.array(size)
    start = np.round(centre + offset - (np.array(size) - 1) / 2).astype(np.int64)
    return np.asarray(np.clip(start, 0, _last_start(case, size)))


def _places(
    kind: int, cases: Sequence[Case], points: Sequence[tuple[int, int]], case: Case, rng: np.random.Generator
) -> list[NDArray[np.float32]]:
    """Return places of a series for a kind of negative patch, none for one anywhere.

    Sites are where some others of its modality have a point, at the same share of the region's size: regions of
    different modalities lie elsewhere in the head.
    """
    if kind == VESSEL:
        drawn = rng.permutation(len(case.vessel_places))[:TRIES]
        return [case.vessel_places[k].astype(np.float32) for k in drawn]
    if kind == SITE:
        alike = [(i, j) for i, j in points if cases[i].modality == case.modality]
        chosen = [alike[k] for k in rng.integers(len(alike), size=TRIES)] if alike else []
        return [cases[i].points[j] / np.array(cases[i].shape, np.float32) * np.array(case.shape) for i, j in chosen]
    return []


def _shares(shares: Sequence[float], count: int) -> list[int]:
    """Split a count by shares that sum to 1; the last part takes what rounding leaves."""
    counts = [round(share * count) for share in shares[:-1]]
    return [*counts, count - sum(counts)]


def _away(
    case: Case,
    size: tuple[int, int, int],
    border_mm: float,
    rng: np.random.Generator,
    places: Sequence[NDArray[np.float32]] = (),
) -> NDArray[np.int64]:
    """Draw a patch without a point in or near it: around the places in turn, else anywhere."""
    border = border_mm / case.spacing_mm
    start = _anywhere(case, size, rng)
    for number in range(TRIES):
        start = _anywhere(case, size, rng)
        if places:
            start = _around(case, places[number % len(places)], size, border_mm, rng)
        relative = case.points - start
        if not ((relative >= -0.5 - border) & (relative <= np.array(size) - 0.5 + border)).all(1).any():
            return start
    return start
