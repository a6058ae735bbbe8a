"""All files for viewers of one series; made to run in a guarded child, since it opens the source files again."""

from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from aneurysm_ray.data.dicom.archives import open_series
from aneurysm_ray.data.outputs import nifti, seg, sr
from aneurysm_ray.data.outputs.evidence import check_named_once
from aneurysm_ray.data.points import SourceSlices

REPORT = "candidates.sr.dcm"
SEGMENTATION = "heatmap.seg.dcm"
NIFTI = "heatmap.nii.gz"


def write_all(
    folder: Path,
    source: Path,
    slices: SourceSlices,
    candidates: pd.DataFrame,
    grid: NDArray[np.float32],
    affine: NDArray[np.float64],
    present_probability: float,
    model_digest: str,
    calibrated_probability: float | None = None,
) -> list[str]:
    """Write SR, SEG and NIfTI of one series into a folder, and return what could not be written, in sentences."""
    nifti.write_heatmap(folder / NIFTI, grid, affine)
    headers = _headers(source, {uid for uid, _ in slices.instances})
    notes = []
    try:
        check_named_once(slices.instances)
        sr.write_report(
            folder / REPORT,
            candidates,
            headers,
            present_probability=present_probability,
            model_digest=model_digest,
            calibrated_probability=calibrated_probability,
        )
    # highdicom checks what it copies from the source, each attribute in a way of its own.
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        notes.append(f"no DICOM SR: {error}")
    try:
        if not seg.write_segmentation(folder / SEGMENTATION, grid, affine, slices, headers):
            notes.append(f"no DICOM SEG: the heat map stays below {seg.FLOOR}")
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        notes.append(f"no DICOM SEG: {error}")
    return notes


def _headers(source: Path, wanted: set[str]) -> list[Dataset]:
    """Return the headers of the images that the slices lie in, each instance once."""
    found: dict[str, Dataset] = {}
    with open_series(source) as opened:
        for file in opened.files:
            try:
                header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
                uid = str(header.get("SOPInstanceUID", ""))
            # A file the reader left out may be anything; what it took is read again without trouble.
            except Exception:
                continue
            if uid in wanted:
                found.setdefault(uid, header)
    return list(found.values())
