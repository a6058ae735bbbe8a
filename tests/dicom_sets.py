"""Small data sets of real DICOM files for tests of preparation, written with plain pydicom."""

from pathlib import Path

import numpy as np
import pandas as pd
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from aneurysm_ray.labels import LABELS

ROOT_UID = "1.2.826.0.1.3680043.8.498"


def series_uid(number: int) -> str:
    return f"{ROOT_UID}.{1000 + number}"


def image(uid: str, index: int, *, size: int = 40, patient: str = "P") -> Dataset:
    """One axial CT slice of a ball in air, 5 mm voxels."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{index}"
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, f"{uid}.{index}"
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = uid, f"{uid}.9", f"{uid}.8"
    dataset.Modality, dataset.PatientID, dataset.InstanceNumber = "CT", patient, index + 1
    dataset.Rows = dataset.Columns = size
    dataset.PixelSpacing, dataset.SliceThickness = [5.0, 5.0], 5.0
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    half = 2.5 * (size - 1)
    dataset.ImagePositionPatient = [-half, -half, 5.0 * index]
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation, dataset.SamplesPerPixel = 15, 1, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    y, x = np.indices((size, size)) * 5.0 - half
    ball = np.hypot(np.hypot(y, x), 5.0 * index - 50) < 70
    noise = np.random.default_rng(int(uid.rsplit(".", 1)[-1]) * 100 + index).normal(0, 5, (size, size))
    dataset.PixelData = (np.where(ball, 1064 + noise, 24)).astype("<i2").tobytes()
    return dataset


def write_series(folder: Path, uid: str, *, slices: int = 24, size: int = 40, patient: str = "P") -> None:
    folder.mkdir(parents=True)
    for index in range(slices):
        image(uid, index, size=size, patient=patient).save_as(folder / f"{uid}.{index}.dcm", enforce_file_format=True)


def write_set(root: Path, count: int = 5, *, slices: int = 24) -> None:
    """A data set in the competition's layout: every second series is positive, with one point."""
    rows, points = [], []
    for number in range(count):
        uid = series_uid(number)
        write_series(root / "series" / uid, uid, patient=f"patient-{number}", slices=slices)
        positive = number % 2
        rows.append([uid, 60, "Female", "CTA", *(int(positive and i in (6, 13)) for i in range(14))])
        if positive:
            points.append([uid, f"{uid}.10", "{'x': 20.0, 'y': 18.0}", LABELS[6]])
    pd.DataFrame(rows, columns=["SeriesInstanceUID", "PatientAge", "PatientSex", "Modality", *LABELS]).to_csv(
        root / "train.csv", index=False
    )
    pd.DataFrame(points, columns=["SeriesInstanceUID", "SOPInstanceUID", "coordinates", "location"]).to_csv(
        root / "train_localizers.csv", index=False
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a prepared set but the run's own record and the page made of it, which hold times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("prepare.json", "report.html")
    }
