"""Curves against scikit-learn, and bands that hold their curve."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from aneurysm_ray.learning import curves


def _sample(seed: int = 0, n: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = (rng.random(n) < 0.3).astype(float)
    return targets, np.round(1 / (1 + np.exp(-rng.normal(size=n) - targets)), 2), np.arange(n)


def test_roc_equals_scikit_learn() -> None:
    targets, probabilities, patients = _sample()
    ranking = curves.rank(targets, probabilities, patients)
    assert ranking is not None
    curve = curves.roc(ranking)
    assert curve.area.value == pytest.approx(roc_auc_score(targets, probabilities), abs=1e-12)
    fallout, sensitivity, _ = roc_curve(targets, probabilities, drop_intermediate=False)
    np.testing.assert_allclose(curve.table["y"], np.interp(curves.GRID, fallout, sensitivity), atol=1e-12)
    assert curve.table["y"].between(curve.table["low"] - 1e-9, curve.table["high"] + 1e-9).mean() > 0.95
    assert curve.area.low < curve.area.value < curve.area.high


def test_average_precision_equals_scikit_learn() -> None:
    targets, probabilities, patients = _sample(1)
    ranking = curves.rank(np.append(targets, np.nan), np.append(probabilities, 0.5), np.append(patients, 999))
    assert ranking is not None
    curve = curves.precision_recall(ranking)
    assert curve.area.value == pytest.approx(average_precision_score(targets, probabilities), abs=1e-12)
    assert (curve.n, curve.n_positive) == (200, int(targets.sum()))


def test_precision_recall_by_hand() -> None:
    # Down the ranking: hit, miss, hit. Recall 1/2 at precision 1, recall 1 at precision 2/3.
    ranking = curves.rank([1, 0, 1], [0.9, 0.8, 0.7], [0, 1, 2], draws=5)
    assert ranking is not None
    curve = curves.precision_recall(ranking)
    assert curve.table["y"].iloc[[0, 50, 51, 100]].tolist() == pytest.approx([1, 1, 2 / 3, 2 / 3])
    assert curve.area.value == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_one_class_has_no_curve() -> None:
    assert curves.rank([1, 1], [0.1, 0.2], [0, 1]) is None
    assert curves.rank([0, np.nan], [0.1, 0.2], [0, 1]) is None


def test_draws_without_a_class_are_left_out() -> None:
    # One positive of three patients: it is missing in (2/3)³ of the draws.
    ranking = curves.rank([1, 0, 0], [0.9, 0.5, 0.1], [0, 1, 2], draws=200)
    assert ranking is not None
    assert 100 < ranking.true.shape[1] < 180
    assert (ranking.true[-1] > 0).all()
    assert (ranking.false[-1] > 0).all()
