"""Folds that a file gives: read onto a set, or refused with a cure."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from aneurysm_ray.config import FoldsConfig
from aneurysm_ray.data import folds, identity, own_folds
from aneurysm_ray.errors import RequestError

KEY = b"key"
NAMES = ["anna", "bert", "carl", "dora"]
THREE, TWO = FoldsConfig(count=3), FoldsConfig(count=2)


def _hash(name: str) -> str:
    return identity.patient_hash(KEY, name, "")


@pytest.fixture
def table() -> pd.DataFrame:
    """Two series of anna, one of each other."""
    patients = [NAMES[0], *NAMES]
    return pd.DataFrame({"series_uid": [f"1.2.{i}" for i in range(5)], "patient": [_hash(name) for name in patients]})


def _csv(path: Path, rows: list[tuple[str, object]], column: str = "patient") -> Path:
    path.write_text(f"{column},fold\n" + "".join(f"{name},{fold}\n" for name, fold in rows))
    return path


def test_patients_by_the_names_that_the_data_set_gave_them(tmp_path: Path, table: pd.DataFrame) -> None:
    path = _csv(tmp_path / "splits.csv", list(zip(NAMES, [2, 0, 1, ""], strict=True)))
    found = own_folds.read(path, table, THREE, _hash)
    assert list(found["fold"]) == [2, 2, 0, 1, own_folds.ALWAYS_TRAINED]
    assert list(found.columns) == ["series_uid", "patient", "fold"]
    assert list(found["series_uid"]) == list(table["series_uid"])


def test_patients_by_their_hashes_and_series_by_their_uids_need_no_key(tmp_path: Path, table: pd.DataFrame) -> None:
    path = _csv(tmp_path / "a.csv", [(_hash(name), i % 2) for i, name in enumerate(NAMES)])
    assert list(own_folds.read(path, table, TWO)["fold"]) == [0, 0, 1, 0, 1]
    path = _csv(tmp_path / "b.csv", [(f"1.2.{i}", int(i > 1)) for i in range(5)], "series_uid")
    assert list(own_folds.read(path, table, TWO)["fold"]) == [0, 0, 1, 1, 1]


def test_the_splits_of_nnunet(tmp_path: Path, table: pd.DataFrame) -> None:
    path = tmp_path / "splits_final.json"
    path.write_text(
        json.dumps(
            [{"train": ["bert", "carl", "dora"], "val": ["anna"]}, {"train": ["anna", "dora"], "val": ["carl", "bert"]}]
        )
    )
    assert list(own_folds.read(path, table, TWO, _hash)["fold"]) == [0, 0, 1, 1, own_folds.ALWAYS_TRAINED]


@pytest.mark.parametrize(
    ("rows", "column", "words"),
    [
        ([("1.2.0", 0), ("1.2.1", 1), ("1.2.2", 0), ("1.2.3", 1), ("1.2.4", 1)], "series_uid", "are one patient"),
        ([("anna", 0), ("anna", 1)], "patient", "line 3: anna is in fold 0 and in 1"),
        ([("anna", 0), ("bert", 1), ("carl", 0)], "patient", "says nothing of 1 series of the set (1.2.4)"),
        ([("anna", 0), ("bert", 1), ("carl", 0), ("dorra", 1)], "patient", "1 of its names are of nobody in the set"),
        ([(name, i) for i, name in enumerate(NAMES)], "patient", "has 4 folds; add folds.count=4"),
        ([("anna", 0), ("bert", 0), ("carl", 0), ("dora", 2)], "patient", "fold 1 holds out nobody"),
        ([("anna", "first")], "patient", "line 2: fold is 'first'"),
        ([("anna", 0)], "name", "must have the columns fold and series_uid or patient"),
    ],
)
def test_what_cannot_be_folds_is_a_sentence(
    tmp_path: Path, table: pd.DataFrame, rows: list[tuple[str, Any]], column: str, words: str
) -> None:
    path = _csv(tmp_path / "splits.csv", rows, column)
    with pytest.raises(RequestError) as caught:
        own_folds.read(path, table, THREE, _hash)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["splits.csv", "splits_final.json"])
def test_a_file_that_is_not_there_is_named_once(tmp_path: Path, table: pd.DataFrame, name: str) -> None:
    with pytest.raises(RequestError) as refused:
        own_folds.read(tmp_path / name, table, THREE, _hash)
    assert str(refused.value).count(name) == 1 and "No such file or directory" in str(refused.value)


def test_columns_parted_by_something_else_are_told(tmp_path: Path, table: pd.DataFrame) -> None:
    (tmp_path / "splits.csv").write_text("patient;fold\nanna;0\n")
    with pytest.raises(RequestError, match="its columns are parted by ';'; part them by commas"):
        own_folds.read(tmp_path / "splits.csv", table, THREE, _hash)


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        ([{"train": ["anna"], "val": ["anna"]}], "fold 0 trains on anna, which it is judged by"),
        ([{"train": [], "val": ["anna"]}, {"train": [], "val": ["anna"]}], "held out by folds 0 and 1"),
        ({"train": []}, "is no list of"),
    ],
)
def test_wrong_splits_of_nnunet_are_a_sentence(tmp_path: Path, table: pd.DataFrame, splits: Any, words: str) -> None:
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps(splits))
    with pytest.raises(RequestError) as caught:
        own_folds.read(path, table, TWO, _hash)
    assert words in str(caught.value)


def test_names_without_the_key_say_that_it_is_missing(tmp_path: Path, table: pd.DataFrame) -> None:
    path = _csv(tmp_path / "splits.csv", [(name, i % 2) for i, name in enumerate(NAMES)])
    with pytest.raises(RequestError, match="The set's key is not here"):
        own_folds.read(path, table, TWO)
    for wrong in (tmp_path / "none.csv", tmp_path / "none.json"):
        with pytest.raises(RequestError, match="cannot be read"):
            own_folds.read(wrong, table, TWO)


def test_a_setting_names_the_file_and_the_key_beside_a_set_turns_names_into_hashes(tmp_path: Path) -> None:
    out = str(tmp_path / "volumes")
    assert identity.hash_of_patients(out) is None, "asking makes no key"
    assert not identity.key_path(out).exists()
    key = identity.patient_key(out)
    patients = [identity.patient_hash(key, name, "") for name in NAMES]
    table = pd.DataFrame({"series_uid": [f"1.2.{i}" for i in range(4)], "patient": patients})
    path = _csv(tmp_path / "splits.csv", [(name, i % 2) for i, name in enumerate(NAMES)])
    config = FoldsConfig(count=2, file=str(path))
    found = folds.assign(table, config, identity.hash_of_patients(out))
    assert list(found["fold"]) == [0, 1, 0, 1]
