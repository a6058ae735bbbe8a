"""Pages of synthetic directories: complete, safe, offline, and without an error in a real browser."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic_runs
from browser import check_in_browser, open_page
from plotly.offline import get_plotlyjs

from aneurysm_ray import rundir
from aneurysm_ray.data import doubts, identity, store
from aneurysm_ray.data.dicom import QUALITY
from aneurysm_ray.errors import RunDirError
from aneurysm_ray.labels import LABELS, PRESENT
from aneurysm_ray.learning import froc, metrics
from aneurysm_ray.reporting import page as pages_page
from aneurysm_ray.reporting import pages, run_data, run_page, set_page, suspicion
from aneurysm_ray.reporting.page import Column, Page, Section, Table, Tile


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training run over 90 series."""
    root = tmp_path_factory.mktemp("pages")
    table = synthetic_runs.write_volumes(root / "volumes", 90)
    return synthetic_runs.write_run(root / "run", root / "volumes", table)


@pytest.fixture(scope="module")
def report(run: Path) -> Path:
    """The run's page as a file."""
    return pages.write_report(run)


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    """The run's page."""
    return run_page.page(run)


@pytest.fixture(scope="module")
def set_report(run: Path) -> Path:
    """The page of the run's prepared set as a file."""
    return pages.write_report(run.parent / "volumes")


@pytest.fixture(scope="module")
def set_of_run(run: Path) -> Page:
    """The page of the run's prepared set."""
    return set_page.page(run.parent / "volumes")


def blocks(page: Page) -> dict[str, object]:
    return {block.key: block for section in page.sections for block in section.blocks}


def test_browser_check_sees_errors(tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<script>document.title = missing.thing;</script><img src='https://example.org/a.png'>")
    console = " ".join(open_page(bad).console)
    assert "missing is not defined" in console


def test_run_page_opens_without_an_error(run: Path, report: Path) -> None:
    assert report == run / rundir.REPORT
    dom = check_in_browser(report)
    assert "data-overlay" in dom
    text = report.read_text(encoding="utf-8").replace(get_plotlyjs(), "")
    assert len(text) < 3_000_000
    assert re.findall(r"(?:src|href)=\"https?://|url\(|@import", text) == []
    assert "hunter2" not in text


def test_run_page_has_every_figure_and_speaks_the_scores(run: Path, page: Page) -> None:
    found = blocks(page)
    for key in ("roc", "pr", "froc", "reliability", "probabilities", "labels", "subgroups", "loss", "score"):
        assert found[key].figure is not None, key  # type: ignore[attr-defined]
    for key in ("folds", "froc-table", "label-table", "group-table", "wrong-table", "config", "provenance"):
        assert found[key].rows, key  # type: ignore[attr-defined]
    predictions = rundir.read_csv(run / rundir.PREDICTIONS)
    score = metrics.summarise(predictions)["score"]
    assert f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]" in " ".join(page.summary)
    assert page.tiles[0] == Tile(
        "Weighted score", f"{score['value']:.3f}", f"[{score['low']:.3f}, {score['high']:.3f}] pooled"
    )


def test_a_curve_is_spoken_of_where_there_is_one(run: Path, page: Page, tmp_path: Path) -> None:
    assert "mapped curve" in blocks(page)["reliability"].caption  # type: ignore[attr-defined]
    single = tmp_path / "single"
    shutil.copytree(run, single)
    for folder in single.glob("fold_[1-9]"):
        shutil.rmtree(folder)
    table = rundir.read_csv(single / rundir.PREDICTIONS)
    rundir.write_csv(single / rundir.PREDICTIONS, table[table["fold"] == 0])
    assert "mapped curve" not in blocks(run_page.page(single))["reliability"].caption  # type: ignore[attr-defined]


def test_most_wrong_cases_are_the_most_wrong(run: Path, page: Page) -> None:
    predictions = rundir.read_csv(run / rundir.PREDICTIONS)
    positive = predictions[f"target/{PRESENT}"] == 1
    worst = predictions[positive].sort_values(PRESENT)["series_uid"].iloc[0]
    found = blocks(page)
    assert found["missed"].cases[0].title == worst  # type: ignore[attr-defined]
    assert len(found["alarms"].cases) == 6  # type: ignore[attr-defined]


def test_run_without_its_volumes_says_so(run: Path, tmp_path: Path) -> None:
    table = synthetic_runs.write_volumes(tmp_path / "volumes", 30)
    alone = synthetic_runs.write_run(tmp_path / "run", tmp_path / "gone", table)
    found = blocks(run_page.page(alone))
    assert found["missed"].cases == ()  # type: ignore[attr-defined]
    assert "no longer where the run found them" in found["missed"].missing  # type: ignore[attr-defined]
    assert found["froc"].figure is None  # type: ignore[attr-defined]
    assert "no labelled points" in pages.write_report(alone).read_text(encoding="utf-8")


