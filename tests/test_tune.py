"""A whole search on one local Ray, trained by formula: states, files, resumption, refusals."""

import functools
import itertools
import math
import os
from pathlib import Path

import pandas as pd
import pytest
import surrogates
from learning_sets import fold_without_ray, small_config, write_set
from optuna.trial import TrialState
from ray import cloudpickle
from ray.train import UserCallback
from ray.train.v2._internal.constants import WORKER_GROUP_START_TIMEOUT_S_ENV_VAR
from surrogates import curve, epoch_result, fit, fit_that_dies_once, fit_that_fails

from aneurysm_ray import overrides, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.distributed import launch, record, search_tables, survival, train, trial_process, tune
from aneurysm_ray.errors import ConfigError, RunDirError
from aneurysm_ray.learning import checkpoint, metrics

# Ray's workers do not have the tests on their path.
cloudpickle.register_pickle_by_value(surrogates)

SPACE = {
    "optim.lr": {"loguniform": [1e-5, 1e-1]},
    "loss.focal_gamma": {"uniform": [0.0, 4.0]},
    "sampler.positive_fraction": {"uniform": [0.0, 1.0]},
}


def settings(**keys) -> Config:
    base = {"tune.space": SPACE, "tune.trials": 6, "optim.epochs": 9, "tune.startup_trials": 3, "tune.grace_epochs": 1}
    base["tune.save_seconds"] = 0.0
    return overrides.build(base, {key.replace("__", "."): value for key, value in keys.items()})


def run(out: Path, config: Config, fit=fit, *, resume: bool = False, retry_failed: bool = False) -> dict:
    rundir.check(out, config, resume=resume, freed=tune.FREED)
    rundir.create(out, config, {"kind": "tune"})
    return tune.run_search(out, config, fit, retry_failed=retry_failed)


def study_of(out: Path, config: Config):
    return record.open_study(config.tune, out)


def test_a_search_ends_with_true_states_and_all_its_files(ray_session, tmp_path):
    config = settings(tune__trials=8)
    summary = run(tmp_path / "s", config)
    table, curves = (rundir.read_csv(tmp_path / "s" / name) for name in (rundir.TRIALS, rundir.CURVES))
    trials = study_of(tmp_path / "s", config).trials

    assert list(table["state"]) == [t.state.name for t in trials]
    assert {"COMPLETE", "PRUNED"} == set(table["state"]) and table["state"][0] == "COMPLETE"
    for frozen in trials:
        own = rundir.read_config(trial_process.folder_of(tmp_path / "s", frozen.number))
        ran = 9 if frozen.state == TrialState.COMPLETE else max(frozen.intermediate_values)
        assert frozen.intermediate_values == pytest.approx(
            {step: curve(own, 0, step - 1) for step in range(1, ran + 1)}
        )
        assert ran < 9 or frozen.state == TrialState.COMPLETE
        assert list(curves[curves["trial"] == frozen.number]["step"]) == list(range(1, ran + 1))
        assert table["param/optim.lr"][frozen.number] == pytest.approx(own.optim.lr) == frozen.params["optim.lr"]
    assert summary == rundir.read_json(tmp_path / "s" / "summary.json")
    assert summary["epochs"] == len(curves) == table["epochs"].sum() < 8 * 9 == summary["epochs_without_pruning"]
    complete = table[table["state"] == "COMPLETE"]
    assert summary["best"]["value"] == complete["value"].max() and summary["default"]["trial"] == 0
    best = overrides.build(overrides.read_toml(tmp_path / "s" / rundir.BEST))
    assert best.optim.lr == pytest.approx(summary["best"]["param/optim.lr"])
    assert (best.chosen.folds, best.chosen.count, best.chosen.seed) == ((0,), 5, 0), "it says by what it was chosen"
    default = {"optim.lr": Config().optim.lr, "loss.focal_gamma": 2.0, "sampler.positive_fraction": 0.5}
    nobody = {"chosen.folds": [], "chosen.count": 0}
    assert overrides.build(default, nobody, base=best) == config
    assert not list((tmp_path / "s").glob("trials/*/fold_*")) and not (tmp_path / "s" / "ray").exists()


