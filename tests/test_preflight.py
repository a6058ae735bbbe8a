"""What cannot work is said before Ray starts, in words that say what would."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from learning_sets import describe_set, small_config, write_set

from aneurysm_ray import cli, overrides, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.data import store
from aneurysm_ray.distributed import preflight, session, submit, train, tune
from aneurysm_ray.errors import RequestError
from aneurysm_ray.labels import LABELS, PRESENT
from aneurysm_ray.learning import checkpoint


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set"), 12)


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(**_: Any) -> None:
        pytest.fail("Ray was started")

    monkeypatch.setattr(session, "connect", started)
    logging.getLogger("aneurysm_ray").handlers.clear()  # of commands before, with another stderr


def only(volumes: Path, out: Path, keep: Callable[[pd.DataFrame], pd.DataFrame]) -> Path:
    """Write the table of a part of a set, or of a changed one."""
    out.mkdir()
    store.write_table(out, keep(store.volumes_table(volumes)).to_dict("records"))
    describe_set(out, Config())
    return out


def healthy(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(**{label: 0.0 for label in LABELS})


def one_positive(table: pd.DataFrame) -> pd.DataFrame:
    kept = table.assign(**{label: 0.0 for label in LABELS})
    kept.loc[0, PRESENT] = 1.0
    return kept


CASES: list[tuple[Any, dict[str, Any], str]] = [
    (healthy, {}, r"none of 12 labelled series has an aneurysm"),
    (one_positive, {}, r"fold \d would be (judged by|trained on) \d+ series, none of them with an aneurysm: 1 series"),
    (lambda table: table.head(1), {}, "one patient"),
    (lambda table: table.head(3), {"folds.count": 5}, r"3 patients cannot be split into 5 folds; use folds\.count=3"),
    (None, {"model.name": "resnet3d"}, r"model\.name = 'resnet3d' is unknown; did you mean"),
    (None, {"model.head": "grid", "patch.size": [22, 24, 24]}, r"must be multiples of the grid's stride"),
    (None, {"resources.workers": 9}, r"optim\.batch_size = 8 is fewer than one patch for each"),
    (None, {"init": "/no/such/file.pth"}, r"/no/such/file\.pth: cannot be read"),
]

ALIKE = "val/auc/Left Infraclinoid Internal Carotid Artery"


@pytest.mark.parametrize("command", [train.train, tune.tune])
@pytest.mark.parametrize(("keep", "changes", "words"), CASES)
def test_what_cannot_be_learned_is_refused(
    command: Any, keep: Any, changes: dict[str, Any], words: str, volumes: Path, tmp_path: Path
) -> None:
    place = only(volumes, tmp_path / "volumes", keep) if keep else volumes
    config = overrides.build({"folds.count": 3, "tune.folds": [0, 1, 2]}, changes, base=small_config(tmp_path))
    with pytest.raises(RequestError, match=words):
        command(place, tmp_path / "run", config, **({"folds": "all"} if command is train.train else {}))
    assert not (tmp_path / "run").exists()


def test_a_fold_that_is_not_asked_for_may_lack_what_it_needs(volumes: Path, tmp_path: Path) -> None:
    table = one_positive(store.volumes_table(volumes))
    table.loc[1, PRESENT] = 1.0
    dealt = table[["series_uid"]].assign(fold=[0, 1, *[2] * 10])
    preflight.check_labels(table, dealt, [0, 1])
    with pytest.raises(RequestError, match=r"fold 2 would be judged by 10 series"):
        preflight.check_labels(table, dealt, [0, 1, 2])


def test_labels_that_no_trial_is_judged_by_are_said(
    volumes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = healthy(store.volumes_table(volumes))
    table.loc[[0, 1], PRESENT] = 1.0
    table.loc[[0, 2], "Basilar Tip"] = 1.0
    dealt = table[["series_uid"]].assign(fold=[0, 1, *[0] * 5, *[1] * 5])
    assert set(LABELS) - set(preflight.unjudged(table, dealt, [0])) == {PRESENT, "Basilar Tip"}
    assert set(LABELS) - set(preflight.unjudged(table, dealt, [1])) == {PRESENT}
    config = overrides.build({"folds.count": 3}, base=small_config(tmp_path))
    with caplog.at_level("INFO"), pytest.raises(pytest.fail.Exception, match="Ray was started"):
        tune.tune(volumes, tmp_path / "run", config)
    assert "* trials are judged without Left Infraclinoid Internal Carotid Artery, " in caplog.text


@pytest.mark.parametrize("command", [train.train, tune.tune])
@pytest.mark.parametrize(("place", "why"), [("file", "Not a directory"), ("file/run", "Not a directory")])
def test_a_place_that_cannot_be_written_is_refused(
    command: Any, place: str, why: str, volumes: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RequestError, match=f"{place} cannot be written: {why}; choose another --out"):
        command(volumes, tmp_path / place, small_config(tmp_path, folds__count=3))
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize(
    ("keep", "changes", "words"),
    [
        (None, {"tune.metric": f"val/loss,{ALIKE}", "tune.mode": "min,max"}, rf"tune\.metric = {ALIKE} is never"),
        (lambda table: table.assign(**{PRESENT: 1.0}), {"tune.metric": "val/auc_present"}, r"the 4 series of fold 1"),
        (lambda table: table.assign(**{label: 1.0 for label in LABELS}), {}, r"tune\.metric = val/score is never a"),
        (None, {"tune.storage": "sqlite:////nowhere/at/all.db"}, r"tune\.storage = .* cannot be opened: "),
        (None, {"tune.storage": "nosuch://here"}, r"tune\.storage = .* cannot be opened: "),
    ],
)
def test_a_search_that_could_not_be_judged_or_kept_is_refused(
    keep: Any, changes: dict[str, Any], words: str, volumes: Path, tmp_path: Path
) -> None:
    place = only(volumes, tmp_path / "volumes", keep) if keep else volumes
    config = overrides.build({"folds.count": 3, "tune.folds": [1]}, changes, base=small_config(tmp_path))
    with pytest.raises(RequestError, match=words):
        tune.tune(place, tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"model.name": {"choice": ["small3d", "resnet3d81"]}}, r"tune\.space: model\.name = 'resnet3d81': .*unknown"),
        ({"patch.size": {"choice": [[24, 24, 24], [22, 22, 22]]}}, r"tune\.space: patch\.size = \[22, 22, 22\]"),
        (
            {"model.head": {"choice": ["grid", "pooled"]}},
            r"tune\.space: model\.head = 'pooled': stage = \"vessels\" needs",
        ),
        ({"optim.batch_size": {"choice": [1, 8]}}, r"tune\.space: optim\.batch_size = 1: .* fewer than one patch"),
        ({"init": {"choice": ["", "a.pth"]}}, r"tune\.space: init = 'a\.pth': it is relative"),
        ({"init": {"choice": ["", "/no/such.pth"]}}, r"tune\.space: init = '/no/such\.pth': .*cannot be read"),
    ],
)
def test_a_search_whose_samples_could_not_run_is_refused(space: dict[str, Any], words: str, tmp_path: Path) -> None:
    changes = {"folds.count": 3, "model.head": "grid", "resources.workers": 2, "stage": "vessels", "tune.space": space}
    place = write_set(tmp_path / "masked", 6, masks=range(6))
    config = overrides.build(changes, base=small_config(tmp_path))
    with pytest.raises(RequestError, match=words):
        tune.tune(place, tmp_path / "run", config)


def test_a_damaged_state_is_said_at_once(volumes: Path, tmp_path: Path) -> None:
    config = preflight.settled(small_config(tmp_path, folds__count=3))
    dealt = train.begin.deal(volumes, train.begin.labelled(volumes), config)
    train.begin.Run("train", volumes, dealt, tmp_path / "run", config).open()
    last = rundir.fold_dir(tmp_path / "run", 1) / rundir.CHECKPOINT_LAST
    checkpoint.save(last, {"model": {}, "config": {}})
    (last / checkpoint.STATE).write_bytes((last / checkpoint.STATE).read_bytes()[:-30])
    with pytest.raises(RequestError, match=r"fold_1/checkpoint_last/state\.pt: damaged or cut short; remove "):
        train.train(volumes, tmp_path / "run", config, folds="all", resume=True)


def test_files_are_those_of_whoever_typed_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    places = {"init": "weights/a.pth", "feed.cache_dir": "~/cache"}
    places |= {"folds.file": "splits.csv", "prepare.patient_key_file": "key"}
    config = preflight.settled(overrides.build(places))
    assert (config.init, config.feed.cache_dir) == (f"{tmp_path}/weights/a.pth", "/home/somebody/cache")
    assert (config.folds.file, config.prepare.patient_key_file) == (f"{tmp_path}/splits.csv", f"{tmp_path}/key")
    assert preflight.settled(config) == config
    assert preflight.settled(Config()) == Config()
    torch.save({"no": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(RequestError, match=r"a\.pth.*fits the network|hardly any of the file's weights"):
        preflight.check_network(preflight.settled(overrides.build({"init": "a.pth"})), pd.DataFrame(), [0])


@pytest.mark.parametrize("words", [["train", "v"], ["tune", "v"], ["predict", "run", "series"]])
def test_resume_needs_to_know_what(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*words, "--resume"]) == 2
    assert "--resume needs --out, the directory to go on with" in capsys.readouterr().err


@pytest.mark.parametrize(
    "word",
    [
        ["--config", "best.toml"],
        ["--config=best.toml"],
        ["--init", "a.pth"],
        ["init=weights/a.pth"],
        ["feed.cache_dir=cache"],
        ["tune.storage=sqlite:///search.db"],
    ],
)
def test_a_jobs_files_must_lie_where_it_sees_them(word: list[str]) -> None:
    with pytest.raises(RequestError, match="is relative, and a job starts in a folder that is thrown away"):
        submit.check_paths("tune", ["/shared/v", "--out", "/shared/o", *word])
    given = [part.replace("best", "/shared/best").replace("=cache", "=/cache") for part in word]
    given = [part.replace("a.pth", "/shared/a.pth").replace("weights//", "/") for part in given]
    submit.check_paths("tune", ["/shared/v", "--out", "/shared/o", *(p.replace("///s", "////s") for p in given)])
