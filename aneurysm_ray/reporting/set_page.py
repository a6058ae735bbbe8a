"""The page of a prepared set: what is in it, what was refused, and a picture of every series."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from aneurysm_ray import location, rundir
from aneurysm_ray.data import store
from aneurysm_ray.data.dicom import QUALITY
from aneurysm_ray.data.picture import SEEN_FROM
from aneurysm_ray.errors import SERIES_REASONS, AneurysmRayError
from aneurysm_ray.labels import LOCATIONS, PRESENT, SHORT_NAMES
from aneurysm_ray.reporting import figures_set as figures
from aneurysm_ray.reporting import pictures, provenance_blocks, suspicion, words
from aneurysm_ray.reporting.page import Chart, Gallery, Page, Section, Table, Tile

LEGEND = (
    f"Of each series the scan {SEEN_FROM[1]} and {SEEN_FROM[2]} with the box of what is stored, then the stored volume "
    f"{SEEN_FROM[0]}, {SEEN_FROM[1]} and {SEEN_FROM[2]}: points circled, vessels of a mask outlined (right blue, left "
    f"green, middle pink). {pictures.LETTERS_MEAN}"
)
SAMPLED = 6
"""Volumes of each modality that are read for the histogram of intensity."""


def page(folder: Path) -> Page:
    """Read a prepared set and return its page. Raises RunDirError when it has no table of volumes."""
    table = store.volumes_table(folder)
    rejected = _rejected(folder)
    facts = rundir.read_json(folder / rundir.PREPARE) if (folder / rundir.PREPARE).exists() else {}
    items = _items(folder, table)
    gallery = Gallery(
        "series",
        "Every series",
        suspicion.RULE,
        tuple(items),
        ("modality", "plane", "remark", "aneurysm"),
        missing="No series was prepared.",
    )
    return Page(
        title=location.absolute(folder).name,
        kind="prepared set",
        subtitle=_subtitle(facts),
        summary=(*_summary(table, rejected, items), *_state(facts)),
        tiles=_tiles(table, rejected, facts),
        sections=(
            _contents(table),
            _refused(table, rejected),
            _shapes(folder, table),
            Section("pictures", "Look at them", LEGEND, (gallery,)),
            provenance_blocks.section(None, facts),
        ),
    )


def _rejected(folder: Path) -> pd.DataFrame:
    path = folder / rundir.REJECTED
    columns = ["series_uid", "source", "reason", "message"]
    return rundir.read_csv(path) if path.exists() else pd.DataFrame(columns=columns)


def _subtitle(facts: dict[str, Any]) -> str:
    parts: list[str] = []
    if seconds := facts.get("seconds"):
        last = f", the last {_of_last_run(facts):,} series" if facts.get("kept") else ""
        parts.append(f"prepared{last} in {words.duration(float(seconds))}")
    return " · ".join(parts)


def _summary(table: pd.DataFrame, rejected: pd.DataFrame, items: list[dict[str, Any]]) -> tuple[str, ...]:
    known = int(table[PRESENT].notna().sum())
    positive = int((table[PRESENT] > 0.5).sum())
    sentences = [
        f"{words.count(len(table), 'series', 'series')} of {words.count(table['patient'].nunique(), 'patient')} "
        f"became volumes; {words.count(len(rejected), 'series was', 'series were')} refused."
    ]
    if known:
        share = f" ({words.percent(positive / known)} of {known:,} with labels)"
        points = int(table["points"].map(len).sum())
        sentences.append(
            f"{words.count(positive, 'series', 'series')} show an aneurysm{share}, marked by "
            f"{words.count(points, 'point')}."
        )
    else:
        sentences.append("No series has labels, so the set can be scored but not trained on.")
    if masked := int(table["has_vessels"].sum()):
        sentences.append(f"{words.count(masked, 'series has', 'series have')} a mask of vessels.")
    if len(rejected):
        reasons = figures.reasons(rejected)
        meaning = SERIES_REASONS.get(str(reasons.index[0]), str(reasons.index[0]))
        sentences.append(f"The most frequent reason of refusal is that {meaning} ({reasons.iloc[0]}).")
    flagged = sum(bool(item["flags"]) for item in items)
    if flagged:
        carry = "1 series carries" if flagged == 1 else f"{flagged:,} series carry"
        sentences.append(f"{carry} a remark, such as {_commonest(items)!r}; the pictures below begin with them.")
    return tuple(sentences)


def _commonest(items: list[dict[str, Any]]) -> str:
    remarks: Counter[str] = Counter(text for item in items for text in item["flags"])
    return remarks.most_common(1)[0][0]


def _state(facts: dict[str, Any]) -> tuple[str, ...]:
    """Say what is unusual about the preparation itself."""
    sentences = []
    if facts.get("complete") is False:
        sentences.append("Preparation has not finished; run the same command again to go on with it.")
    if removed := facts.get("removed"):
        sentences.append(
            f"{words.count(len(removed), 'series is', 'series are')} no longer in the data set they came from."
        )
    return (*sentences, *(f"Note: {note}." for note in facts.get("notes", ())))


def _tiles(table: pd.DataFrame, rejected: pd.DataFrame, facts: dict[str, Any]) -> tuple[Tile, ...]:
    gigabytes = float(table["bytes"].sum()) / 1e9
    tiles = [
        Tile("Volumes", f"{len(table):,}", words.count(table["patient"].nunique(), "patient")),
        Tile("Refused", f"{len(rejected):,}", words.count(rejected["reason"].nunique(), "reason")),
        Tile(
            "With an aneurysm", f"{int((table[PRESENT] > 0.5).sum()):,}", f"{int(table[PRESENT].isna().sum())} unknown"
        ),
        Tile("On disk", f"{gigabytes:.2f} GB", f"{1e3 * gigabytes / max(len(table), 1):.2f} MB a series"),
    ]
    if seconds := facts.get("seconds"):
        done = _of_last_run(facts) if "kept" in facts else len(table) + len(rejected)
        speed = f"{done / max(float(seconds), 1e-9):.1f} series/s" + (", the last run" if facts.get("kept") else "")
        tiles.append(Tile("Time", words.duration(float(seconds)), speed))
    return tuple(tiles)


def _of_last_run(facts: dict[str, Any]) -> int:
    """Return how many series the last run of the preparation did: it goes on where the one before stopped."""
    return int(facts.get("prepared", 0)) + int(facts.get("rejected", 0)) - int(facts.get("kept", 0))


def _contents(table: pd.DataFrame) -> Section:
    nothing = "No series was prepared."
    where = figures.locations(table)
    nowhere = (
        "Of no aneurysm is the location known: masks and places say where it lies, and name no artery."
        if (table[PRESENT] > 0.5).any()
        else "No series is known to have an aneurysm."
    )
    blocks = (
        Chart(
            "modality",
            "Modality",
            "CTA, MRA, T2 and T1post where a table says so; else what DICOM says, or the values of a NIfTI file show.",
            figures.draw_counts(figures.counts(table, "modality")) if len(table) else None,
            nothing,
            height=300,
        ),
        Chart(
            "plane",
            "Plane",
            "The plane in which a series was acquired; volumes are stored in one standard orientation.",
            figures.draw_counts(figures.counts(table, "plane")) if len(table) else None,
            nothing,
            height=300,
        ),
        Chart(
            "locations",
            "Where the aneurysms are",
            "Series with an aneurysm at each of the 13 locations, where a label names it.",
            figures.draw_bars(where) if where.any() else None,
            nowhere,
            wide=True,
        ),
    )
    return Section("contents", "What is in it", "", blocks)


def _refused(table: pd.DataFrame, rejected: pd.DataFrame) -> Section:
    found = figures.codes(table)
    height = 120 + 24 * max(len(found), rejected["reason"].nunique(), 8)
    meanings = pd.DataFrame([(code, n, QUALITY.get(str(code), "")) for code, n in found.items()])
    blocks = (
        Chart(
            "reasons",
            "Reasons of refusal",
            "Each refused series has one reason.",
            figures.draw_bars(figures.reasons(rejected), SERIES_REASONS) if len(rejected) else None,
            "No series was refused.",
            height=height,
        ),
        Chart(
            "quality",
            "What was repaired or assumed",
            "A series may have several of these; hover for their meaning.",
            figures.draw_bars(found, QUALITY) if len(found) else None,
            "Nothing had to be repaired or assumed.",
            height=height,
        ),
        Table.of(
            "codes",
            "What the reader's codes mean",
            "",
            meanings.set_axis(["code", "series", "meaning"], axis=1) if len(found) else pd.DataFrame(),
            missing="The reader set no code.",
        ),
        Table.of(
            "rejected",
            "Refused series",
            "The same list is in rejected.csv.",
            rejected,
            {"reason": "reason", "message": "message", "source": "source, as a keyed hash of its place"},
            missing="No series was refused.",
        ),
    )
    return Section("refused", "What was refused or repaired", "", blocks)


def _shapes(folder: Path, table: pd.DataFrame) -> Section:
    sizes = figures.sizes(table)
    nothing = "No series was prepared."
    volumes = []
    for uid in figures.sample(table, SAMPLED):
        try:
            volumes.append(store.read_volume(folder / store.volume_path(uid), masks=False))
        except AneurysmRayError:
            continue
    columns = (
        ("slices", "Slices", "slices of the stored volume", "After cropping and resampling."),
        ("spacing_mm", "Spacing", "mm between stored slices", "That of the volume settings, for all."),
        ("height_mm", "Height", "mm from the lowest to the highest slice", "Short volumes miss part of the head."),
    )
    blocks = [
        Chart(
            key, title, caption, figures.draw_histogram(sizes, key, axis) if len(sizes) else None, nothing, height=320
        )
        for key, title, axis, caption in columns
    ]
    blocks.append(
        Chart(
            "intensity",
            "Intensity",
            f"Over {len(volumes)} volumes, at most {SAMPLED} of each modality. A spike at the right end means that a "
            "window cuts off too much.",
            figures.draw_intensities(figures.intensities(volumes)) if volumes else None,
            "No volume could be read.",
            height=320,
        )
    )
    return Section("shapes", "Size and intensity", "", tuple(blocks))


def _items(folder: Path, table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a gallery item for each series, the most suspicious first."""
    images = {uid: _picture(folder, uid) for uid in table["series_uid"]}
    brightness = {uid: grey for uid, (_, grey) in images.items() if grey is not None}
    remarks = suspicion.flags(table, brightness)
    items = []
    for row, found in zip(table.to_dict("records"), remarks, strict=True):
        items.append(
            (-sum(weight for _, weight in found), row["series_uid"], _item(row, found, images[row["series_uid"]][0]))
        )
    return [item for _, _, item in sorted(items, key=lambda entry: entry[:2])]


