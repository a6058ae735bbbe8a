"""The score against hand-computed values and scikit-learn."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from aneurysm_ray import overrides
from aneurysm_ray.errors import RequestError
from aneurysm_ray.labels import LABELS, PRESENT, SCORE_WEIGHTS
from aneurysm_ray.learning import bootstrap, curves, metrics


def table(n: int, seed: int = 0, *, skill: float = 1.0, folds: int = 3, series_per_patient: int = 1) -> pd.DataFrame:
    """Return a random predictions table of known targets, with ties."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, 14)) < 0.15).astype(float)
    targets[:, -1] = targets[:, :-1].max(axis=1)
    probabilities = np.round(1 / (1 + np.exp(-(rng.normal(size=(n, 14)) + skill * targets))), 2)
    patients = [f"p{i // series_per_patient:04d}" for i in range(n)]
    frame = pd.DataFrame({"series_uid": [f"s{i:04d}" for i in range(n)], "patient": patients})
    frame["fold"] = [int(p[1:]) % folds for p in patients]
    frame["modality"] = rng.choice(["CTA", "MRA"], n)
    frame["plane"] = "axial"
    frame[list(LABELS)] = probabilities
    frame[[f"target/{label}" for label in LABELS]] = targets
    return frame


def test_auc_by_hand_with_a_tie_and_an_unknown() -> None:
    # Pairs (positive, negative): 0.9>0.1, 0.9>0.5, 0.5>0.1, 0.5=0.5 -> 3.5 of 4.
    assert metrics.auc([1, 1, 0, 0, np.nan], [0.9, 0.5, 0.1, 0.5, 0.0]) == 3.5 / 4


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 300), st.integers(0, 4))
def test_auc_equals_scikit_learn_with_ties(seed: int, n: int, decimals: int) -> None:
    rng = np.random.default_rng(seed)
    targets = np.r_[0, 1, rng.integers(0, 2, n - 2)].astype(float)
    probabilities = np.round(rng.random(n), decimals)
    assert abs(metrics.auc(targets, probabilities) - roc_auc_score(targets, probabilities)) <= 1e-12


def test_weighted_score_is_the_competitions() -> None:
    frame = table(500)
    targets, probabilities = metrics.targets_of(frame), metrics.probabilities_of(frame)
    aucs = [roc_auc_score(targets[:, i], probabilities[:, i]) for i in range(14)]
    expected = sum(w * a for w, a in zip(SCORE_WEIGHTS, aucs, strict=True)) / 26
    assert metrics.weighted_score(targets, probabilities, strict=True) == pytest.approx(expected, abs=1e-12)
    assert expected == pytest.approx(0.5 * (aucs[13] + np.mean(aucs[:13])), abs=1e-12)


def test_label_of_one_class_is_left_out_and_said() -> None:
    frame = table(300)
    frame["target/Basilar Tip"] = 0.0
    summary = metrics.summarise(frame, draws=50)
    aucs = metrics.label_aucs(metrics.targets_of(frame), metrics.probabilities_of(frame))
    kept = [i for i in range(14) if LABELS[i] != "Basilar Tip"]
    assert summary["score"]["value"] == pytest.approx(sum(SCORE_WEIGHTS[i] * aucs[i] for i in kept) / 25, abs=1e-12)
    row = summary["labels"][LABELS.index("Basilar Tip")]
    assert row == {"label": "Basilar Tip", "auc": None, "low": None, "high": None, "n": 300, "n_positive": 0}
    assert summary["left_out"] == ["Basilar Tip"]
    assert "Basilar Tip" in summary["note"]
    json.dumps(summary, allow_nan=False)


def test_strict_score_stops_at_one_class() -> None:
    frame = table(50)
    frame["target/Basilar Tip"] = 0.0
    with pytest.raises(RequestError, match="Basilar Tip: 0 of 50 known targets are positive"):
        metrics.weighted_score(metrics.targets_of(frame), metrics.probabilities_of(frame), strict=True)


