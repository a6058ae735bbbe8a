"""The competition's server: every series answered, in order and in time, whatever it is."""

import importlib.util
from pathlib import Path
from types import ModuleType

import heads
import kaggle_stand_in
import numpy as np
import pandas as pd
import pytest
import torch

from aneurysm_ray import overrides, rundir
from aneurysm_ray.data import reading
from aneurysm_ray.errors import SeriesError
from aneurysm_ray.labels import LABELS
from aneurysm_ray.learning import checkpoint, export, inference, models
from aneurysm_ray.learning.server import Predictor

CONFIG = overrides.build(
    {
        "model.name": "small3d",
        "model.width": 4,
        "model.head": "grid",
        "patch.size": [32, 32, 32],
        "volume.spacing_mm": [3.0, 3.0, 3.0],
        "inference.flip": True,
    }
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an exported model of three folds with fresh weights and known prevalence."""
    folder = tmp_path_factory.mktemp("kaggle")
    torch.set_num_threads(1)  # threads that wait for each other are slower than none on so little
    rundir.create(folder / "run", CONFIG, {"kind": "train"})
    for fold in range(3):
        torch.manual_seed(fold)
        network = models.build(CONFIG.model)
        torch.nn.init.normal_(network.head.weight)
        state = {"model": network.state_dict(), "ema": {}, "config": CONFIG.model_dump(mode="json")}
        place = rundir.fold_dir(folder / "run", fold)
        checkpoint.save(place / rundir.CHECKPOINT_LAST, state)
        table = pd.DataFrame(0.5, range(4), list(LABELS))
        table[[f"target/{label}" for label in LABELS]] = [[0.0] * 14] * 3 + [[1.0] * 14]
        rundir.write_csv(place / rundir.PREDICTIONS, table)
    export.export_run(folder / "run", folder / "model.safetensors")
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a test set: three heads, a folder of junk, an empty one and one that is not there."""
    root = tmp_path_factory.mktemp("data")
    for number, plane in enumerate(("axial", "coronal", "sagittal")):
        heads.write_head(root / "series" / f"1.2.{number}", plane, slice_mm=3.0, pixel_mm=(2.0, 2.0), seed=number)
    (root / "series" / "1.2.7").mkdir()
    (root / "series" / "1.2.7" / "junk.dcm").write_bytes(b"\0" * 1000)
    (root / "series" / "1.2.8").mkdir()
    uids = ["1.2.0", "1.2.1", "1.2.2", "1.2.7", "1.2.8", "1.2.9"]
    pd.DataFrame({"SeriesInstanceUID": uids}).to_csv(root / "test.csv", index=False)
    return root


@pytest.fixture
def job() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "jobs" / "kaggle_inference.py"
    spec = importlib.util.spec_from_file_location("kaggle_inference", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("rerun", [False, True])
def test_job_answers_every_series_of_the_gateway(
    rerun: bool, job: ModuleType, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = tmp_path / "shared"
    server = kaggle_stand_in.install(monkeypatch, data / "test.csv", data / "series", share)
    if rerun:
        monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    else:
        monkeypatch.delenv("KAGGLE_IS_COMPETITION_RERUN", raising=False)
    job.main(str(model), str(share))

    assert server.rerun.is_set() == rerun
    assert server.submission is not None
    submission = server.submission.set_index("SeriesInstanceUID")
    assert len(submission) == 6
    assert submission.loc[["1.2.7", "1.2.8", "1.2.9"]].to_numpy() == pytest.approx(0.25)
    trained = export.load(model)
    for uid in ("1.2.0", "1.2.1", "1.2.2"):
        expected = inference.answer(trained, data / "series" / uid, "cpu").probabilities
        assert np.array_equal(submission.loc[uid].to_numpy(), expected)
    assert server.gateway.left_behind == []


def test_folders_outside_the_share_are_never_deleted(model: Path, data: Path, tmp_path: Path) -> None:
    predictor = Predictor(model, share=tmp_path / "shared", on=["cpu"], read=reading.read)
    predictor(str(data / "series" / "1.2.0"))
    assert len(list((data / "series" / "1.2.0").iterdir())) == 32


@pytest.mark.parametrize("error", [SeriesError("no_head", "none"), MemoryError(), RuntimeError("CUDA out of memory")])
def test_any_error_is_answered_by_the_prevalence(error: Exception, model: Path) -> None:
    def read(path: Path, config: object) -> reading.Reading:
        raise error

    answer = Predictor(model, read=read, on=["cpu"])("/somewhere")
    assert list(answer.columns) == list(LABELS)
    assert answer.to_numpy() == pytest.approx(np.full((1, 14), 0.25))


def test_answers_that_are_not_numbers_are_replaced(model: Path, data: Path) -> None:
    predictor = Predictor(model, on=["cpu"], read=reading.read)
    torch.nn.init.constant_(predictor.trained.models[0].head.weight, float("nan"))
    assert predictor(str(data / "series" / "1.2.0")).to_numpy() == pytest.approx(np.full((1, 14), 0.25))


def test_folds_dealt_to_two_devices_give_the_same_answer(model: Path, data: Path) -> None:
    one, two = Predictor(model, on=["cpu"], read=reading.read), Predictor(model, on=["cpu", "cpu"], read=reading.read)
    series = str(data / "series" / "1.2.1")
    assert np.array_equal(one(series), two(series))


def test_pace_spends_what_was_saved_and_saves_what_was_lost(model: Path) -> None:
    predictor = Predictor(model, seconds_per_series=10, on=["cpu"])
    assert predictor.rounds(0) == 3  # nothing is known yet
    predictor.round_seconds, predictor.series, predictor.spent = 4.0, 1, 10.0
    assert predictor.rounds(1.0) == 2  # 9 s are left for rounds of 4 s
    predictor.spent = 18.0
    assert predictor.rounds(1.0) == 1  # late: at least one network answers
    predictor.spent = 1.0
    assert predictor.rounds(1.0) == 3  # ahead: all of them
    predictor.devices = ["cpu", "cpu"]
    assert predictor.rounds(1.0) == 2  # three networks on two devices
