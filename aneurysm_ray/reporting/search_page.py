"""The page of a search: what was searched, what won, by how much, how sure, and what it cost."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from aneurysm_ray import location
from aneurysm_ray.labels import PRESENT
from aneurysm_ray.reporting import figures_search, figures_space, importance, provenance_blocks, search_summary
from aneurysm_ray.reporting.page import Block, Chart, Column, Page, Section, Table
from aneurysm_ray.reporting.search_data import PARAM, STATE_WORDS, SearchData, read_search, trial_dir
from aneurysm_ray.reporting.search_summary import Duel

_ERROR_FILE = "error.txt"


def page(folder: Path) -> Page:
    """Read a search's directory and return its page."""
    search = read_search(folder)
    subjects = importance.subjects(search)
    tables = {name: table for name, values in subjects.items() if len(table := importance.importances(search, values))}
    leading = next(iter(tables.values()), pd.DataFrame(columns=["key", "importance", "low", "high"]))
    found = search_summary.duel(search)
    return Page(
        title=location.absolute(folder).name,
        kind="search",
        subtitle=_subtitle(search),
        summary=search_summary.sentences(search, tables, found),
        tiles=search_summary.tiles(search, found),
        sections=(
            _progress(search),
            _mattered(search, tables, leading),
            _winner(search, found),
            _cost(search),
            _trials(search),
            provenance_blocks.section(search.config, search.provenance),
        ),
    )


def _subtitle(search: SearchData) -> str:
    tune = search.config.tune
    parts = [f"{tune.sampler.upper()} sampler", "ASHA stopping" if tune.prune else "no stopping"]
    parts.append(f"fold {', '.join(map(str, tune.folds))}")
    if started := search.provenance.get("started"):
        parts.append(f"started {str(started).replace('T', ' ')[:16]}")
    return " · ".join(parts)


def _progress(search: SearchData) -> Section:
    history = figures_search.history(search)
    metric = search.metrics[0]
    unit = "GPU-hours" if search.uses_gpus else "trial-hours"
    some = history["value"].notna().any()
    groups = figures_search.distributions(search)
    nothing = "No trial has a value yet."
    has_curves = metric in search.curves and len(search.curves)
    blocks = (
        Chart(
            "history",
            "Best so far, by trials",
            "Filled: ran to its end. Open: stopped early, at its last value. Only complete trials set a best.",
            figures_search.draw_history(history, metric) if some else None,
            nothing,
        ),
        Chart(
            "cost",
            f"Best so far, by {unit}",
            "The same against what it cost: where the line is flat, hours bought nothing.",
            figures_search.draw_cost(history, metric, f"{unit} spent") if some else None,
            nothing,
        ),
        Chart(
            "curves",
            "Learning curves",
            "A line per trial; those that were stopped are faint.",
            figures_search.draw_curves(search) if has_curves else None,
            "No trial has finished an epoch.",
        ),
        Chart(
            "edf",
            "Share of trials up to each value",
            "The further right, the better the trials (the further left, where less is better). "
            "Stopped trials count with their last value.",
            figures_search.draw_distributions(groups, metric) if groups else None,
            nothing,
        ),
    )
    return Section("progress", "How it went", "", blocks)


