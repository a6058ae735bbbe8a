"""The study and its scheduler, driven as Tune drives them, without Ray: states are true and survive a restart."""

import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState

from aneurysm_ray import overrides
from aneurysm_ray.config import Config
from aneurysm_ray.distributed import record, space
from aneurysm_ray.distributed.searcher import StudyScheduler, StudySearcher
from aneurysm_ray.errors import ConfigError, RequestError


def settings(**tune) -> Config:
    return overrides.build({"optim.epochs": 9}, {f"tune.{key}": value for key, value in tune.items()})


def opened(tmp_path: Path, config: Config) -> StudySearcher:
    study = record.open_study(config.tune, tmp_path)
    parameters = space.parse(config)
    record.enqueue(study, config, parameters)
    return StudySearcher(study, config, parameters)


class Tune:
    """What Tune does with a searcher and its scheduler: a trial begins, its results come in."""

    def __init__(self, searcher: StudySearcher) -> None:
        self.searcher = searcher
        self.scheduler = StudyScheduler(searcher)
        self.trials: dict[str, SimpleNamespace] = {}

    def begin(self, name: str) -> dict:
        sample = self.searcher.suggest(name)
        self.trials[name] = SimpleNamespace(trial_id=name, config=sample)
        self.scheduler.on_trial_add(None, self.trials[name])
        return sample

    def result(self, name: str, found: dict) -> str:
        decision = self.scheduler.on_trial_result(None, self.trials[name], found)
        if decision == "CONTINUE":
            self.searcher.on_trial_result(name, found)
        return decision

    def run(self, name: str, values: list[float]) -> list[str]:
        return [self.result(name, result(step, value)) for step, value in enumerate(values, 1)]


def result(step: int, value: float, **more) -> dict:
    return {"step": step, "val/score": value, "finished": step == 9, "done": False, **more}


def test_the_default_is_trial_0_then_the_points_then_the_sampler(tmp_path):
    searcher = opened(tmp_path, settings(points=[{"optim.lr": 1e-3}]))
    default, point, sampled = (searcher.suggest(name) for name in "abc")
    assert default["number"] == 0 and overrides.build(default["params"], base=searcher.config) == searcher.config
    assert point["params"] == {**default["params"], "optim.lr": 1e-3}
    assert sampled["params"]["optim.lr"] not in (Config().optim.lr, 1e-3)


def test_a_default_outside_the_space_is_tried_all_the_same(tmp_path):
    config = settings(space={"optim.lr": {"loguniform": [1e-3, 1e-2]}, "loss.focal_gamma": {"uniform": [0.0, 4.0]}})
    assert opened(tmp_path, config).suggest("a")["params"] == {"loss.focal_gamma": 2.0}


@pytest.mark.parametrize("point", [{"optim.warmup": 0.1}, {"optim.lr": 1.0}, {"optim.lr": "1e-3"}])
def test_points_outside_the_space_are_refused(point):
    config = settings(points=[point])
    with pytest.raises(ConfigError, match=r"tune.points\[0\]"):
        record.check_points(config, space.parse(config))


def test_states_and_every_intermediate_value_are_true(tmp_path):
    searcher = opened(tmp_path, overrides.build({"resources.max_failures": 0}, base=settings(prune=False)))
    tune = Tune(searcher)
    for name in ("whole", "stopped", "failed", "crashed", "diverged", "cut off"):
        tune.begin(name)
    for step in range(1, 10):
        tune.result("whole", result(step, step / 10))
    searcher.on_trial_complete("whole", result(9, 0.9, done=True))
    tune.result("stopped", result(1, 0.1))
    tune.result("stopped", result(2, 0.2))
    searcher.on_trial_complete("stopped", result(2, 0.2, done=True))
    searcher.on_trial_complete("failed", {"error": "ValueError: no", "done": True})
    searcher.on_trial_complete("crashed", error=True)
    tune.result("diverged", result(1, 0.4))
    searcher.on_trial_complete("diverged", result(2, math.nan, done=True))
    tune.result("cut off", result(1, 0.5))
    searcher.on_trial_complete("cut off", result(1, 0.5))

    found = record.open_study(searcher.config.tune, tmp_path).trials
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

    def run(searcher: StudySearcher, count: int) -> list[dict]:
        samples = []
        for number in range(count):
            samples.append(searcher.suggest(f"t{number}")["params"])
            value = samples[-1]["sampler.positive_fraction"]
            searcher.on_trial_complete(f"t{number}", result(9, value, done=True))
        return samples

    for name in "ab":
        (tmp_path / name).mkdir()
    straight = run(opened(tmp_path / "a", config), 12)
    broken = opened(tmp_path / "b", config)
    first = run(broken, 5)
    cut = broken.suggest("cut")["params"]
    again = opened(tmp_path / "b", config)
    rest = run(again, 7)
    assert rest[0] == cut
    assert first + rest == straight
    assert len({str(sample) for sample in straight}) == 12


