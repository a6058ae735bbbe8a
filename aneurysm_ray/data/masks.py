"""Masks of vessels and domes from NIfTI onto the grid of a stored volume, and whether they can be trusted.

A mask lies in space by its own affine (NIfTI-1: sform or qform, to RAS in mm), never by the order of its voxels: the
competition's are ordered (X, Y, Z) with y flipped against the images, and some have another size than their series.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import scipy.ndimage
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from aneurysm_ray.data import nifti
from aneurysm_ray.data.dataset import SEGMENTATION_VALUES
from aneurysm_ray.data.store import Point
from aneurysm_ray.data.volume import Volume
from aneurysm_ray.errors import SeriesError
from aneurysm_ray.labels import LOCATIONS, MIRRORED

U8 = NDArray[np.uint8]

UNKNOWN = 255
"""Value of voxels outside a mask's own grid, where nobody looked."""
CLASSES = max(SEGMENTATION_VALUES.values())
MAX_VOXELS = 2**30
WHOLE = 0.05
"""A mask's value within this of a whole number is that number, rounded by a tool on the way."""
LEAST_INSIDE = 0.5
"""A mask of whose labelled voxels a smaller share lies in the stored volume is of something else."""
MOVED_MM = 2.0
"""A mask with as many voxels as its image has its corners within this, or one of the two is in a wrong place."""
FITS_BETTER = 0.2
"""Share of an image's variance by which a mask fits it better elsewhere, if it belongs there: far above chance."""
SHELL = 2
"""Voxels around a mask that tell whether it follows what is to be seen."""
NEAR_MM, FAR_MM = 20.0, 30.0
"""A point lies within the first of the vessel that it names, as sacs are up to 20 mm wide. A mask that has that vessel
farther away contradicts the point if the vessel's mirror image is less than half as far, and any mask does that has no
vessel within the second."""
MIRRORED_CLASSES: tuple[int, ...] = (
    0,
    *(
        SEGMENTATION_VALUES[LOCATIONS[MIRRORED[LOCATIONS.index(name)]]]
        for name, _ in sorted(SEGMENTATION_VALUES.items(), key=lambda item: item[1])
    ),
)
"""`MIRRORED_CLASSES[c]` is class c's of the head mirrored left to right."""
SIDES = [[value for name, value in SEGMENTATION_VALUES.items() if name.startswith(side)] for side in ("Right", "Left")]
"""Classes of the right and of the left vessels."""


class MaskError(Exception):
    """A mask cannot be used; the text says why."""


@dataclass(frozen=True, eq=False)
class Mask:
    """Labels in space."""

    labels: NDArray[Any]
    """On the mask's own three axes."""
    affine: NDArray[np.float64]
    """(4, 4): index on these axes to patient (x, y, z, 1) in mm, LPS."""
    codes: tuple[str, ...] = ()
    """Quality codes of where it lies: `forms_disagree`, `units_converted`."""


def read_mask(path: Path) -> Mask:
    """Read a NIfTI mask, which lies where an image with its header would; its voxels stay on disk where they can.

    Raises MaskError for what cannot be read, is not one volume, or holds no real numbers.
    """
    try:
        image: Any = nibabel.load(path)
        if len([n for n in image.shape if n > 1]) > 3 or image.ndim < 3 or np.prod(image.shape) > MAX_VOXELS:
            raise MaskError(f"its shape is {image.shape}, not that of one volume")
        if image.get_data_dtype().fields is not None or image.get_data_dtype().kind not in "iufb":
            raise MaskError("it holds colours or complex numbers")
        int(image.header["sform_code"])  # other formats have none
        placement = nifti.placed(image.header, image.shape[:3], str(path))
        labels = np.asanyarray(image.dataobj)
    except SeriesError as error:
        raise MaskError(error.told) from error
    except (OSError, EOFError, ValueError, KeyError, TypeError, OverflowError, zlib.error) as error:
        raise MaskError(f"it cannot be read ({type(error).__name__})") from error
    except (ImageFileError, HeaderDataError) as error:
        raise MaskError("it is no NIfTI file") from error
    return Mask(labels.reshape(labels.shape[:3]), placement.affine, placement.codes)


