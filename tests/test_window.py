"""The one intensity rule: by hand, the same for whole heads, slabs and padded scans, the same for both dtypes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learning_sets import describe_set
from learning_sets import volume as stored_volume
from numpy.typing import NDArray
from scans import BRAIN, HEAD_RADII_MM, VESSEL, VESSEL_MM, head_hu, mr_head, scan

from aneurysm_ray import overrides
from aneurysm_ray.config import VolumeConfig
from aneurysm_ray.data import store
from aneurysm_ray.data.preprocess import prepare_series
from aneurysm_ray.data.store import PreparedVolume
from aneurysm_ray.data.volume import Volume
from aneurysm_ray.data.window import Window, brain_median, bright_blood, to_uint8
from aneurysm_ray.errors import ConfigError
from aneurysm_ray.learning import ensemble, models
from aneurysm_ray.learning.cache import VolumeCache
from aneurysm_ray.learning.cases import from_table
from aneurysm_ray.learning.patches import cut
from aneurysm_ray.learning.sampler import Plan

FINE = VolumeConfig(extent_mm=(200, 200, 160), spacing_mm=(2.5, 2.5, 2.5))
MR = scan(mr_head, modality="MR")


def test_values_are_windowed_by_hand() -> None:
    hounsfield = np.array([-500, -100, -99, 300, 699, 700, 2000], np.int16)
    # (v + 100) * 255 / 800, to the nearest: -99 is 0.32, 300 is 127.5, 699 is 254.68
    assert to_uint8(hounsfield, Window(-100, 700)).tolist() == [0, 0, 0, 128, 255, 255, 255]
    assert to_uint8(hounsfield.astype(np.float32), Window(-100, 700)).tolist() == [0, 0, 0, 128, 255, 255, 255]
    seen = np.array([3, 200], np.uint8)
    assert to_uint8(seen, Window(0, 1)) is seen


def test_networks_are_shown_a_negative_of_scans_whose_blood_is_dark() -> None:
    greys = np.array([0, 51, 76, 77, 200], np.uint8)
    assert bright_blood(greys, "MRI T2").tolist() == [153, 51, 1, 0, 0]
    for modality in ("CTA", "MRA", "MRI T1post", ""):
        assert bright_blood(greys, modality).tolist() == greys.tolist()


def test_training_and_scoring_are_shown_the_same_negative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A T2 series cut as one patch for training, against what a network is asked when the series is scored."""
    config = overrides.build(
        {"patch.size": (32, 40, 40), "model.width": 4, "model.name": "small3d", "model.head": "grid"},
        {"inference.window": 1},
    )
    prepared = replace(stored_volume(0, True), modality="MRI T2")
    path = store.write_volume(tmp_path, prepared, overrides.volume_identity(config))
    store.write_table(tmp_path, [store.table_row(prepared, path.stat().st_size)])
    describe_set(tmp_path, config)
    asked: list[torch.Tensor] = []
    network = models.build(config.model).eval()
    network.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0]))
    ensemble.score_volume([network], prepared, config, "cpu")
    cases = from_table(store.volumes_table(tmp_path), tmp_path)
    plan = Plan(np.zeros(1, np.int64), np.zeros((1, 3), np.int64), np.zeros(1, np.int64))
    batch = cut(cases, plan, np.arange(1), config.patch.size, VolumeCache(tmp_path / "cache", 0).patch)
    torch.testing.assert_close(asked[0][0, 0], batch.image_BZYX[0] / 255)
    assert (batch.image_BZYX[0].numpy() == bright_blood(prepared.voxels, "MRI T2")).all()


def test_the_brains_median_is_that_of_the_values_around_it() -> None:
    brain = np.linspace(250, 350, 101, dtype=np.float32)
    others = np.concatenate([np.zeros(40), np.full(30, 40), np.full(25, 900)]).astype(np.float32)
    assert brain_median(np.concatenate([brain, others])) == pytest.approx(300, rel=0.01)
    assert brain_median(np.zeros(5, np.float32)) == 1.0


@pytest.mark.parametrize("window", [[5.0, 5.0], [3.0, 1.0]])
@pytest.mark.parametrize("key", ["volume.window_hu", "volume.window_medians"])
def test_a_window_that_does_not_rise_is_refused(key: str, window: list[float]) -> None:
    with pytest.raises(ConfigError, match=f"{key} = .* must be below the second"):
        overrides.build({key: window})


def levels(prepared: PreparedVolume) -> tuple[float, float]:
    """Return what a network sees of brain and of the vessel, with the brain's own fraction of noise averaged out."""
    seen = to_uint8(prepared.voxels, prepared.window)
    z, y, x = np.indices(seen.shape)
    mm = np.stack([z, y, x, np.ones(z.shape)], -1) @ prepared.affine[:3].T
    radius = np.sqrt(((mm / HEAD_RADII_MM) ** 2).sum(-1))
    from_axis = np.hypot(mm[..., 0] - VESSEL_MM[0], mm[..., 2] - VESSEL_MM[2])
    ventricle = (((mm - [0, 10, 30]) / [22.0, 42, 19]) ** 2).sum(-1) < 1
    brain = seen[(radius < 0.8) & (from_axis > 12) & ~ventricle]
    return float(np.median(brain)), float(np.median(seen[(from_axis < 3) & (np.abs(mm[..., 1]) < 45)]))


