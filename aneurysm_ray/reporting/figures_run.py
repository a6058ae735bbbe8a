"""The figures of a training run: each as its numbers and its drawing."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from aneurysm_ray.labels import LABELS, PRESENT, PRESENT_INDEX, SHORT_NAMES
from aneurysm_ray.learning import calibration, curves, metrics
from aneurysm_ray.learning.bootstrap import Score
from aneurysm_ray.learning.curves import Curve
from aneurysm_ray.learning.froc import Froc
from aneurysm_ray.reporting import drawing


def epochs(by_fold: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    """Return the folds' metrics tables as one, with a fold column and epochs counted from 1."""
    parts = [table.assign(fold=fold, epoch=table["epoch"] + 1) for fold, table in sorted(by_fold.items())]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["fold", "epoch"])


def draw_loss(table: pd.DataFrame) -> go.Figure:
    """Draw training (dotted) and validation (solid) loss per epoch and fold."""
    figure = go.Figure()
    for fold, part in table.groupby("fold"):
        for column, name, dash in (("train/loss", "training", "dot"), ("val/loss", "validation", "solid")):
            figure.add_scatter(
                x=part["epoch"],
                y=part[column],
                name=f"fold {fold}",
                legendgroup=f"fold {fold}",
                showlegend=dash == "solid",
                hovertemplate=f"fold {fold}, {name}<br>epoch %{{x}}: %{{y:.3f}}<extra></extra>",
                mode="lines+markers",
                connectgaps=True,
                marker=drawing.marker(int(str(fold)), 7),
                line={"color": drawing.colour(int(str(fold))), "dash": dash, "width": 2},
            )
    axis = drawing.counting(table["epoch"].max())
    return drawing.layout(figure, "epoch", "loss", xaxis=axis, legend=drawing.legend_above())


def draw_score(table: pd.DataFrame) -> go.Figure:
    """Draw the weighted score (solid) and Aneurysm Present AUC (dotted) per epoch and fold; chance is at 0.5."""
    figure = go.Figure()
    for fold, part in table.groupby("fold"):
        for column, name, dash in (("val/score", "score", "solid"), ("val/auc_present", "present AUC", "dot")):
            figure.add_scatter(
                x=part["epoch"],
                y=part[column],
                name=f"fold {fold}",
                legendgroup=f"fold {fold}",
                showlegend=dash == "solid",
                hovertemplate=f"fold {fold}, {name}<br>epoch %{{x}}: %{{y:.3f}}<extra></extra>",
                mode="lines+markers",
                connectgaps=True,
                marker=drawing.marker(int(str(fold)), 7),
                line={"color": drawing.colour(int(str(fold))), "dash": dash, "width": 2},
            )
    figure.add_hline(y=0.5, line={"dash": "dot", "color": drawing.GREY, "width": 1.5})
    axis = drawing.counting(table["epoch"].max())
    name = "weighted score and present AUC"
    return drawing.layout(figure, "epoch", name, xaxis=axis, legend=drawing.legend_above())


TIME: Mapping[str, str] = {
    "feed": "waiting for patches", "steps": "training steps", "validation": "validation",
    "mining": "search for hard negatives", "writing": "writing",
}  # fmt: skip
"""What an epoch's seconds are spent on, by its name in the metrics."""


def draw_time(table: pd.DataFrame) -> go.Figure:
    """Draw what the time of each fold was spent on; runs of earlier versions do not say."""
    figure = go.Figure()
    sums = table.groupby("fold").sum(numeric_only=True)
    longest = float(sums[[f"seconds/{name}" for name in TIME]].sum(axis=1).max())
    unit, size = next(
        (unit, size) for unit, size in (("hours", 3600), ("minutes", 60), ("s", 1)) if longest >= size or size == 1
    )
    for index, (name, words) in enumerate(TIME.items()):
        figure.add_bar(
            y=[f"fold {fold}" for fold in sums.index],
            x=sums[f"seconds/{name}"] / size,
            name=words,
            orientation="h",
            marker=drawing.filling(index),
            customdata=100 * sums[f"seconds/{name}"] / sums[[f"seconds/{part}" for part in TIME]].sum(axis=1),
            hovertemplate=f"{words}<br>%{{x:.2f}} {unit}, %{{customdata:.0f}} %<extra>%{{y}}</extra>",
        )
    figure.update_layout(barmode="stack")
    return drawing.layout(figure, unit, "", legend=drawing.legend_above())


