"""Whether a probability of 0.3 comes true three times in ten: reliability, Brier score, and a map that mends it."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

Floats = NDArray[np.float64]
_Z95 = 1.959963984540054
_EDGE = 1e-6  # probabilities are kept this far from 0 and 1, where the logit is infinite


def brier(targets: ArrayLike, probabilities: ArrayLike) -> float:
    """Return the mean squared error of the known targets' probabilities (Brier 1950); NaN where none is known."""
    targets, probabilities = _known(targets, probabilities)
    return float(np.mean((probabilities - targets) ** 2)) if len(targets) else float("nan")


def reliability(targets: ArrayLike, probabilities: ArrayLike, bins: int = 10) -> pd.DataFrame:
    """Return a row for each of `bins` equally full bins: predicted (mean), observed (share), low, high, n.

    The interval is Wilson's 95 %. Bins cut through ties are joined; fewer series than bins give fewer bins.
    """
    targets, probabilities = _known(targets, probabilities)
    edges = np.unique(np.quantile(probabilities, np.linspace(0, 1, bins + 1)[1:-1])) if len(targets) else np.zeros(0)
    bin_of = np.searchsorted(edges, probabilities, "right")
    rows = []
    for index in np.unique(bin_of):
        inside = bin_of == index
        rows.append((probabilities[inside].mean(), *_wilson(targets[inside].sum(), inside.sum()), int(inside.sum())))
    return pd.DataFrame(rows, columns=["predicted", "observed", "low", "high", "n"])


def calibration_error(table: pd.DataFrame) -> float:
    """Return the mean distance of observed from predicted in a reliability table, weighted by series."""
    return (
        float(np.average((table["observed"] - table["predicted"]).abs(), weights=table["n"])) if len(table) else np.nan
    )


def fit_platt(targets: ArrayLike, probabilities: ArrayLike) -> tuple[float, float]:
    """Return slope and intercept on the logit that fit the targets best (Platt 1999, with his smoothed targets)."""
    targets, probabilities = _known(targets, probabilities)
    positives = targets.sum()
    smoothed = np.where(targets > 0.5, (positives + 1) / (positives + 2), 1 / (len(targets) - positives + 2))
    logits = logit(np.clip(probabilities, _EDGE, 1 - _EDGE))

    def loss(line: Floats) -> tuple[float, Floats]:
        mapped = line[0] * logits + line[1]
        error = expit(mapped) - smoothed
        return float(np.mean(np.logaddexp(0, mapped) - smoothed * mapped)), np.array(
            [np.mean(error * logits), np.mean(error)]
        )

    slope, intercept = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x
    return float(slope), float(intercept)


def apply_platt(probabilities: ArrayLike, slope: float, intercept: float) -> Floats:
    """Return the probabilities through the map."""
    logits = logit(np.clip(np.asarray(probabilities, np.float64), _EDGE, 1 - _EDGE))
    return np.asarray(expit(slope * logits + intercept), np.float64)


def calibrate_out_of_fold(targets: ArrayLike, probabilities: ArrayLike, folds: ArrayLike) -> Floats:
    """Return each series' probability through the map fitted on all other folds; unchanged where there are none."""
    targets, folds = np.asarray(targets, np.float64), np.asarray(folds)
    given = np.asarray(probabilities, np.float64)
    result = given.copy()
    for fold in np.unique(folds):
        others = folds != fold
        if len(np.unique(targets[others & ~np.isnan(targets)])) == 2:
            result[~others] = apply_platt(given[~others], *fit_platt(targets[others], given[others]))
    return result


def _known(targets: ArrayLike, probabilities: ArrayLike) -> tuple[Floats, Floats]:
    targets, probabilities = np.asarray(targets, np.float64), np.asarray(probabilities, np.float64)
    known = ~np.isnan(targets)
    return targets[known], probabilities[known]


def _wilson(positives: float, n: float) -> tuple[float, float, float]:
    share = positives / n
    centre = (share + _Z95**2 / (2 * n)) / (1 + _Z95**2 / n)
    half = _Z95 / (1 + _Z95**2 / n) * np.sqrt(share * (1 - share) / n + _Z95**2 / (4 * n**2))
    return share, max(centre - half, 0.0), min(centre + half, 1.0)