def _slab(volume: Volume, first: float, share: float = 0.3) -> Volume:
    keep = slice(round(first * volume.shape[0]), round((first + share) * volume.shape[0]))
    affine = volume.affine.copy()
    affine[:3, 3] = volume.origins_mm[keep][0]
    voxels, origins = volume.voxels[keep], volume.origins_mm[keep]
    return replace(volume, voxels=voxels, affine=affine, origins_mm=origins, instances=volume.instances[keep])


def _padded(volume: Volume, *, noisy: bool) -> Volume:
    """Return a scan with half as much again of air on every side."""
    by = [n // 2 for n in volume.shape]
    shape = [n + 2 * a for n, a in zip(volume.shape, by, strict=True)]
    air = np.hypot(*np.random.default_rng(3).normal(0, 25, (2, *shape))) if noisy else np.zeros(shape)
    voxels = np.rint(air).astype(np.int16)
    voxels[tuple(slice(a, a + n) for a, n in zip(by, volume.shape, strict=True))] = volume.voxels
    affine = volume.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.array(by, np.float64)
    origins = np.arange(shape[0])[:, None] * affine[:3, 0] + affine[:3, 3]
    return replace(volume, voxels=voxels, affine=affine, origins_mm=origins, instances=(("1", 0),) * shape[0])


COVERAGES = {
    "middle 30 %": _slab(MR, 0.3),
    "30 % from the middle up": _slab(MR, 0.38),
    "upper half": _slab(MR, 0.4, 0.6),
    "padded with zeros": _padded(MR, noisy=False),
    "padded with noise": _padded(MR, noisy=True),
    "in other units": replace(MR, voxels=MR.voxels * np.float32(0.0371)),
    "in large units": replace(MR, voxels=MR.voxels * np.float32(1234.5)),
    "below zero": replace(MR, voxels=(MR.voxels - np.int16(1024))),
    "coronal": scan(
        mr_head, rows=(0, 0, -1), step=(0, 3, 0), first=(-125, -120, 125), shape=(80, 95, 100), modality="MR"
    ),
}


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
@pytest.mark.parametrize("name", COVERAGES)
def test_mr_tissue_has_one_value_however_much_of_the_head_a_scan_covers(name: str, dtype: str) -> None:
    config = FINE.model_copy(update={"dtype": dtype})
    brain, vessel = levels(prepare_series(MR, FINE))
    assert brain == pytest.approx(255 / FINE.window_medians[1], rel=0.03)
    assert vessel / brain == pytest.approx(VESSEL / BRAIN, rel=0.03)
    other_brain, other_vessel = levels(prepare_series(COVERAGES[name], config))
    assert other_brain == pytest.approx(brain, rel=0.03)
    assert other_vessel == pytest.approx(vessel, rel=0.03)


def _variant(volume: Volume, scale: float, dtype: type) -> Volume:
    voxels: NDArray[np.float64] = volume.voxels.astype(np.float64) * scale
    return replace(volume, voxels=(np.rint(voxels) if dtype is np.int16 else voxels).astype(dtype))


@pytest.mark.parametrize(
    "volume",
    [
        scan(lambda mm: head_hu(mm) + np.random.default_rng(1).normal(0, 40, mm.shape[:-1])),
        MR,
        _variant(MR, 0.05, np.int16),
        _variant(MR, 0.0371, np.float32),
        _variant(MR, 5e4, np.float32),
        _variant(MR, 20, np.int16),
    ],
    ids=["CT", "MR", "MR of few values", "MR of fractions", "MR of large values", "MR of many values"],
)
def test_int16_and_uint8_sets_give_the_same_patch(volume: Volume, tmp_path: Path) -> None:
    patches = []
    for dtype in ("uint8", "int16"):
        config = overrides.build({"volume.spacing_mm": [2.5] * 3, "volume.dtype": dtype})
        prepared = prepare_series(volume, config.volume)
        assert prepared.voxels.dtype == np.dtype(dtype)
        path = store.write_volume(tmp_path / dtype, prepared, overrides.volume_identity(config))
        store.write_table(tmp_path / dtype, [store.table_row(prepared, path.stat().st_size)])
        describe_set(tmp_path / dtype, config)
        cases = from_table(store.volumes_table(tmp_path / dtype), tmp_path / dtype)
        plan = Plan(np.zeros(3, np.int64), np.array([[0, 0, 0], [9, 20, 15], [30, 40, 25]]), np.zeros(3, np.int64))
        cache = VolumeCache(tmp_path / "cache", 10**9)
        patches.append(cut(cases, plan, np.arange(3), (24, 32, 32), cache.patch).image_BZYX.numpy().astype(int))
    assert np.abs(patches[0] - patches[1]).max() <= 1
    assert np.ptp(patches[0]) > 60


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(-3000, 3000, width=32), min_size=2, max_size=30),
    low=st.floats(-500, 500),
    span=st.floats(64, 5000),
)
def test_windowing_rises_with_the_values_and_undoes_itself(values: list[float], low: float, span: float) -> None:
    window = Window(low, low + span)
    given_values = np.sort(np.array(values, np.float32))
    seen = to_uint8(given_values, window)
    assert (np.diff(seen.astype(int)) >= 0).all()
    back = window.low + seen / 255 * span
    inside = (given_values >= window.low) & (given_values <= window.high)
    assert np.abs(back - given_values)[inside].max(initial=0) <= span / 255 * 0.51
