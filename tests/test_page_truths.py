"""Pages tell no half-truths: sides, colours, what is unfinished, what may be sent."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import synthetic_runs
from PIL import ImageDraw
from scans import mr_head, scan

from aneurysm_ray import rundir
from aneurysm_ray.config import Config, VolumeConfig
from aneurysm_ray.data import inspection, picture, store
from aneurysm_ray.data.preprocess import prepare_series
from aneurysm_ray.labels import LABELS
from aneurysm_ray.reporting import (
    drawing,
    figures_run,
    figures_search,
    figures_set,
    page,
    pictures,
    predict_page,
    run_data,
    run_page,
    run_summary,
    search_data,
    search_page,
    set_page,
)

SIDES = {"R": (-1, 0, 0), "L": (1, 0, 0), "A": (0, -1, 0), "P": (0, 1, 0), "F": (0, 0, -1), "H": (0, 0, 1)}
"""Where each side of the patient lies (LPS, PS3.3 C.7.6.1.1.1)."""


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    synthetic_runs.write_volumes(folder, 24, files=2)
    return folder


@pytest.fixture
def run(volumes: Path, tmp_path: Path) -> Path:
    return synthetic_runs.write_run(tmp_path / "run", volumes, store.volumes_table(volumes))


SEEN = {"feet": "F", "front": "A", "left": "L"}


def viewer(left: str, right: str, up: str, down: str) -> tuple[float, ...]:
    """Return the side that a picture with these letters is seen from: right times down points into it, away."""
    into = np.cross(np.subtract(SIDES[right], SIDES[left]), np.subtract(SIDES[down], SIDES[up])) / 4
    return tuple(-into)


def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list of all that is written on pictures from now on."""
    words: list[str] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, place, text, *_, **how: words.append(text))
    return words


def test_pictures_say_from_where_they_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Axial as radiologists hold it, from the feet; coronal from the front; sagittal with the face to the left."""
    words = written(monkeypatch)
    prepared = synthetic_runs.volume(0, np.random.default_rng(0))
    pictures.slices(prepared, np.array(synthetic_runs.SHAPE) / 2)
    letters, names = words[:12], words[12:]
    for name, *sides in zip(names, *(letters[side::4] for side in range(4)), strict=True):
        assert viewer(*sides) == SIDES[SEEN[name.rsplit(" ", 1)[1]]], name
    assert [name.split(",")[0] for name in names] == ["axial", "coronal", "sagittal"]
    assert set(letters) == set(SIDES)
    assert pictures.LETTERS_MEAN == "R, L, A, P, H, F: the patient's right, left, front, back, head and feet."


def test_a_sets_page_says_from_where_each_view_of_its_pictures_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    words = written(monkeypatch)
    volume = scan(mr_head, modality="MR")
    picture.draw(prepare_series(volume, VolumeConfig(spacing_mm=(5, 5, 5))), volume)
    views = [viewer(*words[first : first + 4]) for first in range(0, len(words), 4)]
    assert views == [SIDES[SEEN[side]] for side in re.findall(r"from the (\w+)", set_page.LEGEND)]
    assert len(views) == 5


@pytest.mark.parametrize(("counts", "step"), [([1, 2, 4], 1), ([1, 2, 40], None)])
def test_counts_and_epochs_are_told_in_whole_numbers(counts: Sequence[int], step: int | None) -> None:
    """Left alone, an axis up to 4 has half a series or half an epoch on it; one up to 40 has not."""
    series = pd.Series(counts, index=["a", "b", "c"])
    crossed = pd.DataFrame({"with an aneurysm": counts, "without": 0, "unknown": 0}, index=series.index)
    rows = pd.DataFrame({"modality": "CTA", "slices": np.repeat([10, 20, 30], counts)})
    given = pd.DataFrame({figures_run.PRESENT: np.repeat([0.1, 0.5, 0.9], counts)})
    given[f"target/{figures_run.PRESENT}"] = 0.0
    assert figures_set.draw_bars(series).layout.xaxis.dtick == step
    assert figures_set.draw_counts(crossed).layout.xaxis.dtick == step
    assert figures_set.draw_histogram(rows, "slices", "slices").layout.yaxis.dtick == step
    assert figures_run.draw_probabilities(given).layout.yaxis.dtick == step
    assert figures_set.draw_bars(series).layout.xaxis.title.text == "series"
    losses = pd.DataFrame({"fold": 0, "epoch": counts, "train/loss": 0.5, "val/loss": 0.5})
    losses["val/score"] = losses["val/auc_present"] = 0.5
    for draw in (figures_run.draw_loss, figures_run.draw_score):
        assert draw(losses).layout.xaxis.dtick == step
        assert draw(losses).layout.xaxis.title.text == "epoch"
    ended = pd.DataFrame({"trial": range(counts[-1]), "state": "COMPLETE", "value": 0.5, "best": 0.5})
    assert figures_search.draw_history(ended, "val/score").layout.xaxis.dtick == step


@pytest.mark.parametrize("shape", [(60, 70, 60), (12, 200, 12), (200, 12, 90), (12, 12, 12)])
def test_no_word_of_a_picture_lies_on_another(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions stay above the planes, whose letters lie in them, and clear of each other, however narrow these are."""
    captions: list[tuple[float, float, float, float]] = []
    draw_text = ImageDraw.ImageDraw.text

    def text(self: ImageDraw.ImageDraw, place: tuple[float, float], words: str, **how: Any) -> None:
        if ", from" in words:
            captions.append(self.textbbox(place, words, font=how["font"]))
        draw_text(self, place, words, **how)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    whole = synthetic_runs.volume(0, np.random.default_rng(0))
    sheet = pictures.slices(replace(whole, voxels=np.zeros(shape, np.uint8)), np.array(shape) / 2)
    assert len(captions) == 3
    for left, _, right, bottom in captions:
        assert left >= 0 and right <= sheet.width and bottom <= pictures.CAPTION
    assert all(one[2] < other[0] for one, other in itertools.pairwise(captions))


