"""A run's directory followed into MLflow, a real server on loopback, and into W&B's offline files; and without them."""

import importlib.util
import json
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import synthetic_runs
from learning_sets import small_config, write_set

from aneurysm_ray import overrides, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.errors import RequestError
from aneurysm_ray.reporting import tracking

needs_mlflow = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
needs_server = pytest.mark.skipif(
    importlib.util.find_spec("mlflow.server") is None if importlib.util.find_spec("mlflow") else True,
    reason="MLflow's server is not installed",
)


def test_a_run_without_a_tracker_loads_none(tmp_path: Path) -> None:
    code = """
import sys
import aneurysm_ray.cli, aneurysm_ray.reporting.tracking as tracking
from pathlib import Path
from aneurysm_ray.config import Config
with tracking.followed(Path("nowhere"), Config(), "train"):
    pass
assert not Path("nowhere").exists()
print(sorted({name.partition(".")[0] for name in sys.modules} & {"mlflow", "wandb"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with (
        pytest.raises(RequestError, match=rf"pip install -e '\.\[{name}\]'"),
        tracking.followed(tmp_path, overrides.build({"tracker": name}), "train"),
    ):
        raise AssertionError("the run began")


@needs_mlflow
def test_a_server_that_does_not_answer_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with (
        pytest.raises(RequestError, match="does not answer"),
        tracking.followed(tmp_path, overrides.build({"tracker": "mlflow"}), "train"),
    ):
        raise AssertionError("the run began")


def run_of(folder: Path, tracker: str, patients: int = 12, folds: int = 2) -> tuple[Path, Config]:
    """Write a run that a tracker is to follow, and return its directory and settings."""
    table = synthetic_runs.write_volumes(folder / "volumes", patients, files=0)
    out = synthetic_runs.write_run(folder / "run", folder / "volumes", table, folds=folds)
    return out, overrides.build({"tracker": tracker}, base=rundir.read_config(out))


def followed_in_two_parts(out: Path, config: Config) -> pd.DataFrame:
    """Follow a run that stops in its fifth epoch and goes on, into the same runs; return its first fold's epochs."""
    epochs = rundir.read_csv(out / "fold_0" / rundir.METRICS)
    rundir.write_csv(out / "fold_0" / rundir.METRICS, epochs.head(5))
    with tracking.followed(out, config, "train"):
        pass
    rundir.write_csv(out / "fold_0" / rundir.METRICS, epochs)
    rundir.write_json(out / "fold_0" / rundir.SUMMARY, {})
    score = {"value": 0.75, "low": 0.5, "high": 0.9}
    rundir.write_json(out / rundir.SUMMARY, {"kind": "train", "score": score, "seconds": 3.0})
    # W&B calls its folders by the second, and nobody resumes a run in the one in which it stopped.
    stopped = int(time.time())
    while int(time.time()) == stopped:
        time.sleep(0.05)
    with tracking.followed(out, config, "train"):
        pass
    return epochs


def offline_records(path: Path) -> list[Any]:
    """Return the records of one of W&B's files: protocol buffers in LevelDB's log, blocks of 32 KB after 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole, found = path.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            found.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return found


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_keeps_folds_and_epochs_offline_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    out, config = run_of(tmp_path, "wandb")
    epochs = followed_in_two_parts(out, config)
    runs = rundir.read_json(out / tracking.TRACKED)["runs"]
    files = {name: sorted(tmp_path.glob(f"wandb/offline-run-*-{run}/run-{run}.wandb")) for name, run in runs.items()}
    assert sorted(files) == ["", "fold_0", "fold_1"] and len(files["fold_0"]) == 2
    steps, scores = [], []
    for path in files["fold_0"]:
        for record in offline_records(path):
            if record.HasField("run"):
                assert record.run.run_group == runs[""] and record.run.job_type == "fold"
            items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            if "val/score" in items:
                steps.append(record.history.step.num)
                scores.append(float(items["val/score"]))
    assert steps == list(range(12))
    np.testing.assert_allclose(scores, epochs["val/score"])
    settings = {
        update.key or update.nested_key[0]: update.value_json
        for record in offline_records(files[""][0])
        for update in [*record.config.update, *record.run.config.update]
    }
    assert float(settings["optim.lr"]) == config.optim.lr and json.loads(settings["model.head"]) == "grid"
    kept = {path.name for path in tmp_path.glob("wandb/offline-run-*/files/*")}
    assert not kept & {"requirements.txt", "output.log", "wandb-metadata.json"}


PATIENCE_SECONDS = 600
"""On a busy machine the server's imports alone take minutes."""


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of MLflow's own on loopback."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "a")]
    log = folder / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=folder, stdout=file, stderr=file)
    address = f"http://127.0.0.1:{port}"
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = address
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not answers(f"{address}/health"):
            assert process.poll() is None, f"the server ended: {log.read_text()}"
            assert time.monotonic() < deadline, f"the server does not answer: {log.read_text()}"
            time.sleep(0.25)
        yield address
    finally:
        os.environ.pop("MLFLOW_TRACKING_URI")
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before
        process.terminate()
        process.wait(timeout=60)


