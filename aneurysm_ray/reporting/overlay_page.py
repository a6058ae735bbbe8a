"""The page of a prepared set's labels: each drawn on its image in three planes, those that are doubtful first.

Most sets that nothing is learnt from have labels that lie elsewhere than their aneurysms: mirrored, in another
patient's image, or in another space. One look at such a picture tells.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aneurysm_ray import location, rundir
from aneurysm_ray.data import doubts, store
from aneurysm_ray.data.dicom import QUALITY
from aneurysm_ray.errors import AneurysmRayError, RequestError
from aneurysm_ray.labels import PRESENT, SHORT_NAMES
from aneurysm_ray.reporting import page as pages
from aneurysm_ray.reporting import pictures, words
from aneurysm_ray.reporting.page import Case, Cases, Page, Section, Table, Tile

CLOSE_MM = 12.0
"""Half the width of the close look at a label."""
CLOSE_PIXELS_PER_MM = 8.0
WHOLE_PIXELS_PER_MM = 1.2
OF_LABELS = (*doubts.GRAVE[: doubts.FIRST], "no point marks the aneurysm")
"""Codes and remarks that are of labels and masks, and not of the image."""
LEGEND = (
    f"Of each label the whole slices through it, and below them a close look. {pictures.LETTERS_MEAN} Green ring: an "
    "aneurysm, as wide as its radius in that plane, or of fixed width where no radius is known; grey ring: a place "
    "that is neither positive nor negative; yellow outline: the dome of a mask; blue, green and pink outlines: vessels "
    "of the right, the left and the middle. The switch hides them."
)


@dataclass(frozen=True)
class Label:
    """Something that a set says of a place in a series."""

    series_uid: str
    kind: str
    """aneurysm, ignored, or mask: what a mask alone shows, or nothing does."""
    number: int
    """Of the point among those of its kind in the series."""
    doubts: tuple[str, ...]
    """Codes and remarks, the gravest first."""
    weight: int


def write(folder: Path, limit: int) -> Path:
    """Draw up to `limit` labels of a prepared set into its overlay.html and return that file's path.

    Raises RequestError for a directory that is no prepared set.
    """
    if not folder.is_dir() or rundir.kind(folder) != "volumes":
        raise RequestError(f"{folder} is no prepared set, whose labels alone are drawn; prepare the data set first")
    return pages.write(page(folder, limit), folder / rundir.OVERLAY)


def page(folder: Path, limit: int) -> Page:
    """Return the page of a prepared set's labels. Raises RunDirError when it has no table of volumes."""
    table = store.volumes_table(folder)
    medians = rundir.read_volume_settings(folder).window_medians
    found = labels(table)
    drawn = [
        _case(label, prepared, medians)
        for label, prepared in _with_volumes(folder, found[:limit])
        if prepared is not None
    ]
    doubtful = [label for label in found if label.doubts]
    rows = pd.DataFrame([_row(label) for label in doubtful])
    blocks = (
        Table.of("doubts", "Doubtful labels", "", rows, missing="No label is doubtful."),
        Cases(
            "labels", "Every label on its image", LEGEND, tuple(drawn), "The set has no label to draw.", marks="marks"
        ),
    )
    return Page(
        title=location.absolute(folder).name,
        kind="labels",
        subtitle=f"{words.count(table['patient'].nunique(), 'patient')}, {len(table):,} series",
        summary=_summary(found, doubtful, len(drawn), limit),
        tiles=(
            Tile("Aneurysms", f"{sum(label.kind == 'aneurysm' for label in found):,}", "points"),
            Tile("Ignored", f"{sum(label.kind == 'ignored' for label in found):,}", "neither positive nor negative"),
            Tile("Doubtful", f"{len(doubtful):,}", "labels with a remark"),
            Tile("Vessel masks", f"{int(table['has_vessels'].sum()):,}", "series"),
            Tile("Dome masks", f"{int(table['has_domes'].sum()):,}", "series"),
        ),
        sections=(Section("overlay", "Labels", "Doubtful ones first, the gravest before others.", blocks),),
    )


def labels(table: pd.DataFrame) -> list[Label]:
    """Return the labels of a volumes table, the most doubtful first, then in the order of their series.

    A series without points has a label of its own where a mask is stored, or where something told is doubtful.
    """
    found: list[Label] = []
    for row in table.to_dict("records"):
        told = _told({str(key): value for key, value in row.items()})
        weight = sum(points for _, points in told)
        what = [("aneurysm", n) for n in range(len(row["points"]))]
        what += [("ignored", n) for n in range(len(row["ignored"]))]
        if not what and (told or row["has_vessels"] or row["has_domes"]):
            what = [("mask", 0)]
        texts = tuple(text for text, _ in told)
        found += [Label(row["series_uid"], kind, number, texts, weight) for kind, number in what]
    return sorted(found, key=lambda label: (-label.weight, label.kind == "mask", label.series_uid, label.number))


