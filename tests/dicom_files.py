"""Small synthetic DICOM series for the tests of the reader."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

SERIES_UID = "1.2.826.0.1.3680043.8.498.7"
ROWS, COLUMNS = 24, 20


def ramp(z: int, rows: int = ROWS, columns: int = COLUMNS) -> NDArray[np.uint16]:
    """Return a slice in which every voxel differs from its neighbours in all directions; air at one corner."""
    image = (np.arange(rows * columns, dtype=np.uint16).reshape(rows, columns) * 3 + 50 * z) % 3000
    image[0, 0] = 10
    return image


def rle(image: NDArray[Any]) -> bytes:
    """Return one RLE Lossless frame of 16-bit pixels."""
    planes = [imagecodecs.packbits_encode((image >> shift).astype(np.uint8)) for shift in (8, 0)]
    planes = [plane + b"\0" * (len(plane) % 2) for plane in planes]
    header = np.zeros(16, "<u4")
    header[:3] = 2, 64, 64 + len(planes[0])
    return header.tobytes() + b"".join(planes)


ENCODERS: dict[str, Callable[[NDArray[Any]], bytes]] = {
    RLELossless: rle,
    JPEGLosslessSV1: lambda image: imagecodecs.jpeg8_encode(image, lossless=True, bitspersample=12, predictor=1),
    JPEGLSLossless: imagecodecs.jpegls_encode,
    JPEG2000Lossless: lambda image: imagecodecs.jpeg2k_encode(image, level=0, reversible=True, codecformat="j2k"),
    HTJ2KLossless: lambda image: imagecodecs.htj2k_encode(image, reversible=True),
}
NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)


def ct_slice(z: int, image: NDArray[Any] | None = None, **tags: Any) -> Dataset:
    """Return a CT slice, 2 mm above the one before; keyword arguments set elements, None removes them."""
    image = ramp(z) if image is None else image
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = f"{SERIES_UID}.{z + 1}"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Modality = "CT"
    dataset.PatientID = "P1"
    dataset.SeriesInstanceUID = SERIES_UID
    dataset.AcquisitionNumber = 1
    dataset.InstanceNumber = z + 1
    dataset.ImagePositionPatient = [-10, -20, 100 + 2 * z]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [0.5, 0.4]
    dataset.SliceThickness = 2
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = image.shape
    dataset.BitsAllocated = image.dtype.itemsize * 8
    dataset.BitsStored = 12 if image.dtype == np.uint16 else dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(image.dtype.kind == "i")
    dataset.RescaleIntercept, dataset.RescaleSlope = -1024, 1
    dataset.PixelData = image.tobytes()
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset


def save(dataset: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Write a dataset with native pixels in a transfer syntax."""
    dataset.file_meta.TransferSyntaxUID = syntax
    native = syntax in NATIVE
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    elif not native:
        shape = dataset.Rows, dataset.Columns
        image = np.frombuffer(dataset.PixelData, np.uint16).reshape(shape)
        dataset.PixelData = encapsulate([ENCODERS[syntax](image)])
    dataset["PixelData"].VR = "OW" if native else "OB"
    dataset["PixelData"].is_undefined_length = not native
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    dataset.save_as(path, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
    return path


def write_series(folder: Path, slices: Sequence[Dataset] | int, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Write slices, or that many plain ones, under names that do not follow their order."""
    folder.mkdir(parents=True, exist_ok=True)
    datasets = [ct_slice(z) for z in range(slices)] if isinstance(slices, int) else slices
    for index, dataset in enumerate(datasets):
        save(dataset, folder / f"{(index * 7) % 101:03d}-{index}.dcm", syntax)
    return folder