def whole(labels: NDArray[Any]) -> NDArray[Any]:
    """Return the values of a mask as whole numbers.

    A mask of one thing that was resampled or is a probability is halved at 0.5. Raises MaskError for what has nothing
    but values below that, for values between the numbers of several things, and for what is no number.
    """
    if labels.dtype.kind in "iub":
        return np.asarray(labels)
    found = np.empty_like(labels, np.int32, subok=False)
    highest, between = 0.0, False
    for index in range(labels.shape[-1]):  # one by one, as masks of floats are large
        part = labels[..., index]
        if not np.isfinite(part).all():
            raise MaskError("it holds values that are no numbers")
        rounded = np.rint(part)
        if np.abs(rounded).max(initial=0) > 2**31 - 1:
            raise MaskError("it holds values too large for labels")
        between |= bool((np.abs(part - rounded) > WHOLE).any())
        highest = max(highest, float(part.max(initial=0)))
        found[..., index] = rounded
    if between and found.max() > 1:
        raise MaskError("it holds values between its labels, as after resampling with interpolation")
    if highest > 0 and not found.any():
        raise MaskError(f"its largest value is {highest:g}: it may be a probability or have been rescaled")
    return found


def onto_grid(mask: Mask, affine: NDArray[np.float64], shape: tuple[int, int, int]) -> U8:
    """Return a mask's labels at the centres of a grid's voxels (Z, Y, X), UNKNOWN outside the mask.

    `affine` maps the grid's index (z, y, x, 1) to patient LPS. Raises MaskError for labels that are no vessel classes.
    """
    to_mask = np.linalg.inv(mask.affine) @ affine
    turn, start = to_mask[:3, :3], to_mask[:3, 3]
    along = np.abs(turn).argmax(axis=1)
    drift = np.where(np.arange(3) == along[:, None], 0, np.abs(turn)) @ np.array(shape)
    # Both follow the slices of one series, for the most part: then an axis of one is an axis of the other.
    if len(set(along)) == 3 and drift.max() < 0.1:
        return _along_axes(mask, turn, start, along, shape)
    return _across_axes(mask, turn, start, shape)


def _along_axes(
    mask: Mask,
    turn: NDArray[np.float64],
    start: NDArray[np.float64],
    along: NDArray[np.intp],
    shape: tuple[int, int, int],
) -> U8:
    # On the grid's own order of axes: memory is then read in the order in which it lies.
    labels = mask.labels.transpose(np.argsort(along))
    order = [int(axis) for axis in np.argsort(along)]
    middle = turn @ ((np.array(shape) - 1) / 2) + start
    places = [
        turn[axis, other] * (np.arange(shape[other]) - (shape[other] - 1) / 2) + middle[axis]
        for other, axis in enumerate(order)
    ]
    known = [_within(place, length) for place, length in zip(places, labels.shape, strict=True)]
    z, y, x = (_nearest(place, length) for place, length in zip(places, labels.shape, strict=True))
    out = np.full(shape, UNKNOWN, np.uint8)
    if not all(inside.any() for inside in known):
        return out
    y_span, x_span = (slice(int(place.min()), int(place.max()) + 1) for place in (y, x))
    for index, source in enumerate(z):
        if known[0][index]:
            plane = _checked(labels[source, y_span, x_span])
            if plane.any():
                out[index] = plane[(y - y_span.start)[:, None], x - x_span.start]
            else:
                out[index] = 0
    out[:, ~known[1]] = UNKNOWN
    out[:, :, ~known[2]] = UNKNOWN
    return out


def _across_axes(mask: Mask, turn: NDArray[np.float64], start: NDArray[np.float64], shape: tuple[int, int, int]) -> U8:
    labels = _checked(mask.labels)
    y, x = np.arange(shape[1], dtype=np.float32)[:, None], np.arange(shape[2], dtype=np.float32)
    plane = [np.float32(turn[axis, 1]) * y + np.float32(turn[axis, 2]) * x for axis in range(3)]
    out = np.empty(shape, np.uint8)
    for z in range(shape[0]):
        places = [plane[axis] + np.float32(turn[axis, 0] * z + start[axis]) for axis in range(3)]
        known = np.logical_and.reduce([_within(p, n) for p, n in zip(places, labels.shape, strict=True)])
        kept = tuple(_nearest(p, n) for p, n in zip(places, labels.shape, strict=True))
        out[z] = np.where(known, labels[kept], UNKNOWN)
    return out


