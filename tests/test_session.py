"""Connecting to Ray."""

import contextlib
import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aneurysm_ray.distributed import addresses, room, session
from aneurysm_ray.errors import AneurysmRayError, RequestError


@pytest.fixture
def unused() -> str:
    """An address at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


class Dashboard(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def dashboard() -> Iterator[str]:
    """The address of what speaks HTTP and is no head."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def refusal(monkeypatch: pytest.MonkeyPatch, address: str) -> str:
    """Return what is said of a RAY_ADDRESS."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray itself waits for more than a minute"))
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(RequestError) as refused, session.connect():
        pass
    return str(refused.value)


def test_an_address_where_nobody_listens_is_a_sentence(monkeypatch: pytest.MonkeyPatch, unused: str) -> None:
    assert refusal(monkeypatch, unused).startswith(f"no Ray cluster answers at {unused} (")


def test_the_dashboards_address_is_told_from_the_heads(monkeypatch: pytest.MonkeyPatch, dashboard: str) -> None:
    monkeypatch.setattr(session, "_ANSWER_SECONDS", 2.0)
    assert f"what answers at {dashboard} is not the head of a Ray cluster" in refusal(monkeypatch, dashboard)
    assert f"RAY_ADDRESS=http://{dashboard} is a dashboard's" in refusal(monkeypatch, f"http://{dashboard}")


@pytest.mark.parametrize(
    ("address", "words"),
    [("ray://10.0.0.1:10001", "is Ray Client's"), ("head", "is not host:port"), ("head:", "is not host:port")],
)
def test_what_is_no_address_of_a_head_is_refused(monkeypatch: pytest.MonkeyPatch, address: str, words: str) -> None:
    assert words in refusal(monkeypatch, address)


def test_auto_joins_no_strangers_ray(monkeypatch: pytest.MonkeyPatch, unused: str) -> None:
    mine, theirs = os.getuid(), os.getuid() + 1
    for found, words in (
        ({}, "finds no Ray on this machine"),
        ({unused: {theirs}}, f"finds no Ray of yours here; {unused} is another user's. Name it to join it"),
        ({unused: {mine}, "10.0.0.1:6379": {mine}}, f"could be any of 10.0.0.1:6379, {unused}"),
        # Of one's own and a stranger's it is one's own, which in this test does not answer.
        ({unused: {mine}, "10.0.0.1:6379": {theirs}}, f"no Ray cluster answers at {unused}"),
    ):
        monkeypatch.setattr(addresses, "_running", lambda found=found: found)
        assert words in refusal(monkeypatch, "auto")


def test_whoever_is_on_no_node_of_a_cluster_is_told(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the login node of a SLURM cluster."""
    import ray

    address = ray.get_runtime_context().gcs_address
    assert addresses.checked(address, 5.0) == address
    monkeypatch.setattr(addresses, "_running", lambda: {"10.0.0.1:1": {os.getuid()}})
    with pytest.raises(RequestError, match=f"cluster at {address} has no node on this machine.*aneurysm-ray submit"):
        addresses.checked(address, 0.5)


def test_processes_whose_words_are_no_text_hide_nobodys_ray() -> None:
    with subprocess.Popen([b"caf\xe9", b"60"], executable="/bin/sleep") as other:
        try:
            assert isinstance(addresses._running(), dict)
        finally:
            other.kill()


def test_what_ray_met_is_said_and_not_only_that_it_failed() -> None:
    try:
        try:
            raise RuntimeError("No node info found\nand more")
        except RuntimeError as cause:
            raise ConnectionError("Failed to connect") from cause
    except ConnectionError as error:
        assert "answers at head:6379 (No node info found);" in str(addresses.silent("head:6379", error))


PRIVATE = """
import os, sys
from pathlib import Path
import ray
from aneurysm_ray.distributed import session

with session.connect():
    context = ray.get_runtime_context()
    here = ray.get(ray.remote(lambda: os.environ["RAY_ADDRESS"]).remote())
    print("told" if here == context.gcs_address else f"{here} is not {context.gcs_address}", flush=True)
    print(context.gcs_address, flush=True)
    sockets = Path(ray._private.worker.global_worker.node.get_session_dir_path()) / "sockets"
    print("ours", any(not folder.stat().st_mode & 0o077 for folder in sockets.parents), sockets.exists(), flush=True)
    sys.stdin.read()
ours = [name for name in os.environ if name.startswith(("RAY_AUTH", "RAY_ADDRESS", "RAY_GCS"))]
print("left", ours, sorted(os.listdir(os.environ["HOME"])))
"""

STRANGER = """
import logging, sys
import ray
ray.init(sys.argv[1], logging_level=logging.ERROR)
print("ran", ray.get(ray.remote(lambda: 1).remote()))
"""


