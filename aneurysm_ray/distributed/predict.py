"""Score many series with Ray Data: one actor with the models per GPU or per two cores, results straight to disk.

Every series leaves its folder below `series/` (see `scoring.py`), and the tables are made of these at the end, so that
whatever dies costs the series it was working on and nothing else: `--resume` does what is missing. A few series are
scored in this process, since they take less time than Ray's start.
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import ray.data
import torch

from aneurysm_ray import overrides, provenance, rundir
from aneurysm_ray.data import catalogue, store
from aneurysm_ray.data.catalogue import Source
from aneurysm_ray.distributed import progress, scoring, session
from aneurysm_ray.distributed.scoring import Item, Order
from aneurysm_ray.errors import DatasetError, RequestError
from aneurysm_ray.labels import LABELS, PRESENT
from aneurysm_ray.learning.export import Ensemble
from aneurysm_ray.learning.inference import CANDIDATE_COLUMNS
from aneurysm_ray.reporting import page, predict_page

log = logging.getLogger(__name__)

FEW = 4
"""Up to this many series are scored without Ray, which takes about 8 s to start and load the models again."""
READERS_PER_GPU = 4
"""Series that an actor with a GPU reads at a time, while it scores one."""


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
    be read has the training prevalence as its answer, and a reason.
    Raises RequestError and its kin before anything is scored.
    """
    begun = time.monotonic()
    items, notes = find(paths)
    for note in notes:
        log.info("%s", note)
    order = Order(str(run.absolute()), str(out.absolute()), dict(changes), fast, dicom)
    trained = scoring.load(order, "cpu")
    _check_volumes(items, trained)
    facts = {"run": str(run), "model": trained.digest, "models": len(trained.models), "paths": [str(p) for p in paths]}
    _begin(out, trained, facts, resume=resume)
    left = [item for item in items if not (out / scoring.SERIES / item.name / scoring.RESULT).exists()]
    log.info("* %d series, %d to score, %d network(s)", len(items), len(left), len(trained.models))
    _score(left, order, trained)
    summary = _finish(out, items, facts, time.monotonic() - begun)
    page.write(predict_page.index_page(out), out / rundir.REPORT)
    return summary


def find(paths: Sequence[str]) -> tuple[list[Item], list[str]]:
    """Return the series of some paths, largest first, and notes. Raises RequestError for a path that is not there."""
    items: list[Item] = []
    notes: list[str] = []
    for text in paths:
        path = Path(text)
        if not path.exists():
            raise RequestError(f"{text} does not exist; give series, data sets, archives or prepared sets")
        if path.is_dir() and (path / rundir.VOLUMES).exists():
            table = store.volumes_table(path)
            for row in table.to_dict("records"):
                items.append(_item((path / str(row["path"])).absolute(), row["series_uid"], row["bytes"]))
        elif path.is_dir():
            try:
                found, said = catalogue.find_sources(text)
            except DatasetError:
                # Tables that are wrong are the user's to mend; a folder without series is a series that is empty.
                if any((path / name).exists() for name in ("train.csv", "train_localizers.csv")):
                    raise
                found, said = [], []
            notes += said
            items += [_item(Path(s.location), s.series_uid or "", s.bytes, s) for s in found]
            if not found:
                items.append(_item(path.absolute(), "", 0))
        else:
            items.append(_item(path.absolute(), "", path.stat().st_size))
    once = {item.name: item for item in items}
    return sorted(once.values(), key=lambda item: (-item.bytes, item.name)), notes


def _item(path: Path, series_uid: str, size: int, source: Source | None = None) -> Item:
    # The place makes names unique: one series may be given as a folder and as an archive.
    stem = "".join(c for c in (series_uid or path.name)[:64] if c.isalnum() or c in ".-_").lstrip(".")
    name = f"{stem}-{sha256(os.fsencode(path)).hexdigest()[:8]}"
    deep, own_uid = (source.deep, source.own_uid) if source else (True, None)
    return Item(name, str(path), series_uid, int(size), deep, own_uid)


