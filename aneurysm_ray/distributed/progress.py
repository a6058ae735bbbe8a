"""How far a long piece of work is: a bar on a terminal, lines elsewhere, and never ten seconds of silence."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

log = logging.getLogger(__name__)

LINE_SECONDS = 8.0
SILENT_SECONDS = 8.0
"""Time without a line after which one is said of what goes on."""

Said = Callable[[], str | list[str]]


@dataclass(frozen=True)
class Status:
    """Where the preparation of a data set stands."""

    total: int
    """Series to do in this run."""
    done: int
    rejected: int
    """Of those done."""
    total_bytes: int
    done_bytes: int
    seconds: float
    """Since the first series was handed out."""

    @property
    def eta_seconds(self) -> float:
        """Time left if the rest goes as the bytes so far went; 0 before the first series is done."""
        return self.seconds * (self.total_bytes - self.done_bytes) / self.done_bytes if self.done_bytes else 0.0

    def __str__(self) -> str:
        rate = self.done / self.seconds if self.seconds else 0.0
        gigabytes = self.done_bytes / 1e9 / self.seconds if self.seconds else 0.0
        return (
            f"{self.done:,}/{self.total:,}  {100 * self.done / max(self.total, 1):.0f} %  {rate:.1f} series/s  "
            f"{gigabytes:.3f} GB/s  {self.rejected:,} rejected  eta {clock(self.eta_seconds)}"
        )


def clock(seconds: float) -> str:
    """Return a time as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def shown() -> Iterator[Callable[[Status], None]]:
    """Yield a function that shows each status it is given."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    with Progress(BarColumn(), TextColumn("{task.description}"), console=console, transient=True) as bars:
        bar = bars.add_task("", total=None)
        yield lambda status: bars.update(
            bar, total=max(status.total, 1), completed=status.done, description=str(status)
        )


def _lines() -> Callable[[Status], None]:
    last = time.monotonic()

    def show(status: Status) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            log.info("%s", status)

    return show


class _LastSaid(logging.Handler):
    """Notes when the package has last said something."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.at = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        self.at = time.monotonic()


class _Speaker:
    """Says what the innermost of the things that go on says of itself, whenever all has been silent for a while."""

    def __init__(self) -> None:
        self.going_on: list[Said] = []
        self.thread: threading.Thread | None = None
        self.changed = threading.Condition()
        self.last = _LastSaid()

    def begin(self, said: Said, first_seconds: float) -> None:
        with self.changed:
            self.going_on.append(said)
            if len(self.going_on) == 1:
                self.last.at = time.monotonic() + first_seconds - SILENT_SECONDS
                logging.getLogger("aneurysm_ray").addHandler(self.last)
            # The thread of what ended a moment ago goes on with what follows.
            if self.thread is None or not self.thread.is_alive():
                self.thread = threading.Thread(target=self._speak, name="progress", daemon=True)
                self.thread.start()

    def end(self, said: Said) -> None:
        with self.changed:
            self.going_on.remove(said)
            if not self.going_on:
                logging.getLogger("aneurysm_ray").removeHandler(self.last)
            self.changed.notify_all()

    def _speak(self) -> None:
        while True:
            with self.changed:
                due = self.last.at + SILENT_SECONDS - time.monotonic()
                self.changed.wait(timeout=min(max(due, 0.05), 0.5))
                if not self.going_on:
                    self.thread = None
                    return
                said = self.going_on[-1]
            if time.monotonic() - self.last.at >= SILENT_SECONDS:
                _say(said)
                self.last.at = time.monotonic()


def _say(said: Said) -> None:
    found = said()
    for line in [found] if isinstance(found, str) else found:
        log.info("%s", line)


_speaker = _Speaker()


@contextmanager
def told(said: str | Said, first_seconds: float = SILENT_SECONDS) -> Iterator[None]:
    """Say what goes on in the block whenever nothing has been said for a while, the first time sooner if need be.

    A text gets the time added that has passed. With 0 seconds the first word is this thread's own: another one waits
    for seconds while a large library is loaded, which holds Python's lock.
    """
    begun = time.monotonic()

    def timed() -> str:
        return f"  {said}: {clock(time.monotonic() - begun)}"

    saying = timed if isinstance(said, str) else said
    if first_seconds <= 0:
        _say(saying)
    _speaker.begin(saying, first_seconds or SILENT_SECONDS)
    try:
        yield
    finally:
        _speaker.end(saying)
