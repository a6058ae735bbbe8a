"""The page of a training run: how good, how sure, where it fails, and how it was made."""

from pathlib import Path
from typing import Any

import pandas as pd

from aneurysm_ray import location
from aneurysm_ray.labels import PRESENT
from aneurysm_ray.learning import froc, metrics
from aneurysm_ray.reporting import figures_run as figures
from aneurysm_ray.reporting import pictures, provenance_blocks, run_cases, run_summary, run_tests, truth, words
from aneurysm_ray.reporting.page import Cases, Chart, Page, Section, Table
from aneurysm_ray.reporting.run_data import RunData, read_run
from aneurysm_ray.reporting.run_summary import Results

_ONE_CLASS = "No label has both positive and negative series."
_AUC = "AUC [95 % interval]"
_ALONE = "Labels of one class have no AUC: they are not drawn, and not in the score."
_KNOWN = "Series: those of which the label is known. A label of one class has no AUC, and is not in the score."


def page(folder: Path) -> Page:
    """Read a run directory and return its page."""
    run = read_run(folder)
    title, subtitle = location.absolute(folder).name, _subtitle(run)
    how = provenance_blocks.section(run.config, run.provenance)
    if run.predictions.empty:
        summary = (
            "No fold has finished an epoch yet, so there is nothing to score. The run's command with --resume goes on "
            "with it.",
        )
        return Page(title, "training run", subtitle, summary, (), (_training(run), how))
    curve = froc.froc(run.candidates, run.points, run.predictions) if len(run.points) else None
    found = run_summary.results(run, curve)
    outside = run_tests.section(folder)
    sections = (_quality(run, found), _groups(run, found), *outside, _training(run), _wrong(run), how)
    said = (*run_summary.sentences(run, found), *run_tests.sentences(folder))
    return Page(title, "training run", subtitle, said, run_summary.tiles(run, found), sections)


def _subtitle(run: RunData) -> str:
    config = run.config
    parts = [f"preset {config.preset}"] if config.preset else []
    parts += [config.model.name, f"{config.model.head} head", f"{config.loss.name} loss"]
    if started := run.provenance.get("started"):
        parts.append(f"started {str(started).replace('T', ' ')[:16]}")
    return " · ".join(parts)


def _quality(run: RunData, found: Results) -> Section:
    curves = figures.label_curves(run.predictions)
    reliability = figures.reliability(run.predictions) if PRESENT in curves else None
    rates = {"fp_per_scan": "false positives per scan", "sensitivity": "sensitivity", "low": "low", "high": "high"}
    no_points = "There are no labelled points to hold candidates against: the prepared set is gone, or has none."
    blocks = (
        Chart(
            "roc",
            "ROC",
            "The share of positives found against the share of negatives flagged; shaded: the 95 % band over patients.",
            figures.draw_roc(curves, found.labels) if curves else None,
            _ONE_CLASS,
            tuple(curves),
        ),
        Chart(
            "pr",
            "Precision and recall",
            "Of the series flagged, the share that is positive; the dotted line is what chance gives. For rare labels "
            "this says more than the ROC.",
            figures.draw_precision_recall(curves) if curves else None,
            _ONE_CLASS,
            tuple(curves),
        ),
        Chart(
            "froc",
            "FROC: aneurysms found against false positives per scan",
            _froc_caption(found),
            figures.draw_froc(found.froc) if found.froc is not None else None,
            no_points,
        ),
        Table.of(
            "froc-table",
            "Sensitivity at false positives per scan",
            "Low and high bound the 95 % interval over patients.",
            run_tests.with_rates(found.froc),
            rates,
            missing=no_points,
            wide=False,
        ),
        Chart(
            "reliability",
            "Reliability of Aneurysm Present",
            "On the diagonal, a probability of 0.3 comes true three times in ten."
            + " The mapped curve went through Platt's map, fitted on all other folds." * (len(reliability or ()) > 1),
            figures.draw_reliability(reliability) if reliability else None,
            _ONE_CLASS,
        ),
        Chart(
            "probabilities",
            "What it says of positives and of negatives",
            "Two humps apart are what a reader wants; where they overlap, it cannot tell.",
            figures.draw_probabilities(run.predictions) if PRESENT in curves else None,
            _ONE_CLASS,
        ),
    )
    return Section("quality", "How good it is", "Every number is out of fold.", blocks)


def _froc_caption(found: Results) -> str:
    text = f"A hit lies within {froc.HIT_MM:g} mm of a labelled point, or within the aneurysm's radius if that is more."
    if found.froc is not None and found.froc.n_unmarked:
        text += f" {words.count(found.froc.n_unmarked, 'positive series', 'positive series')} without a point left out."
    return text


