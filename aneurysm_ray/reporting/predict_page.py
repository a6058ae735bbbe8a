"""The pages of a prediction: one per series, for a reader, and an index over all of them.

A series' page is written where its voxels are at hand, by the worker that scored it; the index is made of the tables.
`result` is the series' `result.json`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aneurysm_ray import location, rundir
from aneurysm_ray.data.dicom import QUALITY
from aneurysm_ray.data.store import PreparedVolume
from aneurysm_ray.errors import SERIES_REASONS
from aneurysm_ray.labels import LABELS, PRESENT, SHORT_NAMES
from aneurysm_ray.reporting import pictures, provenance_blocks, words
from aneurysm_ray.reporting.page import Case, Cases, Column, Link, Page, Section, Table, Tile
from aneurysm_ray.reporting.pictures import HeatMap

SERIES_PAGE = "index.html"
SHOWN = 5
"""Candidates of a series that get a close-up."""
CLOSE_UP_MM = 22.0
"""Half the side of a close-up's cube."""
CLOSE_UP_PIXELS_PER_MM = 5.0
SLAB_MM = 20.0
"""Thickness of a CT's projection: through the whole head there is only skull."""
DISCLAIMER = "Research software: not a medical device, and no substitute for a reader's judgement."


def series_page(result: Mapping[str, Any], prepared: PreparedVolume | None, heatmap: HeatMap | None) -> Page:
    """Return the page of one series; without a volume it says why there is none."""
    read = prepared is not None and heatmap is not None
    answer = (_probabilities(result), _warnings(result))
    sections = [Section("answer", "Answer", "Every series of this prediction: report.html, two folders up.", answer)]
    if prepared is not None and heatmap is not None:
        sections.insert(0, _pictures(result, prepared, heatmap))
    if read:
        sections.append(_candidates(result))
    present = result["probabilities"][PRESENT]
    calibrated = result["calibrated"][PRESENT]
    tiles = [
        Tile(PRESENT, f"{present:.3f}", "training prevalence" if result["reason"] else "as the model says it"),
        Tile("calibrated", "–", "no calibration holds for this answer")
        if calibrated is None
        else Tile("calibrated", f"{100 * calibrated:.0f} %", "share with an aneurysm"),
    ]
    if (limit := result.get("thresholds", {}).get(PRESENT)) is not None:
        over = PRESENT in result["flagged"]
        tiles.append(Tile("flagged", "yes" if over else "no", f"from {limit:.3f}, {_wanted(result['operating'])}"))
    if read:
        tiles.append(Tile("candidates", str(len(result["candidates"])), "the strongest is pictured first"))
        tiles.append(Tile("scan", f"{result['modality']}, {result['plane']}", _size(result)))
    return Page(
        title=result["series_uid"],
        kind="prediction",
        subtitle=f"source {result['source'][:12]} · model {result['model'][:12]}",
        summary=(*_sentences(result), *_note(result), DISCLAIMER),
        tiles=tuple(tiles),
        sections=tuple(sections),
    )


def index_page(folder: Path) -> Page:
    """Return the page of a whole prediction. Raises RunDirError when its tables are missing."""
    if not (folder / rundir.SUMMARY).exists():
        return _unfinished_page(folder)
    summary = rundir.read_json(folder / rundir.SUMMARY)
    table = rundir.read_csv(folder / rundir.PREDICTIONS)
    candidates = rundir.read_csv(folder / rundir.CANDIDATES)
    count = candidates.groupby("series_uid").size() if len(candidates) else pd.Series(dtype=int)
    failed = table[table["status"] != "ok"]
    order = table.sort_values(PRESENT, ascending=False)
    rows = tuple(
        (
            Link(_short(row["SeriesInstanceUID"]), quote(str(row["page"]))),
            row[PRESENT],
            row["calibrated"],
            "yes" if row.get("flagged") == 1 else "no" if row.get("flagged") == 0 else "",
            *_location(row),
            int(count.get(row["SeriesInstanceUID"], 0)),
            row["modality"],
            row["plane"],
            "fall-back" if row["status"] != "ok" else "",
            row["quality"] if isinstance(row["quality"], str) else "",
        )
        for row in order.to_dict("records")
    )
    columns = (
        *(
            Column("series", None),
            Column("present"),
            Column("calibrated"),
            Column("flagged", None),
            Column("likeliest location", None),
            Column("its p"),
        ),
        *(Column("candidates"), Column("modality", None), Column("plane", None), Column("answer", None)),
        Column("warnings", None),
    )
    every = Table("series", "Every series, the most suspicious first", "A series' name opens its page.", columns, rows)
    reasons = Table(
        "refused",
        "Series that could not be read",
        "They have the training prevalence as their answer, so that no row is missing.",
        (Column("series", None), Column("reason", None), Column("what it means", None), Column("message", None)),
        tuple(
            (_short(row["SeriesInstanceUID"]), row["reason"], SERIES_REASONS.get(row["reason"], ""), row["message"])
            for row in failed.to_dict("records")
        ),
        missing="Every series was read.",
    )
    return Page(
        title=location.absolute(folder).name,
        kind="prediction",
        subtitle=f"model {summary['model'][:12]} of {summary['run']}, {words.count(summary['models'], 'network')}",
        summary=(
            f"{words.count(len(table), 'series was', 'series were')} scored"
            + (f", {len(failed):,} of them could not be read." if len(failed) else "."),
            *_note(summary),
            DISCLAIMER,
        ),
        tiles=(
            Tile("series", f"{len(table):,}"),
            Tile("could not be read", f"{len(failed):,}"),
            Tile("seconds per series", f"{summary['seconds_per_series']:.1f}", "reading to page, per worker"),
            Tile("candidates", f"{len(candidates):,}"),
        ),
        sections=(
            Section("all", "Series", "", (every,)),
            Section("failures", "Not read", "", (reasons,)),
            provenance_blocks.section(rundir.read_config(folder), rundir.read_json(folder / rundir.PROVENANCE)),
        ),
    )


