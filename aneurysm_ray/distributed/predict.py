"""Score many series with Ray Data: CPUs read them, GPUs score them, CPUs write what came of them, all at once.

Reading takes a core as long as scoring takes a GPU, so that nodes without one feed those that have; Ray Data holds
back the readers when the scorers cannot follow. Every series leaves its folder below `series/` (see `steps.py`), and
the tables are made of these at the end, so that whatever dies costs the series it was working on and nothing else: they
are tried again, and `--resume` does what is missing. A few series are scored in this process, since they take less time
than Ray's start.
"""

import functools
import json
import logging
import pickle
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import ray.data

from aneurysm_ray import location, overrides, provenance, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.data import catalogue, identity, store
from aneurysm_ray.data.catalogue import Source
from aneurysm_ray.distributed import data_passes, devices, driver, progress, session, steps
from aneurysm_ray.distributed.room import Cluster
from aneurysm_ray.distributed.steps import Item, Order
from aneurysm_ray.errors import DatasetError, RequestError, RunDirError
from aneurysm_ray.labels import LABELS, PRESENT
from aneurysm_ray.learning import starter
from aneurysm_ray.learning.export import TrainedModels
from aneurysm_ray.learning.inference import CANDIDATE_COLUMNS
from aneurysm_ray.reporting import page, predict_page

log = logging.getLogger(__name__)

FEW = 4
"""Up to this many series are scored without Ray, which takes about 8 s to start and load the models again."""


