"""Folds on Ray Train: real runs from prepared volumes to a summary, through deaths, on one worker and two."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from learning_sets import describe_set, fold_without_ray, small_config, volume, write_set

from aneurysm_ray import overrides, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.data import store
from aneurysm_ray.distributed import driver, predict, train, tune
from aneurysm_ray.errors import AneurysmRayError, RequestError, RunDirError
from aneurysm_ray.labels import LABELS
from aneurysm_ray.learning import checkpoint, export, inference, metrics, models

PARTS = ("feed", "steps", "validation", "mining", "writing")
TIMES = ["seconds", "patches_per_s", "data_wait_fraction", *(f"seconds/{part}" for part in PARTS)]


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set"), 12)


def settings(folder: Path, **changes: object) -> Config:
    return small_config(folder, folds__count=3, **changes)


@pytest.fixture(scope="module")
def straight(ray_session: None, volumes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One undisturbed fold of three epochs."""
    out = tmp_path_factory.mktemp("runs") / "straight"
    train.train(volumes, out, settings(volumes, optim__epochs=3, tensorboard=True), folds="1")
    return out


def events(folder: Path) -> dict[str, dict[int, float]]:
    """Read TensorBoard's files, oldest first: tag -> step -> value; a restart at a step forgets what came after it."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime_ns):
        data, at = file.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            if event.session_log.status == SessionLog.START:
                found = {tag: {s: v for s, v in row.items() if s < event.step} for tag, row in found.items()}
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def same_numbers(first: Path, second: Path) -> None:
    """Assert that two runs' histories and predictions agree to the last digit."""
    for name in (rundir.METRICS, rundir.PREDICTIONS, rundir.CANDIDATES):
        tables = [
            rundir.read_csv(run / "fold_1" / name).drop(columns=TIMES, errors="ignore") for run in (first, second)
        ]
        pd.testing.assert_frame_equal(*tables, check_exact=True)


@pytest.mark.parametrize(("text", "folds"), [("all", [0, 1, 2]), ("1", [1]), ("2,0", [0, 2]), ("1,1", [1])])
def test_folds_are_read(text: str, folds: list[int]) -> None:
    assert train.parse_folds(text, 3) == folds


@pytest.mark.parametrize("text", ["3", "-1", "x", "", "0,9"])
def test_wrong_folds_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="fold"):
        train.parse_folds(text, 3)


def test_a_run_holds_what_it_promises(straight: Path, volumes: Path) -> None:
    summary = rundir.read_json(straight / rundir.SUMMARY)
    predictions = rundir.read_csv(straight / rundir.PREDICTIONS)
    folds = rundir.read_csv(straight / rundir.FOLDS)
    assert set(predictions["series_uid"]) == set(folds.loc[folds["fold"] == 1, "series_uid"])
    assert not set(predictions["patient"]) & set(folds.loc[folds["fold"] != 1, "patient"])
    assert list(predictions[list(LABELS)].columns) == list(LABELS)
    targets, probabilities = metrics.targets_of(predictions), metrics.probabilities_of(predictions)
    assert summary["score"]["value"] == pytest.approx(metrics.weighted_score(targets, probabilities), abs=1e-12)
    assert [fold["fold"] for fold in summary["folds"]] == [1]
    assert summary["folds"][0]["epochs"] == 3
    assert len(rundir.read_csv(straight / "fold_1" / rundir.METRICS)) == 3
    for uid in predictions["series_uid"]:
        with np.load(straight / "fold_1" / rundir.HEATMAPS / f"{uid}.npz") as heatmap:
            assert heatmap["grid"].ndim == 3
            assert heatmap["affine"].shape == (4, 4)
    assert "<html" in (straight / rundir.REPORT).read_text(encoding="utf-8")
    assert "fold 1  epoch   3/3" in (straight / rundir.LOG).read_text()
    assert rundir.read_json(straight / rundir.PROVENANCE)["volumes"] == str(volumes)


def test_the_model_that_is_exported_is_the_one_whose_score_is_reported(
    straight: Path, volumes: Path, tmp_path: Path
) -> None:
    export.export_run(straight, tmp_path / "model.safetensors")
    trained = export.load(tmp_path / "model.safetensors")
    table = rundir.read_csv(straight / rundir.PREDICTIONS).set_index("series_uid")
    answers = {uid: inference.answer(trained, volumes / store.volume_path(uid), "cpu") for uid in table.index}
    for uid, row in table[list(LABELS)].iterrows():
        np.testing.assert_allclose(answers[str(uid)].probabilities, row.to_numpy(float), rtol=1e-5)