def test_a_private_ray_runs_nothing_of_whoever_has_not_its_token(tmp_path: Path) -> None:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment = {**plain, "HOME": str(tmp_path)}
    command = [sys.executable, "-c", PRIVATE]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as private:
        assert private.stdout is not None
        assert private.stdout.readline() == "told\n"
        address = private.stdout.readline().strip()
        assert private.stdout.readline() == "ours True True\n", "others reach the sockets of its object store"
        with contextlib.ExitStack() as both:
            strangers = []
            for mode, home in (
                ({"RAY_AUTH_MODE": "disabled"}, tmp_path / "nobody"),
                ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}, tmp_path / "strange"),
            ):
                strange = subprocess.Popen(
                    [sys.executable, "-c", STRANGER, address],
                    # Ray asks twenty times, a second apart, whoever refuses it.
                    env={**plain, **mode, "HOME": str(home), "RAY_NUM_REDIS_GET_RETRIES": "2"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                strangers.append(both.enter_context(strange))
                both.callback(strange.kill)
            for refused in strangers:
                said, _ = refused.communicate(timeout=200)
                assert refused.returncode != 0 and "ran 1" not in said
                assert "InvalidAuthToken" in said, "it was refused, and did not only wait too short a time"
        out, errors = private.communicate("", timeout=200)
    assert private.returncode == 0, errors
    assert out == "left [] []\n", "a token is written nowhere"
    assert [line for line in errors.splitlines() if line.strip()] == []


TAKEN = """
import logging, socket
import ray
from aneurysm_ray.distributed import session

logging.basicConfig(level=logging.INFO, format="%(message)s")
other = socket.create_server(("", 0))
found, looked = session._unused_port, []

def lost():
    looked.append(other.getsockname()[1] if not looked else found())
    return looked[-1]

session._unused_port = lost
with session.connect():
    print(len(looked), ray.get(ray.remote(lambda: 1).remote()))
"""


@pytest.mark.slow
def test_a_port_that_another_program_takes_meanwhile_is_let_go() -> None:
    """Slow: Ray waits for 40 seconds for what cannot start."""
    done = subprocess.run([sys.executable, "-c", TAKEN], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "2 1\n"), done.stderr
    assert "another program has taken port" in done.stderr


BUSY = """
import time
import ray, ray._private.services as services
from aneurysm_ray.distributed import session

real, init, asked, begun = services.get_node, ray.init, [], []

def late(*words):
    asked.append(time.monotonic())
    if asked[-1] - asked[0] < 35:
        time.sleep(1)
        raise RuntimeError("the node is not there yet")
    return real(*words)

def counted(**options):
    begun.append(options)
    return init(**options)

services.get_node, ray.init = late, counted
with session.connect():
    print("up", ray.get(ray.remote(lambda: 1).remote()))
print(services.get_node is late, "started", len(begun))
"""


@pytest.mark.slow
def test_a_node_that_needs_longer_than_ray_waits_is_waited_for() -> None:
    """As beside much other work: Ray gives up after 30 seconds."""
    done = subprocess.run([sys.executable, "-c", BUSY], capture_output=True, text=True, timeout=900, check=False)
    assert (done.returncode, done.stdout) == (0, "up 1\nTrue started 1\n"), done.stderr


SLOW = """
import sys, time
if any(word.endswith(("dashboard/agent.py", "runtime_env/agent/main.py")) for word in sys.orig_argv[:4]):
    time.sleep(25)
"""


@pytest.mark.slow
def test_a_node_whose_first_processes_need_longer_than_it_waits_starts(tmp_path: Path) -> None:
    """As where they are read from a slow disk: Ray's node ends itself after 15 seconds."""
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    program = "import ray; from aneurysm_ray.distributed import session\n"
    program += "with session.connect(): print('up', ray.get(ray.remote(lambda: 1).remote()))"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert (done.returncode, done.stdout) == (0, "up 1\n"), done.stderr
    assert "died" not in done.stderr


DIES = """
import logging, threading, time
import ray
import psutil
from aneurysm_ray.distributed import session

def kill():
    while not (nodes := [child for child in psutil.Process().children() if child.name() == "raylet"]):
        time.sleep(0.01)
    nodes[0].kill()

logging.basicConfig(level=logging.INFO, format="%(message)s")
threading.Thread(target=kill, daemon=True).start()
with session.connect():
    print("up", ray.get(ray.remote(lambda: 1).remote()))
"""


@pytest.mark.slow
def test_a_node_that_dies_while_it_starts_is_started_again() -> None:
    """As of a machine's want of memory; Ray waits for it all the same."""
    done = subprocess.run([sys.executable, "-c", DIES], capture_output=True, text=True, timeout=900, check=False)
    assert (done.returncode, done.stdout) == (0, "up 1\n"), done.stderr
    assert "Ray's node died while it started; trying again" in done.stderr


def test_a_ray_that_cannot_start_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: None)  # the tests' own Ray goes on
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def fails(**_: object) -> None:
        raise RuntimeError("Failed to start GCS.  Last 1 lines of error files:\nand more")

    monkeypatch.setattr("ray.init", fails)
    before = dict(os.environ)
    told = "could not be started on this machine: Failed to start GCS"
    with pytest.raises(AneurysmRayError, match=told) as error, session.connect():
        pass
    assert "doctor" in str(error.value) and "\n" not in str(error.value)
    assert dict(os.environ) == before


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


def test_who_waits_for_room_is_told_from_who_has_taken_all_that_was_free(ray_session: None) -> None:
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    need = {"CPU": 2.0}
    groups = [placement_group([need] * 2)]  # all of the four CPUs
    try:
        ray.get(groups[0].ready(), timeout=60)
        deadline = time.monotonic() + 30
        while session.free().get("CPU", 0.0) >= 1 and time.monotonic() < deadline:
            time.sleep(0.1)  # what is free is told with a delay
        said = [room.waits_for(need, session.free(), session.roomless(need))]
        groups.append(placement_group([need] * 2))
        groups.append(placement_group([{"CPU": 3.0}]))
        said.append(room.waits_for(need, session.free(), session.roomless(need)))
    finally:
        for group in groups:
            remove_placement_group(group)
    assert said == ["starts its workers", "waits for 2 CPUs a worker; the cluster has 0 CPUs free"]