def looks(figure: go.Figure) -> list[tuple[str, str]]:
    """Return the colour and symbol of each thing that the legend names."""
    return [(trace.line.color, trace.marker.symbol) for trace in figure.data if trace.showlegend]


def test_twenty_folds_are_told_apart_and_eight_without_colour() -> None:
    table = figures_run.epochs({fold: synthetic_runs.epoch_metrics(6, fold) for fold in range(20)})
    for draw in (figures_run.draw_loss, figures_run.draw_score):
        found = looks(draw(table))
        assert len(found) == len(set(found)) == 20
        assert len({symbol for _, symbol in found[:7]}) == 7
    assert len({(drawing.colour(i), drawing.marker(i)["symbol"]) for i in range(56)}) == 56


def test_bars_and_curves_of_a_search_differ_by_more_than_colour(volumes: Path, tmp_path: Path) -> None:
    search = search_data.read_search(synthetic_runs.write_search(tmp_path / "s", store.volumes_table(volumes)))
    bars = figures_search.draw_timeline(figures_search.timeline(search)).data
    assert len({bar.marker.pattern.shape for bar in bars}) == len(bars) > 2
    curves = figures_search.draw_curves(search).data
    assert len({trace.marker.symbol for trace in curves}) >= 3


def test_an_unfinished_run_says_so(run: Path) -> None:
    assert not any("not finished" in text for text in run_page.page(run).summary)
    (run / rundir.SUMMARY).unlink()
    text = " ".join(run_page.page(run).summary)
    assert "The run has not finished" in text and "fold 0 12 of 12" in text and "--resume" in text
    facts = inspection.inspect(run)
    assert (facts["kind"], facts["finished"], facts["epochs"]["fold_1"]) == ("train", False, 12)


