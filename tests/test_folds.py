"""Folds: no patient in two, balanced, and the same for the same seed."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aneurysm_ray.config import FoldsConfig
from aneurysm_ray.data import folds
from aneurysm_ray.errors import RequestError
from aneurysm_ray.labels import LABELS, LOCATIONS, PRESENT

# How often each location occurs among the competition's 4,348 series.
FREQUENCIES = np.array([78, 98, 331, 277, 219, 294, 363, 46, 56, 86, 101, 110, 113]) / 4348


def volumes(n: int, seed: int = 0, per_patient: int = 1) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"series_uid": [f"s{i:05d}" for i in range(n)]})
    frame["patient"] = [f"p{i // per_patient:05d}" for i in range(n)]
    frame["modality"] = rng.choice(["CTA", "MRA", "MRI T2", "MRI T1post"], n, p=[0.416, 0.288, 0.226, 0.07])
    frame[list(LOCATIONS)] = (rng.random((n, 13)) < FREQUENCIES).astype(np.float32)
    frame[PRESENT] = frame[list(LOCATIONS)].max(axis=1)
    return frame


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 7), st.integers(0, 1000), st.integers(1, 3), st.integers(21, 150))
def test_every_patient_in_exactly_one_fold_of_equal_size(count: int, seed: int, per_patient: int, n: int) -> None:
    frame = volumes(n, seed, per_patient)
    result = folds.assign(frame, FoldsConfig(count=count, seed=seed))
    assert list(result.columns) == ["series_uid", "patient", "fold"]
    assert list(result["series_uid"]) == list(frame["series_uid"])
    assert (result.groupby("patient")["fold"].nunique() == 1).all()
    sizes = result.drop_duplicates("patient")["fold"].value_counts().reindex(range(count), fill_value=0)
    assert sizes.max() - sizes.min() <= 1


def test_labels_and_modalities_are_spread_evenly() -> None:
    frame = volumes(1000)
    frame["fold"] = folds.assign(frame, FoldsConfig(count=5))["fold"]
    for label in LABELS:
        positives = frame.groupby("fold")[label].sum()
        assert np.ptp(positives) <= (5 if label == PRESENT else 2), label  # about 84 present in each fold
    for modality in frame["modality"].unique():
        of_modality = frame[frame["modality"] == modality]
        assert np.ptp(of_modality.groupby("fold").size()) <= 3, modality
        assert np.ptp(of_modality.groupby("fold")[PRESENT].sum()) <= 3, modality


def test_a_label_with_as_many_positives_as_folds_is_in_each() -> None:
    frame = volumes(200)
    frame["Basilar Tip"] = 0.0
    frame.loc[[3, 50, 77, 120, 199], "Basilar Tip"] = 1.0
    frame["fold"] = folds.assign(frame, FoldsConfig(count=5))["fold"]
    assert sorted(frame.loc[frame["Basilar Tip"] == 1, "fold"]) == [0, 1, 2, 3, 4]


def test_seed_decides_and_row_order_does_not() -> None:
    frame = volumes(120)
    first = folds.assign(frame, FoldsConfig(seed=1)).set_index("series_uid")["fold"]
    shuffled = folds.assign(frame.sample(frac=1, random_state=0), FoldsConfig(seed=1)).set_index("series_uid")["fold"]
    other = folds.assign(frame, FoldsConfig(seed=2)).set_index("series_uid")["fold"]
    assert first.equals(shuffled.loc[first.index])
    assert not first.equals(other)


def test_unknown_labels_and_modalities_still_get_folds() -> None:
    frame = volumes(10)
    frame[list(LABELS)] = np.nan
    frame["modality"] = None
    assert sorted(folds.assign(frame, FoldsConfig(count=5))["fold"].value_counts()) == [2] * 5


def test_fewer_patients_than_folds_is_refused() -> None:
    with pytest.raises(RequestError, match=r"2 patients cannot be split into 5 folds; use folds\.count=2"):
        folds.assign(volumes(6, per_patient=3), FoldsConfig(count=5))
