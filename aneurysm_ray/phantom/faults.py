"""The defects of real folders, written on purpose: each fault is a small series of its own beside the sound ones.

Every defect was seen in the competition's data or in other collections. faults.csv says what a good reader makes of
each: `readable`, or the reason of the `SeriesError` it must raise, and the quality code it should report.
"""

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from aneurysm_ray.phantom.write import (
    DicomSeries,
    encode_rle,
    multiframe_dataset,
    slice_dataset,
    uid_of,
    write_slice,
    write_slices,
)

FAULTS_CSV = "faults.csv"
FAULT_COLUMNS = ("series_uid", "fault", "expected", "quality")
READABLE = "readable"
_ENHANCED_HU, _BLOOD_HU = (120, 700), 45


@dataclass(frozen=True)
class Fault:
    """A way in which a folder is not what it should be."""

    write: Callable[[DicomSeries, Path], None]
    expected: str = READABLE
    """READABLE, or a key of `errors.SERIES_REASONS`."""
    quality: str = ""
    """Key of `data.dicom.QUALITY` that a reader should report."""
    modality: str = "CTA"


def write_faulty(name: str, series: DicomSeries, folder: Path) -> None:
    """Write a series with a defect, a key of `FAULTS`."""
    folder.mkdir(parents=True)
    FAULTS[name].write(series, folder)


def _apart(series: DicomSeries) -> int:
    """A slice in the upper part of the head, far from any aneurysm."""
    return int(0.8 * len(series.pixels))


def _slice_path(series: DicomSeries, folder: Path, index: int) -> Path:
    return folder / f"{series.sop_uid(index)}.dcm"


def _edit(series: DicomSeries, folder: Path, change: Callable[[Dataset, int], None]) -> None:
    """Write all slices, each changed first."""
    for index in range(len(series.pixels)):
        data = slice_dataset(series, index)
        change(data, index)
        write_slice(data, folder)


def _scout(series: DicomSeries, folder: Path) -> None:
    write_slices(series, folder)
    data = slice_dataset(series, 0)
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = uid_of(series.series_uid, "scout")
    data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    data.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    write_slice(data, folder)


def _exact_duplicates(series: DicomSeries, folder: Path) -> None:
    write_slices(series, folder)
    for index in (_apart(series), _apart(series) + 1):
        shutil.copyfile(_slice_path(series, folder, index), folder / f"copy_{index}.dcm")


