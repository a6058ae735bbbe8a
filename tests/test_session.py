"""Connecting to Ray."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from aneurysm_ray.distributed import session
from aneurysm_ray.errors import RequestError


def test_a_cluster_that_does_not_answer_is_a_sentence_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    for written in (address, f"ray://{address}"):
        monkeypatch.setenv("RAY_ADDRESS", written)
        with pytest.raises(RequestError, match=f"no Ray cluster answers at {written}"), session.connect():
            pass


def test_a_running_ray_is_used_and_left_running(ray_session: None) -> None:
    import ray

    before = dict(os.environ)
    with session.connect():
        assert session.cluster().most("CPU") == 4
    assert ray.is_initialized()
    assert dict(os.environ) == before


def test_more_than_the_cluster_has_is_refused_with_a_cure(ray_session: None) -> None:
    session.require({"CPU": 4}, "this needs", "Ask for less.")
    with pytest.raises(RequestError, match=r"5 folds need 40 CPU; the cluster has 4\. Use fewer folds\."):
        session.require({"CPU": 40}, "5 folds need", "Use fewer folds.")


LATE = """
import threading, time
import ray
from aneurysm_ray.distributed import session

def let_go():
    time.sleep(1.5)
    ray.put(1)
    print("let go", flush=True)

with session.connect():
    threading.Thread(target=let_go, name="iter_threaded", daemon=True).start()
print("left in order", flush=True)
"""


def test_a_thread_of_ray_data_that_is_late_does_not_end_the_process() -> None:
    """Ray itself exits with code 1 when its core worker is used after the disconnection."""
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.splitlines()) == (0, ["let go", "left in order"]), done.stderr


def test_a_launched_cluster_may_grow_to_what_its_file_allows(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert session.growth() is None
    shutil.copy(Path(__file__).parents[1] / "cluster.yaml", tmp_path / session.LAUNCHER_FILE)
    assert session.growth() is None, "a Ray of this machine's own is not the launched cluster"
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    growth = session.growth()
    assert growth is not None and growth.most == 16
    assert list(growth.nodes) == 8 * [{"CPU": 32}] + 8 * [{"CPU": 8, "GPU": 1}]
    assert session.cluster().most("GPU") == 8, "whoever asks for a GPU is given one"


def test_on_kubernetes_more_may_come_than_anybody_tells(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_KUBERAY_IN_USE", "1")
    growth = session.growth()
    assert growth is not None and not growth.nodes
    session.require({"GPU": 4}, "this needs", "Ask for less.")
