"""One series of a data set → its files in a prepared set. Runs in a guarded child, on any node.

A series leaves `<2 hex>/<uid>.parquet`, a picture, and `status/<2 hex>/<hash of its place>.json`, written last: a
status says that the series is done, with the digest and the volume settings it is done for, and holds its row of the
table. A set is resumed from its statuses alone.
"""

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aneurysm_ray.config import VolumeConfig
from aneurysm_ray.data import catalogue, picture, places, scans, store, urls
from aneurysm_ray.data.dataset import DomeMask, Localizer
from aneurysm_ray.data.identity import check_uid, keyed, made_uid, patient_hash, place_hash
from aneurysm_ray.data.points import Mark
from aneurysm_ray.data.preprocess import prepare_series
from aneurysm_ray.data.volume import Volume
from aneurysm_ray.errors import SeriesError

STATUS = "status"
OWN_FILE = re.compile(r"([0-9a-f]{2}/[^/]+\.parquet|pictures/[0-9a-f]{2}/[^/]+\.jpg|status/[0-9a-f]{2}/[^/]+\.json)")
"""Files of series, by their place in the set."""

RETRIED_REASONS = frozenset({"timeout", "memory", "crash", "vanished"})
"""Rejections that may be the machine's fault: the next run tries these series again."""


