"""A cluster whose autoscaler has started no node yet, as `ray up` leaves it: Ray's stand-in for a cloud. Slow."""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dicom_sets
import pytest
from learning_sets import SMALL, write_set
from ray.train.v2._internal.constants import WORKER_GROUP_START_TIMEOUT_S_ENV_VAR
from test_two_nodes import OURS, PATIENCE_SECONDS, RAY, free_port, kill_tree, wait_for

from aneurysm_ray import overrides, rundir
from aneurysm_ray.data import store
from aneurysm_ray.distributed import session

pytestmark = pytest.mark.slow


def launcher_file(port: int) -> dict[str, object]:
    """Return what `ray up` would hand to the head: a head without CPUs, and at most two nodes of one each."""
    lists = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
    lists += ("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude")
    return {
        "cluster_name": "grows",
        "max_workers": 2,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"127.0.0.1:{port}",
            "disable_node_updaters": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "cpu": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "auth": {"ssh_user": "nobody"},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "rsync_filter": [],
        **{name: [] for name in lists},
    }


@contextlib.contextmanager
def head(*, grows: bool) -> Iterator[dict[str, str]]:
    """Start a head, and yield what a driver on it sees: a launcher's file, by which nodes come or are left to us."""
    place = Path(tempfile.mkdtemp(prefix="ag", dir="/tmp"))  # short, as Ray's sockets want
    port = free_port()
    (place / session.LAUNCHER_FILE).write_text(json.dumps(launcher_file(port)))
    environment = {
        **os.environ,
        "HOME": str(place),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        # A machine with much other work on it answers late, and is not dead.
        "RAY_health_check_failure_threshold": "40",
        **({"RAY_FAKE_CLUSTER": "1"} if grows else {}),
    }
    environment.pop("RAY_ADDRESS", None)
    ports = ("--port", str(port), "--dashboard-port", str(free_port()))
    words = ["--head", "--num-cpus", "0", *ports, "--temp-dir", str(place)]
    words += ["--autoscaling-config", str(place / session.LAUNCHER_FILE)] if grows else []
    process = start(environment, place / "head.log", *words)
    try:
        wait_for(lambda: b"--block" in (place / "head.log").read_bytes(), "the head")
        yield {**environment, "RAY_ADDRESS": f"127.0.0.1:{port}"}
    finally:
        kill_tree(process)
        shutil.rmtree(place, ignore_errors=True)


def start(environment: dict[str, str], log: Path, *words: str) -> subprocess.Popen[bytes]:
    """Start a node of Ray."""
    command = [sys.executable, "-c", RAY, "start", "--block", "--disable-usage-stats", *words]
    with log.open("wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """What a driver on the head of a cluster that grows sees."""
    with head(grows=True) as seen:
        yield seen


def ours(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", OURS, *words]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=3 * PATIENCE_SECONDS
    )


def test_preparation_waits_for_the_first_node(environment: dict[str, str], tmp_path: Path) -> None:
    dicom_sets.write_set(tmp_path / "data", 3)
    done = ours(environment, "prepare", str(tmp_path / "data"), str(tmp_path / "out"), "volume.spacing_mm=[4,4,4]")
    assert done.returncode == 0, done.stderr
    assert len(store.volumes_table(tmp_path / "out")) == 3


def test_a_search_asks_for_more_than_there_is_and_for_no_more_than_there_can_be(
    environment: dict[str, str], tmp_path: Path
) -> None:
    write_set(tmp_path / "volumes", 12)
    changes = {"folds.count": 3, "optim.epochs": 2, "tune.trials": 2, "tune.grace_epochs": 1}
    changes |= {"tune.space": {"optim.lr": {"loguniform": [1e-4, 1e-2]}}, "tune.concurrent": 2}
    (tmp_path / "small.toml").write_text(overrides.to_toml(overrides.build(SMALL, changes)))
    words = (
        "tune",
        str(tmp_path / "volumes"),
        "--out",
        str(tmp_path / "run"),
        "--config",
        str(tmp_path / "small.toml"),
    )
    done = ours(environment, *words)
    assert done.returncode == 0, done.stderr
    assert "2 at a time" in done.stderr
    assert rundir.read_csv(tmp_path / "run" / rundir.TRIALS)["state"].isin(("COMPLETE", "PRUNED")).all()
    refused = ours(environment, *words[:2], "--out", str(tmp_path / "no"), *words[4:], "resources.cpus_per_worker=2")
    assert refused.returncode == 2 and "do not fit the cluster" in refused.stderr, refused.stderr


def small_folds(folder: Path) -> list[str]:
    """Write a set and settings; return the words that train two folds of it."""
    write_set(folder / "volumes", 12)
    changes = {"folds.count": 4, "optim.epochs": 2, "feed.cache_dir": str(folder / "cache")}
    (folder / "small.toml").write_text(overrides.to_toml(overrides.build(SMALL, changes)))
    words = ["train", str(folder / "volumes"), "--out", str(folder / "run"), "--config", str(folder / "small.toml")]
    return [*words, "--fold", "0,1"]


def test_training_asks_for_nodes_and_ends_well(environment: dict[str, str], tmp_path: Path) -> None:
    words = small_folds(tmp_path)
    done = ours(environment, *words)
    assert done.returncode == 0, done.stderr
    assert "2 fold(s) at a time" in done.stderr
    assert [fold["epochs"] for fold in rundir.read_json(tmp_path / "run" / rundir.SUMMARY)["folds"]] == [2, 2]
    (tmp_path / "run" / "fold_2").write_text("in the way")
    partly = ours(environment, *words[:-1], "2,3", "--resume")
    assert partly.returncode == 1, partly.stderr
    assert "error: fold 2 failed: " in partly.stderr and "Fold 3 is complete. Mend the cause" in partly.stderr
    assert (tmp_path / "run" / "fold_3" / rundir.SUMMARY).exists()


def test_folds_wait_for_a_node_that_comes_late_and_go_on(tmp_path: Path) -> None:
    with head(grows=False) as seen:
        words = [sys.executable, "-c", OURS, *small_folds(tmp_path)]
        # Ray's own patience with a group of workers, after which it calls the wait a failure, is a minute.
        hasty = {**seen, WORKER_GROUP_START_TIMEOUT_S_ENV_VAR: "1"}
        with (tmp_path / "said").open("w") as said:
            training = subprocess.Popen(words, env=hasty, stdout=said, stderr=said)
        node = None
        try:
            waits = "fold 0, 1  waits for 1 CPUs a worker; the cluster has 0 CPUs free"
            told = (tmp_path / "said").read_text
            wait_for(lambda: told().count(waits) >= 5 or training.poll() is not None, "the line that says for what")
            assert training.poll() is None, told()
            assert "begins" not in told()
            folder = Path(tempfile.mkdtemp(prefix="n", dir=seen["HOME"]))
            place = ("--address", seen["RAY_ADDRESS"], "--temp-dir", str(folder))
            node = start(seen, Path(seen["HOME"]) / "node.log", *place, "--num-cpus", "1")
            assert training.wait(PATIENCE_SECONDS) == 0, told()
        finally:
            for process in (training, node):
                if process is not None and process.poll() is None:
                    kill_tree(process)
        assert told().count("begins: 1 worker(s)") == 2
        assert waits in told().partition("begins")[0]
    assert [fold["epochs"] for fold in rundir.read_json(tmp_path / "run" / rundir.SUMMARY)["folds"]] == [2, 2]
