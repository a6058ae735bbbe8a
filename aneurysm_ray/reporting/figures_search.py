"""The figures of a search's course: each as its numbers and its drawing."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from aneurysm_ray.reporting import drawing
from aneurysm_ray.reporting.search_data import STATE_WORDS, STATES, SearchData

STATE_SYMBOLS = {"COMPLETE": "circle", "PRUNED": "circle-open", "FAIL": "x", "RUNNING": "diamond-open"}
STATE_PATTERNS = {"COMPLETE": "", "PRUNED": "/", "FAIL": "x", "RUNNING": "."}
STATE_COLOURS = {
    "COMPLETE": drawing.COLOURS[0],
    "PRUNED": drawing.GREY,
    "FAIL": drawing.COLOURS[6],
    "RUNNING": drawing.COLOURS[5],
}


def history(search: SearchData) -> pd.DataFrame:
    """Return the trials in the order they ended, with the cost so far in hours and the best complete value so far.

    Columns: trial, state, value, hours, best. Without end times the order is that of numbers.
    """
    table = search.trials[search.trials["state"] != "RUNNING"]
    ended = pd.to_datetime(table["ended"], utc=True, errors="coerce") if "ended" in table else None
    if ended is not None and ended.notna().all():
        table = table.loc[ended.sort_values(kind="stable").index]
    cost = table["gpu_seconds" if search.uses_gpus else "seconds"].astype(float).fillna(0)
    sign = search.signs[0]
    complete = (sign * table["value"]).where(table["state"] == "COMPLETE", -np.inf)
    best = (sign * complete.cummax()).replace([np.inf, -np.inf], np.nan)
    return table[["trial", "state", "value"]].assign(hours=cost.cumsum() / 3600, best=best).reset_index(drop=True)


def draw_history(table: pd.DataFrame, metric: str) -> go.Figure:
    """Draw every trial's value and the best so far, over the trials in the order they ended."""
    figure = _draw_progress(table.assign(x=np.arange(1, len(table) + 1)), "trials ended", metric)
    return figure.update_xaxes(drawing.counting(len(table)))


def draw_cost(table: pd.DataFrame, metric: str, unit: str) -> go.Figure:
    """Draw every trial's value and the best so far, over the hours spent."""
    return _draw_progress(table.assign(x=table["hours"]), unit, metric)


def _draw_progress(table: pd.DataFrame, x: str, y: str) -> go.Figure:
    figure = go.Figure()
    for state in ("PRUNED", "COMPLETE"):
        part = table[table["state"] == state]
        if len(part):
            figure.add_scatter(
                x=part["x"],
                y=part["value"],
                mode="markers",
                name=STATE_WORDS[state],
                marker={
                    "color": STATE_COLOURS[state],
                    "size": 8,
                    "symbol": STATE_SYMBOLS[state],
                },
                customdata=part["trial"],
                hovertemplate="trial %{customdata}<br>%{y:.4f}<extra></extra>",
            )
    figure.add_scatter(
        x=table["x"],
        y=table["best"],
        mode="lines",
        name="best so far",
        line={"shape": "hv", "color": drawing.COLOURS[1], "width": 2.5},
        hovertemplate="best so far %{y:.4f}<extra></extra>",
    )
    return drawing.layout(figure, x, y, legend=drawing.legend_above())


def draw_curves(search: SearchData) -> go.Figure:
    """Draw every trial's objective per epoch: stopped ones faint, the best and the default in colour."""
    figure = go.Figure()
    metric, best, default = search.metrics[0], search.best, search.default
    states = search.trials.set_index("trial")["state"].to_dict()
    emphasis = {best: (drawing.COLOURS[1], "best"), default: (drawing.COLOURS[2], "default")}
    if best == default:
        emphasis = {best: (drawing.COLOURS[1], "best, and default")}
    shown: set[str] = set()
    groups = {int(str(trial)): part for trial, part in search.curves.groupby("trial")}
    for trial in sorted(groups, key=lambda number: number in emphasis):
        part, state = groups[trial], str(states.get(trial, "RUNNING"))
        hexcode, name = emphasis.get(trial, (STATE_COLOURS[state], STATE_WORDS[state]))
        faint = trial not in emphasis and state != "COMPLETE"
        figure.add_scatter(
            x=part["step"],
            y=part[metric],
            mode="lines+markers",
            name=f"trial {trial}: {name}" if trial in emphasis else name,
            legendgroup=name,
            showlegend=name not in shown,
            line={"color": hexcode, "width": 3 if trial in emphasis else 1.5},
            marker={"size": 9 if trial in emphasis else 5, "symbol": _symbol(trial, state, best), "maxdisplayed": 9},
            opacity=0.35 if faint else 1.0 if trial in emphasis else 0.6,
            hovertemplate=f"trial {trial}, {STATE_WORDS[state]}<br>epoch %{{x}}: %{{y:.4f}}<extra></extra>",
        )
        shown.add(name)
    axis = drawing.counting(search.curves["step"].max())
    return drawing.layout(figure, "epochs", metric, xaxis=axis, legend=drawing.legend_above())


def _symbol(trial: int, state: str, best: int | None) -> str:
    """Return the marker of a trial's curve: the best and the default are told by more than colour."""
    return "star" if trial == best else STATE_SYMBOLS[state]


