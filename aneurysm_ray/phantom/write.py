"""A rendered series as DICOM files: RLE Lossless, one file a slice, or one Enhanced MR file (PS3.3 A.36)."""

from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, CTImageStorage, EnhancedMRImageStorage, MRImageStorage, RLELossless, generate_uid

from aneurysm_ray.phantom.grid import Grid

PHANTOM_ROOT = "1.2.826.0.1.3680043.8.498."


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """Stored pixels and the words that go into the headers."""

    pixels: NDArray[np.int16]
    """(Z, Y, X): stored values."""
    grid: Grid
    modality: str
    """CT or MR."""
    patient: str
    series_uid: str
    study_uid: str
    thickness_mm: float
    intercept: int | None
    """Rescale Intercept; None writes no rescale, as MR often does."""
    reverse: bool
    """Number the instances against the slice normal."""

    def sop_uid(self, index: int) -> UID:
        """UID of slice `index`, or of the only instance (0)."""
        return uid_of(self.series_uid, "instance", str(index))


def uid_of(*words: str) -> UID:
    """Return the UID that belongs to some words: at most 64 characters, always the same."""
    return generate_uid(prefix=PHANTOM_ROOT, entropy_srcs=list(words))


def write_slices(series: DicomSeries, folder: Path) -> None:
    """Write one file a slice, named by its SOP Instance UID."""
    folder.mkdir(parents=True, exist_ok=True)
    data = _slice_of_series(series)
    for index in range(len(series.pixels)):
        _place(data, series, index)
        write_slice(data, folder)


def slice_dataset(series: DicomSeries, index: int) -> Dataset:
    """Return one slice as a data set, its pixels RLE compressed."""
    data = _slice_of_series(series)
    _place(data, series, index)
    return data


def _slice_of_series(series: DicomSeries) -> Dataset:
    """Return what all slices have in common."""
    data = _common(series, CTImageStorage if series.modality == "CT" else MRImageStorage, series.sop_uid(0))
    data.ImageOrientationPatient = _orientation(series.grid)
    data.PixelSpacing = [_number(value) for value in series.grid.spacing_mm[1:]]
    data.SliceThickness = _number(series.thickness_mm)
    data.SpacingBetweenSlices = _number(series.grid.spacing_mm[0])
    if series.intercept is not None:
        data.RescaleIntercept = series.intercept
        data.RescaleSlope = 1
        data.RescaleType = "HU" if series.modality == "CT" else "US"
    return data


def _place(data: Dataset, series: DicomSeries, index: int) -> None:
    """Make a data set the slice `index`: its UID, number, position and pixels."""
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = series.sop_uid(index)
    data.InstanceNumber = len(series.pixels) - index if series.reverse else index + 1
    data.ImagePositionPatient = _position(series.grid, index)
    data.PixelData = encapsulate([encode_rle(series.pixels[index])])
    data["PixelData"].is_undefined_length = True


def write_slice(data: Dataset, folder: Path) -> Path:
    """Write a data set under its SOP Instance UID."""
    path = folder / f"{data.SOPInstanceUID}.dcm"
    data.save_as(path, enforce_file_format=True)
    return path


def write_multiframe(series: DicomSeries, folder: Path) -> None:
    """Write the series as one file, named by its SOP Instance UID."""
    folder.mkdir(parents=True, exist_ok=True)
    write_slice(multiframe_dataset(series), folder)


