"""Whole files on this machine, a network file system or an object store, written so that no reader sees a part."""

import contextlib
import os
import socket
import time
from pathlib import Path

import fsspec

from aneurysm_ray import rundir
from aneurysm_ray.errors import OutputError
from aneurysm_ray.location import patience


def is_url(location: str) -> bool:
    """Say whether a location is an fsspec URL such as s3://bucket/folder, and no path."""
    return "://" in location


def join(folder: str, name: str) -> str:
    """Return the location of a name below a folder or URL."""
    return f"{folder.rstrip('/')}/{name}"


def write_bytes(location: str, data: bytes) -> None:
    """Write a whole file: renamed into place on a file system, one upload to an object store. Raises OutputError."""
    try:
        if is_url(location):
            filesystem, path = fsspec.core.url_to_fs(location, **patience(location))
            filesystem.pipe_file(path, data)
        else:
            with rundir.atomic(Path(location), "wb") as file:
                file.write(data)
    except OSError as error:
        raise OutputError(
            f"{location} cannot be written: {error.strerror or error}; make room or mend its permissions, and run the "
            "same command again"
        ) from error


def read_bytes(location: str) -> bytes | None:
    """Return a file's bytes, or None where there is none."""
    try:
        with fsspec.open(location, "rb", **patience(location)) as file:
            data: bytes = file.read()
            return data
    except (FileNotFoundError, NotADirectoryError):
        return None


def size_of(location: str) -> int | None:
    """Return a file's size in bytes, or None where there is none."""
    try:
        if is_url(location):
            filesystem, path = fsspec.core.url_to_fs(location, **patience(location))
            return int(filesystem.size(path))
        return os.stat(location).st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def files_below(folder: str) -> list[str]:
    """Return the locations of all files below a folder or URL, sorted; none where it does not exist."""
    if is_url(folder):
        filesystem, path = fsspec.core.url_to_fs(folder, **patience(folder))
        filesystem.invalidate_cache()
        return sorted(filesystem.unstrip_protocol(name) for name in filesystem.find(path))
    return sorted(os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names)


ABANDONED_SECONDS = 3600.0
"""Age of a temporary file of another machine at which its writer is taken for dead."""


def remove_abandoned(folder: str) -> None:
    """Remove the temporary files that dead writers left below a folder on this machine, and no living one's.

    Their names end in host and process, see `rundir.atomic`.
    """
    for location in files_below(folder) if not is_url(folder) else []:
        if not location.endswith(".tmp"):
            continue
        process = location.rsplit(".", 2)[1]
        with contextlib.suppress(OSError):
            here = location.removesuffix(f".{process}.tmp").endswith(f".{socket.gethostname()}") and process.isdigit()
            dead = not Path(f"/proc/{process}").exists() if here else False
            if dead or time.time() - os.stat(location).st_mtime > ABANDONED_SECONDS:
                os.unlink(location)


def remove(location: str) -> None:
    """Remove a file that may be gone already."""
    if is_url(location):
        filesystem, path = fsspec.core.url_to_fs(location, **patience(location))
        filesystem.rm_file(path)
    else:
        Path(location).unlink(missing_ok=True)