def _told(row: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return what a row's labels have against them, by code, each with its weight."""
    codes = {code.replace("_", " "): code for code in row["quality"]}
    return [
        (codes.get(text, text), weight) for text, weight in doubts.remarks(row) if codes.get(text, text) in OF_LABELS
    ]


def _with_volumes(folder: Path, chosen: list[Label]) -> Iterator[tuple[Label, store.PreparedVolume | None]]:
    uid, prepared = "", None
    for label in chosen:
        if label.series_uid != uid:  # several labels of a series follow each other
            uid = label.series_uid
            try:
                prepared = store.read_volume(folder / store.volume_path(uid))
            except AneurysmRayError:
                prepared = None
        yield label, prepared


def _case(label: Label, prepared: store.PreparedVolume, medians: tuple[float, float]) -> Case:
    focus = _focus(label, prepared)
    closer, _ = pictures.cropped(prepared, focus, CLOSE_MM)
    near = pictures.to_voxel(closer, prepared.affine[:3, :3] @ focus + prepared.affine[:3, 3])
    sheets = [
        pictures.stacked(
            [
                pictures.labelled(prepared, focus, marked=marked, pixels_per_mm=WHOLE_PIXELS_PER_MM),
                pictures.labelled(closer, near, marked=marked, pixels_per_mm=CLOSE_PIXELS_PER_MM),
            ]
        )
        for marked in (False, True)
    ]
    facts = [*(f"DOUBTFUL: {_meaning(code)}" for code in _own(label, prepared, medians)), *_facts(label, prepared)]
    return Case(label.series_uid, tuple(facts), pictures.data_uri(sheets[0]), pictures.data_uri(sheets[1]))


def _own(label: Label, prepared: store.PreparedVolume, medians: tuple[float, float]) -> list[str]:
    """Return a label's doubts without those that hold for other points of its series alone."""
    if label.kind != "aneurysm" or len(prepared.points) < 2:
        return list(label.doubts)
    # The box that is stored is centred on the head, unless the scan was smaller.
    middle = (prepared.voxels.shape[2] - 1) / 2
    point = prepared.points[label.number]
    there = doubts.of_points(
        [point], prepared.voxels, prepared.window, prepared.spacing_mm, middle, prepared.modality, medians
    )
    of_points = ("point_outside", "point_side", "point_dark")
    return [code for code in label.doubts if code not in of_points or code in there]


def _focus(label: Label, prepared: store.PreparedVolume) -> NDArray[np.float64]:
    """Return the voxel (z, y, x) to look at, inside the volume."""
    points = {"aneurysm": prepared.points, "ignored": prepared.ignored}.get(label.kind, ())
    last = np.array(prepared.voxels.shape, np.float64) - 1
    if points:
        point = points[label.number]
        return np.clip([point.z, point.y, point.x], 0, last)
    for mask in (prepared.domes, prepared.vessels):
        if mask is not None and (inside := np.argwhere((mask > 0) & (mask < 255))).size:
            # A voxel of the mask near its middle, as the middle of a ring of arteries lies on none.
            middle = inside.mean(0)
            return np.asarray(inside[np.argmin(((inside - middle) ** 2).sum(1))], np.float64)
    return last / 2


def _facts(label: Label, prepared: store.PreparedVolume) -> list[str]:
    facts = [f"{prepared.modality}, {prepared.plane}"]
    points = {"aneurysm": prepared.points, "ignored": prepared.ignored}.get(label.kind, ())
    if points:
        point = points[label.number]
        where = SHORT_NAMES.get(point.location, "location unknown")
        size = "radius unknown" if point.radius_mm is None else f"radius {point.radius_mm:.1f} mm"
        place = (prepared.affine @ (point.z, point.y, point.x, 1))[:3]
        facts += [f"{label.kind}: {where}, {size}", "LPS " + ", ".join(f"{mm:.1f}" for mm in place) + " mm"]
    else:
        present = prepared.targets[-1]
        facts.append("unknown" if np.isnan(present) else "an aneurysm, no point" if present > 0.5 else "no aneurysm")
    masks = [name for name in ("vessels", "domes") if getattr(prepared, name) is not None]
    return [*facts, *([f"masks: {', '.join(masks)}"] if masks else [])]


def _meaning(code: str) -> str:
    return QUALITY.get(code, code)


def _row(label: Label) -> dict[str, Any]:
    return {
        "series": label.series_uid,
        "label": f"{label.kind} {label.number + 1}" if label.kind != "mask" else "series",
        "doubt": "; ".join(_meaning(code) for code in label.doubts),
    }


def _summary(found: list[Label], doubtful: list[Label], drawn: int, limit: int) -> tuple[str, ...]:
    if not found:
        return (f"The set has no points, no masks, and nothing against its column {PRESENT}.",)
    series = len({label.series_uid for label in doubtful})
    many = words.count(len(doubtful), "label is", "labels are")
    first = (
        f"{many} doubtful, in {words.count(series, 'series', 'series')}."
        if doubtful
        else "No label is doubtful by the rules of preparation. Whether they lie right the pictures say."
    )
    rest = [f"{drawn:,} of {len(found):,} labels are drawn; --limit draws more."] if len(found) > limit else []
    gone = min(len(found), limit) - drawn
    lost = [f"Volumes of {words.count(gone, 'label')} cannot be read, and are not drawn."] if gone else []
    return (first, *rest, *lost)
