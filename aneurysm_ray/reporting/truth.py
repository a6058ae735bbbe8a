"""Sizes of aneurysms, where the data set a prepared set came from has them in a truth table beside its series."""

from pathlib import Path

import pandas as pd

from aneurysm_ray import rundir
from aneurysm_ray.errors import RunDirError

TRUTH = "truth.csv"
"""SeriesInstanceUID and diameter_mm, a row per aneurysm: what the phantom knows of its series."""


def diameters_mm(volumes: Path) -> pd.Series | None:
    """Return the largest aneurysm's diameter by series_uid, or None where no truth table is known."""
    try:
        source = rundir.read_json(volumes / rundir.PREPARE).get("source", "")
        table = rundir.read_csv(Path(str(source)) / TRUTH)
    except (RunDirError, AttributeError):
        return None
    if not {"SeriesInstanceUID", "diameter_mm"} <= set(table.columns):
        return None
    return table.groupby("SeriesInstanceUID")["diameter_mm"].max()
