"""Five commands of two users at the same time on one machine, each with its own Ray, end as they do alone. Slow."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import dicom_sets
import pandas as pd
import pytest
from learning_sets import SMALL, write_set
from test_two_nodes import OURS

from aneurysm_ray import overrides, rundir
from aneurysm_ray.data import identity

pytestmark = pytest.mark.slow

CHANGES = {
    "folds.count": 2,
    "optim.epochs": 2,
    "tune.trials": 3,
    "tune.concurrent": 1,
    "tune.startup_trials": 2,
    "tune.grace_epochs": 1,
    "tune.space": {"optim.lr": {"loguniform": [1e-5, 1e-2]}},
}
PATIENCE_SECONDS = 1500


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A data set, a prepared one and settings, which both users read."""
    folder = Path(tempfile.mkdtemp(prefix="ar", dir="/tmp"))
    dicom_sets.write_set(folder / "dicom", 6)
    write_set(folder / "volumes", 8)
    (folder / "small.toml").write_text(overrides.to_toml(overrides.build(SMALL, CHANGES)))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def words(place: Path, out: Path) -> dict[str, list[str]]:
    """Return each of a user's commands by its name; what they write goes to `out`."""
    config = ["--config", f"{place}/small.toml"]
    search = [f"{place}/volumes", "--out", f"{out}/tune", *config, "resources.workers=2"]
    return {
        "train": ["train", f"{place}/volumes", "--fold", "all", "--out", f"{out}/train", *config],
        "tune": ["tune", *search],
        "prepare": ["prepare", f"{place}/dicom", f"{out}/prepare", "volume.spacing_mm=[4,4,4]"],
    }


def start(home: Path, command: list[str]) -> subprocess.Popen[str]:
    """Start a command as a user whose settings and scratch files lie in `home` would, who knows nothing of Ray."""
    home.mkdir(parents=True, exist_ok=True)
    known = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_AUTH", "RAY_ADDRESS"))}
    return subprocess.Popen(
        [sys.executable, "-c", OURS, *command],
        env={**known, "HOME": str(home), "TMPDIR": str(home), identity.KEY_VARIABLE: "a test's key"},
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended_well(jobs: Mapping[str, subprocess.Popen[str]]) -> None:
    """Wait for commands, which have to end well."""
    try:
        said = {name: job.communicate(timeout=PATIENCE_SECONDS)[0] for name, job in jobs.items()}
    finally:
        for job in jobs.values():
            if job.poll() is None:
                job.kill()
    assert {name: job.returncode for name, job in jobs.items()} == dict.fromkeys(jobs, 0), said


@pytest.fixture(scope="module")
def alone(place: Path) -> Path:
    """What each command gives when nothing else runs."""
    for name, command in words(place, place / "alone").items():
        ended_well({name: start(place / "home", command)})
    return place / "alone"


@pytest.fixture(scope="module")
def together(place: Path, alone: Path) -> list[Path]:
    """What two users get at the same time: both train and search, one of them prepares."""
    users = [place / "ann", place / "bob"]
    jobs = {
        f"{user.name}'s {name}": start(user / "home", command)
        for user in users
        for name, command in words(place, user).items()
        if name != "prepare" or user == users[0]
    }
    assert len(jobs) == 5
    ended_well(jobs)
    return users


def test_trainings_at_the_same_time_give_the_digits_of_one_alone(alone: Path, together: list[Path]) -> None:
    for user in together:
        for name in (rundir.PREDICTIONS, rundir.CANDIDATES):
            one, other = (rundir.read_csv(folder / "train" / name) for folder in (alone, user))
            pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_searches_at_the_same_time_give_the_digits_of_one_alone(alone: Path, together: list[Path]) -> None:
    for user in together:
        one, other = (rundir.read_csv(folder / "tune" / rundir.TRIALS) for folder in (alone, user))
        columns = ["trial", "state", "value", "epochs", "param/optim.lr"]
        assert len(one) == CHANGES["tune.trials"]
        pd.testing.assert_frame_equal(one[columns], other[columns], check_exact=True)


def test_a_preparation_beside_them_writes_the_same_bytes(alone: Path, together: list[Path]) -> None:
    assert dicom_sets.contents(together[0] / "prepare") == dicom_sets.contents(alone / "prepare")
