"""A prepared volume as one Parquet row, and back; the table of a prepared set.

A set keeps one file per series, `<2 hex>/<series_uid>.parquet`, and a picture, `pictures/<2 hex>/<series_uid>.jpg`
(`data/picture.py`). The two digits spread thousands of series over 256 folders. `volumes.parquet` lists the series.
All of it is readable with plain pyarrow.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from aneurysm_ray import __version__, rundir
from aneurysm_ray.config import VOLUME_FORMAT
from aneurysm_ray.data.identity import check_uid
from aneurysm_ray.data.window import AS_STORED, Window
from aneurysm_ray.errors import RunDirError
from aneurysm_ray.labels import LABELS
from aneurysm_ray.location import patience

PICTURES = "pictures"


@dataclass(frozen=True)
class Point:
    """A labelled aneurysm in a prepared volume."""

    z: float
    y: float
    x: float
    """Voxel coordinates in the stored volume; may lie outside it."""
    location: str
    """One of `labels.LOCATIONS`, or nothing where it is unknown."""
    radius_mm: float | None = None
    """Of the aneurysm, where a table knows it."""


@dataclass(frozen=True, eq=False)
class PreparedVolume:
    """A series as training and inference see it: reoriented, cropped to the region of interest, resampled, windowed."""

    series_uid: str
    patient: str
    """Keyed hash of the patient, never the ID."""
    modality: str
    """CTA, MRA, MRI T2 or MRI T1post where a table says so, else DICOM's CT or MR."""
    plane: str
    """Plane in which the series was acquired."""
    voxels: NDArray[np.uint8] | NDArray[np.int16]
    """(Z, Y, X) in the standard orientation: z from feet to head, y from front to back, x from right to left."""
    affine: NDArray[np.float64]
    """(4, 4): stored voxel index (z, y, x, 1) to patient (x, y, z, 1) in mm, LPS."""
    targets: NDArray[np.float32]
    """(14,) in the order of `labels.LABELS`; NaN where no table says."""
    points: tuple[Point, ...]
    quality: tuple[str, ...]
    source_digest: str
    window: Window = AS_STORED
    """The scanned values that are 0 and 255 to a network, in the units of `voxels` where these are int16."""
    vessels: NDArray[np.uint8] | None = None
    """(Z, Y, X) `dataset.SEGMENTATION_VALUES` of the vessel in each voxel, 0 elsewhere, 255 where nobody looked; None
    without a mask."""
    ignored: tuple[Point, ...] = ()
    """Places that are neither positive nor negative, such as treated aneurysms."""
    domes: NDArray[np.uint8] | None = None
    """(Z, Y, X) 1 inside an aneurysm's dome, 0 elsewhere, 255 where nobody looked; None where domes are not known."""
    site: str = ""
    """Where it was scanned, by the word that a table of the data set gave; nothing where none did."""
    vessel_places: NDArray[np.int16] = field(default_factory=lambda: np.empty((0, 3), np.int16))
    """(V, 3) some voxels on vessels, of `vesselness.vessel_places`."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel spacing (z, y, x) in mm."""
        z, y, x = (float(np.linalg.norm(self.affine[:3, axis])) for axis in range(3))
        return z, y, x


VOLUME_CONFIG_KEY = b"aneurysm_ray.volume_config"
CODE_VERSION_KEY = b"aneurysm_ray.version"
FORMAT_KEY = b"aneurysm_ray.volume_format"

_POINT_TYPE = pa.struct(
    [
        ("z", pa.float64()),
        ("y", pa.float64()),
        ("x", pa.float64()),
        ("location", pa.string()),
        ("radius_mm", pa.float64()),
    ],
)

