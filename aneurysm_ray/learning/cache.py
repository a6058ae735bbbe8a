"""Volumes as files of small cubes, of which a patch reads its part, in a bounded folder that a node's workers share.

A volume of a prepared set must be decompressed as a whole, 40-60 ms; a patch of `bricks` takes one or two. The folder
holds a file for each volume, and for its mask where that was asked for, written under another name and renamed, so
processes need not agree on who writes what; when it grows past its limit those files go that will not be asked for so
soon. One that is open stays readable when its name is removed.
"""

import fcntl
import getpass
import hashlib
import math
import os
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray import location
from aneurysm_ray.config import FeedConfig
from aneurysm_ray.data import store
from aneurysm_ray.data.window import to_uint8
from aneurysm_ray.errors import RunDirError
from aneurysm_ray.learning.bricks import Bricks, Damaged, write
from aneurysm_ray.learning.cases import Case

OPEN_FILES = 64
"""Files of the folder that a process holds open; the disk is free of one that was evicted when all have closed it."""

SLACK = 0.01
"""Share of its limit that a process adds to the folder before it looks again whether the limit is kept."""

HELD = 0.4
"""Share of its limit that a cache needs for what is drawn from: the rest holds what comes later in the epoch."""

AS_FILES = 2 / 3
"""Share of a volume's bytes that its file takes, about."""

SHARE_OF_DISK = 0.5
"""Share of what is free on the disk that the folder may take where nothing is said."""


@dataclass(frozen=True, eq=False)
class Patch:
    """A part of a volume; smaller than asked where the volume ends."""

    voxels: NDArray[np.uint8]
    vessels: NDArray[np.uint8] | None = None
    """Classes and 255 as `PreparedVolume` has them; None where not asked for or not known. The same for domes."""
    domes: NDArray[np.uint8] | None = None


@dataclass
class Traffic:
    """What a cache was asked for and what that took."""

    asked: int = 0
    """Arrays of which a part was asked for."""
    missed: int = 0
    """Those of them that had to be read from the set."""
    bytes_read: int = 0
    """From the folder's files."""


