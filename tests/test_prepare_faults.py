"""Whatever dies while a data set is prepared, the set ends the same: real processes, real kills. Slow."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dicom_sets
import pytest
from test_two_nodes import free_port

from aneurysm_ray import phantom, rundir
from aneurysm_ray.data import identity, store

pytestmark = pytest.mark.slow

SETTINGS = ["volume.spacing_mm=[4,4,4]"]
KILLS = int(os.environ.get("ANEURYSM_RAY_KILLS", "3"))
"""Runs of the kill test: driver, worker and child in turn. Set it to 20 for the long form."""

MARK = "ANEURYSM_RAY_TEST"
"""Variable by which the processes of these tests are told from all others on this machine."""


class Run:
    """`aneurysm-ray prepare` in a process of its own, whose workers can be told from all others on this machine."""

    def __init__(self, data: Path, out: Path, *more: str, urls: tuple[str, ...] = (), **environment: str) -> None:
        self.out = out
        self.mark = f"{MARK}={out.parent}"
        program = "import sys; from aneurysm_ray.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", program, "prepare", *(urls or (str(data), str(out)))]
        self.log = out.with_name(f"{out.name}.{uuid.uuid4().hex[:6]}.log").open("w+")
        self.process = subprocess.Popen(
            [*command, *SETTINGS, *more],
            env={**os.environ, MARK: str(out.parent), identity.KEY_VARIABLE: "a test's key", **environment},
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )

    def statuses(self) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (self.out / "status").glob("*/*.json")}

    def wait_for(self, count: int) -> dict[Path, int]:
        """Wait until so many series are done, or the run has ended; return their statuses with their times."""
        while len(self.statuses()) < count and self.process.poll() is None:
            time.sleep(0.02)
        return self.statuses()

    def guards(self) -> list[int]:
        """Processes that prepare series for this run."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes():
                    words = (folder / "cmdline").read_bytes().split(b"\0")
                    found += [int(folder.name)] if b"aneurysm_ray.data.guard" in words else []
            except OSError:
                continue
        return found

    def end(self) -> int:
        code = self.process.wait(timeout=900)
        self.log.close()
        return code

    def text(self) -> str:
        return Path(self.log.name).read_text()


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A short path, as Ray's sockets want."""
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="ar", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def data(place: Path) -> Path:
    """At least 60 series with the faults of real folders, large enough that a run outlasts the waits of these tests."""
    options = phantom.PhantomOptions(count=60, seed=5, spacing_mm=1.2, faults=True, workers=2)
    phantom.write_dataset(place / "data", options)
    return place / "data"


@pytest.fixture(scope="module")
def cluster(place: Path) -> Iterator[Any]:
    """A cluster that outlives the drivers that are killed on it; starting one for each would take minutes."""
    from ray.cluster_utils import Cluster

    (place / "ray").mkdir()
    Path("/tmp/ray").mkdir(exist_ok=True)  # Cluster notes its address there, wherever its own folder is
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_task_oom_retries", "1")
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv(MARK, str(place))
        head = {"num_cpus": 2, "include_dashboard": False, "temp_dir": str(place / "ray")}
        head["dashboard_port"] = free_port()  # even without one Ray looks whether the usual port is free
        cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def undisturbed(data: Path, place: Path, cluster: Any) -> Path:
    run = Run(data, place / "undisturbed", RAY_ADDRESS=cluster.address)
    assert run.end() == 3, run.text()
    assert len(store.volumes_table(place / "undisturbed")) >= 60
    return place / "undisturbed"