def test_an_unfinished_search_says_so(volumes: Path, tmp_path: Path) -> None:
    search = synthetic_runs.write_search(tmp_path / "s", store.volumes_table(volumes), trials=4)
    assert not any("not finished" in text for text in search_page.page(search).summary)
    for left in ({"kind": "tune", "interrupted": True}, None):
        (search / rundir.SUMMARY).unlink()
        if left:
            rundir.write_json(search / rundir.SUMMARY, left)
        assert any(
            "The search has not finished: 4 of 4 trials have ended" in t for t in search_page.page(search).summary
        )
        assert inspection.inspect(search)["finished"] is False


def test_an_unfinished_prediction_has_a_page_of_what_is_there(tmp_path: Path) -> None:
    rundir.create(tmp_path, Config(), {"kind": "predict", "model": "abc", "run": "runs/a"})
    empty = predict_page.index_page(tmp_path)
    assert "0 series were scored so far" in empty.summary[0] and "--resume" in empty.summary[0]
    result = {"series_uid": "1.2.3", "probabilities": {"Aneurysm Present": 0.25}}
    rundir.write_json(tmp_path / "series" / "1.2.3-aa" / "result.json", result)
    assert "1 series was scored so far" in predict_page.index_page(tmp_path).summary[0]


@pytest.mark.parametrize(("number", "said"), [(1, "1 series was scored."), (2, "2 series were scored.")])
def test_a_predictions_page_counts_its_series_and_keeps_the_ends_of_their_names_in_a_line(
    tmp_path: Path, number: int, said: str
) -> None:
    rundir.create(tmp_path, Config(), {"kind": "predict"})
    facts = {"model": "abc", "run": "runs/a", "models": 1, "seconds_per_series": 2.0}
    rundir.write_json(tmp_path / rundir.SUMMARY, facts)
    uids = [f"1.2.826.0.1.3680043.8.498.1234567890123456789{index}" for index in range(number)]
    row = dict.fromkeys(LABELS, 0.25) | {"calibrated": 0.5, "modality": "MR", "plane": "axial", "status": "ok"}
    table = pd.DataFrame([{"SeriesInstanceUID": uid, "page": "p", "quality": "", "reason": "", **row} for uid in uids])
    table.to_csv(tmp_path / rundir.PREDICTIONS, index=False)
    pd.DataFrame({"series_uid": []}).to_csv(tmp_path / rundir.CANDIDATES, index=False)
    found = predict_page.index_page(tmp_path)
    assert found.summary[0] == said
    # A line may break after an ellipsis, but not at a word joiner (UAX 14); 24 characters and more are broken.
    cells = re.findall(r'<a href="p">([^<]*)</a>', page.render(found))
    assert cells == [f"…\N{WORD JOINER}{uid[-21:]}" for uid in uids]
    assert all(len(cell) < 24 for cell in cells)


def test_speed_is_that_of_the_last_run_alone(volumes: Path) -> None:
    facts = {"kind": "volumes", "source": "/d", "seconds": 10.0, "prepared": 24, "rejected": 7, "kept": 0}
    for kept, speed, subtitle in (
        (0, "3.1 series/s", "prepared in 10 s"),
        (26, "0.5 series/s, the last run", "last 5 series"),
    ):
        rundir.write_json(volumes / rundir.PREPARE, {**facts, "kept": kept})
        found = set_page.page(volumes)
        assert next(tile.note for tile in found.tiles if tile.label == "Time") == speed
        assert subtitle in found.subtitle


def bare(*rows: tuple[str, ...], title: str = "three runs") -> page.Page:
    table = page.Table("t", "T", "", (page.Column("a", None),), rows)
    return page.Page(title, "comparison", "", ("All is well: 3/4 of 12.",), (), (page.Section("s", "S", "", (table,)),))


@pytest.mark.parametrize(
    "said", ["/data/rsna/volumes", "s3://bucket/x", "1.2.826.0.1.3680043.8.498.1", "node3:4711", "in /home/jane/runs"]
)
def test_a_page_that_names_something_is_not_called_fit_to_be_sent(said: str) -> None:
    assert page.names_something(bare((said,)))
    assert "look through it before it is sent" in page.render(bare((said,)))
    assert page.names_something(bare(title=said))


