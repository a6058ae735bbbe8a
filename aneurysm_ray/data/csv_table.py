"""CSV tables that people write: rows of texts, or a sentence that says what is wrong with the file."""

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path

from aneurysm_ray.errors import DatasetError, other_commas

Row = tuple[int, dict[str, str]]
"""Line of the file, and its cells by the names of the columns; cells that a line lacks are empty."""


def read_text(path: Path) -> str:
    """Return the text of a table. Raises DatasetError for what is no text in UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path} is not a text in UTF-8 (byte {error.start} is {error.object[error.start]:#04x}); save it again in "
            "UTF-8: spreadsheets call that 'CSV UTF-8'"
        ) from error


def read_rows(path: Path, delimiter: str = ",") -> tuple[list[str], list[Row]]:
    """Return the names of a table's columns and its rows; lines of empty cells alone are passed over.

    Raises DatasetError for what is no such table: another encoding, a column that is named twice or not at all but
    holds something, a line with more cells than the header.
    """
    # Lines end where CSV's do: a cell may hold what Unicode calls a separator of lines.
    reader = csv.reader(io.StringIO(read_text(path)), delimiter=delimiter, strict=True)
    try:
        rows = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise DatasetError(f"{path} line {reader.line_num} is not CSV: {error}") from error
    names = [name.strip() for name in rows.pop(0)[1]] if rows else []
    if delimiter == "," and (cure := other_commas(names)):
        raise DatasetError(f"{path} has an unknown column {names[0]!r}{cure}")
    kept = [number for number, name in enumerate(names) if name]
    for number, name in enumerate(names):
        if name and names.index(name) != number:
            raise DatasetError(
                f"{path} has two columns {name!r}, {names.index(name) + 1} and {number + 1}; keep the one that counts"
            )
    for line, cells in rows:
        stray = next((number for number, cell in enumerate(cells) if number not in kept and cell.strip()), None)
        if stray is not None and stray >= len(names):
            raise DatasetError(f"{path} line {line} has more cells than its header; quote cells that hold a comma")
        if stray is not None:
            raise DatasetError(
                f"{path} line {line}: cell {stray + 1} stands below no name; name its column or empty it"
            )
    return [names[number] for number in kept], [
        (line, {names[number]: cells[number] if number < len(cells) else "" for number in kept}) for line, cells in rows
    ]


def plain(name: str) -> str:
    """Return a name without what spreadsheets change: case, spaces around it, leading zeros, a `.0` behind a number."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"^(\d+)\.0$", r"\1", name.strip().casefold()))


def look_alikes(names: Iterable[str]) -> tuple[str, str] | None:
    """Return two names that are not the same and would be, but for what spreadsheets change."""
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(plain(name), name)) != name:
            return other, name
    return None
