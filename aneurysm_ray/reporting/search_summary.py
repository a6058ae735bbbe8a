"""A search in plain words: what was searched, what won, by how much, and how sure that is."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from aneurysm_ray.errors import RequestError
from aneurysm_ray.learning import metrics
from aneurysm_ray.learning.bootstrap import Score
from aneurysm_ray.reporting import words
from aneurysm_ray.reporting.page import Tile, cell
from aneurysm_ray.reporting.search_data import PARAM, SearchData


@dataclass(frozen=True, eq=False)
class Duel:
    """The best trial against the default one, by their predictions of the same series."""

    best: int
    default: int
    difference: dict[str, Score]
    """Best minus default, by `metrics.difference`; empty where predictions are missing."""
    n: int
    """Series that both predicted."""


def duel(search: SearchData) -> Duel | None:
    """Hold the best trial against the default; None when either is missing or they are the same."""
    best, default = search.best, search.default
    if best is None or default is None or best == default:
        return None
    tables = search.predictions(default), search.predictions(best)
    if tables[0] is None or tables[1] is None:
        return Duel(best, default, {}, 0)
    try:
        found = metrics.difference(tables[0], tables[1])
    except RequestError:
        return Duel(best, default, {}, 0)
    return Duel(best, default, found, len(set(tables[0]["series_uid"]) & set(tables[1]["series_uid"])))


def value_of(search: SearchData, trial: int | None) -> float:
    """Return a trial's value, NaN where it has none."""
    row = search.trials.loc[search.trials["trial"] == trial, "value"]
    return float(row.iloc[0]) if len(row) else float("nan")


def sentences(search: SearchData, importance: Mapping[str, pd.DataFrame], found: Duel | None) -> tuple[str, ...]:
    """Say what was searched, what won, by how much and how sure."""
    states = search.trials["state"].value_counts()
    counts = [f"{n} {word}" for state, word in _ENDINGS.items() if (n := int(states.get(state, 0)))]
    metric = search.metrics[0]
    result = [
        f"{words.count(len(search.trials), 'trial')} searched {words.listed(search.keys)} for the "
        f"{'highest' if search.signs[0] > 0 else 'lowest'} {metric}: {words.listed(counts)}."
    ]
    if not search.summary or search.summary.get("interrupted"):
        ended = int(search.trials["state"].isin(("COMPLETE", "PRUNED", "FAIL")).sum())
        result.append(
            f"The search has not finished: {ended} of {words.count(search.config.tune.trials, 'trial')} have ended. "
            "Its command with --resume goes on with it."
        )
    best = search.best
    if best is None:
        return (*result, "No trial has run to its end with a value yet, so nothing has won.")
    row = search.trials[search.trials["trial"] == best].iloc[0]
    settings = words.listed([f"{key} = {cell(row[PARAM + key], None)}" for key in search.keys])
    result.append(f"Trial {best} is the best, with {metric} {value_of(search, best):.4f}: {settings}.")
    result += _how_sure(search, found)
    result += _what_mattered(importance)
    result.append(_beware(search))
    return tuple(result)


def _what_mattered(importance: Mapping[str, pd.DataFrame]) -> list[str]:
    """Say what mattered most, and whether that can be told from what came second."""
    if not importance:
        return []
    subject, table = next(iter(importance.items()))
    key, share, low, high = table.iloc[0].to_list()
    text = (
        f"What mattered most for the {subject} is {key}: it explains {words.percent(share)} of the differences "
        f"between trials (between {words.percent(low)} and {words.percent(high)} over resampled trials)"
    )
    if len(table) > 1 and float(table["high"].iloc[1]) > low:
        return [f"{text}, though that cannot be told for sure from {table['key'].iloc[1]}."]
    return [f"{text}."]


_ENDINGS = {"COMPLETE": "ran to their end", "PRUNED": "stopped early", "FAIL": "failed", "RUNNING": "unfinished"}


def _how_sure(search: SearchData, found: Duel | None) -> list[str]:
    best, default = search.best, search.default
    if best == default:
        return ["The best trial is the default configuration: the search found nothing better."]
    if found is None:
        return ["There is no trial of the default configuration to hold it against."]
    gap = value_of(search, best) - value_of(search, default)
    state = str(search.trials.loc[search.trials["trial"] == default, "state"].iloc[0])
    early = ", which was stopped early" if state == "PRUNED" else ""
    text = (
        f"The default configuration (trial {default}{early}) reached {value_of(search, default):.4f}, {gap:+.4f} away."
    )
    if np.isnan(gap):
        text = f"The default configuration (trial {default}) has no value to hold it against."
    if not found.difference:
        return [text, "The two left no predictions of the same series, so there is no interval of the difference."]
    score = found.difference["score"]
    sure = "excludes zero" if score.low > 0 or score.high < 0 else "holds zero, so it may be chance"
    return [
        text,
        f"On the same {words.count(found.n, 'series', 'series')}, the weighted score differs by {score.value:+.3f}, "
        f"95 % interval [{score.low:+.3f}, {score.high:+.3f}] over patients: the interval {sure}.",
    ]


def _beware(search: SearchData) -> str:
    train = search.summary.get("train")
    text = (
        f"The best of {len(search.trials)} is picked by the number it is reported with, so that number flatters; "
        "the interval does not know of the picking."
    )
    if not isinstance(train, dict) or train.get("score", {}).get("value") is None:
        return f"{text} Train best.toml on all folds: those that did not choose it have a score that does not flatter."
    told = words.picked(search.config.tune.folds, train.get("unpicked"))
    return f"{text} Trained anew on all folds it scores {Score.of(train['score'])} out of fold. {told}"


def tiles(search: SearchData, found: Duel | None) -> tuple[Tile, ...]:
    """Return the numbers worth seeing first."""
    best = search.best
    hours = float(search.trials["gpu_seconds" if search.uses_gpus else "seconds"].astype(float).sum()) / 3600
    states = search.trials["state"].value_counts()
    epochs = int(search.trials["epochs"].astype(float).fillna(0).sum())
    full = search.config.optim.epochs * len(search.config.tune.folds) * len(search.trials)
    result = [
        Tile(f"Best {search.metrics[0]}", cell(value_of(search, best)), "–" if best is None else f"trial {best}"),
        Tile("Default", cell(value_of(search, search.default)), f"trial {cell(search.default)}"),
        Tile("Trials", str(len(search.trials)), f"{states.get('PRUNED', 0)} stopped, {states.get('FAIL', 0)} failed"),
        Tile("Epochs", f"{epochs:,}", f"{words.percent(epochs / full)} of full trials" if full else ""),
        Tile("GPU time" if search.uses_gpus else "Trial time", words.duration(hours * 3600), "over all trials"),
    ]
    if found is not None and found.difference:
        score = found.difference["score"]
        result.insert(2, Tile("Best − default", f"{score.value:+.3f}", f"[{score.low:+.3f}, {score.high:+.3f}] paired"))
    return tuple(result)
