"""Several searches side by side, the first being what the others are held against."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from aneurysm_ray.errors import RequestError
from aneurysm_ray.learning import metrics
from aneurysm_ray.learning.bootstrap import Score
from aneurysm_ray.reporting import drawing, figures_search, figures_space, importance, words
from aneurysm_ray.reporting.compare_runs import names
from aneurysm_ray.reporting.page import Chart, Page, Section, Table, Tile, cell
from aneurysm_ray.reporting.search_data import PARAM, SearchData, read_search
from aneurysm_ray.reporting.search_summary import value_of


def page(folders: Sequence[Path]) -> Page:
    """Read searches and return the page that compares them. Raises RequestError when their metrics differ."""
    searches = dict(zip(names(folders), map(read_search, folders), strict=True))
    first = next(iter(searches))
    metric = searches[first].metrics[0]
    for name, search in searches.items():
        if search.metrics[0] != metric:
            raise RequestError(
                f"{first} optimises {metric}, {name} {search.metrics[0]}; compare searches of one metric"
            )
    return Page(
        title=" · ".join(searches),
        kind="comparison of searches",
        subtitle=f"by {metric}, held against {first}",
        summary=_sentences(searches, metric),
        tiles=tuple(
            Tile(name, cell(value_of(search, search.best)), f"best of {words.count(len(search.trials), 'trial')}")
            for name, search in searches.items()
        ),
        sections=(_progress(searches, metric), _winners(searches)),
    )


def _sentences(searches: Mapping[str, SearchData], metric: str) -> tuple[str, ...]:
    first, *others = searches
    values = {name: value_of(search, search.best) for name, search in searches.items()}
    known = {name: value for name, value in values.items() if not np.isnan(value)}
    if not known:
        return ("No search has a complete trial yet.",)
    best = max(known, key=lambda name: searches[name].signs[0] * known[name])
    result = [
        f"Of {words.count(len(searches), 'search', 'searches')}, {best} found the best {metric}: {known[best]:.4f}."
    ]
    for name in others:
        gap = paired(searches[first], searches[name])
        if gap is None:
            result.append(f"The best trials of {name} and {first} left no predictions of the same series.")
            continue
        verdict = "so it may be chance" if gap.low <= 0 <= gap.high else "which is more than chance"
        result.append(
            f"The best trial of {name} differs from that of {first} by {gap.value:+.3f} "
            f"[{gap.low:+.3f}, {gap.high:+.3f}] in weighted score on the same series, {verdict}."
        )
    return (*result, "Bests are picked by the numbers they are reported with; the more trials, the more that flatters.")


def paired(first: SearchData, other: SearchData) -> Score | None:
    """Return the weighted score of other's best trial minus first's; None where predictions are missing."""
    if first.best is None or other.best is None:
        return None
    tables = first.predictions(first.best), other.predictions(other.best)
    if tables[0] is None or tables[1] is None:
        return None
    try:
        return metrics.difference(tables[0], tables[1])["score"]
    except RequestError:
        return None


def _progress(searches: Mapping[str, SearchData], metric: str) -> Section:
    by_trials, by_hours, shares = go.Figure(), go.Figure(), go.Figure()
    unit = "GPU-hours" if all(search.uses_gpus for search in searches.values()) else "trial-hours"
    most = 0
    for index, (name, search) in enumerate(searches.items()):
        history = figures_search.history(search)
        most = max(most, len(history))
        look: dict[str, Any] = {
            "mode": "lines+markers",
            "name": name,
            "marker": drawing.marker(index),
            "line": {"color": drawing.colour(index), "width": 2.5, "shape": "hv"},
        }
        by_trials.add_scatter(x=np.arange(1, len(history) + 1), y=history["best"], **look)
        by_hours.add_scatter(x=history["hours"], y=history["best"], **look)
        values = figures_space.scored(search)["value"].sort_values()
        shares.add_scatter(x=values, y=np.arange(1, len(values) + 1) / max(len(values), 1), **look)
    above = drawing.legend_above()
    blocks = (
        Chart(
            "history",
            "Best so far, by trials",
            "Only complete trials set a best.",
            drawing.layout(by_trials, "trials ended", metric, xaxis=drawing.counting(most), legend=above),
        ),
        Chart(
            "cost",
            f"Best so far, by {unit}",
            "Which search bought more for its hours.",
            drawing.layout(by_hours, f"{unit} spent", metric, legend=above),
        ),
        Chart(
            "edf",
            "Share of trials up to each value",
            "A random search is the baseline to beat; stopped trials count with their last value.",
            drawing.layout(shares, metric, "share of trials", legend=above),
        ),
        Chart("importance", "What mattered", "fANOVA, mean over forests.", *_importances(searches)),
    )
    return Section("progress", "Which got further for less", "", blocks)


def _importances(searches: Mapping[str, SearchData]) -> tuple[go.Figure | None, str]:
    figure = go.Figure()
    for index, (name, search) in enumerate(searches.items()):
        subject, values = next(iter(importance.subjects(search).items()))
        table = importance.importances(search, values)
        if len(table):
            look = drawing.filling(index)
            bars = {"x": table["importance"], "y": table["key"], "orientation": "h", "marker": look}
            figure.add_bar(**bars, name=f"{name}: {subject}")
    layout = {"yaxis": {"autorange": "reversed", "type": "category"}, "legend": drawing.legend_above()}
    drawn = drawing.layout(figure, "share of variance explained", "", **layout) if figure.data else None
    return drawn, "Importance needs more complete trials that differ."


def _winners(searches: Mapping[str, SearchData]) -> Section:
    keys = sorted({key for search in searches.values() for key in search.keys})
    rows = []
    for name, search in searches.items():
        states = search.trials["state"].value_counts()
        best = search.trials[search.trials["trial"] == search.best]
        row = {
            "search": name,
            "best": value_of(search, search.best),
            "default": value_of(search, search.default),
            "trials": len(search.trials),
            "complete": int(states.get("COMPLETE", 0)),
            "stopped early": int(states.get("PRUNED", 0)),
            "failed": int(states.get("FAIL", 0)),
            "epochs": int(search.trials["epochs"].astype(float).fillna(0).sum()),
            "hours": float(search.trials["seconds"].astype(float).sum()) / 3600,
        }
        for key in keys:
            row[key] = best[PARAM + key].iloc[0] if len(best) and PARAM + key in best else None
        rows.append(row)
    table = Table.of("winners-table", "The searches and their best trials", "", pd.DataFrame(rows), digits=None)
    return Section("winners", "What they found", "", (table,))