@dataclass(frozen=True)
class Task:
    """What a worker needs to know to prepare one series; plain values, so that it travels as JSON."""

    source: catalogue.Source
    out: str
    volume: dict[str, Any]
    """`config.volume` as JSON values."""
    patient_key: str
    """Hex digits of the key of the hashes."""
    hash_content: bool
    """The digest is of the files' bytes, to be computed by the worker, and not of their names, sizes and times."""

    @property
    def key(self) -> bytes:
        """The key of the hashes."""
        return bytes.fromhex(self.patient_key)

    @property
    def name(self) -> str:
        """By what the set knows the series: a keyed hash of its place in the data set."""
        return place_hash(self.key, self.source.key)

    def to_json(self) -> str:
        """Return the task as JSON; `from_json` gives it back."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Task":
        """Return the task that `to_json` wrote."""
        fields = json.loads(text)
        source = fields["source"]
        source["points"] = tuple(Localizer(**point) for point in source["points"])
        source["targets"] = tuple(source["targets"])
        source["marks"] = tuple(Mark(**mark) for mark in source["marks"])
        source["domes"] = tuple(
            (path, tuple((value, word) for value, word in values), shared) for path, values, shared in source["domes"]
        )
        return Task(**{**fields, "source": catalogue.Source(**source)})


def status_path(out: str, name: str) -> str:
    """Return where the status of a series lies in a set; `name` is `Task.name`."""
    return urls.join(out, f"{STATUS}/{name[:2]}/{name}.json")


def volume_identity(volume: dict[str, Any]) -> str:
    """Return volume settings as `overrides.volume_identity` writes them."""
    return json.dumps(volume, sort_keys=True)


def done_already(task: Task, digest: str) -> dict[str, Any] | None:
    """Return the status of a series that is done for this digest and these settings, and whose volume is there."""
    status = read_status(status_path(task.out, task.name))
    if status is None or status["digest"] != digest or status["volume"] != task.volume:
        return None
    if "reason" in status:
        return None if status["reason"] in RETRIED_REASONS else status
    if "row" not in status:
        return None
    row = status["row"]
    if task.source.series_uid not in (None, row["series_uid"]):
        return None
    return status if urls.size_of(urls.join(task.out, row["path"])) == row["bytes"] else None


def read_status(location: str) -> dict[str, Any] | None:
    """Return a status, or None where there is none or it is damaged."""
    data = urls.read_bytes(location)
    try:
        status = json.loads(data) if data else None
    except ValueError:
        return None
    return status if isinstance(status, dict) and {"key", "digest", "volume"} <= status.keys() else None


def prepare(task: Task) -> dict[str, Any]:
    """Prepare one series into the set and return its status; what is done already is kept.

    A series that cannot become a volume has a status with a reason, and one whose voxels are of another series than its
    first header one with their `own_uid`, and no volume. Raises OutputError when the set cannot be written.
    """
    source = task.source
    digest = source.digest
    try:
        with _local(source) as (path, vessels, domes):
            if task.hash_content:
                masks = [vessels, *(mask.path for mask in domes)]
                digest = keyed(task.key, catalogue.content_digest(path, masks, source))
            if (status := done_already(task, digest)) is not None:
                return status
            volume = scans.read_scan(path, deep=source.deep, modality=source.modality)
            return _store(task, volume, vessels, domes, digest)
    except SeriesError as error:
        return reject(task, error, digest)


def _store(task: Task, volume: Volume, vessels: Path | None, domes: Sequence[DomeMask], digest: str) -> dict[str, Any]:
    source, settings = task.source, VolumeConfig.model_validate(task.volume)
    own = made_uid(task.key, source.key) if "series_uid_assumed" in volume.quality else volume.series_uid
    if source.own_uid is not None and (own != source.own_uid or not source.series_uid):
        return _write(task, digest, {"own_uid": check_uid(own)})
    uid = check_uid(source.series_uid or own)
    prepared = prepare_series(
        replace(volume, series_uid=uid),  # by which messages call it
        settings,
        targets=np.array([np.nan if target is None else target for target in source.targets], np.float32),
        localizers=source.points,
        # A word from a file that DICOM does not define for volumes could be anything, and ends in the table.
        modality=source.modality or (volume.modality if volume.modality in ("CT", "MR") else "OT"),
        series_uid=uid,
        patient=patient_hash(task.key, source.patient or volume.patient_id, uid),
        source_digest=digest,
        marks=source.marks,
        vessels=vessels,
        domes=domes,
        site=source.site,
    )
    data = store.encode(prepared, volume_identity(task.volume))
    urls.write_bytes(urls.join(task.out, store.volume_path(uid)), data)
    urls.write_bytes(urls.join(task.out, store.picture_path(uid)), picture.draw(prepared, volume))
    return _write(task, digest, {"row": store.table_row(prepared, len(data)), "own_uid": own})


def reject(task: Task, error: SeriesError, digest: str) -> dict[str, Any]:
    """Write and return the status of a series that cannot become a volume.

    The set keeps what is wrong and not where: names of folders and files are no business of who is given it.
    """
    uid = task.source.series_uid or ""
    return _write(task, digest, {"series_uid": uid, "reason": error.reason, "message": error.told})


def _write(task: Task, digest: str, found: dict[str, Any]) -> dict[str, Any]:
    status = {"key": task.name, "digest": digest, "volume": task.volume, **found}
    urls.write_bytes(status_path(task.out, task.name), json.dumps(status, sort_keys=True).encode() + b"\n")
    return status


@contextmanager
def _local(source: catalogue.Source) -> Iterator[tuple[Path, Path | None, list[DomeMask]]]:
    """Yield paths on this machine of the series, its vessel mask and its dome masks: their own, or copies fetched from
    an object store."""
    if not urls.is_url(source.location):
        domes = [DomeMask(Path(mask), values, shared) for mask, values, shared in source.domes]
        yield Path(source.location), Path(source.vessels) if source.vessels else None, domes
        return
    with tempfile.TemporaryDirectory(prefix="aneurysm-ray-") as folder:

        def below(name: str) -> Path:
            (Path(folder) / name).mkdir()
            return Path(folder) / name

        vessels = places.fetch_mask(source.vessels, below("vessels")) if source.vessels else None
        domes = [
            DomeMask(places.fetch_mask(mask, below(f"domes_{number}")), values, shared)
            for number, (mask, values, shared) in enumerate(source.domes)
        ]
        yield places.fetch(source.location, below("series"), deep=source.deep), vessels, domes