def _duplicate_position(series: DicomSeries, folder: Path) -> None:
    write_slices(series, folder)
    data = slice_dataset(series, _apart(series))
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = uid_of(series.series_uid, "again")
    data.InstanceNumber = len(series.pixels) + 1
    data.PixelData = encapsulate([encode_rle(series.pixels[_apart(series)] // 2)])
    write_slice(data, folder)


def _missing_slice(series: DicomSeries, folder: Path) -> None:
    write_slices(series, folder)
    _slice_path(series, folder, _apart(series)).unlink()


def _scrambled_numbers(series: DicomSeries, folder: Path) -> None:
    numbers = np.random.default_rng(len(series.pixels)).permutation(len(series.pixels)) + 1
    _edit(series, folder, lambda data, index: setattr(data, "InstanceNumber", int(numbers[index])))


def _truncated_file(series: DicomSeries, folder: Path) -> None:
    write_slices(series, folder)
    path = _slice_path(series, folder, _apart(series))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _all_truncated(series: DicomSeries, folder: Path) -> None:
    write_slices(series, folder)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:1200])


def _odd_shape(series: DicomSeries, folder: Path) -> None:
    write_slices(series, folder)
    half = replace(series, pixels=series.pixels[:, : series.pixels.shape[1] // 2])
    data = slice_dataset(half, _apart(series))
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = uid_of(series.series_uid, "half")
    write_slice(data, folder)


def _rgb(series: DicomSeries, index: int) -> Dataset:
    data = slice_dataset(series, index)
    grey = (np.clip(series.pixels[index], 0, 2000) // 8).astype(np.uint8)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = uid_of(series.series_uid, "capture", str(index))
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SamplesPerPixel, data.PlanarConfiguration, data.PhotometricInterpretation = 3, 0, "RGB"
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    content = np.repeat(grey[..., None], 3, axis=-1).tobytes()
    data.PixelData = content + b"\0" * (len(content) % 2)
    data["PixelData"].is_undefined_length = False
    data["PixelData"].VR = "OB"
    return data


def _capture_among_slices(series: DicomSeries, folder: Path) -> None:
    write_slices(series, folder)
    write_slice(_rgb(series, _apart(series)), folder)


def _all_colour(series: DicomSeries, folder: Path) -> None:
    for index in range(len(series.pixels)):
        write_slice(_rgb(series, index), folder)


def _junk_text(series: DicomSeries, folder: Path) -> None:
    write_slices(series, folder)
    (folder / "export_log.txt").write_text("exported without errors\n")
    (folder / "Thumbs.db").write_bytes(bytes(range(256)) * 4)


def _zero_bytes(series: DicomSeries, folder: Path) -> None:
    write_slices(series, folder)
    (folder / f"{uid_of(series.series_uid, 'empty')}.dcm").touch()


def _no_position(series: DicomSeries, folder: Path) -> None:
    def change(data: Dataset, index: int) -> None:
        data.SliceLocation = round(float(data.ImagePositionPatient[2]), 4)
        del data.ImagePositionPatient

    _edit(series, folder, change)


def _one_position(series: DicomSeries, folder: Path) -> None:
    place = slice_dataset(series, 0).ImagePositionPatient
    _edit(series, folder, lambda data, index: setattr(data, "ImagePositionPatient", copy.copy(place)))


def _no_orientation(series: DicomSeries, folder: Path) -> None:
    _edit(series, folder, lambda data, index: delattr(data, "ImageOrientationPatient"))


def _no_spacing(series: DicomSeries, folder: Path) -> None:
    _edit(series, folder, lambda data, index: delattr(data, "PixelSpacing"))


def _already_hounsfield(series: DicomSeries, folder: Path) -> None:
    """No rescale at all; the stored values are Hounsfield units already."""
    assert series.intercept is not None
    write_slices(replace(series, pixels=series.pixels + np.int16(series.intercept), intercept=None), folder)


def _double_intercept(series: DicomSeries, folder: Path) -> None:
    """A rescale that would be applied a second time: the stored values are Hounsfield units already."""
    assert series.intercept is not None
    write_slices(replace(series, pixels=series.pixels + np.int16(series.intercept)), folder)


def _write_before_contrast(series: DicomSeries, folder: Path, change: Callable[[Dataset], None]) -> None:
    """Write the same slices once more, as they were before the contrast agent came: vessels are as dark as brain."""
    assert series.intercept is not None
    stored_of = [np.int16(hu - series.intercept) for hu in (*_ENHANCED_HU, _BLOOD_HU)]
    enhanced = (series.pixels >= stored_of[0]) & (series.pixels <= stored_of[1])
    before = replace(series, pixels=np.where(enhanced, stored_of[2], series.pixels))
    for index in range(len(series.pixels)):
        data = slice_dataset(before, index)
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = uid_of(
            series.series_uid, "before", str(index)
        )
        change(data)
        write_slice(data, folder)


def _two_phases(series: DicomSeries, folder: Path) -> None:
    """Two acquisitions in one series, without contrast and with it."""

    def second(data: Dataset, index: int) -> None:
        data.AcquisitionNumber = 2
        data.InstanceNumber += len(series.pixels)

    _edit(series, folder, second)
    _write_before_contrast(series, folder, lambda data: setattr(data, "AcquisitionNumber", 1))


def _unmarked_phases(series: DicomSeries, folder: Path) -> None:
    """The same, by headers that say nothing of it, and with every Instance Number twice."""
    write_slices(series, folder)
    _write_before_contrast(series, folder, lambda data: None)


def _wrong_spacing_between(series: DicomSeries, folder: Path) -> None:
    _edit(series, folder, lambda data, index: setattr(data, "SpacingBetweenSlices", 18.0))


def _single_slice(series: DicomSeries, folder: Path) -> None:
    write_slice(slice_dataset(series, _apart(series)), folder)


def _only_text(series: DicomSeries, folder: Path) -> None:
    (folder / "readme.txt").write_text("the images are on the other disc\n")


def _nothing(series: DicomSeries, folder: Path) -> None:
    """Leave the folder empty."""


def _no_functional_groups(series: DicomSeries, folder: Path) -> None:
    """Frames without any geometry, as in an earlier release of the competition's data."""
    data = multiframe_dataset(series)
    del data.SharedFunctionalGroupsSequence
    del data.PerFrameFunctionalGroupsSequence
    write_slice(data, folder)


def _nominal_geometry(series: DicomSeries, folder: Path) -> None:
    """Frames without functional groups, but with one spacing for all."""
    data = multiframe_dataset(series)
    del data.SharedFunctionalGroupsSequence
    del data.PerFrameFunctionalGroupsSequence
    data.PixelSpacing = [round(float(value), 6) for value in series.grid.spacing_mm[1:]]
    data.SpacingBetweenSlices = round(float(series.grid.spacing_mm[0]), 6)
    write_slice(data, folder)


FAULTS: dict[str, Fault] = {
    "scout": Fault(_scout, quality="localizers"),
    "exact_duplicates": Fault(_exact_duplicates, quality="duplicate_files"),
    "duplicate_position": Fault(_duplicate_position, quality="duplicate_positions"),
    "missing_slice": Fault(_missing_slice, quality="missing_slices"),
    "scrambled_numbers": Fault(_scrambled_numbers),
    "truncated_file": Fault(_truncated_file, quality="unreadable_files"),
    "all_truncated": Fault(_all_truncated, expected="unreadable_pixels"),
    "odd_shape_slice": Fault(_odd_shape, quality="other_stacks"),
    "capture_among_slices": Fault(_capture_among_slices, quality="colour_files"),
    "all_colour": Fault(_all_colour, expected="colour"),
    "junk_files": Fault(_junk_text, quality="junk_files"),
    "zero_byte_file": Fault(_zero_bytes, quality="junk_files"),
    "no_position": Fault(_no_position, quality="position_assumed"),
    "one_position": Fault(_one_position, expected="single_slice"),
    "no_orientation": Fault(_no_orientation, quality="orientation_assumed"),
    "no_pixel_spacing": Fault(_no_spacing, expected="no_geometry"),
    "already_hounsfield": Fault(_already_hounsfield, quality="rescale_assumed"),
    "double_intercept": Fault(_double_intercept, quality="rescale_twice"),
    "two_phases": Fault(_two_phases, quality="other_passes"),
    "unmarked_phases": Fault(_unmarked_phases, expected="mixed_passes"),
    "wrong_spacing_between_slices": Fault(_wrong_spacing_between),
    "single_slice": Fault(_single_slice, expected="single_slice"),
    "no_images": Fault(_only_text, expected="no_images"),
    "empty_folder": Fault(_nothing, expected="no_files"),
    "no_functional_groups": Fault(_no_functional_groups, expected="no_geometry", modality="MRA"),
    "nominal_geometry": Fault(_nominal_geometry, quality="geometry_assumed", modality="MRA"),
}
"""Every fault by name."""
