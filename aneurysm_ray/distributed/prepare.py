"""Prepare a data set on a cluster: series → volumes, with Ray Data.

One block per series, largest first, and one actor per core. An actor runs a series in its guarded child process and
returns only a status; the voxels go straight to the set. Whatever dies costs the series it was working on and nothing
else: those of a child are rejected, those of a worker or a node are tried again, and those of this process are what the
next run finds missing.

Why Ray Data and not a pool of actors of our own: it makes actors as nodes come and asks a cluster that grows for them,
feeds the least busy one, and ends all when the driver does. What it lacks is in `data_passes.py`.
"""

import contextlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
import ray.data

from aneurysm_ray import __version__, location, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.data import catalogue, identity, ledger, urls, work
from aneurysm_ray.data.catalogue import Source
from aneurysm_ray.data.guard import Guard
from aneurysm_ray.data.ledger import PrepareSummary
from aneurysm_ray.data.lock import locked
from aneurysm_ray.data.work import Task
from aneurysm_ray.distributed import data_passes, estimate, session
from aneurysm_ray.distributed.progress import Status, shown
from aneurysm_ray.distributed.room import workers_on
from aneurysm_ray.errors import AneurysmRayError, OutputError, RequestError, SeriesError

log = logging.getLogger(__name__)

WORKER_BYTES = 700 * 2**20
"""A worker and its child with everything imported, and the prepared volume in their hands."""
VOLUME_COPIES = 2.5
"""Peak memory of a series beyond that, in int16 volumes of its size."""
IN_FLIGHT = 2
"""Series that an actor is given at a time. Ray Data looks ten times a second whether one is done, so that an actor that
had one alone would idle till then."""
NAMINGS = 3
"""Times that a series is read until its voxels are of the series that it is named by: twice where its first file is of
another one."""


def prepare(data: str, out: str, config: Config, *, dry_run: bool = False) -> PrepareSummary:
    """Prepare every series of `data` that the set `out` does not hold already, and write the set's tables.

    Both may be paths or fsspec URLs. `dry_run` says what would be done and prepares nothing.
    Raises RequestError and its kin before Ray starts; OutputError or AneurysmRayError when the set cannot be written or
    the data disappear; KeyboardInterrupt after Ctrl-C, with the tables of what is done written.
    """
    begun = time.monotonic()
    out = out if urls.is_url(out) else os.path.abspath(out)
    data = data if urls.is_url(data) else os.path.abspath(data)
    volume = config.volume.model_dump(mode="json")
    for each in (data, out):
        location.check_reachable(location.place(each))
    found, notes = catalogue.find_sources(data, config.prepare.frame_base)
    catalogue.check_is_a_set(data, found)
    for note in notes:
        log.info("%s", note)
    if dry_run:
        estimate.say(found, config)
        return PrepareSummary(0, 0, 0, (), tuple(notes), time.monotonic() - begun)
    ledger.check_foreign(out)
    with locked(out):
        key = identity.patient_key(out, config.prepare.patient_key_file)
        place = identity.place_hash(key, data)
        described = {
            "kind": "volumes",
            "source": place,
            "version": __version__,
            "volume": volume,
            "key": identity.fingerprint(key),
        }
        before = ledger.check_same_settings(out, described)
        places = {place: data, **{identity.place_hash(key, source.key): source.key for source in found}}
        try:
            identity.write_places(out, places)
        except RequestError as error:  # the set is whole without it
            log.warning("%s", error)
        found = [_keyed(source, key) for source in found]
        draft = [Task(source, out, volume, key.hex(), config.prepare.digest == "content") for source in found]
        ledger.check_same_data(draft, out, described, before)
        _begin(out, described)
        return _prepare_all(draft, described, notes, config, data, begun)


def _keyed(source: Source, key: bytes) -> Source:
    """Return a source as the set may know it: its digest by the key, and a UID where its header has none."""
    own = source.own_uid if source.own_uid is None or identity.is_uid(source.own_uid) else None
    made = identity.made_uid(key, source.key) if own is None and source.own_uid is not None else own
    return replace(source, digest=identity.keyed(key, source.digest), own_uid=made)


