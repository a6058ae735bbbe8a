"""The figures of a search's space: what mattered, and where good trials lie."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots
from scipy.interpolate import griddata

from aneurysm_ray.reporting import drawing
from aneurysm_ray.reporting.search_data import PARAM, SearchData

COLUMNS = 3
_GRID = 40


def scored(search: SearchData) -> pd.DataFrame:
    """Return the trials that have a value and did not fail."""
    return search.trials[search.trials["value"].notna() & search.trials["state"].isin(["COMPLETE", "PRUNED"])]


def draw_importance(tables: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Draw importances as bars with the range over forests; each table is one choice of the chart's menu."""
    figure = go.Figure()
    for name, table in tables.items():
        figure.add_bar(
            x=table["importance"],
            y=table["key"],
            orientation="h",
            marker={"color": drawing.COLOURS[0]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": table["high"] - table["importance"],
                "arrayminus": table["importance"] - table["low"],
                "color": drawing.GREY,
                "thickness": 2,
                "width": 5,
            },
            hovertemplate="%{y}: %{x:.2f}<extra></extra>",
            meta=name,
            showlegend=False,
        )
    axis = {"autorange": "reversed", "type": "category"}
    return drawing.layout(figure, "share of variance explained", "", yaxis=axis, xaxis_range=[0, 1])


def draw_slices(search: SearchData, table: pd.DataFrame) -> go.Figure:
    """Draw the value over each parameter; colour is the trial's number, so that a search that closes in shows."""
    keys = search.keys
    rows = math.ceil(len(keys) / COLUMNS)
    figure = make_subplots(
        rows=rows,
        cols=min(COLUMNS, len(keys)),
        shared_yaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=0.25 / rows,
    )
    for index, key in enumerate(keys):
        row, column = index // COLUMNS + 1, index % COLUMNS + 1
        values = table[PARAM + key] if search.is_number(key) else table[PARAM + key].astype(str)
        open_circles = np.where(table["state"] == "COMPLETE", "circle", "circle-open")
        figure.add_scatter(
            x=values,
            y=table["value"],
            mode="markers",
            marker={"color": table["trial"], "coloraxis": "coloraxis", "size": 8, "symbol": open_circles},
            customdata=table["trial"],
            hovertemplate=f"{key} %{{x}}<br>%{{y:.4f}}, trial %{{customdata}}<extra></extra>",
            showlegend=False,
            row=row,
            col=column,
        )
        figure.update_xaxes(title={"text": key}, **_axis(search, table, key), row=row, col=column)
        if column == 1:
            figure.update_yaxes(title={"text": search.metrics[0]}, row=row, col=column)
    colour_axis = {
        "colorscale": drawing.SCALE,
        "colorbar": {"title": {"text": "trial", "font": {"size": 12}}, "thickness": 12}
        | drawing.counting(table["trial"].max()),
    }
    return figure.update_layout(coloraxis=colour_axis, margin={"l": 60, "r": 16, "t": 16, "b": 48})


def plane(search: SearchData, table: pd.DataFrame, keys: tuple[str, str]) -> tuple[NDArray[np.float64], ...]:
    """Return x and y of a grid (on the parameters' own scales) and the value between trials, NaN outside their hull."""
    columns = [table[PARAM + key].to_numpy(np.float64) for key in keys]
    scaled = [np.log10(c) if search.is_log(k) else c for c, k in zip(columns, keys, strict=True)]
    spans = [(float(c.min()), float(np.ptp(c)) or 1.0) for c in scaled]
    unit = np.stack([(c - low) / span for c, (low, span) in zip(scaled, spans, strict=True)], axis=1)
    line = np.linspace(0, 1, _GRID)
    surface = griddata(unit, table["value"].to_numpy(np.float64), tuple(np.meshgrid(line, line)), method="linear")
    axes = [low + span * line for low, span in spans]
    x, y = (10**axis if search.is_log(key) else axis for axis, key in zip(axes, keys, strict=True))
    return x, y, np.asarray(surface)


