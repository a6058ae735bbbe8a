"""Dotted overrides become a checked configuration, and a configuration round-trips through TOML."""

from pathlib import Path

import pytest

from aneurysm_ray import overrides
from aneurysm_ray.config import Config
from aneurysm_ray.errors import ConfigError


def test_later_layers_win(tmp_path: Path) -> None:
    file = tmp_path / "file.toml"
    file.write_text("[optim]\nlr = 0.5\nepochs = 7\nbatch_size = 5\n")
    config = overrides.load("v3", file, ["optim.epochs=8", "optim.batch_size=6"], optim__batch_size=9)
    assert config.model.name == "resnet3d34"  # preset
    assert config.optim.lr == 0.5  # file over default
    assert config.optim.epochs == 8  # word over file
    assert config.optim.batch_size == 9  # flag over word
    assert config.preset == "v3"


def test_unset_flags_change_nothing() -> None:
    assert overrides.load(None, None, [], optim__epochs=None) == Config()


@pytest.mark.parametrize("name", list(overrides.PRESETS))
def test_configurations_round_trip_through_toml(name: str, tmp_path: Path) -> None:
    config = overrides.load(name, None, ["volume.extent_mm=[100, 110, 120.5]", "seed=3"])
    file = tmp_path / "config.toml"
    file.write_text(overrides.to_toml(config))
    assert overrides.load(None, file) == config


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("optim.lr=1e-4", "optim.lr", 1e-4),
        ("a=true", "a", True),
        ("model.name=resnet3d34", "model.name", "resnet3d34"),
        ("patch.size=[32, 32, 32]", "patch.size", [32, 32, 32]),
        ("feed.cache_dir=/a=b", "feed.cache_dir", "/a=b"),
        ('init="x y"', "init", "x y"),
    ],
)
def test_words_are_read_as_toml_or_text(word: str, key: str, value: object) -> None:
    assert overrides.parse_override(word) == (key, value)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["optim.lrr=1"], "unknown key 'optim.lrr'; did you mean optim.lr?"),
        (["optim.learning_rate=1"], "unknown key 'optim.learning_rate'; optim has epochs, batch_size"),
        (["lr=1"], "unknown key 'lr'; did you mean optim.lr?"),
        (["threads=1"], "unknown key 'threads'; did you mean feed.threads?"),
        (["model.lr=1"], "unknown key 'model.lr'; did you mean optim.lr?"),
        (["los.nme=1"], "unknown key 'los.nme'; did you mean loss.name?"),
        (["optim.lr=-1"], "optim.lr = -1 is not valid"),
        (["optim.lr=nan"], "optim.lr = nan is not valid"),
        (["loss.name=dice"], "loss.name = 'dice' is not valid"),
        (["folds.seed=-1"], "folds.seed = -1 is not valid"),
        (["resources.min_workers=2"], "min_workers = 2 is more than workers = 1"),
        (["resources.gpus_per_worker=1.5"], "gpus_per_worker = 1.5 is more than one GPU, and not a whole number"),
        (["optim"], "not of the form key=value"),
        (["optim=3"], "unknown key 'optim'"),
    ],
)
def test_wrong_words_are_refused_with_the_cure(words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=r".") as caught:
        overrides.load(None, None, words)
    assert sentence in str(caught.value)


def test_files_that_are_not_toml_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("a = = 3")
    with pytest.raises(ConfigError, match="not valid TOML"):
        overrides.load(None, file)
    with pytest.raises(ConfigError, match="cannot be read"):
        overrides.load(None, tmp_path / "absent.toml")


def test_a_search_space_survives_the_file(tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text(
        '[tune.space]\n"optim.lr" = { loguniform = [1e-5, 1e-3] }\n'
        '"loss.focal_gamma" = { uniform = [0, 4], when = { "loss.name" = "focal" } }\n'
    )
    space = overrides.load(None, file).tune.space
    assert space["optim.lr"] == {"loguniform": [1e-5, 1e-3]}
    assert space["loss.focal_gamma"]["when"] == {"loss.name": "focal"}
    assert set(space) == {"optim.lr", "loss.focal_gamma"}


def test_every_field_has_a_meaning() -> None:
    rows = overrides.describe()
    assert len(rows) > 60
    assert [row["key"] for row in rows if not row["meaning"]] == []


def test_a_group_or_a_key_can_be_described() -> None:
    assert [row["key"] for row in overrides.describe("folds")] == [
        *("folds.count", "folds.seed", "folds.by", "folds.file")
    ]
    assert overrides.describe("folds.count")[0]["default"] == "5"
    with pytest.raises(ConfigError, match="did you mean folds"):
        overrides.describe("fold")