def distributions(search: SearchData) -> "dict[str, pd.Series[float]]":
    """Return the values of trials by how they were drawn: spread over the space, or by the sampler; ordered upwards.

    The values of stopped trials are their last ones. The default configuration and points that were given belong to
    neither group.
    """
    scored = search.trials[search.trials["value"].notna() & search.trials["state"].isin(["COMPLETE", "PRUNED"])]
    origin = scored["origin"] if "origin" in scored else pd.Series("sampler", index=scored.index)
    proposed = "drawn at random" if search.config.tune.sampler == "random" else "proposed by TPE"
    groups = {"spread over the space": scored[origin.str.startswith("start")], proposed: scored[origin == "sampler"]}
    return {name: part["value"].astype(float).sort_values() for name, part in groups.items() if len(part)}


def draw_distributions(groups: "Mapping[str, pd.Series[float]]", metric: str) -> go.Figure:
    """Draw the share of trials at or below each value."""
    figure = go.Figure()
    for index, (name, values) in enumerate(groups.items()):
        figure.add_scatter(
            x=values,
            y=np.arange(1, len(values) + 1) / len(values),
            mode="lines+markers",
            name=f"{name} ({len(values)})",
            line={"shape": "hv", "color": drawing.colour(index), "width": 2},
            marker=drawing.marker(index, 6),
        )
    return drawing.layout(figure, metric, "share of trials", yaxis_range=[0, 1.03], legend=drawing.legend_above())


def timeline(search: SearchData) -> pd.DataFrame:
    """Return trial, state, started, ended and lane of every trial of which it is known how long it ran.

    Of one that was interrupted before its first epoch ended it is not. Lanes hold no two at a time.
    """
    table = search.trials[["trial", "state", "worker", "seconds"]].copy()
    table["started"] = pd.to_datetime(search.trials["started"], utc=True, errors="coerce", format="ISO8601")
    seconds = pd.to_timedelta(table["seconds"].astype(float).fillna(0), unit="s")
    ended = search.trials["ended"] if "ended" in search.trials else pd.Series(pd.NaT, index=table.index)
    table["ended"] = pd.to_datetime(ended, utc=True, errors="coerce", format="ISO8601").fillna(
        table["started"] + seconds
    )
    table = table[table["ended"] > table["started"]].sort_values("started", kind="stable")
    free_from: dict[str, pd.Timestamp] = {}
    lanes = []
    for worker, started, ended in table[["worker", "started", "ended"]].itertuples(index=False, name=None):
        host = str(worker).split(":")[0] if isinstance(worker, str) else "worker"
        number = 1
        while (lane := f"{host} · {number}") in free_from and free_from[lane] > started:
            number += 1
        free_from[lane] = ended
        lanes.append(lane)
    return table.assign(lane=lanes).reset_index(drop=True)


def draw_timeline(table: pd.DataFrame) -> go.Figure:
    """Draw when each trial ran and on which machine, coloured by how it ended."""
    figure = go.Figure()
    for state in STATES:
        part = table[table["state"] == state]
        if not len(part):
            continue
        figure.add_bar(
            base=part["started"],
            x=(part["ended"] - part["started"]).dt.total_seconds() * 1000,
            y=part["lane"],
            orientation="h",
            name=STATE_WORDS[state],
            marker={
                "color": STATE_COLOURS[state],
                "pattern": {"shape": STATE_PATTERNS[state], "solidity": 0.25},
                "line": {"width": 1, "color": "rgba(127,127,127,0.6)"},
            },
            customdata=np.stack([part["trial"], part["seconds"].astype(float).round(1)], axis=1),
            hovertemplate="trial %{customdata[0]}: %{customdata[1]} s<extra></extra>",
        )
    lanes = sorted(table["lane"].unique())
    return drawing.layout(
        figure,
        "time (UTC)",
        "",
        barmode="overlay",
        xaxis_type="date",
        yaxis={"type": "category", "categoryorder": "array", "categoryarray": lanes[::-1]},
        legend=drawing.legend_above(),
    )


def trade_off(search: SearchData) -> tuple[pd.DataFrame, tuple[str, str]]:
    """Return trial, x, y, front of the complete trials, and the names of x and y.

    With several objectives they are the first two; else the objective against the trial's seconds. `front` marks the
    trials that no other beats in both (Pareto).
    """
    done, sign = search.complete, search.signs[0]
    second = f"value/{search.metrics[1]}" if len(search.metrics) > 1 else "seconds"
    if second not in done:
        second = "seconds"
    second_sign = search.signs[1] if second != "seconds" else -1.0
    table = pd.DataFrame(
        {"trial": done["trial"], "x": done[second].astype(float), "y": done["value"].astype(float)}
    ).dropna()
    goods = np.stack([second_sign * table["x"], sign * table["y"]], axis=1)
    beaten = [bool(((goods >= own).all(axis=1) & (goods > own).any(axis=1)).any()) for own in goods]
    name = search.metrics[1] if second != "seconds" else "seconds of the trial"
    return table.assign(front=~np.array(beaten, bool)).sort_values("x"), (name, search.metrics[0])


def draw_trade_off(table: pd.DataFrame, names: tuple[str, str]) -> go.Figure:
    """Draw complete trials by two criteria and join those that no other beats in both."""
    front = table[table["front"]]
    figure = go.Figure()
    for part, name, hexcode in (
        (table[~table["front"]], "beaten", drawing.GREY),
        (front, "Pareto front", drawing.COLOURS[1]),
    ):
        figure.add_scatter(
            x=part["x"],
            y=part["y"],
            mode="lines+markers" if name != "beaten" else "markers",
            name=name,
            marker={"size": 8, "color": hexcode, "symbol": "circle" if name != "beaten" else "x"},
            line={"color": hexcode, "width": 1.5, "dash": "dot"},
            customdata=part["trial"],
            hovertemplate="trial %{customdata}<br>%{x:.4g}, %{y:.4f}<extra></extra>",
        )
    return drawing.layout(figure, *names, legend=drawing.legend_above())
