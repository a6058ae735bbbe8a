"""Every fault of the phantom is read, or refused, as faults.csv promises."""

import csv
from pathlib import Path

import numpy as np
import pytest

from aneurysm_ray.config import VolumeConfig
from aneurysm_ray.data import catalogue, ledger, store, work
from aneurysm_ray.data.dicom import QUALITY, read_series
from aneurysm_ray.errors import SERIES_REASONS, SeriesError
from aneurysm_ray.phantom import PhantomOptions, write_dataset
from aneurysm_ray.phantom.faults import FAULTS, READABLE, Fault, write_faulty
from aneurysm_ray.phantom.grid import make_grid
from aneurysm_ray.phantom.write import DicomSeries, uid_of


def small_series(modality: str) -> DicomSeries:
    rng = np.random.default_rng(0)
    # Air, brain, vessels and bone, as stored: a reader of Hounsfield units looks for the shares of a head.
    kinds = rng.choice([24, 1064, 1350, 1900], (15, 24, 20), p=[0.35, 0.5, 0.05, 0.1])
    pixels = (kinds + rng.integers(-20, 20, kinds.shape)).astype(np.int16)
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


def test_preparation_tells_of_intercepts_and_phases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    few = {name: FAULTS[name] for name in ("double_intercept", "two_phases", "unmarked_phases")}
    monkeypatch.setattr("aneurysm_ray.phantom.options.FAULTS", few)
    options = PhantomOptions(count=1, modalities=("CTA",), spacing_mm=3.0, faults=True)
    data, out = write_dataset(tmp_path / "data", options), str(tmp_path / "set")
    volume = VolumeConfig(spacing_mm=(3.0, 3.0, 3.0)).model_dump(mode="json")
    tasks = [work.Task(source, out, volume, "00", False) for source in catalogue.find_sources(str(data))[0]]
    statuses = [work.prepare(task) for task in tasks]
    with caplog.at_level("INFO"):
        ledger.write_tables(out, {"volume": volume}, statuses, tasks, 0, (), 0.0, complete=True)
    for code in ("rescale_twice", "other_passes"):
        assert f"1  {QUALITY[code]} ({code})" in caplog.text
    assert f"1  {SERIES_REASONS['mixed_passes']}" in caplog.text
    with (data / "faults.csv").open() as stream:
        fault_of = {row["series_uid"]: row["fault"] for row in csv.DictReader(stream)}
    for status in statuses:
        uid = status.get("row", status)["series_uid"]
        fault = FAULTS[fault_of[uid]] if uid in fault_of else Fault(lambda series, folder: None)
        assert status.get("reason", READABLE) == fault.expected
        if fault.expected == READABLE:
            assert fault.quality in (*status["row"]["quality"], "")
            # Of the head's middle, brain for the most part, 0-80 HU on the window of -100 to 700.
            voxels = store.read_volume(Path(out) / status["row"]["path"]).voxels
            middle = voxels[tuple(slice(n // 3, -n // 3) for n in voxels.shape)]
            assert 0 <= np.median(middle) / 255 * 800 - 100 <= 80