def _within(places: NDArray[Any], length: int) -> NDArray[np.bool_]:
    """Say which places along an axis are known; a volume may end a little beyond the last centre of its scan."""
    return np.asarray((places >= -1) & (places <= length))


def _nearest(places: NDArray[Any], length: int) -> NDArray[np.int32]:
    return np.asarray(np.clip(np.rint(places), 0, length - 1), np.int32)


def _checked(labels: NDArray[Any]) -> U8:
    """Return labels as uint8. Raises MaskError for what is no vessel class."""
    lowest, highest = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if not (lowest >= 0 and highest <= CLASSES):
        raise MaskError(f"it holds labels from {lowest} to {highest}; vessels are 1 to {CLASSES}")
    return labels.astype(np.uint8)


def vessels_on_volume(
    path: Path | None, affine: NDArray[np.float64], shape: tuple[int, int, int], points: Sequence[Point]
) -> tuple[U8 | None, list[str]]:
    """Return a mask of vessels, by class, on the grid of a stored volume, or the quality code of why it is left out."""
    if path is None:
        return None, []
    try:
        mask = read_mask(path)
        mask = replace(mask, labels=whole(mask.labels))
        labels = onto_grid(mask, affine, shape)
    except MaskError:
        return None, ["mask_unreadable"]
    code = _wrong(mask, labels, affine, points)
    return (None, [code]) if code else (labels, [])


def domes_on_volume(
    found: Sequence[tuple[Mask, NDArray[np.bool_], NDArray[np.bool_]]],
    affine: NDArray[np.float64],
    shape: tuple[int, int, int],
) -> U8 | None:
    """Return the masks of domes as one on the grid of a stored volume: 1 inside a dome, UNKNOWN where nobody looked.

    `found` has for each mask where, on its own axes, it shows domes and what is ignored; the latter is UNKNOWN too.
    """
    domes: U8 | None = None
    for mask, inside, ignored in found:
        # Two is what is ignored, on the way.
        labels = onto_grid(replace(mask, labels=inside.astype(np.uint8) + 2 * ignored.astype(np.uint8)), affine, shape)
        mapped = np.where(labels == 2, UNKNOWN, labels).astype(np.uint8)
        if domes is None:
            domes = mapped
        else:
            looked = np.where(domes == UNKNOWN, mapped, domes)
            looked[(domes != UNKNOWN) & (labels == 2)] = UNKNOWN
            domes = np.where((domes == 1) | (mapped == 1), 1, looked).astype(np.uint8)
    return domes


def misses(mask: Mask, inside: NDArray[np.bool_], affine: NDArray[np.float64], shape: tuple[int, int, int]) -> bool:
    """Whether less than LEAST_INSIDE of what a mask shows lies in a stored volume."""
    places = np.argwhere(inside)
    if not len(places):
        return False
    mm = places @ mask.affine[:3, :3].T + mask.affine[:3, 3]
    to_voxel = np.linalg.inv(affine)
    zyx = mm @ to_voxel[:3, :3].T + to_voxel[:3, 3]
    within = ((zyx >= -0.5) & (zyx <= np.array(shape) - 0.5)).all(axis=1)
    return bool(within.mean() < LEAST_INSIDE)


