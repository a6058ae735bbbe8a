"""Files of a series, listed and opened so that nothing blocks; links of the user's own file system are followed."""

import errno
import filecmp
import os
import resource
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from aneurysm_ray.data.dicom.quality import BadFile, Dropped
from aneurysm_ray.errors import SeriesError

MAX_FILES = 20_000
"""Files a series may have; the largest of the competition has about 2,000."""
MAX_DEPTH = 8
"""Folders below the series' own that are searched."""


@dataclass(frozen=True)
class Listed:
    """What a folder holds."""

    files: tuple[str, ...]
    """Regular files, also through links, sorted by path."""
    left_out: tuple[Dropped, ...]
    """Links that lead nowhere, and folders that are too deep."""


def list_files(folder: Path, *, deep: bool = True) -> Listed:
    """Return the regular files of a folder, of those below it too where `deep`.

    Links to files and folders are followed; a folder that is reached a second time, such as by a link to one above it,
    is not listed again. Raises SeriesError `vanished` where the folder does not exist or all its links lead nowhere,
    `no_files` where nothing is there, `too_large` above MAX_FILES files.
    """
    if not folder.is_dir():
        raise SeriesError("vanished", "there is no such folder", str(folder))
    found: list[str] = []
    left_out: list[Dropped] = []
    waiting = [(str(folder), 0)]
    seen = set()
    while waiting:
        current, depth = waiting.pop()
        try:
            status = os.stat(current)
            entries = list(os.scandir(current))
        except OSError as error:
            raise SeriesError("vanished", f"cannot be listed: {error.strerror}", current) from error
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            if _is(entry, "file"):
                found.append(entry.path)
            elif _is(entry, "dir"):
                if depth < MAX_DEPTH and deep:
                    waiting.append((entry.path, depth + 1))
                elif deep:
                    left_out.append(Dropped(entry.path, "unreadable_files", f"is more than {MAX_DEPTH} folders deep"))
            elif entry.is_symlink() and not os.path.exists(entry.path):
                left_out.append(Dropped(entry.path, "dangling_links", dangling(entry.path)))
        if len(found) + len(left_out) > MAX_FILES:
            raise SeriesError("too_large", f"more than {MAX_FILES:,} files; one series was expected", str(folder))
    if not found and not left_out:
        raise SeriesError("no_files", "holds no regular file", str(folder))
    return Listed(tuple(sorted(found)), tuple(left_out))


def _is(entry: os.DirEntry[str], kind: str) -> bool:
    """Whether an entry is a file or folder, by way of links; a circle of links is neither."""
    try:
        return entry.is_file() if kind == "file" else entry.is_dir()
    except OSError:
        return False


def dangling(link: str) -> str:
    """Say of a link that leads nowhere what can be done."""
    with suppress(OSError):
        if ".git/annex/" in os.readlink(link).replace("\\", "/"):
            return "is a link to content that git-annex has not fetched; run `git annex get` in the data set"
    return "is a link that leads nowhere"


def sizes_of(files: Sequence[str]) -> int:
    """Return the bytes of all files together; one that has vanished counts nothing."""
    total = 0
    for file in files:
        with suppress(OSError):
            total += os.stat(file).st_size
    return total


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

        So it is where others have taken the rest. Raises BadFile where it cannot be opened.
        """
        file = self._open.get(path)
        while file is None:
            if len(self._open) >= self._most:
                self._close_oldest()
            try:
                file = self._open[path] = RegularFile(path)
            except BadFile as error:
                if not (self._open and getattr(error.__cause__, "errno", None) in (errno.EMFILE, errno.ENFILE)):
                    raise
                self._close_oldest()
        return file

    def _close_oldest(self) -> None:
        self._open.pop(next(iter(self._open))).close()

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
