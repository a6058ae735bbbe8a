"""The series of a data set wherever it lies: a folder, a network file system, s3:// or gs://; folders and archives.

A `Source` says where a series is, how large, and what the tables know of it. Its digest tells whether anything changed:
names, sizes and modification times (ETags in an object store) by default, a hash of all bytes on request, with labels
and points in either case, so that a corrected table leads to new volumes too.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd

from aneurysm_ray.data import dataset
from aneurysm_ray.data.dataset import Localizer, SeriesEntry
from aneurysm_ray.data.dicom import scan_series
from aneurysm_ray.data.dicom.files import list_files
from aneurysm_ray.data.dicom.sources import ARCHIVES, is_archive
from aneurysm_ray.data.storage import is_url, join
from aneurysm_ray.errors import DatasetError, SeriesError

LISTING_THREADS = 32
"""Series that are listed at a time; each waits for the file system, not for the processor."""
HEADER_BYTES = 256 * 1024
"""Of a file in an object store, read to learn its UID and size."""
PROBED_FILES = 3
"""Files of a series in an object store that are tried for one readable header."""


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
    outside: bool = False
    """The folder is a link that leaves the data set."""


def find_sources(data: str) -> tuple[list[Source], list[str]]:
    """Return the series of a data set, largest first, and notes on what was assumed.

    Raises DatasetError when there is none or the tables are wrong.
    """
    if is_url(data):
        entries, listed, notes = _remote_entries(data)
    else:
        entries, listed, notes = _local_entries(Path(data).absolute())
    if not entries:
        raise DatasetError(
            f"{data} holds no series; give a folder with one folder or archive of DICOM files per series"
        )
    root = data if is_url(data) else str(Path(data).absolute())

    def describe(pair: tuple[str, SeriesEntry]) -> Source:
        location, entry = pair
        targets = tuple(None if np.isnan(target) else float(target) for target in entry.targets)
        key = location.removeprefix(root).strip("/") or "."
        source = Source(key, location, entry.series_uid, entry.modality, targets, entry.points)
        files = listed(location)
        source = replace(
            source, files=len(files), bytes=sum(size for _, size, _ in files), digest=_digest(files, source)
        )
        if not is_url(data) and not Path(location).resolve().is_relative_to(Path(root).resolve()):
            return replace(source, outside=True)
        return _with_header(source)

    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        found = list(pool.map(describe, sorted(entries.items())))
    found, repeated = _named_once(found)
    if repeated:
        notes = [
            *notes,
            f"{repeated} series have a Series Instance UID that another has; they are stored as UID.2, UID.3",
        ]
    return sorted(found, key=lambda source: (-max(source.voxel_bytes, source.bytes), source.key)), notes


Listing = list[tuple[str, int, str]]
"""(name below the series, bytes, modification time or ETag) of each file."""


def _digest(files: Listing, source: Source) -> str:
    return hashlib.sha256(json.dumps([files, _known(source)]).encode()).hexdigest()


def _known(source: Source) -> list[Any]:
    return [source.series_uid, source.modality, source.targets, [asdict(point) for point in source.points]]


def content_digest(path: Path, source: Source) -> str:
    """Return the digest of a series' names and bytes and of what the tables know. Raises SeriesError (`vanished`)."""
    whole = hashlib.sha256(json.dumps(_known(source)).encode())
    try:
        for file in list_files(path) if path.is_dir() else [str(path)]:
            whole.update(json.dumps([os.path.relpath(file, path), os.path.getsize(file)]).encode())
            with open(file, "rb") as stream:
                while chunk := stream.read(2**20):
                    whole.update(chunk)
    except OSError as error:
        raise SeriesError("vanished", f"{source.key}: cannot be read: {error.strerror}") from error
    return whole.hexdigest()


def _with_header(source: Source) -> Source:
    """Add what one header says; a series whose header cannot be read is left to the reader, which says why."""
    try:
        if is_url(source.location):
            with tempfile.TemporaryDirectory(prefix="aneurysm-ray-") as folder:
                header = scan_series(fetch(source.location, Path(folder), header_only=True))
                frames = max(header.frames, header.frames * source.files)
                voxels = 2 * frames * header.rows * header.columns
        else:
            header = scan_series(Path(source.location))
            voxels = header.voxel_bytes
    except (SeriesError, OSError):
        return source
    return replace(source, series_uid=source.series_uid or header.series_uid or None, voxel_bytes=voxels)


