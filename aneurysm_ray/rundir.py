"""The files of a run directory: their names, atomic writing, reading back.

Every file is written under a temporary name and renamed, so a reader or a crash sees the old file or the new one,
never a part. `summary.json` is written last: a directory that has one is complete.
"""

import contextlib
import functools
import json
import logging
import os
import socket
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import pandas as pd

from aneurysm_ray import overrides
from aneurysm_ray.config import VOLUME_FORMAT, Config, VolumeConfig
from aneurysm_ray.errors import RunDirError

CONFIG = "config.toml"
PROVENANCE = "provenance.json"
LOG = "log.txt"
FOLDS = "folds.csv"
METRICS = "metrics.csv"
PREDICTIONS = "predictions.csv"
CANDIDATES = "candidates.csv"
HEATMAPS = "heatmaps"
TENSORBOARD = "tensorboard"
CHECKPOINT_BEST = "checkpoint_best"
CHECKPOINT_LAST = "checkpoint_last"
SUMMARY = "summary.json"
REPORT = "report.html"
TRIALS = "trials.csv"
CURVES = "curves.csv"
BEST = "best.toml"
JOURNAL = "optuna.journal"
VOLUMES = "volumes.parquet"
REJECTED = "rejected.csv"
PREPARE = "prepare.json"


@contextlib.contextmanager
def atomic(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary sibling for writing; rename it over `path` when the block ends well, remove it otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        text = "b" not in mode
        with open(temporary, mode, encoding="utf-8" if text else None, newline="" if text else None) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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


def read_json(path: Path) -> Any:
    """Read JSON. Raises RunDirError when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunDirError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise RunDirError(f"{path}: not valid JSON ({error})") from error


def read_csv(path: Path) -> pd.DataFrame:
    """Read a table; identifiers stay text. Raises RunDirError when it is missing or damaged."""
    try:
        return pd.read_csv(path, dtype={"series_uid": "string", "patient": "string"})
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


@contextlib.contextmanager
def keep_log(folder: Path) -> Iterator[None]:
    """Also write the package's messages into the directory's log while the block runs, and its traceback."""
    folder.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("aneurysm_ray")
    handler = logging.FileHandler(folder / LOG, delay=True)
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


def kind(folder: Path) -> str:
    """Say what a directory is: `volumes`, `train`, `tune`, `predict`, or an empty string for none of these."""
    if (folder / VOLUMES).exists() or (folder / PREPARE).exists():
        return "volumes"
    for name in (SUMMARY, PROVENANCE):
        if (folder / name).exists():
            found = read_json(folder / name).get("kind", "")
            return found if isinstance(found, str) else ""
    return ""


def create(folder: Path, config: Config, provenance: dict[str, Any], *, resume: bool = False) -> None:
    """Make a run directory with its configuration and provenance, or reopen it to resume.

    Raises RunDirError when the directory already holds a run and `resume` is off, or when the run to be resumed was
    started with another configuration.
    """
    if (folder / CONFIG).exists():
        if not resume:
            raise RunDirError(f"{folder} already holds a run; add --resume to go on with it, or choose another --out")
        if (there := read_config(folder)) != config:
            keys = (key for key, _, _ in overrides.dotted_keys())
            first = next(key for key in keys if overrides.value(there, key) != overrides.value(config, key))
            before, now = overrides.value(there, first), overrides.value(config, first)
            raise RunDirError(
                f"{folder} was started with {first}={before!r}, not {now!r}; "
                "resume it with its own config.toml, or choose another --out"
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise RunDirError(f"{folder} is not empty and holds no run; choose another --out")
    write_json(folder / PROVENANCE, provenance)
    write_text(folder / CONFIG, overrides.to_toml(config))
