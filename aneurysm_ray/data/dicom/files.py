"""Files of a series, listed and opened so that nothing outside the folder is read and nothing blocks."""

import filecmp
import os
import resource
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from aneurysm_ray.data.dicom.quality import BadFile
from aneurysm_ray.errors import SeriesError

MAX_FILES = 20_000
"""Files a series may have; the largest of the competition has about 2,000."""
MAX_DEPTH = 8
"""Folders below the series' own that are searched."""


def list_files(folder: Path) -> list[str]:
    """Return the regular files below a folder, sorted by path.

    Links to folders are never followed; links to files only where they end in a regular file below the same folder.
    Raises SeriesError `vanished` where the folder does not exist, `no_files` where nothing is left, `too_large` above
    MAX_FILES files.
    """
    if not folder.is_dir():
        raise SeriesError("vanished", f"{folder}: there is no such folder")
    found: list[str] = []
    waiting = [(str(folder), 0)]
    while waiting:
        current, depth = waiting.pop()
        try:
            entries = list(os.scandir(current))
        except OSError as error:
            raise SeriesError("vanished", f"{current}: cannot be listed: {error.strerror}") from error
        for entry in entries:
            if entry.is_file(follow_symlinks=False) or (entry.is_symlink() and _ends_inside(entry.path, folder)):
                found.append(entry.path)
            elif entry.is_dir(follow_symlinks=False) and depth < MAX_DEPTH:
                waiting.append((entry.path, depth + 1))
        if len(found) > MAX_FILES:
            raise SeriesError("too_large", f"{folder}: more than {MAX_FILES:,} files; one series was expected")
    if not found:
        raise SeriesError("no_files", f"{folder}: holds no regular file")
    return sorted(found)


def sizes_of(files: Sequence[str]) -> int:
    """Return the bytes of all files together; one that has vanished counts nothing."""
    total = 0
    for file in files:
        with suppress(OSError):
            total += os.stat(file).st_size
    return total


def _ends_inside(link: str, folder: Path) -> bool:
    target = os.path.realpath(link)
    return target.startswith(os.path.realpath(folder) + os.sep) and os.path.isfile(target)


class RegularFile:
    """A regular file open for reading; opening never blocks, as it would on a FIFO."""

    __slots__ = ("descriptor", "size")

    def __init__(self, path: str) -> None:
        """Open a file; raises BadFile where it cannot be, or is no regular file."""
        try:
            # O_NONBLOCK: a FIFO that took the file's place since the listing must not hang the reader.
            self.descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise BadFile("vanished", f"cannot be opened: {error.strerror}") from error
        status = os.fstat(self.descriptor)
        self.size = status.st_size
        """Bytes."""
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise BadFile("junk_files", "is no regular file")

    def close(self) -> None:
        os.close(self.descriptor)


class OpenFiles:
    """Files of a series, kept open from their headers to their pixels; a context that closes them.

    On a network file system opening a file costs more than reading a header.
    """

    def __init__(self) -> None:
        self._open: dict[str, RegularFile] = {}
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = MAX_FILES if allowed == resource.RLIM_INFINITY else max(allowed // 2, 1)

    def open(self, path: str) -> RegularFile:
        """Return a file, open; the oldest is closed where half of the descriptors a process may have are taken.

        Raises BadFile where it cannot be opened.
        """
        file = self._open.get(path)
        if file is None:
            if len(self._open) >= self._most:
                self._open.pop(next(iter(self._open))).close()
            file = self._open[path] = RegularFile(path)
        return file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()


def read_at(source: int | bytes, offset: int, count: int) -> bytes:
    """Return `count` bytes at `offset` of an open file or a buffer; BadFile where they are not all there."""
    data = source[offset : offset + count] if isinstance(source, bytes) else os.pread(source, count, offset)
    if len(data) != count:
        raise BadFile(
            "unreadable_files", f"is truncated: {count:,} bytes are wanted at {offset:,}, {len(data):,} are there"
        )
    return data


def same_bytes(one: str, other: str) -> bool:
    """Whether two files hold the same bytes; a file does not repeat itself."""
    try:
        return one != other and filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False