def test_failed_trials_are_kept_with_their_error_and_do_not_end_the_search(ray_session, tmp_path):
    gammas = (2.0, 3.0, 3.8, 1.0)
    points = tuple({"loss.focal_gamma": gamma} for gamma in gammas[1:])
    config = settings(tune__trials=4, tune__points=points, tune__prune=False)
    summary = run(tmp_path / "s", config, fit_that_fails)
    table = rundir.read_csv(tmp_path / "s" / rundir.TRIALS)
    assert list(table["param/loss.focal_gamma"]) == list(gammas)
    assert list(table["state"]) == ["COMPLETE", "FAIL", "FAIL", "COMPLETE"]
    assert (summary["complete"], summary["failed"], summary["interrupted"]) == (2, 2, False)
    assert list(table["error"][1:3]) == [
        "ValueError: a gamma of 3.000 is too much",
        "val/score was not a number after 9 epochs",
    ]
    text = (trial_process.folder_of(tmp_path / "s", 1) / "error.txt").read_text()
    assert "Traceback" in text and "is too much" in text

    again = run(tmp_path / "s", config, fit, resume=True, retry_failed=True)
    assert (again["complete"], again["failed"], again["interrupted"]) == (4, 0, False)
    table = rundir.read_csv(tmp_path / "s" / rundir.TRIALS)
    assert list(table["state"]) == ["COMPLETE", "FAIL", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert list(table["param/loss.focal_gamma"][4:]) == [3.0, 3.8] and list(table["retry_of"][4:]) == [1, 2]


def test_a_search_that_was_renamed_goes_on_and_hands_no_result_to_another_sample(ray_session, tmp_path):
    run(tmp_path / "first", settings(tune__trials=2))
    before = rundir.read_csv(tmp_path / "first" / rundir.TRIALS)
    renamed = (tmp_path / "first").rename(tmp_path / "second")
    run(renamed, settings(tune__trials=3), resume=True)
    after = rundir.read_csv(renamed / rundir.TRIALS)
    pd.testing.assert_frame_equal(after.iloc[:2], before, check_dtype=False)
    for number, rate in enumerate(after["param/optim.lr"]):
        assert rundir.read_config(trial_process.folder_of(renamed, number)).optim.lr == pytest.approx(rate)

    # Trial folders of one search beside the study of another, as a careless copy leaves them.
    for name in (rundir.JOURNAL, rundir.STUDY):
        (renamed / name).unlink()
    rundir.create(renamed, settings(tune__trials=1), {"kind": "tune"})
    summary = tune.run_search(renamed, settings(tune__trials=1), fit)
    assert (summary["complete"], summary["failed"]) == (0, 1)
    assert (
        "holds the results of another sample (trial 0 of first-" in rundir.read_csv(renamed / rundir.TRIALS)["error"][0]
    )


def test_a_trial_whose_process_dies_goes_on_from_its_checkpoint(ray_session, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    config = settings(tune__trials=2, tune__prune=False)
    summary = run(tmp_path / "s", config, functools.partial(fit_that_dies_once, marks=marks))
    assert (summary["complete"], summary["failed"]) == (2, 0)
    for epochs in marks.glob("*.epochs"):
        assert epochs.read_text().split() == [str(epoch) for epoch in range(9)]
    assert len(list(marks.glob("*.epochs"))) == 2


def test_a_trial_whose_process_dies_again_and_again_fails(ray_session, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    config = settings(tune__trials=1, resources__max_failures=0)
    summary = run(tmp_path / "s", config, functools.partial(fit_that_dies_once, marks=marks))
    assert (summary["complete"], summary["failed"], summary["best"]) == (0, 1, None)
    assert "died" in (trial_process.folder_of(tmp_path / "s", 0) / "error.txt").read_text()
    assert list(rundir.read_csv(tmp_path / "s" / rundir.TRIALS)["error"]) == ["the trial's process died 1 time(s)"]


def test_a_finished_search_is_not_repeated_and_can_be_made_longer(ray_session, tmp_path):
    first = run(tmp_path / "s", settings(tune__trials=2))
    with pytest.raises(RunDirError, match="--resume"):
        run(tmp_path / "s", settings(tune__trials=2))
    before = rundir.read_csv(tmp_path / "s" / rundir.TRIALS)
    again = run(tmp_path / "s", settings(tune__trials=2), resume=True)
    assert {k: v for k, v in again.items() if k != "finished_at"} == {
        k: v for k, v in first.items() if k != "finished_at"
    }
    longer = run(tmp_path / "s", settings(tune__trials=3), resume=True)
    after = rundir.read_csv(tmp_path / "s" / rundir.TRIALS)
    assert longer["trials"] == 3 and len(after) == 3
    pd.testing.assert_frame_equal(after.iloc[:2], before, check_dtype=False)
    with pytest.raises(RunDirError, match=r"optim\.epochs"):
        run(tmp_path / "s", settings(tune__trials=3, optim__epochs=4), resume=True)


def test_a_trial_may_be_judged_by_several_folds(ray_session, tmp_path):
    config = settings(tune__trials=1, tune__folds=(0, 1), optim__epochs=3)
    run(tmp_path / "s", config)
    (frozen,) = study_of(tmp_path / "s", config).trials
    first, second = (curve(config, fold, 2) for fold in (0, 1))
    assert frozen.value == pytest.approx((first + second) / 2)
    assert frozen.intermediate_values[3] == pytest.approx(first)
    assert frozen.intermediate_values[4] == pytest.approx((first + curve(config, 1, 0)) / 2)
    assert list(rundir.read_csv(tmp_path / "s" / rundir.CURVES)["fold"]) == [0, 0, 0, 1, 1, 1]
    assert list(rundir.read_csv(trial_process.folder_of(tmp_path / "s", 0) / rundir.PREDICTIONS)["fold"]) == [0, 1]


def test_two_objectives_end_in_a_front_and_stop_no_trial(ray_session, tmp_path):
    config = settings(tune__trials=4, tune__metric="val/score,seconds", tune__mode="max,min", optim__epochs=2)
    summary = run(tmp_path / "s", config)
    table = rundir.read_csv(tmp_path / "s" / rundir.TRIALS)
    assert set(table["state"]) == {"COMPLETE"} and set(table["epochs"]) == {2}
    values = table[["value/val/score", "value/seconds"]].to_numpy()
    front = [i for i, (s, t) in enumerate(values) if not any(a >= s and b <= t and (a, b) != (s, t) for a, b in values)]
    assert sorted(point["trial"] for point in summary["pareto"]) == front


def test_a_trial_that_was_killed_after_its_last_epoch_reports_all_again(tmp_path):
    config = settings(optim__epochs=3)
    straight = list(trial_process.epochs(config, tmp_path / "t", fit))
    assert [r["step"] for r in straight] == [1, 2, 3] and [r["finished"] for r in straight] == [False, False, True]
    again = list(trial_process.epochs(config, tmp_path / "t", lambda *_: pytest.fail("nothing is left to train")))
    for key in ("step", "finished", "val/score"):
        assert [result[key] for result in again] == [result[key] for result in straight]


def test_a_result_that_died_on_its_way_to_tune_comes_with_the_next_process(tmp_path):
    config = settings(optim__epochs=4)
    study = record.open_study(config.tune, tmp_path)
    frozen = study.ask()
    for number, result in enumerate(itertools.islice(trial_process.epochs(config, tmp_path / "t", fit), 3)):
        if number < 2:  # the third epoch was written to the trial's folder, and nobody was told
            record.report(frozen, result, ["val/score"])
    totals = []
    for result in trial_process.epochs(config, tmp_path / "t", fit):
        record.report(frozen, result, ["val/score"])
        totals.append(study.trials[0].user_attrs["progress"]["step"])
    assert study.trials[0].intermediate_values == {step: curve(config, 0, step - 1) for step in (1, 2, 3, 4)}
    assert totals == [2, 2, 3, 4]


def test_a_trial_writes_its_state_by_time_and_repeats_what_it_lost_to_the_same_rows(tmp_path, monkeypatch):
    config = settings(optim__epochs=6, tune__save_seconds=3.0)
    clock = iter(float(second) for second in range(10_000))
    monkeypatch.setattr(trial_process.time, "monotonic", lambda: next(clock))
    written = []
    original = checkpoint.Saver.save
    monkeypatch.setattr(
        checkpoint.Saver, "save", lambda self, state: written.append(state["epoch"]) or original(self, state)
    )
    results = trial_process.epochs(config, tmp_path / "t", fit)
    for _ in range(5):
        next(results)
    results.close()
    assert written[0] == 0 and 1 < len(written) < 5
    seen = [result["step"] for result in trial_process.epochs(config, tmp_path / "t", fit)]
    assert seen[:5] == [1, 2, 3, 4, 5] and seen[-1] == 6
    rows = trial_process.read_rows(tmp_path / "t")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["val/score"] for row in rows] == pytest.approx([curve(config, 0, epoch) for epoch in range(6)])


@pytest.mark.parametrize("lost", ["metrics", "checkpoint"])
def test_a_kill_between_two_files_loses_no_epoch_and_repeats_no_row(tmp_path, lost):
    config = settings(optim__epochs=4)
    results = trial_process.epochs(config, tmp_path / "t", fit)
    next(results), next(results)
    results.close()
    if lost == "checkpoint":
        # As if the process had died after the second row was written and before its checkpoint.
        checkpoint.save(tmp_path / "t" / "fold_0" / rundir.CHECKPOINT_LAST, epoch_result(config, 0, 0).state)
    list(trial_process.epochs(config, tmp_path / "t", fit))
    rows = trial_process.read_rows(tmp_path / "t")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["val/score"] for row in rows] == pytest.approx([curve(config, 0, epoch) for epoch in range(4)])
    assert all(a["seconds_total"] <= b["seconds_total"] for a, b in itertools.pairwise(rows))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"tune__metric": "val/scor"}, "did you mean val/score"),
        ({"tune__mode": "best"}, r"tune\.mode"),
        ({"tune__folds": (0, 7)}, "no fold 7"),
        ({"tune__folds": (0, 0)}, "each once"),
        ({"tune__folds": ()}, "at least one fold"),
        ({"tune__points": ({"optim.lr": 9.0},)}, r"tune\.points\[0\]"),
        ({"tune__space": {"optim.lrr": {"uniform": [0, 1]}}}, "did you mean"),
    ],
)
def test_requests_that_cannot_work_are_refused_before_ray_starts(keys, words):
    with pytest.raises(ConfigError, match=words):
        tune.check(settings(**keys))