def predict(
    run: Path,
    paths: Sequence[str],
    out: Path,
    changes: Mapping[str, Any],
    *,
    fast: bool = False,
    dicom: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """Score every series of some paths with a run's models; write tables, pages and heat maps; return the summary.

    A path is a series (folder, file or archive), a data set or a prepared set. No series is left out: one that cannot
    be read has the training prevalence as its answer, and a reason. Names of folders and files stay in
    `<out>.sources.csv` (`identity.py`).
    Raises RequestError and its kin before anything is scored.
    """
    begun = time.monotonic()
    items, notes = find(paths)
    for note in notes:
        log.info("%s", note)
    # The starter lies where each node has the package.
    run, out = run if str(run) == starter.NAME else location.absolute(run), location.absolute(out)
    order = Order(str(run), str(out), dict(changes), fast, dicom)
    trained = steps.load(order, "cpu")
    if trained.note:
        log.info("* %s", trained.note)
    _check_volumes(items, trained)
    facts = {
        "run": run.name,
        "model": trained.digest,
        "models": len(trained.models),
        "note": trained.note,
    }
    with driver.alone(out):
        items = _begin(order, items, trained, {**facts, "command": _command(order)}, resume=resume)
        left = _left(items, order)
        if left:
            location.remove(out / rundir.SUMMARY)  # what has one is complete
        log.info("* %d series, %d to score, %d network(s)", len(items), len(left), len(trained.models))
        _score(left, order, trained)
        with progress.told("writing the tables and the page"):
            summary = _finish(out, items, facts, time.monotonic() - begun)
            page.write(predict_page.index_page(out), out / rundir.REPORT)
    return summary


def find(paths: Sequence[str]) -> tuple[list[Item], list[str]]:
    """Return the series of some paths, largest first, and notes. Raises RequestError for a path that is not there."""
    items: list[Item] = []
    notes: list[str] = []
    for text in paths:
        path = location.place(text)
        location.check_reachable(path)
        if not path.exists():
            raise RequestError(f"{text} does not exist; give series, data sets, archives or prepared sets")
        if path.is_dir() and (path / rundir.VOLUMES).exists():
            for row in store.volumes_table(text).to_dict("records"):
                place = location.absolute(path / str(row["path"]))
                items.append(_item(str(place), row["series_uid"], row["bytes"], str(row.get("source_digest", ""))))
        elif path.is_dir():
            try:
                found, said = catalogue.find_sources(text)
            except DatasetError:
                # Tables that are wrong are the user's to mend; a folder without series is a series that is empty.
                if any((path / name).exists() for name in ("train.csv", "train_localizers.csv")):
                    raise
                found, said = [], []
            notes += said
            items += [_item(s.location, s.series_uid or "", s.bytes, s.digest, s) for s in found]
            if not found:
                items.append(_item(str(location.absolute(path)), "", 0, ""))
        else:
            stat = path.stat()
            items.append(_item(str(location.absolute(path)), "", stat.st_size, str(stat.st_mtime)))
    once = {item.location: item for item in items}
    return sorted(once.values(), key=lambda item: (-item.bytes, item.location)), notes


def _item(place: str, series_uid: str, size: int, stamp: str, source: Source | None = None) -> Item:
    deep, own_uid = (source.deep, source.own_uid) if source else (True, None)
    return Item(place, series_uid, int(size), deep, own_uid, stamp=f"{size} {stamp}")


def _check_volumes(items: Sequence[Item], trained: TrainedModels) -> None:
    """Raise RequestError when a prepared set was made with other settings than the model was trained on."""
    wanted = overrides.volume_identity(trained.config)
    checked = set()
    for item in items:
        path = location.place(item.location)
        if path.suffix == ".parquet" and (folder := path.parent.parent) not in checked:
            checked.add(folder)
            with path.open("rb") as file:
                metadata = pq.read_schema(file).metadata or {}
            if metadata.get(store.VOLUME_CONFIG_KEY, b"").decode() != wanted:
                raise RequestError(
                    f"{folder} was prepared with other volume.* settings than the model was trained on; "
                    "prepare it with the run's config.toml, or give the DICOM series themselves"
                )


def _begin(
    order: Order, items: Sequence[Item], trained: TrainedModels, facts: dict[str, Any], *, resume: bool
) -> list[Item]:
    """Begin or go on with a prediction, and return the series as its outputs may know them."""
    out = location.place(order.out)
    rundir.check(out, trained.config, resume=resume)
    # Not the file that the model's own settings name: it is of another machine, or another's.
    key = identity.patient_key(order.out, order.changes.get("prepare.patient_key_file", ""))
    rundir.create(out, trained.config, provenance.describe("predict", **facts, key=identity.fingerprint(key)))
    there = rundir.read_json(out / rundir.PROVENANCE)
    if (there.get("model"), there.get("models")) != (facts["model"], facts["models"]):
        raise RequestError(f"{out} was begun with other models; choose another --out")
    if "key" not in there:
        raise RunDirError(
            f"{out} was begun by an earlier version, which kept the names of folders; choose another --out"
        )
    if there["key"] != identity.fingerprint(key):
        raise RunDirError(
            f"{out} was begun with another patient key, so that no series would be known again; give the same key, or "
            "put the prediction's .patient_key file back beside it"
        )
    known = [
        replace(item, source=identity.place_hash(key, item.location), stamp=identity.keyed(key, item.stamp))
        for item in items
    ]
    try:
        identity.write_places(order.out, {item.source: item.location for item in known})
    except RequestError as error:  # the prediction is whole without it
        log.warning("%s", error)
    return known


def _command(order: Order) -> str:
    """Return the command, without the places that were typed."""
    run = location.place(order.run).name
    flags = [flag for flag, on in (("--fast", order.fast), ("--dicom", order.dicom)) if on]
    words = [f"{key}={json.dumps(value, default=str)}" for key, value in order.changes.items()]
    return shlex.join(["aneurysm-ray", "predict", run, "PATH...", *words, *flags])


def _left(items: Sequence[Item], order: Order) -> list[Item]:
    """Return the series that have no result yet, or that of files that are no more."""
    return [item for item in items if not _is_done(steps.folder_of(order, item) / rundir.RESULT, item)]


def _is_done(result: Path, item: Item) -> bool:
    return result.exists() and rundir.read_json(result).get("stamp") == item.stamp


def _score(left: Sequence[Item], order: Order, trained: TrainedModels) -> None:
    """Score what is left, and say how far it is."""
    begun = time.monotonic()
    done = failed = done_bytes = 0
    total_bytes = sum(max(item.bytes, 1) for item in left)
    sizes = {item.name: max(item.bytes, 1) for item in left}
    with progress.shown() as show:
        for name, reason in _results(left, order, trained):
            done, failed, done_bytes = done + 1, failed + bool(reason), done_bytes + sizes[name]
            show(progress.Status(len(left), done, failed, total_bytes, done_bytes, time.monotonic() - begun))
    for item in _left(left, order):
        steps.lost(item, order, trained)


def _results(left: Sequence[Item], order: Order, trained: TrainedModels) -> Iterator[tuple[str, str]]:
    """Yield name and reason of each series that is done; those whose worker died again and again are left out."""
    if len(left) <= FEW:
        try:
            yield from (_alone(item, order, trained) for item in left)
        finally:
            steps.close()
        return

    def left_now() -> list[Item]:
        return _left(left, order)

    with session.connect():
        yield from data_passes.until_done(
            lambda one: _distributed(left_now(), order, trained, one),
            lambda: len(left_now()),
            3 * trained.config.prepare.timeout_seconds,
        )


def _alone(item: Item, order: Order, trained: TrainedModels) -> tuple[str, str]:
    found = steps.read(item, trained.config)
    answer = steps.score(item, found, trained, devices.here())
    return item.name, steps.write(item, found, answer, trained, order)


def _distributed(
    left: Sequence[Item], order: Order, trained: TrainedModels, one: data_passes.Pass
) -> Iterator[tuple[str, str]]:
    """Score series on the connected cluster."""
    shares = shares_of(session.cluster(), len(left))
    facts = replace(trained, models=())  # the weights stay where they are used
    rows = ray.data.from_items([{"item": pickle.dumps(item)} for item in left], override_num_blocks=len(left))
    on_cpu = {"num_cpus": shares.reader_cpus, **one.of_tasks}
    with data_passes.undeprecated():
        read = rows.map(functools.partial(_read, config=trained.config), **on_cpu)
        scored = read.map(
            _Scorer,
            fn_constructor_args=(order,),
            compute=ray.data.ActorPoolStrategy(
                min_size=1, max_size=shares.scorers, max_tasks_in_flight_per_actor=2, initial_size=shares.scorers
            ),
            num_cpus=shares.scorer_cpus,
            num_gpus=shares.scorer_gpus,
            **one.of_actors,
        )
        written = scored.map(functools.partial(_write, facts=facts, order=order), **on_cpu)
    for row in written.iter_rows():
        yield row["name"], row["reason"]


@dataclass(frozen=True)
class Shares:
    """How a cluster is shared between those who read and write series and those who score them."""

    reader_cpus: float
    """Of each task."""
    scorers: int
    scorer_cpus: float
    scorer_gpus: float
    """Of each scorer."""


def shares_of(cluster: Cluster, series: int) -> Shares:
    """Share a cluster out for so many series; loading the models takes a scorer as long as a few series do.

    With GPUs there is a scorer on each, and all cores read. Without, a quarter of the cores reads: scoring takes a core
    several times as long as reading.
    """
    most = -(-series // max(FEW, 1))
    if gpus := int(cluster.most("GPU")):
        return Shares(1.0, min(most, gpus), 0.0, 1.0)
    cpus = cluster.most("CPU")
    if cpus < 2:
        return Shares(cpus / 2, 1, cpus / 2, 0.0)
    scoring = cpus - max(1, cpus // 4)
    each = 2.0 if scoring >= 2 else 1.0
    return Shares(1.0, min(most, int(scoring // each)), each, 0.0)


def _read(row: dict[str, Any], config: Config) -> dict[str, Any]:
    item: Item = pickle.loads(row["item"])
    return {**row, "found": pickle.dumps(steps.read(item, config))}


class _Scorer:
    """Scores series with the models of an order, which it loads where it works: an actor of Ray Data."""

    def __init__(self, order: Order) -> None:
        self.device = devices.use(devices.reserved())
        self.trained = steps.load(order, self.device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        item, found = pickle.loads(row["item"]), pickle.loads(row["found"])
        return {**row, "answer": pickle.dumps(steps.score(item, found, self.trained, self.device))}


def _write(row: dict[str, Any], facts: TrainedModels, order: Order) -> dict[str, Any]:
    item, found, answer = (pickle.loads(row[name]) for name in ("item", "found", "answer"))
    return {"name": item.name, "reason": steps.write(item, found, answer, facts, order)}


def _finish(out: Path, items: Sequence[Item], facts: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Write the tables and the summary of the series' results, in the order of their UIDs."""
    results = [(item.name, rundir.read_json(out / rundir.SERIES / item.name / rundir.RESULT)) for item in items]
    results.sort(key=lambda pair: (pair[1]["series_uid"], pair[0]))
    rundir.write_csv(out / rundir.PREDICTIONS, pd.DataFrame([_row(name, result) for name, result in results]))
    candidates = [
        {"series_uid": result["series_uid"], **{key: candidate[key] for key in CANDIDATE_COLUMNS}}
        for _, result in results
        for candidate in result["candidates"]
    ]
    rundir.write_csv(out / rundir.CANDIDATES, pd.DataFrame(candidates, columns=["series_uid", *CANDIDATE_COLUMNS]))
    spent = [sum(result["seconds"].values()) for _, result in results if not result["reason"]]
    failed = [result["reason"] for _, result in results if result["reason"]]
    summary = {
        "kind": "predict",
        **facts,
        "series": len(results),
        "fallback": len(failed),
        "reasons": {reason: failed.count(reason) for reason in sorted(set(failed))},
        "candidates": len(candidates),
        "seconds": round(seconds, 3),
        "seconds_per_series": round(sum(spent) / max(len(spent), 1), 3),
    }
    rundir.write_json(out / rundir.SUMMARY, summary)
    return summary


def _row(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of predictions.csv: the competition's columns first."""
    return {
        "SeriesInstanceUID": result["series_uid"],
        **{label: result["probabilities"][label] for label in LABELS},
        "status": "fallback" if result["reason"] else "ok",
        "reason": result["reason"],
        "message": result["message"],
        "calibrated": result["calibrated"][PRESENT],
        **_alarm(result),
        "modality": result["modality"],
        "plane": result["plane"],
        "quality": " ".join(result["quality"]),
        "source": result["source"],
        "page": f"{rundir.SERIES}/{name}/{predict_page.SERIES_PAGE}",
    }


def _alarm(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return whether a series is flagged for an aneurysm, nothing where no threshold is known, and for which labels."""
    known = result.get("thresholds", {}).get(PRESENT) is not None
    flagged = result.get("flagged", [])
    return {
        "threshold": result["thresholds"][PRESENT] if known else None,
        "flagged": int(PRESENT in flagged) if known else None,
        "flagged_labels": "; ".join(flagged),
        "operating": result.get("operating", ""),
    }
