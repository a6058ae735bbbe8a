"""One file per run: the same models and answers come back, and nothing in the file can run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tomli_w
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from aneurysm_ray import overrides, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.errors import RunDirError
from aneurysm_ray.labels import LABELS, PRESENT
from aneurysm_ray.learning import calibration, checkpoint, export, models

SMALL = {
    "model.name": "small3d",
    "model.width": 4,
    "model.head": "grid",
    "patch.size": [16, 16, 16],
    "inference.flip": True,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a training run of two folds with fresh weights and made-up out-of-fold predictions."""
    folder = tmp_path / "run"
    config = overrides.build(SMALL)
    rundir.create(folder, config, {"kind": "train"})
    rng = np.random.default_rng(0)
    for fold in (0, 1):
        torch.manual_seed(fold)
        network = models.build(config.model)
        state = {"model": network.state_dict(), "ema": {}, "config": config.model_dump(mode="json")}
        checkpoint.save(rundir.fold_dir(folder, fold) / rundir.CHECKPOINT_LAST, state)
        table = pd.DataFrame(rng.uniform(0.1, 0.9, (10, 14)), columns=list(LABELS))
        targets = (rng.uniform(size=(10, 14)) < table.to_numpy()).astype(float)
        targets[:, 0] = 0  # a label without positives
        targets[:, -1] = np.arange(10) < 3
        table[[f"target/{label}" for label in LABELS]] = targets
        rundir.write_csv(rundir.fold_dir(folder, fold) / rundir.PREDICTIONS, table.assign(series_uid="1", patient="p"))
    return folder


IMAGE = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(7))


def answers(trained: export.TrainedModels) -> list[torch.Tensor]:
    return [model(IMAGE).cells for model in trained.models]


def test_export_gives_the_runs_own_answers_and_digest(run: Path, tmp_path: Path) -> None:
    export.export_run(run, tmp_path / "model.safetensors")
    ours, theirs = export.load(run), export.load(tmp_path / "model.safetensors")
    assert len(ours.models) == 2
    for a, b in zip(answers(ours), answers(theirs), strict=True):
        assert torch.equal(a, b)
    expected, _ = checkpoint.load_model(rundir.fold_dir(run, 1) / rundir.CHECKPOINT_LAST)
    assert torch.equal(answers(theirs)[1], expected(IMAGE).cells)
    assert not torch.equal(answers(theirs)[0], answers(theirs)[1])
    assert ours.digest == theirs.digest
    assert ours.config == theirs.config == overrides.build(SMALL)


def test_loading_leaves_the_random_generator_alone(run: Path) -> None:
    export.export_run(run, run.parent / "model.safetensors")
    before = torch.get_rng_state()
    export.load(run.parent / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


def test_fast_takes_one_model_and_no_flips(run: Path) -> None:
    fast = export.load(run, fast=True)
    assert len(fast.models) == 1
    assert export.load(run).config.inference.flip
    assert not fast.config.inference.flip


def alone(run: Path) -> None:
    """Leave only fold 1 of a run."""
    shutil.rmtree(rundir.fold_dir(run, 0))


def test_prevalence_and_calibration_are_those_of_the_out_of_fold_table(run: Path) -> None:
    tables = [rundir.read_csv(rundir.fold_dir(run, fold) / rundir.PREDICTIONS) for fold in (0, 1)]
    both = pd.concat(tables)
    prevalence = export.load(run).prevalence
    assert prevalence[-1] == pytest.approx(6 / 20)
    assert prevalence == pytest.approx([both[f"target/{label}"].mean() for label in LABELS])
    alone(run)
    trained = export.load(run)
    assert trained.platt[0] is None
    line = calibration.fit_platt(tables[1][f"target/{PRESENT}"], tables[1][PRESENT])
    assert trained.platt[-1] == pytest.approx(line)
    mapped = trained.calibrated(np.full(14, 0.4))
    assert np.isnan(mapped[0])
    assert mapped[-1] == pytest.approx(float(calibration.apply_platt(0.4, *line)))


def test_calibration_of_single_models_is_not_called_that_of_their_mean(run: Path, tmp_path: Path) -> None:
    export.export_run(run, tmp_path / "model.safetensors")
    for source in (run, tmp_path / "model.safetensors"):
        assert np.isnan(export.load(source).calibrated(np.full(14, 0.4))).all()


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({"inference.flip": False}, False),
        ({"inference.overlap": 0.1}, False),
        ({"inference.top_k": 7}, False),
        ({"inference.batch_size": 3, "inference.candidates": 2, "prepare.memory_mb": 900}, True),
        ({}, True),
    ],
)
def test_calibration_is_not_shown_for_settings_it_was_not_fitted_for(run: Path, changes: dict, holds: bool) -> None:
    alone(run)
    mapped = export.load(run).changed(changes).calibrated(np.full(14, 0.4))
    assert np.isfinite(mapped[-1]) == holds
    assert not np.isfinite(export.load(run, fast=True).calibrated(np.full(14, 0.4))[-1])  # it leaves out the flips


