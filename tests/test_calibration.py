"""Reliability, Brier score and the map fitted out of fold."""

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics import brier_score_loss

from aneurysm_ray.learning import calibration


def test_brier_equals_scikit_learn_and_skips_the_unknown() -> None:
    rng = np.random.default_rng(0)
    targets, probabilities = rng.integers(0, 2, 50).astype(float), rng.random(50)
    expected = brier_score_loss(targets, probabilities)
    assert calibration.brier(np.append(targets, np.nan), np.append(probabilities, 0.9)) == pytest.approx(expected)


def test_reliability_by_hand() -> None:
    table = calibration.reliability([0, 1, 1, 1], [0.1, 0.3, 0.7, 0.9], bins=2)
    np.testing.assert_allclose(table["predicted"], [0.2, 0.8])
    np.testing.assert_allclose(table["observed"], [0.5, 1.0])
    # Wilson's interval of 2 in 2 is [1 / (1 + z² / 2), 1] = [0.342, 1].
    np.testing.assert_allclose(table.loc[1, ["low", "high"]].to_numpy(float), [0.3424, 1.0], atol=1e-4)
    assert calibration.calibration_error(table) == pytest.approx((0.3 + 0.2) / 2)


def test_platt_finds_the_line_that_was_planted_and_lowers_the_error() -> None:
    rng = np.random.default_rng(1)
    truth = rng.random(20_000)
    targets = (rng.random(20_000) < truth).astype(float)
    distorted = expit((logit(truth) + 1) / 0.5)  # so truth = logit(distorted) * 0.5 - 1
    slope, intercept = calibration.fit_platt(targets, distorted)
    assert (slope, intercept) == (pytest.approx(0.5, abs=0.03), pytest.approx(-1, abs=0.05))
    folds = rng.integers(0, 5, 20_000)
    mended = calibration.calibrate_out_of_fold(targets, distorted, folds)
    before = calibration.calibration_error(calibration.reliability(targets, distorted))
    after = calibration.calibration_error(calibration.reliability(targets, mended))
    assert after < 0.02 < before
    one_fold = calibration.calibrate_out_of_fold(targets, distorted, np.zeros(20_000))
    np.testing.assert_array_equal(one_fold, distorted)


def test_a_fold_is_mapped_by_the_others_alone() -> None:
    rng = np.random.default_rng(2)
    targets, probabilities = rng.integers(0, 2, 60).astype(float), rng.random(60)
    folds = np.arange(60) % 2
    flipped = np.where(folds == 0, 1 - targets, targets)
    first = calibration.calibrate_out_of_fold(targets, probabilities, folds)
    second = calibration.calibrate_out_of_fold(flipped, probabilities, folds)
    np.testing.assert_array_equal(first[folds == 0], second[folds == 0])
    assert not np.allclose(first[folds == 1], second[folds == 1])
