"""Decompressed volumes as memory maps in a bounded folder that all workers of a node share.

A volume file must be decompressed as a whole, 10-40 ms; a patch of a memory map costs a copy of its own size. The
folder holds one .npy per volume, written under another name and renamed, so processes need not agree on who decodes
what; when it grows past its limit the least recently used files go. A map that is open stays valid when its file is
removed.
"""

import fcntl
import getpass
import hashlib
import os
import tempfile
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
from aneurysm_ray.learning.cases import Case

HEADER_BYTES = 128
"""Size of an .npy header, counted with each file."""


@dataclass(frozen=True, eq=False)
class Patch:
    """A part of a volume; smaller than asked where the volume ends."""

    voxels: NDArray[np.uint8]
    vessels: NDArray[np.uint8] | None = None
    """Classes and 255 as `PreparedVolume` has them; None where not asked for or not known. The same for domes."""
    domes: NDArray[np.uint8] | None = None


class VolumeCache:
    """Voxels of prepared volumes as uint8, and their masks, decompressed once per node. Safe to share between threads
    and processes."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Use `folder`, made when the first volume is kept; a limit of 0 keeps none."""
        self.folder = folder
        self.limit_bytes = limit_bytes

    def patch(self, case: Case, start: NDArray[np.int64], size: tuple[int, int, int], *, masks: bool = False) -> Patch:
        """Return a part of a series, read-only, with its masks only if asked; `start` is its first voxel.

        Raises RunDirError when its volume cannot be read.
        """
        z, y, x = (slice(first, first + length) for first, length in zip(start, size, strict=True))
        names = ["voxels", *(["vessels"] * case.has_vessels + ["domes"] * case.has_domes) * masks]
        return Patch(**{name: array[z, y, x] for name, array in self._arrays(case, names).items()})

    def voxels(self, case: Case) -> NDArray[np.uint8]:
        """Return a series' voxels (Z, Y, X), read-only. Raises RunDirError when its volume cannot be read."""
        return self._arrays(case, ["voxels"])["voxels"]

    def _arrays(self, case: Case, names: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
        paths = {name: self._path(case, name) for name in names}
        found: dict[str, NDArray[np.uint8]] = {}
        try:
            for name, path in paths.items():
                found[name] = np.load(path, mmap_mode="r")
                os.utime(path)
            return found
        except (FileNotFoundError, ValueError):  # never kept, evicted a moment ago, or damaged by a full disk
            found = _read(case, names)
            for name, array in found.items():
                if array.nbytes + HEADER_BYTES <= self.limit_bytes:
                    self._keep(paths[name], array)
            return found

    def _path(self, case: Case, name: str = "voxels") -> Path:
        try:
            source = case.path.stat()
        except OSError as error:
            raise RunDirError(
                f"{case.path}: cannot be read ({error.strerror or error}); prepare the set again"
            ) from error
        key = f"{case.path}|{source.st_mtime_ns}|{source.st_size}|{name}"
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"

    def _keep(self, path: Path, array: NDArray[np.uint8]) -> None:
        """Write a volume if there is room on the disk: a full disk costs speed, not the run."""
        handle = -1
        temporary = ""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, temporary = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
            with os.fdopen(handle, "wb") as file:
                np.save(file, array)
            os.replace(temporary, path)
        except OSError:
            if temporary:
                Path(temporary).unlink(missing_ok=True)
            return
        self._evict()

    def _evict(self) -> None:
        """Remove the least recently used files until the rest fit; one process at a time."""
        with open(self.folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            kept = sorted((f.stat().st_mtime_ns, f.stat().st_size, f) for f in self.folder.glob("*.npy"))
            excess = sum(size for _, size, _ in kept) - self.limit_bytes
            for _, size, file in kept:
                if excess <= 0:
                    break
                file.unlink(missing_ok=True)
                excess -= size


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


def open_cache(volumes: Path, feed: FeedConfig) -> VolumeCache:
    """Return the cache of a prepared set, in `feed.cache_dir` or a folder of this user named by the set."""
    name = hashlib.sha256(str(location.absolute(volumes)).encode()).hexdigest()[:16]
    parent = Path(feed.cache_dir) if feed.cache_dir else Path(tempfile.gettempdir()) / f"aneurysm_ray_{_user()}"
    return VolumeCache(parent / name, int(feed.cache_gb * 1e9))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
