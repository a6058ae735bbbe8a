"""Jobs on a real cluster of two nodes with token authentication: exit codes, and a node that dies. Slow."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dicom_sets
import pandas as pd
import pytest
from learning_sets import SMALL, write_set

from aneurysm_ray import overrides, phantom, rundir
from aneurysm_ray.data import identity, store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
VOLUME = ["volume.spacing_mm=[4,4,4]"]
DIVERGES = ["--config", "{shared}/small.toml", "--fold", "0", "optim.lr=1e30", "optim.clip_norm=0"]
DIVERGES += ["resources.max_failures=0"]
PATIENCE_SECONDS = 300
RAY = """
import ray.scripts.scripts as command
from aneurysm_ray.distributed import session

command.get_ray_client_dependency_error = lambda: "not wanted"
with session._patience():
    command.main()
"""
"""Ray's command, patient with a busy machine, without its server for Ray Client: that one gives up after 30 s when a
node is slow to start, and `ray start --block` then ends the head, a second after it has said that it runs."""
OURS = "import sys; from aneurysm_ray.cli import main; sys.exit(main())"


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


def wait_for(condition: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


class Nodes:
    """A head and one other node, one logical CPU each, started as a user would: with `ray start`."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.port, self.dashboard = free_port(), free_port()
        self.address = f"http://127.0.0.1:{self.dashboard}"
        self.environment = {
            **os.environ,
            # Jobs are started with the `python` of the node's path.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            identity.KEY_VARIABLE: "a test's key",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_task_oom_retries": "1",
            # So that a node that died is missed after seconds, not half a minute.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
            "RAY_health_check_initial_delay_ms": "1000",
        }
        self.environment.pop("RAY_ADDRESS", None)
        ports = ["--dashboard-agent-listen-port", str(free_port()), "--dashboard-agent-grpc-port", str(free_port())]
        self.head = self.start(
            place,
            *("--head", "--port", str(self.port), "--dashboard-port", str(self.dashboard), *ports),
        )
        wait_for(lambda: self.run(RAY, "job", "list", "--address", self.address).returncode == 0, "the head")
        self.other = self.add()

    def start(self, folder: Path, *words: str) -> subprocess.Popen[bytes]:
        """Start a node and return its process once it runs."""
        command = [sys.executable, "-c", RAY, "start", "--block", "--num-cpus", "1", "--disable-usage-stats", *words]
        log = self.place / f"{secrets.token_hex(4)}.node"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*command, "--temp-dir", str(folder)],
                env=self.environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        wait_for(lambda: process.poll() is not None or b"--block" in log.read_bytes(), "a node")
        assert process.poll() is None, log.read_text()
        return process

    def add(self) -> subprocess.Popen[bytes]:
        """Start another node and return its process once its raylet runs and the cluster counts it."""
        # On a machine of its own a node has a folder of its own; in a shared one it would clear away the jobs' folders.
        folder = Path(tempfile.mkdtemp(prefix="n", dir=self.place))
        node = self.start(folder, "--address", f"127.0.0.1:{self.port}")
        wait_for(lambda: self.alive() == 2, "the second node")
        return node

    def alive(self) -> int:
        program = (
            "import ray, logging\n"
            f"ray.init('127.0.0.1:{self.port}', logging_level=logging.ERROR, log_to_driver=False)\n"
            "print('alive', sum(node['Alive'] for node in ray.nodes()))"
        )
        text = self.run(program).stdout
        return int(text.rpartition("alive ")[2].split("\n")[0] or 0)

    def kill_other(self) -> None:
        """Kill -9 the second node, with everything that runs on it."""
        kill_tree(self.other)

    def run(self, program: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program, *words],
            env={**self.environment, **environment},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_SECONDS * 2,
        )

    def submit(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `aneurysm-ray submit`, from the checkout."""
        return self.run(OURS, "submit", words[0], *words[1:], "--address", self.address, **environment)

    def submit_while(self, *words: str) -> subprocess.Popen[str]:
        """Start `aneurysm-ray submit` and return its process."""
        command = [sys.executable, "-c", OURS, "submit", *words, "--address", self.address]
        return subprocess.Popen(
            command, env=self.environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill -9 a process and its descendants, the parents first, so that nothing is started in their place."""
    import ray  # noqa: F401 - brings its own psutil
    import psutil  # isort: skip

    root = psutil.Process(process.pid)
    for each in [root, *root.children(recursive=True)]:
        try:
            each.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    process.wait()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    place = Path(tempfile.mkdtemp(prefix="ar", dir="/tmp"))  # short, as Ray's sockets want
    nodes = Nodes(place)
    yield nodes
    for process in (nodes.other, nodes.head):
        if process.poll() is None:
            kill_tree(process)
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every node sees: a data set, a prepared one and a file of settings."""
    folder = tmp_path_factory.mktemp("shared")
    options = phantom.PhantomOptions(count=16, seed=3, spacing_mm=3.0, faults=True, workers=2)
    phantom.write_dataset(folder / "dicom", options)
    dicom_sets.write_set(folder / "good", 3)
    write_set(folder / "volumes", 12)
    changes = {"folds.count": 3, "feed.cache_dir": str(folder / "cache"), "optim.epochs": 12}
    changes |= {"tune.space": {"optim.lr": {"loguniform": [1e-4, 1e-2]}}, "tune.grace_epochs": 3}
    (folder / "small.toml").write_text(overrides.to_toml(overrides.build(SMALL, changes)))
    return folder


def test_exit_codes_come_back_and_results_lie_in_shared_storage(nodes: Nodes, shared: Path) -> None:
    done = nodes.submit("prepare", f"{shared}/good", f"{shared}/out", *VOLUME)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(store.volumes_table(shared / "out")) == 3
    partly = nodes.submit("prepare", f"{shared}/dicom", f"{shared}/undisturbed", *VOLUME)
    assert partly.returncode == 3, partly.stdout + partly.stderr
    assert len(rundir.read_csv(shared / "undisturbed" / rundir.REJECTED)) > 3
    wrong = nodes.submit("train", f"{shared}/volumes", "--out", f"{shared}/wrong", "optim.learning=1")
    assert wrong.returncode == 2, wrong.stdout + wrong.stderr
    assert "optim.learning" in wrong.stdout + wrong.stderr
    words = [word.format(shared=shared) for word in DIVERGES]
    failed = nodes.submit("train", f"{shared}/volumes", "--out", f"{shared}/nan", *words)
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "try a smaller optim.lr" in failed.stdout + failed.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["prepare", "{shared}/good", "{shared}/by-ray", *VOLUME], 0),
        (["train", "{shared}/volumes", "--out", "{shared}/none", "optim.learning=1"], 2),
        (["prepare", "{shared}/dicom", "{shared}/by-ray-3", *VOLUME], 3),
        (["report", "{shared}/good"], 2),
        (["train", "{shared}/volumes", "--out", "{shared}/nan-by-ray", *DIVERGES], 1),
    ],
)
def test_ray_job_submit_runs_the_same_scripts(nodes: Nodes, shared: Path, words: list[str], code: int) -> None:
    name = f"job-{secrets.token_hex(4)}"
    script = [word.format(shared=shared) for word in words]
    done = nodes.run(
        *(RAY, "job", "submit", "--address", nodes.address, "--working-dir", str(ROOT), "--submission-id", name),
        *("--", "python", f"jobs/{script[0]}.py", *script[1:]),
    )
    assert (done.returncode == 0) == (code == 0), done.stdout + done.stderr
    program = (
        "import sys; from ray.job_submission import JobSubmissionClient as Client\n"
        "print('code', Client(sys.argv[1]).get_job_info(sys.argv[2]).driver_exit_code)"
    )
    assert nodes.run(program, nodes.address, name).stdout.split("code ")[-1].strip() == str(code)


def test_a_job_without_the_token_is_refused(nodes: Nodes, shared: Path) -> None:
    for environment in ({"RAY_AUTH_TOKEN": "f" * 64}, {"RAY_AUTH_MODE": "disabled"}):
        words = ["prepare", f"{shared}/good", f"{shared}/refused", *VOLUME]
        ours = nodes.submit(*words, **environment)
        assert ours.returncode == 2, ours.stdout + ours.stderr
        submission = ["job", "submit", "--address", nodes.address, "--working-dir", str(ROOT / "jobs"), "--", "true"]
        assert nodes.run(RAY, *submission, **environment).returncode != 0
    assert not (shared / "refused").exists()


def test_preparation_outlives_a_node(nodes: Nodes, shared: Path) -> None:
    out = shared / "survived"
    job = nodes.submit_while("prepare", f"{shared}/dicom", str(out), *VOLUME)
    wait_for(lambda: len(list(out.glob("status/*/*.json"))) >= 4 or job.poll() is not None, "four series")
    assert job.poll() is None, job.communicate()[0]
    nodes.kill_other()
    text, _ = job.communicate(timeout=PATIENCE_SECONDS)
    nodes.other = nodes.add()
    assert job.returncode == 3, text
    assert dicom_sets.contents(out) == dicom_sets.contents(shared / "undisturbed")


def test_two_workers_on_two_nodes_outlive_one_of_them(nodes: Nodes, shared: Path) -> None:
    words = ["--config", f"{shared}/small.toml", "--fold", "0", "resources.workers=2"]
    straight = nodes.submit("train", f"{shared}/volumes", "--out", f"{shared}/straight", *words)
    assert straight.returncode == 0, straight.stdout + straight.stderr
    out = shared / "killed"
    job = nodes.submit_while("train", f"{shared}/volumes", "--out", str(out), *words)
    metrics = out / "fold_0" / rundir.METRICS
    wait_for(lambda: (metrics.exists() and len(rundir.read_csv(metrics)) >= 2) or job.poll() is not None, "two epochs")
    assert job.poll() is None, job.communicate()[0]
    nodes.kill_other()
    nodes.other = nodes.add()
    text, _ = job.communicate(timeout=PATIENCE_SECONDS)
    assert job.returncode == 0, text
    for name in (rundir.PREDICTIONS, rundir.CANDIDATES):
        tables = [rundir.read_csv(run / "fold_0" / name) for run in (shared / "straight", out)]
        pd.testing.assert_frame_equal(*tables, check_exact=True)
    histories = [rundir.read_csv(run / "fold_0" / rundir.METRICS)["train/loss"] for run in (shared / "straight", out)]
    pd.testing.assert_series_equal(*histories, check_exact=True)


def test_a_search_outlives_a_node(nodes: Nodes, shared: Path) -> None:
    out = shared / "search"
    words = ["--config", f"{shared}/small.toml", "--trials", "6"]
    job = nodes.submit_while("tune", f"{shared}/volumes", "--out", str(out), *words)
    curves = out / rundir.CURVES
    wait_for(lambda: (curves.exists() and len(rundir.read_csv(curves)) >= 4) or job.poll() is not None, "four epochs")
    assert job.poll() is None, job.communicate()[0]
    nodes.kill_other()
    nodes.other = nodes.add()
    text, _ = job.communicate(timeout=PATIENCE_SECONDS)
    assert job.returncode == 0, text
    trials = rundir.read_csv(out / rundir.TRIALS)
    assert len(trials) == 6 and set(trials["state"]) <= {"COMPLETE", "PRUNED"}
    for number, rows in rundir.read_csv(curves).groupby("trial"):
        assert list(rows["step"]) == list(range(1, len(rows) + 1)), number
    report = nodes.submit("report", str(out))
    assert report.returncode == 0 and (out / rundir.REPORT).exists(), report.stdout + report.stderr
    predict = nodes.submit("predict", f"{shared}/straight", f"{shared}/good", "--out", f"{shared}/predictions")
    assert predict.returncode == 0, predict.stdout + predict.stderr
    assert len(rundir.read_csv(shared / "predictions" / rundir.PREDICTIONS)) == 3