def test_sizes_come_from_the_phantoms_truth(tmp_path: Path) -> None:
    table = synthetic_runs.write_volumes(tmp_path / "volumes", 30, files=0)
    run = synthetic_runs.write_run(tmp_path / "run", tmp_path / "volumes", table)
    assert "Sizes are not known" in blocks(run_page.page(run))["group-table"].caption  # type: ignore[attr-defined]
    points = froc.points_mm(table)
    truth = points[["series_uid", "location"]].assign(diameter_mm=np.arange(len(points)) + 2.5)
    (tmp_path / "dicom").mkdir()
    negatives = pd.DataFrame({"series_uid": table["series_uid"][table[PRESENT] == 0], "location": None})
    rundir.write_csv(tmp_path / "dicom" / "phantom.csv", pd.concat([truth, negatives]))
    rundir.write_json(tmp_path / "volumes" / rundir.PREPARE, {"kind": "volumes", "source": "5ca1ab1e"})
    identity.write_places(str(tmp_path / "volumes"), {"5ca1ab1e": str(tmp_path / "dicom")})
    sizes = [row for row in blocks(run_page.page(run))["group-table"].rows if row[0] == "size"]  # type: ignore[attr-defined]
    # Diameters are 2.5, 3.5, ... 11.5 mm; the 20 negatives stand in every group.
    assert [(row[1], row[3], row[4]) for row in sizes] == [
        ("< 3 mm", 1, 21),
        ("3–5 mm", 2, 22),
        ("5–7 mm", 2, 22),
        ("≥ 7 mm", 5, 25),
    ]
    radii = run_data.read_run(run).points.set_index("series_uid")["radius_mm"]
    assert radii.loc[truth["series_uid"].iloc[3]] == pytest.approx(5.5 / 2)


def test_sizes_come_from_masks_and_a_point_without_location_is_told(tmp_path: Path) -> None:
    table = synthetic_runs.write_volumes(tmp_path / "volumes", 30)
    run = synthetic_runs.write_run(tmp_path / "run", tmp_path / "volumes", table)
    rows = table.to_dict("records")
    for row in rows:
        row["points"] = [{**point, "location": "", "radius_mm": 2.0} for point in row["points"]]
        row["ignored"] = list(row["ignored"])
    store.write_table(tmp_path / "volumes", rows)
    found = blocks(run_page.page(run))
    sizes = [row for row in found["group-table"].rows if row[0] == "size"]  # type: ignore[attr-defined]
    assert [(row[1], row[3], row[4]) for row in sizes][1] == ("3–5 mm", 10, 30)
    worst = found["missed"].cases[0]  # type: ignore[attr-defined]
    path = tmp_path / "volumes" / store.volume_path(worst.title)
    prepared = store.read_volume(path)
    unplaced = tuple(replace(point, location="") for point in prepared.points)
    path.write_bytes(store.encode(replace(prepared, points=unplaced), "{}"))
    told = blocks(run_page.page(run))["missed"].cases[0].facts  # type: ignore[attr-defined]
    assert "aneurysm: location unknown" in told


def test_unfinished_run_has_a_page(tmp_path: Path) -> None:
    table = synthetic_runs.write_volumes(tmp_path / "volumes", 30)
    run = synthetic_runs.write_run(tmp_path / "run", tmp_path / "volumes", table)
    for name in (rundir.SUMMARY, rundir.PREDICTIONS, rundir.CANDIDATES):
        (run / name).unlink()
    assert "The run has not finished" in run_page.page(run).summary[-1]
    for fold in range(3):
        for name in (rundir.METRICS, rundir.PREDICTIONS, rundir.CANDIDATES):
            (rundir.fold_dir(run, fold) / name).unlink()
    assert run_page.page(run).summary[0].startswith("No fold has finished an epoch yet, so there is nothing to score.")
    assert "nothing to score" in pages.write_report(run).read_text(encoding="utf-8")


def test_run_with_one_class_has_a_page(tmp_path: Path) -> None:
    table = synthetic_runs.write_volumes(tmp_path / "volumes", 12)
    table[list(LABELS)] = 0.0
    run = synthetic_runs.write_run(tmp_path / "run", tmp_path / "volumes", table)
    page = run_page.page(run)
    assert "No label has both positive and negative series" in " ".join(page.summary)
    assert [key for key, block in blocks(page).items() if getattr(block, "figure", 0) is None] == [
        *("roc", "pr", "reliability", "probabilities", "labels", "subgroups"),
    ]
    pages.write_report(run)


