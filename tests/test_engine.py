import copy
import json
import math
import multiprocessing
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed
from learning_sets import small_config, write_set
from torch import nn

from aneurysm_ray import overrides
from aneurysm_ray.config import Config
from aneurysm_ray.data import store
from aneurysm_ray.errors import AneurysmRayError, ConfigError, RequestError, RunDirError
from aneurysm_ray.labels import LABELS, LOCATIONS, PRESENT
from aneurysm_ray.learning import atlas, checkpoint, engine, epoch, models, objective, profiling, validation
from aneurysm_ray.learning.arithmetic import arithmetic
from aneurysm_ray.learning.cases import from_table
from aneurysm_ray.learning.engine import EpochResult, fit
from aneurysm_ray.learning.sampler import KINDS

WIDE = {
    "optim__epochs": 3,
    "model__head": "grid",
    "model__dropout": 0.1,
    "augment__affine_probability": 0.5,
    "augment__mixup": 0.3,
    "sampler__hard_negative_fraction": 0.4,
    "sampler__hard_negative_every": 1,
}
"""Everything that draws or remembers, switched on."""


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of which every series but two has masks of its vessels."""
    return write_set(tmp_path_factory.mktemp("masked"), 16, masks=range(2, 16))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("volumes"), 16)


def _run(config: Config, volumes: Path, **options: Any) -> list[EpochResult]:
    """Fit on 12 series of a set, validate on 4; states are copied, as a checkpoint would."""
    table = store.volumes_table(volumes)
    return [
        EpochResult(r.epoch, r.metrics, r.predictions, r.candidates, r.heatmaps, copy.deepcopy(r.state))
        for r in fit(config, volumes, table[:12], table[12:], **options)
    ]


@pytest.fixture(scope="module")
def wide(volumes: Path) -> list[EpochResult]:
    """An undisturbed run of all that draws or remembers; to be read only."""
    return _run(small_config(volumes, **WIDE), volumes)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return bool(torch.equal(one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other) or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


PARTS = ("feed", "steps", "validation", "mining", "writing")
CLOCK = ("seconds", "patches_per_s", "data_wait_fraction", *(f"seconds/{part}" for part in PARTS))


def _numbers(result: EpochResult) -> dict[str, float]:
    return {key: value for key, value in result.metrics.items() if key not in CLOCK}


def test_an_epoch_yields_what_the_contract_says(volumes: Path) -> None:
    (result,) = _run(small_config(volumes, optim__epochs=1), volumes, fold=3)
    kinds = {key.removeprefix("train/drawn/") for key in result.metrics if key.startswith("train/drawn/")}
    assert {"point", "anywhere"} <= kinds <= set(KINDS)
    assert set(result.metrics) == {
        *("epoch", "train/loss", "train/skipped", "val/loss", "val/score", "val/dice", "val/auc_present", "lr", *CLOCK),
        *(f"train/{what}/{kind}" for kind in kinds for what in ("drawn", "loss")),
        *(f"val/auc/{label}" for label in LABELS),
    }
    drawn = [result.metrics[f"train/drawn/{kind}"] for kind in kinds]
    losses = [result.metrics[f"train/loss/{kind}"] for kind in kinds]
    assert sum(drawn) == 48
    assert result.metrics["train/loss"] == pytest.approx(np.average(losses, weights=drawn))
    assert result.metrics["val/auc_present"] == result.metrics[f"val/auc/{PRESENT}"]
    assert 0 <= result.metrics["data_wait_fraction"] <= 1
    assert list(result.predictions)[:5] == ["series_uid", "patient", "fold", "modality", "plane"]
    assert list(result.predictions)[5:] == [*LABELS, *(f"target/{label}" for label in LABELS)]
    assert list(result.predictions["series_uid"]) == list(store.volumes_table(volumes)["series_uid"][12:])
    assert (result.predictions["fold"] == 3).all()
    assert set(result.candidates) == {"series_uid", "x_mm", "y_mm", "z_mm", "probability", "location"}
    assert set(result.heatmaps) == set(result.predictions["series_uid"])
    assert all(heat.grid.dtype == np.float16 and heat.affine.shape == (4, 4) for heat in result.heatmaps.values())


def test_equal_seeds_give_equal_runs_and_other_seeds_others(volumes: Path) -> None:
    one, again, other = (_run(small_config(volumes, seed=seed), volumes)[-1] for seed in (0, 0, 1))
    assert _same(one.state["model"], again.state["model"]) and _same(_numbers(one), _numbers(again))
    assert not _same(one.state["model"], other.state["model"])


def test_threads_do_not_change_results(volumes: Path) -> None:
    none, some = (_run(small_config(volumes, feed__threads=threads), volumes)[-1] for threads in (0, 3))
    assert _same(none.state["model"], some.state["model"]) and _same(_numbers(none), _numbers(some))


def test_examples_made_as_on_a_gpu_are_those_made_ahead(
    volumes: Path, wide: list[EpochResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "made_ahead", lambda device: False)
    late = _run(small_config(volumes, **WIDE), volumes)[-1]
    assert _same(wide[-1].state["model"], late.state["model"]) and _same(_numbers(wide[-1]), _numbers(late))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 0.01), ("bfloat16", 0.05)])
def test_a_gpu_learns_as_the_cpu_does(volumes: Path, precision: str, tolerance: float) -> None:
    # What a generator draws differs from device to device: no noise.
    settings = {"model__head": "grid", "augment__affine_probability": 0.5, "augment__noise": 0, "optim__epochs": 1}
    (here,) = _run(small_config(volumes, **settings, optim__precision="float32"), volumes)
    (there,) = _run(small_config(volumes, **settings, optim__precision=precision), volumes, device="cuda")
    assert there.metrics["train/loss"] == pytest.approx(here.metrics["train/loss"], rel=tolerance)
    assert there.metrics["val/loss"] == pytest.approx(here.metrics["val/loss"], rel=5 * tolerance)


@pytest.mark.parametrize("stop", [0, 1])
def test_resume_equals_straight_run(volumes: Path, wide: list[EpochResult], tmp_path: Path, stop: int) -> None:
    checkpoint.save(tmp_path, wide[stop].state)
    resumed = _run(small_config(volumes, **WIDE), volumes, resume=checkpoint.load(tmp_path))
    assert [result.epoch for result in resumed] == list(range(stop + 1, 3))
    for before, after in zip(wide[stop + 1 :], resumed, strict=True):
        assert _same(_numbers(before), _numbers(after))
        for part in ("model", "ema", "optimizer", "hard", "step"):
            assert _same(before.state[part], after.state[part]), part
        pd.testing.assert_frame_equal(before.predictions, after.predictions)
        pd.testing.assert_frame_equal(before.candidates, after.candidates)
    assert len(resumed[-1].state["hard"]) > 0
    assert [row["epoch"] for row in resumed[-1].state["history"]] == [0, 1, 2]


def test_a_finished_run_has_nothing_left(volumes: Path) -> None:
    config = small_config(volumes)
    assert _run(config, volumes, resume=_run(config, volumes)[-1].state) == []


def test_a_state_of_another_network_is_refused(volumes: Path) -> None:
    state = _run(small_config(volumes, optim__epochs=1), volumes)[0].state
    with pytest.raises(RunDirError, match="does not fit this configuration"):
        _run(small_config(volumes, model__width=4), volumes, resume=state)


def test_accumulation_gives_the_same_step(volumes: Path) -> None:
    one_epoch = {**WIDE, "optim__epochs": 1}
    whole, parts = (_run(small_config(volumes, **one_epoch, optim__accumulate=n), volumes)[0] for n in (1, 4))
    assert whole.metrics["train/loss"] == pytest.approx(parts.metrics["train/loss"], rel=2e-3)


def test_gradients_of_micro_batches_add_up(volumes: Path) -> None:
    """One step without momentum or adaptivity would show the gradient; Adam's first moment after one step does."""
    changes = {"optim__epochs": 1, "sampler__patches_per_volume": 1, "optim__batch_size": 12, "optim__clip_norm": 0}
    first, second = (
        _run(small_config(volumes, **changes, optim__accumulate=n), volumes)[0].state["optimizer"]["state"]
        for n in (1, 3)
    )
    assert len(first) > 10
    for index in first:
        torch.testing.assert_close(first[index]["exp_avg"], second[index]["exp_avg"], rtol=1e-3, atol=1e-7)


