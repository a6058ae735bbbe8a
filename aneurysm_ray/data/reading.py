"""A series as inference takes it: read and prepared, with the way back to its files."""

import time
from dataclasses import dataclass
from pathlib import Path

from aneurysm_ray.config import VolumeConfig
from aneurysm_ray.data import preprocess, scans, store
from aneurysm_ray.data.points import SourceSlices, source_slices
from aneurysm_ray.data.store import PreparedVolume
from aneurysm_ray.errors import RunDirError, SeriesError


@dataclass(frozen=True, eq=False)
class Reading:
    """A series, read and prepared."""

    prepared: PreparedVolume
    slices: SourceSlices | None
    """None for a prepared volume and a NIfTI file, which do not know the images that were scanned."""
    seconds: dict[str, float]
    """Seconds by stage."""


def read(path: Path, config: VolumeConfig, deep: bool = True) -> Reading:
    """Read and prepare a series: a folder or archive of DICOM files, a NIfTI file, or a prepared volume (`.parquet`).

    Folders below the series' own are read too where it is `deep`.
    Raises SeriesError when it cannot be a volume.
    """
    start = time.perf_counter()
    if path.suffix == ".parquet":
        try:
            prepared = store.read_volume(path, masks=False)
        except RunDirError as error:
            raise SeriesError("bad_archive", str(error)) from error
        return Reading(prepared, None, {"read": time.perf_counter() - start})
    volume = scans.read_scan(path, deep=deep)
    read_at = time.perf_counter()
    prepared = preprocess.prepare_series(volume, config)
    seconds = {"read": read_at - start, "prepare": time.perf_counter() - read_at}
    return Reading(prepared, source_slices(volume) if volume.instances else None, seconds)
