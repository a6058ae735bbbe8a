"""The competition's score and the areas under the ROC behind it, each with its interval and its number of positives.

Arrays are (N, 14) in the order of `labels.LABELS`; tables are predictions tables: series_uid, patient, fold, modality,
plane, the 14 labels' probabilities and `target/<label>`. Unknown targets are NaN and left out. A label of which only
one class occurs has no area: it is NaN, and the score goes on with the other labels, their weights made to sum to one.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from aneurysm_ray.config import Config
from aneurysm_ray.errors import RequestError
from aneurysm_ray.labels import LABELS, PRESENT, PRESENT_INDEX, SCORE_WEIGHTS
from aneurysm_ray.learning.bootstrap import (
    DRAWS,
    Score,
    interval,
    judges_of_area,
    patient_counts,
    reaching,
    weighted_aucs,
)

Floats = NDArray[np.float64]

OF_VESSELS = (
    "The stage `vessels` learns no aneurysm, so there is no score: it is judged by how vessels overlap with their "
    "masks (Dice, in every fold's metrics), and is there for `--init`, which carries it into detection."
)
"""Note of a run that was trained on vessels alone."""


def auc(targets: ArrayLike, probabilities: ArrayLike) -> float:
    """Return the area under the ROC of one label: `sklearn.metrics.roc_auc_score`, but NaN where one class is absent.

    targets (N,) are 0, 1 or NaN for unknown. Raises RequestError for a probability that is not a number.
    """
    column = np.asarray(targets, np.float64)[:, None], np.asarray(probabilities, np.float64)[:, None]
    return float(label_aucs(*column)[0])


def label_aucs(targets: ArrayLike, probabilities: ArrayLike) -> Floats:
    """Return (L,): the area under the ROC of each column, NaN where it is not defined."""
    targets, probabilities = np.asarray(targets, np.float64), np.asarray(probabilities, np.float64)
    check_numbers(probabilities)
    return weighted_aucs(targets, probabilities, np.ones((len(targets), 1), np.float32))[:, 0]


def combine(aucs: NDArray[Any]) -> Floats:
    """Return the score (...) of areas (..., 14): 13 parts present, 1 part each location, over those defined."""
    weights = np.where(np.isnan(aucs), 0.0, SCORE_WEIGHTS)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(np.isnan(aucs), 0.0, aucs * weights).sum(-1) / weights.sum(-1), np.float64)


def weighted_score(targets: ArrayLike, probabilities: ArrayLike, *, strict: bool = False) -> float:
    """Return the weighted score of (N, 14) targets and probabilities.

    Raises RequestError when a probability is not a number and, if strict, when a label has one class only (where the
    competition's own metric stops as well).
    """
    aucs = label_aucs(targets, probabilities)
    if strict and np.isnan(aucs).any():
        label = int(np.flatnonzero(np.isnan(aucs))[0])
        column = np.asarray(targets, np.float64)[:, label]
        known = column[~np.isnan(column)]
        raise RequestError(
            f"{LABELS[label]}: {int((known > 0.5).sum())} of {len(known)} known targets are positive; "
            "the strict score needs both classes for every label"
        )
    return float(combine(aucs))


def check_numbers(probabilities: NDArray[Any]) -> None:
    """Raise RequestError when a probability is not a number."""
    if bad := int(np.isnan(probabilities).any(axis=1).sum()):
        raise RequestError(f"{bad} of {len(probabilities)} series have a probability that is not a number")


def targets_of(predictions: pd.DataFrame) -> Floats:
    """Return a predictions table's targets (N, 14), NaN where unknown; all NaN where the table has none."""
    columns = [f"target/{label}" for label in LABELS]
    return predictions.reindex(columns=columns).to_numpy(np.float64, na_value=np.nan)


def probabilities_of(predictions: pd.DataFrame) -> Floats:
    """Return a predictions table's probabilities (N, 14). Raises RequestError when a column is missing."""
    if missing := [label for label in LABELS if label not in predictions]:
        raise RequestError(f"the predictions have no column {missing[0]!r}; they need all 14 labels")
    return predictions.loc[:, list(LABELS)].to_numpy(np.float64, na_value=np.nan)


def patients_of(predictions: pd.DataFrame) -> NDArray[np.str_]:
    """Return each series' patient; a series whose patient is unknown stands for its own."""
    own = predictions["series_uid"].astype(str)
    known = predictions["patient"].astype("string") if "patient" in predictions else pd.Series(pd.NA, own.index)
    return np.asarray(known.fillna(own), dtype=str)


def bootstrap(targets: ArrayLike, probabilities: ArrayLike, patients: ArrayLike, draws: int = DRAWS) -> Score:
    """Return the weighted score with its 95 % interval over patients."""
    targets, probabilities = np.asarray(targets, np.float64), np.asarray(probabilities, np.float64)
    drawn = weighted_aucs(targets, probabilities, patient_counts(patients, draws))
    return _score_of(targets, weighted_score(targets, probabilities), drawn, patients)


def per_label(predictions: pd.DataFrame, draws: int = DRAWS) -> pd.DataFrame:
    """Return a row per label: label, auc, low, high, n (known targets), n_positive."""
    targets, probabilities = targets_of(predictions), probabilities_of(predictions)
    patients = patients_of(predictions)
    return _label_table(
        targets, probabilities, weighted_aucs(targets, probabilities, patient_counts(patients, draws)), patients
    )


def per_fold(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return a row per fold: fold, score, auc_present, n, n_positive; the mean over folds is the score's mean."""
    columns = ["fold", "score", "auc_present", "n", "n_positive"]
    rows = []
    for fold, part in predictions.groupby("fold", sort=True) if "fold" in predictions else ():
        aucs = label_aucs(targets_of(part), probabilities_of(part))
        positive = int((targets_of(part)[:, PRESENT_INDEX] > 0.5).sum())
        rows.append((int(float(str(fold))), float(combine(aucs)), float(aucs[PRESENT_INDEX]), len(part), positive))
    return pd.DataFrame(rows, columns=columns)


def subgroups(predictions: pd.DataFrame, diameters_mm: pd.Series | None = None, draws: int = DRAWS) -> pd.DataFrame:
    """Return a row per subgroup: group, value, n, n_positive, score, and auc, low, high of Aneurysm Present.

    Groups are modality, plane, site where it is known and, where `diameters_mm` (by series_uid, the largest aneurysm of
    each series) is given, size: the positives of one size against all negatives.
    """
    masks = [
        (group, str(value), (predictions[group] == value).to_numpy(bool, na_value=False))
        for group in ("modality", "plane", "site")
        if group in predictions
        for value in sorted(predictions[group].dropna().unique())
        if value != ""
    ]
    targets, probabilities, patients = targets_of(predictions), probabilities_of(predictions), patients_of(predictions)
    present = targets[:, PRESENT_INDEX]
    if diameters_mm is not None:
        diameters = predictions["series_uid"].map(diameters_mm).to_numpy(np.float64, na_value=np.nan)
        for low, high, name in ((0, 3, "< 3 mm"), (3, 5, "3–5 mm"), (5, 7, "5–7 mm"), (7, np.inf, "≥ 7 mm")):
            masks.append(("size", name, (present <= 0.5) | ((diameters >= low) & (diameters < high))))
    rows = []
    for group, value, mask in masks:
        part = targets[mask], probabilities[mask]
        aucs = label_aucs(*part)
        column = slice(PRESENT_INDEX, PRESENT_INDEX + 1)
        drawn = weighted_aucs(part[0][:, column], part[1][:, column], patient_counts(patients[mask], draws))
        positive = int((part[0][:, PRESENT_INDEX] > 0.5).sum())
        score = float(combine(aucs)) if group != "size" else float("nan")
        area = float(aucs[PRESENT_INDEX])
        bounds = reaching(*interval(drawn[0]), area, judges_of_area(part[0][:, PRESENT_INDEX], patients[mask]))
        rows.append((group, value, int(mask.sum()), positive, score, area, *bounds))
    return pd.DataFrame(rows, columns=["group", "value", "n", "n_positive", "score", "auc", "low", "high"])


def difference(first: pd.DataFrame, second: pd.DataFrame, draws: int = DRAWS) -> dict[str, Score]:
    """Return second minus first on the series they share, for `score`, `auc_present` and each label.

    Both tables are resampled by the same patients, so what is common to them cancels (a paired bootstrap).
    Raises RequestError when they share no series.
    """
    shared = sorted(set(first["series_uid"]) & set(second["series_uid"]))
    if not shared:
        raise RequestError("the two tables of predictions share no series; a paired comparison needs the same set")
    tables = [
        table.drop_duplicates("series_uid").set_index("series_uid", drop=False).loc[shared] for table in (first, second)
    ]
    targets = targets_of(tables[0])
    targets = np.where(np.isnan(targets), targets_of(tables[1]), targets)
    counts = patient_counts(patients_of(tables[0]), draws)
    values = [label_aucs(targets, probabilities_of(table)) for table in tables]
    drawn = [weighted_aucs(targets, probabilities_of(table), counts) for table in tables]
    score = float(combine(values[1]) - combine(values[0]))
    result = {"score": Score(score, *interval(combine(drawn[1].T) - combine(drawn[0].T)))}
    for name, index in (("auc_present", PRESENT_INDEX), *((label, i) for i, label in enumerate(LABELS))):
        result[name] = Score(float(values[1][index] - values[0][index]), *interval(drawn[1][index] - drawn[0][index]))
    return result


def summarise(predictions: pd.DataFrame, stage: str = "lesions", draws: int = DRAWS) -> dict[str, Any]:
    """Return the numbers of a predictions table for `summary.json`: plain values, None where not defined.

    `score` is pooled over all series, `score_mean_over_folds` the mean of the folds' own; `left_out` names the labels
    that have one class only, and `note` says so in words. The stage "vessels" learns none of them.
    """
    targets, probabilities = targets_of(predictions), probabilities_of(predictions)
    check_numbers(probabilities)
    patients = patients_of(predictions)
    drawn = weighted_aucs(targets, probabilities, patient_counts(patients, draws))
    labels = _label_table(targets, probabilities, drawn, patients)
    score = _score_of(targets, float(combine(labels["auc"].to_numpy(np.float64))), drawn, patients)
    present = labels.iloc[PRESENT_INDEX]
    left_out = list(labels.loc[labels["auc"].isna(), "label"])
    folds = per_fold(predictions)
    return {
        "n": len(predictions),
        "n_patients": len(set(patients)),
        "n_positive": int(present["n_positive"]),
        "score": score.as_dict(),
        "score_mean_over_folds": _plain(folds["score"].mean()) if len(folds) else None,
        "auc_present": Score(present["auc"], present["low"], present["high"]).as_dict(),
        "labels": _records(labels),
        "folds": _records(folds),
        "left_out": left_out,
        "note": _note(left_out) if stage == "lesions" else OF_VESSELS,
    }


def unpicked(predictions: pd.DataFrame, config: Config) -> dict[str, Any] | None:
    """Return `folds` and `score` of the folds that did not choose the settings of a run; None where there are none.

    Where the patients were dealt otherwise than in the search, those that chose lie in all folds.
    """
    chosen = config.chosen
    kept = predictions[~predictions["fold"].isin(chosen.folds)]
    if (chosen.count, chosen.seed) != (config.folds.count, config.folds.seed) or kept.empty:
        return None
    return {"folds": sorted(int(fold) for fold in kept["fold"].unique()), "score": summarise(kept)["score"]}


def _score_of(targets: Floats, score: float, drawn: Floats, patients: ArrayLike) -> Score:
    """Return the weighted score with its interval; where it is 1, by who judges Aneurysm Present, half of it."""
    judges = judges_of_area(targets[:, PRESENT_INDEX], patients)
    return Score(score, *reaching(*interval(combine(drawn.T)), score, judges))


def _label_table(targets: Floats, probabilities: Floats, drawn: Floats, patients: ArrayLike) -> pd.DataFrame:
    aucs = label_aucs(targets, probabilities)
    bounds = [
        reaching(*interval(row), area, judges_of_area(column, patients))
        for row, area, column in zip(drawn, aucs, targets.T, strict=True)
    ]
    return pd.DataFrame(
        {
            "label": LABELS,
            "auc": aucs,
            "low": [low for low, _ in bounds],
            "high": [high for _, high in bounds],
            "n": (~np.isnan(targets)).sum(axis=0),
            "n_positive": (targets > 0.5).sum(axis=0),
        }
    )


def _note(left_out: list[str]) -> str:
    if not left_out:
        return ""
    if len(left_out) == len(LABELS):
        return "No label has both positive and negative series, so there is no score."
    names = ", ".join(left_out)
    missing = " Without Aneurysm Present it is a mean over locations only." if PRESENT in left_out else ""
    return f"Left out of the score, because only one class occurs: {names}. The other weights sum to one.{missing}"


def _plain(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else float(value)
    return int(value) if isinstance(value, np.integer) else value


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): _plain(value) for key, value in row.items()} for row in frame.to_dict("records")]
