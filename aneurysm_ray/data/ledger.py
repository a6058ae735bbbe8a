"""What a prepared set holds and what is left to do: checks before a run, names, and the tables after it.

Everything is found in the set itself - `prepare.json` and the statuses of the series - so that any run can go on where
any other one stopped.
"""

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from aneurysm_ray import rundir
from aneurysm_ray.data import catalogue, doubts, identity, store, urls, work
from aneurysm_ray.data.dicom import QUALITY
from aneurysm_ray.data.lock import LOCK
from aneurysm_ray.data.work import Task
from aneurysm_ray.errors import SERIES_REASONS, RunDirError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrepareSummary:
    """What a prepared set holds after a run."""

    prepared: int
    """Volumes in the set."""
    rejected: int
    """Series of the data set that are no volume."""
    kept: int
    """Of both, those that were done before this run; 0 with `prepare.digest=content`, where workers find out."""
    removed: tuple[str, ...]
    """Places of series that the data set has no more; the set lets go of them when a run is complete."""
    notes: tuple[str, ...]
    seconds: float


def check_foreign(out: str) -> None:
    """Raise RunDirError when `out` is a folder that holds something else than a prepared set."""
    if urls.is_url(out) or not os.path.isdir(out) or os.path.isdir(urls.join(out, work.STATUS)):
        return
    # A run that was stopped before its first series leaves tables of nothing.
    if set(os.listdir(out)) - {LOCK} and not os.path.isfile(urls.join(out, rundir.PREPARE)):
        raise RunDirError(f"{out} is not empty and holds no prepared set; choose another OUT")


def check_same_settings(out: str, described: dict[str, Any]) -> dict[str, Any]:
    """Return what a set says of itself, nothing where there is none yet.

    Raises RunDirError when it was made with other settings, by another version or with another key.
    """
    text = urls.read_bytes(urls.join(out, rundir.PREPARE))
    if text is None:
        return {}
    try:
        there: dict[str, Any] = json.loads(text)
        settings = there["volume"]
        known = dict(settings)
    except (ValueError, KeyError, TypeError) as error:
        raise RunDirError(
            f"{out}/{rundir.PREPARE} is damaged ({error}); delete it and run the same command again"
        ) from error
    if known.get("format") != described["volume"]["format"]:
        raise RunDirError(rundir.other_format(out))
    for name, value in described["volume"].items():
        if known.get(name) != value:
            raise RunDirError(
                f"{out} was prepared with volume.{name}={known.get(name)}, not {value}; "
                "give the same settings, or choose another OUT"
            )
    if "key" not in there:
        raise RunDirError(
            f"{out} was prepared by an earlier version, which kept the names of folders; choose another OUT"
        )
    if there["key"] != described["key"]:
        raise RunDirError(
            f"{out} was prepared with another patient key, so that one patient would become two; give the same key, or "
            "put the set's .patient_key file back beside it"
        )
    return there