SCHEMA = pa.schema(
    [
        ("series_uid", pa.string()),
        ("patient", pa.string()),
        ("site", pa.string()),
        ("modality", pa.string()),
        ("plane", pa.string()),
        ("shape", pa.list_(pa.int32())),
        ("spacing_mm", pa.list_(pa.float64())),
        ("affine", pa.list_(pa.float64())),
        ("voxels", pa.large_binary()),
        ("dtype", pa.string()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("targets", pa.list_(pa.float32())),
        ("points", pa.list_(_POINT_TYPE)),
        ("vessel_places", pa.list_(pa.int16())),
        ("ignored", pa.list_(_POINT_TYPE)),
        ("quality", pa.list_(pa.string())),
        ("source_digest", pa.string()),
        ("vessels", pa.large_binary()),
        ("domes", pa.large_binary()),
    ]
)
"""Columns of a volume file; `voxels` are the bytes of a C-ordered little-endian array of `dtype` and `shape`, `low` and
`high` its window (`data/window.py`), `vessels` and `domes` the bytes of uint8 arrays of the same shape, or null."""

TABLE_SCHEMA = pa.schema(
    [
        ("series_uid", pa.string()),
        ("patient", pa.string()),
        ("site", pa.string()),
        ("modality", pa.string()),
        ("plane", pa.string()),
        ("path", pa.string()),
        ("shape", pa.list_(pa.int32())),
        ("spacing_mm", pa.list_(pa.float64())),
        ("affine", pa.list_(pa.float64())),
        ("low", pa.float64()),
        ("high", pa.float64()),
        *((label, pa.float32()) for label in LABELS),
        ("points", pa.list_(_POINT_TYPE)),
        ("vessel_places", pa.list_(pa.int16())),
        ("ignored", pa.list_(_POINT_TYPE)),
        ("quality", pa.list_(pa.string())),
        ("source_digest", pa.string()),
        ("scan", pa.string()),
        ("has_vessels", pa.bool_()),
        ("has_domes", pa.bool_()),
        ("bytes", pa.int64()),
    ]
)
"""Columns of `volumes.parquet`, one row per prepared series; `path` is relative to the set, `scan` a hash of the
voxels: one scan that is there under two names has it twice. It is empty where all voxels have one value."""

REPEATED = "scan_repeated"
_ARRAYS = ("voxels", "vessels", "domes")


_MADE_BY = {FORMAT_KEY: str(VOLUME_FORMAT).encode(), CODE_VERSION_KEY: __version__.encode()}


def _prefix(series_uid: str) -> str:
    return hashlib.sha256(check_uid(series_uid).encode()).hexdigest()[:2]


def volume_path(series_uid: str) -> str:
    """Return where a series' volume lies in a set, relative to it. Raises SeriesError (`unsafe_path`)."""
    return f"{_prefix(series_uid)}/{series_uid}.parquet"


def picture_path(series_uid: str) -> str:
    """Return where a series' picture lies in a set, relative to it. Raises SeriesError (`unsafe_path`)."""
    return f"{PICTURES}/{_prefix(series_uid)}/{series_uid}.jpg"


def encode(prepared: PreparedVolume, volume_config: str) -> bytes:
    """Return the bytes of a volume file: one row, one row group; equal volumes give equal bytes.

    `volume_config` is `overrides.volume_identity(config)`, kept in the file's metadata beside the code version.
    """
    row = {
        **_described(prepared),
        "dtype": prepared.voxels.dtype.name,
        "targets": prepared.targets.astype(np.float32),
    }
    columns = [
        _bytes_of(getattr(prepared, column.name))
        if column.name in _ARRAYS
        else pa.array([row[column.name]], column.type)
        for column in SCHEMA
    ]
    metadata = {**_MADE_BY, VOLUME_CONFIG_KEY: volume_config.encode()}
    table = pa.Table.from_arrays(columns, schema=SCHEMA.with_metadata(metadata))
    sink = pa.BufferOutputStream()
    # Voxels are neither repeated nor searched: a dictionary or statistics would only copy them.
    pq.write_table(table, sink, compression="zstd", compression_level=1, use_dictionary=False, write_statistics=False)
    return bytes(sink.getvalue())


def _bytes_of(array: NDArray[Any] | None) -> pa.Array:
    """Return a column of one row around an array's own memory, without the copies that Python's bytes would make."""
    if array is None:
        return pa.array([None], pa.large_binary())
    whole = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    offsets = pa.py_buffer(np.array([0, whole.nbytes], np.int64))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(whole)])


