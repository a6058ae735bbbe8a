"""The study and its scheduler, driven as Tune drives them, without Ray: states are true and survive a restart."""

import math
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState

from aneurysm_ray import overrides
from aneurysm_ray.config import Config
from aneurysm_ray.distributed import search, space
from aneurysm_ray.errors import ConfigError, RequestError


def settings(**tune) -> Config:
    return overrides.build({"optim.epochs": 9}, {f"tune.{key}": value for key, value in tune.items()})


def opened(tmp_path: Path, config: Config, *, resume: bool = False) -> search.StudySearch:
    study = search.open_study(config.tune, tmp_path / "optuna.journal", "s", resume=resume)
    parameters = space.parse(config)
    search.enqueue(study, config, parameters)
    return search.StudySearch(study, config, parameters)


def result(step: int, value: float, **more) -> dict:
    return {"step": step, "val/score": value, "finished": step == 9, "done": False, **more}


def test_the_default_is_trial_0_then_the_points_then_the_sampler(tmp_path):
    searcher = opened(tmp_path, settings(points=[{"optim.lr": 1e-3}]))
    default, point, sampled = (searcher.suggest(name) for name in "abc")
    assert default["number"] == 0 and overrides.build(default["params"], base=searcher.config) == searcher.config
    assert point["params"] == {**default["params"], "optim.lr": 1e-3}
    assert sampled["params"]["optim.lr"] not in (3e-4, 1e-3)


def test_a_default_outside_the_space_is_tried_all_the_same(tmp_path):
    config = settings(space={"optim.lr": {"loguniform": [1e-3, 1e-2]}, "loss.focal_gamma": {"uniform": [0.0, 4.0]}})
    assert opened(tmp_path, config).suggest("a")["params"] == {"loss.focal_gamma": 2.0}


@pytest.mark.parametrize("point", [{"optim.warmup": 0.1}, {"optim.lr": 1.0}])
def test_points_outside_the_space_are_refused(point):
    config = settings(points=[point])
    with pytest.raises(ConfigError, match=r"tune.points\[0\]"):
        search.check_points(config, space.parse(config))


def test_states_and_every_intermediate_value_are_true(tmp_path):
    searcher = opened(tmp_path, overrides.build({"resources.max_failures": 0}, base=settings()))
    for name in ("whole", "stopped", "failed", "crashed", "diverged", "cut off"):
        searcher.suggest(name)
    for step in range(1, 9):
        searcher.on_trial_result("whole", result(step, step / 10))
    searcher.on_trial_complete("whole", result(9, 0.9, done=True))
    searcher.on_trial_result("stopped", result(1, 0.1))
    # The report on which the scheduler stops a trial reaches a searcher only here.
    searcher.on_trial_complete("stopped", result(2, 0.2, done=True))
    searcher.on_trial_complete("failed", {"error": "ValueError: no", "done": True})
    searcher.on_trial_complete("crashed", error=True)
    searcher.on_trial_result("diverged", result(1, 0.4))
    searcher.on_trial_complete("diverged", result(2, math.nan, done=True))
    searcher.on_trial_result("cut off", result(1, 0.5))
    searcher.on_trial_complete("cut off", result(1, 0.5))

    found = search.open_study(searcher.config.tune, tmp_path / "optuna.journal", "s", resume=True).trials
    assert [t.state.name for t in found] == ["COMPLETE", "PRUNED", "FAIL", "FAIL", "FAIL", "RUNNING"]
    assert found[0].value == 0.9 and found[0].intermediate_values == {step: step / 10 for step in range(1, 10)}
    assert found[1].intermediate_values == {1: 0.1, 2: 0.2}
    assert "ValueError: no" in found[2].user_attrs["error"]
    assert "process died" in found[3].user_attrs["error"]
    assert "not a number after 2 epochs" in found[4].user_attrs["error"]
    assert found[5].intermediate_values == {1: 0.5}


def test_the_search_ends_at_the_number_of_trials_failed_ones_included(tmp_path):
    searcher = opened(tmp_path, settings(trials=2))
    searcher.suggest("a")
    searcher.on_trial_complete("a", {"error": "ValueError: no", "done": True})
    searcher.suggest("b")
    assert searcher.suggest("c") is None
    searcher.on_trial_complete("b", result(9, 0.5, done=True))
    assert searcher.suggest("c") == searcher.FINISHED


