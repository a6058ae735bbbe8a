"""The search space: Tune's words give the distributions that Ray's own converter gives, and nothing else gets in."""

import math
from collections import Counter

import optuna
import pytest
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from aneurysm_ray import overrides
from aneurysm_ray.config import Config
from aneurysm_ray.distributed import space
from aneurysm_ray.errors import ConfigError


def with_space(entries: dict, **more) -> Config:
    return overrides.build({"tune.space": entries, **more})


def draw(config: Config, params: dict | None = None) -> dict:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    if params is not None:
        study.enqueue_trial(params)
    return space.suggest(study.ask(), space.parse(config), config)


@pytest.mark.parametrize(
    ("key", "word", "arguments", "domain"),
    [
        ("optim.lr", "uniform", [1e-4, 1e-2], tune.uniform(1e-4, 1e-2)),
        ("optim.lr", "loguniform", [1e-5, 1e-3], tune.loguniform(1e-5, 1e-3)),
        ("augment.rotate_deg", "quniform", [0, 20, 5], tune.quniform(0, 20, 5)),
        ("optim.batch_size", "randint", [2, 9], tune.randint(2, 9)),
        ("optim.batch_size", "qrandint", [4, 16, 4], tune.qrandint(4, 16, 4)),
        ("optim.batch_size", "lograndint", [1, 64], tune.lograndint(1, 64)),
        ("loss.name", "choice", ["bce", "focal"], tune.choice(["bce", "focal"])),
    ],
)
def test_words_mean_what_they_mean_in_ray_tune(key, word, arguments, domain):
    (parameter,) = space.parse(with_space({key: {word: arguments}}))
    assert parameter.distribution == OptunaSearch.convert_search_space({"p": domain})["p"]


def test_the_default_space_is_the_designs_and_holds_the_default_configuration():
    parameters = space.parse(Config())
    assert [p.key for p in parameters] == [
        "sampler.positive_fraction",
        "loss.focal_gamma",
        "model.name",
        "optim.lr",
        "optim.weight_decay",
    ]
    inside, outside = space.point({}, parameters, Config())
    assert outside == []
    assert inside["model.name"] == "resnet3d18" and inside["optim.lr"] == Config().optim.lr


def test_quantised_logarithmic_draws_are_multiples_within_their_bounds():
    (parameter,) = space.parse(with_space({"optim.lr": {"qloguniform": [0.001, 0.01, 0.002]}}))
    assert [parameter.value(drawn) for drawn in (0.001, 0.0029, 0.0031, 0.0099)] == pytest.approx(
        [0.001, 0.002, 0.004, 0.01]
    )


def test_lists_can_be_chosen_and_survive_as_the_values_they_are():
    config = with_space({"patch.size": {"choice": [[32, 32, 32], [48, 64, 64]]}})
    drawn = draw(config, {"patch.size": "[48, 64, 64]"})
    assert drawn == {"patch.size": [48, 64, 64]}
    assert overrides.build(drawn, base=config).patch.size == (48, 64, 64)


def test_a_conditional_key_is_drawn_only_where_its_condition_holds():
    config = with_space(
        {
            "loss.focal_gamma": {"uniform": [0, 4], "when": {"loss.name": "focal"}},
            "loss.name": {"choice": ["bce", "focal"]},
        }
    )
    assert [p.key for p in space.parse(config)] == ["loss.name", "loss.focal_gamma"]
    assert set(draw(config, {"loss.name": "focal"})) == {"loss.name", "loss.focal_gamma"}
    assert draw(config, {"loss.name": "bce"}) == {"loss.name": "bce"}


def test_a_condition_may_list_values_and_name_a_key_that_is_not_searched():
    entries = {"augment.flip": {"uniform": [0, 1], "when": {"model.name": ["small3d", "resnet3d10"]}}}
    assert draw(with_space(entries)) == {}
    assert set(draw(with_space(entries, **{"model.name": "small3d"}))) == {"augment.flip"}


