"""Several training runs side by side, the first being what the others are held against."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from aneurysm_ray import location, overrides
from aneurysm_ray.errors import RequestError
from aneurysm_ray.labels import LABELS, PRESENT, PRESENT_INDEX, SHORT_NAMES
from aneurysm_ray.learning import curves, froc, metrics
from aneurysm_ray.learning.bootstrap import Score
from aneurysm_ray.reporting import drawing, figures_run, provenance_blocks, run_summary, words
from aneurysm_ray.reporting.page import Chart, Column, Page, Section, Table, Tile
from aneurysm_ray.reporting.run_data import RunData, read_run
from aneurysm_ray.reporting.run_summary import Results


def page(folders: Sequence[Path]) -> Page:
    """Read training runs and return the page that compares them. Raises RequestError for a run without predictions."""
    runs = dict(zip(names(folders), map(read_run, folders), strict=True))
    for name, run in runs.items():
        if run.predictions.empty:
            raise RequestError(f"{name} has no predictions yet; compare runs that have finished an epoch")
    found = {name: _results(run) for name, run in runs.items()}
    first = next(iter(runs))
    gaps = {name: _difference(runs[first], run) for name, run in runs.items() if name != first}
    return Page(
        title=" · ".join(runs),
        kind="comparison of runs",
        subtitle=f"held against {first}",
        summary=_sentences(first, runs, found, gaps),
        tiles=tuple(_tile(name, result.score) for name, result in found.items()),
        sections=(_scores(runs, found, gaps, first), _learning(runs), _settings(runs)),
    )


def _tile(name: str, score: Score) -> Tile:
    return Tile(name, f"{score.value:.3f}", f"[{score.low:.3f}, {score.high:.3f}] score")


def names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell the folders apart."""
    parts = [location.absolute(folder).parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        short = ["/".join(part[-depth:]) for part in parts]
        if len(set(short)) == len(short):
            return short
    raise RequestError(f"{folders[0]} is named twice; a comparison needs different runs")


def _results(run: RunData) -> Results:
    curve = froc.froc(run.candidates, run.points, run.predictions) if len(run.points) else None
    return run_summary.results(run, curve)


def _difference(first: RunData, other: RunData) -> tuple[dict[str, Score], int]:
    """Return other minus first and the number of series both predicted; an empty dict where they share none."""
    shared = len(set(first.predictions["series_uid"]) & set(other.predictions["series_uid"]))
    return (metrics.difference(first.predictions, other.predictions) if shared else {}), shared


def _sentences(
    first: str,
    runs: Mapping[str, RunData],
    found: Mapping[str, Results],
    gaps: Mapping[str, tuple[dict[str, Score], int]],
) -> tuple[str, ...]:
    values = {name: np.nan_to_num(results.score.value, nan=-1) for name, results in found.items()}
    best = [name for name in found if values[name] == max(values.values())]
    have = "has" if len(best) == 1 else "have"
    score = found[best[0]].score
    result = [f"Of {words.count(len(runs), 'run')}, {words.listed(best)} {have} the highest weighted score: {score}."]
    for name, (gap, shared) in gaps.items():
        if not gap:
            result.append(f"{name} and {first} scored no series in common, so they cannot be compared pairwise.")
            continue
        score = gap["score"]
        verdict = "better" if score.low > 0 else "worse" if score.high < 0 else "not told apart"
        told = f"is {verdict} than {first}" if verdict != "not told apart" else f"cannot be told apart from {first}"
        result.append(
            f"{name} {told}: on the {shared:,} series both scored, its weighted score differs by {score.value:+.3f} "
            f"[{score.low:+.3f}, {score.high:+.3f}]."
        )
    return (*result, "Intervals are 95 %, over patients; differences are paired: both resampled by the same patients.")


def _scores(
    runs: Mapping[str, RunData],
    found: Mapping[str, Results],
    gaps: Mapping[str, tuple[dict[str, Score], int]],
    first: str,
) -> Section:
    rows = []
    for name, result in found.items():
        gap, shared = gaps.get(name, ({}, len(runs[name].predictions)))
        rows.append(
            {
                "run": name,
                "score [95 %]": str(result.score),
                "present AUC [95 %]": str(result.present),
                "sensitivity at 1 FP [95 %]": "–" if result.froc is None else str(result.at_one_false_positive),
                f"score − {first} [95 %, paired]": _signed(gap.get("score")),
                "shared series": shared,
                "time": "–" if (seconds := runs[name].seconds) is None else words.duration(seconds),
            }
        )
    labels = pd.DataFrame(
        [
            {"label": label, **{name: _signed(gap.get(label)) for name, (gap, _) in gaps.items()}}
            for label in (PRESENT, *LABELS[:PRESENT_INDEX])
        ]
    )
    roc = _draw_rocs(runs)
    blocks = (
        Table.of(
            "scores", "Scores", "Of each run's own series; differences are of the shared ones.", pd.DataFrame(rows)
        ),
        Chart("roc", "ROC of Aneurysm Present", "One line per run.", roc, "No run has both classes."),
        Chart(
            "labels",
            "AUC by label",
            "One dot per run and label, with its 95 % interval.",
            _draw_labels(found),
            height=560,
        ),
        Table.of(
            "differences", f"AUC minus {first}'s, by label", "With the paired 95 % interval over patients.", labels
        ),
    )
    return Section("scores-section", "Who is better, and how sure", "", blocks)


def _signed(score: Score | None) -> str:
    if score is None or np.isnan(score.value):
        return "–"
    return f"{score.value:+.3f} [{score.low:+.3f}, {score.high:+.3f}]"


def _draw_rocs(runs: Mapping[str, RunData]) -> go.Figure | None:
    figure = go.Figure(drawing.diagonal())
    for index, (name, run) in enumerate(runs.items()):
        targets = metrics.targets_of(run.predictions)[:, PRESENT_INDEX]
        ranking = curves.rank(targets, run.predictions[PRESENT], metrics.patients_of(run.predictions))
        if ranking is not None:
            curve, hexcode = curves.roc(ranking), drawing.colour(index)
            figure.add_traces(drawing.band(curve.table["x"], curve.table["low"], curve.table["high"], hexcode))
            figure.add_scatter(
                x=curve.table["x"],
                y=curve.table["y"],
                mode="lines+markers",
                name=name,
                marker=drawing.marker(index),
                line={"color": hexcode, "width": 2.5},
            )
    if len(figure.data) == 1:
        return None
    where = {"x": 0.98, "xanchor": "right", "y": 0.03, "yanchor": "bottom"}
    return drawing.layout(figure, "false-positive rate", "true-positive rate", legend=where)


def _draw_labels(found: Mapping[str, Results]) -> go.Figure:
    figure = go.Figure()
    places = np.arange(len(LABELS))
    for index, (name, result) in enumerate(found.items()):
        table = result.labels
        figure.add_scatter(
            x=table["auc"],
            y=places + 0.6 * ((index + 0.5) / len(found) - 0.5),
            error_x={
                "type": "data",
                "symmetric": False,
                "array": table["high"] - table["auc"],
                "arrayminus": table["auc"] - table["low"],
                "width": 0,
                "color": drawing.translucent(drawing.colour(index), 0.5),
            },
            mode="markers",
            name=name,
            marker=drawing.marker(index) | {"maxdisplayed": 0},
            customdata=table["label"],
            hovertemplate="%{customdata}: %{x:.3f}<extra></extra>",
        )
    figure.add_vline(x=0.5, line={"dash": "dot", "color": drawing.GREY, "width": 1.5})
    ticks = {"autorange": "reversed", "tickvals": places, "ticktext": [SHORT_NAMES[label] for label in LABELS]}
    return drawing.layout(figure, "AUC with 95 % interval", "", yaxis=ticks, legend=drawing.legend_above())


def _learning(runs: Mapping[str, RunData]) -> Section:
    figures = {"score": go.Figure(), "loss": go.Figure()}
    most = 0
    for index, (name, run) in enumerate(runs.items()):
        table = figures_run.epochs(run.metrics)
        if not len(table):
            continue
        most = max(most, int(table["epoch"].max()))
        for key, column in (("score", "val/score"), ("loss", "val/loss")):
            mean = table.groupby("epoch")[column].mean()
            figures[key].add_scatter(
                x=mean.index,
                y=mean,
                mode="lines+markers",
                name=name,
                marker=drawing.marker(index),
                line={"color": drawing.colour(index), "width": 2.5},
            )
    blocks = tuple(
        Chart(
            f"{key}-curves",
            f"{title} per epoch",
            "On held-out patients; the mean of the folds that got so far.",
            drawing.layout(figure, "epoch", axis, xaxis=drawing.counting(most), legend=drawing.legend_above())
            if figure.data
            else None,
            "No run has finished an epoch.",
        )
        for (key, figure), title, axis in zip(
            figures.items(), ("Score", "Loss"), ("weighted score", "loss"), strict=True
        )
    )
    return Section("learning", "How they learned", "", blocks)


def _settings(runs: Mapping[str, RunData]) -> Section:
    rows: list[tuple[Any, ...]] = []
    for key, _, _ in overrides.dotted_keys():
        values = [provenance_blocks.setting(run.config, key) for run in runs.values()]
        if len(set(values)) > 1:
            rows.append((key, *values))
    columns = (Column("key", None), *(Column(name, None) for name in runs))
    same = "The runs' settings are the same."
    table = Table("settings-table", "Settings that differ", "", columns, tuple(rows), same)
    return Section("settings", "What differs", "", (table,))