def test_a_trial_whose_process_died_is_handed_out_again_until_it_has_died_too_often(tmp_path):
    searcher = opened(tmp_path, overrides.build({"resources.max_failures": 2}, base=settings(trials=1)))
    for attempt in range(3):
        assert searcher.suggest(f"t{attempt}")["number"] == 0
        assert searcher.suggest("other") is None
        searcher.on_trial_complete(f"t{attempt}", error=True)
    assert searcher.suggest("t3") == searcher.FINISHED
    assert searcher.study.trials[0].state == TrialState.FAIL
    assert searcher.study.trials[0].user_attrs["error"] == "the trial's process died 3 time(s)"


def test_a_reopened_search_first_goes_on_with_what_was_cut_off_then_draws_what_it_would_have_drawn(tmp_path):
    config = settings(trials=12, startup_trials=2)

    def run(searcher: search.StudySearch, count: int) -> list[dict]:
        samples = []
        for number in range(count):
            samples.append(searcher.suggest(f"t{number}"))
            value = samples[-1]["params"]["sampler.positive_fraction"]
            searcher.on_trial_complete(f"t{number}", result(9, value, done=True))
        return samples

    for name in "ab":
        (tmp_path / name).mkdir()
    straight = run(opened(tmp_path / "a", config), 12)
    broken = opened(tmp_path / "b", config)
    first = run(broken, 5)
    cut = broken.suggest("cut")
    again = opened(tmp_path / "b", config, resume=True)
    rest = run(again, 7)
    assert rest[0] == cut
    assert first + rest == straight
    assert len({str(sample["params"]) for sample in straight}) == 12


def test_tpe_starts_with_points_spread_over_the_space_and_a_random_search_does_not(tmp_path):
    searcher = opened(tmp_path, settings(trials=12, startup_trials=4))
    spread = space.spread(searcher.parameters, 4, searcher.config.tune.seed)
    drawn = [searcher.suggest(f"t{number}")["params"] for number in range(6)]
    assert drawn[1:5] == spread and drawn[5] not in spread
    origins = [trial.user_attrs.get("origin") for trial in searcher.study.trials]
    assert origins == ["default", "start 0", "start 1", "start 2", "start 3", None]
    assert search.startup_trials(settings(trials=7, startup_trials=4).tune) == 3
    (tmp_path / "random").mkdir()
    other = opened(tmp_path / "random", settings(trials=12, sampler="random"))
    assert [trial.user_attrs["origin"] for trial in other.study.trials] == ["default"]


def test_a_trial_that_died_while_it_was_drawn_is_drawn_to_its_end(tmp_path):
    searcher = opened(tmp_path, settings())
    searcher.suggest("default")
    searcher.study.ask().suggest_float("sampler.positive_fraction", 0.2, 0.8)
    assert [trial.number for trial in search.running(searcher.study)] == [0, 1]
    again = opened(tmp_path, searcher.config, resume=True)
    again.suggest("a")
    assert set(again.suggest("b")["params"]) == set(searcher.config.tune.space)


def test_half_a_line_and_a_dead_lock_do_not_break_the_journal(tmp_path):
    searcher = opened(tmp_path, settings())
    searcher.suggest("a")
    journal = tmp_path / "optuna.journal"
    with journal.open("ab") as file:
        file.write(b'{"op_code":8,"worker_id":"x","tri')
    journal.with_name("optuna.journal.lock").symlink_to(journal)
    again = opened(tmp_path, searcher.config, resume=True)
    assert again.suggest("b") == {"number": 0, "params": again.study.trials[0].params}
    again.on_trial_complete("b", result(9, 0.5, done=True))
    assert opened(tmp_path, searcher.config, resume=True).study.trials[0].state == TrialState.COMPLETE


def decide(scheduler: search.StudyASHA, number: int, values: list[float], start: int = 1) -> list[str]:
    trial = SimpleNamespace(trial_id=f"t{number}", config={"number": number})
    scheduler.on_trial_add(None, trial)
    steps = enumerate(values, start)
    return [scheduler.on_trial_result(None, trial, result(step, value)) for step, value in steps]


def test_halving_stops_what_lies_below_the_best_third_at_each_rung(tmp_path):
    study = search.open_study(settings().tune, tmp_path / "optuna.journal", "s", resume=False)
    scheduler = search.StudyASHA(study, settings(grace_epochs=1, reduction_factor=3))
    assert decide(scheduler, 1, [0.5, 0.5, 0.5]) == ["CONTINUE"] * 3
    # Rung 1 holds 0.5 and then 0.4; the cut lies at two thirds of the way between them.
    assert decide(scheduler, 2, [0.4]) == ["STOP"]
    assert decide(scheduler, 3, [0.47, 0.1]) == ["CONTINUE", "CONTINUE"]
    # 0.1 is below rung 3's only value, 0.5.
    assert decide(scheduler, 4, [0.6, 0.1, 0.1]) == ["CONTINUE", "CONTINUE", "STOP"]