def runs_below(parent: str) -> dict[str, Any]:
    """Return the nested runs of a run by the last word of their name."""
    import mlflow

    client = mlflow.MlflowClient()
    own = client.get_run(parent)
    found = client.search_runs([own.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    return {run.data.tags["mlflow.runName"].split()[-1]: run for run in found}


def history(run: Any, metric: str) -> list[tuple[int, float]]:
    import mlflow

    found = mlflow.MlflowClient().get_metric_history(run.info.run_id, metric)
    return sorted((each.step, each.value) for each in found)


@pytest.mark.slow
@needs_server
class TestServer:
    def test_folds_are_nested_runs_with_every_epoch_once(self, server: str, tmp_path: Path) -> None:
        import mlflow

        out, config = run_of(tmp_path, "mlflow")
        epochs = followed_in_two_parts(out, config)
        parent = rundir.read_json(out / tracking.TRACKED)["runs"][""]
        own = mlflow.MlflowClient().get_run(parent)
        assert own.info.status == "FINISHED" and own.data.tags["report"] == str(out / rundir.REPORT)
        assert own.data.params["optim.lr"] == str(config.optim.lr) and own.data.params["model.head"] == "grid"
        assert (own.data.metrics["score"], own.data.metrics["score/high"]) == (0.75, 0.9)
        folds = runs_below(parent)
        assert sorted(folds) == ["fold_0", "fold_1"]
        assert folds["fold_0"].info.status == "FINISHED" and folds["fold_1"].info.status == "RUNNING"
        sent = history(folds["fold_0"], "val/score")
        assert [step for step, _ in sent] == list(range(12))
        np.testing.assert_allclose([value for _, value in sent], epochs["val/score"])

    def test_trials_are_nested_runs_with_their_settings_and_ends(self, server: str, tmp_path: Path) -> None:
        table = synthetic_runs.write_volumes(tmp_path / "volumes", 12, files=0)
        out = synthetic_runs.write_search(tmp_path / "search", table, trials=8)
        for number in (0, 1):
            rows = pd.DataFrame({"step": [1, 2], "val/score": [0.5, np.nan], "worker": "host:1"})
            rundir.write_csv(out / "trials" / f"trial_{number:04d}" / rundir.METRICS, rows)
        config = overrides.build({"tracker": "mlflow"}, base=rundir.read_config(out))
        with pytest.raises(KeyboardInterrupt), tracking.followed(out, config, "tune"):
            raise KeyboardInterrupt
        parent = rundir.read_json(out / tracking.TRACKED)["runs"][""]
        trials = runs_below(parent)
        rows = rundir.read_csv(out / rundir.TRIALS).set_index("trial")
        assert sorted(trials) == [f"trial_{number:04d}" for number in range(8)]
        for number, row in rows.iterrows():
            trial = trials[f"trial_{number:04d}"]
            assert trial.info.status == tracking._ENDS[row["state"]]
            assert float(trial.data.params["optim.lr"]) == pytest.approx(row["param/optim.lr"])
        assert history(trials["trial_0000"], "val/score") == [(1, 0.5)]

    def test_a_server_that_goes_away_costs_a_run_nothing(
        self, server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out, config = run_of(tmp_path, "mlflow", patients=6, folds=1)

        def gone(*_: object) -> None:
            raise ConnectionError("gone")

        with caplog.at_level("WARNING"), tracking.followed(out, config, "train"):
            monkeypatch.setattr(tracking.Tracker, "send", gone)
        assert "the tracker does not take this run's numbers (ConnectionError: gone)" in caplog.text

    def test_a_real_run_and_a_real_search(self, server: str, ray_session: None, tmp_path: Path) -> None:
        from aneurysm_ray.distributed import train, tune

        volumes = write_set(tmp_path / "set", 12)
        config = small_config(volumes, folds__count=2, tracker="mlflow", optim__epochs=2)
        train.train(volumes, tmp_path / "run", config, folds="all")
        parent = rundir.read_json(tmp_path / "run" / tracking.TRACKED)["runs"][""]
        folds = runs_below(parent)
        assert {name: run.info.status for name, run in folds.items()} == {"fold_0": "FINISHED", "fold_1": "FINISHED"}
        for name, run in folds.items():
            table = rundir.read_csv(tmp_path / "run" / name / rundir.METRICS)
            np.testing.assert_allclose([v for _, v in history(run, "train/loss")], table["train/loss"])
        searched = small_config(
            volumes,
            folds__count=2,
            tracker="mlflow",
            optim__epochs=1,
            tune__trials=2,
            tune__space={"optim.lr": {"loguniform": [1e-4, 1e-2]}},
        )
        tune.tune(volumes, tmp_path / "search", searched)
        trials = runs_below(rundir.read_json(tmp_path / "search" / tracking.TRACKED)["runs"][""])
        assert sorted(trials) == ["trial_0000", "trial_0001"]
        assert all(len(history(trial, "val/score")) == 1 for trial in trials.values())