def test_a_probability_that_is_no_number_is_refused() -> None:
    with pytest.raises(RequestError, match="1 of 3 series"):
        metrics.auc([0, 1, 1], [0.1, np.nan, 0.3])


def test_no_targets_give_no_score() -> None:
    frame = table(20).drop(columns=[f"target/{label}" for label in LABELS])
    summary = metrics.summarise(frame, draws=10)
    assert summary["score"] == {"value": None, "low": None, "high": None}
    assert summary["note"] == "No label has both positive and negative series, so there is no score."


def test_a_draw_equals_the_score_of_the_resampled_table() -> None:
    frame = table(120, series_per_patient=2)
    counts = bootstrap.patient_counts(frame["patient"], draws=7, seed=3)
    targets, probabilities = metrics.targets_of(frame), metrics.probabilities_of(frame)
    drawn = bootstrap.weighted_aucs(targets, probabilities, counts)
    for draw in range(7):
        rows = np.repeat(np.arange(120), counts[:, draw].astype(int))
        np.testing.assert_allclose(drawn[:, draw], metrics.label_aucs(targets[rows], probabilities[rows]), atol=1e-12)
    patients = frame.assign(**{str(d): counts[:, d] for d in range(7)}).groupby("patient")
    assert all((patients[str(d)].nunique() == 1).all() for d in range(7)), "a patient's series must be drawn together"
    assert (patients[[str(d) for d in range(7)]].first().sum() == 60).all()


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    # Binormal scores with shift d have AUC Phi(d / sqrt 2): 0.7602 for d = 1.
    hits = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        targets = np.repeat([0.0, 1.0], 60)
        scores = rng.normal(size=120) + targets
        counts = bootstrap.patient_counts(np.arange(120), draws=200, seed=seed)
        low, high = bootstrap.interval(bootstrap.weighted_aucs(targets[:, None], scores[:, None], counts)[0])
        hits += low <= 0.7602 <= high
    assert 87 <= hits <= 100


@pytest.mark.parametrize(
    ("swapped", "low", "high"), [(False, 0.025 ** (1 / 4), 1.0), (True, 0.0, 1 - 0.025 ** (1 / 4))]
)
def test_a_perfect_area_has_the_exact_interval_of_the_patients_of_the_rarer_class(
    swapped: bool, low: float, high: float
) -> None:
    """Four positive patients of two series each, six negative ones: Clopper and Pearson's 4 of 4 is [0.398, 1]."""
    frame = table(20, series_per_patient=2)
    positive = (np.arange(20) < 8).astype(float)
    for label in LABELS:
        frame[f"target/{label}"] = positive
        frame[label] = np.where((positive == 1) != swapped, 0.9, 0.1)
    summary = metrics.summarise(frame, draws=50)
    for found in (summary["score"], summary["auc_present"]):
        assert (found["low"], found["high"]) == pytest.approx((low, high), abs=1e-12)
    assert metrics.per_label(frame, 50)[["low", "high"]].to_numpy() == pytest.approx(np.tile([low, high], (14, 1)))
    group = metrics.subgroups(frame.assign(modality="CTA"), draws=50).iloc[0]
    assert (group["low"], group["high"]) == pytest.approx((low, high), abs=1e-12)
    curve = curves.roc(curves.rank(positive, frame[PRESENT], frame["patient"], 50))
    assert (curve.area.low, curve.area.high) == pytest.approx((low, high), abs=1e-12)
    bounds = metrics.bootstrap(metrics.targets_of(frame), metrics.probabilities_of(frame), frame["patient"], 50)
    assert (bounds.low, bounds.high) == pytest.approx((low, high), abs=1e-12)


