"""From a series as it was scanned to a volume as training and inference see it.

Reorient → region of interest → antialiased resampling on true slice positions → window, in one pass over the slices.
Values are resampled first and windowed after: a window before would let the clipped average of bone and air differ from
the average the scanner would have measured. Points travel through the same affine.
"""

from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.config import VolumeConfig
from aneurysm_ray.data.dataset import Localizer
from aneurysm_ray.data.points import marked_mm
from aneurysm_ray.data.region import head_box, patient_axes, tissue_threshold
from aneurysm_ray.data.resample import Axes, frame_of, resample
from aneurysm_ray.data.store import Point, PreparedVolume
from aneurysm_ray.data.volume import Volume
from aneurysm_ray.labels import LABELS

Voxels = NDArray[np.uint8] | NDArray[np.int16]

AIR_BACKGROUND_HU = -1024.0


def prepare_series(
    volume: Volume,
    config: VolumeConfig,
    *,
    targets: NDArray[np.float32] | None = None,
    localizers: Sequence[Localizer] = (),
    modality: str | None = None,
    series_uid: str | None = None,
    patient: str = "",
    source_digest: str = "",
) -> PreparedVolume:
    """Return a series reoriented, cropped to the region of interest, resampled and windowed.

    What the tables know (`targets`, `localizers`, `modality`, `series_uid`) replaces what the images say. A click on an
    image that was left out adds the quality code `point_elsewhere`, one that cannot be placed `point_lost`.
    Raises SeriesError (`no_head`) for an image of one value, (`no_geometry`) when slices do not lie one after another.
    """
    frame = frame_of(volume)
    threshold = tissue_threshold(volume)
    box = head_box(volume, frame, config.extent_mm, threshold)
    axes, signs = patient_axes(frame)
    spacing = [config.spacing_mm[axes.index(axis)] for axis in range(3)]
    targets_mm = tuple(_centres(low, high, step) for (low, high), step in zip(box, spacing, strict=True))

    background = AIR_BACKGROUND_HU if volume.modality == "CT" else 0.0
    slices = resample(
        volume.voxels,
        frame,
        (targets_mm[0], targets_mm[1], targets_mm[2]),
        (spacing[0], spacing[1], spacing[2]),
        background=background,
    )
    shape = len(targets_mm[0]), len(targets_mm[1]), len(targets_mm[2])
    if volume.modality == "CT":
        stored = _windowed_ct(slices, shape, config)
    else:
        stored = _windowed_mr(slices, shape, config, volume, threshold)
    flips = tuple(slice(None, None, sign) for sign in signs)
    standard = np.ascontiguousarray(stored.transpose(axes)[flips])
    affine = _affine(frame, axes, signs, targets_mm, spacing)
    points, moved, lost = _points(volume, localizers, affine)
    return PreparedVolume(
        series_uid=series_uid or volume.series_uid,
        patient=patient,
        modality=modality or volume.modality,
        plane=volume.plane,
        voxels=cast(Voxels, standard),
        affine=affine,
        targets=np.full(len(LABELS), np.nan, np.float32) if targets is None else targets.astype(np.float32),
        points=points,
        quality=volume.quality + ("point_elsewhere",) * bool(moved) + ("point_lost",) * bool(lost),
        source_digest=source_digest,
    )


def _centres(low: float, high: float, spacing: float) -> NDArray[np.float64]:
    """Return the centres of the whole voxels that fit between two edges, one at least, in the middle of them."""
    count = max(1, int((high - low) / spacing + 1e-6))
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


def _windowed_ct(slices: Iterable[NDArray[np.float32]], shape: tuple[int, int, int], config: VolumeConfig) -> Voxels:
    if config.dtype == "int16":
        return _rounded(slices, shape)
    low, high = config.window_hu
    out = np.empty(shape, np.uint8)
    for index, values in enumerate(slices):
        scaled = (values - np.float32(low)) * np.float32(255 / (high - low))
        out[index] = np.clip(scaled, 0, 255, out=scaled) + np.float32(0.5)
    return out


def _windowed_mr(
    slices: Iterable[NDArray[np.float32]],
    shape: tuple[int, int, int],
    config: VolumeConfig,
    volume: Volume,
    threshold: float,
) -> Voxels:
    """Window between the exact percentiles of the tissue: a histogram over whole values replaces sorting them.

    Volumes that are not whole numbers are stretched to 15 bits first, so that rounding costs at most 1/65534 of
    their range.
    """
    stretch = 1.0
    if volume.voxels.dtype != np.int16:
        stretch = 32767 / max(float(np.abs(volume.voxels).max()), 1e-30)
    whole = _rounded((values * np.float32(stretch) for values in slices) if stretch != 1 else slices, shape)
    if config.dtype == "int16":
        return whole
    counts = np.zeros(65536, np.int64)
    for plane in whole:
        counts += np.bincount(plane.ravel().view(np.uint16), minlength=65536)
    counts = np.roll(counts, 32768)  # from the order of the unsigned view to -32768 … 32767
    tissue = counts.copy()
    tissue[: int(np.ceil(threshold * stretch)) + 32768] = 0
    total = np.cumsum(tissue if tissue.any() else counts)
    low, high = (int(np.searchsorted(total, share / 100 * total[-1])) - 32768 for share in config.percentiles)
    high = max(high, low + 1)
    scaled = (np.arange(-32768, 32768) - low) * (255 / (high - low)) + 0.5
    table = np.roll(np.clip(scaled, 0, 255).astype(np.uint8), 32768)
    windowed: NDArray[np.uint8] = table[whole.view(np.uint16)]
    return windowed


def _rounded(slices: Iterable[NDArray[np.float32]], shape: tuple[int, int, int]) -> NDArray[np.int16]:
    out = np.empty(shape, np.int16)
    for index, values in enumerate(slices):
        out[index] = np.clip(np.rint(values), -32768, 32767)
    return out


def _points(
    volume: Volume, localizers: Sequence[Localizer], affine: NDArray[np.float64]
) -> tuple[tuple[Point, ...], int, int]:
    """Return clicks as points of the prepared volume, how many images that were left out placed, and how many none."""
    to_voxel = np.linalg.inv(affine)
    points = []
    moved = 0
    for click in localizers:
        place = marked_mm(volume, click.sop_uid, click.x, click.y, click.frame)
        if place is not None:
            z, y, x = to_voxel[:3, :3] @ place[0] + to_voxel[:3, 3]
            points.append(Point(float(z), float(y), float(x), click.location))
            moved += not place[1]
    return tuple(points), moved, len(localizers) - len(points)
