"""The outside tests on a run's page: sets of which no fold saw a patient, scored once by all folds together."""

from pathlib import Path

import pandas as pd

from aneurysm_ray import location, rundir
from aneurysm_ray.data import store
from aneurysm_ray.errors import RunDirError
from aneurysm_ray.learning import froc, metrics
from aneurysm_ray.learning.bootstrap import Score
from aneurysm_ray.reporting import figures_run as figures
from aneurysm_ray.reporting import words
from aneurysm_ray.reporting.page import Block, Chart, Section, Table

FEW_POSITIVES = 10
"""Fewer positives than this make an AUC an anecdote; a summary names no best or worst location among them."""
FEW = f"With fewer than {FEW_POSITIVES} positives an AUC is an anecdote, its bootstrap interval too tight."

_SHOWN = {
    "group": "group",
    "value": "value",
    "interval": "AUC [95 % interval]",
    "n_positive": "positive",
    "n": "series",
}


def section(folder: Path) -> tuple[Section, ...]:
    """Return the section of a run's outside tests, none where it has none."""
    blocks: list[Block] = []
    for path in rundir.test_tables(folder):
        table = rundir.read_csv(path)
        if len(table):
            blocks += _blocks(folder, rundir.test_name(path), table.assign(site=table["site"].fillna("").astype(str)))
    if not blocks:
        return ()
    text = "Every series was scored once, by the mean of all finished folds, which saw none of its patients."
    if apart := [name for name in map(rundir.test_name, rundir.test_tables(folder)) if _keys_differ(folder, name)]:
        text += (
            f" Of {words.listed(apart)} that is known for scans alone: its patients are hashed by another key, so that "
            "one who has other scans in the training set would not be noticed."
        )
    return (Section("outside", "Outside tests", text, tuple(blocks)),)


def _keys_differ(folder: Path, name: str) -> bool:
    """Whether a test's patients could not be told from those of the training set, as far as it is known."""
    keys = []
    for run in (folder, folder / f"{rundir.TEST}{name}"):
        try:
            volumes = location.place(rundir.read_json(run / rundir.PROVENANCE)["volumes"])
            keys.append(rundir.read_json(volumes / rundir.PREPARE).get("key"))
        except (RunDirError, KeyError):
            return False
    return bool(keys[0] != keys[1])


def sentences(folder: Path) -> tuple[str, ...]:
    """Say how good a run was on each outside test."""
    told = []
    for path in rundir.test_tables(folder):
        found = metrics.summarise(rundir.read_csv(path))
        score, present = (Score.of(found[name]) for name in ("score", "auc_present"))
        told.append(
            f"On the outside test {rundir.test_name(path)} ({words.count(found['n'], 'series', 'series')}, "
            f"{found['n_positive']} with an aneurysm) the score is {words.interval(score)}, the AUC for any aneurysm "
            f"{words.interval(present)}."
        )
    return tuple(told)


def _blocks(folder: Path, name: str, table: pd.DataFrame) -> list[Block]:
    key = "".join(letter if letter.isalnum() else "-" for letter in name)
    labels = metrics.per_label(table)
    groups = metrics.subgroups(table)
    drawn = groups[groups["auc"].notna()]
    curve = _curve(folder, name, table)
    rates = {"fp_per_scan": "false positives per scan", "sensitivity": "sensitivity", "low": "low", "high": "high"}
    without = "The test set is not where it was, or has no labelled points to hold candidates against."
    return [
        Chart(
            f"outside-{key}-groups",
            f"{name}: Aneurysm Present by subgroup",
            f"In brackets: positive / all series. Sites are those that the data set names. {FEW}",
            figures.draw_subgroups(drawn) if len(drawn) else None,
            "No subgroup has both positive and negative series.",
        ),
        Table.of(f"outside-{key}-table", f"{name}: subgroups", "", with_interval(groups), _SHOWN, wide=False),
        Table.of(
            f"outside-{key}-labels",
            f"{name}: labels",
            f"The predictions are in {rundir.TEST}{name}.csv, a page for each series in {rundir.TEST}{name}/.",
            with_interval(labels),
            {"label": "label", "interval": _SHOWN["interval"], "n_positive": "positive", "n": "series"},
            wide=False,
        ),
        Table.of(
            f"outside-{key}-froc",
            f"{name}: sensitivity at false positives per scan",
            "Low and high bound the 95 % interval over patients.",
            with_rates(curve),
            rates,
            missing=without,
            wide=False,
        ),
    ]


def _curve(folder: Path, name: str, table: pd.DataFrame) -> froc.Froc | None:
    there = folder / f"{rundir.TEST}{name}"
    try:
        facts = rundir.read_json(there / rundir.PROVENANCE)
        volumes = store.volumes_table(location.place(facts["volumes"]))
        candidates = rundir.read_csv(there / rundir.CANDIDATES)
    except (RunDirError, KeyError):
        return None
    volumes = volumes[volumes["series_uid"].isin(table["series_uid"])]
    points, ignored = froc.points_mm(volumes), froc.points_mm(volumes, "ignored")
    return froc.froc(froc.judged(candidates, points, ignored), points, table) if len(points) else None


def with_rates(curve: froc.Froc | None) -> pd.DataFrame:
    """Return sensitivities with their rates of false positives as text; no row where no points are known."""
    if curve is None:
        return pd.DataFrame(columns=["fp_per_scan", "sensitivity", "low", "high"])
    return curve.table.assign(fp_per_scan=[f"{rate:g}" for rate in curve.table["fp_per_scan"]])


def with_interval(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of areas with a column of each area and its interval as text."""
    rows = table[["auc", "low", "high"]].to_numpy(float)
    return table.assign(interval=["–" if auc != auc else str(Score(auc, low, high)) for auc, low, high in rows])
