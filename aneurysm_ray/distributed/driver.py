"""One driver a directory: two commands that write one run would each report what the other had overwritten.

The driver keeps a file in the directory that says who it is, with a count that it raises every few seconds. Whoever
finds the file knows at once whether a process of its own machine still runs; of another machine it waits to see
whether the count goes up, so that no two clocks are compared and any storage will do.
"""

import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from aneurysm_ray import location, rundir
from aneurysm_ray.errors import AneurysmRayError, OutputError, RequestError

log = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
SILENT_SECONDS = 30.0
"""A driver on another machine that has not been heard of for so long is dead."""
SETTLED_SECONDS = 0.5


@dataclass(frozen=True)
class Driver:
    """Who drives a directory."""

    token: str
    """Random, so that no two are equal."""
    host: str
    machine: str
    """The running system and its space of process numbers; two containers of one machine differ in the latter."""
    process: int
    began: str
    """When the process began, which tells it from one that was given the same number later."""
    beat: int = 0


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[str]:
    """Hold a directory, which is made if need be; yield this driver's token. A directory left empty is removed.

    Raises RequestError when it cannot be made or written, or when another driver holds it and is alive;
    AneurysmRayError at the end when another one took the directory over, because this process had not been heard of for
    too long.
    """
    location.check_reachable(folder)
    made = not location.is_remote(folder) and not folder.exists()
    path = folder / rundir.DRIVER
    mine = _this_process()
    try:
        if made:
            folder.mkdir(parents=True, exist_ok=True)
        _take(path, mine)
    except OSError as error:
        raise RequestError(
            f"{folder} cannot be written: {error.strerror or error}; choose another --out, or make room or mend its "
            "permissions"
        ) from error
    stop, lost = threading.Event(), threading.Event()
    beating = threading.Thread(target=_beat, args=(path, mine, stop, lost), name="driver-beat", daemon=True)
    beating.start()
    try:
        try:
            yield mine.token
        except KeyboardInterrupt:
            if not lost.is_set():
                raise
        if lost.is_set():
            raise AneurysmRayError(f"another driver took {folder} over while this process was at a stand")
    finally:
        stop.set()
        beating.join()
        try:
            if holds(folder, mine.token):
                location.remove(path)
            if made and not any(folder.iterdir()):
                folder.rmdir()
        except OSError as error:  # what the work died of is what is to be said
            log.info("* %s cannot be removed (%s); it counts no more when this process has ended", path, error)


def holds(folder: Path, token: str) -> bool:
    """Say whether a driver still holds a directory."""
    found = _read(folder / rundir.DRIVER)
    return found is not None and found.token == token


def _take(path: Path, mine: Driver) -> None:
    other = _read(path)
    if other is None:
        if not location.create(path, json.dumps(asdict(mine)).encode()):
            raise RequestError(f"another command has just begun to write {path.parent}; wait for it, or stop it")
        return
    if not _is_dead(path, other):
        raise RequestError(
            f"{path.parent} belongs to a command that still runs: process {other.process} on {other.host}; "
            "wait for it, or stop it"
        )
    log.info("* process %d on %s, which drove %s, is dead", other.process, other.host, path.parent)
    rundir.write_json(path, asdict(mine))
    # Of several that find the same dead driver at once the last to write stays.
    time.sleep(SETTLED_SECONDS)
    if not holds(path.parent, mine.token):
        raise RequestError(f"another command has just gone on with {path.parent}; wait for it, or stop it")


def _read(path: Path) -> Driver | None:
    try:
        return Driver(**json.loads(location.read_bytes(path)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError):
        return Driver("", "unknown", "", 0, "")  # of another version, or damaged: as good as silent


def _is_dead(path: Path, other: Driver) -> bool:
    mine = _this_process()
    if other.machine == mine.machine:
        return _began(other.process) != other.began
    log.info(
        "* %s was driven from %s; waiting up to %.0f s to hear whether it still is",
        path.parent,
        other.host,
        SILENT_SECONDS,
    )
    until = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < until:
        time.sleep(min(1.0, SILENT_SECONDS / 4))
        if (now := _read(path)) is None:
            return True
        if now != other:
            return False
    return True


def _beat(path: Path, mine: Driver, stop: threading.Event, lost: threading.Event) -> None:
    while not stop.wait(BEAT_SECONDS):
        mine = replace(mine, beat=mine.beat + 1)
        try:
            if not holds(path.parent, mine.token):
                lost.set()
                # What a shell starts in its background ignores Ctrl-C; the command line answers SIGTERM alike.
                ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
                os.kill(os.getpid(), signal.SIGTERM if ignored else signal.SIGINT)
                return
            rundir.write_json(path, asdict(mine))
        except (
            OutputError,
            OSError,
        ) as error:  # a full disk or a network that is gone for a while; the work itself will say so
            log.debug("%s: %s", path, error)


def _this_process() -> Driver:
    boot = Path("/proc/sys/kernel/random/boot_id")
    system = boot.read_text().strip() if boot.exists() else socket.gethostname()
    processes = os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else ""
    number = os.getpid()
    return Driver(secrets.token_hex(8), socket.gethostname(), f"{system} {processes}", number, _began(number))


def _began(process: int) -> str:
    """Return when a process of this machine began, in ticks since the machine did; empty when there is none."""
    try:
        # The name before it may hold anything (proc(5)): what follows are the state and, as 22nd field, the start.
        state, *fields = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]
    except FileNotFoundError:
        return ""
    except OSError:
        return "unknown"
