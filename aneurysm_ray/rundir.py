"""The files of a run directory: their names, atomic writing, reading back.

Every file is written under a temporary name and renamed, or uploaded as a whole, so a reader or a crash sees the old
file or the new one, never a part. `summary.json` is written last: a directory that has one is complete.
"""

import contextlib
import functools
import io
import json
import logging
import logging.handlers
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pandas as pd

from aneurysm_ray import location, overrides
from aneurysm_ray.config import VOLUME_FORMAT, Config, VolumeConfig
from aneurysm_ray.errors import OutputError, RunDirError

log = logging.getLogger(__name__)

CONFIG = "config.toml"
PROVENANCE = "provenance.json"
LOG = "log.txt"
FOLDS = "folds.csv"
METRICS = "metrics.csv"
PREDICTIONS = "predictions.csv"
CANDIDATES = "candidates.csv"
HEATMAPS = "heatmaps"
PRIVATE_MAP = ".sources.csv"
PROFILE = "profile"
TENSORBOARD = "tensorboard"
CHECKPOINT_LAST = "checkpoint_last"
SUMMARY = "summary.json"
DRIVER = ".driver.json"
TEST = "test_"
"""What the tables and folders of outside tests begin with."""
REPORT = "report.html"
OVERLAY = "overlay.html"
TRIALS = "trials.csv"
CURVES = "curves.csv"
BEST = "best.toml"
JOURNAL = "optuna.journal"
STUDY = "study.json"
SAMPLE = "sample.json"
SERIES = "series"
RESULT = "result.json"
ERROR = "error.txt"
VOLUMES = "volumes.parquet"
REJECTED = "rejected.csv"
PREPARE = "prepare.json"


