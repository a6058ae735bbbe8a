"""A rendered series on disk and its rows: train.csv, train_localizers.csv, the vessel mask, and phantom.csv."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.data.dataset import LOCALIZER_COLUMNS, LOCALIZERS_CSV, TRAIN_COLUMNS, TRAIN_CSV
from aneurysm_ray.labels import LOCATIONS
from aneurysm_ray.phantom.faults import FAULT_COLUMNS, FAULTS, FAULTS_CSV, write_faulty
from aneurysm_ray.phantom.grid import Grid
from aneurysm_ray.phantom.options import PhantomOptions, SeriesPlan
from aneurysm_ray.phantom.series import Rendered, make_series
from aneurysm_ray.phantom.write import DicomSeries, uid_of, write_multiframe, write_slices

TRUTH_CSV = "phantom.csv"
VESSELS_NII, DOMES_NII = "_cowseg.nii", "_dome.nii"
"""How the names of masks end: vessels as in the competition's data; aneurysms, numbered from 1."""
TRUTH_COLUMNS = (
    *("series_uid", "patient", "modality", "plane", "multiframe"),
    *("location", "x_mm", "y_mm", "z_mm", "diameter_mm"),
)


@dataclass(frozen=True)
class SeriesRows:
    """What the tables say of one series."""

    train: tuple[str, ...]
    localizers: tuple[tuple[str, ...], ...]
    truth: tuple[tuple[str, ...], ...]
    """One row an aneurysm; one with an empty location where there is none."""
    fault: tuple[str, ...] = ()
    """The row of faults.csv, if the series has one."""


def store_series(folder: Path, options: PhantomOptions, plan: SeriesPlan) -> SeriesRows:
    """Make one series and write its files below `folder`; return its rows."""
    rendered = make_series(options, plan)
    rng = np.random.default_rng([options.seed, 3, plan.index])
    series = dicom_series(rng, options, rendered)
    if plan.fault:
        write_faulty(plan.fault, series, folder / series.series_uid)
    else:
        (write_multiframe if plan.multiframe else write_slices)(series, folder / series.series_uid)
    if plan.segmentation and rendered.vessels.any():
        masks = folder.parent / "segmentations"
        masks.mkdir(exist_ok=True)
        write_mask(rendered.vessels, rendered.grid, masks / f"{series.series_uid}{VESSELS_NII}")
        if options.domes:
            write_mask(rendered.aneurysms, rendered.grid, masks / f"{series.series_uid}{DOMES_NII}")
    return SeriesRows(
        _train_row(rendered, series),
        _clicks(rng, options, rendered, series),
        _truth(rendered, series),
        (series.series_uid, plan.fault, FAULTS[plan.fault].expected, FAULTS[plan.fault].quality) if plan.fault else (),
    )


def dicom_series(rng: np.random.Generator, options: PhantomOptions, rendered: Rendered) -> DicomSeries:
    """Give a rendered series its UIDs and stored values: CT as HU + 1024, MR often without rescale."""
    ct = rendered.plan.modality == "CTA"
    words = ("aneurysm_ray phantom", str(options.seed), str(rendered.plan.index))
    return DicomSeries(
        pixels=rendered.voxels + np.int16(1024) if ct else rendered.voxels,
        grid=rendered.grid,
        modality="CT" if ct else "MR",
        patient=rendered.patient,
        series_uid=uid_of(*words, "series"),
        study_uid=uid_of(*words, "study"),
        thickness_mm=rendered.thickness_mm,
        intercept=-1024 if ct else (None if rng.random() < 0.5 else 0),
        reverse=bool(rng.random() < 0.5),
    )


def write_mask(mask: NDArray[np.uint8], grid: Grid, path: Path) -> None:
    """Write a mask as NIfTI, ordered (X, Y, Z) with y flipped against the DICOM rows, as the competition's are."""
    flipped = np.ascontiguousarray(mask[:, ::-1].transpose(2, 1, 0))
    turn = np.array([[0, 0, 1, 0], [0, -1, 0, mask.shape[1] - 1], [1, 0, 0, 0], [0, 0, 0, 1]], float)
    lps_to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    image = nibabel.Nifti1Image(flipped, lps_to_ras @ grid.affine @ turn)
    nibabel.save(image, path)


def write_tables(out: Path, rows: Sequence[SeriesRows]) -> None:
    """Write the tables, sorted by series."""
    ordered = sorted(rows, key=lambda row: row.train[0])
    write_csv(out / TRUTH_CSV, TRUTH_COLUMNS, (line for row in ordered for line in row.truth))
    write_csv(out / LOCALIZERS_CSV, LOCALIZER_COLUMNS, (line for row in ordered for line in row.localizers))
    faults = [row.fault for row in ordered if row.fault]
    if faults:
        write_csv(out / FAULTS_CSV, FAULT_COLUMNS, faults)
    write_csv(out / TRAIN_CSV, TRAIN_COLUMNS, (row.train for row in ordered))


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _train_row(rendered: Rendered, series: DicomSeries) -> tuple[str, ...]:
    plan = rendered.plan
    found = {lesion.location for lesion in rendered.lesions}
    labels = [str(int(location in found)) for location in LOCATIONS]
    sex = "Female" if plan.female else "Male"
    return (series.series_uid, str(plan.age), sex, plan.modality, *labels, str(int(bool(found))))


def _clicks(
    rng: np.random.Generator, options: PhantomOptions, rendered: Rendered, series: DicomSeries
) -> tuple[tuple[str, ...], ...]:
    """One click an aneurysm: on the slice nearest to its centre, within a quarter of its radius."""
    rows = []
    for lesion in rendered.lesions:
        aside = rng.uniform(-1, 1, 3) * lesion.diameter_mm / 2 * 0.15
        z, y, x = rendered.grid.to_index(np.array(lesion.centre_mm) + aside)
        frame = int(np.clip(round(z), 0, len(rendered.voxels) - 1))
        at: dict[str, float] = {"x": round(float(x), 2), "y": round(float(y), 2)}
        if rendered.plan.multiframe:
            at["f"] = frame + options.frame_base
        sop_uid = series.sop_uid(0 if rendered.plan.multiframe else frame)
        rows.append((series.series_uid, sop_uid, repr(at), lesion.location))
    return tuple(rows)


def _truth(rendered: Rendered, series: DicomSeries) -> tuple[tuple[str, ...], ...]:
    plan = rendered.plan
    head = (series.series_uid, rendered.patient, plan.modality, plan.plane, str(int(plan.multiframe)))
    if not rendered.lesions:
        return ((*head, "", "", "", "", ""),)
    return tuple(
        (*head, lesion.location, *(f"{value:.3f}" for value in (*lesion.centre_mm, lesion.diameter_mm)))
        for lesion in rendered.lesions
    )
