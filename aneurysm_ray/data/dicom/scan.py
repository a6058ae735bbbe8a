"""What a series holds, from one header and the sizes of its files: enough to plan by, without decoding."""

from dataclasses import dataclass
from pathlib import Path

from aneurysm_ray.data.dicom.archives import open_source
from aneurysm_ray.data.dicom.files import OpenFiles
from aneurysm_ray.data.dicom.reader import read_all
from aneurysm_ray.errors import SeriesError


@dataclass(frozen=True)
class SeriesHeader:
    """A series at a glance; everything but `files` and `bytes` is what the first readable image says."""

    files: int
    bytes: int
    rows: int
    columns: int
    frames: int
    """Images in all, taking every file for one like the first."""
    modality: str
    series_uid: str

    @property
    def voxel_bytes(self) -> int:
        """Bytes of the volume in int16."""
        return 2 * self.frames * self.rows * self.columns


PROBED_FILES = 8
"""Files that are tried for one readable header."""


def scan_series(path: Path) -> SeriesHeader:
    """Return what a series holds; raises SeriesError where none of its first files is an image."""
    with open_source(path, at_most=PROBED_FILES) as source, OpenFiles() as opened:
        for file in source.files[:PROBED_FILES]:
            frames, _ = read_all([file], opened)
            if frames:
                stored = frames[0].stored
                return SeriesHeader(
                    files=source.count,
                    bytes=source.bytes,
                    rows=stored.rows,
                    columns=stored.columns,
                    frames=stored.frames * source.count,
                    modality=frames[0].modality,
                    series_uid=frames[0].series_uid,
                )
    raise SeriesError("no_images", f"{path}: none of its first {PROBED_FILES} files is a DICOM image")