def _check_volumes(items: Sequence[Item], trained: Ensemble) -> None:
    """Raise RequestError when a prepared set was made with other settings than the model was trained on."""
    wanted = overrides.volume_identity(trained.config)
    checked = set()
    for item in items:
        path = Path(item.location)
        if path.suffix == ".parquet" and path.parents[1] not in checked:
            checked.add(path.parents[1])
            metadata = pq.read_schema(path).metadata or {}
            if metadata.get(store.VOLUME_CONFIG_KEY, b"").decode() != wanted:
                raise RequestError(
                    f"{path.parents[1]} was prepared with other volume.* settings than the model was trained on; "
                    "prepare it with the run's config.toml, or give the DICOM series themselves"
                )


def _begin(out: Path, trained: Ensemble, facts: dict[str, Any], *, resume: bool) -> None:
    rundir.create(out, trained.config, provenance.describe("predict", **facts), resume=resume)
    there = rundir.read_json(out / rundir.PROVENANCE)
    if (there.get("model"), there.get("models")) != (facts["model"], facts["models"]):
        raise RequestError(f"{out} was begun with other models; choose another --out")


def _score(left: Sequence[Item], order: Order, trained: Ensemble) -> None:
    """Score what is left, and say how far it is."""
    begun = time.monotonic()
    done = failed = done_bytes = 0
    total_bytes = sum(max(item.bytes, 1) for item in left)
    sizes = {item.name: max(item.bytes, 1) for item in left}
    with progress.shown() as show:
        for row in _rows(left, order, trained):
            done, failed, done_bytes = done + 1, failed + bool(row["reason"]), done_bytes + sizes[row["name"]]
            show(progress.Status(len(left), done, failed, total_bytes, done_bytes, time.monotonic() - begun))
    for item in left:
        if not (Path(order.out) / scoring.SERIES / item.name / scoring.RESULT).exists():
            scoring.lost(item, order, trained)


def _rows(left: Sequence[Item], order: Order, trained: Ensemble) -> Iterator[dict[str, str]]:
    if len(left) > FEW:
        with session.connect():
            yield from _distributed(left, order, trained.config.prepare.timeout_seconds)
    elif left:
        scorer = scoring.Scorer(order, _device())
        try:
            yield from map(scorer, left)
        finally:
            scorer.close()


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _distributed(left: Sequence[Item], order: Order, timeout_seconds: float) -> Iterator[dict[str, str]]:
    cluster = session.resources()
    gpus, cpus = int(cluster.get("GPU", 0)), cluster.get("CPU", 1.0)
    # An actor on the CPU has a core for its child, which reads, and one for the network. Loading takes an actor as long
    # as a few series do.
    actors = min(-(-len(left) // max(FEW, 1)), gpus or max(1, int(cpus) // 2))
    pool = ray.data.ActorPoolStrategy(
        size=actors,
        max_tasks_in_flight_per_actor=2 * READERS_PER_GPU if gpus else 2,
        max_concurrent_calls_per_actor=READERS_PER_GPU if gpus else 2,
        enable_true_multi_threading=True,
    )
    # Ray Data reads its settings when a job is put together. A series whose worker dies is left to the driver.
    with session.quiet_data(max(1800.0, 3 * timeout_seconds)):
        rows = ray.data.from_items([asdict(item) for item in left], override_num_blocks=len(left)).map(
            _Actor,
            fn_constructor_args=(asdict(order), int(max(1, cpus // actors - 1))),
            compute=pool,
            num_gpus=1 if gpus else 0,
            num_cpus=0 if gpus else 1,
        )
        yield from rows.iter_rows()


class _Actor:
    """A `scoring.Scorer` as Ray Data wants it: made where it works, plain rows in and out."""

    def __init__(self, order: dict[str, Any], threads: int) -> None:
        device = _device()
        if device == "cpu":
            torch.set_num_threads(threads)
        self.scorer = scoring.Scorer(Order(**order), device)

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        return self.scorer(Item(**row))


def _finish(out: Path, items: Sequence[Item], facts: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Write the tables and the summary of the series' results, in the order of their UIDs."""
    results = [(item.name, rundir.read_json(out / scoring.SERIES / item.name / scoring.RESULT)) for item in items]
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
        "modality": result["modality"],
        "plane": result["plane"],
        "quality": " ".join(result["quality"]),
        "path": result["path"],
        "page": f"{scoring.SERIES}/{name}/{predict_page.SERIES_PAGE}",
    }
