import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from learning_sets import SMALL, volume
from torch import Tensor, nn

from aneurysm_ray import overrides
from aneurysm_ray.config import Config, ModelConfig
from aneurysm_ray.labels import LOCATIONS, MIRRORED, PRESENT_INDEX
from aneurysm_ray.learning import ensemble, models, windows

LEFT, RIGHT = LOCATIONS.index("Left Middle Cerebral Artery"), LOCATIONS.index("Right Middle Cerebral Artery")


def _config(**changes: object) -> Config:
    return overrides.build(SMALL, {key.replace("__", "."): value for key, value in changes.items()})


class Brightness(models.Backbone):
    """A backbone whose feature is the mean of each cell's voxels, and the mean of its right half (low x)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.channels, self.strides = (2,), (stride,)

    def forward(self, image: Tensor) -> list[Tensor]:
        half = image.clone()
        half[..., image.shape[-1] // 2 :] = 0
        return [nn.functional.avg_pool3d(torch.cat([image, half], 1), self.strides[0])]


def _brightness(stride: int = 8, *, pooled: bool) -> models.Network:
    """A network whose present logit is 10 × brightness - 5 and whose right MCA answers to the right half only."""
    config = ModelConfig(head="pooled" if pooled else "grid", output_stride=stride)
    network = models.Network(Brightness(stride), config)
    network.head.weight.data.zero_()
    network.head.weight.data[PRESENT_INDEX, 0] = 10
    network.head.weight.data[RIGHT, 1] = 10
    network.head.bias.data.fill_(-5)  # type: ignore[union-attr]
    return network.eval()


@pytest.mark.parametrize(
    ("shape", "overlap", "stride", "pooled"),
    [
        ((32, 40, 40), 0.5, 8, True),
        ((33, 41, 95), 0.5, 8, False),
        ((10, 24, 25), 0.25, 4, False),
        ((10, 24, 25), 0.0, 16, True),
        ((160, 200, 160), 0.6, 8, False),
    ],
)
def test_windows_cover_everything_and_stay_inside(
    shape: tuple[int, int, int], overlap: float, stride: int, pooled: bool
) -> None:
    layout = windows.layout(shape, (24, 24, 24), overlap, stride, pooled=pooled)
    for axis in range(3):
        starts = layout.starts[axis]
        assert starts[0] == 0 and starts[-1] + 24 == layout.padded[axis] >= shape[axis]
        step = np.diff(starts)
        assert (step <= max(1 if pooled else stride, 24 * (1 - overlap))).all() and (step > 0).all()
        if not pooled:
            assert (starts % stride == 0).all() and layout.grid[axis] * stride == layout.padded[axis]
            assert layout.padded[axis] < max(24, shape[axis]) + stride
    assert len(layout.all_starts()) == np.prod([len(s) for s in layout.starts])


def test_cells_lie_where_the_affine_says() -> None:
    affine = volume(0, False).affine
    grid = windows.layout((32, 40, 40), (24, 24, 24), 0.5, 8, pooled=False).affine(affine)
    np.testing.assert_allclose(grid @ [1, 2, 3, 1], affine @ [11.5, 19.5, 27.5, 1])
    pooled = windows.layout((32, 40, 40), (24, 24, 24), 0.5, 8, pooled=True)
    assert pooled.grid == (2, 3, 3)
    np.testing.assert_allclose(pooled.affine(affine) @ [1, 2, 0, 1], affine @ [8 + 11.5, 16 + 11.5, 11.5, 1])


def test_empty_windows_are_found_and_only_those() -> None:
    voxels = np.zeros((40, 40, 40), np.uint8)
    voxels[30, 5, 5] = 1
    starts = windows.layout((40, 40, 40), (16, 16, 16), 0.0, 8, pooled=True).all_starts()
    found = windows.empty(voxels, starts, (16, 16, 16))
    truly = np.array([not voxels[z : z + 16, y : y + 16, x : x + 16].any() for z, y, x in starts])
    assert truly.any() and not truly.all()
    assert not (found & ~truly).any() and found.sum() >= truly.sum() - 2


@pytest.mark.parametrize("pooled", [True, False])
def test_one_answer_for_all_empty_windows_changes_nothing(pooled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = _config(model__head="pooled" if pooled else "grid", inference__flip=True, inference__window=1)
    network = models.build(config.model).eval()
    nn.init.normal_(network.head.weight)
    prepared = volume(0, True, shape=(48, 48, 48))
    voxels = np.zeros_like(prepared.voxels)
    voxels[:, :20, :24] = prepared.voxels[:, :20, :24]
    prepared = replace(prepared, voxels=voxels)
    skipped = ensemble.score_volume([network], prepared, config, "cpu")
    asked: list[int] = []
    original = ensemble.ask
    monkeypatch.setattr(ensemble, "ask", lambda m, image, c: asked.append(len(image)) or original(m, image, c))
    ensemble.score_volume([network], prepared, config, "cpu")
    some = sum(asked)
    monkeypatch.setattr(windows, "empty", lambda voxels, starts, size: np.zeros(len(starts), bool))
    full = ensemble.score_volume([network], prepared, config, "cpu")
    assert some < sum(asked) - some
    np.testing.assert_allclose(skipped.probabilities, full.probabilities, rtol=1e-6)
    np.testing.assert_allclose(skipped.heatmap.grid, full.heatmap.grid, rtol=1e-3)


def test_stitched_cells_of_a_local_network_are_those_of_the_whole_volume() -> None:
    network = _brightness(pooled=False)
    prepared = volume(1, True, shape=(40, 48, 56))
    config = _config(model__head="grid", inference__overlap=0.5)
    score = ensemble.score_volume([network], prepared, config, "cpu")
    image = torch.from_numpy(prepared.voxels.astype(np.float32) / 255)[None, None]
    whole = torch.sigmoid(10 * nn.functional.avg_pool3d(image, 8) - 5)[0, 0].numpy()
    np.testing.assert_allclose(score.heatmap.grid, whole, atol=1e-3)
    top = np.sort(whole.ravel())[-2:].mean()
    assert score.probabilities[PRESENT_INDEX] == pytest.approx(top, rel=1e-5)


@pytest.mark.parametrize("pooled", [True, False])
def test_a_candidate_lies_on_a_bright_blob(pooled: bool) -> None:
    prepared = volume(0, False, shape=(40, 48, 56))
    centre = np.array([15.0, 30.0, 40.0])
    distance = np.linalg.norm(np.indices(prepared.voxels.shape).T - centre, axis=-1).T
    prepared = replace(prepared, voxels=(250 * np.exp(-((distance / 6) ** 2))).astype(np.uint8))
    config = _config(model__head="pooled" if pooled else "grid", inference__overlap=0.5)
    score = ensemble.score_volume([_brightness(4, pooled=pooled)], prepared, config, "cpu")
    best = score.candidates.iloc[0]
    expected = (prepared.affine @ [*centre, 1])[:3]
    assert np.linalg.norm(best[["x_mm", "y_mm", "z_mm"]].to_numpy(float) - expected) < 3
    assert best["probability"] == score.candidates["probability"].max()


def test_candidates_keep_their_distance_and_their_number() -> None:
    torch.manual_seed(1)
    config = _config(model__head="grid", inference__candidates=4, inference__candidate_distance_mm=10.0)
    network = models.build(config.model).eval()
    nn.init.normal_(network.head.weight)
    places = ensemble.score_volume([network], volume(2, True), config, "cpu").candidates
    assert 2 <= len(places) <= 4
    assert places["probability"].is_monotonic_decreasing and set(places["location"]) <= set(LOCATIONS)
    points = places[["x_mm", "y_mm", "z_mm"]].to_numpy()
    apart = np.linalg.norm(points[:, None] - points, axis=-1)[np.triu_indices(len(points), 1)]
    assert (apart >= 10).all()


@pytest.mark.parametrize("head", ["pooled", "grid"])
def test_mirrored_volumes_have_mirrored_answers(head: str) -> None:
    torch.manual_seed(2)
    config = _config(model__head=head, inference__flip=True)
    network = models.build(config.model).eval()
    nn.init.normal_(network.head.weight)
    prepared = volume(4, True, shape=(32, 40, 40))
    mirrored = replace(prepared, voxels=np.ascontiguousarray(prepared.voxels[..., ::-1]))
    one = ensemble.score_volume([network], prepared, config, "cpu")
    other = ensemble.score_volume([network], mirrored, config, "cpu")
    np.testing.assert_allclose(one.probabilities, other.probabilities[list(MIRRORED)], rtol=1e-4)
    left, right = one.probabilities[LEFT], one.probabilities[RIGHT]
    assert abs(left - right) > 0.01 * max(left, right)
    np.testing.assert_allclose(one.heatmap.grid, other.heatmap.grid[..., ::-1], atol=2e-3)
    plain = ensemble.score_volume([network], prepared, _config(model__head=head), "cpu")
    assert np.abs(plain.probabilities - one.probabilities).max() > 1e-3


def test_several_models_are_averaged() -> None:
    config = _config(inference__top_k=1)
    prepared = volume(3, True, shape=(24, 24, 24))
    torch.manual_seed(3)
    pair = [models.build(config.model).eval() for _ in range(2)]
    for network in pair:
        nn.init.normal_(network.head.weight)
    one, other, both = (ensemble.score_volume(m, prepared, config, "cpu") for m in ([pair[0]], [pair[1]], pair))
    np.testing.assert_allclose(both.probabilities, (one.probabilities + other.probabilities) / 2, rtol=1e-5)


def test_volumes_smaller_than_a_window_are_scored() -> None:
    for head in ("pooled", "grid"):
        config = _config(model__head=head)
        network = models.build(config.model).eval()
        score = ensemble.score_volume([network], volume(0, False, shape=(9, 30, 14)), config, "cpu")
        assert np.isfinite(score.probabilities).all() and len(score.candidates) >= 1


def test_pooling_by_hand() -> None:
    grid = np.zeros((14, 1, 2, 2))
    grid[3] = [[[0.1, 0.9], [0.5, 0.2]]]
    assert ensemble.pool(grid, 2)[3] == pytest.approx(0.7)
    assert ensemble.pool(grid, 100)[3] == pytest.approx(0.425)


@settings(max_examples=200, deadline=None)
@example(whole=178, patch=1, factor=3, stride=1, overlap=0.625)
@given(
    whole=st.integers(1, 300),
    patch=st.integers(1, 6),
    factor=st.integers(1, 4),
    stride=st.sampled_from([1, 2, 4, 8]),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.625]),
)
def test_windows_share_an_axis_evenly_and_are_no_more_than_the_longest_would_be(
    whole: int, patch: int, factor: int, stride: int, overlap: float
) -> None:
    length = patch * 8
    (window, *_) = windows.size((whole,) * 3, (length,) * 3, factor, stride, overlap)
    assert length <= window <= max(length, factor * length) and window % stride == 0
    shared, longest = (
        windows.layout((whole,) * 3, (n,) * 3, overlap, stride, pooled=False) for n in (window, factor * length)
    )
    starts = shared.starts[0]
    assert starts[0] == 0 and starts[-1] + window >= whole
    assert all(b - a <= max(stride, window * (1 - overlap) + 1e-6) for a, b in itertools.pairwise(starts))
    assert len(starts) <= len(longest.starts[0])


def test_real_series_are_asked_in_windows_without_waste() -> None:
    assert windows.size((200, 400, 320), (40, 64, 64), 3, 4, 0.0) == (100, 136, 160)
    assert windows.size((200, 400, 320), (40, 64, 64), 1, 4, 0.5) == (40, 64, 64)
    assert windows.size((30, 50, 70), (40, 64, 64), 3, 4, 0.25) == (40, 64, 72)