def _worker(rank: int, folder: Path, volumes: Path, config: Config) -> None:
    """Be one of two ranks and leave what it came to in files."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(minutes=5)
    )
    try:
        result = _run(config, volumes, rank=rank, world_size=2, wrap=nn.parallel.DistributedDataParallel)[-1]
    finally:
        torch.distributed.destroy_process_group()
    kept = {"model": result.state["model"], "metrics": result.metrics, "hard": result.state["hard"]}
    torch.save(kept, folder / f"{rank}.pt")
    result.predictions.to_csv(folder / f"{rank}.csv", index=False)


@pytest.mark.filterwarnings("ignore:Grad strides do not match bucket view strides")  # torch's, of its own speed
def test_two_workers_equal_one_within_float_noise(
    volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two steps an epoch: over many, rounding grows without bound in any training.
    config = small_config(volumes, **{**WIDE, "optim__epochs": 2, "optim__lr": 1e-4, "model__dropout": 0.0})
    single = _run(config, volumes)[-1]
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # torch puts a rank before whatever it says
    other = multiprocessing.get_context("spawn").Process(target=_worker, args=(1, tmp_path, volumes, config))
    other.start()
    _worker(0, tmp_path, volumes, config)  # here, as a process of its own would load torch first
    other.join()
    assert other.exitcode == 0
    workers = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert _same(workers[0]["model"], workers[1]["model"])
    assert _same(*({k: v for k, v in worker["metrics"].items() if k not in CLOCK} for worker in workers))
    for name, value in single.state["model"].items():
        torch.testing.assert_close(workers[0]["model"][name], value, rtol=1e-3, atol=2e-5)
    for key, value in _numbers(single).items():
        assert workers[0]["metrics"][key] == pytest.approx(value, rel=1e-3, nan_ok=True), key
    assert len(workers[0]["hard"]) == len(single.state["hard"]) > 0
    tables = [pd.read_csv(tmp_path / f"{rank}.csv") for rank in range(2)]
    pd.testing.assert_frame_equal(*tables)
    assert list(tables[0]["series_uid"]) == list(single.predictions["series_uid"])
    np.testing.assert_allclose(tables[0][list(LABELS)], single.predictions[list(LABELS)], rtol=5e-3)


def test_it_overfits_eight_volumes(volumes: Path) -> None:
    table = store.volumes_table(volumes)[:8]
    config = small_config(
        volumes, optim__epochs=20, sampler__patches_per_volume=12, augment__flip=0, optim__lr=3e-3, loss__name="bce"
    )
    results = list(fit(config, volumes, table, table))
    assert results[-1].metrics["val/auc_present"] == 1.0
    assert results[-1].metrics["val/score"] > 0.97
    assert results[-1].metrics["train/loss"] < 0.25 * results[0].metrics["train/loss"]


@pytest.mark.slow
def test_shuffled_labels_teach_nothing(tmp_path: Path) -> None:
    """The control's AUC is 0.5 within the interval of a random ranking; the honest run's is far above it."""
    volumes = write_set(tmp_path / "volumes", 80)
    table = store.volumes_table(volumes)
    scores = {}
    for control in ("", "shuffle"):
        config = small_config(tmp_path, optim__epochs=4, control=control)
        scores[control] = [r.metrics["val/auc_present"] for r in fit(config, volumes, table[:40], table[40:])][-1]
    # Standard error of the AUC of 20 random positives and negatives: sqrt((n + m + 1) / (12 n m)) = 0.0925.
    assert abs(scores["shuffle"] - 0.5) < 3 * math.sqrt(41 / (12 * 20 * 20))
    assert scores[""] > 0.9


def test_weights_to_start_from_are_used(volumes: Path) -> None:
    config = small_config(volumes, optim__epochs=1, optim__lr=1e-9)
    trained = _run(small_config(volumes), volumes)[-1].state["model"]
    (result,) = _run(config, volumes, init=trained)
    torch.testing.assert_close(result.state["model"], trained, rtol=1e-4, atol=1e-6)


def test_unknown_targets_are_predicted_but_not_scored(volumes: Path) -> None:
    table = store.volumes_table(volumes)
    unknown = table[12:].copy()
    unknown[list(LABELS)] = np.nan
    (result,) = fit(small_config(volumes, optim__epochs=1), volumes, table[:12], unknown)
    assert len(result.predictions) == 4 and math.isnan(result.metrics["val/score"])
    assert math.isnan(result.metrics["val/loss"])


def test_vessels_are_learnt_from_masks_and_carried_into_detection(masked: Path) -> None:
    """The first stage learns vessels alone; the second starts from it, and knows them from its first step on."""
    changes = {"model__head": "grid", "optim__epochs": 6, "sampler__patches_per_volume": 12, "optim__lr": 5e-3}
    first = _run(small_config(masked, stage="vessels", **changes), masked)
    dices = [result.metrics["val/dice"] for result in first]
    assert dices[-1] > 0.5 and dices[-1] > dices[0]
    assert first[-1].metrics["val/score"] == dices[-1]
    assert first[-1].state["model"]["knows_vessels"] == 1
    (after,) = _run(small_config(masked, **{**changes, "optim__epochs": 1}), masked, init=first[-1].state["model"])
    (scratch,) = _run(small_config(masked, **{**changes, "optim__epochs": 1}), masked)
    assert after.metrics["val/dice"] > scratch.metrics["val/dice"]


def test_too_few_points_leave_the_atlas_of_the_first_weights(volumes: Path) -> None:
    config = small_config(volumes, optim__epochs=1)
    (plain,) = _run(config, volumes)
    assert (plain.state["model"]["atlas"] == 1).all()
    given = torch.rand_like(plain.state["model"]["atlas"])
    (after,) = _run(config, volumes, init={**plain.state["model"], "atlas": given})
    assert torch.equal(after.state["model"]["atlas"], given) and torch.equal(after.state["ema"]["atlas"], given)


def test_enough_points_teach_an_atlas(volumes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atlas, "LEAST_POINTS", 1)
    (result,) = _run(small_config(volumes, optim__epochs=1), volumes)
    cases = from_table(store.volumes_table(volumes)[:12], volumes)
    np.testing.assert_array_equal(result.state["model"]["atlas"].numpy(), atlas.learn(cases))
    assert result.state["model"]["atlas"].min() < 0.5


def test_unmasked_series_say_nothing_of_vessels(masked: Path, volumes: Path) -> None:
    (without,) = _run(small_config(volumes, model__head="grid", optim__epochs=1), volumes)
    assert math.isnan(without.metrics["val/dice"]) and without.state["model"]["knows_vessels"] == 0
    (partly,) = _run(small_config(masked, model__head="grid", optim__epochs=1), masked)
    assert not math.isnan(partly.metrics["val/dice"])
    with pytest.raises(RequestError, match="no training series has a mask of its vessels"):
        _run(small_config(volumes, model__head="grid", stage="vessels"), volumes)
    with pytest.raises(ConfigError, match='stage = "vessels" needs'):
        _run(small_config(masked, stage="vessels"), masked)


def test_resume_and_threads_give_the_same_with_masks(masked: Path, tmp_path: Path) -> None:
    config = small_config(masked, **{**WIDE, "optim__epochs": 2, "augment__mixup": 0.0}, feed__threads=2)
    straight = _run(config, masked)
    checkpoint.save(tmp_path, straight[0].state)
    (resumed,) = _run(config, masked, resume=checkpoint.load(tmp_path))
    assert _same(_numbers(straight[1]), _numbers(resumed))
    assert _same(straight[1].state["model"], resumed.state["model"])


def test_a_set_without_labels_is_refused(volumes: Path) -> None:
    table = store.volumes_table(volumes)
    table[list(LABELS)] = np.nan
    with pytest.raises(RequestError, match="no training series has a known label"):
        list(fit(small_config(volumes), volumes, table[:12], table[12:]))


def test_a_step_without_a_finite_gradient_is_skipped_and_told(volumes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(volumes, optim__epochs=1, optim__ema_decay=0.0, sampler__patches_per_volume=20)
    calls: list[int] = []
    original = objective.patch_losses

    def spoilt(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        losses = original(*arguments)
        return losses * float("nan") if len(calls) == 3 else losses

    monkeypatch.setattr(objective, "patch_losses", spoilt)
    (result,) = _run(config, volumes)
    assert result.metrics["train/skipped"] == 1
    assert all(torch.isfinite(value).all() for value in result.state["model"].values())
    assert math.isfinite(result.metrics["train/loss"]) and len(calls) == 30


def test_settings_that_do_not_fit_are_refused(volumes: Path) -> None:
    with pytest.raises(ConfigError, match=r"patch.size = \[24, 22, 24\] must be multiples"):
        _run(small_config(volumes, model__head="grid", patch__size=(24, 22, 24)), volumes)
    with pytest.raises(ConfigError, match="fewer than one patch per worker"):
        _run(small_config(volumes, optim__batch_size=1), volumes, world_size=2)


def test_a_loss_that_is_no_number_stops_the_run(volumes: Path) -> None:
    with pytest.raises(AneurysmRayError, match="try a smaller"):
        _run(small_config(volumes, optim__lr=1e30, optim__clip_norm=0), volumes)


@pytest.mark.parametrize("head", ["pooled", "grid"])
def test_points_of_masks_which_have_no_location_are_learnt_and_validated(volumes: Path, head: str) -> None:
    table = store.volumes_table(volumes)
    unplaced = [[{**point, "location": ""} for point in points] for points in table["points"]]
    ignored = [[{"z": 5.0, "y": 5.0, "x": 5.0, "location": "", "radius_mm": 2.0}]] * len(table)
    table = table.assign(points=unplaced, ignored=ignored)
    table[list(LOCATIONS)] = np.nan
    config = small_config(volumes, optim__epochs=1, model__head=head)
    (result,) = fit(config, volumes, table[:12], table[12:])
    assert math.isfinite(result.metrics["train/loss"]) and math.isfinite(result.metrics["val/auc_present"])
    assert len(result.predictions) == 4


def test_determinism_settings_are_put_back(volumes: Path) -> None:
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    stream = fit(small_config(volumes), volumes, *(store.volumes_table(volumes)[a:b] for a, b in ((0, 12), (12, 16))))
    next(stream)
    assert torch.are_deterministic_algorithms_enabled() and not memory.fill_uninitialized_memory
    stream.close()  # type: ignore[attr-defined]
    assert (torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory) == before


@pytest.mark.parametrize(
    ("asked", "on_cpu", "on_gpu"),
    [("auto", True, False), ("always", True, True), (True, True, True), (False, False, False)],
)
def test_determinism_is_for_cpus_and_for_who_asks(asked: str | bool, on_cpu: bool, on_gpu: bool) -> None:
    config = overrides.build({"optim.deterministic": asked})
    for device, wanted in (("cpu", on_cpu), ("cuda", on_gpu)):
        with arithmetic(config.optim.deterministic, torch.device(device)):
            assert torch.are_deterministic_algorithms_enabled() == wanted
            assert torch.backends.cudnn.benchmark != wanted


def test_frequencies_are_those_of_the_targets(volumes: Path) -> None:
    cases = from_table(store.volumes_table(volumes), volumes)
    config = small_config(volumes, model__head="grid", sampler__positive_fraction=0.25, sampler__patches_per_volume=8)
    plan = engine._plan(cases, config, 0, 0, ())
    patches, cells = objective.positive_frequencies(cases, plan, config, models.build(config.model))
    assert patches[-1].item() == pytest.approx(0.25, abs=0.04)
    assert patches[:13].sum().item() == pytest.approx(patches[-1].item(), abs=0.01)
    assert 0 < cells[-1] < patches[-1]


def test_only_the_last_validation_is_full(volumes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validations before it are quick, and teach nothing else; with full_every=1 all are full."""
    asked: list[tuple[float, bool]] = []
    original = engine.score_cases

    def counted(networks: Any, cases: Any, cache: Any, config: Config, device: Any) -> Any:
        asked.append((config.inference.overlap, config.inference.flip))
        return original(networks, cases, cache, config, device)

    monkeypatch.setattr(engine, "score_cases", counted)
    changes = {"optim__epochs": 3, "inference__flip": True, "sampler__hard_negative_fraction": 0.0}
    quick = _run(small_config(volumes, **changes), volumes)
    assert asked == [(0.0, False), (0.0, False), (0.25, True)]
    asked.clear()
    full = _run(small_config(volumes, **changes, validation__full_every=1), volumes)
    assert asked == [(0.25, True)] * 3
    assert _same(_numbers(quick[-1]), _numbers(full[-1]))
    assert quick[0].metrics["val/loss"] != full[0].metrics["val/loss"]


