"""Prediction of many series: a row for each, the same numbers from every form and every way, resumable."""

import gzip
import json
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import heads
import highdicom as hd
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch

from aneurysm_ray import overrides, rundir
from aneurysm_ray.data import identity, reading, store
from aneurysm_ray.data.outputs import nifti
from aneurysm_ray.distributed import predict, steps
from aneurysm_ray.errors import RequestError, RunDirError, SeriesError
from aneurysm_ray.labels import LABELS
from aneurysm_ray.learning import checkpoint, export, inference, models
from aneurysm_ray.reporting import predict_page

CONFIG = overrides.build(
    {
        "model.name": "small3d",
        "model.width": 4,
        "model.head": "grid",
        "patch.size": [16, 16, 16],
        "volume.spacing_mm": [4.0, 4.0, 4.0],
        "inference.flip": True,
    }
)


KEY = b"a test's key"
CLOSE = steps.close


@pytest.fixture(scope="module", autouse=True)
def _one_key() -> Iterator[None]:
    """Know series by the same hashes in all predictions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(identity.KEY_VARIABLE, KEY.decode())
        yield


@pytest.fixture(scope="module", autouse=True)
def _one_child() -> Iterator[None]:
    """Read all series in one child, whose libraries would take each prediction seconds; it ends when it is let go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "close", lambda: None)
        yield
    child = steps._guard(CONFIG.prepare.memory_mb).pid
    CLOSE()
    assert child is None or not Path(f"/proc/{child}").exists()


def hashed(place: Path) -> str:
    """Return by what a prediction knows a place."""
    return identity.place_hash(KEY, str(place))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a training run of two folds with fresh weights; a quarter of its series are positive."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run") / "run"
    rundir.create(folder, CONFIG, {"kind": "train"})
    for fold in range(2):
        torch.manual_seed(fold)
        network = models.build(CONFIG.model)
        torch.nn.init.normal_(network.head.weight)
        state = {"model": network.state_dict(), "ema": {}, "config": CONFIG.model_dump(mode="json")}
        place = rundir.fold_dir(folder, fold)
        checkpoint.save(place / rundir.CHECKPOINT_LAST, state)
        table = pd.DataFrame(0.5, range(4), list(LABELS))
        table[[f"target/{label}" for label in LABELS]] = [[0.0] * 14] * 3 + [[1.0] * 14]
        rundir.write_csv(place / rundir.PREDICTIONS, table)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set without tables: a head in each of three planes, junk, and a link that leaves the set."""
    root = tmp_path_factory.mktemp("data")
    for number, plane in enumerate(("axial", "coronal", "oblique")):
        heads.write_head(root / plane, plane, slice_mm=4.0, pixel_mm=(3.0, 3.0), seed=number)
    (root / "junk").mkdir()
    (root / "junk" / "a<b>.dcm").write_text("no DICOM")
    elsewhere = heads.write_head(tmp_path_factory.mktemp("elsewhere") / "away", slice_mm=8.0, pixel_mm=(6.0, 6.0))
    (root / "link").symlink_to(elsewhere)
    return root


@pytest.fixture(scope="module")
def done(run: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a prediction of the data set, made in this process."""
    out = tmp_path_factory.mktemp("out") / "out"
    summary = predict.predict(run, [str(data / name) for name in ("axial", "coronal")], out, {}, dicom=True)
    assert summary["series"] == 2
    return out


def table(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / rundir.PREDICTIONS, keep_default_na=False)


def test_tables_have_the_competitions_columns_first(done: Path) -> None:
    predictions = table(done)
    assert list(predictions.columns[:15]) == ["SeriesInstanceUID", *LABELS]
    assert (predictions["status"] == "ok").all()
    assert predictions[list(LABELS)].to_numpy(float).min() > 0
    candidates = rundir.read_csv(done / rundir.CANDIDATES)
    assert set(candidates["series_uid"]) == set(predictions["SeriesInstanceUID"])
    assert candidates.columns.tolist() == [
        *("series_uid", "x_mm", "y_mm", "z_mm", "sop_uid", "frame", "row", "column", "probability", "location")
    ]
    assert rundir.kind(done) == "predict"


