"""The tables of a search, drawn from its study and its trials' folders: a reader needs neither Optuna nor Ray.

`trials.csv` has a row per trial, `curves.csv` a row per epoch of every trial. Both are written anew while results come
in; nothing is kept in them that is not in the study or a trial's folder.
"""

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from aneurysm_ray import overrides, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.distributed import record, space, trial_process


def trials_table(
    study: optuna.Study, config: Config, parameters: tuple[space.Parameter, ...], gpus: float
) -> pd.DataFrame:
    """Return one row per trial that was begun, in order of number.

    Columns: trial, state, value (with several objectives `value/<metric>` too), `param/<key>` as the configuration
    holds it, epochs, started, ended, seconds, gpu_seconds, worker, origin, retry_of, error. The value of a PRUNED or
    RUNNING trial is its last one.
    """
    begun = [frozen for frozen in study.get_trials(deepcopy=False) if frozen.state != TrialState.WAITING]
    empty = list(_row(optuna.trial.create_trial(state=TrialState.RUNNING), config, parameters, gpus))
    return pd.DataFrame([_row(frozen, config, parameters, gpus) for frozen in begun], columns=empty)


def _row(frozen: FrozenTrial, config: Config, parameters: tuple[space.Parameter, ...], gpus: float) -> dict[str, Any]:
    facts = frozen.user_attrs
    progress = facts.get(record.PROGRESS, {})
    seconds = progress.get(record.SECONDS, 0.0)
    drawn = space.decode(frozen.params, parameters)
    return {
        "trial": frozen.number,
        "state": frozen.state.name,
        **values(frozen, config),
        **{f"param/{key}": drawn.get(key, space.field(config, key)) for key in config.tune.space},
        "epochs": progress.get(record.STEP, 0),
        "started": facts.get("started"),
        "ended": facts.get("ended"),
        "seconds": seconds,
        "gpu_seconds": seconds * gpus,
        "worker": progress.get(record.WORKER),
        "origin": facts.get("origin", "sampler"),
        "retry_of": facts.get(record.RETRY_OF),
        "error": frozen.user_attrs.get(record.ERROR, "").strip().partition("\n")[0] or None,
    }


def values(frozen: FrozenTrial, config: Config) -> dict[str, float]:
    """Return a trial's objectives as columns; NaN where there are none yet."""
    names = record.metrics(config.tune)
    if frozen.state == TrialState.COMPLETE:
        found = frozen.values
    elif frozen.intermediate_values and frozen.state != TrialState.FAIL:
        found = [frozen.intermediate_values[max(frozen.intermediate_values)]]
    else:
        found = [math.nan] * len(names)
    columns = {"value": found[0]}
    if len(names) > 1:
        columns |= {f"value/{name}": value for name, value in zip(names, found, strict=True)}
    return columns


def curves_table(out: Path, numbers: list[int]) -> pd.DataFrame:
    """Return all epochs of these trials: trial, step, fold, epoch, seconds and the metrics."""
    tables = []
    for number in numbers:
        path = trial_process.folder_of(out, number) / rundir.METRICS
        if path.exists():
            table = rundir.read_csv(path)
            table.insert(0, "trial", number)
            tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["trial", record.STEP, "epoch"])


class Curves:
    """`curves.csv`, to which a trial's epochs are added as they come: with hundreds of trials it is long."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.path = out / rundir.CURVES
        table = rundir.read_csv(self.path)
        self.columns = list(table.columns)
        self.last = {int(str(number)): int(rows[record.STEP].max()) for number, rows in table.groupby("trial")}

    def steps(self, number: int) -> int:
        """Return how many epochs of a trial there are."""
        return self.last.get(number, 0)

    def add(self, number: int) -> None:
        """Add what the trial's folder holds beyond that."""
        table = curves_table(self.out, [number])
        new = table[table[record.STEP] > self.steps(number)]
        if new.empty:
            return
        if new.columns.difference(self.columns).empty:
            rundir.append_csv(self.path, new.reindex(columns=self.columns))
        else:  # the first epochs of all, as a rule
            before = rundir.read_csv(self.path)
            rundir.write_csv(self.path, joined := pd.concat([before, new] if len(before) else [new], ignore_index=True))
            self.columns = list(joined.columns)
        self.last[number] = int(new[record.STEP].max())


def write(
    study: optuna.Study, config: Config, parameters: tuple[space.Parameter, ...], out: Path, gpus: float
) -> pd.DataFrame:
    """Write trials.csv and curves.csv; return the table of trials."""
    table = trials_table(study, config, parameters, gpus)
    rundir.write_csv(out / rundir.TRIALS, table)
    rundir.write_csv(out / rundir.CURVES, curves_table(out, list(table["trial"])))
    return table


def best_of(table: pd.DataFrame, config: Config) -> int | None:
    """Return the number of the best complete trial, by the first objective; None when none is complete."""
    complete = table[table["state"] == "COMPLETE"].set_index("trial")["value"].astype(float)
    if complete.empty:
        return None
    return int(str(complete.idxmax() if record.modes(config.tune)[0] == "max" else complete.idxmin()))


def write_best(table: pd.DataFrame, config: Config, out: Path) -> int | None:
    """Write the best complete trial's configuration as best.toml; return its number, or None when there is none.

    It says by which folds it was chosen. With several objectives it is the best by the first; the others of the Pareto
    front are in trials/.
    """
    best = best_of(table, config)
    if best is not None:
        folds = sorted({*config.tune.folds, *config.chosen.folds})
        chosen = {"chosen.folds": folds, "chosen.count": config.folds.count, "chosen.seed": config.folds.seed}
        settings = overrides.build(chosen, base=rundir.read_config(trial_process.folder_of(out, best)))
        rundir.write_text(out / rundir.BEST, overrides.to_toml(settings))
    return best


def summary(study: optuna.Study, table: pd.DataFrame, config: Config, best: int | None) -> dict[str, Any]:
    """Return what summary.json says of a search."""
    by_number = table.set_index("trial")
    counted = table[~table["trial"].isin(table["retry_of"].dropna())]
    done = {state: int((counted["state"] == state).sum()) for state in ("COMPLETE", "PRUNED", "FAIL", "RUNNING")}
    defaults = list(counted.loc[counted["origin"] == "default", "trial"])
    found = {
        "kind": "tune",
        "finished_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "metric": config.tune.metric,
        "mode": config.tune.mode,
        "trials": config.tune.trials,
        "complete": done["COMPLETE"],
        "pruned": done["PRUNED"],
        "failed": done["FAIL"],
        "running": done["RUNNING"],
        "interrupted": done["COMPLETE"] + done["PRUNED"] + done["FAIL"] < config.tune.trials,
        "epochs": int(table["epochs"].sum()),
        "epochs_without_pruning": config.optim.epochs * len(config.tune.folds) * len(table),
        "hours": float(table["seconds"].sum() / 3600),
        "gpu_hours": float(table["gpu_seconds"].sum() / 3600),
        "best": None if best is None else _point(by_number, best),
        "default": _point(by_number, defaults[0]) if defaults else None,
    }
    if len(record.metrics(config.tune)) > 1:
        found["pareto"] = [_point(by_number, trial.number) for trial in study.best_trials]
    return found


def _point(by_number: pd.DataFrame, number: int) -> dict[str, Any]:
    row = by_number.loc[number]
    columns = [column for column in row.index if column.startswith(("value/", "param/"))]
    return {
        "trial": number,
        "state": row["state"],
        "value": _plain(row["value"]),
        **{column: _plain(row[column]) for column in columns},
    }


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
