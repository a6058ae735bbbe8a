"""Where the series of a data set lie: folders and archives on a file system, prefixes and objects in an object store.

`layout.open_dataset` joins tables to folders and archives. Where the whole lies in an object store, it is given a
stand-in: the tables, and a folder with an empty file in the place of each series.
"""

import contextlib
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd

from aneurysm_ray.config import FrameBase
from aneurysm_ray.data import bids, dataset, layout, nnunet, series_table
from aneurysm_ray.data.dataset import SeriesEntry
from aneurysm_ray.data.dicom.archives import is_archive, stem
from aneurysm_ray.data.dicom.files import list_files
from aneurysm_ray.data.urls import join
from aneurysm_ray.errors import DatasetError, SeriesError
from aneurysm_ray.location import patience

HEADER_BYTES = 256 * 1024
"""Of a file in an object store, read to learn its UID and size."""
PROBED_FILES = 3
"""Files of a series in an object store that are tried for one readable header."""

Listing = list[tuple[str, int, str]]
"""(name below the series, bytes, modification time or ETag) of each file."""


Mask = tuple[str, int, str]
"""(location, bytes, modification time or ETag) of a mask."""


@dataclass(frozen=True)
class Found:
    """The series of a data set by their location, a path or URL."""

    entries: dict[str, SeriesEntry]
    listed: Callable[[str], Listing]
    """Returns the files of the series at a location; none where they cannot be listed."""
    notes: tuple[str, ...]
    mask: Callable[[Path], Mask]
    """Returns what stands behind the path of a mask in an entry."""


def on_file_system(root: Path, frame_base: FrameBase = "auto") -> Found:
    """Return the series below a folder. Raises DatasetError."""
    found = layout.open_dataset(root, frame_base)
    entries = {str(entry.path): entry for entry in found.series}
    return Found(entries, lambda location: _listed_locally(location, entries[location]), found.notes, _mask_locally)


def _mask_locally(path: Path) -> Mask:
    stat = path.stat()
    return str(path), stat.st_size, str(stat.st_mtime_ns)


def _listed_locally(location: str, entry: SeriesEntry) -> Listing:
    try:
        files = list_files(Path(location), deep=entry.deep).files if os.path.isdir(location) else (location,)
        stats = [(os.path.relpath(file, location), os.stat(file)) for file in files]
    except (SeriesError, OSError):
        return []
    return [(name, stat.st_size, str(stat.st_mtime_ns)) for name, stat in stats]


def _placeholder(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "placeholder").touch()
    return str(folder)


def in_object_store(url: str, frame_base: FrameBase = "auto") -> Found:
    """Return the series below an fsspec URL. Raises DatasetError."""
    try:
        filesystem, root = fsspec.core.url_to_fs(url, **patience(url))
        infos = filesystem.find(root, detail=True)
    # Every object store has errors of its own; all of them mean that the data set cannot be listed.
    except Exception as error:
        raise DatasetError(f"{url} cannot be listed: {type(error).__name__}: {error}") from error
    root = root.rstrip("/")
    for table in (series_table.TABLE, nnunet.DESCRIPTION, bids.PARTICIPANTS):
        if f"{root}/{table}" in infos:
            raise DatasetError(
                f"{url} has a {table}: sets of NIfTI files are read from a file system; mount or copy it"
            )
    listings: defaultdict[str, Listing] = defaultdict(list)
    masks: dict[str, Mask] = {}
    tabular = any(path.startswith(f"{root}/series/") for path in infos)
    for path, info in sorted(infos.items()):
        name = path.removeprefix(f"{root}/")
        if any(part.startswith(".") for part in name.split("/")):
            continue
        stamp = info.get("ETag") or info.get("etag") or info.get("md5Hash") or info.get("LastModified") or ""
        size = int(info.get("size") or 0)
        series, file = _remote_series(name, tabular)
        if series is not None:
            listings[series].append((file, size, str(stamp)))
        elif tabular and name.startswith("segmentations/") and ".." not in name.split("/"):
            masks[name] = join(url, name), size, str(stamp)
    with tempfile.TemporaryDirectory(prefix="aneurysm-ray-") as folder:
        real = {}
        for table in (dataset.TRAIN_CSV, dataset.LOCALIZERS_CSV):
            if f"{root}/{table}" in infos:
                filesystem.get_file(f"{root}/{table}", f"{folder}/{table}")
        for series in listings:
            name = stem(series) if is_archive(Path(series)) else series
            real[_placeholder(Path(folder) / name)] = join(url, series)
        for name in masks:
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).touch()
        _fetch_counted_frames(filesystem, root, Path(folder))
        found = dataset.open_dataset(Path(folder), frame_base)
        entries = {real[str(entry.path)]: entry for entry in found.series if str(entry.path) in real}
        under = {str(Path(folder) / name): mask for name, mask in masks.items()}
    listed = lambda location: listings[location.removeprefix(url).strip("/")]  # noqa: E731
    return Found(entries, listed, found.notes, lambda path: under[str(path)])


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


def fetch_mask(location: str, folder: Path) -> Path:
    """Copy a mask from an object store into a folder and return its path there. Raises SeriesError (`vanished`)."""
    filesystem, path = fsspec.core.url_to_fs(location, **patience(location))
    target = folder / ("mask.nii.gz" if path.endswith(".gz") else "mask.nii")
    try:
        filesystem.get_file(path, str(target))
    # As in `fetch`: the errors of object stores have no common class.
    except Exception as error:
        raise SeriesError("vanished", f"its mask cannot be fetched: {type(error).__name__}", location) from error
    return target


def fetch(location: str, folder: Path, *, header_only: bool = False, deep: bool = True) -> Path:
    """Copy a series from an object store below a folder and return its path there; what lies deeper only where `deep`.

    Objects get names of ours, since theirs are data from outside. `header_only` copies the start of a few files.
    Raises SeriesError (`vanished`).
    """
    filesystem, root = fsspec.core.url_to_fs(location, **patience(location))
    name = re.sub(r"[^A-Za-z0-9.]", "_", root.rstrip("/").rsplit("/", 1)[-1]).lstrip(".") or "series"
    target = folder / name
    try:
        if is_archive(Path(location)):
            filesystem.get_file(root, str(target))
            return target
        below = sorted(filesystem.find(root, maxdepth=None if deep else 1))
        names = below[: PROBED_FILES if header_only else None]
        target.mkdir()
        local = [str(target / f"{index:05d}") for index in range(len(names))]
        if header_only:
            for remote, path in zip(names, local, strict=True):
                Path(path).write_bytes(filesystem.cat_file(remote, start=0, end=HEADER_BYTES))
        else:
            filesystem.get(names, local)
    # As above: the errors of object stores have no common class.
    except Exception as error:
        raise SeriesError("vanished", f"cannot be fetched: {type(error).__name__}", location) from error
    return target
