"""Where a series comes from: a folder, one file, or a .zip or .tar archive unpacked into a private folder.

An archive is data from outside: sizes are checked before anything is unpacked and again while it is, only regular
members are taken, and a member's name never becomes a path.
"""

import lzma
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from aneurysm_ray.data.dicom.files import MAX_FILES, list_files, sizes_of
from aneurysm_ray.data.dicom.quality import Dropped
from aneurysm_ray.errors import SeriesError

MAX_ARCHIVE_BYTES = 4 * 2**30
"""Bytes that an archive may unpack to."""
MAX_RATIO = 200
"""Bytes unpacked for each byte of an archive; real series reach 20, synthetic ones 100."""
_CHUNK = 2**20
_DAMAGE = (
    *(OSError, EOFError, RuntimeError, ValueError, LookupError),
    *(zlib.error, zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError),
)
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
"""Suffixes by which an archive is known."""


@dataclass(frozen=True)
class SeriesFiles:
    """The files of a series."""

    files: tuple[str, ...]
    """Paths that can be read now."""
    count: int
    """Files in all."""
    unpacked_bytes: int | None = None
    """Bytes that an archive unpacks to."""
    left_out: tuple[Dropped, ...] = ()
    """What the folder holds beside them."""

    @property
    def bytes(self) -> int:
        """Bytes of all files together."""
        return sizes_of(self.files) if self.unpacked_bytes is None else self.unpacked_bytes


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    open: Callable[[], IO[bytes] | None]


def _kind(error: BaseException) -> str:
    """Return what is wrong with an archive without its own words, which name its members."""
    return "a member is encrypted" if "encrypted" in str(error) else type(error).__name__


def is_archive(path: Path) -> bool:
    """Whether a path's name says that it is an archive."""
    return path.name.lower().endswith(ARCHIVES)


def stem(archive: str) -> str:
    """Return an archive's name without its suffix: the UID in a competition's layout."""
    name = archive.lower()
    return archive[: -len(next(suffix for suffix in ARCHIVES if name.endswith(suffix)))]


@contextmanager
def open_series(path: Path, at_most: int = MAX_FILES, *, deep: bool = True) -> Iterator[SeriesFiles]:
    """Yield the files of a series; of an archive the first `at_most` are unpacked, into a folder that is removed again.

    Of a folder those below it count too, unless it is not `deep`.

    Raises SeriesError: `bad_archive`, `vanished`, `no_files` or `too_large`.
    """
    if path.is_dir():
        listed = list_files(path, deep=deep)
        yield SeriesFiles(listed.files, len(listed.files), left_out=listed.left_out)
    elif not path.is_file():
        raise SeriesError("vanished", "there is no such folder or file", str(path))
    elif is_archive(path):
        with tempfile.TemporaryDirectory(prefix="aneurysm-ray-") as folder, _open_archive(path) as members:
            total = _checked_size(path, members)
            chosen = sorted(members, key=lambda member: member.name)[:at_most]
            try:
                files = [_unpack(path, member, Path(folder), index) for index, member in enumerate(chosen)]
            except _DAMAGE as error:
                raise SeriesError("bad_archive", f"cannot be unpacked: {_kind(error)}", str(path)) from error
            yield SeriesFiles(tuple(files), len(members), total)
    else:
        yield SeriesFiles((str(path),), 1)


@contextmanager
def _open_archive(path: Path) -> Iterator[list[_Member]]:
    try:
        # Closed by `with archive` below, whichever of the two it is.
        archive = zipfile.ZipFile(path) if path.name.lower().endswith(".zip") else tarfile.open(path)  # noqa: SIM115
    except _DAMAGE as error:
        raise SeriesError("bad_archive", f"is no archive that can be read: {_kind(error)}", str(path)) from error
    with archive:
        try:
            members = _zip_members(archive) if isinstance(archive, zipfile.ZipFile) else _tar_members(path, archive)
        except _DAMAGE as error:
            raise SeriesError("bad_archive", f"its contents cannot be listed: {_kind(error)}", str(path)) from error
        yield members


def _zip_members(archive: zipfile.ZipFile) -> list[_Member]:
    def opener(info: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
        return lambda: archive.open(info)

    return [
        _Member(info.filename, info.file_size, opener(info))
        for info in archive.infolist()
        if not info.is_dir() and stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
    ]


def _tar_members(path: Path, archive: tarfile.TarFile) -> list[_Member]:
    def opener(info: tarfile.TarInfo) -> Callable[[], IO[bytes] | None]:
        return lambda: archive.extractfile(info)

    members = []
    total = 0
    for info in archive:  # a header at a time, so that a bomb is noticed before it is read to its end
        if info.isreg():
            members.append(_Member(info.name, info.size, opener(info)))
            total += info.size
            if total > MAX_ARCHIVE_BYTES or len(members) > MAX_FILES:
                break
    return members


def _checked_size(path: Path, members: list[_Member]) -> int:
    """Return the bytes an archive unpacks to; raises SeriesError above the limits, before anything is unpacked."""
    total = sum(member.size for member in members)
    if len(members) > MAX_FILES or total > MAX_ARCHIVE_BYTES or total > MAX_RATIO * path.stat().st_size + _CHUNK:
        raise SeriesError("bad_archive", f"would unpack to {len(members):,} files and {total:,} bytes", str(path))
    if not members:
        raise SeriesError("no_files", "holds no regular file", str(path))
    return total


def _unpack(path: Path, member: _Member, folder: Path, index: int) -> str:
    """Write one member under a name of our own and return it; the size declared is the most that is written."""
    target = folder / f"{index:05d}"
    left = member.size
    source = member.open()
    assert source is not None  # only links and folders of a tar have no content
    with source, target.open("wb") as file:
        while chunk := source.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                raise SeriesError("bad_archive", f"a member is longer than its {member.size:,} bytes", str(path))
            file.write(chunk)
    return str(target)
