"""The three steps of a series' prediction: read it (CPU), score it (GPU), write its folder (CPU), `result.json` last.

A folder with a `result.json` is done. The folder holds the page, the heat map, and on request the files for viewers.
None of them holds the name of a folder or file that was read, which may be a patient's: a series is known by its UID,
and by a keyed hash of its place.
Each step is a function of values, which a process does one after another or three of Ray Data's operators side by side.
"""

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aneurysm_ray import location, overrides, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.data import places, reading, urls
from aneurysm_ray.data.guard import Guard
from aneurysm_ray.data.identity import is_uid, uid_of_hash
from aneurysm_ray.data.outputs import viewer
from aneurysm_ray.data.reading import Reading
from aneurysm_ray.data.store import PreparedVolume
from aneurysm_ray.errors import RequestError, SeriesError
from aneurysm_ray.labels import LABELS, PRESENT_INDEX
from aneurysm_ray.learning import ensemble, export, inference
from aneurysm_ray.learning.export import TrainedModels
from aneurysm_ray.learning.inference import Answer
from aneurysm_ray.reporting import page, pictures, predict_page

log = logging.getLogger(__name__)

HEATMAP = "heatmap.npz"
CHANGEABLE = ("inference.", "prepare.", "optim.precision")
"""What may be changed of a model's configuration; the rest is what its weights were trained with."""
LEARNT = "inference.top_k"
"""Except this: the loss on whole patches and the calibration are those of a pooling."""


@dataclass(frozen=True)
class Item:
    """A series to score; plain values, so that it travels."""

    location: str
    """A path, or the URL of an object store."""
    series_uid: str
    """What a table or the folder's name says; empty where only the files know."""
    bytes: int = 0
    deep: bool = True
    """Folders below its own are part of it."""
    own_uid: str | None = None
    """The UID in its first header, where nothing but its files names it."""
    source: str = ""
    """The keyed hash of its place."""
    stamp: str = ""
    """The keyed hash of what its files were: names, sizes, times."""

    @property
    def name(self) -> str:
        """Its folder below `series/`. The hash makes it unique: a series may be given as a folder and as an archive."""
        return f"{self.series_uid}-{self.source[:8]}" if is_uid(self.series_uid) else self.source


@dataclass(frozen=True)
class Order:
    """What all workers of a prediction share."""

    run: str
    """Run directory or exported model."""
    out: str
    changes: dict[str, Any]
    """Dotted overrides of the model's own configuration."""
    fast: bool
    dicom: bool


def load(order: Order, device: str) -> TrainedModels:
    """Load the models of an order with its overrides. Raises RequestError for one that the weights cannot bear."""
    trained = export.load(location.place(order.run), device, fast=order.fast)
    changed = trained.changed(order.changes)
    for key in order.changes:
        had = overrides.value(trained.config, key)
        if overrides.value(changed.config, key) != had and not _is_changeable(key):
            raise RequestError(
                f"{key} belongs to how {order.run} was trained, which has {json.dumps(had)}; predict takes "
                f"{', '.join(CHANGEABLE)}* settings only, and no {LEARNT}"
            )
    return changed


def _is_changeable(key: str) -> bool:
    return key.startswith(CHANGEABLE) and key != LEARNT


def folder_of(order: Order, item: Item) -> Path:
    """Return a series' folder."""
    return location.place(order.out) / rundir.SERIES / item.name


_guards: dict[int, Guard] = {}


def _guard(memory_mb: int) -> Guard:
    """Return this process's child for reading, in which no file can crash, hang or exhaust the process itself."""
    return _guards.setdefault(memory_mb, Guard(memory_mb))


def close() -> None:
    """End the child, whoever still holds its guard: an error's traceback may."""
    while _guards:
        _guards.popitem()[1].close()


@contextlib.contextmanager
def _on_this_machine(item: Item) -> Iterator[Path]:
    """Yield a path of a series on this machine: its own, or a copy fetched from an object store."""
    if not urls.is_url(item.location) or item.location.endswith(".parquet"):
        yield location.place(item.location)
        return
    with tempfile.TemporaryDirectory(prefix="aneurysm-ray-") as folder:
        yield places.fetch(item.location, Path(folder), deep=item.deep)


def read(item: Item, config: Config) -> Reading | SeriesError:
    """Read and prepare a series, or say why it cannot be."""
    guard = _guard(config.prepare.memory_mb)
    try:
        with _on_this_machine(item) as path:
            return guard.run(
                reading.read, path, config.volume, item.deep, timeout_seconds=config.prepare.timeout_seconds
            )
    except SeriesError as error:
        return error


def score(item: Item, found: Reading | SeriesError, trained: TrainedModels, device: str) -> Answer:
    """Score a series; whatever is wrong with it becomes the fall-back."""
    try:
        if isinstance(found, SeriesError):
            raise found
        return inference.score(trained, found, device)
    except SeriesError as error:
        return inference.fall_back(trained, _without_place(error))
    # As in the guard: a bug that one series brings out must not end the other thousands.
    except Exception as error:
        log.warning("%s: %s", item.location, error, exc_info=True)
        reason = "memory" if isinstance(error, MemoryError | torch.OutOfMemoryError) else "crash"
        return inference.fall_back(trained, SeriesError(reason, f"{type(error).__name__} while it was scored"))


