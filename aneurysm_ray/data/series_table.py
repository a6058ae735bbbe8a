"""Data sets of one table, `series.csv`: a row an image, wherever it lies, with what is known of it.

| column | meaning |
|---|---|
| image | NIfTI file, folder of DICOM files or archive, relative to the table; the only column that must be there |
| patient | whose it is; several images of one patient share a fold. Each image is a patient's own where it is empty |
| site | where it was scanned: a word or number, kept as it is, for folds and groups by site |
| modality | CTA, MRA, MRI T2, MRI T1post, CT or MR; a NIfTI file's values decide between CT and MR where it is empty |
| mask | NIfTI mask of its aneurysms; several are parted by `;` |
| ignored | values of the mask that are neither positive nor negative, parted by `;`, such as ADAM's 2 |
| vessels | NIfTI mask of its vessels by the challenge's values |
| points | table of places, see `read_marks` |
| the 14 labels, some or all | 0, 1 or empty, which is unknown |
"""

import csv
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.data.dataset import MODALITIES, Dataset, DomeMask, SeriesEntry
from aneurysm_ray.data.meanings import IGNORED, UNPLACED
from aneurysm_ray.data.points import Mark
from aneurysm_ray.errors import DatasetError, did_you_mean, other_commas
from aneurysm_ray.labels import LABELS, LOCATIONS, PRESENT_INDEX

TABLE = "series.csv"
COLUMNS = ("image", "patient", "site", "modality", "mask", "ignored", "vessels", "points")
_SPACES: Mapping[tuple[str, str, str], str] = {
    ("i", "j", "k"): "voxel",
    ("x_lps_mm", "y_lps_mm", "z_lps_mm"): "lps",
    ("x_ras_mm", "y_ras_mm", "z_ras_mm"): "ras",
}
"""Columns of a table of places, which say what they count."""
_OF_PLACES = ("image", "location", "radius_mm", "ignored")


def is_table(root: Path) -> bool:
    """Whether a folder is described by one table."""
    return (root / TABLE).is_file()


def open_table(root: Path) -> Dataset:
    """Return the images that `series.csv` lists.

    Raises DatasetError for unknown columns and labels, for files that are not there, and for an image that is listed
    twice, each with its line.
    """
    path = root / TABLE
    rows = _rows(path, ",", ("image",), (*COLUMNS, *LABELS))
    found: list[SeriesEntry] = []
    lines: dict[str, int] = {}
    for line, row in enumerate(rows, start=2):
        where = f"{path} line {line}"
        image = _file(where, root, "image", row["image"])
        if image is None:
            raise DatasetError(f"{where}: image is empty; give a NIfTI file, a folder of DICOM files or an archive")
        if (before := lines.setdefault(os.path.realpath(image), line)) != line:
            raise DatasetError(f"{where}: {row['image']} stands on line {before} already; keep one of them")
        points = _file(where, root, "points", row.get("points", ""))
        masks = [_file(where, root, "mask", name) for name in row.get("mask", "").split(";")]
        values = tuple((value, IGNORED) for value in _numbers(where, row.get("ignored", "")))
        found.append(
            SeriesEntry(
                None,
                image,
                _modality(where, row.get("modality", "")),
                targets_of({label: _target(where, label, row.get(label, "")) for label in LABELS}),
                (),
                marks=read_marks(points, row["image"]) if points else (),
                vessels=_file(where, root, "vessels", row.get("vessels", "")),
                domes=tuple(DomeMask(mask, values) for mask in masks if mask is not None),
                patient=row.get("patient", "").strip() or None,
                site=row.get("site", "").strip(),
            )
        )
    return Dataset(root, tuple(found), (f"data set of one table: {len(found)} images", *_notes(found)))


def _notes(found: Sequence[SeriesEntry]) -> list[str]:
    told = Counter[str]()
    for entry in found:
        known = entry.marks or entry.domes or not np.isnan(entry.targets).all()
        told["images have neither labels nor points nor a mask: their labels are unknown"] += not known
        told["images name no patient: each is taken for a patient of its own"] += entry.patient is None
    return [f"{count} {text}" for text, count in told.items() if count]


def targets_of(known: Mapping[str, float]) -> NDArray[np.float32]:
    """Return the 14 labels, NaN where unknown, with what follows: no aneurysm at all is none at every location."""
    targets = np.array([known[label] for label in LABELS], np.float32)
    places = targets[:PRESENT_INDEX]
    if targets[PRESENT_INDEX] == 0:
        places[np.isnan(places)] = 0
    elif np.isnan(targets[PRESENT_INDEX]) and (places == 1).any():
        targets[PRESENT_INDEX] = 1
    elif np.isnan(targets[PRESENT_INDEX]) and (places == 0).all():
        targets[PRESENT_INDEX] = 0
    return targets


