"""The tables of a data set (train.csv, train_localizers.csv, segmentations/) joined to its series folders.

The layout and its quirks are those of the RSNA 2025 Intracranial Aneurysm Detection data. A folder without tables is a
data set too: every folder below it that holds files, and every archive, is a series with unknown labels. No pixel is
read here.
"""

import ast
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydicom.filereader import read_partial

from aneurysm_ray.config import FrameBase
from aneurysm_ray.data.dicom.archives import is_archive, stem
from aneurysm_ray.data.identity import is_uid
from aneurysm_ray.data.meanings import Values
from aneurysm_ray.data.nifti import is_nifti
from aneurysm_ray.data.points import Mark
from aneurysm_ray.errors import DatasetError, did_you_mean, other_commas
from aneurysm_ray.labels import LABELS, LOCATIONS, PRESENT_INDEX

TRAIN_CSV = "train.csv"
LOCALIZERS_CSV = "train_localizers.csv"
VESSELS, DOMES = "_cowseg", "_dome"
"""What the names of mask files in segmentations/ end in, after the UID and before `.nii`."""
TRAIN_COLUMNS: tuple[str, ...] = ("SeriesInstanceUID", "PatientAge", "PatientSex", "Modality", *LABELS)
LOCALIZER_COLUMNS: tuple[str, ...] = ("SeriesInstanceUID", "SOPInstanceUID", "coordinates", "location")
MODALITIES: tuple[str, ...] = ("CTA", "MRA", "MRI T2", "MRI T1post")
"""The four words of the Modality column; DICOM's own Modality knows only CT and MR."""

SEGMENTATION_VALUES: dict[str, int] = {
    "Other Posterior Circulation": 1,
    "Basilar Tip": 2,
    "Right Posterior Communicating Artery": 3,
    "Left Posterior Communicating Artery": 4,
    "Right Infraclinoid Internal Carotid Artery": 5,
    "Left Infraclinoid Internal Carotid Artery": 6,
    "Right Supraclinoid Internal Carotid Artery": 7,
    "Left Supraclinoid Internal Carotid Artery": 8,
    "Right Middle Cerebral Artery": 9,
    "Left Middle Cerebral Artery": 10,
    "Right Anterior Cerebral Artery": 11,
    "Left Anterior Cerebral Artery": 12,
    "Anterior Communicating Artery": 13,
}
"""Value of each location's vessel in a mask."""

MAX_RADIUS_MM = 100.0
"""Of an aneurysm in a table; half a head."""
_NUMBER_OF_FRAMES = 0x00280008


@dataclass(frozen=True)
class Localizer:
    """A click near an aneurysm's centre."""

    sop_uid: str
    x: float
    """Column, in pixels of the slice."""
    y: float
    """Row, in pixels of the slice."""
    frame: int | None
    """Frame of a multi-frame instance, from 0 whatever the file counts from; None for a slice of its own."""
    location: str
    """One of `labels.LOCATIONS`."""
    radius_mm: float | None = None
    """Of the aneurysm, where the table has a column `radius_mm`."""


@dataclass(frozen=True)
class DomeMask:
    """A NIfTI mask of aneurysms, and what its values mean."""

    path: Path
    values: Values = ()
    shared: bool = False
    """Its name leaves open which of several images it was drawn on."""


@dataclass(frozen=True, eq=False)
class SeriesEntry:
    """A series folder or file and what the tables say of it."""

    series_uid: str | None
    """None where no table and no layout names it; the files themselves do."""
    path: Path
    modality: str | None
    """One of `MODALITIES`, CT, MR, or None."""
    targets: NDArray[np.float32]
    """(14,) in the order of `labels.LABELS`; NaN where unknown."""
    points: tuple[Localizer, ...]
    vessels: Path | None = None
    """Mask of the vessels of the Circle of Willis, NIfTI with SEGMENTATION_VALUES; see `masks`."""
    domes: tuple[DomeMask, ...] = ()
    """Masks of the aneurysms' domes."""
    marks: tuple[Mark, ...] = ()
    """Places that a table gives in space or in voxels."""
    patient: str | None = None
    """Whose it is, by the name that a table or layout gives; None where the files themselves say."""
    site: str = ""
    """Where it was scanned, by the word that a table gives; nothing where none does."""
    deep: bool = True
    """Folders below the series' own are part of it; where no layout says so, each is a series by itself."""


@dataclass(frozen=True)
class Dataset:
    """All series of a folder, sorted by UID or path, and what was assumed on the way."""

    root: Path
    series: tuple[SeriesEntry, ...]
    notes: tuple[str, ...]


