"""Folds of one's own: `splits.csv`, or nnU-Net's `splits_final.json`, read onto the series of a prepared set.

A row of the CSV has `fold` and either `series_uid` or `patient`: as the set's table writes them, or a patient as the
data set called them, which the set's key turns into its hash. An empty fold is always trained on and never held out.
nnU-Net's file is a list of {"train": [case, ...], "val": [case, ...]}, one for each fold; a case is a patient.
"""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from aneurysm_ray.config import FoldsConfig
from aneurysm_ray.errors import RequestError, did_you_mean, other_commas

ALWAYS_TRAINED = -1
"""Fold of a series that no fold holds out."""
_NAMED = 3
"""Of series and patients, named in a sentence."""

Hash = Callable[[str], str]


def read(path: Path, table: pd.DataFrame, config: FoldsConfig, hashed: Hash | None = None) -> pd.DataFrame:
    """Return series_uid, patient, fold for each row of a volumes table, in its order, by a file of folds.

    `hashed` turns a patient as the data set called them into the set's patient; None where the set's key is not here.
    Raises RequestError when the file cannot be read, names a patient in two folds, leaves out a series, holds out
    nobody in a fold, or has another number of folds than `config.count`.
    """
    told = _read_json(path) if path.suffix == ".json" else _read_csv(path)
    patients, series = set(table["patient"]), dict(zip(table["series_uid"], table["patient"], strict=True))
    fold_of: dict[str, int] = {}
    said_by: dict[str, str] = {}
    strangers: list[str] = []
    for name, fold in told.items():
        patient = series.get(name) or (name if name in patients else "")
        if not patient and hashed is not None and (hash_of_name := hashed(name)) in patients:
            patient = hash_of_name
        if not patient:
            strangers.append(name)
        elif fold_of.setdefault(patient, fold) != fold:
            raise RequestError(
                f"{path}: {said_by[patient]} and {name} are one patient, in folds {_said(fold_of[patient])} and "
                f"{_said(fold)}; a patient's series must share a fold, or the network is judged by whom it has seen"
            )
        else:
            said_by[patient] = name
    left = table[~table["patient"].isin(fold_of)]
    if len(left):
        some = ", ".join(left["series_uid"].head(_NAMED))
        lost = f"; {len(strangers)} of its names are of nobody in the set, such as {strangers[0]}" if strangers else ""
        key = "" if hashed or not strangers else ". The set's key is not here, so that only hashes and UIDs are known"
        raise RequestError(
            f"{path} says nothing of {len(left)} series of the set ({some}){lost}{key}. Give every series a fold, or "
            "leave the fold empty to train on it always"
        )
    count = max(fold_of.values()) + 1
    if count != config.count:
        raise RequestError(f"{path} has {count} folds; add folds.count={count}")
    if empty := sorted(set(range(count)) - set(fold_of.values())):
        raise RequestError(
            f"{path}: fold {empty[0]} holds out nobody of this set; number the folds from 0 without gaps"
        )
    result = table[["series_uid", "patient"]].reset_index(drop=True)
    result["fold"] = [fold_of[patient] for patient in result["patient"]]
    return result


def _why(error: Exception) -> str:
    """Say what a file's reading ended with; an OSError's own text names the file again."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _read_csv(path: Path) -> Mapping[str, int]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, restval=""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"{path} cannot be read as CSV: {_why(error)}") from error
    names = list(rows[0]) if rows else []
    column = next((name for name in ("series_uid", "patient") if name in names), None)
    if column is None or "fold" not in names:
        raise RequestError(
            f"{path} must have the columns fold and series_uid or patient"
            f"{other_commas(names) or did_you_mean('series_uid', names)}"
        )
    found: dict[str, int] = {}
    for line, row in enumerate(rows, start=2):
        name, text = (row[column] or "").strip(), (row["fold"] or "").strip()
        if not (text == "" or text.isdigit()):
            raise RequestError(f"{path} line {line}: fold is {text!r}; expected a number from 0, or nothing")
        fold = int(text) if text else ALWAYS_TRAINED
        if found.setdefault(name, fold) != fold:
            raise RequestError(f"{path} line {line}: {name} is in fold {_said(found[name])} and in {_said(fold)}")
    return found


def _read_json(path: Path) -> Mapping[str, int]:
    try:
        splits: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} cannot be read as JSON: {_why(error)}") from error
    if not isinstance(splits, list) or not all(isinstance(s, dict) and {"train", "val"} <= s.keys() for s in splits):
        raise RequestError(f"{path} is no list of {{train: [...], val: [...]}}, as nnU-Net's splits_final.json is")
    found: dict[str, int] = {}
    for fold, split in enumerate(splits):
        if both := sorted(set(split["train"]) & set(split["val"])):
            raise RequestError(f"{path}: fold {fold} trains on {both[0]}, which it is judged by")
        for name in split["val"]:
            if found.setdefault(str(name), fold) != fold:
                raise RequestError(f"{path}: {name} is held out by folds {found[str(name)]} and {fold}; once is enough")
    for split in splits:
        for name in split["train"]:
            found.setdefault(str(name), ALWAYS_TRAINED)
    return found


def _said(fold: int) -> str:
    return "none" if fold == ALWAYS_TRAINED else str(fold)