def _groups(run: RunData, found: Results) -> Section:
    groups = metrics.subgroups(run.predictions, truth.diameters_mm(run.points))
    defined = groups[groups["auc"].notna()]
    labels = {"label": "label", "interval": _AUC, "n_positive": "positive", "n": "series"}
    columns = {"group": "group", "value": "value", "interval": _AUC, "n_positive": "positive", "n": "series"}
    blocks = (
        Chart(
            "labels",
            "AUC by label",
            f"Dot and bar: AUC and its 95 % interval over patients; in brackets, positives. {run_tests.FEW} {_ALONE}",
            figures.draw_labels(found.labels) if found.labels["auc"].notna().any() else None,
            _ONE_CLASS,
            height=120 + 37 * int(found.labels["auc"].notna().sum()),
        ),
        Table.of("label-table", "Labels", _KNOWN, run_tests.with_interval(found.labels), labels, wide=False),
        Chart(
            "subgroups",
            "Aneurysm Present by subgroup",
            "In brackets: positive / all series. A size holds the positives of that diameter against all negatives. "
            + run_tests.FEW,
            figures.draw_subgroups(defined) if len(defined) else None,
            "No subgroup has both positive and negative series.",
        ),
        Table.of(
            "group-table",
            "Subgroups",
            "" if (groups["group"] == "size").any() else "Sizes are not known: no mask and no table gave them.",
            run_tests.with_interval(groups),
            columns,
            wide=False,
        ),
    )
    text = "A difference between groups means little where the intervals overlap."
    return Section("groups", "For whom it works", text, blocks)


def _training(run: RunData) -> Section:
    table = figures.epochs(run.metrics)
    missing = "No fold has finished an epoch."
    flatters = (
        "“Score” is of the predictions this page rests on; the best epoch was picked after the fact, so it flatters."
    )
    one_fold = "One fold: its score depends on which patients it happened to hold out."
    blocks = (
        Chart(
            "loss",
            "Loss",
            "Solid: held-out patients. Dotted: training. A gap that widens is memory, not skill.",
            figures.draw_loss(table) if len(table) else None,
            missing,
        ),
        Chart(
            "score",
            "Score on held-out patients",
            "Solid: weighted score. Dotted: Aneurysm Present AUC. The grey line is chance. Before the last epoch a "
            "part of the series is validated, quickly (validation.*): points there scatter more.",
            figures.draw_score(table) if len(table) else None,
            missing,
        ),
        Chart(
            "time",
            "Where the time went",
            "All epochs together. Where much of it is waiting for patches, give the workers more threads "
            "(feed.threads) or a faster disk (feed.cache_dir).",
            figures.draw_time(table) if "seconds/steps" in table else None,
            missing,
        ),
        Table.of("folds", "Folds", flatters if len(run.metrics) > 1 else one_fold, _fold_table(run), missing=missing),
    )
    return Section("training", "How it learned", "", blocks)


def _fold_table(run: RunData) -> pd.DataFrame:
    scores = {int(row["fold"]): row for row in metrics.per_fold(run.predictions).to_dict("records")}
    return pd.DataFrame([_fold_row(fold, table, scores.get(fold, {})) for fold, table in sorted(run.metrics.items())])


def _fold_row(fold: int, table: pd.DataFrame, score: dict[Any, Any]) -> dict[str, Any]:
    best = table.iloc[int(table["val/score"].fillna(-1).argmax())]
    optional = {
        "patches/s": ("patches_per_s", "median"),
        "waiting for data": ("data_wait_fraction", "mean"),
        "GPU memory, GB": ("gpu_memory_gb", "max"),
    }
    return {
        "fold": fold,
        "score": score.get("score"),
        "present AUC": score.get("auc_present"),
        "series": score.get("n"),
        "positive": score.get("n_positive"),
        "best score": float(best["val/score"]),
        "at epoch": int(best["epoch"]) + 1,
        "epochs": len(table),
        "time": words.duration(float(table["seconds"].sum())),
        **{name: float(table[column].agg(how)) for name, (column, how) in optional.items() if column in table},
    }


def _wrong(run: RunData) -> Section:
    missed, alarms = run_cases.most_wrong(run.predictions)
    gone = (
        "The prepared volumes are no longer where the run found them, so there are no pictures; "
        "put them back and write the report again."
    )

    def block(key: str, title: str, rows: pd.DataFrame) -> Cases:
        return Cases(key, title, "", run_cases.cases(run, rows), gone if len(rows) else "There are no such series.")

    names = {"series_uid": "series", "modality": "modality", "plane": "plane", "fold": "fold", PRESENT: "probability"}
    both = pd.concat([missed.assign(kind="missed"), alarms.assign(kind="false alarm")])
    shown = {"kind": "kind", **{key: name for key, name in names.items() if key in both}}
    text = (
        "Axial, coronal and sagittal slices through the labelled point, else through the strongest candidate. "
        f"{pictures.LETTERS_MEAN} Green ring: labelled aneurysm; red cross: candidate; glow: the heat map, from the "
        "series' median to its maximum. Wrong labels and broken volumes end up here too, so look here first."
    )
    blocks = (
        block("missed", "Missed: positives with the lowest probability", missed),
        block("alarms", "False alarms: negatives with the highest probability", alarms),
        Table.of("wrong-table", "The same as a list", "", both, shown),
    )
    return Section("wrong", "Where it is most wrong", text, blocks)
