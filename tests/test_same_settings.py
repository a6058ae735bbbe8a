"""One set of settings from preparation to prediction: what a fold scored, its files score again from DICOM."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from learning_sets import SMALL, write_set

from aneurysm_ray import overrides, phantom, rundir
from aneurysm_ray.cli import main
from aneurysm_ray.config import Config, VolumeConfig
from aneurysm_ray.distributed import predict
from aneurysm_ray.errors import ConfigError, RunDirError
from aneurysm_ray.labels import LABELS
from aneurysm_ray.learning import checkpoint

VOLUME: dict[str, Any] = {
    "volume.extent_mm": [90.0, 100.0, 95.0],
    "volume.spacing_mm": [3.5, 3.0, 3.25],
    "volume.window_hu": [-50.0, 600.0],
    "volume.window_medians": [0.1, 4.0],
    "volume.dtype": "int16",
    "volume.masks": False,
}
SHARED: dict[str, Any] = {
    "model.name": "small3d",
    "model.width": 4,
    "model.head": "grid",
    "model.output_stride": 4,
    "patch.size": [16, 20, 24],
    "optim.epochs": 1,
    "inference.top_k": 5,
    "inference.overlap": 0.3,
    "inference.flip": True,
    "sampler.patches_per_volume": 2,
    "folds.count": 2,
    # The last digits of a network on the CPU depend on the number of its threads; this process has one.
    "resources.cpus_per_worker": 1,
}


def words(settings: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in settings.items()]


def test_every_volume_setting_is_off_its_default() -> None:
    default, here = Config().volume, overrides.build(VOLUME).volume
    same = [name for name in VolumeConfig.model_fields if getattr(default, name) == getattr(here, name)]
    assert same == ["format"]


@pytest.fixture(scope="module")
def prepared(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set of CT and MR series, and the set prepared from it with settings of its own."""
    root = tmp_path_factory.mktemp("same")
    options = phantom.PhantomOptions(count=6, seed=3, modalities=("CTA", "MRA"), spacing_mm=3.0, min_mm=8)
    phantom.write_dataset(root / "data", options)
    assert main(["prepare", str(root / "data"), str(root / "set"), *words(VOLUME)]) == 0
    return root / "data", root / "set"


def probabilities(path: Path) -> pd.DataFrame:
    """Read a table's 14 columns, every digit of them, by series."""
    table = pd.read_csv(path, dtype=str).rename(columns={"SeriesInstanceUID": "series_uid"})
    return table.set_index("series_uid")[list(LABELS)].map(float).sort_index()


def test_predictions_from_dicom_equal_the_folds_own_scores(
    prepared: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "shares_of", lambda cluster, series: predict.Shares(1.0, 1, 1.0, 0.0))
    data, volumes = prepared
    run, model = tmp_path / "run", tmp_path / "model.safetensors"
    assert main(["train", str(volumes), "--out", str(run), *words(SHARED)]) == 0
    learnt = checkpoint.load_model(rundir.fold_dir(run, 0) / rundir.CHECKPOINT_LAST)[1]
    assert learnt.volume == rundir.read_config(run).volume == overrides.build(VOLUME).volume
    assert main(["export", str(run), str(model)]) == 0
    own = probabilities(rundir.fold_dir(run, 0) / rundir.PREDICTIONS)
    assert 1 < len(own) < 6 and own.to_numpy().std() > 1e-6
    dicom = [str(data / "series" / uid) for uid in own.index]
    for name, source, paths in (("a", run, dicom), ("b", model, [str(volumes)])):
        assert main(["predict", str(source), *paths, "--out", str(tmp_path / name)]) == 0
        again = probabilities(tmp_path / name / rundir.PREDICTIONS).loc[own.index]
        np.testing.assert_array_equal(again.to_numpy(), own.to_numpy())


@pytest.mark.parametrize("word", words({**VOLUME, "volume.spacing_mm": [0.8, 0.5, 0.5]}))
def test_a_word_that_contradicts_the_set_is_refused_before_anything_starts(
    word: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    volumes = write_set(tmp_path / "set", 2)
    settings = overrides.build({"volume.spacing_mm": [1.0, 1.0, 1.0]}).volume.model_dump(mode="json")
    rundir.write_json(volumes / rundir.PREPARE, {"kind": "volumes", "volume": settings})
    for command in ("train", "tune"):
        caplog.clear()
        assert main([command, str(volumes), "--out", str(tmp_path / "out"), word]) == 2
        assert f"{word.partition('=')[0]}=" in caplog.text
        assert not (tmp_path / "out").exists()


def test_a_word_that_agrees_with_the_set_is_no_contradiction(tmp_path: Path) -> None:
    stored = overrides.build(VOLUME).volume
    overrides.refuse_contradiction(overrides.load(overrides=words(VOLUME)), tmp_path, stored)
    with pytest.raises(ConfigError, match=r"volume\.dtype=\"uint8\" contradicts .* prepared with \"int16\""):
        overrides.refuse_contradiction(overrides.build(VOLUME, {"volume.dtype": "uint8"}), tmp_path, stored)


@pytest.mark.parametrize("command", ["train", "tune"])
def test_sets_of_another_version_are_refused_with_the_cure(
    command: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    volumes = write_set(tmp_path / "set", 2)
    facts = rundir.read_json(volumes / rundir.PREPARE)
    del facts["volume"]["format"]
    rundir.write_json(volumes / rundir.PREPARE, facts)
    assert main([command, str(volumes), "--out", str(tmp_path / "out")]) == 2
    assert "prepare the data anew" in caplog.text


def test_runs_of_another_version_are_refused_with_the_cure(tmp_path: Path) -> None:
    run = tmp_path / "run"
    rundir.create(run, overrides.build(SMALL), {"kind": "train"})
    text = (run / rundir.CONFIG).read_text()
    (run / rundir.CONFIG).write_text(text.replace("format = 2\n", ""))
    assert (run / rundir.CONFIG).read_text() != text
    with pytest.raises(RunDirError, match="prepare the data anew and train on that"):
        rundir.read_config(run)
    state = {"model": {}, "ema": {}, "config": overrides.build(SMALL).model_dump(mode="json")}
    del state["config"]["volume"]["format"]
    checkpoint.save(tmp_path / "checkpoint", state)
    with pytest.raises(RunDirError, match="prepare the data anew and train on that"):
        checkpoint.load_model(tmp_path / "checkpoint")