def multiframe_dataset(series: DicomSeries) -> Dataset:
    """Return the series as one Enhanced MR data set; geometry stands in the functional groups only."""
    data = _common(series, EnhancedMRImageStorage, series.sop_uid(0))
    data.InstanceNumber = 1
    data.NumberOfFrames = len(series.pixels)
    shared = Dataset()
    shared.PixelMeasuresSequence = DicomSequence([Dataset()])
    measures = shared.PixelMeasuresSequence[0]
    measures.SliceThickness = _number(series.thickness_mm)
    measures.SpacingBetweenSlices = _number(series.grid.spacing_mm[0])
    measures.PixelSpacing = [_number(value) for value in series.grid.spacing_mm[1:]]
    shared.PlaneOrientationSequence = DicomSequence([Dataset()])
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = _orientation(series.grid)
    shared.PixelValueTransformationSequence = DicomSequence([Dataset()])
    shared.PixelValueTransformationSequence[0].RescaleIntercept = 0
    shared.PixelValueTransformationSequence[0].RescaleSlope = 1
    shared.PixelValueTransformationSequence[0].RescaleType = "US"
    data.SharedFunctionalGroupsSequence = DicomSequence([shared])
    dimension = uid_of(series.series_uid, "dimension")
    data.DimensionOrganizationSequence = DicomSequence([Dataset()])
    data.DimensionOrganizationSequence[0].DimensionOrganizationUID = dimension
    indices = []
    for pointer in (0x00209056, 0x00209057):
        item = Dataset()
        item.DimensionOrganizationUID = dimension
        item.DimensionIndexPointer = pointer
        item.FunctionalGroupPointer = 0x00209111
        indices.append(item)
    data.DimensionIndexSequence = DicomSequence(indices)
    data.PerFrameFunctionalGroupsSequence = DicomSequence(
        [_frame_groups(series, index) for index in range(len(series.pixels))]
    )
    data.PixelData = encapsulate([encode_rle(frame) for frame in series.pixels])
    data["PixelData"].is_undefined_length = True
    return data


def _frame_groups(series: DicomSeries, index: int) -> Dataset:
    groups = Dataset()
    groups.FrameContentSequence = DicomSequence([Dataset()])
    content = groups.FrameContentSequence[0]
    content.StackID = "1"
    content.InStackPositionNumber = index + 1
    content.DimensionIndexValues = [1, index + 1]
    groups.PlanePositionSequence = DicomSequence([Dataset()])
    groups.PlanePositionSequence[0].ImagePositionPatient = _position(series.grid, index)
    return groups


def encode_rle(frame: NDArray[np.int16]) -> bytes:
    """Encode a 16-bit frame as two byte planes of PackBits, row by row (PS3.5 annex G)."""
    stored = np.ascontiguousarray(frame, "<i2").view(np.uint8).reshape(*frame.shape, 2)
    planes = [imagecodecs.packbits_encode(np.ascontiguousarray(stored[..., byte]), axis=-1) for byte in (1, 0)]
    planes = [plane + b"\0" * (len(plane) % 2) for plane in planes]
    header = np.zeros(16, "<u4")
    header[:3] = 2, 64, 64 + len(planes[0])
    return header.tobytes() + b"".join(planes)


def _common(series: DicomSeries, sop_class: UID, sop_uid: UID) -> Dataset:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = sop_class
    data.file_meta.MediaStorageSOPInstanceUID = sop_uid
    data.file_meta.TransferSyntaxUID = RLELossless
    data.SOPClassUID = sop_class
    data.SOPInstanceUID = sop_uid
    data.Modality = series.modality
    data.PatientID = series.patient
    data.StudyInstanceUID = series.study_uid
    data.SeriesInstanceUID = series.series_uid
    data.FrameOfReferenceUID = uid_of(series.study_uid, "frame")
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.Rows, data.Columns = series.pixels.shape[1:]
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit = 15
    data.PixelRepresentation = 1
    return data


def _number(value: float) -> float:
    """Round to what a decimal string of 16 characters holds."""
    return round(float(value), 6)


def _position(grid: Grid, index: int) -> list[float]:
    return [_number(value) for value in grid.affine[:3, 3] + index * grid.affine[:3, 0]]


def _orientation(grid: Grid) -> list[float]:
    """Direction of growing column index, then of growing row index (PS3.3 C.7.6.2.1.1)."""
    row_spacing, column_spacing = grid.spacing_mm[1:]
    values = [*(grid.affine[:3, 2] / column_spacing), *(grid.affine[:3, 1] / row_spacing)]
    return [round(float(value), 9) for value in values]
