"""The child process that takes crashes, hangs and memory hogs upon itself."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aneurysm_ray.data.guard import Guard
from aneurysm_ray.errors import OutputError, SeriesError


def pid() -> int:
    return os.getpid()


def double(value: int) -> int:
    return 2 * value


def segfault() -> None:
    ctypes.string_at(0)


def sleep_for_ever() -> None:
    time.sleep(1e6)


def allocate_without_end() -> None:
    kept = []
    while True:
        kept.append(bytearray(64 * 2**20))


def mistake() -> None:
    raise KeyError("DOE^JANE")


def full_disk() -> None:
    raise OutputError("OUT cannot be written: No space left on device")


def killed_from_outside(marker: str) -> str:
    """Die once, as if by `kill -9`; a second call finds the marker and lives."""
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def always_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def print_noise() -> str:
    os.write(1, b"x" * 200_000)
    os.write(2, b"y" * 200_000)
    return "done"


@pytest.fixture(scope="module")
def guard() -> Iterator[Guard]:
    """A guard whose children, of which the tests kill most, start at once; test_prepare.py has those of real ones."""
    guard = Guard(memory_mb=600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[Guard.__module__], "__name__", "light_child")
        yield guard
    guard.close()


def test_one_child_serves_many_calls_and_is_not_this_process(guard: Guard) -> None:
    first = guard.run(pid, timeout_seconds=60)
    assert first not in (os.getpid(), 0)
    assert guard.run(pid, timeout_seconds=60) == first == guard.pid
    assert guard.run(double, 21, timeout_seconds=60) == 42


@pytest.mark.parametrize(
    ("poison", "reason", "seconds", "words"),
    [
        (segfault, "crash", 60.0, "SIGSEGV"),
        (sleep_for_ever, "timeout", 0.5, "longer than 0.5 seconds"),
        (allocate_without_end, "memory", 60.0, "memory"),
        (always_killed, "memory", 60.0, "killed twice from outside"),
    ],
)
def test_poison_becomes_a_reason_and_the_next_call_works(
    guard: Guard, poison: object, reason: str, seconds: float, words: str
) -> None:
    with pytest.raises(SeriesError, match=words) as caught:
        guard.run(poison, timeout_seconds=seconds)  # type: ignore[arg-type]
    assert caught.value.reason == reason
    assert guard.run(double, 4, timeout_seconds=60) == 8


def test_a_mistake_of_ours_is_told_without_the_data_that_brought_it_out(guard: Guard) -> None:
    with pytest.raises(SeriesError) as caught:
        guard.run(mistake, timeout_seconds=60)
    assert caught.value.reason == "crash"
    assert "KeyError" in str(caught.value) and "DOE" not in str(caught.value)


def test_a_users_error_passes_as_it_is(guard: Guard) -> None:
    with pytest.raises(OutputError, match="No space left"):
        guard.run(full_disk, timeout_seconds=60)


def test_a_child_killed_once_from_outside_gets_another_try(guard: Guard, tmp_path: Path) -> None:
    assert guard.run(killed_from_outside, str(tmp_path / "marker"), timeout_seconds=60) == "alive"


def test_what_codecs_print_does_not_reach_the_pipe(guard: Guard) -> None:
    assert guard.run(print_noise, timeout_seconds=60) == "done"


def test_the_child_dies_with_its_parent_even_while_it_hangs(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import test_guard\nfrom aneurysm_ray.data.guard import Guard\n"
        "guard = Guard(600); guard.start(); print(guard.pid, flush=True)\n"
        "guard.run(test_guard.sleep_for_ever, timeout_seconds=600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()