def _picture(folder: Path, series_uid: str) -> tuple[str, float | None]:
    """Return a series' picture as a data URI and its mean grey value; empty and None where there is none."""
    path = folder / store.picture_path(series_uid)
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            grey = float(np.asarray(image.convert("L")).mean())
    except OSError:
        return "", None
    return pictures.file_uri(path), grey


def _item(row: dict[Any, Any], remarks: list[tuple[str, int]], image: str) -> dict[str, Any]:
    where = [SHORT_NAMES[name] for name in LOCATIONS if row[name] > 0.5]
    size = "×".join(str(int(n)) for n in row["shape"])
    spacing = "×".join(f"{mm:.2g}" for mm in row["spacing_mm"])
    target = row[PRESENT]
    return {
        "id": row["series_uid"],
        "image": image,
        "lines": [
            f"{row['modality']}, {row['plane']}, {size} of {spacing} mm",
            *([f"aneurysm: {', '.join(where)}"] if where else []),
        ],
        "flags": [text for text, _ in remarks],
        "facets": {
            "modality": row["modality"] or "unknown",
            "plane": row["plane"],
            "remark": [text for text, _ in remarks] or ["none"],
            "aneurysm": where
            or ["unknown" if np.isnan(target) else "present, location unknown" if target > 0.5 else "none"],
        },
    }
