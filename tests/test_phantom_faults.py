"""Every fault of the phantom is read, or refused, as faults.csv promises."""

import csv
from pathlib import Path

import numpy as np
import pytest

from aneurysm_ray.data.dicom import QUALITY, read_series
from aneurysm_ray.errors import SERIES_REASONS, SeriesError
from aneurysm_ray.phantom import PhantomOptions, write_dataset
from aneurysm_ray.phantom.faults import FAULTS, READABLE, write_faulty
from aneurysm_ray.phantom.grid import make_grid
from aneurysm_ray.phantom.write import DicomSeries, uid_of


def small_series(modality: str) -> DicomSeries:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 2000, (15, 24, 20)).astype(np.int16)
    pixels[:, 0] = 24
    grid = make_grid("axial", np.zeros(3), np.array([30.0, 24, 20]), np.array([2.0, 1, 1]), np.zeros(3))
    words = ("test", modality)
    return DicomSeries(
        pixels,
        grid,
        "CT" if modality == "CTA" else "MR",
        "somebody",
        uid_of(*words),
        uid_of(*words, "study"),
        2.0,
        -1024 if modality == "CTA" else None,
        reverse=True,
    )


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_fault_is_met_as_promised(name: str, tmp_path: Path) -> None:
    fault = FAULTS[name]
    series = small_series(fault.modality)
    write_faulty(name, series, tmp_path / series.series_uid)
    if fault.expected != READABLE:
        assert fault.expected in SERIES_REASONS
        with pytest.raises(SeriesError) as caught:
            read_series(tmp_path / series.series_uid)
        assert caught.value.reason == fault.expected
        return
    volume = read_series(tmp_path / series.series_uid)
    assert fault.quality in (*volume.quality, "") and (not fault.quality or fault.quality in QUALITY)
    lost = {"missing_slice", "truncated_file"}
    assert len(volume.voxels) == (14 if name in lost else 15)
    kept = np.delete(series.pixels, 12, axis=0) if name in lost else series.pixels
    expected = kept - 1024 if fault.modality == "CTA" else kept
    if name == "duplicate_position":
        expected, volume_voxels = np.delete(expected, 12, axis=0), np.delete(volume.voxels, 12, axis=0)
        assert np.array_equal(volume_voxels, expected)
    else:
        assert np.array_equal(volume.voxels, expected)


def test_faults_come_on_top_and_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: FAULTS[name] for name in ("scout", "empty_folder", "single_slice")}
    monkeypatch.setattr("aneurysm_ray.phantom.options.FAULTS", few)
    options = PhantomOptions(count=1, modalities=("CTA",), spacing_mm=4.0, faults=True)
    out = write_dataset(tmp_path / "data", options)
    with (out / "faults.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {(row["fault"], row["expected"], row["quality"]) for row in rows} == {
        ("scout", "readable", "localizers"),
        ("empty_folder", "no_files", ""),
        ("single_slice", "single_slice", ""),
    }
    folders = {path.name for path in (out / "series").iterdir()}
    assert len(folders) == 4 and {row["series_uid"] for row in rows} < folders