def _described(prepared: PreparedVolume) -> dict[str, Any]:
    return {
        "series_uid": check_uid(prepared.series_uid),
        "patient": prepared.patient,
        "site": prepared.site,
        "modality": prepared.modality,
        "plane": prepared.plane,
        "shape": list(prepared.voxels.shape),
        "spacing_mm": list(prepared.spacing_mm),
        "affine": prepared.affine.ravel().tolist(),
        "low": float(prepared.window.low),
        "high": float(prepared.window.high),
        "points": [asdict(point) for point in prepared.points],
        "ignored": [asdict(point) for point in prepared.ignored],
        "quality": list(prepared.quality),
        "source_digest": prepared.source_digest,
        "vessel_places": prepared.vessel_places.ravel().tolist(),
    }


def write_volume(folder: Path, prepared: PreparedVolume, volume_config: str) -> Path:
    """Write a volume into a set on this machine, atomically, and return its path."""
    path = folder / volume_path(prepared.series_uid)
    with rundir.atomic(path, "wb") as file:
        file.write(encode(prepared, volume_config))
    return path


def read_volume(path: str | Path, *, masks: bool = True) -> PreparedVolume:
    """Read a volume file, its masks only if asked, from a path or an fsspec URL.

    Raises RunDirError when it is missing or damaged.
    """
    columns = [name for name in SCHEMA.names if masks or name not in ("vessels", "domes")]
    try:
        with fsspec.open(str(path), "rb", **patience(str(path))) as file:
            stored = pq.ParquetFile(file)
            _check_format(stored, path)
            # Sets may have been made before there were ignored places and sites.
            table = stored.read(columns=[name for name in columns if name in stored.schema_arrow.names])
        row = {name: table.column(name)[0] for name in table.column_names if name not in _ARRAYS}
        shape = row["shape"].as_py()

        def array(name: str, dtype: str) -> NDArray[Any] | None:
            if name not in table.column_names or table.column(name).null_count:
                return None
            # A value that is taken from its column is copied, which costs half as much as decompressing it.
            _, offsets, data = table.column(name).chunk(0).buffers()
            first, last = np.frombuffer(offsets, np.int64, 2)
            values = np.frombuffer(data, np.uint8)[first:last]
            return values.view(np.dtype(dtype).newbyteorder("<")).reshape(shape)

        return PreparedVolume(
            series_uid=row["series_uid"].as_py(),
            patient=row["patient"].as_py(),
            site=row["site"].as_py() if "site" in row else "",
            modality=row["modality"].as_py(),
            plane=row["plane"].as_py(),
            voxels=cast(NDArray[np.uint8] | NDArray[np.int16], array("voxels", row["dtype"].as_py())),
            affine=np.array(row["affine"].as_py()).reshape(4, 4),
            targets=np.array(row["targets"].as_py(), np.float32),
            points=tuple(Point(**point) for point in row["points"].as_py()),
            ignored=tuple(Point(**point) for point in row["ignored"].as_py()) if "ignored" in row else (),
            quality=tuple(row["quality"].as_py()),
            source_digest=row["source_digest"].as_py(),
            vessel_places=np.array(row["vessel_places"].as_py(), np.int16).reshape(-1, 3),
            window=Window(row["low"].as_py(), row["high"].as_py()),
            vessels=array("vessels", "uint8"),
            domes=array("domes", "uint8"),
        )
    except OSError as error:
        raise RunDirError(f"{path}: cannot be read ({error.strerror or error}); prepare the set again") from error
    except (pa.ArrowException, ValueError, KeyError, IndexError, TypeError) as error:
        raise RunDirError(f"{path}: not a volume file ({error}); delete it and prepare the set again") from error


