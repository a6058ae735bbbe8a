"""Commands whose every path is in an object store give what they give on a disk, also when a node dies. Slow."""

import shutil
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
from test_two_nodes import OURS, PATIENCE_SECONDS, Nodes, kill_tree, wait_for

from aneurysm_ray import location, overrides, phantom, rundir

pytestmark = pytest.mark.slow

CHANGES = {
    "folds.count": 2,
    "optim.epochs": 24,
    "volume.spacing_mm": [4.0, 4.0, 4.0],
    "tune.trials": 2,
    "tune.startup_trials": 2,
    "tune.concurrent": 2,
    "tune.grace_epochs": 24,
    "tune.space": {"optim.lr": {"loguniform": [1e-4, 1e-2]}},
}
OF_TIME = ("patches_per_s", "data_wait_fraction")
OF_PLACE = ("source", "page")
"""A page is named by a hash of where its series lies."""


def run(nodes: Nodes, *words: str, kill_in: Path | None = None) -> str:
    """Run a command as a driver on the cluster, in an empty working folder; return what it said.

    Once both folds or trials of the run in `kill_in`, one on each node, have come to the end of an epoch one of the
    nodes is killed, and replaced at the end.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [sys.executable, "-c", OURS, *words],
            env={**nodes.environment, "RAY_ADDRESS": f"127.0.0.1:{nodes.port}"},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as job,
    ):
        try:
            if kill_in:
                wait_for(lambda: job.poll() is not None or begun(kill_in), "an epoch", 3 * PATIENCE_SECONDS)
                assert job.poll() is None, job.communicate()[0]
                nodes.kill_other()
            said, _ = job.communicate(timeout=3 * PATIENCE_SECONDS)
        finally:
            if job.poll() is None:
                job.kill()
    assert job.returncode == 0, said
    if kill_in:
        nodes.other = nodes.add()
    return said


def begun(run: Path) -> bool:
    """Say whether two folds or trials of a run have come to the end of an epoch."""
    folders = [*location.matching(run, "fold_*"), *location.matching(run / "trials", "*")]
    return sum((folder / rundir.METRICS).exists() for folder in folders) == 2


def same_table(one: Path, other: Path, name: str) -> None:
    """Two runs' tables hold the same numbers, to the last digit, but for what tells of times and of places."""
    here, there = (rundir.read_csv(folder / name) for folder in (one, other))
    assert len(here)
    drop = [column for column in here if "seconds" in column or column in (*OF_PLACE, *OF_TIME)]
    pd.testing.assert_frame_equal(here.drop(columns=drop), there.drop(columns=drop), check_exact=True)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with object_store.s3("hospital") as url:
        yield url


@pytest.fixture(scope="module")
def place(bucket: str) -> Iterator[Path]:
    """A folder with DICOM files and settings, and the same below the bucket."""
    folder = Path(tempfile.mkdtemp(prefix="ar", dir="/tmp"))
    options = phantom.PhantomOptions(count=6, seed=3, spacing_mm=2.5, positive_fraction=0.5, workers=1)
    phantom.write_dataset(folder / "dicom", options)
    (folder / "small.toml").write_text(overrides.to_toml(overrides.build(SMALL, CHANGES)))
    import s3fs

    s3fs.S3FileSystem().put(f"{folder}/", f"{bucket}/", recursive=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def nodes(place: Path) -> Iterator[Nodes]:
    """Two raylets that share no working folder, and find the store."""
    folder = Path(tempfile.mkdtemp(prefix="ar", dir="/tmp"))
    nodes = Nodes(folder)
    yield nodes
    for process in (nodes.other, nodes.head):
        if process.poll() is None:
            kill_tree(process)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def both(place: Path, bucket: str, nodes: Nodes) -> tuple[Path, Path]:
    """Everything done on the disk, and everything in the store, where a node dies in train and in tune."""
    for root, dies in ((str(place), False), (bucket, True)):
        config = ("--config", f"{root}/small.toml")
        first, search = f"{root}/runs/first", f"{root}/runs/search"
        run(nodes, "prepare", f"{root}/dicom", f"{root}/volumes", *config)
        said = run(
            *(nodes, "train", f"{root}/volumes", "--fold", "all", "--out", first, *config),
            kill_in=location.place(first) if dies else None,
        )
        assert ("lost a worker" in said) == dies, said
        said = run(
            *(nodes, "tune", f"{root}/volumes", "--out", search, *config),
            kill_in=location.place(search) if dies else None,
        )
        assert ("died; the trial goes on" in said) == dies, said
        run(nodes, "predict", first, f"{root}/dicom", "--out", f"{root}/predictions")
    for page in ("runs/first", "runs/search"):
        location.remove(location.place(f"{bucket}/{page}/{rundir.REPORT}"))
        run(nodes, "report", f"{bucket}/{page}")
    return place, location.place(bucket)


def test_a_store_in_place_of_a_common_disk_and_a_node_that_dies_cost_no_digit(both: tuple[Path, Path]) -> None:
    here, there = both
    for run in ("runs/first", "predictions"):
        same_table(here / run, there / run, rundir.PREDICTIONS)
        same_table(here / run, there / run, rundir.CANDIDATES)
    for fold in ("fold_0", "fold_1"):
        same_table(here / "runs/first" / fold, there / "runs/first" / fold, rundir.METRICS)


def test_a_search_in_a_store_scores_its_trials_as_one_on_a_disk(both: tuple[Path, Path]) -> None:
    here, there = (rundir.read_csv(root / "runs/search" / rundir.TRIALS) for root in both)
    assert list(there["state"]) == list(here["state"]) == ["COMPLETE", "COMPLETE"]
    columns = ["param/optim.lr", "value"]  # which of two that run side by side is called the first is left to chance
    one, other = (table.sort_values("param/optim.lr")[columns].to_numpy() for table in (here, there))
    assert np.array_equal(one, other)


def test_what_is_complete_in_a_store_has_its_page_and_no_driver(both: tuple[Path, Path]) -> None:
    _, there = both
    for page in ("volumes", "runs/first", "runs/search", "predictions"):
        assert b"</html>" in location.read_bytes(there / page / rundir.REPORT)
    for run in ("runs/first", "runs/search", "predictions"):
        assert (there / run / rundir.SUMMARY).exists() and not (there / run / rundir.DRIVER).exists()