def test_the_default_is_never_stopped_and_a_trial_without_a_number_is(tmp_path):
    study = search.open_study(settings().tune, tmp_path / "optuna.journal", "s", resume=False)
    scheduler = search.StudyASHA(study, settings(grace_epochs=2))
    decide(scheduler, 1, [0.9] * 9)
    assert decide(scheduler, 0, [0.1] * 9) == ["CONTINUE"] * 9
    assert decide(scheduler, 2, [math.nan, math.nan]) == ["CONTINUE", "STOP"]


def test_after_a_restart_halving_decides_as_if_there_had_been_none(tmp_path):
    config = settings(grace_epochs=1, reduction_factor=3)
    searcher = opened(tmp_path, config)
    straight = search.StudyASHA(searcher.study, config)
    for number, values in enumerate([[0.5, 0.5, 0.6], [0.9, 0.9, 0.9], [0.8, 0.8]]):
        searcher.suggest(f"t{number}")
        decide(straight, number, values)
        for step, value in enumerate(values, 1):
            searcher.on_trial_result(f"t{number}", result(step, value))
        if number < 2:
            searcher.on_trial_complete(f"t{number}", result(len(values), values[-1], done=True))
    again = opened(tmp_path, config, resume=True)
    restarted = search.StudyASHA(again.study, config)
    rungs = [sorted(recorded.values()) for _, recorded in restarted._brackets[0]._rungs]
    assert rungs == [[], [0.6, 0.9], [0.5, 0.8, 0.9]]
    assert rungs == [sorted(recorded.values()) for _, recorded in straight._brackets[0]._rungs]
    trial = SimpleNamespace(trial_id="new", config={"number": 2})
    restarted.on_trial_add(None, trial)
    assert restarted.on_trial_result(None, trial, result(3, 0.7)) == "STOP"


def test_epochs_that_come_again_after_a_restart_are_judged_once_and_a_lost_one_now(tmp_path):
    config = settings(grace_epochs=1, reduction_factor=3)
    searcher = opened(tmp_path, config)
    for number, values in enumerate([[0.9] * 9, [0.5]]):
        searcher.suggest(f"t{number}")
        for step, value in enumerate(values, 1):
            searcher.on_trial_result(f"t{number}", result(step, value))
    restarted = search.StudyASHA(opened(tmp_path, config, resume=True).study, config)
    # Rung 1 knew trial 1 at 0.5, which may not be judged again; its 0.4 at rung 3 had died on its way to the study.
    assert decide(restarted, 1, [0.5, 0.5, 0.4]) == ["CONTINUE", "CONTINUE", "STOP"]
    assert [sorted(recorded.values()) for _, recorded in restarted._brackets[0]._rungs[1:]] == [[0.4, 0.9], [0.5, 0.9]]


def test_several_objectives_give_a_pareto_front(tmp_path):
    searcher = opened(tmp_path, settings(metric="val/score, seconds", mode="max, min"))
    for number, (score, seconds) in enumerate([(0.8, 5.0), (0.9, 9.0), (0.7, 6.0)]):
        searcher.suggest(f"t{number}")
        searcher.on_trial_complete(f"t{number}", result(9, score, seconds=seconds, done=True))
    assert sorted(trial.number for trial in searcher.study.best_trials) == [0, 1]


@pytest.mark.parametrize("mode", ["best", "max,min,max", ""])
def test_modes_that_do_not_match_the_metrics_are_refused(mode):
    with pytest.raises(ConfigError, match=r"tune\.mode"):
        search.modes(settings(metric="val/score,seconds", mode=mode).tune)


def test_a_database_holds_the_study_and_a_second_search_of_its_name_is_refused(tmp_path):
    config = settings(storage=f"sqlite:///{tmp_path}/s.db")
    opened(tmp_path, config).suggest("a")
    assert optuna.load_study(study_name="s", storage=config.tune.storage).trials[0].state == TrialState.RUNNING
    with pytest.raises(RequestError, match="already holds a study"):
        opened(tmp_path, config)
    assert len(opened(tmp_path, config, resume=True).unfinished) == 1


def test_a_database_that_cannot_be_opened_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"tune\.storage"):
        opened(tmp_path, settings(storage="nosuch://here"))
