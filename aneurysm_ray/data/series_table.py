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

import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.data.csv_table import Row, look_alikes, read_rows, read_text
from aneurysm_ray.data.dataset import MAX_RADIUS_MM, MODALITIES, Dataset, DomeMask, SeriesEntry
from aneurysm_ray.data.meanings import IGNORED, UNPLACED
from aneurysm_ray.data.points import Mark
from aneurysm_ray.errors import DatasetError, did_you_mean
from aneurysm_ray.labels import LABELS, LOCATIONS, PRESENT, PRESENT_INDEX

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

    Raises DatasetError, with its line, for unknown columns and labels, labels that contradict each other, files that
    are not there, an image that is listed twice, what two patients share, and names that a spreadsheet may have made.
    """
    path = root / TABLE
    found: list[SeriesEntry] = []
    lines: dict[str, int] = {}
    owners: dict[str, tuple[int, str]] = {}
    places: dict[Path, Mapping[str, tuple[Mark, ...]]] = {}
    for line, row in _rows(path, ("image",), (*COLUMNS, *LABELS)):
        where = f"{path} line {line}"
        image = _file(where, root, "image", row["image"])
        if image is None:
            raise DatasetError(f"{where}: image is empty; give a NIfTI file, a folder of DICOM files or an archive")
        if (before := lines.setdefault(os.path.realpath(image), line)) != line:
            raise DatasetError(f"{where}: {row['image']} stands on line {before} already; keep one of them")
        points = _file(where, root, "points", row.get("points", ""))
        if points and points not in places:
            places[points] = read_marks(points, root)
        masks = [_file(where, root, "mask", name) for name in row.get("mask", "").split(";")]
        vessels = _file(where, root, "vessels", row.get("vessels", ""))
        values = tuple((value, IGNORED) for value in _numbers(where, row.get("ignored", "")))
        patient = row.get("patient", "").strip()
        # A table of places may be that of all: it says whose each is.
        of_points = places[points] if points else {}
        alone = [points] if points and of_points.keys() == {""} else []
        for file in (*masks, vessels, *alone):
            if file is not None:
                _check_owner(where, file, image, owners, (line, patient))
        found.append(
            SeriesEntry(
                None,
                image,
                _modality(where, row.get("modality", "")),
                _targets(where, {label: _target(where, label, row.get(label, "")) for label in LABELS}),
                (),
                marks=(*of_points.get("", ()), *of_points.get(_spelt(root, row["image"]), ())),
                vessels=vessels,
                domes=tuple(DomeMask(mask, values) for mask in masks if mask is not None),
                patient=patient or None,
                site=row.get("site", "").strip(),
            )
        )
    for column, names in (("patient", [entry.patient for entry in found]), ("site", [entry.site for entry in found])):
        _check_told_apart(path, column, [name for name in names if name])
    notes = [*_notes(found), *_strangers(places, [_spelt(root, str(entry.path)) for entry in found])]
    return Dataset(root, tuple(found), (f"data set of one table: {len(found)} images", *notes))


def _check_owner(
    where: str, file: Path, image: Path, owners: dict[str, tuple[int, str]], owner: tuple[int, str]
) -> None:
    """Raise DatasetError for a mask or places of two patients' images: a line that was copied and not finished."""
    real = os.path.realpath(file)
    if real == os.path.realpath(image):
        raise DatasetError(f"{where}: {file.name} stands there as image and as mask; give the mask's own file")
    line, patient = owners.setdefault(real, owner)
    if line != owner[0] and (patient != owner[1] or not patient):
        raise DatasetError(
            f"{where}: {file.name} is of another patient's image on line {line} too; give each its own, or, if both "
            "images are of one patient, name the patient in both lines"
        )


def _check_told_apart(path: Path, column: str, names: Sequence[str]) -> None:
    """Raise DatasetError for names that a spreadsheet may have made two of: folds would part what is one."""
    if pair := look_alikes(names):
        raise DatasetError(
            f"{path}: {column} is {pair[0]!r} in one line and {pair[1]!r} in another, which differ in case or leading "
            f"zeros alone: write one {column} alike everywhere, and two so that they differ by more"
        )


def _strangers(places: Mapping[Path, Mapping[str, Sequence[Mark]]], images: Sequence[str]) -> list[str]:
    """Return notes on places of images that no line lists. Raises DatasetError where one is meant and misspelt."""
    listed = set(images)
    folded = {image.casefold() for image in images}
    ends = {end for image in images for end in _ends(image)}
    notes = []
    for path, marks in places.items():
        strange = [name for name in marks if name and name not in listed]
        for name in strange:
            # Of another folder's image nothing is meant here: many are called alike but for their folder.
            if name.casefold() in ends or folded.intersection(_ends(name)):
                raise DatasetError(
                    f"{path}: image {name!r} is none of {TABLE}{did_you_mean(name, images)}; write images as there, or "
                    "their places are lost"
                )
        if count := sum(len(marks[name]) for name in strange):
            notes.append(f"{count} places of {path.name} are of images that {TABLE} does not list")
    return notes


def _ends(name: str) -> list[str]:
    """Return a path in small letters, and without its first folder, its first two, and so on."""
    parts = name.casefold().split(os.sep)
    return [os.sep.join(parts[first:]) for first in range(len(parts))]


def _spelt(root: Path, name: str) -> str:
    """Return the path of an image from its table's folder, however it is written."""
    return os.path.relpath(root / Path(name.strip().replace("\\", "/")).expanduser(), root)


