"""What is known of a series' aneurysms - clicks, places, masks, labels - as points of its stored volume.

Where nobody marks a place, each piece of a mask is a point. A mask also gives marked places their radius. What is said
to be neither positive nor negative becomes an ignored place. A label that nobody gives follows from the points where it
can, and stays unknown where it cannot: of an aneurysm whose location nobody names, the 13 locations are unknown.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.data import masks, nifti
from aneurysm_ray.data.dataset import DomeMask
from aneurysm_ray.data.domes import Dome, domes_of
from aneurysm_ray.data.masks import Mask, MaskError
from aneurysm_ray.data.meanings import IGNORED, OTHER, REST, UNPLACED, Values
from aneurysm_ray.data.nifti import TO_LPS
from aneurysm_ray.data.points import Mark
from aneurysm_ray.data.store import Point
from aneurysm_ray.data.volume import Volume
from aneurysm_ray.errors import SeriesError
from aneurysm_ray.labels import LABELS, PRESENT_INDEX

LARGEST_MM = 60.0
"""Giant aneurysms begin at 25 mm, and hardly any is longer than this."""
OWN_MM = 3.0
"""A marked place is of a mask's piece that lies within this of its ball."""


@dataclass(frozen=True, eq=False)
class Lesions:
    """What is known of a series' aneurysms, on its stored volume."""

    points: tuple[Point, ...]
    ignored: tuple[Point, ...]
    """Places that are neither positive nor negative."""
    targets: NDArray[np.float32]
    """(14,), NaN where unknown."""
    domes: NDArray[np.uint8] | None
    """See `store.PreparedVolume.domes`."""
    codes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Shown:
    """What a mask shows."""

    mask: Mask
    domes: tuple[tuple[Dome, str], ...]
    """Pieces with what their values mean."""
    inside: NDArray[np.bool_]
    ignored: NDArray[np.bool_]


def gather(
    volume: Volume,
    affine: NDArray[np.float64],
    shape: tuple[int, int, int],
    clicks: Sequence[Point],
    marks: Sequence[Mark],
    dome_masks: Sequence[DomeMask],
    targets: NDArray[np.float32],
) -> Lesions:
    """Return points, ignored places, labels and dome mask of a stored volume, and quality codes of what is doubtful.

    `affine` and `shape` are the stored volume's, `clicks` points on it already.
    """
    shown, codes = _read(dome_masks, volume, affine, shape)
    pieces = [(dome, meaning) for one in shown for dome, meaning in one.domes]
    placed = [(_marked(mark, volume, affine), mark.ignored) for mark in marks]
    points = [*clicks, *(point for point, ignored in placed if not ignored)]
    ignored = [point for point, off in placed if off]
    ignored += [_point(dome.centre_mm, UNPLACED, dome.radius_mm, affine) for dome, word in pieces if word == IGNORED]
    to_find = [(dome, word) for dome, word in pieces if word != IGNORED]
    if points:
        points = [_sized(point, [dome for dome, _ in to_find], affine) for point in points]
    else:
        points = [_point(dome.centre_mm, word, dome.radius_mm, affine) for dome, word in to_find]
    whole = len(shown) == len(dome_masks) and bool(shown)
    known = _targets(targets, points, clean=whole and not pieces)
    if targets[PRESENT_INDEX] == 1 and whole and not to_find and not points:
        codes.append("mask_empty")
    denied = (targets[LABELS.index(point.location)] == 0 for point in points if point.location)
    if (targets[PRESENT_INDEX] == 0 and points) or any(denied):
        codes.append("label_contradicts")
    domes = masks.domes_on_volume([(one.mask, one.inside, one.ignored) for one in shown], affine, shape)
    return Lesions(tuple(points), tuple(ignored), known, domes, tuple(dict.fromkeys(codes)))


