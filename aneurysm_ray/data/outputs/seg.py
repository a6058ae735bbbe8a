"""The heat map as a DICOM Segmentation: FRACTIONAL, PROBABILITY, pixel for pixel on the source slices (PS3.3 A.51)."""

from collections.abc import Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
from highdicom import seg
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import RLELossless
from pydicom.valuerep import DSfloat
from scipy import ndimage

from aneurysm_ray import __version__
from aneurysm_ray.data.outputs.evidence import EQUIPMENT, RESEARCH_ONLY, check_named_once, completed
from aneurysm_ray.data.points import SourceSlices

FLOOR = 0.02
"""Probabilities below this become 0, so that slices without a finding need no frame."""


def write_segmentation(
    path: Path,
    grid: NDArray[np.floating],
    affine: NDArray[np.float64],
    slices: SourceSlices,
    headers: Sequence[Dataset],
) -> bool:
    """Write a heat map (Z, Y, X) of probabilities as one fractional segment on the source slices.

    `affine` maps the grid's (z, y, x, 1) to patient mm; `headers` are those of the source images, pixels not needed.
    Frames hold round(255 p), interpolated linearly, and exist only where some p reaches `FLOOR`. Returns False, and
    writes nothing, when none does. Raises ValueError when the source images cannot be referred to pixel for pixel.
    """
    check_named_once(slices.instances)
    evidence = {header.SOPInstanceUID: header for header in completed(headers)}
    _check_placed(list(evidence.values()))
    for header in evidence.values():
        if "SliceThickness" not in header and "SharedFunctionalGroupsSequence" not in header:
            header.SliceThickness = DSfloat(_step_mm(slices), auto_format=True)
    frames = sampled(grid, affine, slices)
    filled = np.asarray(frames.any(axis=(1, 2)))
    if not filled.any():
        return False
    uids = [uid for uid, _ in slices.instances]
    first = next(iter(evidence.values()))
    if len(evidence) == 1 and int(first.get("NumberOfFrames") or 1) > 1:
        # A multi-frame image wants an array with all of its frames, in stored order.
        sources = [first]
        pixels = np.zeros((int(first.NumberOfFrames), slices.rows, slices.columns), frames.dtype)
        for (_, stored), frame in zip(slices.instances, frames, strict=True):
            pixels[stored] = frame
    elif len(set(uids)) == len(uids):
        sources = [evidence[uid] for uid, keep in zip(uids, filled, strict=True) if keep]
        pixels = frames[filled]
    else:
        raise ValueError("the series mixes several multi-frame files")
    segment = seg.SegmentDescription(
        segment_number=1,
        segment_label="Aneurysm probability",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Aneurysm,
        algorithm_type=seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="aneurysm_ray", version=__version__, family=codes.DCM.ArtificialIntelligence
        ),
    )
    document = seg.Segmentation(
        source_images=sources,
        pixel_array=pixels,
        segmentation_type=seg.SegmentationTypeValues.FRACTIONAL,
        fractional_type=seg.SegmentationFractionalTypeValues.PROBABILITY,
        max_fractional_value=255,
        segment_descriptions=[segment],
        series_instance_uid=hd.UID(),
        series_number=9902,
        series_description="Aneurysm heat map, research only",
        sop_instance_uid=hd.UID(),
        instance_number=1,
        transfer_syntax_uid=RLELossless,
        content_label="ANEURYSM",
        content_description=f"{RESEARCH_ONLY}: aneurysm heat map",
        **EQUIPMENT,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    document.save_as(path, enforce_file_format=True)
    return True


def _check_placed(headers: Sequence[Dataset]) -> None:
    """Raise ValueError when images have no common space that a segmentation could lie in."""
    for keyword, what in (("FrameOfReferenceUID", "Frames of Reference"), ("StudyInstanceUID", "studies")):
        found = {header.get(keyword) for header in headers}
        if len(found) > 1:
            raise ValueError(f"the source images are of {len(found)} {what}, a segmentation lies in one")
        if not found.pop():
            raise ValueError(f"the source images have no {keyword}, so no segmentation can lie on them")
    for header in headers:
        grouped = "PerFrameFunctionalGroupsSequence" in header
        if not grouped and not (header.get("ImagePositionPatient") and header.get("ImageOrientationPatient")):
            raise ValueError(
                "the source images have no Image Position or Orientation (Patient), so nothing lies on them"
            )


def _step_mm(slices: SourceSlices) -> float:
    normal = np.cross(slices.row_mm, slices.column_mm)
    steps = np.diff(slices.origins_mm, axis=0) @ normal / np.linalg.norm(normal)
    return round(float(np.median(np.abs(steps))), 4)


def sampled(grid: NDArray[np.floating], affine: NDArray[np.float64], slices: SourceSlices) -> NDArray[np.float32]:
    """Return the heat map at the pixel centres of every source slice: (slices, rows, columns), 0 below `FLOOR`.

    Interpolation is linear between cell centres and constant beyond the outermost ones, 0 from half a cell outside.
    """
    values = np.pad(np.asarray(grid, np.float32), 1, mode="edge")
    frames = np.zeros((len(slices.origins_mm), slices.rows, slices.columns), np.float32)
    # Cells that raise some pixel to the floor, and the neighbours that share those pixels.
    hot = ndimage.binary_dilation(np.asarray(grid) >= FLOOR, np.ones((3, 3, 3)))
    to_cell = np.linalg.inv(affine)
    row, column = to_cell[:3, :3] @ slices.row_mm, to_cell[:3, :3] @ slices.column_mm
    plane = np.arange(slices.rows)[:, None, None] * row + np.arange(slices.columns)[None, :, None] * column
    for index in _near(np.argwhere(hot), affine, slices):
        cells = plane + (to_cell @ np.append(slices.origins_mm[index], 1.0))[:3]
        nearest = np.rint(cells).astype(np.int32)
        inside = ((nearest >= 0) & (nearest < grid.shape)).all(axis=2)
        inside[inside] = hot[tuple(nearest[inside].T)]
        if inside.any():
            found = ndimage.map_coordinates(values, cells[inside].T + 1, order=1)
            frames[index][inside] = np.where(found >= FLOOR, found, 0)
    return frames


def _near(cells: NDArray[np.int_], affine: NDArray[np.float64], slices: SourceSlices) -> NDArray[np.int_]:
    """Return the indices of the slices whose planes come within a cell's diagonal of some of the cells (N, 3)."""
    if not len(cells):
        return np.zeros(0, int)
    normal = np.cross(slices.row_mm, slices.column_mm)
    normal /= np.linalg.norm(normal)
    heights = np.sort((cells @ affine[:3, :3].T + affine[:3, 3]) @ normal)
    planes = slices.origins_mm @ normal
    after = np.searchsorted(heights, planes)
    gaps = np.minimum(
        np.abs(heights[np.minimum(after, len(heights) - 1)] - planes),
        np.abs(heights[np.maximum(after - 1, 0)] - planes),
    )
    return np.flatnonzero(gaps <= np.linalg.norm(affine[:3, :3], axis=0).sum())
