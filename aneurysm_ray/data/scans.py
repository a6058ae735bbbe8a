"""The files of one series → its volume, whatever format they have."""

from pathlib import Path

from aneurysm_ray.data import dicom, nifti
from aneurysm_ray.data.volume import Volume


def read_scan(path: Path, *, deep: bool = True, modality: str | None = None) -> Volume:
    """Read a series: a NIfTI file by its name, else a folder, archive or file of DICOM.

    `modality` is what a table says: CT, CTA, MR or another word of MR; a NIfTI file does not say it. Folders below the
    series' own are read too where it is `deep`. Raises SeriesError.
    """
    if nifti.is_nifti(path) and not path.is_dir():
        known = None if modality is None else "CT" if modality.startswith("CT") else "MR"
        return nifti.read_nifti(path, modality=known)
    return dicom.read_series(path, deep=deep)