def test_a_default_outside_the_space_is_named():
    config = with_space({"optim.lr": {"loguniform": [1e-3, 1e-2]}, "model.name": {"choice": ["small3d", "resnet3d10"]}})
    assert space.point({}, space.parse(config), config) == ({}, ["optim.lr", "model.name"])


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({}, "is empty"),
        ({"optim.lrr": {"uniform": [0, 1]}}, "did you mean optim.lr"),
        ({"optim.lr": {"unifrom": [0, 1]}}, "did you mean uniform"),
        ({"optim.lr": {"uniform": [0.1, 1], "choice": [1]}}, "needs one of"),
        ({"optim.lr": {"uniform": [1e-3]}}, "give 2 numbers"),
        ({"optim.lr": {"uniform": [1e-2, 1e-3]}}, "below the upper"),
        ({"optim.lr": {"uniform": ["a", "b"]}}, "uniform"),
        ({"optim.lr": {"loguniform": [0, 1]}}, "above 0"),
        ({"augment.rotate_deg": {"quniform": [0, 20, 3]}}, "does not divide"),
        ({"optim.batch_size": {"qrandint": [1, 8, 3]}}, "does not divide"),
        ({"optim.batch_size": {"randint": [1.5, 4]}}, "whole numbers"),
        ({"loss.name": {"choice": []}}, "give a list"),
        ({"loss.name": {"choice": ["bce", "bce"]}}, "given twice"),
        ({"loss.name": {"choice": ["bce", "dice"]}}, "loss.name = 'dice'"),
        ({"sampler.positive_fraction": {"uniform": [0.2, 1.2]}}, "sampler.positive_fraction = 1.2"),
        ({"optim.batch_size": {"uniform": [2, 8]}}, "optim.batch_size"),
        ({"volume.dtype": {"choice": ["uint8"]}}, "part of the prepared set"),
        ({"resources.workers": {"choice": [1, 2]}}, "share their resources"),
        ({"optim.lr": {"uniform": [1e-4, 1e-3], "when": {"los.name": "bce"}}}, "did you mean loss.name"),
        ({"optim.lr": {"uniform": [1e-4, 1e-3], "when": "focal"}}, "not of the form"),
        (
            {
                "loss.name": {"choice": ["bce", "focal"]},
                "loss.focal_gamma": {"uniform": [0, 4], "when": {"loss.name": "focall"}},
            },
            "did you mean focal",
        ),
        ({"optim.lr": {"uniform": [1e-4, 1e-3], "when": {"loss.name": "dice"}}}, "can never hold: loss.name = 'dice'"),
        ({"optim.lr": {"uniform": [1e-4, 1e-3], "when": {"loss.name": []}}}, r"when loss.name = \[\] can never hold"),
        ({"feed.cache_dir": {"choice": ["/a", "/b"]}}, "share their cache"),
        (
            {
                "optim.batch_size": {"randint": [1, 8]},
                "optim.lr": {"uniform": [1e-4, 1e-3], "when": {"optim.batch_size": [4, 8]}},
            },
            "optim.batch_size = 8 is nothing that tune.space gives",
        ),
        (
            {
                "optim.batch_size": {"randint": [1, 8]},
                "optim.lr": {"uniform": [1e-4, 1e-3], "when": {"optim.batch_size": "four"}},
            },
            "optim.batch_size = 'four' is nothing",
        ),
        (
            {
                "tensorboard": {"choice": [True, False]},
                "optim.lr": {"uniform": [1e-4, 1e-3], "when": {"tensorboard": 1}},
            },
            "tensorboard = 1 is nothing",
        ),
        (
            {
                "loss.name": {"choice": ["bce", "focal"], "when": {"optim.batch_size": 8}},
                "optim.batch_size": {"choice": [4, 8], "when": {"loss.name": "bce"}},
            },
            "wait for each other",
        ),
    ],
)
def test_a_space_that_cannot_work_is_refused_with_its_reason(entries, words):
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        space.parse(with_space(entries))


def test_the_start_covers_every_parameter_evenly() -> None:
    base = overrides.build(
        {
            "tune.space": {
                "optim.lr": {"loguniform": [1e-4, 1e-2]},
                "augment.mixup": {"quniform": [0.0, 0.6, 0.2]},
                "model.name": {"choice": ["resnet3d10", "resnet3d18"]},
                "optim.accumulate": {"randint": [1, 5]},
                "patch.size": {"choice": [[32, 32, 32], [48, 48, 48]]},
            }
        }
    )
    parameters = space.parse(base)
    points = space.spread(parameters, 16, seed=3)
    # 16 points of a Sobol sequence have one in each sixteenth of every axis.
    sixteenths = [int((math.log10(point["optim.lr"]) + 4) / 2 * 16) for point in points]
    assert sorted(sixteenths) == list(range(16))
    assert Counter(round(point["augment.mixup"], 9) for point in points) == {0.0: 4, 0.2: 4, 0.4: 4, 0.6: 4}
    assert Counter(point["model.name"] for point in points) == {"resnet3d10": 8, "resnet3d18": 8}
    assert Counter(point["optim.accumulate"] for point in points) == {1: 4, 2: 4, 3: 4, 4: 4}
    assert Counter(str(point["patch.size"]) for point in points) == {"[32, 32, 32]": 8, "[48, 48, 48]": 8}
    assert space.spread(parameters, 5, seed=3) == points[:5] != space.spread(parameters, 5, seed=4)
    assert space.spread(parameters, 0, seed=3) == []
    for point in points:
        overrides.build(point, base=base)


def test_shares_of_a_logarithmic_whole_number_reach_both_ends() -> None:
    base = overrides.build({"tune.space": {"optim.epochs": {"lograndint": [1, 65]}}})
    (parameter,) = space.parse(base)
    assert [parameter.at(share) for share in (0.0, 0.5, 0.999999)] == [1, 8, 64]