def _note(facts: Mapping[str, Any]) -> Sequence[str]:
    """Return what the model says of itself, if anything."""
    return [f"{facts['note'][0].upper()}{facts['note'][1:]}."] if facts.get("note") else []


def _unfinished_page(folder: Path) -> Page:
    """Return the page of a prediction that was interrupted: the series that were scored, by their own files."""
    facts = rundir.read_json(folder / rundir.PROVENANCE)
    series = location.matching(folder / rundir.SERIES, "*")
    files = [file for one in series if (file := one / rundir.RESULT).exists()]
    results = [(file.parent.name, rundir.read_json(file)) for file in files]
    ordered = sorted(results, key=lambda pair: -pair[1]["probabilities"][PRESENT])
    links = [
        Link(_short(result["series_uid"]), quote(f"{rundir.SERIES}/{name}/{SERIES_PAGE}")) for name, result in ordered
    ]
    rows = tuple((link, result["probabilities"][PRESENT]) for link, (_, result) in zip(links, ordered, strict=True))
    scored = words.count(len(rows), "series was", "series were")
    return Page(
        title=location.absolute(folder).name,
        kind="prediction",
        subtitle=f"model {str(facts.get('model', ''))[:12]} of {facts.get('run', '')}",
        summary=(
            f"The prediction has not finished: {scored} scored so far. Its command with --resume goes on with it.",
            DISCLAIMER,
        ),
        tiles=(Tile("series so far", f"{len(rows):,}"),),
        sections=(
            Section(
                "all",
                "Series",
                "",
                (Table("series", "Series so far", "", (Column("series"), Column("present")), rows),),
            ),
            provenance_blocks.section(rundir.read_config(folder), facts),
        ),
    )


def _short(uid: object) -> str:
    text = str(uid)
    return text if len(text) <= 28 else _end(text, 21)


def _end(uid: str, characters: int) -> str:
    """Return the end of a UID, by which it is told from others; a word joiner holds the ellipsis to it in a line."""
    return f"…\N{WORD JOINER}{uid[-characters:]}"


def _location(row: Mapping[Any, Any]) -> tuple[str, float]:
    best = max((label for label in LABELS if label != PRESENT), key=lambda label: float(row[label]))
    return SHORT_NAMES[best], float(row[best])


def _size(result: Mapping[str, Any]) -> str:
    return (
        "×".join(str(n) for n in result["shape"]) + " at " + "×".join(f"{mm:g}" for mm in result["spacing_mm"]) + " mm"
    )


def _sentences(result: Mapping[str, Any]) -> Sequence[str]:
    if result["reason"]:
        meaning = SERIES_REASONS.get(result["reason"], result["reason"])
        return (f"This series could not be read: {meaning}. Its probabilities are the training set's prevalence.",)
    if not result["candidates"]:
        return ("No candidate was found.",)
    first = result["candidates"][0]
    where = f"{first['location']}, probability {first['probability']:.3f}"
    place = ""
    if first["sop_uid"]:
        place = f" It lies in image {first['sop_uid']}" + (
            f", frame {first['frame'] + 1}" if first["multi_frame"] else ""
        )
        place += f", column {first['column']:.0f}, row {first['row']:.0f}."
    return (f"The strongest candidate is at the {where}.{place}",)


def _warnings(result: Mapping[str, Any]) -> Table:
    rows = [(code, QUALITY.get(code, code)) for code in result["quality"]]
    rows += [(result["reason"], result["message"])] if result["reason"] else []
    rows += [("output", note) for note in result["notes"]]
    return Table(
        "quality",
        "What the reader noticed",
        "",
        (Column("code", None), Column("meaning", None)),
        tuple(rows),
        missing="Nothing had to be repaired or assumed.",
        wide=False,
    )


