"""What all figures share: colours that hold on light and dark paper, bands, intervals, layouts."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

COLOURS = ("#3277c2", "#d9741a", "#1f9e89", "#b5478f", "#8673d6", "#a2882a", "#c94f4f", "#5b8a3c")
"""Told apart by colour-blind readers too, and of middle lightness, so that one set serves both themes."""
SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star")
"""Markers beside the colours: seven of them and eight colours tell 56 things apart, and seven without any colour."""
PATTERNS = ("", "/", "x", ".", "-", "+")
"""Fillings of bars, for the same reason."""
GREY = "#8b95a3"
SCALE = [[0.0, "#2b4c9b"], [0.35, "#3f8fc0"], [0.6, "#58b99f"], [0.8, "#d9c25a"], [1.0, "#e07b2e"]]
"""Low to high, for values on a colour axis."""


def colour(index: int) -> str:
    """Return the colour of the index-th thing."""
    return COLOURS[index % len(COLOURS)]


def marker(index: int, size: int = 8) -> dict[str, Any]:
    """Return the marker of the index-th thing, told from the others by its shape too; a few of them along a line."""
    return {"color": colour(index), "symbol": SYMBOLS[index % len(SYMBOLS)], "size": size, "maxdisplayed": 7}


def filling(index: int, alpha: float = 1.0) -> dict[str, Any]:
    """Return the filling of the index-th thing's bars, told from the others by its pattern too."""
    shape = PATTERNS[index % len(PATTERNS)]
    return {"color": translucent(colour(index), alpha), "pattern": {"shape": shape, "solidity": 0.25}}


def translucent(hexcode: str, alpha: float) -> str:
    """Return a colour as rgba."""
    red, green, blue = (int(hexcode[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def layout(figure: go.Figure, x: str, y: str, **more: Any) -> go.Figure:
    """Title the axes and set what all figures have in common; return the figure."""
    figure.update_layout(
        margin={"l": 60, "r": 16, "t": 30, "b": 48},
        xaxis_title={"text": x},
        yaxis_title={"text": y},
        hovermode="closest",
    )
    return figure.update_layout(**more)


def legend_above() -> dict[str, Any]:
    """Return a legend that lies in a row above the plot, in the order of what is drawn."""
    return {"orientation": "h", "yanchor": "bottom", "y": 1.0, "xanchor": "left", "x": 0, "traceorder": "normal"}


def counting(most: float) -> dict[str, Any]:
    """Return how an axis of counts, epochs or trials up to `most` is divided: by whole ones, halves mean nothing."""
    return {"dtick": 1} if most < 8 else {}


def log_axis(values: Iterable[float]) -> dict[str, Any]:
    """Return a logarithmic axis whose labels all have one size: Plotly's own are small digits between powers."""
    known = [value for value in values if value > 0]
    low, high = (float(np.log10(end(known))) for end in (min, max)) if known else (0.0, 1.0)
    steps = (1, 2, 5) if high - low < 1.5 else (1, 3) if high - low < 3 else (1,)
    powers = range(int(np.floor(low)) - 1, int(np.ceil(high)) + 2)
    ticks = [step * 10.0**power for power in powers for step in steps]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:.3g}" for tick in ticks]}


def band(x: Any, low: Any, high: Any, hexcode: str, **more: Any) -> list[go.Scatter]:
    """Return the two traces of a shaded band."""
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, **more}
    return [
        go.Scatter(x=x, y=low, **edge),
        go.Scatter(x=x, y=high, fill="tonexty", fillcolor=translucent(hexcode, 0.2), **edge),
    ]


def diagonal() -> go.Scatter:
    """Return the dashed line of chance, or of perfect calibration."""
    return go.Scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        line={"dash": "dot", "color": GREY, "width": 1.5},
        hoverinfo="skip",
        showlegend=False,
    )


def intervals(
    names: Sequence[str], table: pd.DataFrame, x: str, reference: float | None, notes: Sequence[str], value: str = "auc"
) -> go.Figure:
    """Draw a row per name: `value` as a dot and its interval (low, high) as a bar; the first name on top."""
    figure = go.Figure(
        go.Scatter(
            x=table[value],
            y=list(names),
            error_x={
                "type": "data",
                "symmetric": False,
                "array": table["high"] - table[value],
                "arrayminus": table[value] - table["low"],
                "thickness": 2.5,
                "width": 0,
                "color": translucent(COLOURS[0], 0.5),
            },
            mode="markers",
            marker={"size": 10, "color": COLOURS[0]},
            text=list(notes),
            hovertemplate="%{y}<br>%{x:.3f}<br>%{text}<extra></extra>",
            showlegend=False,
        )
    )
    if reference is not None:
        figure.add_vline(x=reference, line={"dash": "dot", "color": GREY, "width": 1.5})
    return layout(figure, x, "", yaxis={"autorange": "reversed", "type": "category"}, margin_l=120)