def test_tpe_starts_with_points_spread_over_the_space_and_a_random_search_does_not(tmp_path):
    searcher = opened(tmp_path, settings(trials=12, startup_trials=4))
    spread = space.spread(searcher.parameters, 4, searcher.config.tune.seed)
    drawn = [searcher.suggest(f"t{number}")["params"] for number in range(6)]
    assert drawn[1:5] == spread and drawn[5] not in spread
    origins = [trial.user_attrs.get("origin") for trial in searcher.study.trials]
    assert origins == ["default", "start 0", "start 1", "start 2", "start 3", None]
    assert record.startup_trials(settings(trials=7, startup_trials=4).tune) == 3
    (tmp_path / "random").mkdir()
    other = opened(tmp_path / "random", settings(trials=12, sampler="random"))
    assert [trial.user_attrs["origin"] for trial in other.study.trials] == ["default"]


def test_a_trial_that_died_while_it_was_drawn_is_drawn_to_its_end(tmp_path):
    searcher = opened(tmp_path, settings())
    searcher.suggest("default")
    searcher.study.ask().suggest_float("sampler.positive_fraction", 0.2, 0.8)
    assert [trial.number for trial in record.running(searcher.study)] == [0, 1]
    again = opened(tmp_path, searcher.config)
    again.suggest("a")
    assert set(again.suggest("b")["params"]) == set(searcher.config.tune.space)


def test_half_a_line_and_a_dead_lock_do_not_break_the_journal(tmp_path):
    searcher = opened(tmp_path, settings())
    first = searcher.suggest("a")
    journal = tmp_path / "optuna.journal"
    with journal.open("ab") as file:
        file.write(b'{"op_code":8,"worker_id":"x","tri')
    journal.with_name("optuna.journal.lock").symlink_to(journal)
    again = opened(tmp_path, searcher.config)
    assert again.suggest("b") == first
    again.on_trial_complete("b", result(9, 0.5, done=True))
    assert opened(tmp_path, searcher.config).study.trials[0].state == TrialState.COMPLETE


def test_halving_stops_what_lies_below_the_best_third_at_each_rung(tmp_path):
    tune = Tune(opened(tmp_path, settings(grace_epochs=1, reduction_factor=3)))
    for number in range(5):
        tune.begin(f"t{number}")
    assert tune.run("t1", [0.5, 0.5, 0.5]) == ["CONTINUE"] * 3
    # Rung 1 holds 0.5 and then 0.4; the cut lies at two thirds of the way between them.
    assert tune.run("t2", [0.4]) == ["STOP"]
    assert tune.run("t3", [0.47, 0.1]) == ["CONTINUE", "CONTINUE"]
    # 0.1 is below rung 3's only value, 0.5.
    assert tune.run("t4", [0.6, 0.1, 0.1]) == ["CONTINUE", "CONTINUE", "STOP"]


def test_what_is_better_when_it_is_less_is_stopped_when_it_is_more(tmp_path):
    tune = Tune(opened(tmp_path, settings(grace_epochs=1, metric="val/loss", mode="min")))
    tune.begin("default"), tune.begin("a"), tune.begin("b")
    decisions = [
        tune.result(name, {"step": 1, "val/loss": value, "finished": False}) for name, value in (("a", 0.5), ("b", 0.6))
    ]
    assert decisions == ["CONTINUE", "STOP"]


def test_the_default_is_never_stopped_and_a_trial_without_a_number_is(tmp_path):
    tune = Tune(opened(tmp_path, settings(grace_epochs=2)))
    for name in ("default", "a", "b"):
        tune.begin(name)
    tune.run("a", [0.9] * 9)
    assert tune.run("default", [0.1] * 9) == ["CONTINUE"] * 9
    assert tune.run("b", [math.nan, math.nan]) == ["CONTINUE", "STOP"]


def test_no_trial_is_stopped_at_its_last_epoch(tmp_path):
    tune = Tune(opened(tmp_path, settings(grace_epochs=9)))
    for name in ("default", "a", "b"):
        tune.begin(name)
    tune.run("a", [0.9] * 9)
    assert tune.run("b", [0.1] * 9) == ["CONTINUE"] * 9


