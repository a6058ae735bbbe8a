"""Commands whose every path is in an object store give what they give on a disk, also when a node dies. Slow."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import object_store
import pandas as pd
import pytest
from learning_sets import SMALL
from test_two_nodes import Nodes, kill_tree, wait_for

from aneurysm_ray import location, overrides, phantom, rundir
from aneurysm_ray.data import identity

pytestmark = pytest.mark.slow

OURS = "import sys; from aneurysm_ray.cli import main; sys.exit(main())"
CHANGES = {
    "folds.count": 2,
    "optim.epochs": 2,
    "volume.spacing_mm": [2.0, 2.0, 2.0],
    "tune.trials": 2,
    "tune.startup_trials": 2,
    "tune.space": {"optim.lr": {"loguniform": [1e-4, 1e-2]}},
}


def command(*words: str, **environment: str) -> str:
    """Run a command in an empty working folder; return what it said."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", OURS, *words],
            env={**os.environ, identity.KEY_VARIABLE: "a test's key", **environment},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=1800,
        )
    assert done.returncode == 0, f"{words[0]}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def same_table(one: Path, other: Path, name: str) -> None:
    """Two runs' tables hold the same numbers, to the last digit."""
    here, there = (rundir.read_csv(folder / name) for folder in (one, other))
    assert len(here)
    drop = [
        column
        for column in here
        if column.endswith("seconds") or column in ("path", "source", "time", "page", "series/s")
    ]
    pd.testing.assert_frame_equal(here.drop(columns=drop), there.drop(columns=drop))


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with object_store.s3("hospital") as url:
        yield url


@pytest.fixture(scope="module")
def place(bucket: str) -> Iterator[Path]:
    """A folder with DICOM files and settings, and the same below the bucket."""
    folder = Path(tempfile.mkdtemp(prefix="ar", dir="/tmp"))
    options = phantom.PhantomOptions(count=8, seed=3, spacing_mm=2.5, positive_fraction=0.5, workers=1)
    phantom.write_dataset(folder / "dicom", options)
    (folder / "small.toml").write_text(overrides.to_toml(overrides.build(SMALL, CHANGES)))
    import s3fs

    s3fs.S3FileSystem().put(f"{folder}/", f"{bucket}/", recursive=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def both(place: Path, bucket: str) -> tuple[Path, Path]:
    """Everything done on the disk, and everything in the store."""
    for root in (str(place), bucket):
        config = ("--config", f"{root}/small.toml")
        command("prepare", f"{root}/dicom", f"{root}/volumes", *config)
        command("train", f"{root}/volumes", "--fold", "all", "--out", f"{root}/runs/first", *config)
        command("tune", f"{root}/volumes", "--out", f"{root}/runs/search", *config)
        command("predict", f"{root}/runs/first", f"{root}/dicom", "--out", f"{root}/predictions")
        command("report", f"{root}/runs/first")
        command("report", f"{root}/runs/search")
    return place, location.place(bucket)


def test_every_command_gives_the_same_numbers_in_a_store(both: tuple[Path, Path]) -> None:
    here, there = both
    for run in ("runs/first", "predictions"):
        same_table(here / run, there / run, rundir.PREDICTIONS)
        same_table(here / run, there / run, rundir.CANDIDATES)
    for fold in ("fold_0", "fold_1"):
        same_table(here / "runs/first" / fold, there / "runs/first" / fold, rundir.METRICS)
    same_table(here / "runs/search", there / "runs/search", rundir.TRIALS)
    for page in ("volumes", "runs/first", "runs/search", "predictions"):
        assert b"</html>" in location.read_bytes(there / page / rundir.REPORT)
    for run in ("runs/first", "runs/search", "predictions"):
        assert (there / run / rundir.SUMMARY).exists() and not (there / run / rundir.DRIVER).exists()


@pytest.fixture(scope="module")
def nodes(place: Path) -> Iterator[Nodes]:
    """Two raylets that share no working folder."""
    folder = Path(tempfile.mkdtemp(prefix="ar", dir="/tmp"))
    nodes = Nodes(folder)
    yield nodes
    for process in (nodes.other, nodes.head):
        if process.poll() is None:
            kill_tree(process)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("what", ["train", "tune"])
def test_a_node_without_a_common_disk_dies_and_costs_no_digit(
    what: str, both: tuple[Path, Path], bucket: str, nodes: Nodes
) -> None:
    here, _ = both
    if nodes.other.poll() is not None:
        nodes.other = nodes.add()
    name = {"train": "first", "tune": "search"}[what]
    out = f"{bucket}/nodes/{name}"
    words = [what, f"{bucket}/volumes", "--out", out, "--config", f"{bucket}/small.toml"]
    words += ["--fold", "all"] if what == "train" else ["tune.concurrent=2"]
    environment = {**nodes.environment, "RAY_ADDRESS": f"127.0.0.1:{nodes.port}"}
    with tempfile.TemporaryDirectory() as folder:
        job = subprocess.Popen(
            [sys.executable, "-c", OURS, *words],
            env=environment,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            wait_for(lambda: job.poll() is not None or begun(location.place(out), what), "an epoch")
            nodes.kill_other()
            said, _ = job.communicate(timeout=1200)
        finally:
            if job.poll() is None:
                job.send_signal(signal.SIGKILL)
    assert job.returncode == 0, said
    if what == "train":
        same_table(here / "runs" / name, location.place(out), rundir.PREDICTIONS)
        return
    trials = rundir.read_csv(location.place(out) / rundir.TRIALS)
    assert list(trials["state"]) == ["COMPLETE", "COMPLETE"], said
    straight = rundir.read_csv(here / "runs" / name / rundir.TRIALS)
    assert np.allclose(sorted(trials["optim.lr"]), sorted(straight["optim.lr"]))
    assert np.array_equal(np.sort(trials["score"]), np.sort(straight["score"]))


def begun(out: Path, what: str) -> bool:
    """Say whether a run in the store has come to the end of an epoch."""
    folders = location.matching(out, "fold_*") if what == "train" else location.matching(out / "trials", "*")
    return any((folder / rundir.METRICS).exists() for folder in folders)
