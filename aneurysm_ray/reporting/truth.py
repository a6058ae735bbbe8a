"""Sizes of aneurysms, where the data set behind a prepared set is a phantom's, whose truth is in a table."""

from pathlib import Path

import pandas as pd

from aneurysm_ray import location, rundir
from aneurysm_ray.data import identity
from aneurysm_ray.errors import RunDirError

TRUTH = "phantom.csv"
"""series_uid, location, diameter_mm and more, a row per aneurysm (`phantom/tables.py`)."""


def lesions(volumes: Path) -> pd.DataFrame | None:
    """Return series_uid, location, diameter_mm of every aneurysm, or None where no truth is known."""
    try:
        source = str(rundir.read_json(volumes / rundir.PREPARE).get("source", ""))
        # Where the data lie is known on the machine that prepared them, and nowhere else.
        there = identity.read_places(str(volumes)).get(source, "/nowhere")
        table = rundir.read_csv(location.place(there) / TRUTH)
    except (RunDirError, AttributeError):
        return None
    columns = ["series_uid", "location", "diameter_mm"]
    return table[columns].dropna() if set(columns) <= set(table.columns) else None


def diameters_mm(points: pd.DataFrame) -> pd.Series | None:
    """Return the largest aneurysm's diameter by series_uid, or None where no radius is known."""
    known = points.dropna(subset=["radius_mm"])
    return 2 * known.groupby("series_uid")["radius_mm"].max() if len(known) else None


def with_radius(points: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """Return points with radius_mm: half the diameter of the aneurysm at the same site of the same series, else as it
    was."""
    largest = truth.groupby(["series_uid", "location"], as_index=False)["diameter_mm"].max()
    joined = points.merge(largest, on=["series_uid", "location"], how="left")
    own = (joined["diameter_mm"] / 2).fillna(joined["radius_mm"])
    return joined.assign(radius_mm=own).drop(columns="diameter_mm")
