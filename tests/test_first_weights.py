"""First weights: each fold starts from its own of a run, and no fold from what has seen its judges; vessels first."""

import json
import logging
import math
import shlex
from pathlib import Path

import pandas as pd
import pytest
import torch
from learning_sets import SMALL, fold_without_ray, small_config, write_set

from aneurysm_ray import rundir
from aneurysm_ray.cli import main
from aneurysm_ray.config import Config
from aneurysm_ray.distributed import first_weights, train
from aneurysm_ray.distributed.fold_lines import FoldLines
from aneurysm_ray.errors import RequestError, RunDirError
from aneurysm_ray.labels import LABELS
from aneurysm_ray.learning import checkpoint, export
from aneurysm_ray.reporting import run_page

GRID = {"model__head": "grid", "optim__epochs": 1, "folds__count": 2}


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set") / "volumes", 12, masks=range(12))


@pytest.fixture(scope="module")
def vessels(ray_session: None, volumes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two folds that learnt vessels alone."""
    out = tmp_path_factory.mktemp("runs") / "vessels"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "_run_fold", fold_without_ray)
        summary = train.train(volumes, out, small_config(volumes, stage="vessels", **GRID), folds="all")
    assert summary["score"]["value"] is None and "learns no aneurysm" in summary["note"]
    return out


def test_every_fold_starts_from_its_own_of_a_run(vessels: Path) -> None:
    states = [first_weights.of_fold(str(vessels), fold) for fold in (0, 1)]
    assert states == [vessels / f"fold_{fold}" / "checkpoint_last" for fold in (0, 1)]
    one, other = (checkpoint.read_weights(state) for state in states)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert first_weights.of_fold(str(states[1]), 0) == states[1]


def test_the_next_command_after_vessels_trains_the_same_network(
    volumes: Path, vessels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    summary = rundir.read_json(vessels / rundir.SUMMARY)
    monkeypatch.setattr(train, "train", lambda *_, **__: summary)
    caplog.set_level("INFO")
    assert main(["train", str(volumes), "stage=vessels", "model.head=grid", "--out", str(vessels)]) == 0
    line = next(line for line in caplog.messages if "--init" in line)
    words = shlex.split(line)[shlex.split(line).index("train") :]
    built: list[Config] = []
    monkeypatch.setattr(train, "train", lambda _, __, config, **more: built.append(config) or summary)
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    before = rundir.read_config(vessels)
    assert built[0].model == before.model and built[0].patch == before.patch
    assert built[0].stage == "lesions" and built[0].init == str(vessels)


def test_no_fold_starts_from_weights_that_know_its_judges(volumes: Path, vessels: Path, tmp_path: Path) -> None:
    dealt = rundir.read_csv(vessels / rundir.FOLDS)
    first = str(vessels / "fold_0" / "checkpoint_last")
    first_weights.check(str(vessels), dealt, [0, 1])
    first_weights.check(first, dealt, [0])
    for init in (first, f"{first}/{checkpoint.STATE}"):
        with pytest.raises(RequestError, match=rf"fold 1 would be judged by 6 patient.*give init={vessels}, trained"):
            first_weights.check(init, dealt, [0, 1])
    with pytest.raises(RequestError, match=r"fold 0 would be judged by .* deal the folds as that run's"):
        first_weights.check(str(vessels), dealt.assign(fold=1 - dealt["fold"]), [0, 1])
    first_weights.check(first, dealt.assign(patient=[f"other {i}" for i in range(len(dealt))]), [0, 1])
    assert (
        main(["train", str(volumes), "--init", first, "--fold", "1", "folds.count=2", "--out", str(tmp_path / "o")])
        == 2
    )


def test_a_fold_does_not_start_from_one_that_is_not_complete(volumes: Path, tmp_path: Path) -> None:
    dealt = pd.DataFrame({"series_uid": ["1", "2"], "patient": ["a", "b"], "fold": [0, 1]})
    rundir.write_csv(tmp_path / rundir.FOLDS, dealt)
    checkpoint.save(tmp_path / "fold_0" / rundir.CHECKPOINT_LAST, {"ema": {}})
    with pytest.raises(RequestError, match=r"its fold 0, .* is not complete; train it to its end first, with --fold 0"):
        first_weights.check(str(tmp_path), dealt, [0])


def test_detection_goes_on_from_vessels_and_no_other_first_weights(
    volumes: Path, vessels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None
) -> None:
    monkeypatch.setattr(train, "_run_fold", fold_without_ray)
    config = small_config(volumes, init=str(vessels), **GRID)
    summary = train.train(volumes, tmp_path / "run", config, folds="0")
    assert summary["score"]["value"] is not None and summary["note"] != ""
    assert first_weights.digest(str(vessels)) != first_weights.digest(str(vessels / "fold_0" / "checkpoint_last"))
    moved = small_config(volumes, init=str(vessels / "fold_0" / "checkpoint_last"), **GRID)
    with pytest.raises(RunDirError, match="init"):
        train.train(volumes, tmp_path / "run", moved, folds="0", resume=True)


def test_a_run_that_learns_vessels_says_nothing_of_aneurysms(volumes: Path, vessels: Path, tmp_path: Path) -> None:
    table = rundir.read_csv(vessels / rundir.PREDICTIONS)
    assert table[[f"target/{label}" for label in LABELS]].isna().all(axis=None)
    assert rundir.read_csv(vessels / rundir.CANDIDATES).empty
    page = run_page.page(vessels)
    titles = [tile.label for tile in page.tiles]
    assert "Vessels' Dice" in titles and not {"Weighted score", "Present AUC", "Sensitivity"} & set(titles)
    said = " ".join(page.summary)
    assert "learns no aneurysm" in said and "false alarm" not in said
    with pytest.raises(RunDirError, match=r"learns no aneurysm, so that it can predict none; `train VOLUMES --init"):
        export.load(vessels)
    with pytest.raises(RequestError, match=r"learns no aneurysm that --test could score"):
        train.train(volumes, tmp_path / "run", small_config(volumes, stage="vessels", **GRID), tests=[volumes])


def test_the_terminal_tells_the_overlap_of_vessels_and_what_to_type_next(
    volumes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ray_session: None,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.INFO, "aneurysm_ray")
    monkeypatch.setattr(train, "_run_fold", fold_without_ray)
    settings = {**SMALL, "stage": "vessels", "feed.cache_dir": f"{volumes}/cache"}
    settings |= {key.replace("__", "."): value for key, value in GRID.items()}
    words = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    assert main(["train", str(volumes), *words, "--out", str(tmp_path / "run")]) == 0
    assert "no score" in capsys.readouterr().out
    run = f"{tmp_path}/run"
    next_one = f"train {volumes} --config {run}/config.toml stage=lesions --init {run}"
    assert any(line.endswith(next_one) for line in caplog.messages), caplog.messages
    lines = FoldLines([0], Config().optim, lambda runs: "")
    epoch = {"epoch": 0.0, "train/loss": 0.5, "val/loss": math.nan, "val/score": 0.254, "seconds": 1.0}
    epoch |= {"patches_per_s": 9.0, "lr": 1e-3}
    lines.read([{"fold": 0, "kind": "epoch", "metrics": epoch}])
    assert "vessels' Dice 0.254 (best 0.254)" in caplog.messages[-1]
