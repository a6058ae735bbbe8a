"""Predictions scored against labels: what cannot be joined is a sentence with its cure."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from learning_sets import describe_set, volume
from nifti_sets import LEFT, write_bids

from aneurysm_ray.config import Config
from aneurysm_ray.data import store
from aneurysm_ray.errors import RequestError
from aneurysm_ray.labels import LABELS
from aneurysm_ray.learning import evaluation


def write_predictions(path: Path, names: list[str]) -> Path:
    pd.DataFrame({"series_uid": names, **{label: [0.5] * len(names) for label in LABELS}}).to_csv(path, index=False)
    return path


def write_nameless(folder: Path) -> Path:
    """Write a prepared set of files that had no UID of their own."""
    made = [replace(volume(i, i % 2 == 0), series_uid=f"2.25.{i + 1}") for i in range(4)]
    store.write_table(folder, [store.table_row(v, store.write_volume(folder, v, "{}").stat().st_size) for v in made])
    describe_set(folder, Config())
    return folder


def test_a_data_set_whose_series_only_their_files_name_asks_for_the_prepared_set(tmp_path: Path) -> None:
    data = write_bids(tmp_path / "bids", {"sub-1": (LEFT,), "sub-2": (), "sub-3": ()})
    with pytest.raises(RequestError, match="give the prepared set instead"):
        evaluation.evaluate(write_predictions(tmp_path / "p.csv", ["2.25.1"]), data)


def test_names_of_another_preparation_say_what_to_predict(tmp_path: Path) -> None:
    volumes = write_nameless(tmp_path / "set")
    with pytest.raises(RequestError, match="predict the prepared set itself"):
        evaluation.evaluate(write_predictions(tmp_path / "p.csv", ["2.25.77"]), volumes)
    known = evaluation.evaluate(write_predictions(tmp_path / "p.csv", ["2.25.1", "2.25.2"]), volumes)
    assert known["series"] == 2


def test_a_series_predicted_twice_is_named(tmp_path: Path) -> None:
    path = write_predictions(tmp_path / "p.csv", ["2.25.1", "2.25.2", "2.25.2"])
    with pytest.raises(RequestError, match=r"has 2\.25\.2 more than once"):
        evaluation.evaluate(path, write_nameless(tmp_path / "set"))
