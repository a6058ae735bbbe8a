"""The lesion atlas, against cases whose answer is known, and in a score."""

from pathlib import Path

import numpy as np
import pytest
import torch

from aneurysm_ray import overrides
from aneurysm_ray.data.store import PreparedVolume
from aneurysm_ray.labels import LABELS, PRESENT_INDEX
from aneurysm_ray.learning import atlas, ensemble, models
from aneurysm_ray.learning.cases import IGNORED, Case

SHAPE = (90, 95, 75)
SPACING_MM = 2.0


def case(points: np.ndarray, label: int = PRESENT_INDEX, shape: tuple[int, int, int] = SHAPE) -> Case:
    affine = np.zeros((4, 4))
    affine[[0, 1, 2, 3], [2, 1, 0, 3]] = SPACING_MM, SPACING_MM, SPACING_MM, 1.0
    return Case(
        "1.1", "p", "CTA", "axial", Path(), shape, affine, np.ones(len(LABELS), np.float32),
        points.astype(np.float32).reshape(-1, 3), np.full(len(points), label), np.full(len(points), np.nan, np.float32),
    )  # fmt: skip


def around(centre: tuple[float, float, float], spread: float, count: int = 200) -> np.ndarray:
    return np.random.default_rng(0).normal(centre, spread, (count, 3))


def at(values: np.ndarray, voxel: tuple[float, float, float]) -> float:
    found = atlas.on_cells(values, np.array(voxel), np.ones(3), (1, 1, 1), SHAPE)
    return float(found[0, 0, 0])


def test_it_is_one_where_aneurysms_are_usual_and_falls_with_distance() -> None:
    learnt = atlas.learn([case(around((30, 35, 37), 4))])
    assert learnt is not None and learnt.shape == (atlas.SIZE,) * 3 and learnt.dtype == np.float32
    assert learnt.min() >= 0 and learnt.max() == 1
    usual = around((30, 35, 37), 4, 50)
    assert np.mean([at(learnt, tuple(point)) > 0.99 for point in usual]) > 0.9
    away = [at(learnt, (30 + mm / SPACING_MM, 35, 37)) for mm in (0, 30, 45, 60, 90)]
    assert away[0] == 1 and all(np.diff(away[1:]) < 0) and away[-1] < 0.01


def test_a_place_is_a_share_of_the_region() -> None:
    halved = (SHAPE[0] // 2, SHAPE[1], SHAPE[2])
    points = around((30, 35, 37), 4)
    of_half = points * (0.5, 1, 1)
    whole, half = atlas.learn([case(points)]), atlas.learn([case(of_half, shape=halved)])
    assert whole is not None and half is not None
    assert np.unravel_index(np.argmax(whole >= 1), whole.shape)[1:] == pytest.approx(
        np.unravel_index(np.argmax(half >= 1), half.shape)[1:], abs=1
    )
    assert at(whole, (30, 35, 37)) == at(half, (30, 35, 37)) == 1


@pytest.mark.parametrize(
    "cases",
    [
        [],
        [case(around((30, 35, 37), 4, atlas.LEAST_POINTS - 1))],
        [case(around((30, 35, 37), 4), IGNORED)],
        [case(around((-300, 35, 37), 4))],
    ],
    ids=["no series", "too few", "ignored", "outside"],
)
def test_nothing_is_learnt_from_too_little(cases: list[Case]) -> None:
    assert atlas.learn(cases) is None


@pytest.mark.parametrize("head", ["grid", "pooled"])
def test_a_score_is_the_networks_times_the_atlas(head: str) -> None:
    changes = {"model.name": "small3d", "model.width": 4, "model.head": head, "patch.size": [16, 16, 16]}
    config = overrides.build({**changes, "inference.flip": False})
    torch.manual_seed(0)
    network = models.build(config.model).eval()
    network.atlas.copy_(torch.linspace(0, 1, atlas.SIZE)[:, None, None])
    voxels = np.random.default_rng(0).integers(0, 255, (48, 40, 32), dtype=np.uint8)
    volume = PreparedVolume(
        series_uid="1.1", patient="p", modality="CTA", plane="axial", voxels=voxels, affine=np.eye(4),
        targets=np.zeros(len(LABELS), np.float32), points=(), quality=(), source_digest="",
    )  # fmt: skip
    with_it = ensemble.score_volume([network], volume, config, "cpu").heatmap
    without = ensemble.score_volume([network], volume, overrides.build({"inference.atlas": False}, base=config), "cpu")
    # Along z the atlas rises by 1 over its cells' centres: at share s of the volume it is s * SIZE - 0.5 of SIZE - 1.
    cells = np.arange(len(with_it.grid))
    to_voxel = with_it.affine
    share = (np.array([(to_voxel @ (cell, 0, 0, 1))[0] for cell in cells]) + 0.5) / 48
    wanted = np.clip((share * atlas.SIZE - 0.5) / (atlas.SIZE - 1), 0, 1)
    expected = without.heatmap.grid.astype(np.float64) * wanted[:, None, None]
    np.testing.assert_allclose(with_it.grid, expected, rtol=2e-3, atol=1e-4)
