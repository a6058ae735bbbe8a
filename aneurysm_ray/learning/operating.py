"""Operating points: above which probability a series is flagged for a label, chosen on out-of-fold predictions.

A run keeps, for each label, the steps of its curve at which another positive series is found. Whoever predicts says
what is wanted: a sensitivity, or at most so many false alarms per scan; the threshold follows.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

STEPS = 200
"""Most steps of a curve that are kept; between them the threshold that finds more is taken."""

Curve = tuple[tuple[float, float, float], ...]
"""(threshold, sensitivity, false alarms per scan without the label), from the highest threshold down."""


@dataclass(frozen=True)
class Point:
    """A threshold and what it did out of fold."""

    threshold: float
    """Series at or above it are flagged."""
    sensitivity: float
    false_alarms: float
    """Share of the series without the label that are flagged all the same: false positives per scan."""


def curve(targets: ArrayLike, probabilities: ArrayLike) -> Curve:
    """Return the steps of one label's curve; targets (N,) are 0, 1 or NaN. Empty where only one class is known."""
    known = ~np.isnan(np.asarray(targets, np.float64))
    positive = np.asarray(targets, np.float64)[known] > 0.5
    values = np.asarray(probabilities, np.float64)[known]
    if positive.all() or not positive.any():
        return ()
    found, false = np.sort(values[positive])[::-1], np.sort(values[~positive])
    thresholds = np.unique(found)[::-1]
    if len(thresholds) > STEPS:
        thresholds = thresholds[np.unique(np.linspace(0, len(thresholds) - 1, STEPS).round().astype(int))]
    sensitivity = _share_at_or_above(found[::-1], thresholds)
    alarms = _share_at_or_above(false, thresholds)
    return tuple((float(t), float(s), float(a)) for t, s, a in zip(thresholds, sensitivity, alarms, strict=True))


def _share_at_or_above(rising: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 - np.searchsorted(rising, thresholds, "left") / len(rising))


def choose(steps: Curve, wanted: str) -> Point | None:
    """Return the point of a curve that `inference.operating` asks for; None where no threshold gives it.

    `sensitivity=S`: the highest threshold that finds at least that share. `false_alarms=F`: the lowest one with at most
    that many per scan.
    """
    kind, _, text = wanted.partition("=")
    value = float(text)
    points = [Point(*step) for step in steps]
    if kind == "sensitivity":
        return next((point for point in points if point.sensitivity >= value - 1e-12), None)
    return next((point for point in reversed(points) if point.false_alarms <= value + 1e-12), None)