def _notes(found: Sequence[SeriesEntry]) -> list[str]:
    told = Counter[str]()
    for entry in found:
        known = entry.marks or entry.domes or not np.isnan(entry.targets).all()
        told["images have neither labels nor points nor a mask: their labels are unknown"] += not known
        told["images name no patient: each is taken for a patient of its own"] += entry.patient is None
    return [f"{count} {text}" for text, count in told.items() if count]


def _targets(where: str, known: Mapping[str, float]) -> NDArray[np.float32]:
    """Return the labels of a line. Raises DatasetError where one location has an aneurysm and the head has none."""
    at = next((label for label in LOCATIONS if known[label] == 1), None)
    if at is not None and known[PRESENT] == 0:
        raise DatasetError(f"{where}: {at} is 1 and {PRESENT} is 0; one of the two is wrong")
    return targets_of(known)


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


def read_marks(path: Path, root: Path) -> dict[str, tuple[Mark, ...]]:
    """Return the places of a table by the path of their image from `root`; of whoever names the table are those of "".

    It is CSV with the columns i, j, k (voxels of the image, from 0), or x_lps_mm, y_lps_mm, z_lps_mm, or x_ras_mm,
    y_ras_mm, z_ras_mm; and, if known, location, radius_mm, ignored and image, for the places of several. A text of
    numbers alone, three or four a line, is ADAM's: i, j, k and a radius in voxels, which is not used.
    Raises DatasetError.
    """
    text = read_text(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    # Programs write numbers as 1.5e+01 too.
    if not re.search("[a-df-z]", first, re.IGNORECASE):
        bare = _bare_marks(path, text)
        return {"": bare} if bare else {}
    rows = _rows(path, (), (*(name for names in _SPACES for name in names), *_OF_PLACES))
    given = [names for names in _SPACES if rows and all(name in rows[0][1] for name in names)]
    if len(given) != 1 and rows:
        raise DatasetError(
            f"{path} must have either the columns i, j, k (voxels), or x_lps_mm, y_lps_mm, z_lps_mm, or x_ras_mm, "
            "y_ras_mm, z_ras_mm: a place without its space could be anywhere"
        )
    found: defaultdict[str, list[Mark]] = defaultdict(list)
    for line, row in rows:
        where = f"{path} line {line}"
        x, y, z = (_number(where, name, row[name]) for name in given[0])
        mark = Mark(
            _SPACES[given[0]],  # type: ignore[arg-type]
            *(x, y, z),
            location=_location(where, row.get("location", "")),
            radius_mm=_radius(where, row.get("radius_mm", "").strip()),
            ignored=_target(where, "ignored", row.get("ignored", "")) == 1,
        )
        image = row.get("image", "").strip()
        found[_spelt(root, image) if image else ""].append(mark)
    return {image: tuple(marks) for image, marks in found.items()}


def _bare_marks(path: Path, text: str) -> tuple[Mark, ...]:
    found = []
    for line, row in enumerate(text.splitlines(), start=1):
        # A comma between two numbers parts them; within one, as some countries write, it would make two of it.
        words = row.split(",") if re.search(r",\s", row) or row.count(",") > 1 else row.split()
        if not row.strip():
            continue
        if len(words) not in (3, 4):
            raise DatasetError(f"{path} line {line}: {len(words)} numbers; expected i, j, k and perhaps a radius")
        i, j, k = (_number(f"{path} line {line}", "a coordinate", word.strip()) for word in words[:3])
        found.append(Mark("voxel", i, j, k, UNPLACED))
    return tuple(found)


def _rows(path: Path, needed: Sequence[str], known: Sequence[str]) -> list[Row]:
    names, rows = read_rows(path)
    for name in needed:
        if name not in names:
            raise DatasetError(f"{path} has no column {name!r}{did_you_mean(name, names)}")
    for name in names:
        if name not in known:
            raise DatasetError(f"{path} has an unknown column {name!r}{did_you_mean(name, known)}")
    return rows


def _file(where: str, root: Path, column: str, name: str) -> Path | None:
    if not name.strip():
        return None
    path = root / Path(name.strip()).expanduser()
    # A link whose content was not fetched is there: the reader names the command that fetches it.
    if not os.path.lexists(path):
        raise DatasetError(f"{where}: {column} {name!r} does not exist{_elsewhere(name.strip(), root)}")
    return path


def _elsewhere(name: str, root: Path) -> str:
    """Return why a file may not be found: paths of another machine, or written as another system does."""
    if os.path.isabs(name) or re.match(r"[A-Za-z]:[\\/]|\\\\", name):
        return f" on this machine; write paths relative to the table, which lies in {root}"
    if "\\" in name:
        return f" below {root}; write / between folders and files"
    return f" below {root}"


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
        cure = "; write the decimals behind a point" if _is_number(text.replace(",", ".")) else ""
        raise DatasetError(f"{where}: {name} is {text!r}, not a number{cure}")
    return float(text)


def _radius(where: str, text: str) -> float | None:
    radius_mm = _number(where, "radius_mm", text) if text else None
    if radius_mm is not None and not 0 < radius_mm < MAX_RADIUS_MM:
        raise DatasetError(f"{where}: radius_mm is {text!r}; it must be a radius in mm, or empty")
    return radius_mm


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _location(where: str, word: str) -> str:
    if not word.strip() or word.strip() in LOCATIONS:
        return word.strip()
    raise DatasetError(f"{where}: location {word!r} is unknown{did_you_mean(word, LOCATIONS)}; leave it empty if so")
