"""Codes of all that may be wrong with a series: what is repaired, assumed, left out, and why one is refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aneurysm_ray.errors import SERIES_REASONS, SeriesError

if TYPE_CHECKING:
    from aneurysm_ray.data.dicom.frames import Frame

QUALITY: dict[str, str] = {
    # left out
    "junk_files": "files that are no DICOM images were left out",
    "dangling_links": "links that lead nowhere were left out",
    "derived_objects": "objects made of images - segmentations, maps of parameters or dose - were left out",
    "unreadable_files": "damaged or unsupported DICOM files were left out",
    "colour_files": "colour images were left out",
    "duplicate_files": "copies - files with the same bytes, images with the same pixels and place - were left out",
    "duplicate_positions": "of several images at one position, the lowest Acquisition, then Instance Number was kept",
    "other_series": "images of another Series Instance UID were left out",
    "other_stacks": "images of another orientation, matrix or pixel spacing were left out",
    "localizers": "scout images (Image Type LOCALIZER) were left out",
    "projections": "projections (Image Type PROJECTION IMAGE or MIP) were left out",
    "other_components": "phase, real or imaginary images were left out, the magnitude kept",
    "other_passes": "of several passes - reconstructions, phases, energies, echoes, time points - one was kept whole",
    "far_slices": "a few slices beyond a gap wider than 12 mm and three steps were left out",
    # geometry
    "missing_slices": "a gap is a multiple of the slice spacing: slices are missing; the true positions are kept",
    "uneven_slices": "the slice spacing varies; the true positions are kept",
    "wide_gap": "a gap is wider than 12 mm and three steps: nothing was made up inside it, it holds background",
    "gantry_tilt": "slices step sideways as well as along their normal; the true positions are kept",
    "shifted_slices": "slices are shifted in their plane against one straight line; the true positions are kept",
    "position_assumed": "no Image Position (Patient): slices stand at their Slice Location, centred on the axis",
    "orientation_assumed": "no Image Orientation (Patient): axial was assumed",
    "orientation_repaired": "direction cosines were not orthonormal and were made so",
    "geometry_assumed": "frames without positions of their own: stored order and nominal spacing were assumed",
    "frames_assumed": "Number of Frames is missing; it was taken from the functional groups or the pixel data's length",
    "forms_disagree": "a NIfTI file's sform and qform disagree: the sform counts, or the qform if that is sheared",
    "units_converted": "a NIfTI file is in metres or micrometres; positions were converted to mm",
    # pixels
    "masked_bits": "bits above Bits Stored, such as an old overlay, were cleared",
    "bits_contradicted": "values need more bits than Bits Stored says; they were kept whole, as the image is smooth so",
    "syntax_misnamed": "the Transfer Syntax is not that of the data, which were read as what they are",
    "rescale_varies": "Rescale Slope or Intercept differ between slices; each slice has its own applied",
    "rescale_assumed": "a CT without Rescale Slope and Intercept: stored values were taken for Hounsfield units",
    "rescale_twice": "a CT whose stored values are Hounsfield units already: its Rescale Intercept was not added again",
    "hu_doubtful": "a CT without air, with much below air or with nothing dense: it may not be in Hounsfield units",
    "modality_lut": "values went through a Modality LUT",
    "wide_range": "values do not fit int16, so that the voxels are float32",
    "padding": "voxels with the Pixel Padding Value lie outside the scanned field and were set to background",
    "not_finite": "values of a NIfTI file that are no number, or infinite, were set to background",
    "monochrome1": "Photometric Interpretation is MONOCHROME1; values are kept, as it concerns display only",
    "inverted": "Presentation LUT Shape is INVERSE; stored values were inverted",
    # identity
    "modality_assumed": "nothing says whether a NIfTI file is CT or MR: its values have air at -1000, or they have not",
    "modality_doubtful": "a NIfTI file that is said to be MR has air at -1000 and tissue at 0, as only a CT has",
    "no_preamble": "a file without DICOM preamble was read as a bare data set",
    "repeated_instance_uids": "several files share one SOP Instance UID, so that points cannot be placed by it",
    "scan_repeated": "another patient has the same voxels: one scan is there twice, or one person by two names",
    "series_uid_assumed": "no Series Instance UID, or a word that is none: a set makes one of the place",
    # region
    "head_doubtful": "no head was found, as no ball of 48 mm radius fits; the scan's top was taken for the head's",
    # points and masks
    "point_elsewhere": "a localizer names an image that was left out; its own geometry placed the point",
    "point_lost": "a localizer names an image that is not in the series, or names two; its point was left out",
    "point_repeated": "clicks of one location less than 2 mm apart were taken for one",
    "point_outside": "a point lies outside the stored volume",
    "point_side": "a left label's point lies more than 6 mm to the right of the head's middle, or the reverse",
    "point_dark": "nothing within 3 mm of a point is as bright as blood is in such a scan",
    "mask_unreadable": "a mask cannot be read, or has values that are no labels or that nothing names; it was left out",
    "mask_misses": "less than half of what a mask labels lies in the stored volume; it was left out",
    "mask_large": "a piece of a mask of aneurysms is longer than 60 mm: it may show vessels or the brain",
    "mask_moved": "a mask has as many voxels as its image, and its affine puts them elsewhere: one of the two is wrong",
    "mask_shared": "of a session's several images nothing says on which a mask was drawn; all of them have it",
    "mask_empty": "the labels tell of an aneurysm, and the mask of aneurysms is empty",
    "label_contradicts": "the labels tell of no aneurysm, or of none at its place, and a point or mask shows one",
    "mask_contradicts": "a vessel mask has its sides swapped, or lies away from the points; it was left out",
}
"""Reason codes of `Volume.quality` and what each means."""


class BadFile(Exception):
    """A file cannot be part of a volume; `code` is a key of `QUALITY` or `SERIES_REASONS`, the text shows the value."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Odd(Exception):
    """The lean walker met something it leaves to pydicom."""


