"""What a data set holds, wherever it lies: a folder, a network file system, s3:// or gs://; folders and archives.

A `Source` says where a series is, how large, and what the tables know of it. Its digest tells whether anything changed:
names, sizes and modification times (ETags in an object store) by default, a hash of all bytes on request, with labels
and points in either case, so that a corrected table leads to new volumes too.
"""

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aneurysm_ray.config import FrameBase
from aneurysm_ray.data import nifti, places
from aneurysm_ray.data.dataset import Localizer, SeriesEntry
from aneurysm_ray.data.dicom import scan_series
from aneurysm_ray.data.dicom.files import list_files
from aneurysm_ray.data.meanings import Values
from aneurysm_ray.data.nifti import is_nifti
from aneurysm_ray.data.points import Mark
from aneurysm_ray.data.urls import is_url
from aneurysm_ray.errors import DatasetError, SeriesError

LISTING_THREADS = 32
"""Series that are listed at a time; each waits for the file system, not for the processor."""


@dataclass(frozen=True)
class Source:
    """A series to prepare."""

    key: str
    """Path below the data set, with `/`; the series' identity within it."""
    location: str
    """Absolute path or URL of the folder or archive."""
    series_uid: str | None
    """Name of the volume; None where only the reader will know."""
    modality: str | None
    targets: tuple[float | None, ...]
    """In the order of `labels.LABELS`; None for unknown."""
    points: tuple[Localizer, ...]
    files: int = 0
    bytes: int = 0
    voxel_bytes: int = 0
    """Of the volume in int16, as the header promises; 0 where no header could be read."""
    digest: str = ""
    vessels: str = ""
    """Path or URL of the mask of its vessels, or nothing."""
    domes: tuple[tuple[str, Values, bool], ...] = ()
    """The same of the masks of its aneurysms' domes, each with `DomeMask.values` and `DomeMask.shared`."""
    marks: tuple[Mark, ...] = ()
    patient: str = ""
    """Whose it is, by the name that a table or layout gives, or nothing."""
    site: str = ""
    """Where it was scanned, by the word that a table gives, or nothing."""
    deep: bool = True
    """Folders below the series' own are part of it."""
    own_uid: str | None = None
    """Series Instance UID of the voxels as far as it is known: one header's, or the reader's word. None where a table
    or the layout names the series."""


def find_sources(data: str, frame_base: FrameBase = "auto") -> tuple[list[Source], list[str]]:
    """Return the series of a data set, largest first, and notes on what was assumed; `frame_base` is the setting.

    Raises DatasetError when there is none or the tables are wrong.
    """
    there = (
        places.in_object_store(data, frame_base)
        if is_url(data)
        else places.on_file_system(Path(data).absolute(), frame_base)
    )
    notes = list(there.notes)
    if not there.entries:
        told = f" ({'; '.join(notes)})" if notes else ""
        raise DatasetError(
            f"{data} holds no series{told}; give a folder with one folder or archive of DICOM files per series, or "
            "with NIfTI"
        )
    root = data if is_url(data) else str(Path(data).absolute())

    def describe(pair: tuple[str, SeriesEntry]) -> Source:
        location, entry = pair
        targets = tuple(None if np.isnan(target) else float(target) for target in entry.targets)
        key = location.removeprefix(root).strip("/") or "."
        vessels = there.mask(entry.vessels) if entry.vessels else ("", 0, "")
        domes = [there.mask(mask.path) for mask in entry.domes]
        masks = [vessels, *domes]
        source = Source(
            key,
            location,
            entry.series_uid,
            entry.modality,
            targets,
            entry.points,
            vessels=vessels[0],
            domes=tuple((found[0], mask.values, mask.shared) for found, mask in zip(domes, entry.domes, strict=True)),
            marks=entry.marks,
            patient=entry.patient or "",
            site=entry.site,
            deep=entry.deep,
        )
        files = there.listed(location)
        size = sum(size for _, size, _ in files)
        return _with_header(replace(source, files=len(files), bytes=size, digest=_digest(files, masks, source)))

    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        found = list(pool.map(describe, sorted(there.entries.items())))
    repeated = sum(count - 1 for uid, count in Counter(source.own_uid for source in found).items() if uid)
    if repeated:
        notes.append(f"{repeated} series have a Series Instance UID that another has; they are stored as UID.2, UID.3")
    found = named(found)
    return sorted(found, key=lambda source: (-max(source.voxel_bytes, source.bytes), source.key)), notes


def check_is_a_set(data: str, found: Sequence[Source]) -> None:
    """Raise DatasetError for a folder of other things: no table names a series of it, and none of its files is an
    image."""
    if is_url(data) or not all(_is_no_image(source) for source in found):
        return
    count = sum(source.files for source in found)
    raise DatasetError(
        f"{data} holds no series: none of its {count} file(s) is DICOM or NIfTI; give a folder with one folder or "
        "archive of DICOM files per series, or with NIfTI"
    )


