"""What dies in a job of Ray Data is done in another pass over what is left of it.

Ray Data starts actors again for ever, with the series that killed them, and has Ray warn at each start that it may not
be able to. Actors that are not started again stay in Ray Data's pool as if they lived, and it waits for the last of
them. So nothing is started again in the first pass, which ends with the first death; after it actors come back.
"""

import contextlib
import itertools
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import ray.data
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError
from ray.util.annotations import RayDeprecationWarning

TRIES = 2
"""Passes that finish nothing of what is left, after which it is given up."""
PATIENCE_SECONDS = 1800.0
"""A cluster may take that long to give a node, in which nothing comes of a job."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Pass:
    """How a pass over what is left treats death."""

    number: int

    @property
    def lossy(self) -> bool:
        """Whether it goes on without what a worker died of."""
        return self.number > 0

    @property
    def careful(self) -> bool:
        """Whether it comes after one that lost something."""
        return self.number > 1

    @property
    def of_actors(self) -> dict[str, Any]:
        """Ray's options of actors; Ray Data of Ray 2.60 deprecates them, and has no other word for them."""
        return {"max_restarts": -1 if self.lossy else 0, "max_task_retries": 0}

    @property
    def of_tasks(self) -> dict[str, Any]:
        """The same for tasks, which Ray Data repeats for ever."""
        return {"max_retries": 0}


def until_done(
    once: Callable[[Pass], Iterator[Result]], left: Callable[[], int], no_progress_seconds: float
) -> Iterator[Result]:
    """Yield the results of passes, till nothing is left or nothing more comes of them.

    `once` makes the job of a pass, over what is left then. A pass in which nothing happens for `no_progress_seconds`
    has failed.
    """
    vain = 0
    for one in map(Pass, itertools.count()):
        before = left()
        if not before or vain == TRIES:
            return
        with quiet(max(PATIENCE_SECONDS, no_progress_seconds), lossy=one.lossy):
            try:
                yield from once(one)
            except (RayError, ExecutionTimeoutError):
                if one.lossy:
                    raise
                continue
        vain += left() == before


def undeprecated() -> contextlib.AbstractContextManager[Any]:
    """Let nobody see that options of a `Pass` are deprecated."""
    return warnings.catch_warnings(action="ignore", category=RayDeprecationWarning)


@contextlib.contextmanager
def quiet(no_progress_seconds: float, *, lossy: bool) -> Iterator[None]:
    """Let Ray Data show nothing of its own, and if `lossy` lose what cannot be run in place of the job."""
    context = ray.data.DataContext.get_current()
    wanted = {
        "enable_progress_bars": False,
        "max_errored_blocks": -1 if lossy else 0,
        "max_consecutive_actor_init_deaths": 10,
        "execution_no_progress_timeout_s": no_progress_seconds,
    }
    before = {name: getattr(context, name) for name in wanted}
    level = logging.getLogger("ray.data").level
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    try:
        for name, value in wanted.items():
            setattr(context, name, value)
        yield
    finally:
        logging.getLogger("ray.data").setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)