def test_set_page_opens_and_lists_every_series(set_report: Path, set_of_run: Page) -> None:
    dom = check_in_browser(set_report)
    assert "90 series, page 1 of 3" in dom
    assert dom.count('<figure class="picture">') == 36  # the other 54 stay data
    found = blocks(set_of_run)
    for key in (
        "modality",
        "plane",
        "locations",
        "reasons",
        "quality",
        "slices",
        "spacing_mm",
        "height_mm",
        "intensity",
    ):
        assert found[key].figure is not None, key  # type: ignore[attr-defined]
    assert len(found["rejected"].rows) == 7  # type: ignore[attr-defined]
    assert found["rejected"].rows[0] == ("no_geometry", "it is so", "series/0")  # type: ignore[attr-defined]
    assert set_of_run.summary[0] == "90 series of 90 patients became volumes; 7 series were refused."
    assert "positions or spacing are missing, not finite or absurd (5)" in set_of_run.summary[2]


def test_a_set_page_says_how_many_series_have_masks_and_no_more_than_is_set(tmp_path: Path, set_of_run: Page) -> None:
    assert not any("mask" in sentence for sentence in set_of_run.summary)
    rows = synthetic_runs.write_volumes(tmp_path, 5).to_dict("records")
    for number, said in ((1, "1 series has a mask of vessels."), (4, "4 series have a mask of vessels.")):
        store.write_table(tmp_path, [{**row, "has_vessels": index < number} for index, row in enumerate(rows)])
        page = set_page.page(tmp_path)
        assert said in page.summary
        # No setting lets a series keep its own spacing.
        assert blocks(page)["spacing_mm"].caption == "That of the volume settings, for all."  # type: ignore[attr-defined]


def test_most_suspicious_series_come_first(set_of_run: Page) -> None:
    items = blocks(set_of_run)["series"].items  # type: ignore[attr-defined]
    flags = [len(item["flags"]) for item in items]
    assert flags == sorted(flags, reverse=True)
    assert items[0]["flags"] == ["missing slices", "duplicate positions"]
    texts = [text for item in items for text in item["flags"]]
    assert f"a remark, such as {max(texts, key=texts.count)!r}" in set_of_run.summary[3]
    assert all(item["image"].startswith("data:image/jpeg;base64,") for item in items)


def test_suspicion_by_hand() -> None:
    table = pd.DataFrame(
        {
            "series_uid": list("abcdef"),
            "modality": "CTA",
            "shape": [[100, 10, 10]] * 5 + [[20, 10, 10]],
            "spacing_mm": [[1.0, 1.0, 1.0]] * 6,
            "quality": [[], ["junk_files", "missing_slices"], [], ["point_outside"], [], []],
            "points": [[], [], [], [{"z": 1, "y": 10, "x": 1}], [], []],
            PRESENT: [0.0, 0.0, 1.0, 1.0, np.nan, 0.0],
        }
    )
    found = suspicion.flags(table, dict(zip("abcdef", (50.0, 51.0, 49.0, 50.0, 120.0, 50.0), strict=True)))
    assert found == [
        [],
        [("missing slices", 3), ("junk files", 1)],
        [("no point marks the aneurysm", 3)],
        [("point outside", 5)],
        [("unusually bright", 2)],
        [("unusually short", 2)],
    ]
    assert set(QUALITY) >= set(doubts.GRAVE)


def test_empty_set_has_a_page(tmp_path: Path) -> None:
    synthetic_runs.write_volumes(tmp_path, 0)
    assert "No series was prepared." in pages.write_report(tmp_path).read_text(encoding="utf-8")


def test_text_of_a_run_cannot_become_markup(tmp_path: Path) -> None:
    nasty = "</script><script>alert(1)</script>"
    table = Table("t", nasty, nasty, (Column(nasty),), ((nasty,),))
    page = Page(nasty, nasty, nasty, (nasty,), (Tile(nasty, nasty),), (Section("s", nasty, nasty, (table,)),))
    text = pages_page.render(page)
    assert "alert(1)</script>" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "</script" not in pages_page.script_json({"x": nasty, "y": "\u2028"})


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, 3, "–"),
        (float("nan"), 3, "–"),
        (pd.NA, 3, "–"),
        (0.12345, 3, "0.123"),
        (1234567, 3, "1,234,567"),
        (2.5e-5, 3, "2.5e-05"),
        (True, 3, "yes"),
        (["a", 2], 3, "a, 2"),
        (7, None, "7"),
    ],
)
def test_cells(value: object, digits: int | None, text: str) -> None:
    assert pages_page.cell(value, digits) == text


