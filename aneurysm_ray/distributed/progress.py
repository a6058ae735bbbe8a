"""How far a long piece of work is: a bar on a terminal, a line every half minute elsewhere."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

log = logging.getLogger(__name__)

LINE_SECONDS = 30.0


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