def check_same_data(draft: Sequence[Task], out: str, described: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Raise RunDirError when a set holds series of another data set alone, which this run would let go of."""
    if before.get("source") in (None, described["source"]):
        return
    there = urls.files_below(urls.join(out, work.STATUS))
    if there and not set(there) & {work.status_path(task.out, task.name) for task in draft}:
        raise RunDirError(
            f"{out} was prepared from another data set and holds {len(there)} series of it; choose another OUT"
        )


def is_final(status: Mapping[str, Any]) -> bool:
    """Whether a status says that a series is a volume, or why it is none."""
    return "row" in status or "reason" in status


def named(draft: Sequence[Task]) -> list[Task]:
    """Give every series its name: by what its voxels were found to be, where they were read, else by its header."""
    with ThreadPoolExecutor(catalogue.LISTING_THREADS) as pool:
        known = list(pool.map(lambda task: work.read_status(work.status_path(task.out, task.name)), draft))
    kept: dict[str, str] = {}
    corrected = []
    found = []
    for task, status in zip(draft, known, strict=True):
        source, own = task.source, (status or {}).get("own_uid")
        if status and own and source.own_uid is not None:
            # With a digest of the content nobody knows yet whether the files are still those that were read.
            if task.hash_content or status["digest"] == source.digest:
                if own != source.own_uid:
                    corrected.append(source.key)
                source = replace(source, own_uid=own)
            if "row" in status:
                kept[source.key] = status["row"]["series_uid"]
        found.append(source)
    names = catalogue.named(found, kept, corrected)
    return [replace(task, source=source) for task, source in zip(draft, names, strict=True)]


def done_and_left(tasks: Sequence[Task]) -> tuple[dict[str, dict[str, Any]], list[Task]]:
    """Return the statuses of the series that are done, by name, and the tasks that are not."""
    with ThreadPoolExecutor(catalogue.LISTING_THREADS) as pool:
        # With a digest of the content the workers find out, as they must read the files for it.
        there = list(
            pool.map(lambda task: None if task.hash_content else work.done_already(task, task.source.digest), tasks)
        )
    done = {status["key"]: status for status in there if status is not None}
    return done, [task for task in tasks if task.name not in done]


def as_json(value: dict[str, Any]) -> bytes:
    """Return the bytes of `prepare.json`."""
    return json.dumps(value, indent=2).encode() + b"\n"


def write_tables(
    out: str,
    described: dict[str, Any],
    statuses: Sequence[dict[str, Any]],
    tasks: Sequence[Task],
    kept: int,
    notes: Sequence[str],
    begun: float,
    complete: bool,
) -> PrepareSummary:
    """Write volumes.parquet, rejected.csv and, last, prepare.json; clear away what dead writers left.

    When a run is complete, the set lets go of what is no series of the data any more, or has another name now.
    """
    rows = store.with_repeated(status["row"] for status in statuses if "row" in status)
    rejected = sorted((status for status in statuses if "reason" in status), key=lambda status: str(status["key"]))
    table = pd.DataFrame(
        [(status["series_uid"], status["key"], status["reason"], status["message"]) for status in rejected],
        columns=["series_uid", "source", "reason", "message"],
    )
    expected = {work.status_path(out, task.name) for task in tasks}
    removed = _removed(out, expected)
    urls.remove_abandoned(out)
    urls.write_bytes(urls.join(out, rundir.VOLUMES), store.encode_table(rows))
    urls.write_bytes(urls.join(out, rundir.REJECTED), table.to_csv(index=False).encode())
    places = identity.read_places(out)
    shown = tuple(sorted(places.get(name, name) for name in removed))
    summary = PrepareSummary(len(rows), len(rejected), kept, shown, tuple(notes), time.monotonic() - begun)
    reasons = dict(Counter(str(status["reason"]) for status in rejected).most_common())
    log.info("%s volumes, %s series rejected", f"{len(rows):,}", f"{len(rejected):,}")
    for reason, count in reasons.items():
        log.info("%8s  %s", f"{count:,}", SERIES_REASONS[reason])
    told = Counter(code for row in rows for code in row["quality"] if code in doubts.GRAVE)
    for code in sorted(told, key=doubts.GRAVE.index):
        log.info("%8s  %s (%s)", f"{told[code]:,}", QUALITY[code], code)
    if rejected and places:
        log.info("%s says which folder is behind each hash of %s", identity.places_path(out), rundir.REJECTED)
    if removed:
        log.info("%s series are in the data no more; the table leaves them out", f"{len(removed):,}")
    facts = {
        "complete": complete,
        "series": len(tasks),
        "prepared": len(rows),
        "rejected": len(rejected),
        "reasons": dict(sorted(reasons.items())),
        "removed": list(removed),
        "kept": kept,
        "notes": list(notes),
        "seconds": round(summary.seconds, 1),
    }
    urls.write_bytes(urls.join(out, rundir.PREPARE), as_json({**described, **facts}))
    if complete:
        _let_go(out, rows, expected)
    return summary


def _removed(out: str, expected: set[str]) -> tuple[str, ...]:
    """Return by what hash the set knows the series that the data set has no more."""
    there = urls.files_below(urls.join(out, work.STATUS))
    stray = (work.read_status(location) for location in there if location not in expected)
    return tuple(sorted(str(status["key"]) for status in stray if status is not None))


def _let_go(out: str, rows: Sequence[Mapping[str, Any]], expected: set[str]) -> None:
    """Remove volumes, pictures and statuses that belong to no series of the table."""
    keep = set(expected)
    for row in rows:
        keep |= {urls.join(out, path) for path in (row["path"], store.picture_path(row["series_uid"]))}
    for location in urls.files_below(out):
        name = location.removeprefix(out).lstrip("/")
        if location not in keep and work.OWN_FILE.fullmatch(name):
            urls.remove(location)
