"""Where runs, searches and predictions lie: a path, or a URL that fsspec knows, such as s3://bucket/runs/first.

Both are used as `pathlib.Path`s, a URL by universal_pathlib. What differs is here: an object store has no folders, no
renaming and no appending; a whole object appears at once or not at all.
"""

import contextlib
import datetime
import fnmatch
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from aneurysm_ray.errors import RequestError

_S3 = ("s3://", "s3a://")


def place(location: str | os.PathLike[str], **options: Any) -> Path:
    """Return a path, or what a URL is as one; `options` are fsspec's, whose defaults come from the environment."""
    text = str(location)
    if "://" not in text:
        return Path(text)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    from upath import UPath

    # A listing that is kept would hide what other processes write.
    return cast(Path, UPath(text.rstrip("/"), **{"use_listings_cache": False, **patience(text), **options}))


def patience(location: str) -> dict[str, Any]:
    """Return fsspec's options by which S3 is asked again for about a minute while it is away; by itself for 10 s.

    The user's own variables of the AWS tools outweigh them.
    """
    if not location.startswith(_S3) or {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & os.environ.keys():
        return {}
    return {"config_kwargs": {"retries": {"mode": "standard", "max_attempts": 10}}}


def fresh(*parts: str) -> Path:
    """Name a run directory by date and kind, with a number where that name is taken. Raises RequestError."""
    stem = "_".join([datetime.date.today().isoformat(), *parts])
    for number in range(1, 10_000):
        folder = Path("runs") / (stem if number == 1 else f"{stem}_{number}")
        if not folder.exists():
            return folder
    raise RequestError(f"runs/{stem}_1 to _9999 all exist; name a directory with --out")


def is_remote(path: Path) -> bool:
    """Say whether a place is in an object store and not on a file system."""
    return not isinstance(path, Path)


def absolute(path: Path) -> Path:
    """Return a place that means the same wherever it is read."""
    return path if is_remote(path) else path.resolve()


def check_reachable(path: Path) -> None:
    """Raise RequestError when an object store does not answer at once, or lets nobody in."""
    if is_remote(path):
        remote: Any = path
        if str(path).startswith(_S3):
            remote = place(str(path), **{**remote.storage_options, "config_kwargs": {"retries": {"max_attempts": 1}}})
        try:
            remote.fs.exists(remote.path)
        # Every object store has errors of its own.
        except Exception as error:
            raise RequestError(
                f"{path} cannot be reached ({type(error).__name__}: {error}); check the address and the credentials"
            ) from error


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes. Raises OSError, whatever an object store's own error is."""
    with _as_os_error(path):
        if is_remote(path):
            remote: Any = path
            # In one request: an open file asks for its size first, and fails when the object is written anew meanwhile.
            return bytes(remote.fs.cat_file(remote.path))
        return path.read_bytes()


def upload(source: str, path: Path) -> None:
    """Copy a file of this machine to an object. Raises OSError."""
    remote: Any = path
    with _as_os_error(path):
        remote.fs.put_file(source, remote.path)


def create(path: Path, data: bytes) -> bool:
    """Write a file unless there is one, which nobody ever sees half of; say whether it was written. Raises OSError."""
    if is_remote(path):
        remote: Any = path
        with _as_os_error(path):
            try:
                remote.fs.pipe_file(remote.path, data, mode="create")
            except FileExistsError:
                return False
        return True
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.link(draft, path)  # fails where there is one
    except FileExistsError:
        return False
    finally:
        os.unlink(draft)
    return True


def append(path: Path, data: bytes) -> None:
    """Add to a file in one write; to an object by writing it anew. Raises OSError."""
    if is_remote(path):
        remote: Any = path
        with _as_os_error(path):
            before = read_bytes(path) if remote.exists() else b""
            remote.fs.pipe_file(remote.path, before + data)
        return
    with open(path, "ab") as file:
        file.write(data)


@contextlib.contextmanager
def fetched(path: Path) -> Iterator[Path]:
    """Yield a file on this machine with the same bytes. Raises OSError."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="aneurysm-ray-") as folder:
        remote: Any = path
        here = Path(folder) / path.name
        with _as_os_error(path):
            remote.fs.get_file(remote.path, str(here))
        yield here


@contextlib.contextmanager
def folder(path: Path) -> Iterator[Path]:
    """Yield a folder of this machine in which to write; what lies in it at the end lies in `path`. Raises OSError."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="aneurysm-ray-") as name:
        yield Path(name)
        for file in sorted(Path(name).rglob("*")):
            if file.is_file():
                upload(str(file), path / file.relative_to(name).as_posix())


def matching(parent: Path, pattern: str) -> list[Path]:
    """Return what lies in a folder under names like fold_*, sorted; none where there is no folder.

    The folder's own name may hold anything, which fsspec's patterns would take for their own.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(child for child in parent.iterdir() if fnmatch.fnmatchcase(child.name, pattern))
    return []


def remove(path: Path) -> None:
    """Remove a file, if it is there. Raises OSError."""
    if is_remote(path):
        remote: Any = path
        with contextlib.suppress(FileNotFoundError), _as_os_error(path):
            remote.fs.rm_file(remote.path)
    else:
        path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a folder with all that is in it, if it is there."""
    if is_remote(path):
        remote: Any = path
        with contextlib.suppress(FileNotFoundError), _as_os_error(path):
            for name in remote.fs.find(remote.path):
                remote.fs.rm_file(name)
    else:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _as_os_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if not is_remote(path):
            raise
        raise OSError(f"{type(error).__name__}: {error}") from error
