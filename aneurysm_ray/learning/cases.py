"""The rows of a prepared set as training sees them: geometry, labels and points, without voxels."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aneurysm_ray.errors import RequestError
from aneurysm_ray.labels import LABELS, LOCATIONS, PRESENT_INDEX

IGNORED = -2
"""Label of a place that is neither positive nor negative."""


@dataclass(frozen=True, eq=False)
class Case:
    """One series of a prepared set."""

    series_uid: str
    patient: str
    modality: str
    plane: str
    path: Path
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    """(4, 4): voxel (z, y, x, 1) to patient (x, y, z, 1) in mm."""
    targets: NDArray[np.float32]
    """(14,), NaN where unknown."""
    points: NDArray[np.float32]
    """(P, 3): voxels (z, y, x); may lie outside."""
    point_labels: NDArray[np.int64]
    """(P,): index of each point's location in `labels.LABELS`, the last where it is unknown; or IGNORED."""
    point_radii_mm: NDArray[np.float32]
    """(P,): radius of each point's aneurysm, NaN where unknown."""
    has_vessels: bool = False
    """A mask of its vessels is stored with it."""
    has_domes: bool = False
    """A mask of its aneurysms' domes is."""
    vessel_places: NDArray[np.int16] = field(default_factory=lambda: np.empty((0, 3), np.int16))
    """(V, 3): some voxels (z, y, x) that lie on vessels, of its mask or of `data.vesselness`."""

    @property
    def spacing_mm(self) -> NDArray[np.float32]:
        """(3,) voxel spacing (z, y, x)."""
        spacing: NDArray[np.float32] = np.linalg.norm(self.affine[:3, :3], axis=0).astype(np.float32)
        return spacing

    @property
    def base(self) -> NDArray[np.float32]:
        """(14,) what holds away from every point: 0, or NaN where nobody can say (see `targets`)."""
        return base_labels(self.targets, self.point_labels)


def base_labels(targets: NDArray[np.float32], point_labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return (14,): 0 for labels that are negative or whose lesions all have points, NaN for the others."""
    has_point = np.isin(np.arange(len(LABELS)), point_labels)
    unplaced = (targets == 1) & ~has_point
    unplaced[PRESENT_INDEX] = unplaced[: len(LOCATIONS)].any() or (
        targets[PRESENT_INDEX] == 1 and not (point_labels >= 0).any()
    )
    unknown = np.isnan(targets) & ~has_point
    unknown[PRESENT_INDEX] = np.isnan(targets[PRESENT_INDEX])
    return np.where(unplaced | unknown, np.nan, 0).astype(np.float32)


def from_table(table: pd.DataFrame, folder: Path) -> tuple[Case, ...]:
    """Read rows of `store.volumes_table` whose paths are relative to `folder`.

    Raises RequestError when a series stands there twice.
    """
    if (twice := table["series_uid"][table["series_uid"].duplicated()]).any():
        raise RequestError(f"{folder}: series {twice.iloc[0]} stands in the table twice")
    return tuple(_case(row, folder) for row in table.to_dict("records"))


def _case(row: dict[Any, Any], folder: Path) -> Case:
    of_point = [LOCATIONS.index(p["location"]) if p["location"] else PRESENT_INDEX for p in row["points"]]
    points = [*row["points"], *row["ignored"]]
    z, y, x = (int(n) for n in row["shape"])
    return Case(
        series_uid=str(row["series_uid"]),
        patient=str(row["patient"]),
        modality=str(row["modality"]),
        plane=str(row["plane"]),
        path=folder / row["path"],
        shape=(z, y, x),
        affine=np.asarray(row["affine"], np.float64).reshape(4, 4),
        targets=np.array([row[label] for label in LABELS], np.float32),
        points=np.array([[p["z"], p["y"], p["x"]] for p in points], np.float32).reshape(-1, 3),
        point_labels=np.array([*of_point, *[IGNORED] * len(row["ignored"])], np.int64),
        point_radii_mm=np.array([p["radius_mm"] for p in points], np.float32),
        has_vessels=bool(row["has_vessels"]),
        has_domes=bool(row["has_domes"]),
        vessel_places=np.array(list(row["vessel_places"]), np.int16).reshape(-1, 3),
    )


def shuffled(cases: Sequence[Case], seed: Sequence[int]) -> tuple[Case, ...]:
    """Deal labels and points out to the series of other patients: a control from which nothing can be learnt.

    All that a run learns from and is judged by is dealt at once, and alike for each of its folds. A network that was
    taught other labels than the judges' still answers to what is bright, in one direction or the other, and would be
    far from an AUC of 0.5. Points keep their relative place, so that patches around them look as they would by chance.
    """
    of_patient: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda case: case.series_uid):
        of_patient.setdefault(case.patient, []).append(case)
    patients = sorted(of_patient)
    givers = dict(zip(patients, np.random.default_rng(seed).permutation(patients), strict=True))
    given = {
        case.series_uid: of_patient[givers[patient]][number % len(of_patient[givers[patient]])]
        for patient in patients
        for number, case in enumerate(of_patient[patient])
    }
    return tuple(_labelled_as(case, given[case.series_uid]) for case in cases)


def _labelled_as(case: Case, other: Case) -> Case:
    return replace(
        case,
        targets=other.targets,
        points=(other.points * (np.array(case.shape) / np.array(other.shape))).astype(np.float32),
        point_labels=other.point_labels,
        point_radii_mm=other.point_radii_mm,
        has_domes=False,  # a mask lies where the series' own aneurysm is
    )
