"""The job scripts: each hands its words to the command of its name, and runs where only its folder is on the path."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from aneurysm_ray import cli

JOBS = Path(__file__).resolve().parents[1] / "jobs"
NAMES = ("prepare", "train", "tune", "predict", "report")


@pytest.mark.parametrize("name", NAMES)
def test_a_job_is_its_command_with_the_same_words_and_exit_code(name, monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "main", lambda words: seen.append(words) or 3)
    monkeypatch.setattr(sys, "argv", [f"jobs/{name}.py", "/a", "--out", "/b", "optim.lr=1e-3"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(JOBS / f"{name}.py"), run_name="__main__")
    assert seen == [[name, "/a", "--out", "/b", "optim.lr=1e-3"]] and end.value.code == 3


@pytest.mark.parametrize("name", NAMES)
def test_a_job_says_how_it_is_run_on_what_and_what_comes_out(name):
    source = (JOBS / f"{name}.py").read_text()
    text = source.split('"""')[1]
    assert (
        f"aneurysm-ray submit {name} /" in text and f"ray job submit --working-dir . -- python jobs/{name}.py /" in text
    )
    assert "Hardware:" in text and "Result:" in text
    assert 10 <= len(source.splitlines()) <= 22


def test_a_job_refuses_a_wrong_request_with_2():
    environment = {**os.environ, "PYTHONPATH": str(JOBS.parent)}
    done = subprocess.run(
        [sys.executable, str(JOBS / "tune.py"), "/nowhere", "optim.lrr=1"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 2 and "did you mean optim.lr" in done.stderr
