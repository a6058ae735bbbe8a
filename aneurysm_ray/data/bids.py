"""Data sets in the Brain Imaging Data Structure: `sub-*/[ses-*/]anat/*_angio.nii.gz`, masks below `derivatives/`.

Real ones are freer than the standard: masks are one file for each aneurysm or one for all, in folders with names of
their own, beside masks of the brain and of parent arteries. A mask belongs to the image of its subject and session, and
is one of aneurysms if its name says so (`meanings`).
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.data.csv_table import look_alikes, plain, read_rows
from aneurysm_ray.data.dataset import Dataset, DomeMask, SeriesEntry
from aneurysm_ray.data.meanings import IGNORED, REST, is_other, meaning_of, modality_of
from aneurysm_ray.data.nifti import check_once, is_nifti
from aneurysm_ray.errors import DatasetError
from aneurysm_ray.labels import LABELS, PRESENT_INDEX

PARTICIPANTS = "participants.tsv"
_SUFFIXES = ("angio", "ct", "cta", "mra", "tof", "T1w", "T2w")
_FIRST = ("angio", "cta", "mra", "tof", "ct")
"""Of one session, other images are left out where there is one of these: masks are drawn on angiographies."""
_COUNT = re.compile(r"(n|num|number)?[ _-]?(of)?[ _-]?aneurysms|aneurysms?[ _-]?(count|number)", re.IGNORECASE)
_KIND = re.compile(rf"{_COUNT.pattern}|aneurysm|group|diagnosis|pathology|aneurysm.?present|cohort", re.IGNORECASE)
_SITE = re.compile(r"(scan(ning)?_?)?(site|cent(er|re)|hospital|institution)(_?(id|name))?", re.IGNORECASE)
_TEMPLATE = re.compile(r"_space-(MNI|ICBM|NIHPD|OASIS|UNC|Talairach|fsaverage|fsLR)", re.IGNORECASE)
_NEGATIVE = re.compile(r"0|no|none|n|false|controls?|healthy.*|negative|hc", re.IGNORECASE)
_POSITIVE = re.compile(r"1|yes|y|true|aneurysms?|patients?|positive|uia", re.IGNORECASE)


def is_bids(root: Path) -> bool:
    """Whether a folder is a BIDS data set: it has subjects, and says that it is one."""
    says = (root / PARTICIPANTS).is_file() or (root / "dataset_description.json").is_file()
    return says and any(child.name.startswith("sub-") for child in root.iterdir() if child.is_dir())


def open_bids(root: Path) -> Dataset:
    """Return the images of heads of a BIDS data set, with their masks and what participants.tsv says of aneurysms.

    Raises DatasetError for a table without participant_id or that contradicts itself, for subjects that are called
    otherwise there, and for an image or mask that is there as `.nii` and as `.nii.gz`.
    """
    present, sites, notes = _participants(root / PARTICIPANTS)
    subjects = sorted(child.name for child in root.iterdir() if child.name.startswith("sub-") and child.is_dir())
    _check_spelling(root / PARTICIPANTS, present.keys() | sites.keys(), subjects)
    masks, other, elsewhere = _masks(root / "derivatives")
    images_of = _images(root)
    found: list[SeriesEntry] = []
    left: Counter[str] = Counter()
    for (subject, session), images in images_of.items():
        chosen = [path for path in images if _suffix(path) in _FIRST] or images
        left["T1w and T2w images are left out, beside an angiography of their session"] += len(images) - len(chosen)
        drawn = [(mask, _drawn_on(mask.path, chosen)) for mask in masks.get((subject, session), ())]
        left["masks name a run or image that is not there"] += sum(not on for _, on in drawn)
        for path in chosen:
            of_image = tuple(replace(mask, shared=len(on) > 1) for mask, on in drawn if path in on)
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
    without = len(masks.keys() - images_of.keys())
    left["sessions have masks but no image"] += without
    left["files below derivatives/ are no masks of aneurysms by their names"] += other
    left["masks lie in the space of a template, not of their image, by their names"] += elsewhere
    notes += [f"{count} {text}" for text, count in left.items() if count]
    patients = len({entry.patient for entry in found})
    head = f"BIDS data set: {len(found)} images of {patients} subjects, {sum(bool(e.domes) for e in found)} with masks"
    return Dataset(root, tuple(found), (head, *notes))


def _images(root: Path) -> dict[tuple[str, str], list[Path]]:
    found: defaultdict[tuple[str, str], list[Path]] = defaultdict(list)
    for pattern in ("sub-*/anat/[!.]*", "sub-*/ses-*/anat/[!.]*"):
        for path in sorted(root.glob(pattern)):
            if is_nifti(path) and _suffix(path) in _SUFFIXES:
                found[_session(path)].append(path)
    for images in found.values():
        check_once(images)
    return dict(sorted(found.items()))


def _masks(folder: Path) -> tuple[dict[tuple[str, str], list[DomeMask]], int, int]:
    """Return the masks of aneurysms of each subject's session, how many files are something else, and how many are
    masks in the space of a template."""
    found: defaultdict[tuple[str, str], list[DomeMask]] = defaultdict(list)
    other = elsewhere = 0
    for path in _below(folder):
        subject, session = _session(path)
        words = _described(path, subject, session)
        meaning = meaning_of(words)
        if meaning is None and not is_other(words):
            meaning = meaning_of(path.relative_to(folder).parts[0])
        if not subject or meaning is None:
            other += 1
        elif _TEMPLATE.search(path.name):
            elsewhere += 1
        else:
            found[subject, session].append(DomeMask(path, ((REST, IGNORED),) if meaning == IGNORED else ()))
    for of_session in found.values():
        check_once(mask.path for mask in of_session)
    return dict(found), other, elsewhere


def _drawn_on(mask: Path, images: Sequence[Path]) -> list[Path]:
    """Return the images of its session that a mask may be of, by what its name shares with theirs.

    A run counts always; another entity, or a suffix, where one of the images has it with the same value.
    """
    words = [_numbered(word) for word in _stem(mask).split("_")]
    left = list(images)
    of_image = {image: [_numbered(word) for word in _stem(image).split("_")] for image in images}
    for word in words:
        kind = word.partition("-")[0] if "-" in word else ""
        with_it = [image for image in left if word in of_image[image]]
        others = [image for image in left if any(kind and w.startswith(f"{kind}-") for w in of_image[image])]
        if with_it or (kind == "run" and others):
            left = with_it
    return left


def _numbered(word: str) -> str:
    """Return an entity as it compares with another: `run-01` is `run-1`, and `space-angio` is that of the suffix."""
    return re.sub(r"^(run-)0+(?=\d)", r"\1", word).removeprefix("space-")


def _below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(parent, name) for name in sorted(names) if is_nifti(name) and not name.startswith("."))


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
    words = [word for word in _stem(path).split("_") if word not in (subject, session)]
    return " ".join(word.partition("-")[2] if re.match(r"(desc|label|acq)-", word) else word for word in words)


def _stem(path: Path) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def _suffix(path: Path) -> str:
    return _stem(path).rpartition("_")[2]


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
    names, rows = read_rows(path, "\t")
    if "participant_id" not in names:
        raise DatasetError(f"{path} has no column participant_id; it must be a table with tabs between its columns")
    # The standard wants `sub-01`; sets are found that write `01`.
    told = [(line, "sub-" + row["participant_id"].strip().removeprefix("sub-"), row) for line, row in rows]
    place = next((name for name in names if _SITE.fullmatch(name)), None)
    sites = {subject: row[place].strip() for _, subject, row in told} if place else {}
    sites = {subject: "" if site.lower() == "n/a" else site for subject, site in sites.items()}
    if pair := look_alikes(site for site in sites.values() if site):
        raise DatasetError(
            f"{path}: {place} is {pair[0]!r} in one line and {pair[1]!r} in another; write one site alike"
        )
    notes = [f"column {place} of {PARTICIPANTS} says where subjects were scanned"] if place else []
    column = next((name for name in names if _KIND.fullmatch(name)), None)
    if column is None:
        return {}, sites, [f"{PARTICIPANTS} does not say who has an aneurysm: masks alone do", *notes]
    words = {row[column].strip() for _, _, row in told}
    coded = {word for word in words if word.isdigit()}
    # 1 and 2 may be the codes of two groups; numbers of aneurysms begin with none.
    counted = bool(_COUNT.fullmatch(column)) and "0" in coded
    if coded and not coded <= {"0", "1"} and not counted:
        return (
            {},
            sites,
            [
                f"column {column} of {PARTICIPANTS} counts {', '.join(sorted(coded)[:4])}, which does not tell who has "
                "an aneurysm: masks alone do; write patient and control there",
                *notes,
            ],
        )
    found: dict[str, float] = {}
    meant: Counter[tuple[str, str]] = Counter()
    for line, subject, row in told:
        word = row[column].strip()
        present = 0.0 if _NEGATIVE.fullmatch(word) else 1.0 if _POSITIVE.fullmatch(word) else None
        if counted and word.isdigit():
            present = float(int(word) > 0)
        if present is None:
            continue
        meant["no" if present == 0 else "yes", word] += 1
        if found.setdefault(subject, present) != present:
            raise DatasetError(f"{path} line {line}: {subject} has an aneurysm in one line and none in another")
    unclear = len(told) - meant.total()
    said = ", ".join(f"{word!r} is {meaning} ({count})" for (meaning, word), count in sorted(meant.items()))
    more = f"; {unclear} rows say something else, and are unknown" if unclear else ""
    return (
        found,
        sites,
        [f"column {column} of {PARTICIPANTS} says who has an aneurysm: {said or 'nobody'}{more}", *notes],
    )


def _check_spelling(path: Path, told: Iterable[str], subjects: Sequence[str]) -> None:
    """Raise DatasetError where the table calls a subject otherwise than its folder: what it says would be lost."""
    known = {plain(subject.removeprefix("sub-")): subject for subject in subjects}
    for name in sorted(set(told) - set(subjects)):
        if subject := known.get(plain(name.removeprefix("sub-"))):
            raise DatasetError(
                f"{path} speaks of {name.removeprefix('sub-')}, and the folder is called {subject}: spreadsheets drop "
                f"leading zeros; write {subject} in the table"
            )