def _named_once(sources: Iterable[Source]) -> tuple[list[Source], int]:
    """Give each series a name of its own: of several with one UID the first by key has it, the others UID.2 and on."""
    named = []
    taken = {source.series_uid for source in sources}
    seen: defaultdict[str | None, int] = defaultdict(int)
    for source in sorted(sources, key=lambda source: source.key):
        seen[source.series_uid] += 1
        uid = source.series_uid
        number = seen[uid]
        while uid and number > 1 and uid in taken:
            uid = f"{str(source.series_uid)[:59]}.{number}"
            number += 1
        taken.add(uid)
        named.append(replace(source, series_uid=uid))
    return named, sum(count - 1 for uid, count in seen.items() if uid)


def _local_entries(root: Path) -> tuple[dict[str, SeriesEntry], Callable[[str], Listing], list[str]]:
    archives = _archives(root)
    if archives:
        with tempfile.TemporaryDirectory(prefix="aneurysm-ray-") as folder:
            stand_in, real = _local_stand_in(root, archives, Path(folder))
            found = dataset.open_dataset(stand_in)
            entries = {real[str(entry.path)]: entry for entry in found.series if str(entry.path) in real}
    else:
        found = dataset.open_dataset(root)
        entries = {str(entry.path): entry for entry in found.series}
    return entries, _listed_locally, list(found.notes)


def _listed_locally(location: str) -> Listing:
    try:
        files = list_files(Path(location)) if os.path.isdir(location) else [location]
        stats = [(os.path.relpath(file, location), os.stat(file)) for file in files]
    except (SeriesError, OSError):
        return []
    return [(name, stat.st_size, str(stat.st_mtime_ns)) for name, stat in stats]


def _archives(root: Path) -> list[Path]:
    """Return the archives of a data set: in series/ where it has that folder, else anywhere below."""
    if (root / "series").is_dir():
        return sorted(path for path in (root / "series").iterdir() if _is_series_archive(path))
    below = (Path(parent) / name for parent, _, names in os.walk(root) for name in names)
    return sorted(path for path in below if _is_series_archive(path))


def _is_series_archive(path: Path) -> bool:
    return is_archive(path) and not path.name.startswith(".") and path.is_file()


def _local_stand_in(root: Path, archives: Sequence[Path], folder: Path) -> tuple[Path, dict[str, str]]:
    """Lay out a data set in which each archive is a folder, for `open_dataset`, which knows folders only.

    Returns it with the real location of each of its series.
    """
    real = {}
    for table in (dataset.TRAIN_CSV, dataset.LOCALIZERS_CSV):
        if (root / table).is_file():
            shutil.copy(root / table, folder / table)
    if (root / "series").is_dir():
        (folder / "series").mkdir()
        for path in sorted((root / "series").iterdir()):
            if path.is_dir():
                (folder / "series" / path.name).symlink_to(path)
                real[str(folder / "series" / path.name)] = str(path)
    else:
        for parent, _, names in os.walk(root):
            if any(not name.startswith(".") and not is_archive(Path(name)) for name in names):
                real[_placeholder(folder / os.path.relpath(parent, root))] = parent
    for path in archives:
        real[_placeholder(folder / path.relative_to(root).parent / _stem(path.name))] = str(path)
    return folder, real


def _stem(archive: str) -> str:
    """Return an archive's name without its suffix: the UID in a competition's layout."""
    name = archive.lower()
    return archive[: -len(next(suffix for suffix in ARCHIVES if name.endswith(suffix)))]


def _placeholder(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "placeholder").touch()
    return str(folder)