def read_marks(path: Path, image: str = "") -> tuple[Mark, ...]:
    """Return the places of a table: CSV with the columns i, j, k (voxels of the image, from 0), or x_lps_mm, y_lps_mm,
    z_lps_mm, or x_ras_mm, y_ras_mm, z_ras_mm; and, if known, location, radius_mm, ignored and image.

    A table that has the column `image` may hold the places of several: only those of `image` are returned. A text of
    numbers alone, three or four a line, is ADAM's: i, j, k and a radius in voxels, which is not used.
    Raises DatasetError.
    """
    text = path.read_text(encoding="utf-8-sig")
    first = text.splitlines()[0] if text.strip() else ""
    if not first or all(_is_number(word) for word in first.replace(",", " ").split()):
        return _bare_marks(path, text)
    rows = _rows(path, ",", (), (*(name for names in _SPACES for name in names), *_OF_PLACES))
    given = [names for names in _SPACES if rows and all(name in rows[0] for name in names)]
    if len(given) != 1 and rows:
        raise DatasetError(
            f"{path} must have either the columns i, j, k (voxels), or x_lps_mm, y_lps_mm, z_lps_mm, or x_ras_mm, "
            "y_ras_mm, z_ras_mm: a place without its space could be anywhere"
        )
    found = []
    for line, row in enumerate(rows, start=2):
        if image and row.get("image", image) != image:
            continue
        where = f"{path} line {line}"
        x, y, z = (_number(where, name, row[name]) for name in given[0])
        radius = row.get("radius_mm", "").strip()
        found.append(
            Mark(
                _SPACES[given[0]],  # type: ignore[arg-type]
                *(x, y, z),
                location=_location(where, row.get("location", "")),
                radius_mm=_number(where, "radius_mm", radius) if radius else None,
                ignored=_target(where, "ignored", row.get("ignored", "")) == 1,
            )
        )
    return tuple(found)


def _bare_marks(path: Path, text: str) -> tuple[Mark, ...]:
    found = []
    for line, words in enumerate((row.replace(",", " ").split() for row in text.splitlines()), start=1):
        if not words:
            continue
        if len(words) not in (3, 4):
            raise DatasetError(f"{path} line {line}: {len(words)} numbers; expected i, j, k and perhaps a radius")
        i, j, k = (_number(f"{path} line {line}", "a coordinate", word) for word in words[:3])
        found.append(Mark("voxel", i, j, k, UNPLACED))
    return tuple(found)


def _rows(path: Path, delimiter: str, needed: Sequence[str], known: Sequence[str]) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, restval="", strict=True)
            names = list(reader.fieldnames or ())
            rows = [dict(row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} is not a CSV table in UTF-8: {error}") from error
    for name in needed:
        if name not in names:
            raise DatasetError(f"{path} has no column {name!r}{other_commas(names) or did_you_mean(name, names)}")
    for name in names:
        if name not in known:
            cure = other_commas(names) or did_you_mean(name, known)
            raise DatasetError(f"{path} has an unknown column {name!r}{cure}")
    if any(None in row for row in rows):
        raise DatasetError(f"{path} has lines with more cells than its header; quote cells that hold a comma")
    return rows


def _file(where: str, root: Path, column: str, name: str) -> Path | None:
    if not name.strip():
        return None
    path = root / Path(name.strip()).expanduser()
    # A link whose content was not fetched is there: the reader names the command that fetches it.
    if not os.path.lexists(path):
        raise DatasetError(f"{where}: {column} {name!r} does not exist below {root}")
    return path


def _modality(where: str, word: str) -> str | None:
    words = (*MODALITIES, "CT", "MR")
    if word.strip() and word.strip() not in words:
        raise DatasetError(f"{where}: modality {word!r} is not one of {', '.join(words)}")
    return word.strip() or None


def _target(where: str, label: str, text: str) -> float:
    if text.strip() in ("", "0", "1", "0.0", "1.0"):
        return float(text) if text.strip() else math.nan
    raise DatasetError(f"{where}: {label} is {text!r}; it must be 0, 1 or empty for unknown")


def _numbers(where: str, text: str) -> list[int]:
    words = [word.strip() for word in text.split(";") if word.strip()]
    if not all(word.isdigit() and int(word) > 0 for word in words):
        raise DatasetError(f"{where}: ignored is {text!r}; expected values of the mask, such as 2 or 2;3")
    return [int(word) for word in words]


def _number(where: str, name: str, text: str) -> float:
    if not _is_number(text):
        raise DatasetError(f"{where}: {name} is {text!r}, not a number")
    return float(text)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _location(where: str, word: str) -> str:
    if not word.strip() or word.strip() in LOCATIONS:
        return word.strip()
    raise DatasetError(f"{where}: location {word!r} is unknown{did_you_mean(word, LOCATIONS)}; leave it empty if so")