def test_the_last_epoch_is_kept_and_scored_though_an_earlier_one_was_better(tmp_path: Path) -> None:
    config, folder = small_config(tmp_path), rundir.fold_dir(tmp_path / "run", 0)
    rundir.create(tmp_path / "run", config, {"kind": "train"})
    saver, history = checkpoint.Saver(folder / rundir.CHECKPOINT_LAST), []
    for epoch, score in enumerate((0.9, 0.6)):
        torch.manual_seed(epoch)
        weights = models.build(config.model).state_dict()
        row = {"val/score": score, "val/auc_present": score, "seconds": 1.0, "data_wait_fraction": 0.0}
        history.append({"epoch": float(epoch), **row})
        targets = dict.fromkeys((f"target/{label}" for label in LABELS), 1.0)
        predictions = {"series_uid": "1", "patient": "p", "fold": 0, **dict.fromkeys(LABELS, score), **targets}
        state = {"model": weights, "ema": {}, "config": config.model_dump(mode="json"), "history": history.copy()}
        tables = {"predictions": pd.DataFrame([predictions]), "candidates": pd.DataFrame(), "heatmaps": {}}
        train._write_epoch(folder, SimpleNamespace(state=state, metrics=history[-1], **tables), saver)
    saver.wait()
    train._write_fold_summary(folder, 0)
    (kept,) = export.load(tmp_path / "run").models
    assert all(torch.equal(tensor, weights[name]) for name, tensor in kept.state_dict().items())
    assert rundir.read_json(folder / rundir.SUMMARY)["score"] == 0.6
    assert rundir.read_csv(folder / rundir.PREDICTIONS)[LABELS[-1]].tolist() == [0.6]


