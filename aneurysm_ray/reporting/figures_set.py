"""The figures of a prepared set: each as its numbers and its drawing."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from aneurysm_ray.data.store import PreparedVolume
from aneurysm_ray.data.window import to_uint8
from aneurysm_ray.labels import LOCATIONS, PRESENT, SHORT_NAMES
from aneurysm_ray.reporting import drawing

PRESENCE = ("with an aneurysm", "without", "unknown")


def presence(table: pd.DataFrame) -> pd.Series:
    """Return one of PRESENCE for each row of a volumes table."""
    target = table[PRESENT]
    return pd.Series(np.select([target > 0.5, target <= 0.5], PRESENCE[:2], PRESENCE[2]), index=table.index)


def counts(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return a row per value of a column, the most frequent first, and a column of counts per presence."""
    crossed = pd.crosstab(table[column].fillna("unknown"), presence(table)).reindex(
        columns=list(PRESENCE), fill_value=0
    )
    return crossed.loc[crossed.sum(axis=1).sort_values(ascending=False).index]


def draw_counts(crossed: pd.DataFrame) -> go.Figure:
    """Draw stacked bars of counts."""
    figure = go.Figure()
    for index, name in enumerate(PRESENCE):
        if crossed[name].any():
            hexcode = (drawing.COLOURS[1], drawing.COLOURS[0], drawing.GREY)[index]
            figure.add_bar(y=crossed.index, x=crossed[name], name=name, orientation="h", marker={"color": hexcode})
    return drawing.layout(
        figure,
        "series",
        "",
        barmode="stack",
        xaxis=drawing.counting(crossed.sum(axis=1).max()),
        yaxis={"autorange": "reversed", "type": "category"},
        legend=drawing.legend_above(),
    )


def locations(table: pd.DataFrame) -> pd.Series:
    """Return the number of positive series per location, in the labels' order."""
    return pd.Series({SHORT_NAMES[name]: int((table[name] > 0.5).sum()) for name in LOCATIONS}, dtype=int)


def codes(table: pd.DataFrame) -> pd.Series:
    """Return the number of series per quality code, the most frequent first."""
    found = Counter(code for row in table["quality"] for code in row)
    return pd.Series(dict(found.most_common()), dtype=int)


def draw_bars(numbers: pd.Series, meanings: Mapping[str, str] | None = None) -> go.Figure:
    """Draw one bar per name, with its meaning on hover."""
    names = [str(name) for name in numbers.index]
    figure = go.Figure(
        go.Bar(
            x=numbers.to_numpy(),
            y=names,
            orientation="h",
            marker={"color": drawing.COLOURS[0]},
            text=numbers.to_numpy(),
            textposition="auto",
            textangle=0,
            customdata=[(meanings or {}).get(name, "") for name in names],
            hovertemplate="%{y}: %{x}<br>%{customdata}<extra></extra>",
        )
    )
    axes = {"xaxis": drawing.counting(numbers.max()), "yaxis": {"autorange": "reversed", "type": "category"}}
    return drawing.layout(figure, "series", "", **axes)


def sizes(table: pd.DataFrame) -> pd.DataFrame:
    """Return modality, slices, spacing_mm (between slices) and height_mm of every stored volume."""
    shape, spacing = (
        np.stack(table[name].to_list()) if len(table) else np.zeros((0, 3)) for name in ("shape", "spacing_mm")
    )
    return pd.DataFrame(
        {
            "modality": table["modality"].to_numpy(),
            "slices": shape[:, 0],
            "spacing_mm": spacing[:, 0],
            "height_mm": shape[:, 0] * spacing[:, 0],
        }
    )


def draw_histogram(table: pd.DataFrame, column: str, title: str) -> go.Figure:
    """Draw how often each value occurs, stacked by modality."""
    figure = go.Figure()
    # Rounded, lest the last digits of one spacing make a histogram of noise.
    values = table[column].to_numpy(np.float64).round(3)
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    width = (high - low) / 30 or max(abs(high), 1.0) / 10
    for index, (modality, part) in enumerate(table.groupby("modality")):
        figure.add_histogram(
            x=part[column].round(3),
            name=str(modality),
            xbins={"start": low - width / 2, "end": high + width, "size": width},
            marker={"color": drawing.colour(index)},
        )
    most = np.histogram(values, np.arange(low - width / 2, high + width, width))[0].max(initial=0)
    more = {"yaxis": drawing.counting(most), "legend": drawing.legend_above()}
    return drawing.layout(figure, title, "series", barmode="stack", bargap=0.05, **more)


def intensities(
    volumes: Iterable[PreparedVolume], bins: int = 64
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return by modality the centres of bins and the share of voxels in each, as a network sees them: 0 to 255."""
    voxels: dict[str, list[NDArray[np.uint8]]] = {}
    for volume in volumes:
        some = np.ascontiguousarray(volume.voxels[::2, ::2, ::2])
        voxels.setdefault(volume.modality, []).append(to_uint8(some, volume.window).ravel())
    result = {}
    for modality, parts in sorted(voxels.items()):
        values = np.concatenate(parts)
        shares, edges = np.histogram(values, bins, range=(0.0, 256.0))
        result[modality] = (edges[:-1] + edges[1:]) / 2, shares / max(len(values), 1)
    return result


def draw_intensities(shares: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]) -> go.Figure:
    """Draw the share of voxels by value, a line per modality, on a logarithmic axis: most of a head is dull."""
    figure = go.Figure()
    for index, (modality, (centres, share)) in enumerate(shares.items()):
        line = {"color": drawing.colour(index), "width": 2, "shape": "hvh"}
        figure.add_scatter(x=centres, y=np.where(share > 0, share, np.nan), mode="lines", name=modality, line=line)
    return drawing.layout(figure, "value, 0 to 255", "share of voxels", yaxis_type="log", legend=drawing.legend_above())


def reasons(rejected: pd.DataFrame) -> pd.Series:
    """Return the number of rejected series per reason, the most frequent first."""
    return rejected["reason"].value_counts()


def sample(table: pd.DataFrame, each: int) -> Sequence[str]:
    """Return the series of up to `each` rows of every modality, evenly spread over the table."""
    chosen: list[str] = []
    for _, part in table.groupby("modality"):
        rows = np.unique(np.linspace(0, len(part) - 1, min(each, len(part))).round().astype(int))
        chosen += list(part["series_uid"].iloc[rows])
    return chosen
