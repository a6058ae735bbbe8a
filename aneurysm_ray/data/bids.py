"""Data sets in the Brain Imaging Data Structure: `sub-*/[ses-*/]anat/*_angio.nii.gz`, masks below `derivatives/`.

Real ones are freer than the standard: masks are one file for each aneurysm or one for all, in folders with names of
their own, beside masks of the brain and of parent arteries. A mask belongs to the image of its subject and session, and
is one of aneurysms if its name says so (`meanings`).
"""

import csv
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.data.dataset import Dataset, DomeMask, SeriesEntry
from aneurysm_ray.data.meanings import IGNORED, is_other, meaning_of, modality_of
from aneurysm_ray.data.nifti import is_nifti
from aneurysm_ray.errors import DatasetError
from aneurysm_ray.labels import LABELS, PRESENT_INDEX

PARTICIPANTS = "participants.tsv"
_SUFFIXES = ("angio", "ct", "cta", "mra", "tof", "T1w", "T2w")
_FIRST = ("angio", "cta", "mra", "tof", "ct")
"""Of one session, other images are left out where there is one of these: masks are drawn on angiographies."""
_KIND = re.compile(r"aneurysms?|group|diagnosis|pathology|aneurysm.?present|cohort", re.IGNORECASE)
_SITE = re.compile(r"(scan(ning)?_?)?(site|cent(er|re)|hospital|institution)(_?(id|name))?", re.IGNORECASE)
_NEGATIVE = re.compile(r"0|no|none|n|false|controls?|healthy.*|negative|hc", re.IGNORECASE)
_POSITIVE = re.compile(r"1|yes|y|true|aneurysms?|patients?|positive|uia", re.IGNORECASE)


def is_bids(root: Path) -> bool:
    """Whether a folder is a BIDS data set: it has subjects, and says that it is one."""
    says = (root / PARTICIPANTS).is_file() or (root / "dataset_description.json").is_file()
    return says and any(child.name.startswith("sub-") for child in root.iterdir() if child.is_dir())


def open_bids(root: Path) -> Dataset:
    """Return the images of heads of a BIDS data set, with their masks and what participants.tsv says of aneurysms.

    Raises DatasetError for a table without participant_id.
    """
    present, sites, notes = _participants(root / PARTICIPANTS)
    masks, other = _masks(root / "derivatives")
    found: list[SeriesEntry] = []
    left: Counter[str] = Counter()
    for (subject, session), images in _images(root).items():
        chosen = [path for path in images if _suffix(path) in _FIRST] or images
        left["T1w and T2w images are left out, beside an angiography of their session"] += len(images) - len(chosen)
        for path in chosen:
            of_image = tuple(masks.get((subject, session), ()))
            targets = _targets(present.get(subject))
            if not of_image and np.isnan(targets[PRESENT_INDEX]):
                left["images have neither a mask nor a word in participants.tsv; their labels are unknown"] += 1
            found.append(
                SeriesEntry(
                    None,
                    path,
                    _modality(path),
                    targets,
                    (),
                    domes=of_image,
                    patient=subject,
                    site=sites.get(subject, ""),
                )
            )
    there = {entry.patient for entry in found}
    left[f"subjects of {PARTICIPANTS} have no image that is read"] += len((present.keys() | sites.keys()) - there)
    without = len(masks.keys() - {key for key, _ in _images(root).items()})
    left["sessions have masks but no image"] += without
    left["files below derivatives/ are no masks of aneurysms by their names"] += other
    notes += [f"{count} {text}" for text, count in left.items() if count]
    patients = len({entry.patient for entry in found})
    head = f"BIDS data set: {len(found)} images of {patients} subjects, {sum(bool(e.domes) for e in found)} with masks"
    return Dataset(root, tuple(found), (head, *notes))


def _images(root: Path) -> dict[tuple[str, str], list[Path]]:
    found: defaultdict[tuple[str, str], list[Path]] = defaultdict(list)
    for pattern in ("sub-*/anat/*", "sub-*/ses-*/anat/*"):
        for path in sorted(root.glob(pattern)):
            if is_nifti(path) and _suffix(path) in _SUFFIXES:
                found[_session(path)].append(path)
    return dict(sorted(found.items()))