def label_curves(predictions: pd.DataFrame) -> dict[str, tuple[Curve, Curve]]:
    """Return ROC and precision-recall of every label that has both classes, Aneurysm Present first."""
    targets, probabilities = metrics.targets_of(predictions), metrics.probabilities_of(predictions)
    patients = metrics.patients_of(predictions)
    result = {}
    for index in (PRESENT_INDEX, *range(PRESENT_INDEX)):
        ranking = curves.rank(targets[:, index], probabilities[:, index], patients)
        if ranking is not None:
            result[LABELS[index]] = curves.roc(ranking), curves.precision_recall(ranking)
    return result


def draw_roc(by_label: Mapping[str, tuple[Curve, Curve]], labels: pd.DataFrame) -> go.Figure:
    """Draw each label's ROC with its band; a label is one choice of the chart's menu.

    The area's interval is that of `labels` (more draws than the band's), so that a page says one thing only.
    """
    figure = go.Figure(drawing.diagonal())
    areas = {label: Score(*numbers) for label, *numbers in labels[["label", "auc", "low", "high"]].to_numpy()}
    for label, (curve, _) in by_label.items():
        _add_curve(figure, label, curve, f"AUC {areas[label]}")
    return drawing.layout(figure, "false-positive rate", "true-positive rate", **_unit_square())


def draw_precision_recall(by_label: Mapping[str, tuple[Curve, Curve]]) -> go.Figure:
    """Draw each label's precision over recall with its band; the dashed line is its share of positives."""
    figure = go.Figure()
    for label, (_, curve) in by_label.items():
        share = curve.n_positive / curve.n
        figure.add_scatter(
            x=[0, 1],
            y=[share, share],
            mode="lines",
            line={"dash": "dot", "color": drawing.GREY, "width": 1.5},
            hoverinfo="skip",
            showlegend=False,
            meta=label,
        )
        _add_curve(figure, label, curve, f"average precision {curve.area}")
    return drawing.layout(figure, "recall", "precision", **_unit_square())


def _add_curve(figure: go.Figure, label: str, curve: Curve, area: str) -> None:
    table, hexcode = curve.table, drawing.COLOURS[0]
    figure.add_traces(drawing.band(table["x"], table["low"], table["high"], hexcode, meta=label))
    figure.add_scatter(
        x=table["x"],
        y=table["y"],
        mode="lines",
        name=f"{area}<br>{curve.n_positive} positive of {curve.n}",
        line={"color": hexcode, "width": 2.5},
        hovertemplate="%{x:.2f}, %{y:.2f}<extra></extra>",
        showlegend=True,
        meta=label,
    )


def _unit_square() -> dict[str, object]:
    return {
        "xaxis_range": [-0.01, 1.01],
        "yaxis_range": [-0.01, 1.03],
        "legend": {"x": 0.98, "xanchor": "right", "y": 0.03, "yanchor": "bottom"},
    }


def draw_froc(found: Froc) -> go.Figure:
    """Draw sensitivity over false positives per scan (logarithmic), with intervals at the reported rates."""
    table, curve = found.table, found.curve
    inside = curve[(curve["fp_per_scan"] >= 0.05) & (curve["fp_per_scan"] <= 16)]
    figure = go.Figure(drawing.band(table["fp_per_scan"], table["low"], table["high"], drawing.COLOURS[0]))
    figure.add_scatter(
        x=inside["fp_per_scan"],
        y=inside["sensitivity"],
        mode="lines",
        line={"shape": "hv", "color": drawing.COLOURS[0], "width": 2.5},
        hoverinfo="skip",
        showlegend=False,
    )
    figure.add_scatter(
        x=table["fp_per_scan"],
        y=table["sensitivity"],
        mode="markers",
        marker={"size": 8, "color": drawing.COLOURS[0]},
        customdata=np.stack([table["low"], table["high"]], axis=1),
        hovertemplate="%{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}] at %{x} per scan<extra></extra>",
        showlegend=False,
    )
    rates = list(table["fp_per_scan"])
    ticks = {"type": "log", "tickvals": rates, "ticktext": [f"{rate:g}" for rate in rates]}
    ticks["range"] = [np.log10(0.1), np.log10(10)]
    return drawing.layout(
        figure, "false positives per scan", "sensitivity per aneurysm", xaxis=ticks, yaxis_range=[0, 1.03]
    )


