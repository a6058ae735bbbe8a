"""Pages of searches and of comparisons, from their directories alone."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic_runs
from browser import check_in_browser

from aneurysm_ray import overrides, rundir
from aneurysm_ray.errors import RequestError
from aneurysm_ray.learning import metrics
from aneurysm_ray.reporting import (
    compare_runs,
    figures_search,
    figures_space,
    importance,
    pages,
    search_data,
    search_page,
    search_summary,
)
from aneurysm_ray.reporting.page import Page, write


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return synthetic_runs.write_volumes(tmp_path_factory.mktemp("volumes"), 60, files=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, volumes: pd.DataFrame) -> Path:
    return synthetic_runs.write_search(tmp_path_factory.mktemp("search") / "tune", volumes)


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return search_page.page(folder)


def blocks(page: Page) -> dict[str, object]:
    return {block.key: block for section in page.sections for block in section.blocks}


def small(trials: pd.DataFrame, **tune: object) -> search_data.SearchData:
    """Return a search of a few trials, with no files behind it."""
    config = overrides.build({f"tune.{key}": value for key, value in tune.items()})
    trials = trials.assign(**{name: 0.0 for name in ("seconds", "gpu_seconds", "epochs") if name not in trials})
    return search_data.SearchData(Path("nowhere"), config, {}, {}, trials, pd.DataFrame({"trial": [], "step": []}))


def test_search_page_opens_with_every_figure(folder: Path, page: Page) -> None:
    dom = check_in_browser(write(page, folder / rundir.REPORT))
    assert "bad &lt;b&gt;value&lt;/b&gt;" in dom
    found = blocks(page)
    figures = ("history", "cost", "curves", "edf", "importance", "contour", "slices", "parallel", "pareto", "timeline")
    for key in figures:
        assert found[key].figure is not None, key  # type: ignore[attr-defined]
    assert found["failed"].rows == (  # type: ignore[attr-defined]
        (5, "RuntimeError: out of memory"),
        (11, "ValueError: bad <b>value</b>"),
    )
    assert len(found["trials"].rows) == 24  # type: ignore[attr-defined]


def test_summary_says_what_won_and_how_sure(folder: Path, page: Page) -> None:
    search = search_data.read_search(folder)
    done = search.trials[search.trials["state"] == "COMPLETE"]
    best = int(done.loc[done["value"].idxmax(), "trial"])
    text = " ".join(page.summary)
    assert f"Trial {best} is the best, with val/score {done['value'].max():.4f}" in text
    assert "8 ran to their end, 14 stopped early and 2 failed" in text
    tables = [rundir.read_csv(search_data.trial_dir(folder, n) / rundir.PREDICTIONS) for n in (0, best)]
    score = metrics.difference(*tables)["score"]
    assert f"{score.value:+.3f}, 95 % interval [{score.low:+.3f}, {score.high:+.3f}]" in text
    assert "flatters" in text


def test_a_score_of_the_best_trained_anew_says_what_chose_it(folder: Path, tmp_path: Path) -> None:
    search = shutil.copytree(folder, tmp_path / "tune")
    score = {"value": 0.8, "low": 0.7, "high": 0.9}
    without = {"folds": [1, 2], "score": {"value": 0.75, "low": 0.6, "high": 0.88}}
    for unpicked, said in (
        (without, "Without fold 0, by which the settings were chosen, it is 0.750 [0.600, 0.880]."),
        (None, "The settings were chosen by fold 0, and there is no score without what chose them"),
    ):
        trained = {"score": score, "unpicked": unpicked}
        rundir.write_json(search / rundir.SUMMARY, {"kind": "tune", "trials": 24, "train": trained})
        text = " ".join(search_page.page(search).summary)
        assert "scores 0.800 [0.700, 0.900] out of fold" in text and said in text
        assert "nothing was picked by" not in text


def test_best_so_far_follows_the_end_of_trials_and_ignores_the_stopped() -> None:
    trials = pd.DataFrame(
        {
            "trial": [0, 1, 2, 3, 4],
            "state": ["COMPLETE", "PRUNED", "COMPLETE", "FAIL", "RUNNING"],
            "value": [0.6, 0.9, 0.7, np.nan, 0.8],
            "ended": [
                "2026-01-01T00:00:30Z",
                "2026-01-01T00:00:10Z",
                "2026-01-01T00:00:20Z",
                "2026-01-01T00:00:40Z",
                None,
            ],
            "seconds": [360.0, 36.0, 180.0, 36.0, 1.0],
        }
    )
    table = figures_search.history(small(trials))
    assert list(table["trial"]) == [1, 2, 0, 3]
    np.testing.assert_allclose(table["hours"], [0.01, 0.06, 0.16, 0.17])
    np.testing.assert_allclose(table["best"], [np.nan, 0.7, 0.7, 0.7])
    down = figures_search.history(small(trials, metric="val/loss", mode="min"))
    np.testing.assert_allclose(down["best"], [np.nan, 0.7, 0.6, 0.6])


def test_trials_at_one_time_lie_in_different_lanes() -> None:
    trials = pd.DataFrame(
        {
            "trial": [0, 1, 2],
            "state": "COMPLETE",
            "value": 1.0,
            "worker": ["a:1", "a:2", "b:3"],
            "started": ["2026-01-01T00:00:00Z", "2026-01-01T00:00:05Z", "2026-01-01T00:00:10+00:00"],
            "ended": ["2026-01-01T00:00:10Z", "2026-01-01T00:00:20Z", None],
            "seconds": [10.0, 15.0, 5.0],
        }
    )
    table = figures_search.timeline(small(trials))
    assert list(table["lane"]) == ["a · 1", "a · 2", "b · 1"]
    assert table["ended"].iloc[2] == pd.Timestamp("2026-01-01T00:00:15Z")


def test_a_trial_that_ended_no_epoch_is_no_bar_without_length() -> None:
    trials = pd.DataFrame(
        {
            "trial": [0, 1],
            "state": "RUNNING",
            "value": np.nan,
            "worker": None,
            "started": "2026-01-01T00:00:00Z",
            "seconds": [0.0, 12.0],
        }
    )
    table = figures_search.timeline(small(trials))
    assert list(table["trial"]) == [1]


def test_pareto_front_by_hand() -> None:
    trials = pd.DataFrame(
        {"trial": [0, 1, 2, 3], "state": "COMPLETE", "value": [0.9, 0.8, 0.7, 0.7], "seconds": [30.0, 10.0, 20.0, 10.0]}
    )
    table, names = figures_search.trade_off(small(trials))
    assert sorted(table.loc[table["front"], "trial"]) == [0, 1]
    assert names == ("seconds of the trial", "val/score")
    two = trials.assign(**{"value/val/score": trials["value"], "value/parameters": [5.0, 9.0, 1.0, 2.0]})
    table, names = figures_search.trade_off(small(two, metric="val/score, parameters", mode="max, min"))
    assert sorted(table.loc[table["front"], "trial"]) == [0, 2]
    assert names == ("parameters", "val/score")


def test_importance_finds_what_the_score_was_made_of(folder: Path) -> None:
    search = search_data.read_search(folder)
    rng = np.random.default_rng(0)
    rows = 40
    trials = pd.DataFrame({"trial": range(rows), "state": "COMPLETE"})
    trials["param/optim.lr"] = 10 ** rng.uniform(-5, -2, rows)
    trials["param/loss.focal_gamma"] = rng.uniform(0, 4, rows)
    trials["param/model.name"] = rng.choice(["resnet3d10", "resnet3d18"], rows)
    trials["param/model.width"] = 64
    trials["value"] = -((np.log10(trials["param/optim.lr"]) + 3.5) ** 2)
    space = {"optim.lr": {"loguniform": [1e-5, 1e-2]}, "loss.focal_gamma": {"uniform": [0, 4]}}
    table = importance.importances(small(trials, space=space), trials.set_index("trial")["value"])
    assert table["key"].iloc[0] == "optim.lr"
    assert table["importance"].iloc[0] > 0.8
    assert table["low"].iloc[0] > table["high"].iloc[1]
    assert "model.width" not in set(table["key"]), "what did not vary cannot matter"
    assert (table["low"] <= table["importance"]).all()
    assert (table["importance"] <= table["high"]).all()
    few = importance.importances(search, search.complete.set_index("trial")["value"].head(importance.FEWEST - 1))
    assert few.empty


def test_importance_leads_with_what_has_enough_trials(folder: Path) -> None:
    search = search_data.read_search(folder)
    assert list(importance.subjects(search)) == ["score after 2 epochs (22 trials)", "final score (8 complete trials)"]


def test_trials_of_the_start_and_proposed_ones_are_told_apart(folder: Path) -> None:
    groups = figures_search.distributions(search_data.read_search(folder))
    # Trial 0 is the default, trials 5 and 11 failed; trials 1-7 are the start-up.
    assert {name: len(values) for name, values in groups.items()} == {"spread over the space": 6, "proposed by TPE": 15}


def test_scales_of_parallel_axes(folder: Path) -> None:
    search = search_data.read_search(folder)
    table = search.trials.head(3).assign(**{"param/optim.lr": [1e-4, 1e-3, 1e-2], "param/model.name": ["b", "a", "b"]})
    places, labels = figures_space.unit_scale(search, table, "optim.lr")
    np.testing.assert_allclose(places, [0, 0.5, 1])
    assert labels == [(0.0, "0.0001"), (1.0, "0.01")]
    places, labels = figures_space.unit_scale(search, table, "model.name")
    assert (list(places), labels) == ([1, 0, 1], [(0.0, "a"), (1.0, "b")])


def test_surface_between_trials_is_interpolated_and_blank_outside() -> None:
    trials = pd.DataFrame({"trial": range(5), "state": "COMPLETE"})
    trials["param/loss.focal_gamma"] = [0.0, 4.0, 0.0, 4.0, 2.0]
    trials["param/optim.clip_norm"] = [0.0, 0.0, 1.0, 0.5, 0.25]
    trials["value"] = trials["param/loss.focal_gamma"] + 10 * trials["param/optim.clip_norm"]
    x, y, surface = figures_space.plane(small(trials), trials, ("loss.focal_gamma", "optim.clip_norm"))
    assert (x[0], x[-1], y[0], y[-1]) == (0, 4, 0, 1)
    expected = x[None, :] + 10 * y[:, None]
    inside = ~np.isnan(surface)
    np.testing.assert_allclose(surface[inside], expected[inside], atol=1e-9)
    assert np.isnan(surface[-1, -1])


def test_search_without_a_result_has_a_page(tmp_path: Path, volumes: pd.DataFrame) -> None:
    folder = synthetic_runs.write_search(tmp_path / "tune", volumes, trials=3)
    table = rundir.read_csv(folder / rundir.TRIALS)
    rundir.write_csv(folder / rundir.TRIALS, table.assign(state="RUNNING", value=None, started=None, ended=None))
    (folder / rundir.SUMMARY).unlink()
    rundir.write_text(folder / rundir.CURVES, "\n")
    page = search_page.page(folder)
    assert page.summary[-1] == "No trial has run to its end with a value yet, so nothing has won."
    (folder / rundir.TRIALS).unlink()
    assert "0 trials" in search_page.page(folder).summary[0]
    pages.write_report(folder)


def test_default_that_won_is_said(tmp_path: Path, volumes: pd.DataFrame) -> None:
    folder = synthetic_runs.write_search(tmp_path / "tune", volumes, trials=5)
    table = rundir.read_csv(folder / rundir.TRIALS)
    table.loc[table["trial"] == 0, "value"] = 2.0
    rundir.write_csv(folder / rundir.TRIALS, table)
    search = search_data.read_search(folder)
    assert search_summary.duel(search) is None
    assert "the search found nothing better" in " ".join(search_summary.sentences(search, {}, None))


def test_comparison_of_searches(folder: Path, tmp_path: Path, volumes: pd.DataFrame) -> None:
    other = synthetic_runs.write_search(tmp_path / "other", volumes, trials=12, seed=5)
    path = pages.compare([folder, other], tmp_path / "compare.html")
    dom = check_in_browser(path)
    assert "The best trial of other differs from that of tune by" in dom


def test_comparison_of_runs(tmp_path: Path, volumes: pd.DataFrame) -> None:
    runs = [
        synthetic_runs.write_run(tmp_path / name, tmp_path / "gone", volumes, skill=skill)
        for name, skill in (("weak", 0.5), ("strong", 2.5))
    ]
    path = pages.compare(runs, tmp_path / "compare.html")
    dom = check_in_browser(path)
    assert "strong is better than weak: on the 60 series both scored" in dom
    gap = metrics.difference(*(rundir.read_csv(run / rundir.PREDICTIONS) for run in runs))["score"]
    assert f"differs by {gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]" in dom
    back = " ".join(compare_runs.page(runs[::-1]).summary)
    assert "weak is worse than strong" in back


def test_only_like_is_compared_with_like(folder: Path, tmp_path: Path, volumes: pd.DataFrame) -> None:
    run = synthetic_runs.write_run(tmp_path / "run", tmp_path / "gone", volumes)
    with pytest.raises(RequestError, match="compare runs with runs"):
        pages.compare([run, folder], tmp_path / "x.html")
    with pytest.raises(RequestError, match="no training run or search"):
        pages.compare([tmp_path, run], tmp_path / "x.html")
    with pytest.raises(RequestError, match="named twice"):
        pages.compare([run, run], tmp_path / "x.html")


def test_names_are_as_short_as_can_be() -> None:
    assert compare_runs.names([Path("/a/x/run"), Path("/a/y/run")]) == ["x/run", "y/run"]
    assert compare_runs.names([Path("/a/x"), Path("/a/y")]) == ["x", "y"]