def is_laid_out(root: Path) -> bool:
    """Whether a folder has the challenge's tables beside its series."""
    return (root / "series").is_dir() and ((root / TRAIN_CSV).is_file() or (root / LOCALIZERS_CSV).is_file())


def open_dataset(root: Path, frame_base: FrameBase = "auto") -> Dataset:
    """Join the tables below `root` to the series folders. `frame_base` is what the localizers' `f` counts from.

    Raises DatasetError if `root` is no folder, a table has wrong columns or values, or tables stand without `series/`.
    """
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder; a data set is a folder with series in it")
    rows = _read_train(root / TRAIN_CSV) if (root / TRAIN_CSV).is_file() else {}
    points, notes = _read_localizers(root, frame_base) if (root / LOCALIZERS_CSV).is_file() else ({}, [])
    if not (root / "series").is_dir():
        if rows or points:
            raise DatasetError(f"{root} has tables but no folder series/; put the series there, one folder each")
        folders, notes = _find_series(root)
        found = (replace(_unlabelled(None, folder), deep=False) for folder in folders)
        return Dataset(root, tuple(found), tuple(notes))

    folders_by_uid, left = _laid_out(root / "series")
    notes += left
    vessels, domes = (_find_masks(root / "segmentations", ending) for ending in (VESSELS, DOMES))
    series = tuple(
        replace(
            rows.get(uid, _unlabelled(uid, folder)),
            path=folder,
            points=points.get(uid, ()),
            vessels=vessels.get(uid),
            domes=(DomeMask(domes[uid]),) if uid in domes else (),
        )
        for uid, folder in folders_by_uid.items()
    )
    if rows:
        notes += _disagreements(series, rows, folders_by_uid, points)
    return Dataset(root, series, tuple(notes))


def _laid_out(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the series of the competition's layout, folders and archives, by the UID that names them, and notes."""
    found: dict[str, Path] = {}
    left: Counter[str] = Counter()
    children = [path for path in folder.iterdir() if not path.name.startswith(".")]
    for path in sorted(children, key=lambda path: (not path.is_dir(), path.name)):
        name = path.name if path.is_dir() else stem(path.name) if is_archive(path) else ""
        if not path.exists():
            left["links in series/ lead nowhere"] += 1
        elif not name:
            left["files in series/ are no archive and belong to no series"] += 1
        elif name in found:
            left["archives in series/ have the name of a folder or archive beside them"] += 1
        else:
            found[name] = path
    return dict(sorted(found.items())), [f"{count} {text}, and are left out" for text, count in left.items()]


def _unlabelled(series_uid: str | None, folder: Path) -> SeriesEntry:
    # A folder's own name may be a person's; only one that is a UID names a series.
    series_uid = series_uid if series_uid and is_uid(series_uid) else None
    return SeriesEntry(series_uid, folder, None, np.full(len(LABELS), np.nan, np.float32), ())


def _read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} is not a CSV table: {error}") from error
    for column in columns:
        if column not in table.columns:
            cure = other_commas(list(table.columns)) or did_you_mean(column, table.columns)
            raise DatasetError(f"{path} has no column {column!r}{cure}")
    for line, uid in enumerate(table["SeriesInstanceUID"], start=2):
        # A UID becomes part of a path, so anything but digits and dots is refused here.
        if not is_uid(uid):
            raise DatasetError(f"{path} line {line}: {uid!r} is not a UID (digits and dots)")
    return table


def _read_train(path: Path) -> dict[str, SeriesEntry]:
    table = _read_table(path, ("SeriesInstanceUID", "Modality", *LABELS))
    rows: dict[str, SeriesEntry] = {}
    for line, row in enumerate(table.to_dict("records"), start=2):
        uid, modality = row["SeriesInstanceUID"], row["Modality"] or None
        if uid in rows:
            raise DatasetError(f"{path} line {line}: series {uid} has a row already; keep one of them")
        if modality is not None and modality not in MODALITIES:
            raise DatasetError(f"{path} line {line}: Modality {modality!r} is not one of {', '.join(MODALITIES)}")
        targets = np.array([_target(path, line, label, row[label]) for label in LABELS], np.float32)
        rows[uid] = SeriesEntry(uid, Path(), modality, targets, ())
    return rows