def test_a_part_is_validated_at_times_and_all_series_at_the_end(volumes: Path) -> None:
    """validation.series and validation.every change what is looked at, and nothing that is learnt."""
    changes = {"optim__epochs": 4, "sampler__hard_negative_fraction": 0.0}
    all_along = _run(small_config(volumes, **changes), volumes)
    part = _run(small_config(volumes, **changes, validation__series=2, validation__every=2), volumes)
    looked_at = [set(result.predictions["series_uid"]) for result in part]
    assert [len(uids) for uids in looked_at] == [0, 2, 0, len(all_along[-1].predictions)]
    assert looked_at[1] < looked_at[3]
    assert [bool(result.heatmaps) for result in part] == [False, False, False, True]
    assert [math.isnan(result.metrics["val/loss"]) for result in part] == [True, False, True, False]
    assert [r.metrics["train/loss"] for r in part] == [r.metrics["train/loss"] for r in all_along]
    assert _same(_numbers(part[-1]), _numbers(all_along[-1]))


def test_the_part_that_is_validated_holds_every_kind_by_its_share(volumes: Path) -> None:
    (case,) = from_table(store.volumes_table(volumes).head(1), volumes)
    kinds = [("CTA", 1), ("CTA", 0), ("MRA", 1), ("MRA", 0)]
    cases = [
        replace(case, series_uid=f"{kind}{i}", modality=kind[0], targets=np.full(14, kind[1], np.float32))
        for kind, count in zip(kinds, (60, 20, 13, 7), strict=True)
        for i in range(count)
    ]
    chosen = validation.part(cases, 20, (0, 0))
    counts = [sum((c.modality, int(c.targets[-1])) == kind for c in chosen) for kind in kinds]
    for count, wanted in zip(counts, (12, 4, 2.6, 1.4), strict=True):
        assert abs(count - wanted) <= 1
    assert [c.series_uid for c in chosen] == [c.series_uid for c in validation.part(cases, 20, (0, 0))]
    assert {c.series_uid for c in chosen} != {c.series_uid for c in validation.part(cases, 20, (0, 1))}
    assert validation.part(cases, 0, (0, 0)) == validation.part(cases, 200, (0, 0)) == cases


