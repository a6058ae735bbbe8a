"""From a series as it was scanned to a volume as training and inference see it.

Find the head and its window → reorient → region of interest → antialiased resampling on true slice positions → window,
in one pass over the slices. Values are resampled first and windowed after: a window before would let the clipped
average of bone and air differ from the average the scanner would have measured. Points travel through the same affine.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.config import VolumeConfig
from aneurysm_ray.data import doubts, lesions, masks, vesselness
from aneurysm_ray.data.dataset import DomeMask, Localizer
from aneurysm_ray.data.points import Mark, marked_mm
from aneurysm_ray.data.region import Head, find_head, head_box, patient_axes
from aneurysm_ray.data.resample import GRID_MM, Axes, frame_of, resample
from aneurysm_ray.data.store import Point, PreparedVolume
from aneurysm_ray.data.volume import Volume
from aneurysm_ray.data.window import Window, find_window, to_uint8
from aneurysm_ray.labels import LABELS

Voxels = NDArray[np.uint8] | NDArray[np.int16]

AIR_BACKGROUND_HU = -1024.0
SAME_MM = 2.0
"""Clicks of one location nearer to each other than this mark one aneurysm."""
MR_SPAN = (1024.0, 16384.0)
"""Whole numbers that an MR window spans where it is stored as int16: no fewer and no more."""


def prepare_series(
    volume: Volume,
    config: VolumeConfig,
    *,
    targets: NDArray[np.float32] | None = None,
    localizers: Sequence[Localizer] = (),
    marks: Sequence[Mark] = (),
    modality: str | None = None,
    series_uid: str | None = None,
    patient: str = "",
    source_digest: str = "",
    vessels: Path | None = None,
    domes: Sequence[DomeMask] = (),
    site: str = "",
) -> PreparedVolume:
    """Return a series reoriented, cropped to the region of interest, resampled and windowed.

    What the tables know (`targets`, `localizers`, `marks`, `modality`, `series_uid`) replaces what the images say. What
    is doubtful about places and masks (NIfTI files, taken onto the volume's grid) is told by quality codes.
    Raises SeriesError (`no_head`) for an image of one value, (`no_geometry`) when slices do not lie one after another.
    """
    frame = frame_of(volume)
    head = find_head(volume, frame)
    box = head_box(head, volume, frame, config.extent_mm)
    axes, signs = patient_axes(frame)
    spacing = [config.spacing_mm[axes.index(axis)] for axis in range(3)]
    targets_mm = tuple(_centres(low, high, step) for (low, high), step in zip(box, spacing, strict=True))

    slices = resample(
        volume.voxels,
        frame,
        (targets_mm[0], targets_mm[1], targets_mm[2]),
        (spacing[0], spacing[1], spacing[2]),
        background=AIR_BACKGROUND_HU if volume.modality == "CT" else head.zero,
    )
    shape = len(targets_mm[0]), len(targets_mm[1]), len(targets_mm[2])
    stored, window = _stored(slices, shape, find_window(volume.modality, head, config), volume.modality, config)
    flips = tuple(slice(None, None, sign) for sign in signs)
    standard = np.ascontiguousarray(stored.transpose(axes)[flips])
    affine = _affine(frame, axes, signs, targets_mm, spacing)
    clicks, codes = _points(volume, localizers, affine)
    size = standard.shape[0], standard.shape[1], standard.shape[2]
    labels = np.full(len(LABELS), np.nan, np.float32) if targets is None else targets.astype(np.float32)
    known = lesions.gather(volume, affine, size, clicks, marks, domes, labels)
    points = known.points
    codes += known.codes
    modality = modality or volume.modality
    middle_x = _middle_x(head, frame, affine)
    codes += doubts.of_points(points, standard, window, config.spacing_mm, middle_x, modality, config.window_medians)
    codes += ["head_doubtful"] * head.doubtful
    on_vessels, missed = masks.vessels_on_volume(vessels if config.masks else None, affine, size, points)
    return PreparedVolume(
        series_uid=series_uid or volume.series_uid,
        patient=patient,
        site=site,
        modality=modality,
        plane=volume.plane,
        voxels=cast(Voxels, standard),
        affine=affine,
        targets=known.targets,
        points=points,
        ignored=known.ignored,
        window=window,
        vessels=on_vessels,
        domes=known.domes if config.masks else None,
        quality=tuple(dict.fromkeys((*volume.quality, *codes, *missed))),
        source_digest=source_digest,
        vessel_places=vesselness.vessel_places(to_uint8(standard, window), config.spacing_mm, modality, on_vessels),
    )


def _centres(low: float, high: float, spacing: float) -> NDArray[np.float64]:
    """Return the centres of the whole voxels that fit between two edges, one at least, in the middle of them."""
    # A scan as long as so many voxels has them all, however its file rounds the positions of its ends.
    count = max(1, int((high - low + 4 * GRID_MM) / spacing))
    return np.linspace(-(count - 1) / 2, (count - 1) / 2, count) * spacing + (low + high) / 2


def _affine(
    frame: Axes,
    axes: tuple[int, int, int],
    signs: tuple[int, int, int],
    targets_mm: tuple[NDArray[np.float64], ...],
    spacing: Sequence[float],
) -> NDArray[np.float64]:
    affine = np.eye(4)
    corner = np.zeros(3)
    for standard, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[:3, standard] = sign * spacing[axis] * frame.directions[axis]
        corner += targets_mm[axis][0 if sign > 0 else -1] * frame.directions[axis]
    affine[:3, 3] = corner
    return affine


def _stored(
    slices: Iterable[NDArray[np.float32]],
    shape: tuple[int, int, int],
    window: Window,
    modality: str,
    config: VolumeConfig,
) -> tuple[Voxels, Window]:
    """Return slices as they are stored, and the window in the units of what is stored."""
    if config.dtype == "uint8":
        windowed = np.empty(shape, np.uint8)
        for index, values in enumerate(slices):
            windowed[index] = to_uint8(values, window)
        return windowed, window
    # CT keeps its unit; MR, which has none, is spread so that rounding to whole numbers costs little of the window.
    least, most = np.log2(np.divide(MR_SPAN, window.high - window.low))
    spread = 1.0 if modality == "CT" else 2.0 ** float(np.clip(0, np.ceil(least), np.floor(most)))
    whole = np.empty(shape, np.int16)
    for index, values in enumerate(slices):
        whole[index] = np.clip(np.rint(values * np.float32(spread)), -32768, 32767)
    return whole, Window(window.low * spread, window.high * spread)


def _middle_x(head: Head, frame: Axes, affine: NDArray[np.float64]) -> float:
    """Return the voxel along x of the head's middle."""
    axes, signs = patient_axes(frame)
    left = signs[2] * frame.directions[axes[2]]
    return float((head.centre_mm[1] - affine[:3, 3] @ left) / (affine[:3, 2] @ left))


def _points(
    volume: Volume, localizers: Sequence[Localizer], affine: NDArray[np.float64]
) -> tuple[tuple[Point, ...], list[str]]:
    """Return clicks as points of the prepared volume, and quality codes: a click on an image that was left out is
    placed by that image's own geometry, one that cannot be placed is left out, and those of one location that lie
    together are one."""
    to_voxel = np.linalg.inv(affine)
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    points: list[Point] = []
    codes = []
    for click in localizers:
        place = marked_mm(volume, click.sop_uid, click.x, click.y, click.frame)
        if place is None:
            codes.append("point_lost")
            continue
        if not place[1]:
            codes.append("point_elsewhere")
        z, y, x = to_voxel[:3, :3] @ place[0] + to_voxel[:3, 3]
        same = [other for other in points if other.location == click.location]
        if any(
            np.linalg.norm(((other.z, other.y, other.x) - np.array([z, y, x])) * spacing_mm) < SAME_MM for other in same
        ):
            codes.append("point_repeated")
        else:
            points.append(Point(float(z), float(y), float(x), click.location, click.radius_mm))
    return tuple(points), list(dict.fromkeys(codes))