def draw_contour(search: SearchData, table: pd.DataFrame, keys: tuple[str, str]) -> go.Figure:
    """Draw the value over two parameters: filled between trials where both are numbers, else the trials alone."""
    figure = go.Figure()
    numbers = [search.is_number(key) for key in keys]
    distinct = min(table[PARAM + key].nunique() for key in keys)
    scale = {"colorscale": drawing.SCALE, "cmin": table["value"].min(), "cmax": table["value"].max()}
    if all(numbers) and distinct > 2 and len(table) >= 5:
        x, y, surface = plane(search, table, keys)
        figure.add_contour(
            x=x,
            y=y,
            z=surface,
            colorscale=drawing.SCALE,
            zmin=scale["cmin"],
            zmax=scale["cmax"],
            opacity=0.75,
            line={"width": 0},
            ncontours=14,
            showscale=False,
            hoverinfo="skip",
        )
    first, second = (
        table[PARAM + key] if n else table[PARAM + key].astype(str) for key, n in zip(keys, numbers, strict=True)
    )
    figure.add_scatter(
        x=first,
        y=second,
        mode="markers",
        marker={
            **scale,
            "color": table["value"],
            "size": 10,
            "line": {"width": 1.5, "color": "#ffffff"},
            "colorbar": {"title": {"text": search.metrics[0], "font": {"size": 12}}, "thickness": 12},
        },
        customdata=np.stack([table["trial"], table["value"]], axis=1),
        hovertemplate="trial %{customdata[0]}: %{customdata[1]:.4f}<extra></extra>",
        showlegend=False,
    )
    across, up = (_axis(search, table, key) for key in keys)
    return drawing.layout(figure, *keys, xaxis=across, yaxis=up)


def _axis(search: SearchData, table: pd.DataFrame, key: str) -> dict[str, Any]:
    """Return a parameter's axis on its own scale."""
    if search.is_log(key):
        return drawing.log_axis(table[PARAM + key])
    return {"type": "linear" if search.is_number(key) else "category"}


def unit_scale(
    search: SearchData, table: pd.DataFrame, key: str
) -> tuple[NDArray[np.float64], list[tuple[float, str]]]:
    """Return a parameter's values between 0 and 1, and where its axis is labelled with what."""
    column = table[PARAM + key]
    if not search.is_number(key):
        names = sorted(column.astype(str).unique())
        places = np.linspace(0, 1, len(names)) if len(names) > 1 else np.array([0.5])
        return places[np.searchsorted(names, column.astype(str))], list(zip(places.tolist(), names, strict=True))
    values = column.to_numpy(np.float64)
    scaled = np.log10(values) if search.is_log(key) else values
    low, span = float(scaled.min()), float(np.ptp(scaled))
    if span == 0:
        return np.full(len(values), 0.5), [(0.5, f"{values[0]:.3g}")]
    return (scaled - low) / span, [(0.0, f"{values.min():.3g}"), (1.0, f"{values.max():.3g}")]


def draw_parallel(search: SearchData, table: pd.DataFrame) -> go.Figure:
    """Draw every trial as a line through its parameters to its value; the better, the warmer and the more opaque.

    Lines and not Plotly's own parallel coordinates, which need WebGL.
    """
    sign = search.signs[0]
    axes = [*search.keys, search.metrics[0]]
    places, labels = {}, {}
    for key in search.keys:
        places[key], labels[key] = unit_scale(search, table, key)
    value = table["value"].to_numpy(np.float64)
    low, span = float(value.min()), float(np.ptp(value)) or 1.0
    places[axes[-1]] = (value - low) / span
    labels[axes[-1]] = [(0.0, f"{low:.3f}"), (1.0, f"{low + span:.3f}")]
    good = (sign * value).argsort().argsort() / max(len(value) - 1, 1)
    figure = go.Figure()
    for row in np.argsort(good):
        trial = table.iloc[row]
        shown = "<br>".join(f"{key} {trial[PARAM + key]}" for key in search.keys)
        figure.add_scatter(
            x=axes,
            y=[places[axis][row] for axis in axes],
            mode="lines",
            line={"color": _warmth(float(good[row])), "width": 1.2 + 1.8 * float(good[row])},
            opacity=0.25 + 0.7 * float(good[row]),
            hovertemplate=f"trial {trial['trial']}: {trial['value']:.4f}<br>{shown}<extra></extra>",
            showlegend=False,
        )
    for axis in axes:
        for place, text in labels[axis]:
            figure.add_annotation(
                x=axis, y=place, text=text, showarrow=False, xanchor="left", xshift=5, font={"size": 11}
            )
        figure.add_vline(x=axes.index(axis), line={"color": drawing.GREY, "width": 1})
    ends = [-0.15, len(axes) - 0.45]
    figure.update_layout(yaxis={"visible": False, "range": [-0.05, 1.05]}, xaxis={"range": ends, "showgrid": False})
    return figure.update_layout(margin={"l": 16, "r": 16, "t": 16, "b": 48})


def _warmth(share: float) -> str:
    """Return the colour of SCALE at a place between 0 and 1."""
    stops = [float(str(stop)) for stop, _ in drawing.SCALE]
    channels = np.array([[int(str(h)[i : i + 2], 16) for i in (1, 3, 5)] for _, h in drawing.SCALE])
    red, green, blue = (round(float(np.interp(share, stops, channels[:, i]))) for i in range(3))
    return f"rgb({red},{green},{blue})"