def test_mean_over_folds_and_pooled_score_differ() -> None:
    frame = table(300, skill=2)
    frame.loc[frame["fold"] == 1, list(LABELS)] /= 2  # a fold whose probabilities are on another scale
    summary = metrics.summarise(frame, draws=20)
    scores = [
        metrics.weighted_score(metrics.targets_of(part), metrics.probabilities_of(part))
        for _, part in frame.groupby("fold")
    ]
    assert summary["score_mean_over_folds"] == pytest.approx(np.mean(scores), abs=1e-12)
    assert [row["score"] for row in summary["folds"]] == pytest.approx(scores, abs=1e-12)
    assert summary["score"]["value"] < summary["score_mean_over_folds"] - 0.01


def test_paired_difference_is_narrower_than_unpaired_and_signed() -> None:
    first = table(400, skill=1.0)
    second = first.copy()
    second[PRESENT] = np.clip(second[PRESENT] + 0.1 * second[f"target/{PRESENT}"], 0, 1)
    result = metrics.difference(first, second.sample(frac=1, random_state=0), draws=300)
    before, after = (metrics.summarise(frame, draws=300) for frame in (first, second))
    assert result["auc_present"].value == pytest.approx(
        after["auc_present"]["value"] - before["auc_present"]["value"], abs=1e-12
    )
    assert result["auc_present"].low > 0
    width = result["auc_present"].high - result["auc_present"].low
    assert width < before["auc_present"]["high"] - before["auc_present"]["low"]
    same = metrics.difference(first, first, draws=50)["score"]
    assert (same.value, same.low, same.high) == (0, 0, 0)
    with pytest.raises(RequestError, match="share no series"):
        metrics.difference(first, second.assign(series_uid="other"))


def test_subgroups_by_modality_and_size() -> None:
    frame = table(200)
    positives = frame.loc[frame[f"target/{PRESENT}"] == 1, "series_uid"]
    diameters = pd.Series(np.where(np.arange(len(positives)) % 2, 2.0, 8.0), index=positives)
    groups = metrics.subgroups(frame, diameters, draws=20).set_index(["group", "value"])
    cta = frame[frame["modality"] == "CTA"]
    assert groups.loc[("modality", "CTA"), "auc"] == pytest.approx(
        roc_auc_score(cta[f"target/{PRESENT}"], cta[PRESENT]), abs=1e-12
    )
    small = frame[(frame[f"target/{PRESENT}"] == 0) | frame["series_uid"].map(diameters).eq(2.0)]
    assert groups.loc[("size", "< 3 mm"), "n_positive"] == len(positives) // 2
    assert groups.loc[("size", "< 3 mm"), "auc"] == pytest.approx(
        roc_auc_score(small[f"target/{PRESENT}"], small[PRESENT]), abs=1e-12
    )
    assert np.isnan(groups.loc[("size", "3–5 mm"), "auc"])


def test_patients_fall_back_to_their_series() -> None:
    frame = table(4)
    frame.loc[1, "patient"] = None
    assert list(metrics.patients_of(frame)) == ["p0000", "s0001", "p0002", "p0003"]
    assert list(metrics.patients_of(frame.drop(columns="patient"))) == list(frame["series_uid"])


def test_the_folds_that_chose_the_settings_are_left_out_of_a_score_of_their_own() -> None:
    predictions = table(300)
    chosen = {"chosen.folds": [0], "chosen.count": 5, "chosen.seed": 0}
    found = metrics.unpicked(predictions, overrides.build(chosen))
    rest = predictions[predictions["fold"] != 0]
    assert found is not None and found["folds"] == [1, 2]
    assert found["score"]["value"] == metrics.weighted_score(metrics.targets_of(rest), metrics.probabilities_of(rest))
    # Every fold chose, or the patients were dealt anew since, so that those who chose lie in all folds.
    for changes in ({"chosen.folds": [0, 1, 2]}, {"folds.seed": 1}, {"folds.count": 4}):
        assert metrics.unpicked(predictions, overrides.build(chosen, changes)) is None
