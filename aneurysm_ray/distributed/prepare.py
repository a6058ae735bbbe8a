"""Prepare a data set on a cluster: series → volumes, with Ray Data.

One block per series, largest first, and one actor per core. An actor runs a series in its guarded child process and
returns only a status; the voxels go straight to the set. Whatever dies costs the series it was working on and nothing
else: those of a child are rejected, those of a worker or a node are tried again when the others are done, and those of
this process are what the next run finds missing.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pandas as pd
import ray
import ray.data
from ray.util.annotations import RayDeprecationWarning

from aneurysm_ray import __version__, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.data import series, sources, storage, store
from aneurysm_ray.data.guard import Guard
from aneurysm_ray.data.privacy import patient_key
from aneurysm_ray.data.series import Task
from aneurysm_ray.distributed import estimate, session
from aneurysm_ray.distributed.progress import Status, shown
from aneurysm_ray.distributed.room import workers_on
from aneurysm_ray.errors import SERIES_REASONS, AneurysmRayError, OutputError, RequestError, RunDirError, SeriesError

log = logging.getLogger(__name__)

WORKER_BYTES = 700 * 2**20
"""A worker and its child with everything imported, and the prepared volume in their hands."""
VOLUME_COPIES = 2.5
"""Peak memory of a series beyond that, in int16 volumes of its size."""
IN_FLIGHT = 2
"""Series that an actor is given at a time. Ray Data looks ten times a second whether one is done, so that an actor that
had one alone would idle till then."""
TRIES = 2
"""Passes that finish none of the series left, after which those are given up."""


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
    """Series that the set has and the data set has no more; their files stay, the table leaves them out."""
    notes: tuple[str, ...]
    seconds: float


def prepare(data: str, out: str, config: Config, *, dry_run: bool = False) -> PrepareSummary:
    """Prepare every series of `data` that the set `out` does not hold already, and write the set's tables.

    Both may be paths or fsspec URLs. `dry_run` says what would be done and prepares nothing.
    Raises RequestError and its kin before Ray starts; OutputError or AneurysmRayError when the set cannot be written or
    the data disappear; KeyboardInterrupt after Ctrl-C, with the tables of what is done written.
    """
    begun = time.monotonic()
    out = out if storage.is_url(out) else os.path.abspath(out)
    data = data if storage.is_url(data) else os.path.abspath(data)
    volume = config.volume.model_dump(mode="json")
    found, notes = sources.find_sources(data)
    for note in notes:
        log.info("%s", note)
    if dry_run:
        estimate.say(found, config)
        return PrepareSummary(0, 0, 0, (), tuple(notes), time.monotonic() - begun)
    key = patient_key(out, config.prepare.patient_key).hex()
    _check_same_settings(out, volume, key)
    described = {
        "kind": "volumes",
        "source": data,
        "version": __version__,
        "volume": volume,
        "patient_key": _fingerprint(key),
    }
    _begin(out, described)
    tasks = [Task(source, out, volume, key, config.prepare.digest == "content") for source in found]
    statuses, left = _done_and_left(tasks)
    kept = len(statuses)
    log.info("%s series, %.1f GB; %s done already", f"{len(tasks):,}", sum(s.bytes for s in found) / 1e9, f"{kept:,}")

    def close(complete: bool) -> PrepareSummary:
        return _write_tables(out, described, statuses.values(), found, kept, notes, begun, complete)

    try:
        if left:
            with session.connect():
                for status in _run(left, config, data):
                    statuses[status["key"]] = status
    except BaseException:
        # What is done is done: leave tables of it, with those series whose status is there and was not heard of yet,
        # unless it is the disk that ended the work.
        with contextlib.suppress(OSError):
            statuses |= _done_and_left([task for task in left if task.source.key not in statuses])[0]
        with contextlib.suppress(OutputError):
            close(complete=False)
        raise
    return close(complete=True)


def _done_and_left(tasks: Sequence[Task]) -> tuple[dict[str, dict[str, Any]], list[Task]]:
    """Return the statuses of the series that are done, by key, and the tasks that are not."""
    with ThreadPoolExecutor(sources.LISTING_THREADS) as pool:
        # With a digest of the content the workers find out, as they must read the files for it.
        there = list(
            pool.map(lambda task: None if task.hash_content else series.done_already(task, task.source.digest), tasks)
        )
    done = {status["key"]: status for status in there if status is not None}
    return done, [task for task in tasks if task.source.key not in done]


def _check_same_settings(out: str, volume: dict[str, Any], key: str) -> None:
    """Raise RunDirError when `out` holds something else, or a set made with other settings or another patient key."""
    text = storage.read_bytes(storage.join(out, rundir.PREPARE))
    if text is None:
        foreign = os.path.isdir(out) and os.listdir(out) and not os.path.isdir(storage.join(out, series.STATUS))
        if not storage.is_url(out) and foreign:
            raise RunDirError(f"{out} is not empty and holds no prepared set; choose another OUT")
        return
    try:
        there = json.loads(text)
        settings, fingerprint = there["volume"], there["patient_key"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunDirError(
            f"{out}/{rundir.PREPARE} is damaged ({error}); delete it and run the same command again"
        ) from error
    for name, value in volume.items():
        if settings.get(name) != value:
            raise RunDirError(
                f"{out} was prepared with volume.{name}={settings.get(name)}, not {value}; "
                "give the same settings, or choose another OUT"
            )
    if fingerprint != _fingerprint(key):
        raise RunDirError(
            f"{out} was prepared with another patient key, so that one patient would become two; give the same "
            "prepare.patient_key, or put the set's .patient_key file back beside it"
        )


def _fingerprint(key: str) -> str:
    return hashlib.sha256(b"fingerprint:" + bytes.fromhex(key)).hexdigest()[:16]


def _begin(out: str, described: dict[str, Any]) -> None:
    """Write the set's description, which shows that `out` can be written. Raises RequestError when it cannot."""
    try:
        storage.write_bytes(storage.join(out, rundir.PREPARE), _json({**described, "complete": False}))
    except OutputError as error:
        raise RequestError(str(error)) from error


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


