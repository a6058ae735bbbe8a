"""What a training run's directory holds, read leniently: an unfinished run has less of it, and no part is vital."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from aneurysm_ray import location, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.data import store
from aneurysm_ray.errors import AneurysmRayError, RunDirError
from aneurysm_ray.labels import LABELS
from aneurysm_ray.learning import froc
from aneurysm_ray.reporting import truth


@dataclass(frozen=True, eq=False)
class RunData:
    """A training run as its page sees it."""

    folder: Path
    config: Config
    provenance: dict[str, Any]
    finished: bool
    metrics: dict[int, pd.DataFrame]
    """By fold: a row per epoch."""
    predictions: pd.DataFrame
    """Out of fold; empty before the first epoch of any fold."""
    candidates: pd.DataFrame
    volumes: pd.DataFrame | None
    """The table of the prepared set; None when it is gone."""
    points: pd.DataFrame
    """Labelled points of the scored series, patient mm; with radius_mm where a mask, a table or the truth gives it."""
    seconds: float | None

    @property
    def volumes_folder(self) -> Path:
        """The prepared set the run was trained on, wherever it was then."""
        return location.place(self.provenance.get("volumes", ""))


def read_run(folder: Path) -> RunData:
    """Read a run directory, finished or not. Raises RunDirError when it has no configuration or a damaged file."""
    provenance = rundir.read_json(folder / rundir.PROVENANCE) if (folder / rundir.PROVENANCE).exists() else {}
    folds = sorted(
        int(path.name.removeprefix("fold_")) for path in location.matching(folder, "fold_*") if path.is_dir()
    )
    finished = (folder / rundir.SUMMARY).exists()
    predictions = _table(folder, folds, rundir.PREDICTIONS, ["series_uid", "patient", "fold", *LABELS])
    volumes = _volumes(location.place(provenance.get("volumes", "")))
    points = ignored = pd.DataFrame(columns=["series_uid", "x_mm", "y_mm", "z_mm", "location", "radius_mm"])
    if volumes is not None:
        predictions = predictions.assign(site=predictions["series_uid"].map(volumes.set_index("series_uid")["site"]))
        scored = volumes[volumes["series_uid"].isin(predictions["series_uid"])]
        points, ignored = froc.points_mm(scored), froc.points_mm(scored, "ignored")
    columns = ["series_uid", "x_mm", "y_mm", "z_mm", "probability", "location"]
    known = truth.lesions(location.place(provenance.get("volumes", "")))
    return RunData(
        folder=folder,
        config=rundir.read_config(folder),
        provenance=provenance,
        finished=finished,
        metrics={
            fold: rundir.read_csv(path)
            for fold in folds
            if (path := rundir.fold_dir(folder, fold) / rundir.METRICS).exists()
        },
        predictions=predictions,
        candidates=froc.judged(_table(folder, folds, rundir.CANDIDATES, columns), points, ignored),
        volumes=volumes,
        points=points if known is None else truth.with_radius(points, known),
        seconds=rundir.read_json(folder / rundir.SUMMARY).get("seconds") if finished else None,
    )


def _table(folder: Path, folds: list[int], name: str, columns: list[str]) -> pd.DataFrame:
    """Return the run's joined table, or what its folds have so far."""
    paths = [folder / name] if (folder / name).exists() else [rundir.fold_dir(folder, fold) / name for fold in folds]
    tables = [table for path in paths if path.exists() and len(table := rundir.read_csv(path))]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def _volumes(folder: Path) -> pd.DataFrame | None:
    try:
        return store.volumes_table(folder) if (folder / rundir.VOLUMES).exists() else None
    except RunDirError:
        return None


def read_volume(run: RunData, series_uid: str) -> store.PreparedVolume | None:
    """Read a series' volume, or None when it is gone."""
    try:
        return store.read_volume(run.volumes_folder / store.volume_path(series_uid), masks=False)
    except AneurysmRayError:
        return None