def test_curves_are_added_to_and_never_written_anew(tmp_path, monkeypatch):
    config = settings(optim__epochs=5)
    for number in (0, 1):
        list(trial_process.epochs(config, trial_process.folder_of(tmp_path, number), fit))
    whole = search_tables.curves_table(tmp_path, [0, 1])
    for number in (0, 1):  # as far as two trials are after two epochs
        rows = whole[(whole["trial"] == number) & (whole["step"] <= 2)].drop(columns="trial")
        rundir.write_csv(trial_process.folder_of(tmp_path, number) / rundir.METRICS, rows)
    rundir.write_csv(tmp_path / rundir.CURVES, search_tables.curves_table(tmp_path, []))
    curves = search_tables.Curves(tmp_path)
    curves.add(0)
    monkeypatch.setattr(rundir, "write_csv", lambda *_: pytest.fail("the curves of all trials were written"))
    curves.add(1), curves.add(1)
    assert (curves.steps(0), curves.steps(1), curves.steps(2)) == (2, 2, 0)
    monkeypatch.undo()
    for number in (1, 0):
        rows = whole[whole["trial"] == number].drop(columns="trial")
        rundir.write_csv(trial_process.folder_of(tmp_path, number) / rundir.METRICS, rows)
        search_tables.Curves(tmp_path).add(number)  # another process goes on
    found = rundir.read_csv(tmp_path / rundir.CURVES).sort_values(["trial", "step"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(found, whole)


def test_lines_of_a_search_say_where_its_trials_are():
    class Box:
        def take(self):
            return [{"trial": 3, "kind": "step", "what": "training", "done": 5, "total": 40, "seconds": 9.0}]

    lines = launch.SearchLines(settings(tune__folds=(0, 1)), Box(), lambda: "waits for 1 GPUs")
    assert lines.status() == "  the next trial waits for 1 GPUs"
    lines.running = {7: 0}
    assert lines.status() == "  trial 7 epoch 1/18; starts its process"
    apart = launch.SearchLines(settings(tune__folds=(0, 1), resources__workers=2), Box(), lambda: "waits for 1 GPUs")
    apart.running = {7: 0}
    assert apart.status() == "  trial 7 epoch 1/18; waits for 1 GPUs"
    lines.running = {3: 10, 7: 0}
    assert lines.status() == "  trial 3 epoch 11/18, training 5/40; 7 epoch 1/18"


@pytest.mark.parametrize(
    ("trials", "sampler", "asked"), [(40, "tpe", 10), (6, "tpe", 2), (1, "tpe", 1), (40, "random", 40)]
)
def test_a_search_asks_for_so_few_trials_at_a_time_that_each_learns_from_others(trials, sampler, asked):
    assert tune._enough(settings(tune__trials=trials, tune__sampler=sampler).tune) == asked


def test_a_search_that_trains_its_best_says_what_it_scores_without_the_folds_that_chose(
    ray_session, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(train, "fit_fold", lambda config, fold, resume, tell, **_: surrogates.fit(config, fold, resume))
    monkeypatch.setattr(train, "_run_fold", fold_without_ray)
    changes = {"folds__count": 3, "tune__folds": (1,), "tune__trials": 2, "tune__space": SPACE, "optim__epochs": 1}
    config, out = small_config(tmp_path, **changes), tmp_path / "search"
    train_best, there = tune._train_best, []
    # The search is to be read whatever becomes of what follows.
    monkeypatch.setattr(tune, "_train_best", lambda *w: there.append((out / rundir.REPORT).exists()) or train_best(*w))
    with caplog.at_level("INFO"):
        summary = tune.tune(write_set(tmp_path / "set", 12), out, config, then_train=True)
    assert there == [True]
    assert "(so few that each learns from those before it; tune.concurrent=2 asks for all)" in caplog.text
    trained = rundir.trained_dir(out, summary["best"]["trial"])
    predictions = rundir.read_csv(trained / rundir.PREDICTIONS)
    assert set(predictions["fold"]) == {0, 1, 2}
    kept = predictions[predictions["fold"] != 1]
    score = metrics.weighted_score(metrics.targets_of(kept), metrics.probabilities_of(kept))
    assert summary["train"]["unpicked"]["folds"] == [0, 2]
    assert summary["train"]["unpicked"]["score"]["value"] == pytest.approx(score)
    assert summary == rundir.read_json(out / rundir.SUMMARY)
    for page in (out, trained):
        assert "Without fold 1, by which the settings were chosen, it is " in (page / rundir.REPORT).read_text()


def test_the_workers_of_a_trial_wait_for_nodes_as_long_as_it_takes(tmp_path, monkeypatch):
    """Ray Train counts a minute without room as a failure."""
    seen = []

    class Trainer:
        def __init__(self, *_, **__):
            pass

        def fit(self):
            seen.append(float(os.environ[WORKER_GROUP_START_TIMEOUT_S_ENV_VAR]))

    monkeypatch.setattr("ray.train.torch.TorchTrainer", Trainer)
    monkeypatch.setattr("ray.tune.integration.ray_train.TuneReportCallback", UserCallback)  # needs a search
    monkeypatch.setenv(WORKER_GROUP_START_TIMEOUT_S_ENV_VAR, "60")
    config = settings(resources__workers=2)
    scaling = survival.scaling(config.resources, {"CPU": 1.0})
    trial_process._train_on_workers(config, tmp_path, fit, scaling, None, {"trial": 0})
    assert seen[0] > 7 * 86400
    elastic = settings(resources__workers=2, resources__min_workers=1).resources
    assert survival.patience(elastic) == {}, "its size is decided anew after a minute, and no wait counted"


def test_objectives_skip_nothing_that_is_not_a_number():
    rows = [{"fold": 0, "epoch": 0, "val/score": 0.5}, {"fold": 1, "epoch": 0, "val/score": math.nan}]
    assert math.isnan(trial_process.objectives(rows, settings())["val/score"])