def _run(tasks: Sequence[Task], config: Config, data: str) -> Iterator[dict[str, Any]]:
    """Prepare series on the connected cluster and yield their statuses as they come, showing progress."""
    begun = time.monotonic()
    counts: Counter[str] = Counter()
    left = {task.source.key: task for task in tasks}
    total_bytes = sum(task.source.bytes for task in tasks)
    with shown() as show, session.quiet_data(max(1800.0, 3 * config.prepare.timeout_seconds)):
        for result in _tried(left, config):
            if result["failed"]:
                raise AneurysmRayError(result["failed"])
            status = json.loads(result["status"])
            if status.get("reason") == "vanished":
                _check_data_is_there(data)
            task = left.pop(status["key"])
            counts.update(done=1, rejected="reason" in status, bytes=task.source.bytes)
            show(
                Status(
                    len(tasks),
                    counts["done"],
                    counts["rejected"],
                    total_bytes,
                    counts["bytes"],
                    time.monotonic() - begun,
                )
            )
            yield status
    for task in left.values():
        yield series.reject(
            task, SeriesError("crash", "its worker died, and so did those that tried again"), task.source.digest
        )


def _tried(left: Mapping[str, Task], config: Config) -> Iterator[dict[str, str]]:
    """Yield the results of tasks, and try those again that are in `left` still, as their worker died with them."""
    in_flight, vain = IN_FLIGHT, 0
    while left and vain < TRIES:
        before = len(left)
        for memory, tier in _tiers(list(left.values())):
            yield from _results(tier, memory, in_flight, config)
        vain += len(left) == before
        # One at a time for each actor when tried again, so that fewer are lost with the one that a worker dies of.
        in_flight = 1


def _tiers(tasks: Sequence[Task]) -> Iterator[tuple[int, list[Task]]]:
    """Split tasks, largest first, into those too large to fill every CPU of a node at once, and the rest.

    Yields the bytes that a task of the tier may take, and its tasks.
    """
    nodes = _nodes()
    share = min(int(node["memory"] / node["CPU"]) for node in nodes)
    largest = max(int(node["memory"]) for node in nodes)
    need = {task.source.key: int(WORKER_BYTES + VOLUME_COPIES * task.source.voxel_bytes) for task in tasks}
    for tier in (
        [task for task in tasks if need[task.source.key] > share],
        [task for task in tasks if need[task.source.key] <= share],
    ):
        if tier:
            # One that needs more than any node has runs alone on a node; its guard's limit decides.
            yield min(largest, max(need[task.source.key] for task in tier)), tier


def _nodes() -> list[dict[str, float]]:
    """Return the resources of the nodes that can prepare series, of which a cluster that grows may have none at first.

    Raises RequestError when there is none and will be none.
    """
    while not (nodes := [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]):
        session.require({"CPU": 1}, "preparation needs", "Add a node with CPUs to the cluster.")
        ray.get(ray.remote(num_cpus=1)(lambda: None).remote())  # whoever waits for a CPU is given a node
    return nodes


