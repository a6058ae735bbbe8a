"""Outside tests: prepared sets of which a run saw no patient, scored once by the ensemble of its finished folds.

A test's predictions are those of `predict`, in `test_NAME/` of the run, with a page a series; `test_NAME.csv` holds
them with the labels, in the columns of predictions.csv. What was scored once stays: a second look, after changes that
the first one led to, would be no outside test any more.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aneurysm_ray import location, rundir
from aneurysm_ray.config import VolumeConfig
from aneurysm_ray.data import store
from aneurysm_ray.distributed import begin
from aneurysm_ray.errors import AneurysmRayError, RequestError
from aneurysm_ray.labels import LABELS

log = logging.getLogger(__name__)

SAME_MM, SAME_GREY = 0.01, 1
"""One scan kept as DICOM and, from other ends, as NIfTI differs by this much at most: rounding."""


def check(tests: Sequence[Path], volumes: Path, table: pd.DataFrame, stage: str) -> list[Path]:
    """Return the absolute places of test sets. `table` holds the rows that the run learns from.

    Raises RequestError for a set that is none, has no labels or other volume settings, shares a patient or a scan with
    the training set, or has another's name, and for any where no aneurysm is learnt.
    """
    if tests and stage == "vessels":
        raise RequestError(
            "stage = vessels learns no aneurysm that --test could score; test the run that starts from it"
        )
    places = [location.absolute(test) for test in tests]
    names: dict[str, Path] = {}
    for test in places:
        if test.name in names:
            raise RequestError(
                f"{test} and {names[test.name]} have one name, by which a run keeps its tests; rename a folder"
            )
        names[test.name] = test
        _check_settings(test, rundir.read_volume_settings(test), rundir.read_volume_settings(volumes))
        _check_patients(test, begin.labelled(test), volumes, table)
    return places


def _check_settings(test: Path, found: VolumeConfig, wanted: VolumeConfig) -> None:
    mine, theirs = wanted.model_dump(), found.model_dump()
    if other := [key for key in mine if mine[key] != theirs[key]]:
        key = other[0]
        raise RequestError(
            f"{test} was prepared with volume.{key}={theirs[key]!r}, the training set with {mine[key]!r}: a network "
            f"sees other images there than it learnt from; prepare it again with volume.{key} of the training set"
        )


def _check_patients(test: Path, there: pd.DataFrame, volumes: Path, table: pd.DataFrame) -> None:
    shared = set(there["patient"]) & set(table["patient"])
    series = _own_uids(there) & _own_uids(table)
    cure = (
        "leave them out of one of the two, as a test of whom a network has learnt says nothing; if they only share a "
        "name, prepare one of the sets with another prepare.patient_key_file"
    )
    if shared or series:
        who = f"{len(shared)} patients" if shared else f"{len(series)} series"
        some = sorted(shared or series)[0]
        raise RequestError(f"{who} of {test} are in {volumes} too, such as {some}; {cure}")
    if pair := _same_scan(test, there, volumes, table):
        raise RequestError(f"series {pair[0]} of {test} is {pair[1]} of {volumes}, voxel for voxel; {cure}")
    keys = [rundir.read_json(folder / rundir.PREPARE).get("key") for folder in (test, volumes)]
    if keys[0] != keys[1]:
        log.info(
            "* %s and %s hash their patients by different keys: whether a patient is in both cannot be seen, unless a "
            "scan is. Prepare both with one prepare.patient_key_file to know",
            *(test.name, volumes.name),
        )


def _own_uids(table: pd.DataFrame) -> set[str]:
    """Return the UIDs that series brought along. One that was made of a file's place in its set says nothing of another
    set's file at such a place."""
    return {
        uid
        for uid, codes in zip(table["series_uid"], table["quality"], strict=True)
        if "series_uid_assumed" not in codes
    }


def _same_scan(test: Path, there: pd.DataFrame, volumes: Path, table: pd.DataFrame) -> tuple[str, str] | None:
    """Return the UIDs of a scan that is in both sets; sets with keys of their own may name one scan differently."""
    shapes: dict[tuple[int, ...], list[tuple[NDArray[np.float64], str]]] = {}
    for row in table.to_dict("records"):
        shapes.setdefault(tuple(row["shape"]), []).append((_affine(row), row["series_uid"]))
    for row in there.to_dict("records"):
        for affine, uid in shapes.get(tuple(row["shape"]), ()):
            if np.abs(affine - _affine(row)).max() > SAME_MM:
                continue
            pair = [(test, row["series_uid"]), (volumes, uid)]
            try:
                first, second = (
                    store.read_volume(folder / store.volume_path(name), masks=False).voxels for folder, name in pair
                )
            except AneurysmRayError:
                continue
            if np.abs(first.astype(np.int32) - second).max() <= SAME_GREY:
                return row["series_uid"], uid
    return None


def _affine(row: dict[Any, Any]) -> NDArray[np.float64]:
    return np.asarray(row["affine"], np.float64)


def check_done(out: Path, tests: Sequence[Path], folds: Sequence[int]) -> None:
    """Raise RequestError for a set that a run has scored already, by fewer folds than it is to have now."""
    for test in tests:
        done = _folder(out, test.name) / rundir.SUMMARY
        if not done.exists():
            continue
        models = rundir.read_json(done).get("models")
        complete = [path.name for path in location.matching(out, "fold_*") if (path / rundir.SUMMARY).exists()]
        now = {*complete, *(f"fold_{fold}" for fold in folds)}
        if models != len(now):
            raise RequestError(
                f"{test.name} was scored by {models} of this run's folds already, and once is what makes it a test; "
                f"leave --test {test.name} out, or begin another run with another --out"
            )


def score(out: Path, test: Path) -> None:
    """Score a set by a run's finished folds and write `test_NAME.csv`; what is scored already is kept."""
    from aneurysm_ray.distributed import predict  # costs a second, and most runs have no test
    from aneurysm_ray.learning import evaluation

    table = out / f"{rundir.TEST}{test.name}.csv"
    if table.exists():
        return
    log.info("* testing on %s", test.name)
    there = _folder(out, test.name)
    predict.predict(out, [str(test)], there, {}, resume=(there / rundir.CONFIG).exists())
    # Predictions name no places, but a prepared set is none of a patient, and the page needs its points.
    facts = rundir.read_json(there / rundir.PROVENANCE)
    rundir.write_json(there / rundir.PROVENANCE, {**facts, "volumes": str(location.absolute(test))})
    predictions = rundir.read_csv(there / rundir.PREDICTIONS)
    answers = predictions.rename(columns={"SeriesInstanceUID": "series_uid"})[["series_uid", *LABELS]]
    answers["series_uid"] = answers["series_uid"].astype("string")
    labelled = evaluation.labels(test)
    joined = labelled.merge(answers, on="series_uid", how="inner", validate="one_to_one")
    targets = [f"target/{label}" for label in LABELS]
    about = ["series_uid", "patient", "site", "modality", "plane"]
    rundir.write_csv(table, joined[[*about, *LABELS, *targets]])


def _folder(out: Path, name: str) -> Path:
    return out / f"{rundir.TEST}{name}"


def summaries(out: Path) -> list[dict[str, Any]]:
    """Return the numbers of each outside test of a run, by name."""
    from aneurysm_ray.learning import metrics

    kept = ("n", "n_patients", "n_positive", "score", "auc_present")
    numbers = {rundir.test_name(path): metrics.summarise(rundir.read_csv(path)) for path in rundir.test_tables(out)}
    return [{"name": name, **{key: found[key] for key in kept}} for name, found in numbers.items()]