def _target(path: Path, line: int, label: str, text: str) -> float:
    if text.strip() in ("", "0", "1", "0.0", "1.0"):
        return float(text) if text.strip() else math.nan
    raise DatasetError(f"{path} line {line}: {label} is {text!r}; it must be 0, 1 or empty")


def _read_localizers(root: Path, frame_base: FrameBase) -> tuple[dict[str, tuple[Localizer, ...]], list[str]]:
    path = root / LOCALIZERS_CSV
    table = _read_table(path, LOCALIZER_COLUMNS)
    parsed: list[tuple[str, Localizer]] = []
    for line, row in enumerate(table.to_dict("records"), start=2):
        location = row["location"]
        if location not in LOCATIONS:
            raise DatasetError(
                f"{path} line {line}: location {location!r} is unknown{did_you_mean(location, LOCATIONS)}"
            )
        x, y, frame = _coordinates(path, line, row["coordinates"])
        radius_mm = _radius(path, line, row.get("radius_mm", ""))
        parsed.append((row["SeriesInstanceUID"], Localizer(row["SOPInstanceUID"], x, y, frame, location, radius_mm)))

    frames = [(uid, point) for uid, point in parsed if point.frame is not None]
    base, notes = _frame_base(root, frames, frame_base) if frames else (0, [])
    if repeated := len(parsed) - len(set(parsed)):
        notes.append(f"{repeated} localizers stand in the table more than once; each counts once")
    points: dict[str, list[Localizer]] = defaultdict(list)
    for uid, point in dict.fromkeys(parsed):
        frame = None if point.frame is None else point.frame - base
        points[uid].append(replace(point, frame=frame))
    return {uid: tuple(of_series) for uid, of_series in points.items()}, notes


def _coordinates(path: Path, line: int, text: str) -> tuple[float, float, int | None]:
    """Parse a Python dict literal such as `{'x': 272.41, 'y': 194.11, 'f': 58}`; it is not JSON."""
    try:
        value: Any = ast.literal_eval(text) if len(text) < 500 else None
        x, y = float(value["x"]), float(value["y"])
        frame = value.get("f")
        frame = None if frame is None else int(frame)
    except (ValueError, SyntaxError, TypeError, KeyError, AttributeError, RecursionError, MemoryError):
        x = y = math.nan
    if not (math.isfinite(x) and math.isfinite(y)) or (frame is not None and frame < 0):
        raise DatasetError(
            f"{path} line {line}: coordinates are {text[:80]!r}; expected \"{{'x': 258.4, 'y': 261.3}}\""
        )
    return x, y, frame


def _radius(path: Path, line: int, text: str) -> float | None:
    try:
        radius_mm = float(text) if text.strip() else None
    except ValueError:
        radius_mm = math.nan
    if radius_mm is not None and not 0 < radius_mm < MAX_RADIUS_MM:
        raise DatasetError(f"{path} line {line}: radius_mm is {text[:80]!r}; it must be a radius in mm, or empty")
    return radius_mm


def _frame_base(root: Path, frames: Iterable[tuple[str, Localizer]], told: FrameBase) -> tuple[int, list[str]]:
    """Find whether `f` counts from 0 or from 1, over the whole table: two releases of it circulate.

    What is told holds, unless a 0 contradicts it. A 0 proves 0; else an `f` equal to its instance's number of frames
    proves 1; else 0 is assumed. The note says which.
    """
    rows = list(frames)
    if told != "auto":
        if told == 1 and any(point.frame == 0 for _, point in rows):
            raise DatasetError(
                f"{root / LOCALIZERS_CSV} has an f of 0, so frames do not count from 1; leave prepare.frame_base out"
            )
        return told, [f"localizers count frames from {told}, as prepare.frame_base says"]
    if any(point.frame == 0 for _, point in rows):
        return 0, ["localizers count frames from 0 (a 0 occurs)"]
    for uid, point in rows:
        if point.frame == _number_of_frames(root / "series" / uid / f"{point.sop_uid}.dcm"):
            return 1, [f"localizers count frames from 1 (series {uid} has its point on frame {point.frame}, its last)"]
    return 0, [
        "localizers may count frames from 0 or 1, nothing tells which; taken from 0, at most one frame off; "
        "prepare.frame_base=1 takes them from 1"
    ]


def _number_of_frames(file: Path) -> int | None:
    """Read Number of Frames (0028,0008) and nothing after it; None if the file has none or cannot be read."""
    try:
        with file.open("rb") as stream:
            header = read_partial(stream, stop_when=lambda tag, vr, length: tag > _NUMBER_OF_FRAMES, force=True)
        return int(header.get("NumberOfFrames", 0)) or None
    # A hostile header can raise anything in pydicom; the series' own preparation will say what is wrong with it.
    except Exception:
        return None


