"""The series a run got most wrong, as pictures with its heat map and its points."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aneurysm_ray import rundir
from aneurysm_ray.errors import RunDirError
from aneurysm_ray.labels import PRESENT, SHORT_NAMES
from aneurysm_ray.reporting import pictures
from aneurysm_ray.reporting.page import Case
from aneurysm_ray.reporting.run_data import RunData, read_volume

EACH = 6
"""Missed and false alarms shown, each."""
_CANDIDATES_SHOWN = 3


def most_wrong(predictions: pd.DataFrame, each: int = EACH) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the positives with the lowest, and the negatives with the highest probability of an aneurysm."""
    target = predictions.get(f"target/{PRESENT}", pd.Series(np.nan, predictions.index))
    missed = predictions[target > 0.5].sort_values([PRESENT, "series_uid"]).head(each)
    alarms = predictions[target <= 0.5].sort_values([PRESENT, "series_uid"], ascending=[False, True]).head(each)
    return missed, alarms


def cases(run: RunData, rows: pd.DataFrame) -> tuple[Case, ...]:
    """Return a case for each row of predictions whose volume can still be read."""
    made = (_case(run, row) for row in rows.to_dict("records"))
    return tuple(case for case in made if case is not None)


def _case(run: RunData, row: dict[Any, Any]) -> Case | None:
    uid = str(row["series_uid"])
    prepared = read_volume(run, uid)
    if prepared is None:
        return None
    heatmap = _heatmap(run, row)
    points = np.array([(p.z, p.y, p.x) for p in prepared.points], np.float64).reshape(-1, 3)
    own = run.candidates[run.candidates["series_uid"] == uid]
    found = own.sort_values("probability", ascending=False).head(_CANDIDATES_SHOWN)
    candidates = pictures.to_voxel(prepared, found[["x_mm", "y_mm", "z_mm"]].to_numpy(np.float64))
    focus = _focus(prepared.voxels.shape, points, candidates, heatmap, prepared)
    locations = ", ".join(SHORT_NAMES.get(p.location, "location unknown") for p in prepared.points)
    facts = [
        f"probability {row[PRESENT]:.3f}",
        f"{prepared.modality}, {prepared.plane}",
        f"fold {row.get('fold', '–')}",
    ]
    if locations:
        facts.append(f"aneurysm: {locations}")
    if len(found):
        best = found.iloc[0]
        facts.append(
            f"strongest candidate {best['probability']:.2f}, {SHORT_NAMES.get(best['location'], best['location'])}"
        )
    plain, marked = (pictures.slices(prepared, focus, heatmap, points, candidates, marked=on) for on in (False, True))
    return Case(uid, tuple(facts), pictures.data_uri(plain), pictures.data_uri(marked))


def _heatmap(run: RunData, row: dict[Any, Any]) -> pictures.HeatMap | None:
    path = rundir.fold_dir(run.folder, int(row.get("fold", 0))) / rundir.HEATMAPS / f"{row['series_uid']}.npz"
    try:
        return pictures.read_heatmap(path)
    except RunDirError:
        return None


def _focus(
    shape: tuple[int, ...],
    points: NDArray[np.float64],
    candidates: NDArray[np.float64],
    heatmap: pictures.HeatMap | None,
    prepared: Any,
) -> NDArray[np.float64]:
    """Return the voxel to look at: the labelled point, else the strongest candidate, else the hottest cell."""
    for voxels in (points, candidates):
        if len(voxels):
            return np.asarray(voxels[0])
    if heatmap is not None:
        return pictures.to_voxel(prepared, pictures.hottest(heatmap))
    return np.array(shape) / 2