def test_models_are_those_of_the_folds_that_the_score_is_of(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(export.load(run).models) == 2
    assert "no fold of" in caplog.text
    rundir.write_json(rundir.fold_dir(run, 1) / rundir.SUMMARY, {"fold": 1})
    trained = export.load(run)
    (expected, _) = checkpoint.load_model(rundir.fold_dir(run, 1) / rundir.CHECKPOINT_LAST)
    assert len(trained.models) == 1 and torch.equal(answers(trained)[0], expected(IMAGE).cells)
    assert "1 of 2 folds" in caplog.text


def test_file_is_plain_tensors_and_text(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    export.export_run(run, path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert overrides.build(overrides.parse_toml(metadata["config"], path)) == overrides.build(SMALL)
    assert json.loads(metadata["folds"]) == [0, 1]
    assert all(name.startswith(("fold_0/", "fold_1/")) for name in load_file(path))


PLACES = ("init", "folds.file", "prepare.patient_key_file", "feed.cache_dir", "tune.storage")


def test_a_file_says_nothing_of_the_machine_that_made_it(run: Path, tmp_path: Path) -> None:
    config = overrides.build({**SMALL, **{key: "/home/somebody/secret" for key in PLACES}})
    for fold in (0, 1):
        folder = rundir.fold_dir(run, fold) / rundir.CHECKPOINT_LAST
        checkpoint.save(folder, {**checkpoint.load(folder), "config": config.model_dump(mode="json")})
    export.export_run(run, tmp_path / "model.safetensors")
    assert b"somebody" not in (tmp_path / "model.safetensors").read_bytes()
    assert export.load(tmp_path / "model.safetensors").config == overrides.build(SMALL)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _pickled(path: Path) -> None:
    torch.save({"model": object}, path)


def _other_format(path: Path) -> None:
    save_file(load_file(path), path, {**_metadata(path), "format": "aneurysm_ray 99"})


def _other_network(path: Path) -> None:
    config = overrides.to_toml(overrides.build(SMALL, {"model.width": 8}))
    save_file(load_file(path), path, {**_metadata(path), "config": config})


def _bad_folds(path: Path) -> None:
    save_file(load_file(path), path, {**_metadata(path), "folds": "[]"})


def _no_metadata(path: Path) -> None:
    save_file(load_file(path), path)


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        found: dict[str, str] = file.metadata()
    return found


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_cut, "cannot be read"),
        (_pickled, "cannot be read"),
        (_other_format, "format 'aneurysm_ray 99'"),
        (_other_network, "do not fit"),
        (_bad_folds, "at least one fold"),
        (_no_metadata, "no 'format'"),
    ],
)
def test_damaged_files_are_refused_in_words(
    run: Path, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    path = tmp_path / "model.safetensors"
    export.export_run(run, path)
    damage(path)
    with pytest.raises(RunDirError, match=said):
        export.load(path)


def _without_atlas(state: dict) -> None:
    del state["model"]["atlas"]


def _with_a_gone_setting(state: dict) -> None:
    state["config"]["optim"]["channels_last"] = True


def _with_another_layer(state: dict) -> None:
    state["model"]["stem.old"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("earlier", "said"),
    [
        (_without_atlas, r"1 not in the file \(atlas\)"),
        (_with_a_gone_setting, "optim.channels_last"),
        (_with_another_layer, r"1 not used \(stem\.old\)"),
    ],
)
@pytest.mark.parametrize("exported", [False, True])
def test_runs_and_models_of_earlier_versions_are_refused_with_the_cure(
    run: Path, tmp_path: Path, earlier: Callable[[dict], None], said: str, exported: bool
) -> None:
    folder = rundir.fold_dir(run, 1) / rundir.CHECKPOINT_LAST
    state = checkpoint.load(folder)
    source = tmp_path / "model.safetensors"
    export.export_run(run, source)
    earlier(state)
    if exported:
        kept = {f"fold_1/{name}": tensor for name, tensor in state["model"].items()}
        kept |= {name: tensor for name, tensor in load_file(source).items() if name.startswith("fold_0/")}
        config = tomli_w.dumps(state["config"])
        save_file(kept, source, {**_metadata(source), "config": config})
    else:
        checkpoint.save(folder, state)
        source = run
    with pytest.raises(RunDirError, match=said) as error:
        export.load(source)
    assert str(source) in str(error.value) and "\n" not in str(error.value)
    assert "train anew and export again, or go on with the version that wrote it" in str(error.value)


def test_search_without_a_trained_best_says_what_to_type(tmp_path: Path) -> None:
    rundir.write_json(tmp_path / "tune" / rundir.SUMMARY, {"kind": "tune"})
    with pytest.raises(RunDirError, match=r"train VOLUMES --config .*best\.toml"):
        export.load(tmp_path / "tune")


def test_search_that_trained_its_best_is_that_run(run: Path, tmp_path: Path) -> None:
    rundir.write_json(tmp_path / "tune" / rundir.SUMMARY, {"kind": "tune", "best": {"trial": 7}})
    shutil.copytree(run, tmp_path / "tune" / "train_0003")  # the best one before the search was made longer
    run.rename(tmp_path / "tune" / "train_0007")
    assert export.training_run(tmp_path / "tune") == tmp_path / "tune" / "train_0007"


def test_run_without_checkpoint_is_refused(tmp_path: Path) -> None:
    rundir.create(tmp_path / "run", Config(), {"kind": "train"})
    with pytest.raises(RunDirError, match="no checkpoint_last"):
        export.export_run(tmp_path / "run", tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()