def reliability(predictions: pd.DataFrame) -> dict[str, tuple[pd.DataFrame, float]]:
    """Return reliability table and Brier score of Aneurysm Present: as predicted, and mapped out of fold."""
    targets = metrics.targets_of(predictions)[:, PRESENT_INDEX]
    given = predictions[PRESENT].to_numpy(np.float64)
    bins = int(np.clip(len(given) // 25, 4, 10))
    result = {"as predicted": (calibration.reliability(targets, given, bins), calibration.brier(targets, given))}
    if "fold" in predictions and predictions["fold"].nunique() > 1:
        mapped = calibration.calibrate_out_of_fold(targets, given, predictions["fold"])
        result["mapped out of fold"] = (
            calibration.reliability(targets, mapped, bins),
            calibration.brier(targets, mapped),
        )
    return result


def draw_reliability(tables: Mapping[str, tuple[pd.DataFrame, float]]) -> go.Figure:
    """Draw observed over predicted in equally full bins, with Wilson's intervals."""
    figure = go.Figure(drawing.diagonal())
    for index, (name, (table, brier)) in enumerate(tables.items()):
        figure.add_scatter(
            x=table["predicted"],
            y=table["observed"],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": table["high"] - table["observed"],
                "arrayminus": table["observed"] - table["low"],
                "width": 0,
                "thickness": 1.5,
                "color": drawing.translucent(drawing.colour(index), 0.5),
            },
            mode="lines+markers",
            name=f"{name}: Brier {brier:.3f}",
            marker=drawing.marker(index) | {"maxdisplayed": 0},
            line={"color": drawing.colour(index), "width": 2, "dash": ("solid", "dash")[index % 2]},
            customdata=table["n"],
            hovertemplate="said %{x:.2f}, was %{y:.2f} of %{customdata} series<extra></extra>",
        )
    axes = {"xaxis_range": [-0.02, 1.02], "yaxis_range": [-0.02, 1.03], "legend": drawing.legend_above()}
    return drawing.layout(figure, "predicted probability", "share that was positive", **axes)


def draw_probabilities(predictions: pd.DataFrame) -> go.Figure:
    """Draw how often each probability of Aneurysm Present was given, to negative and to positive series."""
    figure = go.Figure()
    target = predictions[f"target/{PRESENT}"]
    most = 0
    for index, (name, mask) in enumerate((("negative", target <= 0.5), ("positive", target > 0.5))):
        given = predictions.loc[mask, PRESENT]
        most = max(most, np.histogram(given, np.arange(0, 1.05, 0.04))[0].max())
        figure.add_histogram(
            x=given,
            name=f"{name} ({int(mask.sum())})",
            xbins={"start": 0, "end": 1.0001, "size": 0.04},
            marker=drawing.filling(index, 0.65),
            hovertemplate="%{x}: %{y} series<extra></extra>",
        )
    return drawing.layout(
        figure,
        "predicted probability of an aneurysm",
        "series",
        barmode="overlay",
        xaxis_range=[-0.01, 1.01],
        yaxis=drawing.counting(most),
        legend=drawing.legend_above(),
    )


def draw_labels(table: pd.DataFrame) -> go.Figure:
    """Draw the AUC of every label that has one, with its interval."""
    table = table[table["auc"].notna()]
    names = [f"{SHORT_NAMES[label]} ({n})" for label, n in zip(table["label"], table["n_positive"], strict=True)]
    notes = [
        f"{label}: {Score(auc, low, high)}, {positive} positive of {n}"
        for label, auc, low, high, n, positive in table[["label", "auc", "low", "high", "n", "n_positive"]].to_numpy()
    ]
    return drawing.intervals(names, table, "AUC with 95 % interval", 0.5, notes)


def draw_subgroups(table: pd.DataFrame) -> go.Figure:
    """Draw Aneurysm Present AUC with its interval in every subgroup."""
    rows = table[["group", "value", "n_positive", "n"]].astype({"value": str}).to_numpy().tolist()
    # A site is called as its data set called it, often by a letter or number that says nothing by itself.
    names = [f"{f'site {value}' if group == 'site' else value} ({some}/{n})" for group, value, some, n in rows]
    notes = [f"{group}: {some} positive of {n}" for group, _, some, n in rows]
    return drawing.intervals(names, table, "Aneurysm Present AUC with 95 % interval", 0.5, notes)