def table_row(prepared: PreparedVolume, size_bytes: int) -> dict[str, Any]:
    """Return a prepared series' row of `volumes.parquet` in plain Python values; unknown targets are None."""
    targets = [None if np.isnan(target) else float(target) for target in prepared.targets]
    row = {
        **_described(prepared),
        "path": volume_path(prepared.series_uid),
        "scan": _scan(prepared.voxels),
        "has_vessels": prepared.vessels is not None,
        "has_domes": prepared.domes is not None,
        "bytes": size_bytes,
    }
    return {**row, **dict(zip(LABELS, targets, strict=True))}


def _scan(voxels: NDArray[Any]) -> str:
    """Return a hash of voxels, or nothing where all have one value: such volumes are alike, and of no one scan."""
    if not voxels.size or voxels.min() == voxels.max():
        return ""
    return hashlib.blake2b(np.ascontiguousarray(voxels).data, digest_size=16).hexdigest()


def with_repeated(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of `table_row`, with the code `scan_repeated` where another patient of the set has the scan."""
    rows = list(rows)
    patients: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        patients[row.get("scan") or ""].add(row["patient"])
    found = []
    for row in rows:
        codes = [code for code in row["quality"] if code != REPEATED]
        again = row.get("scan") and len(patients[row["scan"]]) > 1
        # Rows that an earlier version made have no scan.
        found.append({"scan": "", **row, "quality": [*codes, REPEATED] if again else codes})
    return found


def encode_table(rows: Iterable[dict[str, Any]]) -> bytes:
    """Return the bytes of `volumes.parquet`: rows of `table_row`, ordered by series UID."""
    ordered = sorted(with_repeated(rows), key=lambda row: row["series_uid"])
    columns = [pa.array([row.get(column.name) for row in ordered], column.type) for column in TABLE_SCHEMA]
    sink = pa.BufferOutputStream()
    table = pa.Table.from_arrays(columns, schema=TABLE_SCHEMA.with_metadata(_MADE_BY))
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def write_table(folder: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write `volumes.parquet` into a set on this machine, atomically."""
    with rundir.atomic(folder / rundir.VOLUMES, "wb") as file:
        file.write(encode_table(rows))


def volumes_table(folder: str | Path) -> pd.DataFrame:
    """Read a set's table, one row per series; labels are float32 with NaN for unknown.

    Raises RunDirError when the folder is no prepared set.
    """
    path = f"{str(folder).rstrip('/')}/{rundir.VOLUMES}"
    try:
        with fsspec.open(path, "rb", **patience(path)) as file:
            stored = pq.ParquetFile(file)
            _check_format(stored, folder)
            table = stored.read()
            if "ignored" not in table.column_names:
                table = table.append_column("ignored", pa.array([[]] * len(table), pa.list_(_POINT_TYPE)))
            for name in ("site", "scan"):
                if name not in table.column_names:
                    table = table.append_column(name, pa.array([""] * len(table), pa.string()))
    except OSError as error:
        raise RunDirError(
            f"{folder} is not a prepared set: {rundir.VOLUMES} cannot be read ({error.strerror or error}); "
            "run aneurysm-ray prepare DATA OUT first"
        ) from error
    except pa.ArrowException as error:
        raise RunDirError(f"{path}: not a table of volumes ({error}); prepare the set again") from error
    frame: pd.DataFrame = table.select(TABLE_SCHEMA.names).cast(TABLE_SCHEMA).to_pandas()
    return frame


def _check_format(stored: pq.ParquetFile, place: str | Path) -> None:
    """Raise RunDirError for what another version stored, whose intensities mean something else."""
    found = (stored.schema_arrow.metadata or {}).get(FORMAT_KEY)
    if found != _MADE_BY[FORMAT_KEY]:
        raise RunDirError(rundir.other_format(place))