def test_a_page_that_names_nothing_may_be_sent() -> None:
    clean = bare(("loss.name = focal",), ("0.5/0.6 at 10:30",), ("resnet3d18, 3/4 folds",))
    assert not page.names_something(clean)
    assert "may be sent" in page.render(clean)


def test_pages_of_runs_name_their_files(run: Path, volumes: Path) -> None:
    for found in (run_page.page(run), set_page.page(volumes)):
        assert page.names_something(found)


def test_looks_of_fillings_differ() -> None:
    shapes = [drawing.filling(i)["pattern"]["shape"] for i in range(6)]
    assert len(set(shapes)) == 6
    assert all(a != b for a, b in itertools.pairwise(shapes))


def test_a_label_without_an_auc_has_no_empty_row_in_the_figure() -> None:
    labels = pd.DataFrame(
        {"label": LABELS, "auc": np.nan, "low": np.nan, "high": np.nan, "n": 24, "n_positive": 0}
    ).astype({"auc": float})
    labels.loc[13, ["auc", "low", "high", "n_positive"]] = 0.7, 0.6, 0.8, 8
    assert list(figures_run.draw_labels(labels).data[0].y) == ["Present (8)"]


def test_a_sites_letter_is_called_a_site() -> None:
    rows = [("modality", "CTA", 3, 6), ("site", "A", 3, 7), ("site", 7, 1, 7)]
    table = pd.DataFrame(rows, columns=["group", "value", "n_positive", "n"]).assign(auc=0.5, low=0.4, high=0.6)
    assert list(figures_run.draw_subgroups(table).data[0].y) == ["CTA (3/6)", "site A (3/7)", "site 7 (1/7)"]


@pytest.mark.parametrize(
    ("seconds", "unit", "shown"), [(12.0, "s", 12.0), (90.0, "minutes", 1.5), (5400.0, "hours", 1.5)]
)
def test_the_time_of_a_fold_is_told_in_a_unit_that_shows_it(seconds: float, unit: str, shown: float) -> None:
    parts = {f"seconds/{name}": 0.0 for name in figures_run.TIME}
    figure = figures_run.draw_time(pd.DataFrame([{"fold": 0, **parts, "seconds/steps": seconds}]))
    assert figure.layout.xaxis.title.text == unit
    assert sum(float(bar.x[0]) for bar in figure.data) == pytest.approx(shown)


def test_whoever_dealt_the_folds_is_told(run: Path) -> None:
    text = (run / rundir.CONFIG).read_text()
    assert "Each fold held out" not in " ".join(run_page.page(run).summary)
    (run / rundir.CONFIG).write_text(text.replace('by = "patient"', 'by = "site"'))
    found = run_data.read_run(run)
    sites = found.predictions["fold"].map({0: "A", 1: "A", 2: "B"})
    told = run_summary.sentences(replace(found, predictions=found.predictions.assign(site=sites)), results_of(found))
    assert any(line.endswith("seen no patient: A by fold 0, A by fold 1, B by fold 2.") for line in told)
    (run / rundir.CONFIG).write_text(text.replace('file = ""', 'file = "/home/anna/splits.csv"'))
    assert "Folds are those of splits.csv." in run_page.page(run).summary


def results_of(found: run_data.RunData) -> run_summary.Results:
    return run_summary.results(found, None)


def test_a_set_whose_masks_name_no_artery_is_not_said_to_have_no_aneurysm(tmp_path: Path) -> None:
    synthetic_runs.write_volumes(tmp_path, 6, files=0)
    table = store.volumes_table(tmp_path)
    known = table.copy()

    def told(rows: pd.DataFrame) -> page.Chart:
        store.write_table(tmp_path, rows.to_dict("records"))
        contents = set_page.page(tmp_path).sections[0]
        return next(block for block in contents.blocks if isinstance(block, page.Chart) and block.key == "locations")

    assert told(table).figure is not None
    known[list(LABELS[:13])] = np.nan
    assert told(known).figure is None and "Of no aneurysm is the location known" in told(known).missing
    known[LABELS[13]] = 0.0
    assert told(known).missing == "No series is known to have an aneurysm."
