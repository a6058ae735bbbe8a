"""A small head with one bright blob, written as CT in any plane: what tests of inference read."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat

_TURN = np.linalg.qr(np.array([[1.0, 0.15, -0.1], [-0.15, 1.0, 0.2], [0.1, -0.2, 1.0]]))[0]
_TURN *= np.sign(np.diag(_TURN))  # a rotation of about 15 degrees
PLANES: dict[str, tuple[np.ndarray, np.ndarray]] = {  # to the next column, to the next row
    "axial": (np.array([1.0, 0, 0]), np.array([0, 1.0, 0])),
    "coronal": (np.array([1.0, 0, 0]), np.array([0, 0, -1.0])),
    "sagittal": (np.array([0, 1.0, 0]), np.array([0, 0, -1.0])),
    "oblique": (_TURN[:, 0], _TURN[:, 1]),
}
SIZE_MM = 96.0
CENTRE_MM = np.array([4.0, -7.0, 120.0])
BLOB_MM = CENTRE_MM + np.array([14.0, -10.0, 8.0])
"""Patient position (x, y, z) of the blob, 4 mm in radius."""


def head_hu(position_mm: np.ndarray, blob_mm: np.ndarray = BLOB_MM) -> np.ndarray:
    """Return Hounsfield units at patient positions (..., 3): air, a ball of brain with a skull, one bright blob."""
    radius = np.linalg.norm(position_mm - CENTRE_MM, axis=-1)
    hu = np.where(radius < 40, 35.0, np.where(radius < 43, 300.0, -1000.0))
    near = np.linalg.norm(position_mm - blob_mm, axis=-1)
    return np.where(near < 4, 650.0, hu)


def write_head(
    folder: Path,
    plane: str = "axial",
    *,
    multi_frame: bool = False,
    slice_mm: float = 2.0,
    pixel_mm: tuple[float, float] = (1.2, 1.0),
    seed: int = 0,
    blob_mm: np.ndarray = BLOB_MM,
) -> Path:
    """Write a head as a series of CT files in shuffled order, or as one Enhanced CT file, and return its folder."""
    along, down = PLANES[plane]
    normal = np.cross(along, down)
    rows, columns = round(SIZE_MM / pixel_mm[0]), round(SIZE_MM / pixel_mm[1])
    count = round(SIZE_MM / slice_mm)
    corner = CENTRE_MM - SIZE_MM / 2 * (along + down + normal)
    origins = corner + slice_mm * np.arange(count)[:, None] * normal
    grid = np.arange(rows)[:, None, None] * pixel_mm[0] * down + np.arange(columns)[:, None] * pixel_mm[1] * along
    rng = np.random.default_rng(seed)
    pixels = np.stack([head_hu(origin + grid, blob_mm) for origin in origins])
    pixels = (pixels + rng.normal(0, 8, pixels.shape)).round().astype(np.int16)
    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame_of_reference = (generate_uid(entropy_srcs=[str(seed), plane, word]) for word in "abc")
    order = rng.permutation(count)

    def common(sop_class: str, number: int) -> FileDataset:
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = sop_class
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[series, str(number)])
        image = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        image.SOPClassUID, image.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame_of_reference
        image.Modality, image.PatientID = "CT", "somebody"
        image.Rows, image.Columns, image.SamplesPerPixel = rows, columns, 1
        image.PhotometricInterpretation, image.PixelRepresentation = "MONOCHROME2", 1
        image.BitsAllocated = image.BitsStored = 16
        image.HighBit = 15
        return image

    if multi_frame:
        image = common(EnhancedCTImageStorage, 0)
        image.NumberOfFrames = count
        shared = Dataset()
        shared.PixelMeasuresSequence = [_item(PixelSpacing=_ds(pixel_mm), SliceThickness=slice_mm)]
        shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=_ds([*along, *down]))]
        shared.PixelValueTransformationSequence = [_item(RescaleSlope=1, RescaleIntercept=0, RescaleType="HU")]
        image.SharedFunctionalGroupsSequence = [shared]
        image.PerFrameFunctionalGroupsSequence = [
            _item(PlanePositionSequence=[_item(ImagePositionPatient=_ds(origins[index]))]) for index in order
        ]
        image.PixelData = pixels[order].tobytes()
        image.save_as(folder / "image.dcm", enforce_file_format=True)
        return folder
    for number, index in enumerate(order):
        image = common(CTImageStorage, number)
        image.ImagePositionPatient, image.ImageOrientationPatient = _ds(origins[index]), _ds([*along, *down])
        image.PixelSpacing, image.SliceThickness = _ds(pixel_mm), slice_mm
        image.RescaleSlope, image.RescaleIntercept = 1, 0
        image.PixelData = pixels[index].tobytes()
        image.save_as(folder / f"{image.SOPInstanceUID}.dcm", enforce_file_format=True)
    return folder


def _item(**values: object) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def _ds(values: Iterable[float]) -> list[DSfloat]:
    """Return numbers as DS, which has room for 16 characters."""
    return [DSfloat(float(value), auto_format=True) for value in values]
