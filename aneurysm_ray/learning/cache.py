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
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray import location
from aneurysm_ray.config import FeedConfig, VolumeConfig
from aneurysm_ray.data import store
from aneurysm_ray.data.store import PreparedVolume
from aneurysm_ray.errors import RunDirError
from aneurysm_ray.learning.cases import Case

HEADER_BYTES = 128
"""Size of an .npy header, counted with each file."""


class VolumeCache:
    """Voxels of prepared volumes as uint8, decompressed once per node. Safe to share between threads and processes."""

    def __init__(self, folder: Path, limit_bytes: int, volume: VolumeConfig) -> None:
        """Use `folder`, made when the first volume is kept; a limit of 0 keeps none."""
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.volume = volume

    def voxels(self, case: Case) -> NDArray[np.uint8]:
        """Return a series' voxels (Z, Y, X), read-only. Raises RunDirError when its volume cannot be read."""
        path = self._path(case)
        try:
            found: NDArray[np.uint8] = np.load(path, mmap_mode="r")
            os.utime(path)
            return found
        except (FileNotFoundError, ValueError):  # never kept, evicted a moment ago, or damaged by a full disk
            voxels = as_uint8(store.read_volume(case.path), self.volume)
            if voxels.nbytes + HEADER_BYTES <= self.limit_bytes:
                self._keep(path, voxels)
            return voxels

    def _path(self, case: Case) -> Path:
        try:
            source = case.path.stat()
        except OSError as error:
            raise RunDirError(
                f"{case.path}: cannot be read ({error.strerror or error}); prepare the set again"
            ) from error
        window = (self.volume.window_hu, self.volume.percentiles)
        key = f"{case.path}|{source.st_mtime_ns}|{source.st_size}|{window}"
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"

    def _keep(self, path: Path, voxels: NDArray[np.uint8]) -> None:
        """Write a volume if there is room on the disk: a full disk costs speed, not the run."""
        handle = -1
        temporary = ""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, temporary = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
            with os.fdopen(handle, "wb") as file:
                np.save(file, voxels)
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


def open_cache(volumes: Path, feed: FeedConfig, volume: VolumeConfig) -> VolumeCache:
    """Return the cache of a prepared set, in `feed.cache_dir` or a folder of this user named by the set."""
    name = hashlib.sha256(str(location.absolute(volumes)).encode()).hexdigest()[:16]
    parent = Path(feed.cache_dir) if feed.cache_dir else Path(tempfile.gettempdir()) / f"aneurysm_ray_{_user()}"
    return VolumeCache(parent / name, int(feed.cache_gb * 1e9), volume)


def as_uint8(prepared: PreparedVolume, volume: VolumeConfig) -> NDArray[np.uint8]:
    """Return voxels (Z, Y, X) on the scale networks see: 0-255 over the window.

    uint8 voxels span their window already. int16 ones are Hounsfield units (CT: `window_hu`) or stored units (MR: the
    percentiles of the voxels above the lowest).
    """
    if prepared.voxels.dtype == np.uint8:
        return prepared.voxels.astype(np.uint8, copy=False)
    voxels = prepared.voxels.astype(np.float32)
    if prepared.modality in ("CT", "CTA"):
        low, high = volume.window_hu
    else:
        inside = voxels[voxels > voxels.min()]
        low, high = np.percentile(inside, volume.percentiles) if inside.size else (0.0, 1.0)
    scaled = (voxels - low) * (255 / max(high - low, 1e-6))
    return np.asarray(np.clip(np.rint(scaled), 0, 255), np.uint8)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
