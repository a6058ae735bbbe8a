"""What a worker does with one series: score it, and write its folder, `result.json` last.

A folder with a `result.json` is done. The folder holds the page, the heat map, and on request the files for viewers.
"""

import json
import logging
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aneurysm_ray import overrides, rundir
from aneurysm_ray.data import reading
from aneurysm_ray.data.guard import Guard
from aneurysm_ray.data.outputs import viewer
from aneurysm_ray.data.reading import Reading
from aneurysm_ray.data.store import PreparedVolume
from aneurysm_ray.errors import RequestError, SeriesError, printable
from aneurysm_ray.labels import LABELS, PRESENT_INDEX
from aneurysm_ray.learning import ensemble, export, inference
from aneurysm_ray.learning.export import Ensemble
from aneurysm_ray.learning.inference import Answer
from aneurysm_ray.reporting import page, pictures, predict_page

log = logging.getLogger(__name__)

SERIES = "series"
RESULT = "result.json"
HEATMAP = "heatmap.npz"
CHANGEABLE = ("inference.", "prepare.", "optim.precision")
"""What may be changed of a model's configuration; the rest is what its weights were trained with."""
LEARNT = "inference.top_k"
"""Except this: the loss on whole patches and the calibration are those of a pooling."""


@dataclass(frozen=True)
class Item:
    """A series to score; plain values, so that it travels."""

    name: str
    """Its folder below `series/`."""
    location: str
    series_uid: str
    """What a table or the folder's name says; empty where only the files know."""
    bytes: int = 0
    deep: bool = True
    """Folders below its own are part of it."""
    own_uid: str | None = None
    """The UID in its first header, where nothing but its files names it."""


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


def load(order: Order, device: str) -> Ensemble:
    """Load the models of an order with its overrides. Raises RequestError for one that the weights cannot bear."""
    trained = export.load(Path(order.run), device, fast=order.fast)
    config = overrides.build(order.changes, base=trained.config)
    for key in order.changes:
        if overrides.value(config, key) != overrides.value(trained.config, key) and not _is_changeable(key):
            raise RequestError(
                f"{key} belongs to how {order.run} was trained, which has "
                f"{json.dumps(overrides.value(trained.config, key))}; predict takes {', '.join(CHANGEABLE)}* settings "
                f"only, and no {LEARNT}"
            )
    return replace(trained, config=config)


def _is_changeable(key: str) -> bool:
    return key.startswith(CHANGEABLE) and key != LEARNT


class Scorer:
    """A worker: models on a device and one guarded child per thread. Several threads read while one scores."""

    def __init__(self, order: Order, device: str) -> None:
        self.order = order
        self.device = device
        self.trained = load(order, device)
        self._scoring = threading.Lock()
        self._threads = threading.local()
        self._guards: list[Guard] = []

    def __call__(self, item: Item) -> dict[str, str]:
        """Score a series, write its folder and return its name and the reason it could not be read, if any."""
        config = self.trained.config
        guard = self._guard()
        series: Reading | None = None
        try:
            timeout_seconds = config.prepare.timeout_seconds
            path = Path(item.location)
            series = guard.run(reading.read, path, config.volume, item.deep, timeout_seconds=timeout_seconds)
            with self._scoring:
                answer = inference.score(self.trained, series, self.device)
        except SeriesError as error:
            answer = inference.fall_back(self.trained, error)
        # As in the guard: a bug that one series brings out must not end the other thousands.
        except Exception as error:
            log.warning("%s: %s", item.location, error, exc_info=True)
            reason = "memory" if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) else "crash"
            answer = inference.fall_back(
                self.trained, SeriesError(reason, f"{item.location}: {type(error).__name__} while it was scored")
            )
        self._write(item, series, answer, guard)
        return {"name": item.name, "reason": answer.reason}

    def close(self) -> None:
        """End the children."""
        for guard in self._guards:
            guard.close()

    def _guard(self) -> Guard:
        if not hasattr(self._threads, "guard"):
            self._threads.guard = Guard(self.trained.config.prepare.memory_mb)
            self._guards.append(self._threads.guard)
        guard: Guard = self._threads.guard
        return guard

    def _write(self, item: Item, series: Reading | None, answer: Answer, guard: Guard) -> None:
        folder = Path(self.order.out) / SERIES / item.name
        folder.mkdir(parents=True, exist_ok=True)
        heat = None
        notes: list[str] = []
        if answer.heatmap is not None and series is not None:
            heat = pictures.HeatMap(answer.heatmap.grid.astype(np.float32), answer.heatmap.affine)
            ensemble.write_heatmap(folder / HEATMAP, answer.heatmap)
            if self.order.dicom and series.slices is not None:
                notes = self._write_for_viewers(folder, item, series, answer, heat, guard)
        result = describe(item, series, answer, self.trained, notes)
        prepared = series.prepared if series is not None and heat is not None else None
        page.write(predict_page.series_page(result, prepared, heat), folder / predict_page.SERIES_PAGE)
        rundir.write_json(folder / RESULT, result)

    def _write_for_viewers(
        self, folder: Path, item: Item, series: Reading, answer: Answer, heat: pictures.HeatMap, guard: Guard
    ) -> list[str]:
        assert series.slices is not None
        try:
            return guard.run(
                viewer.write_all,
                folder,
                Path(item.location),
                series.slices,
                answer.candidates,
                heat.grid,
                heat.affine,
                float(answer.probabilities[PRESENT_INDEX]),
                self.trained.digest,
                _plain(self.trained.calibrated(answer.probabilities)[PRESENT_INDEX]),
                timeout_seconds=self.trained.config.prepare.timeout_seconds,
            )
        except SeriesError as error:
            return [f"no files for viewers: {error}"]


def lost(item: Item, order: Order, trained: Ensemble) -> None:
    """Write the folder of a series whose worker died with it."""
    answer = inference.fall_back(trained, SeriesError("crash", f"{item.location}: the process that scored it died"))
    folder = Path(order.out) / SERIES / item.name
    result = describe(item, None, answer, trained, [])
    page.write(predict_page.series_page(result, None, None), folder / predict_page.SERIES_PAGE)
    rundir.write_json(folder / RESULT, result)


def describe(item: Item, series: Reading | None, answer: Answer, trained: Ensemble, notes: list[str]) -> dict[str, Any]:
    """Return a series' `result.json`: plain values, None where there is none."""
    prepared = series.prepared if series is not None and not answer.reason else None
    calibrated = answer.probabilities if answer.reason else trained.calibrated(answer.probabilities)
    frames = [uid for uid, _ in series.slices.instances] if series is not None and series.slices is not None else []
    multi_frame = len(set(frames)) < len(frames)
    candidates = answer.candidates.assign(multi_frame=multi_frame)
    return {
        "series_uid": _uid(item, prepared),
        "path": printable(item.location),
        "model": trained.digest,
        "reason": answer.reason,
        "message": answer.message,
        "probabilities": dict(zip(LABELS, answer.probabilities.tolist(), strict=True)),
        "calibrated": dict(zip(LABELS, map(_plain, calibrated), strict=True)),
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
    """Return what a series is named by: a table or the layout, else its voxels, else its first header or its place."""
    if prepared and item.own_uid is not None and prepared.series_uid != item.own_uid:
        return printable(prepared.series_uid)
    return printable(item.series_uid or (prepared.series_uid if prepared else Path(item.location).name))


def _plain(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else float(value)
    return int(value) if isinstance(value, np.integer) else value
