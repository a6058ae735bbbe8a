"""A training run in plain words and in a row of tiles."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from aneurysm_ray.labels import PRESENT
from aneurysm_ray.learning import metrics
from aneurysm_ray.learning.bootstrap import Score
from aneurysm_ray.learning.froc import Froc
from aneurysm_ray.reporting import words
from aneurysm_ray.reporting.page import Tile
from aneurysm_ray.reporting.run_data import RunData
from aneurysm_ray.reporting.run_tests import FEW_POSITIVES


@dataclass(frozen=True, eq=False)
class Results:
    """The numbers that a run's page speaks of more than once."""

    statistics: dict[str, Any]
    """`metrics.summarise` of the out-of-fold predictions."""
    labels: pd.DataFrame
    froc: Froc | None
    """None where no points are known."""
    score: Score
    present: Score

    @property
    def at_one_false_positive(self) -> Score:
        """Sensitivity per aneurysm at one false positive per scan; NaN where no points are known."""
        if self.froc is None:
            return Score(np.nan, np.nan, np.nan)
        row = self.froc.table[self.froc.table["fp_per_scan"] == 1.0].iloc[0]
        return Score(float(row["sensitivity"]), float(row["low"]), float(row["high"]))


def results(run: RunData, found: Froc | None) -> Results:
    """Compute a run's numbers from its predictions."""
    statistics = metrics.summarise(run.predictions, run.config.stage)
    found = found if run.config.stage == "lesions" else None
    labels = pd.DataFrame(statistics["labels"]).astype({"auc": float, "low": float, "high": float})
    score, present = (Score.of(statistics[name]) for name in ("score", "auc_present"))
    return Results(statistics, labels, found if found is not None and found.n_points else None, score, present)


def sentences(run: RunData, found: Results) -> tuple[str, ...]:
    """Say how good the run is, how sure that is, and what to beware of."""
    statistics, labels = found.statistics, found.labels
    folds = run.predictions["fold"].nunique()
    result = [
        f"{words.count(len(run.predictions), 'series', 'series')} of "
        f"{words.count(statistics['n_patients'], 'patient')}, {statistics['n_positive']} with an aneurysm, "
        f"were scored by models that had not seen them ({words.count(folds, 'fold')}).",
        *_dealt(run),
    ]
    if not np.isnan(found.score.value):
        result.append(
            f"The weighted score is {words.interval(found.score)}, where 0.5 is chance and 1 is perfect; for the "
            f"question whether there is any aneurysm, the AUC is {words.interval(found.present)}. "
            "Brackets hold the 95 % interval over patients."
        )
    if found.froc is not None:
        at_one = found.at_one_false_positive
        share, low, high = (words.percent(part) for part in (at_one.value, at_one.low, at_one.high))
        result.append(
            f"Allowed one false alarm per scan, it points to {share} [{low}, {high}] "
            f"of the {found.froc.n_points} marked aneurysms."
        )
    known = labels[(labels["n_positive"] >= FEW_POSITIVES) & labels["auc"].notna() & (labels["label"] != PRESENT)]
    if len(known) > 1:
        ranked = known.sort_values("auc")[["label", "auc"]].to_numpy()
        (worst, worst_auc), (best, best_auc) = ranked[0], ranked[-1]
        result.append(
            f"Among locations with at least {FEW_POSITIVES} positives it does best at the {best} ({best_auc:.3f}) "
            f"and worst at the {worst} ({worst_auc:.3f})."
        )
    if run.config.control == "shuffle":
        inside = found.present.low <= 0.5 <= found.present.high
        result.append(
            "This is the shuffled-label control: an honest pipeline gives 0.5, and the interval of present AUC "
            f"{'holds' if inside else 'does NOT hold'} it."
        )
    if run.config.chosen.folds:
        result.append(words.picked(run.config.chosen.folds, metrics.unpicked(run.predictions, run.config)))
    if statistics["note"]:
        result.append(statistics["note"])
    if not run.finished:
        done = ", ".join(
            f"fold {fold} {len(table)} of {run.config.optim.epochs}" for fold, table in run.metrics.items()
        )
        result.append(
            f"The run has not finished; these are its folds' latest epochs ({done}). Its command with --resume goes on "
            "with it."
        )
    return tuple(result)


def _dealt(run: RunData) -> list[str]:
    """Say who dealt the folds, where it was not chance."""
    if run.config.folds.by == "site" and "site" in run.predictions:
        held = run.predictions.groupby("fold")["site"].agg(lambda sites: words.listed(sorted(set(map(str, sites)))))
        out = ", ".join(f"{sites} by fold {fold}" for fold, sites in held.items())
        return [f"Each fold held out whole sites, of which its model had seen no patient: {out}."]
    if run.config.folds.file:
        return [f"Folds are those of {Path(run.config.folds.file).name}."]
    return []


def tiles(run: RunData, found: Results) -> tuple[Tile, ...]:
    """Return the numbers worth seeing first."""
    mean, score, present = found.statistics["score_mean_over_folds"], found.score, found.present
    judged = [
        Tile("Weighted score", f"{score.value:.3f}", f"[{score.low:.3f}, {score.high:.3f}] pooled"),
        Tile("Mean over folds", "–" if mean is None else f"{mean:.3f}", "of each fold's own score"),
        Tile("Present AUC", f"{present.value:.3f}", f"[{present.low:.3f}, {present.high:.3f}]"),
    ]
    if run.config.stage == "vessels":
        dices = [table["val/dice"].iloc[-1] for table in run.metrics.values() if len(table)]
        judged = [Tile("Vessels' Dice", f"{np.mean(dices):.3f}", "with their masks, mean of the folds")]
    result = [
        *judged,
        Tile("Series", f"{len(run.predictions):,}", f"{found.statistics['n_positive']} positive"),
    ]
    if found.froc is not None:
        at_one = found.at_one_false_positive
        note = f"[{at_one.low:.2f}, {at_one.high:.2f}] at 1 FP per scan"
        result.append(Tile("Sensitivity", f"{at_one.value:.2f}", note))
    if run.seconds is not None:
        gpu = run.provenance.get("hardware", {}).get("gpu", "")
        result.append(Tile("Time", words.duration(run.seconds), str(gpu)))
    return tuple(result)