def test_folder_archive_and_prepared_volume_give_bit_equal_rows(run: Path, data: Path, tmp_path: Path) -> None:
    archive = tmp_path / "axial.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (data / "axial").iterdir():
            file.write(path, f"inside/{path.name}")
    prepared = reading.read(data / "axial", CONFIG.volume).prepared
    path = store.write_volume(tmp_path / "set", prepared, overrides.volume_identity(CONFIG))
    store.write_table(tmp_path / "set", [store.table_row(prepared, path.stat().st_size)])
    predict.predict(run, [str(data / "axial"), str(archive), str(tmp_path / "set")], tmp_path / "out", {})
    rows = table(tmp_path / "out")
    assert len(rows) == 3
    assert len(set(rows["SeriesInstanceUID"])) == 1
    text = (tmp_path / "out" / rundir.PREDICTIONS).read_text().splitlines()[1:]
    assert len({",".join(line.split(",")[:15]) for line in text}) == 1


def test_whatever_cannot_be_read_has_a_row_with_the_prevalence_and_a_reason(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "FEW", 10)
    (tmp_path / "empty").mkdir()
    summary = predict.predict(run, [str(data), str(tmp_path / "empty")], tmp_path / "out", {"inference.flip": False})
    rows = table(tmp_path / "out").set_index("source")
    assert len(rows) == 6
    assert summary["fallback"] == 2, "a series that is a link is read where it lies"
    assert summary["reasons"] == {"no_files": 1, "no_images": 1}
    bad = rows[rows["status"] == "fallback"]
    assert bad[list(LABELS)].to_numpy(float) == pytest.approx(0.25)
    assert rows.loc[hashed(data / "junk"), "reason"] == "no_images"
    page = (tmp_path / "out" / str(rows.loc[hashed(data / "junk"), "page"])).read_text()
    assert "no file is a DICOM image" in page
    assert "a<b>" not in page


