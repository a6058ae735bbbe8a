"""Which failures of a worker are worth another try, and what to say of those that are not.

A node or a process that died, or a connection that broke, may not fail again; a setting, a full disk, a damaged file
and a mistake of ours will. Ray would try all of them again alike.
"""

import contextlib
import errno
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

from aneurysm_ray import rundir
from aneurysm_ray.errors import AneurysmRayError

PASSING = (errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH)
"""What a network file system says while its server is away."""
CONNECTIONS = ("gloo", "nccl", "connection", "peer", "socket", "timed out", "cuda error", "hip error", "store")
"""Words of a RuntimeError of torch.distributed whose peer has gone, or of a device that failed."""


class LastingFailure(AneurysmRayError):
    """A worker failed in a way that would come again; the text says how."""


def lasting(errors: Iterable[BaseException]) -> LastingFailure | None:
    """Return the failure that would come again among those of a group's workers; None when all may pass.

    When one worker fails the others lose their connection to it, so one that lasts outweighs those that pass.
    """
    for error in errors:
        if not passes(cause := cause_of(error)):
            return LastingFailure(sentence(cause))
    return None


@contextlib.contextmanager
def kept(folder: Path) -> Iterator[None]:
    """Write where a failure that would come again happened into the folder's error.txt: a worker alone knows."""
    try:
        yield
    except Exception as error:
        if not passes(error):
            with contextlib.suppress(AneurysmRayError):  # the disk may be what failed
                rundir.write_text(folder / rundir.ERROR, traceback.format_exc())
        raise


def cause_of(error: BaseException) -> BaseException:
    """Return the exception that a worker raised, out of what Ray wraps it in."""
    while (inner := getattr(error, "_base_exc", None) or getattr(error, "cause", None)) is not None:
        error = inner
    return error


def passes(error: BaseException) -> bool:
    """Say whether the same work may succeed when it is tried again."""
    import torch
    from ray.exceptions import RayError

    if isinstance(error, AneurysmRayError | torch.OutOfMemoryError):
        return False
    if isinstance(error, OSError):
        return isinstance(error, ConnectionError | TimeoutError) or error.errno in PASSING
    if isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError | RecursionError):
        name = type(error).__name__
        text = str(error).lower()
        return name.startswith("Dist") or _is_rays(error) or any(word in text for word in CONNECTIONS)
    return isinstance(error, RayError | MemoryError) or _is_rays(error)


def _is_rays(error: BaseException) -> bool:
    """Say whether Ray itself raised an error: a worker's death, a health check that it missed."""
    return type(error).__module__.startswith("ray.")


def sentence(error: BaseException) -> str:
    """Say what failed and what to do about it."""
    import torch

    if isinstance(error, AneurysmRayError):
        return str(error)
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if isinstance(error, torch.OutOfMemoryError):
        return f"the GPU has too little memory ({first}); use a smaller optim.batch_size, or optim.accumulate=2"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or first}; make room or mend its permissions"
    return f"{type(error).__name__}: {first}"


def told(error: BaseException) -> str:
    """Say why a run of Ray Train failed."""
    failure = getattr(error, "controller_failure", error)
    if lost := list(getattr(failure, "worker_failures", {}).values()):
        last = sentence(cause_of(lost[0]))
        return f"its workers were lost more often than resources.max_failures allows; the last one: {last}"
    return sentence(cause_of(failure))
