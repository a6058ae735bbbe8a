"""What is doubtful about points on their volume, as quality codes, and what makes a series worth a look."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.data.store import Point
from aneurysm_ray.data.window import Window, to_uint8
from aneurysm_ray.labels import PRESENT

SIDE_MM = 6.0
"""A left label's point may lie this far to the right of the head's middle: heads turn, and vessels cross over."""
AROUND_MM = 3.0
"""A point is dark when nothing within this distance is bright: clicks are no more exact."""
BLOOD_HU = 80.0
"""CT: contrast in blood is above, brain below."""
BLOOD_MEDIANS: Mapping[str, float] = {"MRA": 1.15, "MRI T1post": 0.8}
"""MR: blood is brighter than this many medians of the brain; in T2 and unknown sequences it may have any value."""
AIR_MEDIANS = 0.35
"""MR: nothing but air has only values below this, noise included."""

GRAVE: tuple[str, ...] = (
    "scan_repeated",
    *("point_outside", "point_side", "point_dark", "point_lost", "mask_misses", "mask_contradicts", "mask_unreadable"),
    *(
        "mask_moved",
        "mask_shared",
        "mask_large",
        "mask_empty",
        "label_contradicts",
        "forms_disagree",
        "modality_doubtful",
    ),
    *("head_doubtful", "hu_doubtful", "rescale_assumed", "rescale_twice", "position_assumed", "orientation_assumed"),
    *("geometry_assumed", "orientation_repaired", "missing_slices", "wide_gap", "other_stacks", "other_passes"),
    "frames_assumed",
)
"""Quality codes that may mean a wrong volume or a wrong label, and not only an untidy folder; the first weigh most."""
FIRST = GRAVE.index("head_doubtful")
"""Codes before this one are of patients, points and masks: they weigh 5, the other grave ones 3, all others 1."""


def is_inside(zyx: Sequence[float], shape: Sequence[int]) -> bool:
    """Say whether a place in voxels lies in a stored volume; half a voxel around the outer centres belongs to it."""
    return all(-0.5 <= at <= size - 0.5 for at, size in zip(zyx, shape, strict=True))


def of_points(
    points: Sequence[Point],
    voxels: NDArray[Any],
    window: Window,
    spacing_mm: tuple[float, float, float],
    middle_x: float,
    modality: str,
    medians: tuple[float, float],
) -> list[str]:
    """Return the quality codes of points on their volume.

    `middle_x` is the voxel of the head's middle, `medians` the setting `volume.window_medians`.
    """
    codes = []
    if not all(is_inside(_place(point), voxels.shape) for point in points):
        codes.append("point_outside")
    for point in points:
        beyond_mm = (point.x - middle_x) * spacing_mm[2]  # x grows to the left
        if (point.location.startswith("Left") and beyond_mm < -SIDE_MM) or (
            point.location.startswith("Right") and beyond_mm > SIDE_MM
        ):
            codes.append("point_side")
    for point in points:
        if is_inside(_place(point), voxels.shape) and _is_dark(point, voxels, window, spacing_mm, modality, medians):
            codes.append("point_dark")
    return list(dict.fromkeys(codes))


def _place(point: Point) -> tuple[float, float, float]:
    return point.z, point.y, point.x


def _is_dark(
    point: Point,
    voxels: NDArray[Any],
    window: Window,
    spacing_mm: tuple[float, float, float],
    modality: str,
    medians: tuple[float, float],
) -> bool:
    place = np.array(_place(point))
    reach = AROUND_MM / np.array(spacing_mm)
    first = np.maximum(np.ceil(place - reach), 0).astype(int)
    last = np.maximum(np.floor(place + reach).astype(int), first) + 1
    around = to_uint8(voxels[tuple(slice(a, b) for a, b in zip(first, last, strict=True))], window)
    share = float(around.max(initial=0)) / 255
    if modality in ("CT", "CTA"):
        return window.low + share * (window.high - window.low) < BLOOD_HU
    return medians[0] + share * (medians[1] - medians[0]) < BLOOD_MEDIANS.get(modality, AIR_MEDIANS)


def remarks(row: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return what a row of a volumes table has against it, each with its weight, the gravest first."""
    found = [
        (code.replace("_", " "), (5 if GRAVE.index(code) < FIRST else 3) if code in GRAVE else 1)
        for code in row["quality"]
    ]
    if row[PRESENT] > 0.5 and not len(row["points"]):
        found.append(("no point marks the aneurysm", 3))
    return sorted(found, key=lambda remark: -remark[1])