def _results(tasks: Sequence[Task], memory: int, in_flight: int, config: Config) -> Iterator[dict[str, str]]:
    """Yield what came of tasks; none for those whose worker died."""
    fit = workers_on(_nodes(), {"CPU": 1, "memory": memory})
    rows = ray.data.from_items([{"task": task.to_json()} for task in tasks], override_num_blocks=len(tasks))
    # An actor that died starts again where there is room for it, but loses its series: those that Ray would keep for it
    # could wait for ever, and one that kills its worker would do so for ever. Ray 2.60 deprecates saying so, and has no
    # other word for it.
    retries: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 0}
    with warnings.catch_warnings(action="ignore", category=RayDeprecationWarning):
        done = rows.map(
            _Preparer,
            fn_constructor_args=(config.prepare.memory_mb, config.prepare.timeout_seconds),
            compute=ray.data.ActorPoolStrategy(
                min_size=1,
                initial_size=min(max(fit, 1), len(tasks)),
                max_size=len(tasks),  # it grows with the cluster
                max_tasks_in_flight_per_actor=in_flight,
            ),
            num_cpus=1,
            memory=memory,
            **retries,
        )
    yield from done.iter_rows()


class _Preparer:
    """Prepares series in a guarded child; lives on a worker, as an actor of Ray Data."""

    def __init__(self, memory_mb: int, timeout_seconds: float) -> None:
        self.guard = Guard(memory_mb)
        self.timeout_seconds = timeout_seconds

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        task = Task.from_json(row["task"])
        try:
            try:
                status = self.guard.run(series.prepare, task, timeout_seconds=self.timeout_seconds)
            except SeriesError as error:
                told = SeriesError(error.reason, f"{task.source.key}: {error}")
                status = series.reject(task, told, task.source.digest)
        except OutputError as error:
            return {"failed": str(error), "status": ""}
        return {"status": json.dumps(status), "failed": ""}


def _check_data_is_there(data: str) -> None:
    if not storage.is_url(data) and not os.path.isdir(data):
        raise AneurysmRayError(f"{data} disappeared; mount it again and run the same command to go on")


def _write_tables(
    out: str,
    described: dict[str, Any],
    statuses: Collection[dict[str, Any]],
    found: Sequence[sources.Source],
    kept: int,
    notes: Sequence[str],
    begun: float,
    complete: bool,
) -> PrepareSummary:
    """Write volumes.parquet, rejected.csv and, last, prepare.json; clear away what dead writers left."""
    rows = [status["row"] for status in statuses if "row" in status]
    rejected = sorted((status for status in statuses if "row" not in status), key=lambda status: str(status["key"]))
    table = pd.DataFrame(
        [(status["series_uid"], status["key"], status["reason"], status["message"]) for status in rejected],
        columns=["series_uid", "path", "reason", "message"],
    )
    removed = _removed(out, {series.status_path(out, source.key) for source in found})
    if not storage.is_url(out):
        for location in storage.files_below(out):
            if location.endswith(".tmp"):
                storage.remove(location)
    storage.write_bytes(storage.join(out, rundir.VOLUMES), store.encode_table(rows))
    storage.write_bytes(storage.join(out, rundir.REJECTED), table.to_csv(index=False).encode())
    summary = PrepareSummary(len(rows), len(rejected), kept, removed, tuple(notes), time.monotonic() - begun)
    reasons = dict(Counter(str(status["reason"]) for status in rejected).most_common())
    log.info("%s volumes, %s series rejected", f"{len(rows):,}", f"{len(rejected):,}")
    for reason, count in reasons.items():
        log.info("%8s  %s", f"{count:,}", SERIES_REASONS[reason])
    if removed:
        log.info("%s series are in the set and no more in the data; the table leaves them out", f"{len(removed):,}")
    facts = {
        "complete": complete,
        "series": len(found),
        "prepared": len(rows),
        "rejected": len(rejected),
        "reasons": dict(sorted(reasons.items())),
        "removed": list(removed),
        "kept": kept,
        "notes": list(notes),
        "seconds": round(summary.seconds, 1),
    }
    storage.write_bytes(storage.join(out, rundir.PREPARE), _json({**described, **facts}))
    return summary


def _removed(out: str, expected: set[str]) -> tuple[str, ...]:
    """Return the keys of series that the set has a status of and the data set has no more."""
    there = storage.files_below(storage.join(out, series.STATUS))
    stray = (series.read_status(location) for location in there if location not in expected)
    return tuple(sorted(status["key"] for status in stray if status is not None))