@pytest.mark.parametrize("number", range(KILLS))
def test_a_kill_costs_nothing_but_the_series_in_hand(
    number: int, data: Path, undisturbed: Path, place: Path, cluster: Any
) -> None:
    draw = random.Random(number)
    out = place / f"killed{number}"
    total = len(list((undisturbed / "status").glob("*/*.json")))
    run = Run(data, out, RAY_ADDRESS=cluster.address)
    run.wait_for(draw.randrange(1, total * 3 // 4))
    target = ("driver", "worker", "child")[number % 3]
    # A little chance, so that the blow falls anywhere in a series.
    time.sleep(draw.random() / 2)
    assert run.process.poll() is None, run.text()
    done = run.statuses()
    if target == "driver":
        os.kill(run.process.pid, signal.SIGKILL)
    else:
        child = draw.choice(run.guards())
        victim = child if target == "child" else parent(child)
        os.kill(victim, signal.SIGKILL)
    code = run.end()
    assert code == (-9 if target == "driver" else 3), run.text()
    before_restart = run.statuses()
    again = Run(data, out, RAY_ADDRESS=cluster.address)
    assert again.end() == 3, again.text()
    after = again.statuses()
    assert dicom_sets.contents(out) == dicom_sets.contents(undisturbed)
    assert {path: after[path] for path in done} == done, "a finished series was done again"
    if target != "driver":
        assert after == before_restart
    shutil.rmtree(out)


def test_ctrl_c_leaves_tables_and_says_how_to_go_on(data: Path, undisturbed: Path, place: Path) -> None:
    out = place / "interrupted"
    run = Run(data, out)
    run.wait_for(5)
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130, run.text()
    assert "Traceback" not in run.text()
    assert "aneurysm-ray prepare" in run.text() or "prepare" in run.text()
    facts = rundir.read_json(out / rundir.PREPARE)
    assert not facts["complete"]
    assert facts["prepared"] + facts["rejected"] >= 5
    again = Run(data, out)
    assert again.end() == 3
    assert dicom_sets.contents(out) == dicom_sets.contents(undisturbed)


def test_data_that_vanish_end_the_run_with_a_sentence(data: Path, undisturbed: Path, place: Path) -> None:
    out = place / "vanished"
    (place / "mounted").mkdir()
    moving = place / "mounted" / "data"
    shutil.copytree(data, moving)
    run = Run(moving, out)
    run.wait_for(5)
    moving.rename(place / "mounted" / "gone")
    assert run.end() == 1, run.text()
    assert "disappeared; mount it again and run the same command" in run.text()
    (place / "mounted" / "gone").rename(moving)
    again = Run(moving, out)
    assert again.end() == 3
    assert dicom_sets.contents(out) == dicom_sets.contents(undisturbed)


POISON = """
import importlib.util, sys
from importlib.machinery import PathFinder

class Poison:
    def find_spec(self, name, path=None, target=None):
        if name != "aneurysm_ray.data.scans":
            return None
        spec = PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            read = module.read_scan
            def read_scan(path, **options):
                import ctypes, os, signal, time
                if path.name == "1.2.1":
                    ctypes.string_at(0)
                if path.name == "1.2.2":
                    time.sleep(1e6)
                if path.name == "1.2.3":
                    kept = []
                    while True:
                        kept.append(bytearray(2**26))
                if path.name == "1.2.4":
                    os.kill(os.getppid(), signal.SIGKILL)
                    time.sleep(1e6)
                return read(path, **options)
            module.read_scan = read_scan
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Poison())
"""


def test_poisonous_series_are_a_row_each_and_exit_code_3(place: Path) -> None:
    """A segfault, a hang, a memory hog and one that kills the worker each time, among good series."""
    data, out = place / "poisoned", place / "antidote"
    dicom_sets.write_set(data, 5)
    for uid in ("1.2.1", "1.2.2", "1.2.3", "1.2.4"):
        dicom_sets.write_series(data / "series" / uid, uid)
    (place / "site").mkdir()
    (place / "site" / "sitecustomize.py").write_text(POISON)
    limits = ["prepare.timeout_seconds=15", "prepare.memory_mb=800"]
    run = Run(data, out, *limits, PYTHONPATH=str(place / "site"))
    assert run.end() == 3, run.text()
    assert len(store.volumes_table(out)) == 5
    rejected = rundir.read_csv(out / rundir.REJECTED).set_index("series_uid")["reason"].to_dict()
    assert rejected == {"1.2.1": "crash", "1.2.2": "timeout", "1.2.3": "memory", "1.2.4": "crash"}


def test_a_node_that_dies_is_replaced_by_the_other(
    data: Path, undisturbed: Path, place: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = place / "nodes"
    monkeypatch.setenv(MARK, str(place))  # a worker has the environment of its node
    node = cluster.add_node(num_cpus=2)
    run = Run(data, out, RAY_ADDRESS=cluster.address)
    while len(nodes_at_work(run)) < 2:
        assert run.process.poll() is None, "both nodes should be at work"
        time.sleep(0.02)
    done = run.statuses()
    cluster.remove_node(node, allow_graceful=False)
    assert run.end() == 3, run.text()
    assert {path: time for path, time in run.statuses().items() if path in done} == done
    assert dicom_sets.contents(out) == dicom_sets.contents(undisturbed)
    uids = store.volumes_table(out)["series_uid"]
    assert uids.is_unique and len(uids) == len(store.volumes_table(undisturbed))


def nodes_at_work(run: Run) -> set[int]:
    """Return the raylets whose workers have guards: a worker is a child of its raylet, a guard of its worker."""
    found = set()
    for pid in run.guards():
        with contextlib.suppress(OSError):
            found.add(parent(parent(pid)))
    return found


def parent(pid: int) -> int:
    # The second field is the name in parentheses, and may hold spaces.
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def test_from_one_bucket_to_another_through_the_command_line(place: Path) -> None:
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    account = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    dicom_sets.write_set(place / "local", 4)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in account.items():
                patch.setenv(name, value)
            filesystem = fsspec.filesystem("s3")
            for bucket in ("hospital", "research"):
                filesystem.mkdir(bucket)
            filesystem.put(f"{place / 'local'}/", "hospital/data", recursive=True)
            run = Run(
                place / "unused", place / "bucket", urls=("s3://hospital/data", "s3://research/volumes"), **account
            )
            assert run.end() == 0, run.text()
            table = store.volumes_table("s3://research/volumes")
            assert table["series_uid"].tolist() == [dicom_sets.series_uid(number) for number in range(4)]
            assert sum(len(points) for points in table["points"]) == 2
            again = Run(
                place / "unused", place / "bucket", urls=("s3://hospital/data", "s3://research/volumes"), **account
            )
            assert again.end() == 0, again.text()
            assert "4 done already" in again.text()
    finally:
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        server.stop()
