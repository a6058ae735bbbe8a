"""ROC and precision-recall curves of one label on a grid, with a 95 % band over patients."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from aneurysm_ray.learning.bootstrap import LEVEL, Score, interval, judges_of_area, patient_counts, reaching

Floats = NDArray[np.float64]
GRID = np.linspace(0, 1, 101)
"""False-positive rates, and recalls, at which curves are given."""
DRAWS = 300
"""Draws of a band: enough for a line a pixel wide, and 14 labels take two curves each."""


@dataclass(frozen=True, eq=False)
class Curve:
    """A curve with its band, the area under it and the number of series behind it."""

    table: pd.DataFrame
    """x (GRID), y, low, high."""
    area: Score
    n: int
    n_positive: int


@dataclass(frozen=True, eq=False)
class Ranking:
    """Series from the most to the least probable, cut after every distinct probability."""

    true: Floats
    """(cuts, 1 + draws): positives above each cut; the first column is the sample itself, the others are draws."""
    false: Floats
    """(cuts, 1 + draws): negatives above each cut."""
    judges: int
    """Patients who judge an area, of `bootstrap.judges_of_area`."""


def rank(targets: ArrayLike, probabilities: ArrayLike, patients: ArrayLike, draws: int = DRAWS) -> Ranking | None:
    """Rank the series of one label, as they are and in every draw; None where a class is absent.

    Draws in which a class is absent are left out.
    """
    known = ~np.isnan(np.asarray(targets, np.float64))
    truth = np.asarray(targets, np.float64)[known] > 0.5
    if truth.all() or not truth.any():
        return None
    scores = np.asarray(probabilities, np.float64)[known]
    order = np.argsort(-scores, kind="stable")
    cuts = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    counts = patient_counts(np.asarray(patients)[known], draws)[order]
    weights = np.column_stack([np.ones(len(truth), np.float32), counts])
    # Whole numbers below 2**24, so float32 is exact.
    every = np.cumsum(weights, axis=0)[cuts]
    weights[~truth[order]] = 0
    true = np.cumsum(weights, axis=0)[cuts]
    defined = (true[-1] > 0) & (true[-1] < every[-1])
    judges = judges_of_area(truth, np.asarray(patients)[known])
    return Ranking(true[:, defined].astype(np.float64), (every - true)[:, defined].astype(np.float64), judges)


def roc(ranking: Ranking) -> Curve:
    """Return the true-positive rate over the false-positive rate."""
    return _curve(ranking, _roc_of)


def precision_recall(ranking: Ranking) -> Curve:
    """Return precision over recall; its area is average precision."""
    return _curve(ranking, _precision_recall_of)


def _curve(ranking: Ranking, curve_of: Callable[[Floats, Floats], tuple[Floats, float]]) -> Curve:
    true, false = ranking.true, ranking.false
    curves, areas = zip(*(curve_of(true[:, i], false[:, i]) for i in range(true.shape[1])), strict=True)
    low, high = np.quantile(np.stack(curves[1:] or curves), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    table = pd.DataFrame({"x": GRID, "y": curves[0], "low": low, "high": high})
    area = Score(areas[0], *reaching(*interval(np.array(areas[1:])), areas[0], ranking.judges))
    return Curve(table, area, int(true[-1, 0] + false[-1, 0]), int(true[-1, 0]))


def _roc_of(true: Floats, false: Floats) -> tuple[Floats, float]:
    sensitivity, fallout = np.append(0, true / true[-1]), np.append(0, false / false[-1])
    return np.interp(GRID, fallout, sensitivity), float(np.trapezoid(sensitivity, fallout))


def _precision_recall_of(true: Floats, false: Floats) -> tuple[Floats, float]:
    recall = true / true[-1]
    with np.errstate(invalid="ignore"):
        precision = np.where(true + false > 0, true / (true + false), 1.0)
    area = float(np.sum(np.diff(recall, prepend=0) * precision))
    # Precision at the first threshold that reaches a recall: no interpolation, which would flatter.
    return precision[np.searchsorted(recall, np.minimum(GRID, recall[-1]), "left")], area
