"""Why one file of a series is left out, and what the series is then refused for if nothing remains."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from aneurysm_ray.errors import SeriesError


class BadFile(Exception):
    """A file cannot be part of a volume; `code` is a key of `QUALITY` or `SERIES_REASONS`, the text shows the value."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Odd(Exception):
    """The lean walker met something it leaves to pydicom."""


@dataclass(frozen=True)
class Dropped:
    """A file, or one frame of it, that is not in the volume."""

    file: str
    code: str
    """A key of `QUALITY`, or of `SERIES_REASONS` where the code names a defect of the file."""
    message: str


QUALITY_OF_DEFECT = {
    "no_images": "unreadable_files",
    "no_geometry": "unreadable_files",
    "unreadable_pixels": "unreadable_files",
    "unsupported": "unreadable_files",
    "too_large": "unreadable_files",
    "unsafe_path": "unreadable_files",
    "vanished": "unreadable_files",
    "memory": "unreadable_files",
    "colour": "colour_files",
}
"""The quality code that a volume carries for files left out with a reason of `SERIES_REASONS`."""

REASON_OF_CODE = {"junk_files": "no_images", "unreadable_files": "no_images", "localizers": "no_images"}
"""The series' reason where a code of `QUALITY` is all there is to say about its files."""


def quality_code(code: str) -> str:
    """Return the code a volume carries for a file dropped with this one."""
    return QUALITY_OF_DEFECT.get(code, code)


def refuse(path: Path, dropped: list[Dropped]) -> SeriesError:
    """Return the error of a series of which nothing remains: the commonest reason, and the first file that has it.

    Files that are no DICOM at all say the least, so their reason counts only where there is no other.
    """
    telling = [drop for drop in dropped if drop.code != "junk_files"] or dropped
    if not telling:
        return SeriesError("no_images", f"{path}: holds no DICOM image")
    commonest = Counter(drop.code for drop in telling).most_common(1)[0][0]
    first = next(drop for drop in telling if drop.code == commonest)
    more = f" (and {len(dropped) - 1} more files)" if len(dropped) > 1 else ""
    return SeriesError(
        REASON_OF_CODE.get(commonest, commonest),
        f"{path}: {first.file.removeprefix(str(path)).lstrip('/')} {first.message}{more}",
    )