def _mattered(search: SearchData, tables: dict[str, pd.DataFrame], leading: pd.DataFrame) -> Section:
    table = figures_space.scored(search)
    enough = len(table) >= 2 and bool(search.keys)
    pair = tuple(leading["key"].head(2)) if len(leading) >= 2 else tuple(search.keys[:2])
    few = "Too few trials have a value."
    contour: go.Figure | None = None
    if enough and len(pair) == 2:
        contour = figures_space.draw_contour(search, table, (pair[0], pair[1]))
    rows = -(-max(len(search.keys), 1) // figures_space.COLUMNS)
    blocks = (
        Chart(
            "importance",
            "What mattered",
            "fANOVA: the share of the differences between trials that a parameter explains, alone and with others. "
            f"Whiskers: the range over {importance.REPEATS} forests, each on another resample of the trials.",
            figures_space.draw_importance(tables) if tables else None,
            f"Importance needs at least {importance.FEWEST} complete trials that differ.",
            tuple(tables),
        ),
        Chart(
            "contour",
            "The two that mattered most" if len(leading) >= 2 else "Two parameters",
            "Points are trials; the colour between them is interpolated, and blank where there are none.",
            contour,
            few,
        ),
        Chart(
            "slices",
            "Value over each parameter",
            "Warmer trials came later. Filled: complete; open: stopped early, at their last value.",
            figures_space.draw_slices(search, table) if enough else None,
            few,
            wide=True,
            height=80 + 290 * rows,
        ),
        Chart(
            "parallel",
            "Parallel coordinates",
            "A line per trial through its settings to its value on the right; the better, the warmer.",
            figures_space.draw_parallel(search, table) if enough else None,
            few,
            wide=True,
            height=420,
        ),
    )
    return Section("mattered", "What mattered", "", blocks)


def _winner(search: SearchData, found: Duel | None) -> Section:
    missing = "The best trial is the default, or one of the two is missing."
    settings, differences, heads = _settings(search, found), _differences(found), ("default", "best")
    if found is not None:
        missing = "The two left no predictions of the same series."
        heads = (f"default: trial {found.default}", f"best: trial {found.best}")
    blocks = (
        Table(
            "best-settings",
            "Settings",
            "best.toml goes straight back in as --config.",
            (Column("setting"), *(Column(head, None) for head in heads)),
            settings,
            missing,
            wide=False,
        ),
        Table(
            "best-difference",
            "Best minus default, on the same series",
            "With the 95 % interval of a paired bootstrap over patients; it does not know that the best was picked.",
            (Column("what"), Column("difference [95 % interval]")),
            differences,
            missing,
            wide=False,
        ),
    )
    return Section("winner", "Best against default", "", blocks)


def _settings(search: SearchData, found: Duel | None) -> tuple[tuple[Any, ...], ...]:
    if found is None:
        return ()
    rows = search.trials.set_index("trial")
    names = [*(PARAM + key for key in search.keys), "value", "epochs", "seconds"]
    return tuple((n.removeprefix(PARAM), rows.at[found.default, n], rows.at[found.best, n]) for n in names)


def _differences(found: Duel | None) -> tuple[tuple[str, str], ...]:
    names = {"score": "Weighted score", "auc_present": f"{PRESENT} AUC"}
    return tuple(
        (names.get(name, f"{name} AUC"), f"{score.value:+.3f} [{score.low:+.3f}, {score.high:+.3f}]")
        for name, score in (found.difference.items() if found else ())
        if not np.isnan(score.value) and name != PRESENT
    )


def _cost(search: SearchData) -> Section:
    timeline = figures_search.timeline(search)
    trade, names = figures_search.trade_off(search)
    lanes = timeline["lane"].nunique()
    blocks: tuple[Block, ...] = (
        Chart(
            "pareto",
            f"{names[1]} against {names[0]}",
            "Complete trials; joined are those that no other beats in both.",
            figures_search.draw_trade_off(trade, names) if len(trade) else None,
            "No trial is complete.",
        ),
        Chart(
            "timeline",
            "Who ran when",
            "A bar per trial, a row per place on a machine; gaps are idle time. Who ended no epoch has no bar.",
            figures_search.draw_timeline(timeline) if len(timeline) else None,
            "No trial has ended an epoch, so that nobody knows how long it ran.",
            height=max(380, 120 + 28 * lanes),
        ),
    )
    return Section("spent", "What it cost", "", blocks)


def _trials(search: SearchData) -> Section:
    names = {"trial": "trial", "state": "state"}
    values = [f"value/{metric}" for metric in search.metrics]
    names |= {name: name.removeprefix("value/") for name in values if name in search.trials} or {
        "value": search.metrics[0]
    }
    names |= {PARAM + key: key for key in search.keys}
    facts = ("epochs", "seconds", *(("gpu_seconds",) if search.uses_gpus else ()), "worker", "origin")
    names |= {name: name.replace("_", " ") for name in facts if name in search.trials}
    table = search.trials.assign(state=search.trials["state"].map(STATE_WORDS).fillna(search.trials["state"]))
    failed = search.trials[search.trials["state"] == "FAIL"]
    errors = pd.DataFrame(
        {"trial": failed["trial"], "error": [_error(search, row) for row in failed.to_dict("records")]}
    )
    blocks = (
        Table.of("trials", "All trials", "The same is in trials.csv.", table, names, None, "No trial has begun."),
        Table.of(
            "failed",
            "Failed trials",
            "The first line of each; the whole is in error.txt in the trial's directory.",
            errors,
            missing="No trial failed.",
        ),
    )
    return Section("all", "Trials", "", blocks)


def _error(search: SearchData, row: dict[Any, Any]) -> str:
    """Return the first line of a trial's error: the table's, else the exception its traceback ends with."""
    if isinstance(row["error"], str) and row["error"].strip():
        return row["error"].strip().splitlines()[0]
    path = trial_dir(search.folder, int(row["trial"])) / _ERROR_FILE
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines() if path.exists() else []
    # A traceback's own first line says nothing; what it is about stands in the next line that is not indented.
    return next((line for line in lines[1:] if line and not line[0].isspace()), lines[-1] if lines else "not recorded")