def test_a_folder_that_is_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="no prepared set, run or search"):
        pages.write_report(tmp_path)


PROBE = """<script>
const done = (name, value) => document.body.insertAdjacentHTML("beforeend", `<i data-probe="${name}">${value}</i>`);
const fire = (element, kind) => element.dispatchEvent(new Event(kind, {bubbles: true}));
addEventListener("load", () => setTimeout(() => {
%s
}, 5000));
</script>"""


def probe(page: Path, script: str, copy: Path) -> dict[str, str]:
    """Run a script in a copy of a page after it has settled; return what it reported by `done(name, value)`."""
    text = page.read_text(encoding="utf-8").replace("</body>", (PROBE % script) + "</body>")
    copy.write_text(text, encoding="utf-8")
    opened = open_page(copy)
    assert opened.console == []
    return dict(re.findall(r'<i data-probe="([^"]+)">([^<]*)</i>', opened.dom))


def test_tables_sort_and_filter_and_menus_choose(run: Path, report: Path, tmp_path: Path) -> None:
    script = """
    const rows = table => [...table.tBodies[0].rows].filter(row => !row.hidden);
    const column = (table, index) => rows(table).map(row => row.cells[index].textContent);
    const table = document.getElementById("label-table-table");
    const heading = table.querySelectorAll("th button")[2];
    heading.click();
    done("down", column(table, 2).join());
    heading.click();
    done("up", column(table, 2).join());
    done("sorted", table.querySelectorAll("th")[2].getAttribute("aria-sort"));
    const word = document.querySelector("[data-filter=label-table-table]");
    word.value = "left CAROTID";
    fire(word, "input");
    done("filtered", column(table, 0).join("; "));
    const menu = document.querySelector("[data-choose=roc]");
    menu.value = [...menu.options].at(-1).value;
    fire(menu, "change");
    const plot = document.querySelector("#roc .plot");
    done("shown", [...new Set(plot.data.filter(t => t.visible && t.meta).map(t => t.meta))].join() === menu.value);
    const box = document.querySelector("[data-overlay=missed]");
    const marked = document.querySelector("#missed .overlaid"), plain = document.querySelector("#missed .plain");
    const seen = () => `${getComputedStyle(marked).display}/${getComputedStyle(plain).display}`;
    const before = seen();
    box.click();
    done("overlay", `${before} ${seen()}`);
    """
    found = probe(report, script, tmp_path / "probe.html")
    labels = metrics.per_label(rundir.read_csv(run / rundir.PREDICTIONS))
    counts = sorted(labels["n_positive"], reverse=True)
    assert found["down"] == ",".join(map(str, counts))
    assert found["up"] == ",".join(map(str, counts[::-1]))
    assert found["sorted"] == "ascending"
    assert found["filtered"] == "; ".join(label for label in LABELS if label.startswith("Left") and "Carotid" in label)
    assert found["shown"] == "true"
    assert found["overlay"] == "block/none none/block"


def test_gallery_filters_finds_and_turns_pages(set_report: Path, tmp_path: Path) -> None:
    script = """
    const where = () => document.querySelector("[data-where]").textContent;
    const first = () => document.querySelector(".picture .uid").textContent;
    const [back, forth] = document.querySelectorAll("[data-step]");
    forth.click();
    done("second", `${where()} ${back.disabled} ${forth.disabled}`);
    document.querySelector("[data-pictures]").dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
    done("third", `${where()} ${document.querySelectorAll(".picture").length} ${forth.disabled}`);
    const menu = document.querySelector('[data-facet="modality"]');
    menu.value = "MRA";
    fire(menu, "change");
    done("filtered", where());
    menu.value = "";
    const find = document.querySelector("[data-find]");
    find.value = "%s";
    fire(find, "input");
    done("found", `${where()} ${first()}`);
    find.value = "nothing like it";
    fire(find, "input");
    done("none", where());
    """
    uid = synthetic_runs.uid(17)
    found = probe(set_report, script % uid, tmp_path / "probe.html")
    assert found["second"] == "90 series, page 2 of 3 false false"
    assert found["third"] == "90 series, page 3 of 3 18 true"
    assert found["filtered"] == "23 series, page 1 of 1"
    assert found["found"] == f"1 series, page 1 of 1 {uid}"
    assert found["none"] == "0 series, page 1 of 1"