def _read(
    dome_masks: Sequence[DomeMask], volume: Volume, affine: NDArray[np.float64], shape: tuple[int, int, int]
) -> tuple[list[_Shown], list[str]]:
    shown: list[_Shown] = []
    codes: list[str] = []
    for asked in dome_masks:
        _check_fetched(asked.path)
        try:
            mask = masks.read_mask(asked.path)
            one = _shown(mask, asked.values)
        except (MaskError, ValueError):
            codes.append("mask_unreadable")
            continue
        codes += mask.codes
        if asked.shared:
            codes.append("mask_shared")
        if any(dome.largest_mm > LARGEST_MM for dome, _ in one.domes):
            codes.append("mask_large")
        if masks.moved(mask, one.inside | one.ignored, volume):
            codes.append("mask_moved")
        if masks.misses(mask, one.inside | one.ignored, affine, shape):
            codes.append("mask_misses")
        else:
            shown.append(one)
    return shown, codes


def _check_fetched(path: Path) -> None:
    """Raise SeriesError where a mask is a pointer: without it a series would seem to have no aneurysm."""
    try:
        nifti.check_is_here(path)
    except SeriesError as error:
        if error.reason == "not_fetched":
            raise SeriesError(error.reason, f"has a mask that {error.told}", error.where) from error


def _shown(mask: Mask, values: Values) -> _Shown:
    """Return what a mask shows. Raises MaskError for values of which nobody knows what they are."""
    labels = masks.whole(mask.labels)
    meanings = dict(values)
    every = all(word == IGNORED for word in meanings.values())
    rest = meanings.pop(REST, UNPLACED if every else None)
    off = [value for value, word in meanings.items() if word == IGNORED]
    named = [value for value, word in meanings.items() if word not in (IGNORED, OTHER)]
    ignored, inside = np.isin(labels, off), np.isin(labels, named)
    unnamed = (labels != 0) & ~np.isin(labels, list(meanings))
    if unnamed.any() and rest is None:
        strange = ", ".join(map(str, np.unique(labels[unnamed])[:4]))
        raise MaskError(f"it holds {strange}, which nothing names")
    if rest == IGNORED:
        ignored |= unnamed
    else:
        inside |= unnamed
    domes = domes_of(np.where(inside | ignored, labels, 0), mask.affine, np.unique(labels[ignored]).tolist())
    pairs = tuple((dome, IGNORED if dome.ignored else meanings.get(dome.value, UNPLACED)) for dome in domes)
    return _Shown(mask, pairs, inside, ignored)


def _marked(mark: Mark, volume: Volume, affine: NDArray[np.float64]) -> Point:
    place = np.array((mark.x, mark.y, mark.z))
    if mark.space == "voxel":
        lps = volume.affine[:3, :3] @ place[::-1] + volume.affine[:3, 3]
    else:
        lps = place if mark.space == "lps" else TO_LPS[:3, :3] @ place
    return _point(tuple(lps), mark.location, mark.radius_mm, affine)


def _point(centre_mm: Sequence[float], location: str, radius_mm: float | None, affine: NDArray[np.float64]) -> Point:
    to_voxel = np.linalg.inv(affine)
    z, y, x = to_voxel[:3, :3] @ np.array(centre_mm) + to_voxel[:3, 3]
    return Point(float(z), float(y), float(x), location, radius_mm)


def _sized(point: Point, domes: Sequence[Dome], affine: NDArray[np.float64]) -> Point:
    """Return a point with the radius of the piece of a mask that it marks, unless a table gave one."""
    if point.radius_mm is not None or not domes:
        return point
    place = affine[:3, :3] @ (point.z, point.y, point.x) + affine[:3, 3]
    beyond = [float(np.linalg.norm(place - dome.centre_mm)) - dome.largest_mm / 2 for dome in domes]
    nearest = int(np.argmin(beyond))
    return replace(point, radius_mm=domes[nearest].radius_mm) if beyond[nearest] <= OWN_MM else point


def _targets(targets: NDArray[np.float32], points: Sequence[Point], *, clean: bool) -> NDArray[np.float32]:
    """Return labels with what follows from points; `clean` says that masks show nothing, not even what is ignored."""
    known = targets.astype(np.float32).copy()
    for point in points:
        if point.location and np.isnan(known[LABELS.index(point.location)]):
            known[LABELS.index(point.location)] = 1
    if np.isnan(known[PRESENT_INDEX]) and (points or clean):
        known[PRESENT_INDEX] = 1 if points else 0
    if known[PRESENT_INDEX] == 0:
        known[:PRESENT_INDEX][np.isnan(known[:PRESENT_INDEX])] = 0
    return known
