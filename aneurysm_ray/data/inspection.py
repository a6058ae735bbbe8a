"""Say what is in a series, a data set, a prepared set or a run. Reads only; needs neither Ray nor torch."""

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from aneurysm_ray import location, rundir
from aneurysm_ray.data import doubts, layout, scans, store
from aneurysm_ray.data.dataset import SeriesEntry
from aneurysm_ray.data.dicom import QUALITY
from aneurysm_ray.data.nifti import is_nifti
from aneurysm_ray.data.series_table import TABLE
from aneurysm_ray.errors import SERIES_REASONS, RequestError, SeriesError, printable
from aneurysm_ray.labels import LABELS

DOUBTFUL = 20
"""Series of a prepared set that are named for what is doubtful about them."""


def inspect(path: Path, limit: int = 100) -> dict[str, Any]:
    """Return facts about a path as plain values; of a data set, the first `limit` series are read in full.

    Raises RequestError when there is nothing at the path.
    """
    if not path.exists():
        raise RequestError(f"{path} does not exist; give a series, a data set, a prepared set or a run")
    found = rundir.kind(path) if path.is_dir() else ""
    if found == "volumes":
        return _prepared(path)
    if found:
        return _run(path, found)
    # A series' folder holds files of DICOM only; notes may lie beside the folders of a data set.
    if path.is_dir() and any(child.is_dir() or is_nifti(child) or child.name == TABLE for child in path.iterdir()):
        return _dataset(path, limit)
    return {"kind": "series", "path": str(path), **_series(path)}


def _run(path: Path, kind: str) -> dict[str, Any]:
    """Return what a run, a search or a prediction says of itself, or that it has not finished."""
    if (path / rundir.SUMMARY).exists():
        found = rundir.read_json(path / rundir.SUMMARY)
        return {"kind": kind, "path": str(path), "finished": not found.get("interrupted", False), **found}
    facts = {"kind": kind, "path": str(path), "finished": False, "to go on": "its command with --resume"}
    tables = {fold.name: fold / rundir.METRICS for fold in location.matching(path, "fold_*")}
    epochs = {name: len(rundir.read_csv(table)) for name, table in tables.items() if table.exists()}
    return {**facts, **({"epochs": epochs} if epochs else {})}


def _series(path: Path, *, deep: bool = True, modality: str | None = None) -> dict[str, Any]:
    try:
        volume = scans.read_scan(path, deep=deep, modality=modality)
    except SeriesError as error:
        return {"status": "rejected", "reason": error.reason, "message": str(error)}
    return {
        "status": "readable",
        "series_uid": volume.series_uid,
        "modality": volume.modality,
        "plane": volume.plane,
        "shape": list(volume.shape),
        "spacing_mm": [round(value, 4) for value in volume.spacing_mm],
        "dtype": str(volume.voxels.dtype),
        "range": [float(volume.voxels.min()), float(volume.voxels.max())],
        "quality": list(volume.quality),
    }


def _dataset(path: Path, limit: int) -> dict[str, Any]:
    data = layout.open_dataset(path)
    read = [
        {"path": str(entry.path), **_series(entry.path, deep=entry.deep, modality=entry.modality)}
        for entry in data.series[:limit]
    ]
    names = Counter(entry.path.name for entry in data.series)
    for row, entry in zip(read, data.series, strict=False):
        # In many sets files of all patients have one name.
        alone = names[entry.path.name] == 1 or not entry.path.is_relative_to(data.root)
        row["name"] = entry.path.name if alone else entry.path.relative_to(data.root).as_posix()
    positive = {label: sum(entry.targets[i] == 1 for entry in data.series) for i, label in enumerate(LABELS)}
    return {
        "kind": "dataset",
        "path": str(path),
        "series": len(data.series),
        "labelled": sum(bool(entry.targets[-1] == entry.targets[-1]) or _shown(entry) for entry in data.series),
        "points": sum(len(entry.points) + len(entry.marks) for entry in data.series),
        "aneurysm masks": sum(bool(entry.domes) for entry in data.series),
        "vessel masks": sum(entry.vessels is not None for entry in data.series),
        "positive": {label: int(count) for label, count in positive.items() if count},
        "notes": list(data.notes),
        "read": len(read),
        "rejected": dict(Counter(row["reason"] for row in read if row["status"] == "rejected")),
        "each": read,
    }


def _shown(entry: SeriesEntry) -> bool:
    """Whether places or masks of aneurysms will label a series that no table labels."""
    return bool(entry.domes or entry.marks)


def _prepared(path: Path) -> dict[str, Any]:
    table = store.volumes_table(path)
    rejected = rundir.read_csv(path / rundir.REJECTED) if (path / rundir.REJECTED).exists() else None
    return {
        "kind": "volumes",
        "path": str(path),
        "volumes": len(table),
        "patients": int(table["patient"].nunique()),
        "gigabytes": round(float(table["bytes"].sum()) / 1e9, 3),
        "modality": dict(Counter(table["modality"])),
        "plane": dict(Counter(table["plane"])),
        "quality": dict(Counter(code for codes in table["quality"] for code in codes).most_common()),
        "positive": {label: int((table[label] == 1).sum()) for label in LABELS if (table[label] == 1).any()},
        "rejected": dict(Counter(rejected["reason"])) if rejected is not None else {},
        "vessel masks": int(table["has_vessels"].sum()),
        "look first at": _doubtful(table),
    }


def _doubtful(table: pd.DataFrame) -> dict[str, str]:
    """Return the series with the gravest remarks, at most DOUBTFUL, the gravest first, and what is told of each."""
    found = []
    for row in table.to_dict("records"):
        remarks = doubts.remarks({str(key): value for key, value in row.items()})
        if remarks and remarks[0][1] >= 3:
            found.append((-sum(weight for _, weight in remarks), row["series_uid"], [text for text, _ in remarks]))
    return {uid: ", ".join(texts) for _, uid, texts in sorted(found)[:DOUBTFUL]}


def render(facts: dict[str, Any]) -> str:
    """Write facts as the lines a terminal shows: one a key, tables indented, series one a line."""
    lines = []
    for key, value in facts.items():
        if key == "each":
            lines += [_series_line(row) for row in value]
        elif isinstance(value, dict):
            lines += (
                [f"{key}:", *(f"  {name}: {found}{_meaning(name)}" for name, found in value.items())] if value else []
            )
        elif isinstance(value, list):
            lines.append(f"{key}: {', '.join(map(str, value)) or '-'}")
        else:
            lines.append(f"{key}: {value}")
    return printable("\n".join(lines))


def _meaning(code: str) -> str:
    meaning = QUALITY.get(code, SERIES_REASONS.get(code, ""))
    return f"   ({meaning})" if meaning else ""


def _series_line(row: dict[str, Any]) -> str:
    name = row["name"]
    if row["status"] == "rejected":
        return f"  {name}: rejected, {row['reason']}: {row['message']}"
    size = "×".join(map(str, row["shape"]))
    spacing = "×".join(f"{value:g}" for value in row["spacing_mm"])
    quality = f"  [{', '.join(row['quality'])}]" if row["quality"] else ""
    return f"  {name}: {row['modality']} {row['plane']} {size} voxels of {spacing} mm{quality}"