def _pictures(result: Mapping[str, Any], prepared: PreparedVolume, heatmap: HeatMap) -> Section:
    positions = np.array([[c["x_mm"], c["y_mm"], c["z_mm"]] for c in result["candidates"]]).reshape(-1, 3)
    voxels = pictures.to_voxel(prepared, positions)
    focus = voxels[0] if len(voxels) else (np.array(prepared.voxels.shape) - 1) / 2
    slab_mm = SLAB_MM if prepared.modality in ("CT", "CTA") else float("inf")
    overview = Case(
        f"Maximum over {slab_mm:g} mm around the first candidate" if np.isfinite(slab_mm) else "Maximum projections",
        ("candidates by rank",),
        pictures.data_uri(pictures.projections(prepared, focus, slab_mm, voxels[:0])),
        pictures.data_uri(pictures.projections(prepared, focus, slab_mm, voxels[:SHOWN])),
    )
    whole = _case("Slices through the first candidate", (), prepared, focus, heatmap, voxels[:SHOWN], None)
    close = [
        _case(f"{rank}. {c['location']}", _facts(c), prepared, voxel, heatmap, voxels[:0], CLOSE_UP_MM)
        for rank, (c, voxel) in enumerate(zip(result["candidates"], voxels[:SHOWN], strict=False), start=1)
    ]
    caption = f"{pictures.LETTERS_MEAN} The heat map is brightest at its own maximum, however low that is."
    return Section(
        "pictures",
        "Pictures",
        "",
        (
            Cases("overview", "The head", caption, (overview, whole)),
            Cases("candidates-close", "Candidates", f"{2 * CLOSE_UP_MM:.0f} mm around each.", tuple(close)),
        ),
    )


def _facts(candidate: Mapping[str, Any]) -> tuple[str, ...]:
    facts = [f"probability {candidate['probability']:.3f}"]
    facts.append("x {x_mm:.1f}, y {y_mm:.1f}, z {z_mm:.1f} mm".format_map(candidate))
    if candidate["sop_uid"]:
        frame = f"frame {candidate['frame'] + 1}, " if candidate["multi_frame"] else ""
        facts.append(
            f"{frame}column {candidate['column']:.1f}, row {candidate['row']:.1f} of {_end(candidate['sop_uid'], 12)}"
        )
    return tuple(facts)


def _case(
    title: str,
    facts: tuple[str, ...],
    prepared: PreparedVolume,
    focus: NDArray[np.float64],
    heatmap: HeatMap,
    candidates: NDArray[np.float64],
    radius_mm: float | None,
) -> Case:
    scale = pictures.PIXELS_PER_MM
    if radius_mm is not None:
        prepared, first = pictures.cropped(prepared, focus, radius_mm)
        focus, scale = focus - first, CLOSE_UP_PIXELS_PER_MM
    plain, marked = (
        pictures.slices(prepared, focus, heatmap, None, candidates, marked=on, pixels_per_mm=scale)
        for on in (False, True)
    )
    return Case(title, facts, pictures.data_uri(plain), pictures.data_uri(marked))


def _probabilities(result: Mapping[str, Any]) -> Table:
    limits, expected = result.get("thresholds", {}), result.get("expected", {})
    rows = [
        (
            *(label, result["probabilities"][label], result["calibrated"][label], limits.get(label)),
            "yes" if label in result.get("flagged", ()) else "no" if limits.get(label) is not None else "",
            *(expected.get(label) or (None, None)),
        )
        for label in LABELS
    ]
    return Table(
        "probabilities",
        "Probabilities",
        "Calibrated: the share of series that turned out positive among those of the run's own out-of-fold predictions "
        "with such a value (Platt's line on the logit). A dash: the run had too few to tell, or the answer is not "
        "of the kind that the line was fitted on: the mean of several networks, or with other inference settings. "
        "Flagged: at or above the label's threshold, which was chosen for "
        f"{_wanted(result.get('operating'))} and did what the last columns say, out of fold, by single networks; the "
        "mean of several spreads less, and differs somewhat.",
        (
            *(Column("label", None), Column("as the model says it"), Column("calibrated"), Column("threshold")),
            *(Column("flagged", None), Column("sensitivity"), Column("false alarms per scan")),
        ),
        tuple(sorted(rows, key=lambda row: -row[1])),
    )


def _wanted(operating: str | None) -> str:
    """Say in words what thresholds were chosen for."""
    kind, _, value = (operating or "").partition("=")
    if kind == "sensitivity":
        return f"a sensitivity of {float(value):g}"
    return f"{float(value):g} false alarms per scan" if value else "nothing yet"


def _candidates(result: Mapping[str, Any]) -> Section:
    columns = (
        *(Column("rank"), Column("location", None), Column("probability"), Column("x mm", 1), Column("y mm", 1)),
        *(Column("z mm", 1), Column("column", 1), Column("row", 1), Column("frame"), Column("SOP Instance UID", None)),
    )
    rows = tuple(
        (
            *(rank, c["location"], c["probability"], c["x_mm"], c["y_mm"], c["z_mm"], c["column"], c["row"]),
            *(c["frame"] + 1 if c["sop_uid"] and c["multi_frame"] else None, c["sop_uid"] or None),
        )
        for rank, c in enumerate(result["candidates"], start=1)
    )
    caption = "Positions are patient coordinates (LPS). Column and row count from 0 to pixel centres, frames from 1."
    return Section("list", "Candidates", "", (Table("candidates", "Candidates", caption, columns, rows),))
