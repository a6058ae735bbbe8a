"""One driver a directory, whatever became of the one before."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from aneurysm_ray import ending, rundir
from aneurysm_ray.distributed import driver
from aneurysm_ray.errors import AneurysmRayError, RequestError

HOLD = """
import sys, time
from pathlib import Path
from aneurysm_ray.distributed import driver
with driver.alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path: Path) -> subprocess.Popen:
    """A process that holds tmp_path / run."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def foreign(folder: Path, **changes: object) -> driver.Driver:
    """Leave the file of a driver on another machine."""
    left = dataclasses.replace(driver._this_process(), host="node7", machine="elsewhere", **changes)
    rundir.write_json(folder / rundir.DRIVER, dataclasses.asdict(left))
    return left


def test_a_directory_that_is_driven_is_refused_until_its_driver_is_gone(
    other: subprocess.Popen, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(RequestError, match=f"still runs: process {other.pid} on "), driver.alone(folder):
        pass
    other.send_signal(signal.SIGKILL)
    other.wait()
    with driver.alone(folder) as token:
        assert driver.holds(folder, token)
    assert list(tmp_path.iterdir()) == [folder], "what the dead one had begun is not for us to remove"


def test_a_number_that_was_given_to_another_process_is_not_the_driver(tmp_path: Path) -> None:
    left = dataclasses.replace(driver._this_process(), began="1", token="another's")
    rundir.write_json(tmp_path / rundir.DRIVER, dataclasses.asdict(left))
    with driver.alone(tmp_path) as token:
        assert driver.holds(tmp_path, token) and not driver.holds(tmp_path, "another's")
    assert not list(tmp_path.iterdir())


def test_a_process_whose_name_is_no_text_is_not_the_driver(tmp_path: Path) -> None:
    program = os.fsencode(tmp_path) + b"/caf\xe9"
    shutil.copy("/bin/sleep", program)
    with subprocess.Popen([program, b"60"]) as stranger:
        left = dataclasses.replace(driver._this_process(), process=stranger.pid, began="1", token="another's")
        rundir.write_json(tmp_path / rundir.DRIVER, dataclasses.asdict(left))
        try:
            with driver.alone(tmp_path) as token:
                assert driver.holds(tmp_path, token)
        finally:
            stranger.kill()


def test_a_driver_of_another_machine_is_dead_when_it_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "SILENT_SECONDS", 0.4)
    monkeypatch.setattr(driver, "SETTLED_SECONDS", 0.0)
    foreign(tmp_path)
    with driver.alone(tmp_path) as token:
        assert driver.holds(tmp_path, token)


def test_a_driver_of_another_machine_that_is_heard_of_keeps_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "SILENT_SECONDS", 30.0)
    foreign(tmp_path)
    later = threading.Timer(0.3, lambda: foreign(tmp_path, beat=1))
    later.start()
    with pytest.raises(RequestError, match="on node7"), driver.alone(tmp_path):
        pass
    later.join()


def test_of_two_that_find_the_same_dead_driver_one_goes_on(tmp_path: Path) -> None:
    dead = dataclasses.replace(driver._this_process(), process=2**22 + 1)
    rundir.write_json(tmp_path / rundir.DRIVER, dataclasses.asdict(dead))
    gate, held = threading.Barrier(2), []

    def take() -> None:
        mine = driver._this_process()
        gate.wait()
        try:
            driver._take(tmp_path / rundir.DRIVER, mine)
        except RequestError:
            return
        held.append(mine.token)

    both = [threading.Thread(target=take) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert len(held) == 1
    assert driver.holds(tmp_path, held[0])


@pytest.mark.parametrize("answer", [signal.default_int_handler, signal.SIG_IGN])
def test_a_driver_that_lost_its_directory_while_it_stood_still_stops(
    answer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a shell's background, where Ctrl-C is ignored."""
    monkeypatch.setattr(driver, "BEAT_SECONDS", 0.1)
    before = signal.signal(signal.SIGINT, answer)
    try:
        with (
            ending._sigterm_as_ctrl_c(),
            pytest.raises(AneurysmRayError, match="another driver took"),
            driver.alone(tmp_path) as token,
        ):
            foreign(tmp_path)
            assert not driver.holds(tmp_path, token)
            time.sleep(30)
            pytest.fail("it went on")
    finally:
        signal.signal(signal.SIGINT, before)
    assert json.loads((tmp_path / rundir.DRIVER).read_text())["host"] == "node7", "it is left to its new driver"


def test_the_count_goes_up_and_the_file_goes_with_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "BEAT_SECONDS", 0.05)
    with driver.alone(tmp_path / "new"):
        deadline = time.monotonic() + 20
        while json.loads((tmp_path / "new" / rundir.DRIVER).read_text())["beat"] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.chmod(tmp_path / "new", 0o755)
    assert not (tmp_path / "new").exists(), "nothing was written into it"
