"""Run a function on hostile input in a child process with a time limit and a memory limit.

A codec that crashes, hangs or eats memory takes only the child with it; the caller gets a `SeriesError`. The child is
kept from call to call, since its imports take longer than most series, and replaced after a death. It is a fresh
interpreter, never a fork: forking a process with threads, such as a Ray worker, can deadlock.
"""

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, TypeVar

from aneurysm_ray.errors import AneurysmRayError, SeriesError

T = TypeVar("T")

START_SECONDS = 120.0
"""Longest start of a child; a cold network file system with 16 children at once needs a part of this."""
_PR_SET_PDEATHSIG = 1
_PACKAGE = Path(__file__).parents[1]


class Guard:
    """A child process that runs one call at a time; replaced when it dies."""

    def __init__(self, memory_mb: int) -> None:
        """Start nothing yet. A call may take `memory_mb` MiB of address space beyond the bare interpreter's."""
        self.memory_mb = memory_mb
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is no child."""
        return self._child.pid if self._child else None

    def run(self, function: Callable[..., T], *args: Any, timeout_seconds: float) -> T:
        """Return what a module-level function returns for picklable arguments.

        Raises SeriesError `timeout`, `memory` or `crash`; an AneurysmRayError of the function passes.
        A child that something else killed (SIGKILL: an impatient operator, the kernel short of memory) is given one
        more try before that counts as `memory`.
        """
        for attempt in (1, 2):
            try:
                return self._call(function, args, timeout_seconds)
            except _ChildDied as death:
                if death.signal == signal.SIGKILL and attempt == 1:
                    continue
                if death.signal == signal.SIGKILL:
                    raise SeriesError(
                        "memory", "its process was killed twice from outside, as happens when memory runs out"
                    ) from None
                how = f"of {signal.Signals(death.signal).name}" if death.signal else f"with exit code {death.code}"
                raise SeriesError("crash", f"the process that prepared it died {how}") from None
        raise AssertionError

    def close(self) -> None:
        """End the child."""
        if self._child:
            self._child.kill()
            self._child.wait()
        if self._pipe:
            self._pipe.close()
        self._child = self._pipe = None

    def __del__(self) -> None:
        """End the child with its guard: whoever drops one, such as a worker at its end, need not think of it."""
        self.close()

    def _call(self, function: Callable[..., T], args: tuple[Any, ...], timeout_seconds: float) -> T:
        pipe = self.start()
        try:
            pipe.send((function, args))
            if not pipe.poll(timeout_seconds):
                self.close()
                raise SeriesError("timeout", f"its preparation took longer than {timeout_seconds:g} seconds")
            outcome, value = pipe.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if outcome == "returned":
            result: T = value
            return result
        if isinstance(value, SeriesError) and value.reason == "memory":
            # What a MemoryError left behind in the child is not worth guessing about.
            self.close()
        raise value

    def start(self) -> Connection:
        """Start the child unless it runs, and return the pipe to it."""
        if self._child and self._pipe and self._child.poll() is None:
            return self._pipe
        self.close()
        ours, theirs = Pipe()
        environment = {
            **os.environ,
            # One thread per series: parallelism is over series, and a pool of BLAS threads costs address space.
            **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")},
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        command = [sys.executable, "-m", __name__, str(theirs.fileno()), str(self.memory_mb), str(os.getpid())]
        self._child = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            env=environment,
            # Codecs print what they think of a file, which may be its content.
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Ctrl-C in the terminal is for the driver, which stops its workers in order.
            start_new_session=True,
        )
        theirs.close()
        self._pipe = ours
        try:
            if not ours.poll(START_SECONDS):
                self.close()
                raise SeriesError("timeout", f"the process for it did not start within {START_SECONDS:g} seconds")
            ours.recv()
        except (EOFError, OSError):
            raise self._death() from None
        return ours

    def _death(self) -> "_ChildDied":
        assert self._child is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout=10)
        code = self._child.poll()
        self.close()
        return _ChildDied(code or 0)


class _ChildDied(Exception):
    def __init__(self, code: int) -> None:
        self.code = code
        self.signal = -code if code < 0 else 0


def _answer(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[str, Any]:
    """Run a call in the child; every exception becomes one that the parent can unpickle and understand."""
    try:
        return "returned", function(*args)
    except AneurysmRayError as error:
        return "raised", error
    except MemoryError:
        return "raised", SeriesError("memory", "its preparation takes more memory than the limit allows")
    # A bug of ours or of a library, brought out by this one series, must not end the other thousands. The message
    # could hold what the file holds, such as a name, so only the kind and the place are told.
    except Exception as error:
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename).is_relative_to(_PACKAGE)
        ]
        place = f" in {Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else ""
        return "raised", SeriesError("crash", f"{type(error).__name__}{place}")


def _serve(pipe: Connection, memory_mb: int, parent: int) -> None:
    """Answer calls until the parent is gone."""
    # The kernel ends this process with its parent, also when it hangs in a codec that never looks at the pipe.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    import aneurysm_ray.data.work  # noqa: F401 - imported now, so that a call's time and memory are its own

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send("ready")
    with contextlib.suppress(EOFError, OSError):
        while True:
            function, args = pipe.recv()
            pipe.send(_answer(function, args))


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]))
