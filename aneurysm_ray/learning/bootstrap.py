"""Intervals by resampling patients: all labels and all draws at once.

A draw is a count for each series, how often its patient was drawn with replacement; so a statistic is computed once on
sorted data with the counts as weights, and never on copies of the table. A patient's series are drawn together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 1000
"""Draws of a reported interval."""
LEVEL = 0.95
"""Coverage of a reported interval."""


@dataclass(frozen=True)
class Score:
    """A statistic with its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @classmethod
    def of(cls, numbers: Mapping[str, float | None]) -> "Score":
        """Return what `as_dict` made numbers of."""
        return cls(
            *(float("nan") if (number := numbers[name]) is None else number for name in ("value", "low", "high"))
        )

    def as_dict(self) -> dict[str, float | None]:
        """Return the three numbers for JSON, with None for NaN."""
        return {
            name: None if np.isnan(number) else float(number)
            for name, number in (("value", self.value), ("low", self.low), ("high", self.high))
        }


def patient_counts(patients: ArrayLike, draws: int = DRAWS, seed: int = 0) -> NDArray[np.float32]:
    """Return (N, draws): how often each series' patient is drawn; whole numbers, kept as float32 for speed."""
    _, patient_of_series = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    n_patients = int(patient_of_series.max(initial=-1)) + 1
    rng = np.random.default_rng(seed)
    counts = np.empty((n_patients, draws), np.float32)
    for draw in range(draws):
        counts[:, draw] = np.bincount(rng.integers(0, n_patients, n_patients), minlength=n_patients)
    return counts[patient_of_series]


def weighted_aucs(
    targets: NDArray[Any], probabilities: NDArray[Any], counts: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return (L, draws): the area under the ROC of every label in every draw.

    targets and probabilities are (N, L), counts (N, draws). The area is the chance that a positive series scores above
    a negative one, ties counting half (Hanley and McNeil 1982). Unknown (NaN) targets are left out; a draw in which a
    label has one class is NaN.
    """
    areas = np.full((targets.shape[1], counts.shape[1]), np.nan)
    for label in range(targets.shape[1]):
        positive = np.flatnonzero(targets[:, label] > 0.5)
        negative = np.flatnonzero(targets[:, label] <= 0.5)
        if not len(positive) or not len(negative):
            continue
        negative = negative[np.argsort(probabilities[negative, label], kind="stable")]
        below, weights = probabilities[negative, label], counts[positive]
        # Row k: the weight of the k lowest negatives. Whole numbers below 2**24, so float32 is exact.
        lowest = np.zeros((len(negative) + 1, counts.shape[1]), np.float32)
        np.cumsum(counts[negative], axis=0, out=lowest[1:])
        beaten = lowest[np.searchsorted(below, probabilities[positive, label], "left")]
        beaten += lowest[np.searchsorted(below, probabilities[positive, label], "right")]
        beaten *= weights
        pairs = weights.sum(axis=0, dtype=np.float64) * lowest[-1]
        with np.errstate(invalid="ignore", divide="ignore"):
            areas[label] = np.where(pairs > 0, beaten.sum(axis=0, dtype=np.float64) / (2 * pairs), np.nan)
    return areas


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % percentile interval of the draws that are defined; NaN when none is."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def reaching(low: float, high: float, value: float, judges: int) -> tuple[float, float]:
    """Widen the interval of a share of exactly 0 or 1, which hardly any draw differs from, to what so few judges tell.

    That is the exact interval (Clopper and Pearson 1934) of as many successes, or failures, as there are patients who
    judge: they are independent, what one patient has is not.
    """
    if value == 0 and judges:
        return low, max(high, 1 - ((1 - LEVEL) / 2) ** (1 / judges))
    if value == 1 and judges:
        return min(low, ((1 - LEVEL) / 2) ** (1 / judges)), high
    return low, high


def judges_of_area(targets: ArrayLike, patients: ArrayLike) -> int:
    """Return how many patients judge an area under a ROC: those of the rarer class, each against all of the other.

    targets (N,) are 0, 1 or NaN for unknown. An area of 1 says that each of them stands beyond all others.
    """
    truth, names = np.asarray(targets, np.float64), np.asarray(patients, dtype=str)
    return min(len(np.unique(names[truth > 0.5])), len(np.unique(names[truth <= 0.5])))