def test_the_parts_of_an_epoch_make_up_its_seconds(volumes: Path) -> None:
    for result in _run(small_config(volumes, sampler__hard_negative_every=1), volumes):
        parts = {part: result.metrics[f"seconds/{part}"] for part in PARTS}
        within = sum(seconds for part, seconds in parts.items() if part != "writing")
        assert 0.9 * result.metrics["seconds"] < within <= result.metrics["seconds"] + 1e-6
        assert min(parts["steps"], parts["validation"], parts["mining"]) > 0


def test_a_profile_tells_the_parts_of_a_step(volumes: Path, tmp_path: Path) -> None:
    config = small_config(volumes, optim__epochs=1, sampler__patches_per_volume=25)
    told: list[int] = []
    with profiling.profiled(tmp_path / "profile", lambda what, done, total: told.append(done)) as tell:
        table = store.volumes_table(volumes)
        list(fit(config, volumes, table[2:], table[:2], tell=tell))
    assert len(told) > profiling.WARM_UP + profiling.STEPS
    found = pd.read_csv(tmp_path / "profile" / profiling.TABLE)
    assert list(found["part"]) == [part for part in epoch.PARTS if part in set(found["part"])]
    assert {"forward", "backward", "optimizer"} <= set(found["part"]) and (found["host_ms"] > 0).all()
    assert found["share"].sum() == pytest.approx(1)
    events = json.loads((tmp_path / "profile" / profiling.TRACE).read_text())["traceEvents"]
    assert sum(event.get("name") == "backward" for event in events) >= profiling.STEPS