def test_after_a_restart_trials_are_judged_as_if_there_had_been_none(tmp_path):
    """What the pruner must know is in the study; an epoch that comes again is judged once, one that was lost now."""
    config = settings(grace_epochs=1, reduction_factor=3)
    straight = Tune(opened(tmp_path, config))
    for name in ("default", "a", "b"):
        straight.begin(name)
    straight.run("default", [0.9] * 9)
    assert straight.run("b", [0.95]) == ["CONTINUE"]  # the best after its first epoch; the second was never told
    assert straight.run("a", [0.96, 0.96]) == ["CONTINUE"] * 2
    restarted = Tune(opened(tmp_path, config))
    assert [restarted.begin(name)["number"] for name in ("0", "1", "2")] == [0, 1, 2]
    # Trial 2 at its first epoch: 0.95 would be below the 0.96 that has come since, but was judged then.
    assert restarted.run("2", [0.95, 0.95, 0.4]) == ["CONTINUE", "CONTINUE", "STOP"]
    assert restarted.run("1", [0.96, 0.96, 0.97]) == ["CONTINUE"] * 3
    assert record.open_study(config.tune, tmp_path).trials[2].intermediate_values == {1: 0.95, 2: 0.95, 3: 0.4}


def test_several_objectives_give_a_pareto_front(tmp_path):
    searcher = opened(tmp_path, settings(metric="val/score, seconds", mode="max, min"))
    for number, (score, seconds) in enumerate([(0.8, 5.0), (0.9, 9.0), (0.7, 6.0)]):
        searcher.suggest(f"t{number}")
        searcher.on_trial_complete(f"t{number}", result(9, score, seconds=seconds, done=True))
    assert sorted(trial.number for trial in searcher.study.best_trials) == [0, 1]


@pytest.mark.parametrize("mode", ["best", "max,min,max", ""])
def test_modes_that_do_not_match_the_metrics_are_refused(mode):
    with pytest.raises(ConfigError, match=r"tune\.mode"):
        record.modes(settings(metric="val/score,seconds", mode=mode).tune)


def test_a_search_is_not_its_folders_name(tmp_path):
    first = opened(tmp_path / "first", settings())
    sample = first.suggest("a")
    renamed = (tmp_path / "first").rename(tmp_path / "second")
    assert opened(renamed, settings()).suggest("b") == sample
    copied = shutil.copytree(renamed, tmp_path / "third")
    assert opened(copied, settings()).suggest("c") == sample
    other = opened(tmp_path / "first", settings())
    assert other.study.study_name != sample["study"]


def test_a_database_holds_many_searches_of_one_name(tmp_path):
    config = settings(storage=f"sqlite:///{tmp_path}/s.db")
    places = [tmp_path / name / "search" for name in "ab"]
    for place in places:
        opened(place, config).suggest("a")
    for place in places:
        again = opened(place, config)
        assert len(again.unfinished) == 1 and len(again.study.trials) == 1
        loaded = optuna.load_study(study_name=again.study.study_name, storage=config.tune.storage)
        assert loaded.trials[0].state == TrialState.RUNNING


def test_a_copy_does_not_share_its_originals_study_in_a_database(tmp_path):
    config = settings(storage=f"sqlite:///{tmp_path}/s.db")
    opened(tmp_path / "first", config).suggest("a")
    copy = shutil.copytree(tmp_path / "first", tmp_path / "copy")
    with pytest.raises(RequestError, match=r"copy is a copy of .*first, whose study"):
        opened(copy, config)
    shutil.rmtree(tmp_path / "first")
    assert len(opened(copy, config).unfinished) == 1, "it had only moved"


def test_failed_trials_are_tried_again_when_asked_and_count_once(tmp_path):
    config = overrides.build({"resources.max_failures": 0}, base=settings(trials=3))
    searcher = opened(tmp_path, config)
    samples = {name: searcher.suggest(name) for name in "abc"}
    searcher.on_trial_complete("a", {"error": "OSError: disk full", "done": True})
    searcher.on_trial_complete("b", result(9, 0.5, done=True))
    searcher.on_trial_complete("c", error=True)
    assert searcher.suggest("d") == searcher.FINISHED
    again = opened(tmp_path, config)
    assert record.counted(again.study, ended=True) == 3
    assert record.retry_failed(again.study) == 2
    assert record.counted(again.study) == 1
    retried = {name: again.suggest(name) for name in "ef"}
    assert [sample["number"] for sample in retried.values()] == [3, 4]
    assert [sample["params"] for sample in retried.values()] == [samples["a"]["params"], samples["c"]["params"]]
    assert Tune(again).scheduler.searcher.trials["e"].user_attrs["origin"] == "default", "never stopped, as it was"
    again.on_trial_complete("e", {"error": "OSError: disk full", "done": True})
    again.on_trial_complete("f", result(9, 0.5, done=True))
    assert again.suggest("g") == again.FINISHED
    assert record.retry_failed(again.study) == 1, "only the last try of a sample that failed twice"


def test_a_database_that_cannot_be_opened_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"tune\.storage"):
        opened(tmp_path, settings(storage="nosuch://here"))