class VolumeCache:
    """Voxels of prepared volumes as uint8, and their masks, cut up once per node. Safe to share between
    threads and processes."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Use `folder`, made when the first volume is kept; a limit of 0 keeps none."""
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.traffic = Traffic()
        self._open: OrderedDict[Path, Bricks] = OrderedDict()
        self._keys: dict[Path, str] = {}
        self._touched: set[Path] = set()
        self._lock = threading.Lock()
        self._added = 0
        self._epochs = [0, 0]

    def patch(self, case: Case, start: NDArray[np.int64], size: tuple[int, int, int], *, masks: bool = False) -> Patch:
        """Return a part of a series, with its masks only if asked; `start` is its first voxel.

        A series that is read as a whole, as validation does, takes no room from those that patches are cut from.
        Raises RunDirError when its volume cannot be read.
        """
        names = ["voxels", *(["vessels"] * case.has_vessels + ["domes"] * case.has_domes) * masks]
        found: dict[str, NDArray[np.uint8]] = {}
        for name in names:
            if (part := self._kept(self._path(case, name), start, size)) is not None:
                found[name] = part
        if missing := [name for name in names if name not in found]:
            arrays = _read(case, names)
            may_evict = any(length < n for length, n in zip(size, case.shape, strict=True))
            self._keep({self._path(case, name): arrays[name] for name in missing}, may_evict=may_evict)
            z, y, x = (slice(first, first + length) for first, length in zip(start, size, strict=True))
            found = {name: array[z, y, x] for name, array in arrays.items()}
        with self._lock:
            self.traffic.asked += len(names)
            self.traffic.missed += len(missing)
        return Patch(**found)

    def begin_epoch(self) -> None:
        """Note anew what is in use, which decides what goes first (`_in_order_to_go`)."""
        with self._lock:
            self._epochs = [self._epochs[1], time.time_ns()]
            self._touched.clear()
            self._open.clear()

    def _kept(self, path: Path, start: NDArray[np.int64], size: tuple[int, int, int]) -> NDArray[np.uint8] | None:
        """Return a part of a file of the folder; None where it was never kept, is evicted, or was damaged."""
        with self._lock:
            bricks = self._open.get(path)
            if bricks is not None:
                self._open.move_to_end(path)
        try:
            if bricks is None:
                bricks = Bricks(path)
                if path not in self._touched:  # once an epoch is enough to know what is in use
                    _stamp(path)
                with self._lock:
                    self._touched.add(path)
                    self._open[path] = bricks
                    while len(self._open) > OPEN_FILES:
                        self._open.popitem(last=False)
            part, taken = bricks.read(start, size)
        except (OSError, Damaged):
            with self._lock:
                self._open.pop(path, None)
            return None
        with self._lock:
            self.traffic.bytes_read += taken
        return part

    def _path(self, case: Case, name: str = "voxels") -> Path:
        """Return the file of a volume as it was when this cache first met it."""
        key = self._keys.get(case.path)
        if key is None:
            try:
                source = case.path.stat()
            except OSError as error:
                raise RunDirError(
                    f"{case.path}: cannot be read ({error.strerror or error}); prepare the set again"
                ) from error
            key = f"{case.path}|{source.st_mtime_ns}|{source.st_size}"
            self._keys[case.path] = key
        return self.folder / f"{hashlib.sha256(f'{key}|{name}'.encode()).hexdigest()[:32]}.bricks"

    def _keep(self, arrays: dict[Path, NDArray[np.uint8]], *, may_evict: bool) -> None:
        """Write arrays if there is room on the disk: a full disk costs speed, not the run."""
        if not self.limit_bytes:
            return
        temporary = ""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not may_evict and self._size() + sum(array.nbytes for array in arrays.values()) > self.limit_bytes:
                return
            for path, array in arrays.items():
                handle, temporary = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
                with os.fdopen(handle, "wb") as file:
                    write(file, array)
                _stamp(temporary)
                self._added += os.path.getsize(temporary)
                os.replace(temporary, path)
        except OSError:
            if temporary:
                Path(temporary).unlink(missing_ok=True)
            return
        if self._added > SLACK * self.limit_bytes:
            self._evict()
            self._added = 0

    def _size(self) -> int:
        return sum(entry.stat().st_size for entry in os.scandir(self.folder) if entry.name.endswith(".bricks"))

    def _evict(self) -> None:
        """Remove files until the rest fit; one process at a time."""
        with open(self.folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            kept = sorted((f.stat().st_mtime_ns, f.stat().st_size, f) for f in self.folder.glob("*.bricks"))
            excess = sum(size for _, size, _ in kept) - self.limit_bytes
            for _, size, file in self._in_order_to_go(kept):
                if excess <= 0:
                    break
                file.unlink(missing_ok=True)
                excess -= size
                with self._lock:
                    self._open.pop(file, None)
                    self._touched.discard(file)

    def _in_order_to_go(self, kept: Sequence[tuple[int, int, Path]]) -> list[tuple[int, int, Path]]:
        """Order files, given as (opened, bytes, file) from the least recently opened on, by how soon they are missed.

        First goes what two epochs have not opened, then what this one has opened and is done with, as its volumes come
        close together (`sampler.gathered`): it is asked for again in the next. Last come those that it has not opened
        yet, and what it is at. The least recently opened are just those: most would be gone when they are asked for.
        """
        before, now = self._epochs
        unused = [entry for entry in kept if entry[0] < before]
        opened = [entry for entry in kept if entry[0] >= now]
        at_hand = np.cumsum([size for _, size, _ in reversed(opened)]) <= HELD * AS_FILES * self.limit_bytes
        done = opened[: len(opened) - int(at_hand.sum())]
        gone = {file for _, _, file in (*unused, *done)}
        return [*unused, *done, *(entry for entry in kept if entry[2] not in gone)]


def _read(case: Case, names: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
    """Decompress a series' voxels and those of its masks that are named after them. Raises RunDirError."""
    prepared = store.read_volume(case.path, masks=len(names) > 1)
    arrays = {
        "voxels": to_uint8(prepared.voxels, prepared.window),
        **{name: mask for name in names[1:] if (mask := getattr(prepared, name)) is not None},
    }
    if missing := [name for name in names if name not in arrays]:
        raise RunDirError(f"{case.path}: holds no {missing[0]}, though the set's table says so; prepare the set again")
    return arrays


def _stamp(path: str | Path) -> None:
    """Note that a file was opened now, by the clock that epochs are told by: the file system's own lags behind it."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))


def groups_of(cases: Sequence[Case], feed: FeedConfig, *, masks: bool) -> int:
    """Return the share of an epoch, as one of so many, in which a volume is used so that those in use fit the cache.

    By what was asked for alone, and not by what a disk has: all workers must draw alike, today and after a resume.
    """
    if feed.cache_gb <= 0:
        return 1
    needed = sum(math.prod(case.shape) * (1 + masks * (case.has_vessels + case.has_domes)) for case in cases)
    return max(1, math.ceil(needed / (HELD * feed.cache_gb * 1e9)))


def open_cache(volumes: Path, feed: FeedConfig) -> VolumeCache:
    """Return the cache of a prepared set, in `feed.cache_dir` or a folder of this user named by the set."""
    name = hashlib.sha256(str(location.absolute(volumes)).encode()).hexdigest()[:16]
    parent = Path(feed.cache_dir) if feed.cache_dir else Path(tempfile.gettempdir()) / f"aneurysm_ray_{_user()}"
    folder = parent / name
    return VolumeCache(folder, _room(folder) if feed.cache_gb < 0 else int(feed.cache_gb * 1e9))


def _room(folder: Path) -> int:
    """Return the bytes that a folder may take: a share of what is free beside what it has."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    held = VolumeCache(folder, 0)._size() if folder.exists() else 0
    return int(SHARE_OF_DISK * (shutil.disk_usage(there).free + held))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