def moved(mask: Mask, inside: NDArray[np.bool_], volume: Volume) -> bool:
    """Whether a mask with as many voxels as its NIfTI image lies elsewhere.

    Tools store a mask in an order of their own, with the affine to it: its corners are then the image's, whichever of
    them comes first. An affine with a wrong sign may keep the corners too; what the mask shows (`inside`) then fits the
    image better voxel by voxel, in the order in which both are stored, than where the affine puts it.
    """
    if volume.instances or sorted(mask.labels.shape) != sorted(volume.shape):
        return False
    ours = _corners(volume.shape) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    theirs = _corners(mask.labels.shape) @ mask.affine[:3, :3].T + mask.affine[:3, 3]
    apart = np.linalg.norm(ours[:, None] - theirs, axis=2)
    if apart.min(axis=0).max() > MOVED_MM:
        return True
    # Index (i, j, k) of NIfTI is (z, y, x) backwards.
    flat = np.ravel_multi_index(tuple(np.indices((2, 2, 2)).reshape(3, -1)[::-1]), (2, 2, 2))
    if mask.labels.shape != volume.shape[::-1] or apart[flat, np.arange(8)].max() <= MOVED_MM or not inside.any():
        return False
    to_image = np.linalg.inv(volume.affine) @ mask.affine
    by_affine = _fit(inside, volume.voxels, to_image)
    return _fit(inside, volume.voxels, np.eye(4)[[2, 1, 0, 3]]) > by_affine + FITS_BETTER


def _corners(shape: Sequence[int]) -> NDArray[np.int_]:
    """Return (8, 3): the first and last index along each axis."""
    return np.asarray(np.indices((2, 2, 2)).reshape(3, -1).T * (np.array(shape) - 1))


def _fit(inside: NDArray[np.bool_], voxels: NDArray[Any], to_image: NDArray[np.float64]) -> float:
    """Return the share of an image's variance, in a mask's pieces and around them, that the mask explains.

    This correlation ratio (Roche et al., MICCAI 1998) asks nothing of what is bright and what is dark.
    """
    box = scipy.ndimage.find_objects(inside.astype(np.uint8))[0]
    wider = tuple(slice(max(0, side.start - SHELL), side.stop + SHELL) for side in box)
    shown = inside[wider]
    near = scipy.ndimage.binary_dilation(shown, iterations=SHELL)
    places = (np.argwhere(near) + [side.start for side in wider]) @ to_image[:3, :3].T + to_image[:3, 3]
    values = voxels[tuple(np.clip(np.rint(places).astype(int), 0, np.array(voxels.shape) - 1).T)].astype(np.float64)
    within = shown[near]
    whole = values.var() * len(values)
    left = sum(part.var() * len(part) for part in (values[within], values[~within]) if len(part))
    return float(1 - left / whole) if whole > 0 else 0.0


def _wrong(mask: Mask, labels: U8, affine: NDArray[np.float64], points: Sequence[Point]) -> str:
    """Return the quality code of a vessel mask that cannot be its volume's, or nothing."""
    found = np.flatnonzero((labels != 0) & (labels != UNKNOWN))
    inside = len(found) * abs(float(np.linalg.det(affine[:3, :3])))
    labelled = np.count_nonzero(mask.labels) * abs(float(np.linalg.det(mask.affine[:3, :3])))
    if inside == 0 or inside < LEAST_INSIDE * labelled:
        return "mask_misses"
    voxels = np.stack(np.unravel_index(found, labels.shape), axis=1)
    mm = voxels @ affine[:3, :3].T + affine[:3, 3]
    return "mask_contradicts" if _contradicts(mm, labels.ravel()[found], affine, points) else ""


def _contradicts(mm: NDArray[np.float64], classes: U8, affine: NDArray[np.float64], points: Sequence[Point]) -> bool:
    """Whether left vessels lie to the right of the right ones, or points away from the vessels that they name.

    `mm` (N, 3) are the patient positions of a mask's labelled voxels, `classes` (N,) their labels.
    """
    right, left = (mm[np.isin(classes, side), 0] for side in SIDES)
    if len(right) and len(left) and right.mean() > left.mean():
        return True
    for point in points:
        place = affine[:3, :3] @ (point.z, point.y, point.x) + affine[:3, 3]
        distance = np.linalg.norm(mm - place, axis=1)
        if distance.min() > FAR_MM:
            return True
        if not point.location:
            continue
        own, mirrored = SEGMENTATION_VALUES[point.location], MIRRORED_CLASSES[SEGMENTATION_VALUES[point.location]]
        nearest = {value: distance[classes == value].min(initial=np.inf) for value in (own, mirrored)}
        if NEAR_MM < nearest[own] < np.inf and nearest[mirrored] < nearest[own] / 2:
            return True
    return False