def _remote_entries(url: str) -> tuple[dict[str, SeriesEntry], Callable[[str], Listing], list[str]]:
    try:
        filesystem, root = fsspec.core.url_to_fs(url)
        infos = filesystem.find(root, detail=True)
    # Every object store has errors of its own; all of them mean that the data set cannot be listed.
    except Exception as error:
        raise DatasetError(f"{url} cannot be listed: {type(error).__name__}: {error}") from error
    root = root.rstrip("/")
    listings: defaultdict[str, Listing] = defaultdict(list)
    tabular = any(path.startswith(f"{root}/series/") for path in infos)
    for path, info in sorted(infos.items()):
        name = path.removeprefix(f"{root}/")
        if any(part.startswith(".") for part in name.split("/")):
            continue
        series, file = _remote_series(name, tabular)
        if series is not None:
            stamp = info.get("ETag") or info.get("etag") or info.get("md5Hash") or info.get("LastModified") or ""
            listings[series].append((file, int(info.get("size") or 0), str(stamp)))
    with tempfile.TemporaryDirectory(prefix="aneurysm-ray-") as folder:
        real = {}
        for table in (dataset.TRAIN_CSV, dataset.LOCALIZERS_CSV):
            if f"{root}/{table}" in infos:
                filesystem.get_file(f"{root}/{table}", f"{folder}/{table}")
        for series in listings:
            name = _stem(series) if is_archive(Path(series)) else series
            real[_placeholder(Path(folder) / name)] = join(url, series)
        _fetch_counted_frames(filesystem, root, Path(folder))
        found = dataset.open_dataset(Path(folder))
        entries = {real[str(entry.path)]: entry for entry in found.series if str(entry.path) in real}
    return entries, lambda location: listings[location.removeprefix(url).strip("/")], list(found.notes)


def _remote_series(name: str, tabular: bool) -> tuple[str | None, str]:
    """Return the series that an object belongs to, below the data set, and its name within it."""
    parts = name.split("/")
    if ".." in parts or "" in parts:
        return None, ""
    if is_archive(Path(name)):
        return (name, parts[-1]) if not tabular or (parts[0] == "series" and len(parts) == 2) else (None, "")
    if tabular:
        return ("/".join(parts[:2]), "/".join(parts[2:])) if parts[0] == "series" and len(parts) > 2 else (None, "")
    return ("/".join(parts[:-1]), parts[-1]) if len(parts) > 1 else (None, "")


def _fetch_counted_frames(filesystem: Any, root: str, folder: Path) -> None:
    """Fetch the heads of multi-frame files that have points: their frame counts tell what `f` counts from."""
    if not (folder / dataset.LOCALIZERS_CSV).is_file():
        return
    table = pd.read_csv(folder / dataset.LOCALIZERS_CSV, dtype=str, keep_default_na=False)
    if not {"SeriesInstanceUID", "SOPInstanceUID", "coordinates"} <= set(table.columns):
        return
    for row in table[table["coordinates"].str.contains("'f'", regex=False)].to_dict("records"):
        name = f"series/{row['SeriesInstanceUID']}/{row['SOPInstanceUID']}.dcm"
        if (folder / name).parent.is_dir() and "/" not in row["SOPInstanceUID"]:
            with contextlib.suppress(OSError):
                (folder / name).write_bytes(filesystem.cat_file(f"{root}/{name}", start=0, end=HEADER_BYTES))


def fetch(location: str, folder: Path, *, header_only: bool = False) -> Path:
    """Copy a series from an object store below a folder and return its path there.

    Objects get names of ours, since theirs are data from outside. `header_only` copies the start of a few files.
    Raises SeriesError (`vanished`).
    """
    filesystem, root = fsspec.core.url_to_fs(location)
    name = re.sub(r"[^A-Za-z0-9.]", "_", root.rstrip("/").rsplit("/", 1)[-1]).lstrip(".") or "series"
    target = folder / name
    try:
        if is_archive(Path(location)):
            filesystem.get_file(root, str(target))
            return target
        names = sorted(filesystem.find(root))[: PROBED_FILES if header_only else None]
        target.mkdir()
        local = [str(target / f"{index:05d}") for index in range(len(names))]
        if header_only:
            for remote, path in zip(names, local, strict=True):
                Path(path).write_bytes(filesystem.cat_file(remote, start=0, end=HEADER_BYTES))
        else:
            filesystem.get(names, local)
    # As above: the errors of object stores have no common class.
    except Exception as error:
        raise SeriesError("vanished", f"{location}: cannot be fetched: {type(error).__name__}") from error
    return target