@dataclass(frozen=True)
class Dropped:
    """A file, or one frame of it, that is not in the volume."""

    file: str
    code: str
    """A key of `QUALITY`, or of `SERIES_REASONS` where the code names a defect of the file."""
    message: str
    frame: Frame | None = None
    """The image, where its header could be read."""


QUALITY_OF_DEFECT = {
    "no_images": "unreadable_files",
    "no_geometry": "unreadable_files",
    "unreadable_pixels": "unreadable_files",
    "unsupported": "unreadable_files",
    "too_large": "unreadable_files",
    "unsafe_path": "unreadable_files",
    "vanished": "unreadable_files",
    "memory": "unreadable_files",
    "colour": "colour_files",
}
"""The quality code that a volume carries for files left out with a reason of `SERIES_REASONS`."""

REASON_OF_CODE = {
    **dict.fromkeys(("junk_files", "derived_objects", "unreadable_files", "localizers", "projections"), "no_images"),
    **dict.fromkeys(("duplicate_files", "duplicate_positions", "other_series", "other_stacks"), "single_slice"),
    **dict.fromkeys(("other_passes", "other_components", "far_slices"), "single_slice"),
    "colour_files": "colour",
    "dangling_links": "vanished",
}
"""The series' reason where a code of `QUALITY` is all there is to say about its files."""


def quality_code(code: str) -> str:
    """Return the code a volume carries for a file dropped with this one."""
    return QUALITY_OF_DEFECT.get(code, code)


def refuse(path: Path, dropped: list[Dropped]) -> SeriesError:
    """Return the error of a series of which nothing remains: the commonest defect, and the first file that has it.

    What was left out by a choice among good images counts only where no file has a defect, and files that are no DICOM
    at all where there is nothing else.
    """
    kinds = (
        [
            drop
            for drop in dropped
            if drop.code in SERIES_REASONS or drop.code in ("dangling_links", "unreadable_files")
        ],
        [drop for drop in dropped if drop.code != "junk_files"],
        dropped,
    )
    telling = next((kind for kind in kinds if kind), [])
    if not telling:
        return SeriesError("no_images", "holds no DICOM image", str(path))
    commonest = Counter(drop.code for drop in telling).most_common(1)[0][0]
    first = next(drop for drop in telling if drop.code == commonest)
    more = f" (and {len(dropped) - 1} more file{'s' if len(dropped) > 2 else ''})" if len(dropped) > 1 else ""
    inside = first.file.removeprefix(str(path)).lstrip("/")
    told = f"{first.message}{more}" if inside else f"a file {first.message}{more}"
    reason = commonest if commonest in SERIES_REASONS else REASON_OF_CODE.get(commonest, "no_images")
    return SeriesError(reason, told, f"{path}: {inside}" if inside else str(path))
