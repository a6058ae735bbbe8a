"""Free-response ROC: the share of aneurysms found against false positives per scan (Bunch et al. 1977).

Points and candidates are in patient mm. A candidate hits a point within max(5 mm, the aneurysm's radius). A point
counts once, by its strongest hit; further hits are neither true nor false; a candidate that hits nothing is a false
positive, unless it hits an ignored place, such as a treated aneurysm: then it is nothing at all.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aneurysm_ray.labels import PRESENT
from aneurysm_ray.learning.bootstrap import DRAWS, interval, patient_counts, reaching
from aneurysm_ray.learning.metrics import patients_of

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per scan at which sensitivity is reported."""
HIT_MM = 5.0
"""A candidate this near to a point hits it, however small the aneurysm."""
_MM = ["x_mm", "y_mm", "z_mm"]
_DRAWS_AT_A_TIME = 100


@dataclass(frozen=True, eq=False)
class Froc:
    """Sensitivity against false positives per scan, and what it was measured on."""

    table: pd.DataFrame
    """A row for each of RATES: fp_per_scan, sensitivity, low, high (95 %, over patients; see `bootstrap.reaching`)."""
    curve: pd.DataFrame
    """fp_per_scan, sensitivity, threshold: every step of the curve, from the highest threshold down."""
    n_points: int
    n_series: int
    n_unmarked: int
    """Positive series without a point: left out, because no candidate in them can be judged."""


def points_mm(volumes: pd.DataFrame, kind: Literal["points", "ignored"] = "points") -> pd.DataFrame:
    """Return series_uid, x_mm, y_mm, z_mm, location, radius_mm (NaN: unknown) of the points of a volumes table, or of
    its ignored places, through its affine."""
    rows = []
    for uid, affine, points in zip(volumes["series_uid"], volumes["affine"], volumes[kind], strict=True):
        matrix = np.asarray(list(affine), np.float64).reshape(4, 4)
        for point in points if points is not None else ():
            position = matrix @ (point["z"], point["y"], point["x"], 1.0)
            radius = point["radius_mm"]
            rows.append((uid, *(float(mm) for mm in position[:3]), point["location"], radius if radius else np.nan))
    return pd.DataFrame(rows, columns=["series_uid", *_MM, "location", "radius_mm"])


def judged(candidates: pd.DataFrame, points: pd.DataFrame, ignored: pd.DataFrame) -> pd.DataFrame:
    """Return the candidates that can be judged: all but those that hit an ignored place and no point."""
    if not len(candidates) or not len(ignored):
        return candidates
    return candidates[~_match(candidates, ignored)[1] | _match(candidates, points)[1]]


def froc(candidates: pd.DataFrame, points: pd.DataFrame, predictions: pd.DataFrame, draws: int = DRAWS) -> Froc:
    """Return the curve over the series of a predictions table (a series without candidates counts as a scan as well).

    candidates: series_uid, x_mm, y_mm, z_mm, probability. points: series_uid, x_mm, y_mm, z_mm and, where known,
    radius_mm. Sensitivity is NaN where there are no points.
    """
    unmarked = (predictions.get(f"target/{PRESENT}", pd.Series(np.nan, predictions.index)) > 0.5) & ~predictions[
        "series_uid"
    ].isin(points["series_uid"])
    scans = predictions[~unmarked]
    row_of = pd.Series(np.arange(len(scans)), index=scans["series_uid"].astype(str))
    points = points[points["series_uid"].isin(row_of.index)]
    candidates = candidates[candidates["series_uid"].isin(row_of.index)]
    found, hits = _match(candidates, points)
    false = candidates[~hits]

    false_scores, false_rows = _descending(false["probability"].to_numpy(np.float64), false["series_uid"].map(row_of))
    point_scores, point_rows = _descending(found, points["series_uid"].map(row_of))
    one = np.ones((1, len(scans)), np.float32)
    value = _sensitivity(false_scores, false_rows, point_scores, point_rows, one)[0]
    patients = np.asarray(patients_of(scans), dtype=str)
    counts = patient_counts(patients, draws).T
    drawn = np.concatenate(
        [
            _sensitivity(false_scores, false_rows, point_scores, point_rows, counts[start : start + _DRAWS_AT_A_TIME])
            for start in range(0, draws, _DRAWS_AT_A_TIME)
        ]
    )
    table = pd.DataFrame({"fp_per_scan": RATES, "sensitivity": value})
    judges = len(np.unique(patients[point_rows]))
    table[["low", "high"]] = [reaching(*interval(drawn[:, rate]), value[rate], judges) for rate in range(len(RATES))]
    curve = _curve(false_scores, point_scores, len(scans))
    return Froc(table, curve, len(points), len(scans), int(unmarked.sum()))


def _match(candidates: pd.DataFrame, points: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the strongest hit of each point (-inf: none), and whether each candidate hits any point."""
    found, hits = np.full(len(points), -np.inf), np.zeros(len(candidates), bool)
    radius = points["radius_mm"] if "radius_mm" in points else pd.Series(np.nan, points.index)
    reach = np.fmax(radius.to_numpy(np.float64, na_value=np.nan), HIT_MM)
    rows_of_series = candidates.groupby("series_uid").indices
    where, positions = candidates[_MM].to_numpy(np.float64), points[_MM].to_numpy(np.float64)
    probabilities = candidates["probability"].to_numpy(np.float64)
    for uid, point_rows in points.groupby("series_uid").indices.items():
        rows = rows_of_series.get(uid)
        if rows is None:
            continue
        distance = np.linalg.norm(where[rows][:, None] - positions[point_rows][None], axis=2)
        near = distance <= reach[point_rows]
        hits[rows] = near.any(axis=1)
        found[point_rows] = np.where(near, probabilities[rows][:, None], -np.inf).max(axis=0)
    return found, hits


def _descending(scores: NDArray[np.float64], rows: pd.Series) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    order = np.argsort(-scores, kind="stable")
    return scores[order], rows.to_numpy(np.int64)[order]


def _sensitivity(
    false_scores: NDArray[np.float64],
    false_rows: NDArray[np.int64],
    point_scores: NDArray[np.float64],
    point_rows: NDArray[np.int64],
    counts: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Return (draws, rates): the highest sensitivity with at most that many false positives; counts (draws, scans)."""
    # The threshold falls from one distinct false score to the next; all false positives of one score come together.
    last_of_score = np.flatnonzero(np.diff(false_scores, append=-np.inf))
    steps = np.append(false_scores[last_of_score], -np.inf)
    result = np.full((len(counts), len(RATES)), np.nan)
    for draw, weight in enumerate(counts):
        false = np.cumsum(weight[false_rows])[last_of_score]
        allowed = np.asarray(RATES) * weight.sum(dtype=np.float64)
        first_excluded = steps[np.searchsorted(false, allowed * (1 + 1e-12), "right")]
        found = np.append(0, np.cumsum(weight[point_rows]))
        if found[-1]:
            result[draw] = found[np.searchsorted(-point_scores, -first_excluded, "left")] / found[-1]
    return result


def _curve(false_scores: NDArray[np.float64], point_scores: NDArray[np.float64], n_series: int) -> pd.DataFrame:
    thresholds = np.unique(np.concatenate([false_scores, point_scores[np.isfinite(point_scores)]]))[::-1]
    return pd.DataFrame(
        {
            "fp_per_scan": np.searchsorted(-false_scores, -thresholds, "right") / max(n_series, 1),
            "sensitivity": np.searchsorted(-point_scores, -thresholds, "right") / max(len(point_scores), 1),
            "threshold": thresholds,
        }
    )