def _prepare_all(
    draft: Sequence[Task], described: dict[str, Any], notes: Sequence[str], config: Config, data: str, begun: float
) -> PrepareSummary:
    """Prepare series until each has a volume under its own name, or a reason, and write the tables."""
    out = draft[0].out
    tasks = ledger.named(draft)
    statuses, left = ledger.done_and_left(tasks)
    kept = len(statuses)
    size = sum(task.source.bytes for task in tasks) / 1e9
    log.info("%s series, %.1f GB; %s done already", f"{len(tasks):,}", size, f"{kept:,}")

    def close(complete: bool) -> PrepareSummary:
        return ledger.write_tables(out, described, list(statuses.values()), tasks, kept, notes, begun, complete)

    try:
        if left:
            with session.connect():
                for _ in range(NAMINGS):
                    for status in _run(left, config, data):
                        statuses[status["key"]] = status
                    # Those whose voxels are of another series than their first header: now their own UID is known.
                    misnamed = {status["key"] for status in statuses.values() if not ledger.is_final(status)}
                    tasks = ledger.named(draft)
                    left = [task for task in tasks if task.name in misnamed]
                    if not left:
                        break
                for task in left:
                    error = SeriesError("vanished", "its files changed each time that they were read")
                    statuses[task.name] = work.reject(task, error, task.source.digest)
    except BaseException:
        # What is done is done: leave tables of it, with those series whose status is there and was not heard of yet,
        # unless it is the disk that ended the work.
        with contextlib.suppress(OSError):
            statuses |= ledger.done_and_left([task for task in left if task.name not in statuses])[0]
        with contextlib.suppress(OutputError):
            close(complete=False)
        raise
    return close(complete=True)


def _begin(out: str, described: dict[str, Any]) -> None:
    """Write the set's description, which shows that `out` can be written. Raises RequestError when it cannot."""
    try:
        urls.write_bytes(urls.join(out, rundir.PREPARE), ledger.as_json({**described, "complete": False}))
    except OutputError as error:
        raise RequestError(str(error)) from error


def _run(tasks: Sequence[Task], config: Config, data: str) -> Iterator[dict[str, Any]]:
    """Prepare series on the connected cluster and yield their statuses as they come, showing progress."""
    begun = time.monotonic()
    counts: Counter[str] = Counter()
    left = {task.name: task for task in tasks}
    total_bytes = sum(task.source.bytes for task in tasks)
    with shown() as show:
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
        yield work.reject(
            task, SeriesError("crash", "its worker died, and so did those that tried again"), task.source.digest
        )


def _tried(left: Mapping[str, Task], config: Config) -> Iterator[dict[str, str]]:
    """Yield the results of tasks, and try those again that are in `left` still, as their worker died with them."""

    def once(one: data_passes.Pass) -> Iterator[dict[str, str]]:
        for memory, tier in _tiers(list(left.values())):
            yield from _results(tier, memory, one, config)

    return data_passes.until_done(once, lambda: len(left), 3 * config.prepare.timeout_seconds)


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


def _results(tasks: Sequence[Task], memory: int, one: data_passes.Pass, config: Config) -> Iterator[dict[str, str]]:
    """Yield what came of tasks; none for those whose worker died."""
    fit = workers_on(_nodes(), {"CPU": 1, "memory": memory})
    rows = ray.data.from_items([{"task": task.to_json()} for task in tasks], override_num_blocks=len(tasks))
    with data_passes.undeprecated():
        done = rows.map(
            _Preparer,
            fn_constructor_args=(config.prepare.memory_mb, config.prepare.timeout_seconds),
            compute=ray.data.ActorPoolStrategy(
                min_size=1,
                initial_size=min(max(fit, 1), len(tasks)),
                max_size=len(tasks),  # it grows with the cluster
                # One at a time when tried again, so that fewer are lost with the one that a worker dies of.
                max_tasks_in_flight_per_actor=1 if one.careful else IN_FLIGHT,
            ),
            num_cpus=1,
            memory=memory,
            **one.of_actors,
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
                status = self.guard.run(work.prepare, task, timeout_seconds=self.timeout_seconds)
            except SeriesError as error:
                status = work.reject(task, error, task.source.digest)
        except OutputError as error:
            return {"failed": str(error), "status": ""}
        return {"status": json.dumps(status), "failed": ""}


def _check_data_is_there(data: str) -> None:
    if urls.is_url(data):
        try:
            location.check_reachable(location.place(data))
        except RequestError as error:
            raise AneurysmRayError(f"{error}, and run the same command to go on") from error
    elif not os.path.isdir(data):
        raise AneurysmRayError(f"{data} disappeared; mount it again and run the same command to go on")
