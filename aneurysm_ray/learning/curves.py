"""ROC and precision-recall curves of one label on a grid, with a 95 % band over patients."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from aneurysm_ray.learning.bootstrap import LEVEL, Score, interval, patient_counts

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


def roc(targets: ArrayLike, probabilities: ArrayLike, patients: ArrayLike, draws: int = DRAWS) -> Curve | None:
    """Return the true-positive rate over the false-positive rate; None where a class is absent."""
    return _curve(targets, probabilities, patients, draws, _roc_of)


def precision_recall(
    targets: ArrayLike, probabilities: ArrayLike, patients: ArrayLike, draws: int = DRAWS
) -> Curve | None:
    """Return precision over recall, the area being average precision; None where a class is absent."""
    return _curve(targets, probabilities, patients, draws, _precision_recall_of)


def _curve(
    targets: ArrayLike,
    probabilities: ArrayLike,
    patients: ArrayLike,
    draws: int,
    curve_of: Callable[[Floats, Floats], tuple[Floats, float]],
) -> Curve | None:
    known = ~np.isnan(np.asarray(targets, np.float64))
    truth = np.asarray(targets, np.float64)[known] > 0.5
    if truth.all() or not truth.any():
        return None
    scores = np.asarray(probabilities, np.float64)[known]
    order = np.argsort(-scores, kind="stable")
    last_of_score = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    counts = patient_counts(np.asarray(patients)[known], draws)
    weights = np.column_stack([np.ones(len(truth), np.float32), counts])[order]
    weights = weights[:, (weights * truth[order, None]).any(axis=0) & (weights * ~truth[order, None]).any(axis=0)]
    true = np.cumsum(weights * truth[order, None], axis=0, dtype=np.float64)[last_of_score]
    false = np.cumsum(weights, axis=0, dtype=np.float64)[last_of_score] - true
    curves, areas = zip(*(curve_of(true[:, i], false[:, i]) for i in range(true.shape[1])), strict=True)
    low, high = np.quantile(np.stack(curves[1:] or curves), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    table = pd.DataFrame({"x": GRID, "y": curves[0], "low": low, "high": high})
    area = Score(areas[0], *interval(np.array(areas[1:])))
    return Curve(table, area, len(truth), int(truth.sum()))


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
