"""What the workers of a command tell its driver while they work: that they began, how far an epoch is, its numbers.

Ray brings a worker's reports to the controller of its run, in another process, and no further; from there they come
here. One small actor on the driver's node takes letters, and the driver empties it when it likes.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import ray
import ray.train
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from aneurysm_ray.distributed import failures
from aneurysm_ray.distributed.progress import clock

TOLD_EVERY_SECONDS = 2.0
"""At most so often a worker tells how far it is."""

Letter = dict[str, Any]
"""Who sends it, its `kind`, and what the kind says: see `FoldLines.read`."""


class _Letters:
    def __init__(self) -> None:
        self.letters: list[Letter] = []

    def put(self, letter: Letter) -> None:
        self.letters.append(letter)

    def take(self) -> list[Letter]:
        taken, self.letters = self.letters, []
        return taken


class Box:
    """The driver's letter box, gone with the block that holds it."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self.handle = ray.remote(num_cpus=0, scheduling_strategy=here)(_Letters).remote()

    def __enter__(self) -> "Box":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            ray.kill(self.handle)

    def take(self) -> list[Letter]:
        """Return the letters that have come, oldest first; none when the box cannot be reached for a moment."""
        try:
            letters: list[Letter] = ray.get(self.handle.take.remote(), timeout=5)
        except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError):
            return []
        return letters


def post(handle: Any, letter: Letter) -> None:
    """Send a letter and do not wait; whoever works does not stop because nobody listens."""
    with contextlib.suppress(Exception):
        handle.put.remote(letter)


def teller(handle: Any, about: Letter) -> Callable[[str, int, int], None]:
    """Return a function (what is done, how many, of how many) that tells it, but not too often; nobody at None."""
    if handle is None:
        return lambda what, done, total: None
    stage, began, last = "", 0.0, 0.0

    def tell(what: str, done: int, total: int) -> None:
        nonlocal stage, began, last
        now = time.monotonic()
        if what != stage or done <= 1:
            stage, began = what, now
        if now - last >= TOLD_EVERY_SECONDS:
            last = now
            post(handle, {**about, "kind": "step", "what": what, "done": done, "total": total, "seconds": now - began})

    return tell


def how_far(step: Letter) -> str:
    """Write a letter of `teller` as words."""
    left = step["seconds"] * (step["total"] - step["done"]) / max(step["done"], 1)
    return f"{step['what']} {step['done']:,}/{step['total']:,}  {clock(left)} left"


class Watch(ray.train.UserCallback):
    """Tell the driver of a run's epochs and losses, and end a run whose failure would only come again.

    Lives in the run's controller.
    """

    def __init__(self, handle: Any, about: Letter) -> None:
        self.handle = handle
        self.about = about

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Pass an epoch's numbers on; all workers report the same."""
        post(self.handle, {**self.about, "kind": "epoch", "metrics": metrics[0]})

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise LastingFailure, at which Ray tries nothing again, or tell that a worker was lost."""
        if failure := failures.lasting(worker_exceptions.values()):
            raise failure
        why = failures.sentence(failures.cause_of(next(iter(worker_exceptions.values()))))
        post(self.handle, {**self.about, "kind": "lost", "why": why})