@contextlib.contextmanager
def atomic(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file for writing; it becomes `path` when the block ends well, and is removed otherwise.

    Raises OutputError when the disk is full, read-only or gone.
    """
    # Threads of one process may write the same file; by host and process `remove_abandoned` knows the dead.
    owner = f"{secrets.token_hex(4)}.{socket.gethostname()}.{os.getpid()}"
    temporary = path.with_name(f"{path.name}.{owner}.tmp")
    if remote := location.is_remote(path):
        temporary = Path(tempfile.gettempdir()) / f"aneurysm-ray-{temporary.name}"
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        text = "b" not in mode
        with open(temporary, mode, encoding="utf-8" if text else None, newline="" if text else None) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if remote:
            location.upload(str(temporary), path)
        else:
            os.replace(temporary, path)
    # torch.save makes a RuntimeError of what the disk says.
    except (OSError, RuntimeError) as error:
        if (cause := error if isinstance(error, OSError) else error.__context__) and isinstance(cause, OSError):
            raise cannot_be_written(path, cause) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def cannot_be_written(path: Path, error: OSError) -> OutputError:
    """Return what to say of a file that the disk or the object store does not take."""
    return OutputError(
        f"{path} cannot be written: {error.strerror or error}; make room or mend its permissions, and run the same "
        "command again"
    )


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys in the order given."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a table atomically, without the index."""
    with atomic(path) as file:
        frame.to_csv(file, index=False)


def append_csv(path: Path, frame: pd.DataFrame) -> None:
    """Add rows to a table that has the same columns, all in one write, so that no reader sees half a row."""
    try:
        location.append(path, frame.to_csv(index=False, header=False).encode())
    except OSError as error:
        raise cannot_be_written(path, error) from error


def read_json(path: Path) -> Any:
    """Read JSON. Raises RunDirError when it is missing or damaged."""
    try:
        return json.loads(location.read_bytes(path))
    except OSError as error:
        raise RunDirError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise RunDirError(f"{path}: not valid JSON ({error})") from error


def read_csv(path: Path) -> pd.DataFrame:
    """Read a table; identifiers stay text. Raises RunDirError when it is missing or damaged."""
    try:
        return pd.read_csv(io.BytesIO(location.read_bytes(path)), dtype={"series_uid": "string", "patient": "string"})
    except OSError as error:
        raise RunDirError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise RunDirError(f"{path}: not a table ({error})") from error


def read_config(folder: Path) -> Config:
    """Read a run directory's configuration. Raises RunDirError when another version of the package made it."""
    return overrides.of_run(overrides.read_toml(folder / CONFIG), folder)


def read_volume_settings(folder: Path) -> VolumeConfig:
    """Read the settings that a prepared set was stored with, which are those of everything that uses it.

    Raises RunDirError when the folder is no prepared set, or one of another version of the package.
    """
    if not (folder / PREPARE).exists():
        raise RunDirError(
            f"{folder} is not a prepared set: it has no {PREPARE}; run aneurysm-ray prepare DATA OUT first"
        )
    facts = read_json(folder / PREPARE)
    stored = facts.get("volume") if isinstance(facts, dict) else None
    if not isinstance(stored, dict) or stored.get("format") != VOLUME_FORMAT:
        raise RunDirError(other_format(folder))
    try:
        return VolumeConfig.model_validate(stored)
    except ValueError as error:
        raise RunDirError(f"{folder / PREPARE} is damaged ({error}); prepare the set again") from error


def configure(
    preset: str | None,
    file: Path | None,
    words: Iterable[str] = (),
    *,
    volumes: Path | None = None,
    resumed: Path | None = None,
    **flags: Any,
) -> Config:
    """Build a command's configuration as `overrides.load` does: on that of the run it resumes, or else on the settings
    of its prepared set. Raises ConfigError, and RunDirError when the run or the set cannot be used.
    """
    build = functools.partial(overrides.load, preset, file, tuple(words), **flags)
    settings = build()  # so that a wrong word is told before any folder is looked at
    if resumed and (resumed / CONFIG).exists():
        return build(base=read_config(resumed))
    return build(base=Config(volume=read_volume_settings(volumes))) if volumes else settings


def other_format(place: Path | str) -> str:
    """Say that a prepared set, or a file of one, was stored by another version, and what to do."""
    return (
        f"{place} was prepared by another version of aneurysm_ray, whose volumes mean something else than this one's; "
        "prepare the data anew, into another folder"
    )


def fold_dir(folder: Path, fold: int) -> Path:
    """Return the directory of one fold."""
    return folder / f"fold_{fold}"


def test_tables(folder: Path) -> list[Path]:
    """Return the predictions of a run's outside tests, in the order of their names.

    The private map of a test's series has another ending.
    """
    return [path for path in location.matching(folder, f"{TEST}*.csv") if not path.name.endswith(PRIVATE_MAP)]


def test_name(table: Path) -> str:
    """Return the name of an outside test by its table."""
    return table.name.removeprefix(TEST).removesuffix(".csv")


def trained_dir(search: Path, trial: int) -> Path:
    """Return the directory of the full training of a search's trial."""
    return search / f"train_{trial:04d}"


@contextlib.contextmanager
def keep_log(folder: Path) -> Iterator[None]:
    """Also write the package's messages into the directory's log while the block runs, and its traceback."""
    logger = logging.getLogger("aneurysm_ray")
    handler = _RemoteLog(folder / LOG) if location.is_remote(folder) else _LocalLog(folder / LOG)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    level = logger.level
    if not logger.isEnabledFor(logging.INFO):
        logger.setLevel(logging.INFO)
    try:
        yield
    except BaseException:
        handler.handle(logger.makeRecord(logger.name, logging.ERROR, "", 0, "stopped by", (), sys.exc_info()))
        raise
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()


class _LocalLog(logging.FileHandler):
    """Adds messages to a file; a disk that is full or gone costs the log and not the work."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path, delay=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message."""
        with contextlib.suppress(OSError):  # the file is opened with the first
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Leave it to the work to say what the disk says, once."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        """Let go of the file; what it had not taken yet is lost."""
        with contextlib.suppress(OSError):
            super().close()


class _RemoteLog(logging.handlers.MemoryHandler):
    """Collects messages and adds them to an object: a hundred at a time, and an error at once."""

    def __init__(self, path: Path) -> None:
        super().__init__(100, logging.ERROR)
        self.path = path

    def flush(self) -> None:
        """Write what was collected; a store that does not answer costs the log and not the work."""
        text = "".join(f"{self.format(record)}\n" for record in self.buffer)
        self.buffer = []
        if text:
            with contextlib.suppress(OSError):
                location.append(self.path, text.encode())


def kind(folder: Path) -> str:
    """Say what a directory is: `volumes`, `train`, `tune`, `predict`, or an empty string for none of these."""
    if (folder / VOLUMES).exists() or (folder / PREPARE).exists():
        return "volumes"
    for name in (SUMMARY, PROVENANCE):
        if (folder / name).exists():
            found = read_json(folder / name).get("kind", "")
            return found if isinstance(found, str) else ""
    return ""


def check(folder: Path, config: Config, *, resume: bool = False, freed: Sequence[str] = ()) -> None:
    """Look whether a run directory can be made, or resumed; `freed` are settings that may then be others.

    Raises RunDirError when the directory already holds a run and `resume` is off, or when the run to be resumed was
    started with other settings.
    """
    if resume and not (folder / CONFIG).exists():
        log.info("* %s holds no run yet; beginning one", folder)
    if (folder / CONFIG).exists():
        if not resume:
            raise RunDirError(f"{folder} already holds a run; add --resume to go on with it, or choose another --out")
        there = overrides.build({key: overrides.value(config, key) for key in freed}, base=read_config(folder))
        if there != config:
            keys = (key for key, _, _ in overrides.dotted_keys())
            first = next(key for key in keys if overrides.value(there, key) != overrides.value(config, key))
            before, now = overrides.value(there, first), overrides.value(config, first)
            raise RunDirError(
                f"{folder} was started with {first}={before!r}, not {now!r}; "
                "resume it with its own config.toml, or choose another --out"
            )
    elif folder.exists() and any(path.name not in (DRIVER, PROVENANCE) for path in folder.iterdir()):
        raise RunDirError(f"{folder} is not empty and holds no run; choose another --out")


def create(folder: Path, config: Config, provenance: dict[str, Any]) -> None:
    """Make a run directory, or give the one that `check` found in order the settings that it may have anew."""
    if not (folder / CONFIG).exists():
        write_json(folder / PROVENANCE, provenance)
    elif read_config(folder) == config:
        return
    write_text(folder / CONFIG, overrides.to_toml(config))