def test_a_run_whose_score_is_never_a_number_is_exported_and_predicts(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All whom its fold is judged by have an aneurysm everywhere, so that no label has an area under a curve."""
    rows = []
    for number in range(4):
        prepared = dataclasses.replace(volume(number, positive=True), targets=np.ones(len(LABELS), np.float32))
        path = store.write_volume(tmp_path / "set", prepared, overrides.volume_identity(Config()))
        rows.append(store.table_row(prepared, path.stat().st_size))
    store.write_table(tmp_path / "set", rows)
    describe_set(tmp_path / "set", Config())
    out = tmp_path / "run"
    monkeypatch.setattr(train, "_run_fold", fold_without_ray)
    summary = train.train(tmp_path / "set", out, small_config(tmp_path, folds__count=2, optim__epochs=1), folds="0")
    assert summary["score"]["value"] is None and [fold["score"] for fold in summary["folds"]] == [None]
    assert rundir.read_csv(out / "fold_0" / rundir.METRICS)["val/score"].isna().all()
    assert (out / rundir.REPORT).exists()
    export.export_run(out, tmp_path / "model.safetensors")
    for number, source in enumerate((out, tmp_path / "model.safetensors")):
        told = predict.predict(source, [str(tmp_path / "set")], tmp_path / f"out{number}", {})
        assert told["series"] == 4
        answers = metrics.probabilities_of(rundir.read_csv(tmp_path / f"out{number}" / rundir.PREDICTIONS))
        assert np.isfinite(answers).all() and answers.min() > 0 and answers.max() < 1


def test_tensorboard_files_hold_every_epochs_metrics(straight: Path) -> None:
    written = events(straight / "fold_1" / rundir.TENSORBOARD)
    history = rundir.read_csv(straight / "fold_1" / rundir.METRICS).set_index("epoch")
    history.columns = history.columns.str.replace(" ", "_")  # TensorBoard's names have no spaces
    assert {"train/loss", "val/loss", "val/auc_present", "lr"} <= written.keys()
    for name, steps in written.items():
        known = history[name].dropna()
        assert list(steps) == [int(epoch) for epoch in known.index]
        np.testing.assert_allclose(list(steps.values()), known.to_numpy(), rtol=1e-6)


def test_a_finished_run_is_neither_repeated_nor_overwritten(straight: Path, volumes: Path) -> None:
    before = (straight / "fold_1" / rundir.PREDICTIONS).stat().st_mtime_ns
    config = settings(volumes, optim__epochs=3, tensorboard=True)
    with pytest.raises(RunDirError, match="add --resume"):
        train.train(volumes, straight, config, folds="1")
    train.train(volumes, straight, config, folds="1", resume=True)
    assert (straight / "fold_1" / rundir.PREDICTIONS).stat().st_mtime_ns == before


def test_a_set_without_labels_is_refused(volumes: Path, tmp_path: Path) -> None:
    frame = store.volumes_table(volumes)
    store.write_table(tmp_path, frame.assign(**{LABELS[-1]: np.nan}).to_dict("records"))
    describe_set(tmp_path, Config())
    with pytest.raises(
        RequestError, match=r"no volume has labels to train on; prepare a data set that has a train\.csv"
    ):
        train.train(tmp_path, tmp_path / "run", settings(volumes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [train.train, tune.tune])
def test_a_run_that_is_driven_by_another_command_is_refused(command: Any, volumes: Path, tmp_path: Path) -> None:
    with driver.alone(tmp_path / "run"), pytest.raises(RequestError, match="belongs to a command that still runs"):
        command(volumes, tmp_path / "run", settings(volumes), resume=True)


def test_a_run_is_not_resumed_with_other_data(straight: Path, volumes: Path, tmp_path: Path) -> None:
    out = shutil.copytree(straight, tmp_path / "run")
    config = rundir.read_config(out)
    folds = (out / rundir.FOLDS).read_bytes()
    write_set(tmp_path / "more", 13)
    for command in (train.train, tune.tune):
        with pytest.raises(RunDirError, match=r"1 series \(1\.2\.0\.12\) is new"):
            command(tmp_path / "more", out, config, resume=True)
    assert (out / rundir.FOLDS).read_bytes() == folds
    moved = shutil.copytree(volumes, tmp_path / "moved")
    train.train(moved, out, config, folds="1", resume=True)
    assert rundir.read_json(out / rundir.PROVENANCE)["volumes"] == str(moved)
    same_numbers(straight, out)


def test_what_does_not_fit_is_refused_before_it_starts(ray_session: None, volumes: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"8 worker\(s\) with 1 CPUs each do not fit"):
        train.train(volumes, tmp_path / "run", settings(volumes, resources__workers=8))
    assert not (tmp_path / "run").exists(), "the next try finds no run there"


def _kill_worker_after_first_epoch(out: Path, killed: list[int]) -> None:
    """Wait for the first epoch's checkpoint, then kill -9 the Ray worker that trains."""
    import psutil

    deadline = time.monotonic() + 120
    while not (out / "fold_1" / rundir.CHECKPOINT_LAST / "state.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in psutil.process_iter(["pid", "cmdline"]):
        if " ".join(process.info["cmdline"] or []).startswith("ray::RayTrainWorker") and _is_ours(process):
            os.kill(process.pid, signal.SIGKILL)
            killed.append(process.pid)


def _is_ours(process: object) -> bool:
    """Whether a process belongs to the Ray this test session started."""
    import psutil

    ancestors = {parent.pid for parent in psutil.Process(process.pid).parents()}  # type: ignore[attr-defined]
    return os.getpid() in ancestors


def test_a_killed_worker_costs_no_digit(straight: Path, volumes: Path, tmp_path: Path) -> None:
    out, killed = tmp_path / "killed", []
    killer = threading.Thread(target=_kill_worker_after_first_epoch, args=(out, killed))
    killer.start()
    train.train(volumes, out, settings(volumes, optim__epochs=3, tensorboard=True), folds="1")
    killer.join()
    assert killed
    log = (out / rundir.LOG).read_text()
    assert "fold 1  begins: 1 worker(s), the first with 1 thread(s) on " in log
    assert "fold 1  lost a worker (" in log and "fold 1  goes on from epoch " in log
    same_numbers(straight, out)
    assert events(out / "fold_1" / rundir.TENSORBOARD).keys() == events(straight / "fold_1" / rundir.TENSORBOARD).keys()


def test_what_would_fail_again_is_not_tried_again(
    ray_session: None, volumes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A loss that is no number, on two workers of which one is told by the other's broken connection."""
    config = settings(volumes, optim__lr=1e30, optim__clip_norm=0, resources__workers=2)
    with (
        caplog.at_level("INFO"),
        pytest.raises(
            AneurysmRayError, match=r"^fold 1 failed: \d of the \d steps of epoch \d had no finite gradient; try"
        ),
    ):
        train.train(volumes, tmp_path / "run", config, folds="1")
    assert caplog.text.count("fold 1  begins: 2 worker(s)") == 1
    assert "Traceback" in (tmp_path / "run" / "fold_1" / rundir.ERROR).read_text()
    assert not (tmp_path / "run" / rundir.SUMMARY).exists()


def test_a_fold_that_must_fail_leaves_the_others_complete(
    straight: Path, volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_run_fold", fold_without_ray)
    out = shutil.copytree(straight, tmp_path / "run")
    config = rundir.read_config(out)
    (out / "fold_0").write_text("in the way")
    with pytest.raises(AneurysmRayError) as failed:
        train.train(volumes, out, config, folds="all", resume=True)
    text = str(failed.value)
    assert text.startswith("fold 0 failed: ") and "fold_0" in text and "cannot be written: " in text
    assert text.endswith("Folds 1, 2 are complete. Mend the cause and add --resume to go on")
    assert failed.value.exit_code == 1
    assert not (out / rundir.SUMMARY).exists(), "a run that lacks a fold is not complete"
    assert (out / "fold_2" / rundir.SUMMARY).exists() and (out / rundir.REPORT).exists()
    (out / "fold_0").unlink()
    summary = train.train(volumes, out, config, folds="all", resume=True)
    assert [fold["fold"] for fold in summary["folds"]] == [0, 1, 2]


def test_a_full_disk_is_what_a_fold_is_said_to_have_failed_of(
    ray_session: None,
    volumes: Path,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Neither the page, nor the log, for which there is no room either."""
    monkeypatch.setattr(train, "_run_fold", fold_without_ray)
    told = r"^fold 1 failed: .*fold_1/checkpoint_last/state\.pt cannot be written: No space left on device; make room"
    with pytest.raises(AneurysmRayError, match=told):
        train.train(volumes, small_disk / "run", settings(volumes), folds="1")
    assert not (small_disk / "run" / rundir.REPORT).exists()
    assert "Traceback" not in capfd.readouterr().err


def test_two_workers_train_as_one(straight: Path, volumes: Path, tmp_path: Path) -> None:
    out = tmp_path / "two"
    train.train(volumes, out, settings(volumes, optim__epochs=3, resources__workers=2), folds="1")
    tables = [rundir.read_csv(run / "fold_1" / rundir.PREDICTIONS) for run in (straight, out)]
    assert list(tables[0]["series_uid"]) == list(tables[1]["series_uid"])
    # Sums of gradients are rounded in another order, and three epochs of Adam enlarge that a little.
    np.testing.assert_allclose(tables[0][list(LABELS)], tables[1][list(LABELS)], rtol=0, atol=2e-3)
    losses = [rundir.read_csv(run / "fold_1" / rundir.METRICS)["train/loss"] for run in (straight, out)]
    np.testing.assert_allclose(*losses, rtol=1e-3)


@pytest.mark.slow
def test_a_killed_driver_costs_no_digit(straight: Path, volumes: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "run", tmp_path / "config.toml"
    file.write_text(overrides.to_toml(settings(volumes, optim__epochs=3)))
    words = [sys.executable, "-m", "aneurysm_ray.cli", "train", str(volumes), "--fold", "1", "--out", str(out)]
    driver = subprocess.Popen([*words, "--config", str(file)])
    deadline = time.monotonic() + 300
    while not (out / "fold_1" / rundir.CHECKPOINT_LAST / "state.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    assert not (out / rundir.SUMMARY).exists()
    subprocess.run([*words, "--resume"], check=True)
    same_numbers(straight, out)


def test_a_fold_that_never_returns_does_not_keep_an_interrupted_command_alive() -> None:
    """As one that waits for a Ray that is gone; Python waits for the threads of a pool."""
    lines = """
        import threading
        from aneurysm_ray.distributed import train

        begun = threading.Event()

        def fold(number):
            begun.set()
            threading.Event().wait()

        train._in_thread(fold, 0)
        assert begun.wait(60)
        raise KeyboardInterrupt
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(lines)], timeout=120, capture_output=True, text=True)
    assert ended.stderr.splitlines()[-1] == "KeyboardInterrupt"


@pytest.mark.slow
def test_sigterm_to_every_process_ends_in_good_order(straight: Path, volumes: Path, tmp_path: Path) -> None:
    """As SLURM sends it: to the driver, Ray's own processes and the workers alike."""
    import ray  # noqa: F401 - brings its own psutil
    import psutil  # isort: skip

    out, file = tmp_path / "my run", tmp_path / "config.toml"
    file.write_text(overrides.to_toml(settings(volumes, optim__epochs=3)))
    words = [sys.executable, "-m", "aneurysm_ray.cli", "train", str(volumes), "--fold", "1", "--out", str(out)]
    driver = subprocess.Popen([*words, "--config", str(file)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while not (out / "fold_1" / rundir.CHECKPOINT_LAST / "state.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    root = psutil.Process(driver.pid)
    for process in [root, *root.children(recursive=True)]:
        process.send_signal(signal.SIGTERM)
    _, said = driver.communicate(timeout=120)
    assert driver.returncode == 130, said
    again = f"'{out}' --resume"
    assert said.splitlines()[-1].startswith("error: interrupted; to go on: aneurysm-ray train ") and again in said
    assert not (out / rundir.DRIVER).exists()
    subprocess.run([*words, "--resume"], check=True)
    same_numbers(straight, out)
