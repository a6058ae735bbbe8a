"""How much of the differences between trials each parameter explains: fANOVA (Hutter, Hoos and Leyton-Brown 2014)."""

import warnings
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from aneurysm_ray.reporting import words
from aneurysm_ray.reporting.search_data import PARAM, SearchData

REPEATS = 8
"""Forests grown: each from another seed and on another resample of the trials."""
FEWEST = 5
"""Trials below which importance would be a guess."""
ENOUGH = 20
"""Complete trials from which their final scores say more than the early scores of all."""
_TREES = 32


def importances(search: SearchData, values: "pd.Series[float]") -> pd.DataFrame:
    """Return a row per key that varied: key, importance (mean over forests), low, high (their range), best first.

    values: what to explain, by trial number. Empty when there are too few trials or nothing varied.
    """
    trials = search.trials.set_index("trial").loc[values.dropna().index]
    drawn = {key: _distribution(search, key, trials[PARAM + key]) for key in search.keys}
    space = {key: found for key, found in drawn.items() if found is not None}
    values = values.loc[trials.index]
    if len(trials) < FEWEST or not space or values.nunique() < 2:
        return pd.DataFrame(columns=["key", "importance", "low", "high"])
    rng = np.random.default_rng(0)
    repeats = []
    for seed in range(REPEATS):
        rows = rng.integers(0, len(trials), len(trials)) if seed else np.arange(len(trials))
        if values.iloc[rows].nunique() > 1:
            repeats.append(_fanova(search, trials.iloc[rows], values.iloc[rows], space, seed))
    table = pd.DataFrame(repeats, columns=list(space)).fillna(0.0)
    result = pd.DataFrame(
        {"key": table.columns, "importance": table.mean(), "low": table.min(), "high": table.max()}
    ).sort_values("importance", ascending=False)
    return result.reset_index(drop=True)


def _fanova(
    search: SearchData, trials: pd.DataFrame, values: pd.Series, space: dict[str, BaseDistribution], seed: int
) -> dict[str, float]:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(direction="maximize" if search.signs[0] > 0 else "minimize")
        for row, value in zip(trials.to_dict("records"), values, strict=True):
            params = {key: _plain(search, key, row[PARAM + key]) for key in space}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=float(value)))
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=_TREES, seed=seed)
        with warnings.catch_warnings():
            # A resample may hold one value of a parameter only; its importance is then 0, as it should be.
            warnings.simplefilter("ignore")
            return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
    finally:
        optuna.logging.set_verbosity(verbosity)


def _distribution(search: SearchData, key: str, column: pd.Series) -> BaseDistribution | None:
    """Return what the values seen of a key were drawn from, or None for a key that did not vary.

    Taken from the values and not from the space, since the default configuration may lie outside it.
    """
    if column.nunique() < 2:
        return None
    if not search.is_number(key):
        return CategoricalDistribution(sorted(column.astype(str).unique()))
    low, high = float(column.min()), float(column.max())
    return FloatDistribution(low, high, log=search.is_log(key) and low > 0)


def _plain(search: SearchData, key: str, value: Any) -> Any:
    return float(value) if search.is_number(key) else str(value)


def subjects(search: SearchData) -> dict[str, "pd.Series[float]"]:
    """Return what importance may be asked of, by trial: the final score of complete trials, and an early score of all.

    Few trials of a search that stops early are complete; after the first rung all can still be compared. The final
    score comes first where it has at least ENOUGH trials, else what has more of them.
    """
    final = search.complete.set_index("trial")["value"].astype(float)
    result = {f"final score ({len(final)} complete trials)": final}
    grace, metric = search.config.tune.grace_epochs, search.metrics[0]
    if metric in search.curves and len(final) < len(search.trials):
        at_rung = search.curves[search.curves["step"] == grace].drop_duplicates("trial", keep="last")
        early = at_rung.set_index("trial")[metric].astype(float).dropna()
        result[f"score after {words.count(grace, 'epoch')} ({len(early)} trials)"] = early
    if len(final) < ENOUGH:
        return dict(sorted(result.items(), key=lambda item: len(item[1]), reverse=True))
    return result
