"""One writer of a prepared set at a time."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from aneurysm_ray.data.urls import is_url
from aneurysm_ray.errors import RequestError

LOCK = ".prepare.lock"


@contextlib.contextmanager
def locked(out: str) -> Iterator[None]:
    """Hold a set for oneself. Raises RequestError while another process holds it, or when it cannot be written.

    The system lets go of the lock with the process, however that ends. An object store has no locks: there, two runs at
    once do the work twice, and end with the same files.
    """
    if is_url(out):
        yield
        return
    path = Path(out) / LOCK
    descriptor = _taken(path)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _taken(path: Path) -> int:
    """Return the descriptor of a lock file that nobody else holds and that is still the one at its path."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RequestError(
                f"{path.parent} cannot be written: {error.strerror}; make room or mend its permissions, and run the "
                "same command again"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(descriptor, 200).decode("ascii", "replace")
            os.close(descriptor)
            raise RequestError(
                f"{path.parent} is being prepared by another process ({holder or 'unknown'}); wait for it, or end it, "
                "and run the same command again"
            ) from None
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # it was removed by its last holder in between