def _masks(folder: Path) -> tuple[dict[tuple[str, str], list[DomeMask]], int]:
    """Return the masks of aneurysms of each subject's session, and how many files are something else."""
    found: defaultdict[tuple[str, str], list[DomeMask]] = defaultdict(list)
    other = 0
    for path in _below(folder):
        subject, session = _session(path)
        words = _described(path, subject, session)
        meaning = meaning_of(words)
        if meaning is None and not is_other(words):
            meaning = meaning_of(path.relative_to(folder).parts[0])
        if subject and meaning is not None:
            found[subject, session].append(DomeMask(path, ((1, IGNORED),) if meaning == IGNORED else ()))
        else:
            other += 1
    return dict(found), other


def _below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(parent, name) for name in sorted(names) if is_nifti(name))


def _session(path: Path) -> tuple[str, str]:
    """Return the subject and session of a file, by its folders or else its name; nothing where it has none."""
    words = [*path.parts[:-1], *path.name.split("_")]
    return tuple(  # type: ignore[return-value]
        next((word for word in reversed(words[:-1]) if word.startswith(kind)), "") for kind in ("sub-", "ses-")
    )


def _described(path: Path, subject: str, session: str) -> str:
    """Return the part of a mask's name that says what it holds: without subject, session and suffix.

    `desc-Lesion_1_mask`, `acq-Segmentation_Aneurysm-with-Parent-Artery` and `label-treated_dseg` are such parts.
    """
    stem = re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    words = [word for word in stem.split("_") if word not in (subject, session)]
    return " ".join(word.partition("-")[2] if re.match(r"(desc|label|acq)-", word) else word for word in words)


def _suffix(path: Path) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE).rpartition("_")[2]


def _modality(path: Path) -> str | None:
    suffix = _suffix(path)
    return modality_of(suffix if suffix in _FIRST else f"{suffix} {'contrast' if '_ce-' in path.name else ''}")


def _targets(present: float | None) -> NDArray[np.float32]:
    """Return the 14 labels of a subject: all 0 without an aneurysm; with one nobody says where it is."""
    targets = np.full(len(LABELS), np.nan, np.float32)
    if present == 0:
        targets[:] = 0
    elif present == 1:
        targets[PRESENT_INDEX] = 1
    return targets


def _participants(path: Path) -> tuple[dict[str, float], dict[str, str], list[str]]:
    """Return whether subjects have an aneurysm and where they were scanned, for as much as participants.tsv says, and
    notes on how it was read."""
    if not path.is_file():
        return {}, {}, []
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    if rows and "participant_id" not in rows[0]:
        raise DatasetError(f"{path} has no column participant_id; it must be a table with tabs between its columns")
    # The standard wants `sub-01`; sets are found that write `01`.
    for row in rows:
        row["participant_id"] = "sub-" + (row["participant_id"] or "").strip().removeprefix("sub-")
    names = [name for name in (rows[0] if rows else ()) if name]
    place = next((name for name in names if _SITE.fullmatch(name)), None)
    told = {row["participant_id"]: (row[place] or "").strip() for row in rows} if place else {}
    sites = {subject: "" if site.lower() == "n/a" else site for subject, site in told.items()}
    notes = [f"column {place} of {PARTICIPANTS} says where subjects were scanned"] if place else []
    column = next((name for name in names if _KIND.fullmatch(name)), None)
    if column is None:
        return {}, sites, [f"{PARTICIPANTS} does not say who has an aneurysm: masks alone do", *notes]
    found = {}
    for row in rows:
        word = (row[column] or "").strip()
        if _NEGATIVE.fullmatch(word):
            found[row["participant_id"]] = 0.0
        elif _POSITIVE.fullmatch(word):
            found[row["participant_id"]] = 1.0
    unclear = len(rows) - len(found)
    more = f"; {unclear} rows say something else, and are unknown" if unclear else ""
    return found, sites, [f"column {column} of {PARTICIPANTS} says who has an aneurysm{more}", *notes]