def _without_place(error: SeriesError) -> SeriesError:
    """Return an error as the outputs may hold it."""
    return SeriesError(error.reason, error.told)


def write(item: Item, found: Reading | SeriesError, answer: Answer, trained: TrainedModels, order: Order) -> str:
    """Write a series' folder and return the reason it could not be read, if any."""
    heat = None
    notes: list[str] = []
    series = None if isinstance(found, SeriesError) else found
    with location.folder(folder_of(order, item)) as folder:
        if answer.heatmap is not None and series is not None:
            heat = pictures.HeatMap(answer.heatmap.grid.astype(np.float32), answer.heatmap.affine)
            ensemble.write_heatmap(folder / HEATMAP, answer.heatmap)
            if order.dicom and series.slices is not None:
                notes = _write_for_viewers(folder, item, series, answer, heat, trained)
        result = describe(item, series, answer, trained, notes)
        prepared = series.prepared if series is not None and heat is not None else None
        page.write(predict_page.series_page(result, prepared, heat), folder / predict_page.SERIES_PAGE)
    rundir.write_json(folder_of(order, item) / rundir.RESULT, result)
    return answer.reason


def _write_for_viewers(
    folder: Path, item: Item, series: Reading, answer: Answer, heat: pictures.HeatMap, trained: TrainedModels
) -> list[str]:
    assert series.slices is not None
    settings = trained.config.prepare
    try:
        with _on_this_machine(item) as path:
            return _guard(settings.memory_mb).run(
                viewer.write_all,
                folder,
                path,
                series.slices,
                answer.candidates,
                heat.grid,
                heat.affine,
                float(answer.probabilities[PRESENT_INDEX]),
                trained.digest,
                _plain(trained.calibrated(answer.probabilities)[PRESENT_INDEX]),
                timeout_seconds=settings.timeout_seconds,
            )
    except SeriesError as error:
        return [f"no files for viewers: {error.told}"]


def lost(item: Item, order: Order, trained: TrainedModels) -> None:
    """Write the folder of a series whose worker died with it, again and again."""
    told = SeriesError("crash", "the process that scored it died")
    write(item, told, inference.fall_back(trained, told), trained, order)


def describe(
    item: Item, series: Reading | None, answer: Answer, trained: TrainedModels, notes: list[str]
) -> dict[str, Any]:
    """Return a series' `result.json`: plain values, None where there is none."""
    prepared = series.prepared if series is not None and not answer.reason else None
    calibrated = answer.probabilities if answer.reason else trained.calibrated(answer.probabilities)
    frames = [uid for uid, _ in series.slices.instances] if series is not None and series.slices is not None else []
    points = [None if answer.reason else point for point in trained.points]
    multi_frame = len(set(frames)) < len(frames)
    candidates = answer.candidates.assign(multi_frame=multi_frame)
    return {
        "series_uid": _uid(item, prepared),
        "source": item.source,
        "stamp": item.stamp,
        "model": trained.digest,
        "note": trained.note,
        "reason": answer.reason,
        "message": answer.message,
        "probabilities": dict(zip(LABELS, answer.probabilities.tolist(), strict=True)),
        "calibrated": dict(zip(LABELS, map(_plain, calibrated), strict=True)),
        "operating": trained.config.inference.operating,
        "thresholds": {label: p.threshold if p else None for label, p in zip(LABELS, points, strict=True)},
        "expected": {
            label: [p.sensitivity, p.false_alarms] if p else None for label, p in zip(LABELS, points, strict=True)
        },
        "flagged": [
            label
            for label, point, probability in zip(LABELS, points, answer.probabilities, strict=True)
            if point and probability >= point.threshold
        ],
        "candidates": [{key: _plain(value) for key, value in row.items()} for row in candidates.to_dict("records")],
        "modality": prepared.modality if prepared else "",
        "plane": prepared.plane if prepared else "",
        "shape": list(prepared.voxels.shape) if prepared else [],
        "spacing_mm": [round(mm, 4) for mm in prepared.spacing_mm] if prepared else [],
        "quality": list(prepared.quality) if prepared else [],
        "notes": notes,
        "seconds": answer.seconds,
    }


def _uid(item: Item, prepared: PreparedVolume | None) -> str:
    """Return the UID that names a series: a table's or the layout's, else its voxels', else its first header's, else
    one that is made of its place."""
    # What has no UID of its own is called by its file's name.
    own = prepared.series_uid if prepared and "series_uid_assumed" not in prepared.quality else ""
    known = [item.series_uid, own]
    if item.own_uid is not None and own != item.own_uid:
        known.reverse()
    return next((uid for uid in known if is_uid(uid)), uid_of_hash(item.source))


def _plain(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else float(value)
    return int(value) if isinstance(value, np.integer) else value
