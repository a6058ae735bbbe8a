"""Every error a user can cause: a sentence that names the thing, the value and the cure.

`cli.main` turns an `AneurysmRayError` into one `error:` line on stderr and the exit code of its class; anything else
that escapes is our own mistake and shows a traceback.
"""

import difflib
from collections.abc import Iterable, Sequence


class AneurysmRayError(Exception):
    """The work failed in a way the user can understand."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class RequestError(AneurysmRayError):
    """The request is wrong: a path, a key, a value or a size that cannot work. Found before Ray starts."""

    exit_code = 2


class ConfigError(RequestError):
    """A configuration key or value is not valid."""


class DatasetError(RequestError):
    """A data set's tables or folders are not what they claim to be."""


class RunDirError(RequestError):
    """A run or volumes directory is missing, incomplete, or belongs to another run."""


class OutputError(AneurysmRayError):
    """The place of the results cannot be written: the disk is full, read-only or gone."""


SERIES_REASONS: dict[str, str] = {
    "no_files": "the folder holds no regular file",
    "no_images": "no file is a DICOM image, or a file is no NIfTI image",
    "single_slice": "one slice is not a volume",
    "colour": "the images are colour, such as a secondary capture",
    "unsupported": "the images are of a kind that has no slices in space, such as a mosaic",
    "unreadable_pixels": "the pixels cannot be decoded",
    "no_geometry": "positions or spacing are missing, not finite or absurd",
    "mixed_passes": "several images stand at each position, and nothing tells which belong together",
    "too_large": "the volume would be larger than the limit",
    "no_head": "nothing remains inside the region of interest",
    "unsafe_path": "a UID or path would leave its folder",
    "bad_archive": "the archive cannot be read, or would unpack to more than the limit",
    "not_hounsfield": "a CT's values are not Hounsfield units, and the file does not say what they are",
    "not_fetched": "the file is a pointer of git-annex or Git LFS, whose content was not fetched",
    "vanished": "the source disappeared while it was read",
    "timeout": "preparation took longer than the time limit",
    "memory": "preparation took more memory than the limit",
    "crash": "the process that prepared it died",
}
"""The closed list of reasons why a series is no volume, each with its meaning."""


class SeriesError(AneurysmRayError):
    """A series cannot become a volume. `reason` is a key of `SERIES_REASONS`; the text names the file and the value.

    Names of folders and files often hold those of patients, so they stand apart in `where`: `told` is the text without.
    """

    def __init__(self, reason: str, told: str, where: str = "") -> None:
        assert reason in SERIES_REASONS, reason
        super().__init__(f"{where}: {told}" if where else told)
        self.reason = reason
        self.told = printable(told)
        self.where = where

    def __reduce__(self) -> tuple[type["SeriesError"], tuple[str, str, str]]:
        return type(self), (self.reason, self.told, self.where)


def printable(text: str) -> str:
    """Return a text that any file and terminal takes: bytes of a name that are no UTF-8 as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def shown(value: str, most: int = 60) -> str:
    """Return a value from a file for a message: numbers as they are, of anything else, which may be a name, no word."""
    if value and not value.strip("0123456789.,+-eE\\ ()"):
        return repr(value[:most])
    return f"a text of {len(value)} characters"


def other_commas(names: Sequence[str]) -> str:
    """Return a cure where a CSV table's header is one cell that something else parts, or an empty string.

    Spreadsheets write semicolons where the comma stands in numbers.
    """
    part = next((part for part in (";", "\t", "|") if len(names) == 1 and part in names[0]), "")
    return f": its columns are parted by {part!r}; part them by commas" if part else ""


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return `; did you mean X?` for the nearest of the known words, a prefix before it, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {prefix}{near[0]}?" if near else ""