def _find_masks(folder: Path, ending: str) -> dict[str, Path]:
    """Map series UID to its mask in both layouts: `UID_cowseg.nii` and `UID/UID_cowseg.nii`."""
    found = {}
    for pattern in (f"*/*{ending}.nii*", f"*{ending}.nii*"):
        for path in sorted(folder.glob(pattern)):
            if path.name.endswith((".nii", ".nii.gz")) and path.is_file():
                found[path.name.split(ending)[0]] = path
    return found


def _disagreements(
    series: Sequence[SeriesEntry],
    rows: Mapping[str, SeriesEntry],
    folders: Mapping[str, Path],
    points: Mapping[str, tuple[Localizer, ...]],
) -> list[str]:
    """Say in one line each what the tables and folders leave open or contradict; nothing here is fatal."""
    missing = [uid for uid in rows if uid not in folders]
    no_row = [uid for uid in folders if uid not in rows]
    no_point = [entry.series_uid for entry in series if entry.targets[PRESENT_INDEX] == 1 and not entry.points]
    stray = [uid for uid in points if uid not in folders]
    not_maximum: list[str | None] = []
    not_labelled: list[str | None] = []
    for entry in series:
        known = entry.targets[:PRESENT_INDEX][~np.isnan(entry.targets[:PRESENT_INDEX])]
        if len(known) and entry.targets[PRESENT_INDEX] != known.max(initial=0):
            not_maximum.append(entry.series_uid)
        if any(entry.targets[LABELS.index(point.location)] == 0 for point in entry.points):
            not_labelled.append(entry.series_uid)
    found: dict[str, Sequence[str | None]] = {
        f"rows of {TRAIN_CSV} have no folder in series/ and are left out": missing,
        f"series have no row in {TRAIN_CSV}; their labels are unknown": no_row,
        "positive series have no localizer": no_point,
        "series have localizers but no folder": stray,
        "series have an Aneurysm Present that is not the maximum of its locations": not_maximum,
        "series have a localizer at a location labelled 0": not_labelled,
    }
    return [f"{len(uids)} {text}: {_some(uids)}" for text, uids in found.items() if uids]


def _some(uids: Sequence[str | None]) -> str:
    # Notes go into a set's files; a folder that is named by no UID may be named for a person.
    shown = [uid if uid and is_uid(uid) else "(a folder that is no UID)" for uid in uids[:3]]
    return ", ".join(shown) + (", ..." if len(uids) > 3 else "")


def _find_series(root: Path) -> tuple[list[Path], list[str]]:
    """List folders below `root` that hold files, archives and NIfTI files; files beside such belong to nothing."""
    closed: list[Path] = []
    found = [path for path in _walk(root, closed) if path != root]
    loose = sum(1 for path in root.iterdir() if _is_loose(path))
    notes = [f"{len(closed)} folders cannot be read and are left out"] if closed else []
    if not found:
        return ([root] if loose else []), notes
    if loose:
        notes.append(f"{loose} files directly in the data set's folder belong to no series and are left out")
    return found, notes


def _walk(folder: Path, closed: list[Path], above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Yield every folder from `folder` down that holds a file, every archive and NIfTI file; collect what is closed.

    Links are followed unless they lead into a circle; hidden folders are passed over.
    """
    real = folder.resolve()
    if real in above:
        return
    children = sorted(folder.iterdir())
    if any(_is_loose(path) for path in children):
        yield folder
    yield from (path for path in children if (path.is_file() and is_archive(path)) or _is_nifti_file(path))
    for child in children:
        if child.is_dir() and not child.name.startswith("."):
            if os.access(child, os.R_OK | os.X_OK):
                yield from _walk(child, closed, above | {real})
            else:
                closed.append(child)


def _is_loose(path: Path) -> bool:
    """Whether a path is a file that may be one of a series, neither hidden nor an archive.

    So is a link that leads nowhere: a folder of such links is a series, whose reading says what is wrong with it.
    """
    if path.name.startswith(".") or is_archive(path) or _is_nifti_file(path):
        return False
    return path.is_file() or (path.is_symlink() and not path.exists())


def _is_nifti_file(path: Path) -> bool:
    """Whether a path is a NIfTI file, or a pointer to one that was not fetched."""
    return is_nifti(path) and not path.name.startswith(".") and (path.is_file() or path.is_symlink())