def test_ray_gives_the_same_tables(
    run: Path, data: Path, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict.predict(run, [str(data / "axial"), str(data / "junk")], tmp_path / "alone", {})
    monkeypatch.setattr(predict, "FEW", 1)
    # The last digits of a network on the CPU depend on the number of its threads; this process has one.
    monkeypatch.setattr(predict, "shares_of", lambda cluster, series: predict.Shares(1.0, 1, 1.0, 0.0))
    predict.predict(run, [str(data / "axial"), str(data / "junk")], tmp_path / "ray", {})
    for name in (rundir.PREDICTIONS, rundir.CANDIDATES):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_resume_scores_only_what_is_missing(run: Path, data: Path, done: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(done, out)
    before = (out / rundir.PREDICTIONS).read_bytes()
    results = sorted((out / rundir.SERIES).glob(f"*/{rundir.RESULT}"))
    results[0].unlink()
    kept = results[1].stat().st_mtime_ns
    paths = [str(data / name) for name in ("axial", "coronal")]
    with pytest.raises(RunDirError, match="--resume"):
        predict.predict(run, paths, out, {})
    predict.predict(run, paths, out, {}, resume=True)
    assert (out / rundir.PREDICTIONS).read_bytes() == before
    assert results[1].stat().st_mtime_ns == kept


def test_resume_scores_a_series_again_whose_files_have_changed(run: Path, data: Path, tmp_path: Path) -> None:
    mine, out = tmp_path / "mine", tmp_path / "out"
    for name in ("axial", "coronal"):
        shutil.copytree(data / name, mine / name)
    predict.predict(run, [str(mine / "axial"), str(mine / "coronal")], out, {})
    before = rundir.read_csv(out / rundir.PREDICTIONS).set_index("source")
    times = {path: path.stat().st_mtime_ns for path in (out / rundir.SERIES).glob(f"*/{rundir.RESULT}")}
    for file in (mine / "axial").rglob("*.dcm"):
        header = pydicom.dcmread(file)
        header.PixelData = (np.frombuffer(header.PixelData, np.int16)[::-1]).tobytes()
        header.save_as(file)
    predict.predict(run, [str(mine / "axial"), str(mine / "coronal")], out, {}, resume=True)
    after = rundir.read_csv(out / rundir.PREDICTIONS).set_index("source")
    changed = (before[list(LABELS)] != after.loc[before.index, list(LABELS)]).any(axis=1)
    assert changed.sum() == 1 and sum(path.stat().st_mtime_ns != time for path, time in times.items()) == 1


def test_resume_with_other_models_is_refused(run: Path, data: Path, done: Path, tmp_path: Path) -> None:
    shutil.copytree(done, tmp_path / "out")
    other = tmp_path / "other"
    shutil.copytree(run, other)
    shutil.copytree(rundir.fold_dir(other, 0), rundir.fold_dir(other, 1), dirs_exist_ok=True)
    with pytest.raises(RequestError, match="other models"):
        predict.predict(other, [str(data / "axial")], tmp_path / "out", {}, resume=True)


def test_series_lost_with_its_worker_is_answered(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(left: Any, order: Any, trained: Any) -> Iterator[tuple[str, str]]:
        return iter(())

    monkeypatch.setattr(predict, "_results", none)
    summary = predict.predict(run, [str(data / "axial")], tmp_path / "out", {})
    assert summary["reasons"] == {"crash": 1}
    assert table(tmp_path / "out")[list(LABELS)].to_numpy(float) == pytest.approx(0.25)


def test_bug_that_one_series_brings_out_spares_the_others(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = inference.score

    def score(trained: export.TrainedModels, series: reading.Reading, device: str) -> inference.Answer:
        if series.prepared.plane == "axial":
            raise ZeroDivisionError("a bug")
        return real(trained, series, device)

    monkeypatch.setattr(inference, "score", score)
    predict.predict(run, [str(data / name) for name in ("axial", "coronal")], tmp_path / "out", {})
    rows = table(tmp_path / "out").set_index("source")
    assert rows.loc[hashed(data / "axial"), "reason"] == "crash"
    assert "ZeroDivisionError" in str(rows.loc[hashed(data / "axial"), "message"])
    assert rows.loc[hashed(data / "coronal"), "status"] == "ok"


def test_fast_asks_one_network(run: Path, data: Path, tmp_path: Path) -> None:
    summary = predict.predict(run, [str(data / "axial")], tmp_path / "out", {}, fast=True)
    assert summary["models"] == 1
    assert not rundir.read_config(tmp_path / "out").inference.flip


def test_files_for_viewers_refer_to_the_source(done: Path, data: Path) -> None:
    folders = sorted((done / rundir.SERIES).iterdir())
    assert len(folders) == 2
    for folder in folders:
        result = json.loads((folder / rundir.RESULT).read_text())
        assert result["notes"] == []
        report = hd.sr.srread(folder / "candidates.sr.dcm")
        groups = report.content.get_planar_roi_measurement_groups()
        assert len(groups) == len(result["candidates"]) > 0
        first = groups[0].roi
        assert first.value[0].tolist() == pytest.approx(
            [result["candidates"][0]["column"] + 0.5, result["candidates"][0]["row"] + 0.5], rel=1e-5
        )
        series = Path(identity.read_places(str(done))[result["source"]])
        source = series / f"{result['candidates'][0]['sop_uid']}.dcm"
        assert source.exists()
        segmentation = hd.seg.segread(folder / "heatmap.seg.dcm")
        uids = {uids[2] for uids in segmentation.get_source_image_uids()}
        assert uids <= {path.stem for path in series.iterdir()}


def test_page_of_a_series_names_its_candidate_and_shows_pictures(done: Path) -> None:
    folder = next((done / rundir.SERIES).iterdir())
    result = json.loads((folder / rundir.RESULT).read_text())
    page = (folder / predict_page.SERIES_PAGE).read_text()
    assert result["candidates"][0]["sop_uid"] in page
    shown = 2 + min(len(result["candidates"]), predict_page.SHOWN)
    assert page.count("data:image/jpeg;base64,") == 2 * shown
    index = (done / rundir.REPORT).read_text()
    assert index.count('href="series/') == 2


def test_close_up_is_centred_on_the_candidate() -> None:
    from aneurysm_ray.reporting import pictures

    voxels = np.zeros((30, 40, 50), np.uint8)
    voxels[20, 10, 35] = 255
    affine = np.array([[0, 0, 1.0, 5], [0, 1, 0, 6], [2, 0, 0, 7], [0, 0, 0, 1]])
    volume = store.PreparedVolume("1", "", "MR", "axial", voxels, affine, np.full(14, np.nan, np.float32), (), (), "")
    part, first = pictures.cropped(volume, np.array([20.0, 10.0, 35.0]), 6.0)
    place = np.array([20, 10, 35]) - first
    assert part.voxels[tuple(place.astype(int))] == 255
    assert part.voxels.shape == (7, 13, 13)
    assert (part.affine @ [*place, 1])[:3] == pytest.approx((affine @ [20, 10, 35, 1])[:3])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("volume.spacing_mm", [3.0, 3.0, 3.0]),
        ("volume.dtype", "int16"),
        ("model.width", 8),
        ("model.output_stride", 8),
        ("patch.size", [24, 24, 24]),
        ("optim.lr", 1.0),
        ("inference.top_k", 3),
    ],
)
def test_what_the_weights_were_trained_with_cannot_be_changed(
    run: Path, data: Path, tmp_path: Path, key: str, value: Any
) -> None:
    with pytest.raises(RequestError, match=f"{key} belongs to how .* was trained"):
        predict.predict(run, [str(data)], tmp_path / "out", {key: value})
    assert not (tmp_path / "out").exists()


def test_what_agrees_with_the_weights_may_be_said(run: Path, data: Path, tmp_path: Path) -> None:
    changes = {"volume.spacing_mm": [4.0, 4.0, 4.0], "inference.top_k": 2, "inference.overlap": 0.0}
    assert predict.predict(run, [str(data / "axial")], tmp_path / "out", changes)["fallback"] == 0
    assert rundir.read_config(tmp_path / "out").inference.overlap == 0.0


def test_prepared_set_of_other_settings_is_refused(run: Path, data: Path, tmp_path: Path) -> None:
    other = overrides.build({"volume.spacing_mm": [6.0, 6.0, 6.0]})
    prepared = reading.read(data / "axial", other.volume).prepared
    path = store.write_volume(tmp_path / "set", prepared, overrides.volume_identity(other))
    store.write_table(tmp_path / "set", [store.table_row(prepared, path.stat().st_size)])
    with pytest.raises(RequestError, match=r"other volume\.\* settings"):
        predict.predict(run, [str(tmp_path / "set")], tmp_path / "out", {})


def test_path_that_is_not_there_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nowhere does not exist"):
        predict.predict(run, [str(tmp_path / "nowhere")], tmp_path / "out", {})


SECRETS = ("Xq7ZJane", "19470311")


def contents(path: Path) -> bytes:
    """Return a file's bytes, unpacked where it is packed, and its text in every encoding that might hide a word."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data += gzip.decompress(data)
    if path.suffix == ".npz":
        with zipfile.ZipFile(path) as file:
            data += b"".join(file.read(name) for name in file.namelist())
    return data + data.replace(b"\0", b"")


def test_names_of_folders_files_and_members_are_in_no_output_but_the_private_map(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readable series, refused ones of every sort, archives, NIfTI: places stay in one file."""
    monkeypatch.delenv(identity.KEY_VARIABLE)
    monkeypatch.setattr(predict, "FEW", 10)
    data, out, secret = tmp_path / "Xq7ZJane data", tmp_path / "out", "Xq7ZJane 19470311"
    heads.write_head(data / f"{secret} good", slice_mm=4.0, pixel_mm=(3.0, 3.0))
    for path in sorted((data / f"{secret} good").iterdir()):
        path.rename(path.with_name(f"{secret}{path.name}"))
    for change in ("one", "nameless"):
        shutil.copytree(data / f"{secret} good", data / f"{secret} {change}")
    for path in sorted((data / f"{secret} one").iterdir())[1:]:
        path.unlink()
    for path in (data / f"{secret} nameless").iterdir():
        image = pydicom.dcmread(path)
        del image.SeriesInstanceUID
        image.save_as(path)
    (data / f"{secret} text").mkdir()
    (data / f"{secret} text" / f"{secret}.txt").write_text(secret)
    (data / f"{secret} links").mkdir()
    (data / f"{secret} links" / secret).symlink_to(f"/nowhere/{secret}")
    packed = tmp_path / f"{secret} packed.zip"
    with zipfile.ZipFile(packed, "w") as file:
        for path in (data / f"{secret} good").iterdir():
            file.write(path, f"{secret}/{path.name}")
    broken = tmp_path / f"{secret} broken.zip"
    broken.write_bytes(packed.read_bytes()[:-700])
    prepared = reading.read(data / f"{secret} good", CONFIG.volume).prepared
    nifti.write_heatmap(tmp_path / f"{secret}.nii.gz", prepared.voxels.astype(np.float32), prepared.affine)
    paths = [str(path) for path in (data, packed, broken, tmp_path / f"{secret}.nii.gz")]
    monkeypatch.setattr(sys, "argv", ["aneurysm-ray", "predict", str(run), *paths])
    summary = predict.predict(run, paths, out, {"inference.flip": False}, dicom=True)
    assert summary["series"] == 8 and set(summary["reasons"]) >= {"no_images", "single_slice", "bad_archive"}
    # No object can refer to the images of the series without a UID.
    assert len(list(out.rglob("*.sr.dcm"))) == 2 and len(list(out.rglob("*.nii.gz"))) == 3
    private = identity.places_path(str(out))
    assert private.stat().st_mode & 0o777 == 0o600
    found = {
        str(path)
        for path in [*out.rglob("*"), *tmp_path.glob("out.*")]
        for word in SECRETS
        if word in str(path.relative_to(tmp_path)) or (path.is_file() and word.encode() in contents(path))
    }
    assert found == {str(private)}
    # Whoever asked can still tell which series is which, and every series has a UID for a name.
    rows = table(out)
    places = identity.read_places(str(out))
    assert {places[source] for source in rows["source"]} == {
        *(str(path) for path in data.iterdir()),
        *paths[1:],
    }
    assert all(map(identity.is_uid, rows["SeriesInstanceUID"]))


def test_a_prediction_of_an_earlier_version_and_one_of_another_key_are_not_gone_on_with(
    run: Path, data: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(done, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setenv(identity.KEY_VARIABLE, "another")
        with pytest.raises(RunDirError, match="another patient key"):
            predict.predict(run, [str(data / "axial")], tmp_path / "out", {}, resume=True)
    facts = rundir.read_json(tmp_path / "out" / rundir.PROVENANCE)
    del facts["key"]
    rundir.write_json(tmp_path / "out" / rundir.PROVENANCE, facts)
    with pytest.raises(RunDirError, match="kept the names of folders"):
        predict.predict(run, [str(data / "axial")], tmp_path / "out", {}, resume=True)


def test_the_child_ends_though_an_error_holds_its_guard(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "_guards", {})
    error = steps.read(steps.Item(str(data / "junk"), ""), CONFIG)
    assert isinstance(error, SeriesError) and error.__traceback__ is not None
    child = steps._guard(CONFIG.prepare.memory_mb).pid
    CLOSE()
    assert child is not None and not Path(f"/proc/{child}").exists()
