"""Data sets in nnU-Net's raw layout: `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz` and `dataset.json`.

dataset.json says what the values of the masks mean, by their names: version 2 as {name: value}, version 1 as {value:
name}. Its `ignore` label is neither positive nor negative, and so is one whose name says that it was treated.
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from aneurysm_ray.data.dataset import Dataset, DomeMask, SeriesEntry
from aneurysm_ray.data.meanings import IGNORED, OTHER, UNPLACED, Values, is_other, meaning_of, modality_of
from aneurysm_ray.data.nifti import SUFFIXES, check_once
from aneurysm_ray.errors import DatasetError
from aneurysm_ray.labels import LABELS

DESCRIPTION = "dataset.json"
IMAGES, MASKS = "imagesTr", "labelsTr"
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


def is_nnunet(root: Path) -> bool:
    """Whether a folder is a raw nnU-Net data set."""
    return (root / DESCRIPTION).is_file() and (root / IMAGES).is_dir()


def open_nnunet(root: Path) -> Dataset:
    """Return the training images of a raw nnU-Net data set, each with its mask. Raises DatasetError.

    Of several channels the first is read. nnU-Net knows no patients: each case is one.
    """
    facts = _described(root / DESCRIPTION)
    values, notes = _values(facts, root)
    channels = {
        str(key): str(name) for key, name in (facts.get("channel_names") or facts.get("modality") or {}).items()
    }
    modality = modality_of(channels.get("0", ""))
    found: list[SeriesEntry] = []
    left: Counter[str] = Counter()
    for folder in (root / IMAGES, root / MASKS):
        check_once(folder.iterdir() if folder.is_dir() else ())
    for path in sorted((root / IMAGES).iterdir()):
        name = _stem(path)
        match = _CHANNEL.fullmatch(name) if name else None
        if path.name.startswith(".") or path.is_dir():
            continue
        if match is None:
            left[f"files in {IMAGES} are no CASE_0000.nii.gz"] += 1
            continue
        if match["channel"] != "0000":
            left["images of further channels are not read"] += 1
            continue
        mask = next((m for end in SUFFIXES if (m := root / MASKS / f"{match['case']}{end}").exists()), None)
        if mask is None:
            left[f"images have no mask in {MASKS}; their labels are unknown"] += 1
        found.append(
            SeriesEntry(
                None,
                path,
                modality,
                np.full(len(LABELS), np.nan, np.float32),
                (),
                domes=(DomeMask(mask, values),) if mask is not None and values is not None else (),
                patient=match["case"],
            )
        )
    if not found and left:
        raise DatasetError(
            f"{root / IMAGES} has no image CASE_0000.nii or .nii.gz: {left.total()} files of it are named otherwise or "
            "no NIfTI; convert .nrrd and .mha with SimpleITK, and name channels _0000"
        )
    cases = {entry.patient for entry in found}
    masks = [_stem(path) for path in (root / MASKS).iterdir()] if (root / MASKS).is_dir() else []
    left[f"masks in {MASKS} are of no image in {IMAGES}: a mask is called CASE.nii.gz, without _0000"] = sum(
        bool(name) and not name.startswith(".") and name not in cases for name in masks
    )
    if (root / "imagesTs").is_dir():
        notes.append("imagesTs is left out: it has no labels; give it to predict")
    if modality is None:
        notes.append(f"channel {channels.get('0', '0')!r} does not say CT or MR: each image's values decide")
    notes.append("each case is taken for a patient of its own; use series.csv where patients have several")
    notes += [f"{count} {text}" for text, count in left.items() if count]
    return Dataset(root, tuple(found), (f"nnU-Net raw data set: {len(found)} cases", *notes))


def _described(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} is not JSON: {error}") from error
    if not isinstance(facts, dict) or not isinstance(facts.get("labels"), dict):
        raise DatasetError(f"{path} has no labels, such as {{'background': 0, 'aneurysm': 1}}")
    return facts


def _values(facts: dict[str, Any], root: Path) -> tuple[Values | None, list[str]]:
    """Return what the values of the masks mean, None where none is an aneurysm, and notes."""
    names: dict[int, str] = {}
    for key, value in facts["labels"].items():
        name, number = (value, key) if isinstance(value, str) else (key, value)
        if isinstance(number, list):
            raise DatasetError(f"{root / DESCRIPTION}: {name!r} is a region of several labels; write one value a label")
        try:
            names[int(number)] = str(name)
        except (TypeError, ValueError) as error:
            raise DatasetError(f"{root / DESCRIPTION}: label {name!r} has the value {number!r}, no number") from error
    names.pop(0, None)
    meanings = {value: meaning_of(name) for value, name in names.items()}
    if len(names) == 1 and (alone := next(iter(names))) and meanings[alone] is None and not is_other(names[alone]):
        meanings[alone] = UNPLACED
    told = [
        f"label {value} ({names[value]}): {'an aneurysm' if meaning == UNPLACED else meaning or 'no aneurysm'}"
        for value, meaning in sorted(meanings.items())
    ]
    values = tuple((value, OTHER if meaning is None else meaning) for value, meaning in sorted(meanings.items()))
    if not any(meaning not in (IGNORED, OTHER) for _, meaning in values):
        return None, [*told, "no label is an aneurysm by its name; all labels are unknown"]
    return values, told


def _stem(path: Path) -> str:
    return next((path.name[: -len(end)] for end in reversed(SUFFIXES) if path.name.lower().endswith(end)), "")
