"""Score anyone's predictions table against a data set's labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from aneurysm_ray import rundir
from aneurysm_ray.data import identity, layout, store
from aneurysm_ray.errors import RequestError
from aneurysm_ray.labels import LABELS
from aneurysm_ray.learning import metrics


def evaluate(predictions: Path, data: Path) -> dict[str, Any]:
    """Join predictions to labels by series and compute `metrics.summarise` of them.

    `predictions` is a CSV with `series_uid` (or `SeriesInstanceUID`) and the 14 label columns; `data` is a data set
    with a train.csv or a prepared set. Raises RequestError when columns are missing or no series is in both.
    """
    joined, unmatched = _joined(predictions, data)
    summary = metrics.summarise(joined)
    return {**summary, "series": len(joined), "unmatched": unmatched}


def _joined(predictions: Path, data: Path) -> tuple[pd.DataFrame, int]:
    """Return predictions of labelled series with their labels, and how many have none."""
    table = rundir.read_csv(predictions).rename(columns={"SeriesInstanceUID": "series_uid"})
    if missing := [name for name in ("series_uid", *LABELS) if name not in table]:
        raise RequestError(f"{predictions} has no column {missing[0]!r}; it needs series_uid and the 14 labels")
    if (again := table["series_uid"].duplicated()).any():
        raise RequestError(f"{predictions} has {table['series_uid'][again].iloc[0]} more than once; keep one row of it")
    truth = labels(data)
    joined = table[["series_uid", *LABELS]].merge(truth, on="series_uid", how="inner", validate="one_to_one")
    if joined.empty:
        cure = "are they the same data set?"
        if truth["series_uid"].str.startswith(identity.MADE_ROOT).any():
            cure = (
                "files without a Series Instance UID get one of each preparation's key: predict the prepared set "
                f"itself (aneurysm-ray predict RUN {data}), whose names then are its own"
            )
        raise RequestError(f"no series of {predictions} has labels in {data}; {cure}")
    return joined, len(table) - len(joined)


def compare(first: Path, second: Path, data: Path) -> dict[str, Any]:
    """Return `second` minus `first`, two predictions tables, on the labelled series of a data set that are in both:
    `metrics.difference`, a paired bootstrap over patients, and how many series that were.

    Raises RequestError as `evaluate` does, and when no series is in both.
    """
    one, other = (_joined(path, data)[0] for path in (first, second))
    shared = len(set(one["series_uid"]) & set(other["series_uid"]))
    return {"series": shared, **{name: score.as_dict() for name, score in metrics.difference(one, other).items()}}


def labels(data: Path) -> pd.DataFrame:
    """Return series_uid, patient, modality and `target/<label>` of a data set's labelled series.

    Raises RequestError for a data set whose series nothing but their files names.
    """
    if (data / rundir.VOLUMES).exists():
        table = store.volumes_table(data)
        frame = table[["series_uid", "patient", "site", "modality", "plane"]].copy()
        targets = table[list(LABELS)].to_numpy(np.float32)
    else:
        series = [entry for entry in layout.open_dataset(data).series if entry.series_uid]
        if not series:
            raise RequestError(
                f"{data} names no series by its Series Instance UID, as predictions do; give the prepared set instead"
            )
        # One series per patient in the competition's tables, which hold no patient column.
        frame = pd.DataFrame({"series_uid": [entry.series_uid for entry in series]})
        frame["patient"] = frame["series_uid"]
        frame["site"] = [entry.site for entry in series]
        frame["modality"] = [entry.modality or "" for entry in series]
        targets = np.array([entry.targets for entry in series], np.float32).reshape(-1, len(LABELS))
    for column, label in enumerate(LABELS):
        frame[f"target/{label}"] = targets[:, column]
    frame["series_uid"] = frame["series_uid"].astype("string")
    known: pd.DataFrame = frame[~np.isnan(targets[:, -1])]
    return known.reset_index(drop=True)


def render(summary: dict[str, Any]) -> str:
    """Write a summary as the lines a terminal shows."""

    def interval(score: dict[str, Any]) -> str:
        return f"{_digits(score['value'])} [{_digits(score['low'])}, {_digits(score['high'])}]"

    lines = [
        f"score {interval(summary['score'])} over {summary['series']} series",
        *(
            f"  {row['label']:<46} {interval({**row, 'value': row['auc']})}  n+ {row['n_positive']}"
            for row in summary["labels"]
        ),
    ]
    if summary["unmatched"]:
        lines.append(f"{summary['unmatched']} predicted series have no labels and are left out")
    return "\n".join(lines)


def render_difference(found: dict[str, Any], first: Path, second: Path) -> str:
    """Write a comparison as the lines a terminal shows."""
    lines = [
        f"{second} minus {first}, on {found['series']} series that are in both; 0 in the brackets is no difference"
    ]
    for name, score in found.items():
        if name != "series":
            lines.append(f"  {name:<46} {_digits(score['value'])} [{_digits(score['low'])}, {_digits(score['high'])}]")
    return "\n".join(lines)


def _digits(value: float | None) -> str:
    return "  -  " if value is None or np.isnan(value) else f"{value:.3f}"