def _is_no_image(source: Source) -> bool:
    if source.series_uid or source.own_uid or is_nifti(Path(source.location)):
        return False
    try:
        scan_series(Path(source.location), deep=source.deep)
    except SeriesError as error:
        return error.reason == "no_images"
    return False


def _digest(files: places.Listing, masks: Sequence[places.Mask], source: Source) -> str:
    stamps = [(size, stamp) for _, size, stamp in masks]
    return hashlib.sha256(json.dumps([files, stamps, _known(source)]).encode()).hexdigest()


def _known(source: Source) -> list[Any]:
    known: list[Any] = [
        *(source.series_uid, source.modality, source.targets),
        [asdict(point) for point in source.points],
    ]
    of_tables = [source.patient, [asdict(mark) for mark in source.marks], [values for _, values, _ in source.domes]]
    of_tables += [source.site] if source.site else []
    of_tables += ["shared"] if any(shared for _, _, shared in source.domes) else []
    return [*known, of_tables] if any(of_tables) else known


def content_digest(path: Path, masks: Sequence[Path | None], source: Source) -> str:
    """Return the digest of a series' names and bytes, of its masks' bytes, and of what the tables know.

    Raises SeriesError (`vanished`).
    """
    laid_out = source if source.own_uid is None else replace(source, series_uid=None)
    whole = hashlib.sha256(json.dumps(_known(laid_out)).encode())
    try:
        for file in list_files(path, deep=source.deep).files if path.is_dir() else (str(path),):
            whole.update(json.dumps([os.path.relpath(file, path), os.path.getsize(file)]).encode())
            _add(whole, file)
        for mask in masks:
            whole.update(json.dumps(mask.stat().st_size if mask else 0).encode())
            if mask:
                _add(whole, mask)
    except OSError as error:
        raise SeriesError("vanished", f"cannot be read: {error.strerror}", source.key) from error
    return whole.hexdigest()


def _add(whole: Any, file: str | Path) -> None:
    with open(file, "rb") as stream:
        while chunk := stream.read(2**20):
            whole.update(chunk)


def _with_header(source: Source) -> Source:
    """Add what one header says; a series whose header cannot be read is left to the reader, which says why."""
    try:
        if is_url(source.location):
            with tempfile.TemporaryDirectory(prefix="aneurysm-ray-") as folder:
                header = scan_series(places.fetch(source.location, Path(folder), header_only=True, deep=source.deep))
                frames = max(header.frames, header.frames * source.files)
                voxels = 2 * frames * header.rows * header.columns
        else:
            path = Path(source.location)
            if is_nifti(path):
                return replace(source, own_uid="", voxel_bytes=nifti.voxel_bytes(path))
            header = scan_series(path, deep=source.deep)
            voxels = header.voxel_bytes
    except (SeriesError, OSError):
        return source if source.series_uid else replace(source, own_uid="")
    own = None if source.series_uid else header.series_uid
    return replace(source, own_uid=own, voxel_bytes=voxels)


def named(sources: Iterable[Source], kept: Mapping[str, str] = {}, corrected: Iterable[str] = ()) -> list[Source]:
    """Give each series a name of its own: its own UID, and where several have one UID, UID.2 and so on.

    A series has the name that `kept` says for its key, if it is still one of its UID's; then names go by key, those
    last whose first header told another UID than their voxels (`corrected`), so that a run that was interrupted gives
    the names of one that was not.
    """
    sources = list(sources)
    late = set(corrected)
    taken = {source.series_uid for source in sources if source.own_uid is None}
    names: dict[str, str | None] = {}
    for source in sources:
        before = kept.get(source.key, "")
        if source.own_uid and before not in taken and _is_name_of(before, source.own_uid):
            names[source.key] = before
            taken.add(before)
    # Every UID that some series has of its own is its first one's name, and nobody's UID.2.
    own = {source.own_uid for source in sources}
    for source in sorted(sources, key=lambda source: (source.key in late, source.key)):
        if source.own_uid and source.key not in names:
            uid, number = source.own_uid, 1
            while uid in taken or (number > 1 and uid in own):
                number += 1
                uid = f"{source.own_uid[:59]}.{number}"
            names[source.key] = uid
            taken.add(uid)
    return [
        source if source.own_uid is None else replace(source, series_uid=names.get(source.key)) for source in sources
    ]


def _is_name_of(name: str, uid: str) -> bool:
    stem, _, number = name.rpartition(".")
    return name == uid or (stem == uid[:59] and number.isdigit() and int(number) > 1)
