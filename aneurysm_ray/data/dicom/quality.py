"""Codes of all that may be wrong with a series: what is repaired, assumed, left out, and why one is refused."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from aneurysm_ray.errors import SeriesError

QUALITY: dict[str, str] = {
    # left out
    "junk_files": "files that are no DICOM images were left out",
    "unreadable_files": "damaged or unsupported DICOM files were left out",
    "colour_files": "colour images were left out",
    "duplicate_files": "files with the same bytes as another were left out",
    "duplicate_positions": "of several images at one position, the lowest Acquisition, then Instance Number was kept",
    "other_series": "images of another Series Instance UID were left out",
    "other_stacks": "images of another orientation, matrix or pixel spacing were left out",
    "localizers": "scout images (Image Type LOCALIZER) were left out",
    "projections": "projections (Image Type PROJECTION IMAGE or MIP) were left out",
    "other_components": "phase, real or imaginary images were left out, the magnitude kept",
    "other_passes": "of several echoes, phases or time points over the same positions, one was kept",
    # geometry
    "missing_slices": "a gap is a multiple of the slice spacing: slices are missing; the true positions are kept",
    "uneven_slices": "the slice spacing varies; the true positions are kept",
    "gantry_tilt": "slices step sideways as well as along their normal; the true positions are kept",
    "shifted_slices": "slices are shifted in their plane against one straight line; the true positions are kept",
    "position_assumed": "no Image Position (Patient): slices stand at their Slice Location, centred on the axis",
    "orientation_assumed": "no Image Orientation (Patient): axial was assumed",
    "orientation_repaired": "direction cosines were not orthonormal and were made so",
    "geometry_assumed": "frames without positions of their own: stored order and nominal spacing were assumed",
    "frames_assumed": "Number of Frames is missing; it was taken from the functional groups or the pixel data's length",
    # pixels
    "masked_bits": "bits above Bits Stored, such as an old overlay, were cleared",
    "rescale_varies": "Rescale Slope or Intercept differ between slices; each slice has its own applied",
    "rescale_assumed": "a CT without Rescale Slope and Intercept: stored values were taken for Hounsfield units",
    "hu_doubtful": "a CT whose smallest value is far from air at -1000 HU: the values may be no Hounsfield units",
    "modality_lut": "values went through a Modality LUT",
    "wide_range": "values do not fit int16, so that the voxels are float32",
    "padding": "voxels with the Pixel Padding Value lie outside the scanned field and were set to background",
    "monochrome1": "Photometric Interpretation is MONOCHROME1; values are kept, as it concerns display only",
    "inverted": "Presentation LUT Shape is INVERSE; stored values were inverted",
    # identity
    "no_preamble": "a file without DICOM preamble was read as a bare data set",
    "repeated_instance_uids": "several files share one SOP Instance UID, so that points cannot be placed by it",
    "point_lost": "a localizer names an image that is not in the volume, or names two; its point was left out",
    "series_uid_assumed": "no Series Instance UID: the name of the folder or file stands for it",
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

REASON_OF_CODE = {"junk_files": "no_images", "unreadable_files": "no_images", "localizers": "no_images"}
"""The series' reason where a code of `QUALITY` is all there is to say about its files."""


def quality_code(code: str) -> str:
    """Return the code a volume carries for a file dropped with this one."""
    return QUALITY_OF_DEFECT.get(code, code)


def refuse(path: Path, dropped: list[Dropped]) -> SeriesError:
    """Return the error of a series of which nothing remains: the commonest reason, and the first file that has it.

    Files that are no DICOM at all say the least, so their reason counts only where there is no other.
    """
    telling = [drop for drop in dropped if drop.code != "junk_files"] or dropped
    if not telling:
        return SeriesError("no_images", f"{path}: holds no DICOM image")
    commonest = Counter(drop.code for drop in telling).most_common(1)[0][0]
    first = next(drop for drop in telling if drop.code == commonest)
    more = f" (and {len(dropped) - 1} more files)" if len(dropped) > 1 else ""
    return SeriesError(
        REASON_OF_CODE.get(commonest, commonest),
        f"{path}: {first.file.removeprefix(str(path)).lstrip('/')} {first.message}{more}",
    )
