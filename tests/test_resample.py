"""Antialiased resampling, held against torch, a direct sum and known functions of space."""

import numpy as np
import pytest
from numpy.typing import NDArray

from aneurysm_ray.data.resample import Axes, frame_of, resample, weights
from aneurysm_ray.data.volume import Volume
from aneurysm_ray.errors import SeriesError


def frame(
    slices_mm: NDArray[np.float64], pitch: tuple[float, float], rows_mm: object = 0.0, columns_mm: object = 0.0
) -> Axes:
    zeros = np.zeros(len(slices_mm))
    return Axes(np.eye(3)[::-1], slices_mm, zeros + rows_mm, zeros + columns_mm, pitch)


def grid(count: int, spacing: float, wanted: int) -> tuple[NDArray[np.float64], float]:
    """Centres and spacing of `wanted` voxels over the extent of `count` of them, pixel areas aligned."""
    step = count * spacing / wanted
    return (np.arange(wanted) + 0.5) * step - spacing / 2, step


def collect(
    voxels: NDArray[np.generic],
    where: Axes,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    **kwargs: object,
) -> NDArray[np.float32]:
    grids = [grid(count, step, wanted) for count, step, wanted in zip(voxels.shape, spacing, shape, strict=True)]
    targets, steps = zip(*grids, strict=True)
    return np.stack([plane.copy() for plane in resample(voxels, where, targets, steps, **kwargs)])  # type: ignore[arg-type]


@pytest.mark.parametrize("wanted", [(7, 20, 18), (30, 64, 50), (12, 47, 36), (24, 40, 36)])
def test_equals_torchs_antialiased_interpolation_along_every_axis(wanted: tuple[int, int, int]) -> None:
    import torch

    voxels = np.random.default_rng(0).integers(-1000, 2000, (24, 40, 36)).astype(np.int16)
    ours = collect(voxels, frame(np.arange(24) * 0.6, (0.45, 0.5)), wanted, (0.6, 0.45, 0.5))
    there = torch.from_numpy(voxels).double()[None]
    there = torch.nn.functional.interpolate(there, wanted[1:], mode="bilinear", antialias=True)
    columns = there[0].permute(1, 2, 0)  # z is made an image axis, as torch's filter works on two
    columns = torch.nn.functional.interpolate(columns[None], (wanted[2], wanted[0]), mode="bilinear", antialias=True)[0]
    np.testing.assert_allclose(ours, columns.permute(2, 0, 1).numpy(), atol=2e-2)


@pytest.mark.parametrize(("pitch", "spacing"), [(0.45, 1.0), (0.45, 0.5), (1.0, 0.4), (0.5, 1.0)])
@pytest.mark.parametrize("first", [-3.3, 0.0, 2.71, 17.2])
def test_weights_within_a_slice_are_those_of_an_uneven_axis_with_even_steps(
    pitch: float, spacing: float, first: float
) -> None:
    # One slice direction of a volume of ones in which only row r is 1 reads out the weights of row r.
    count, targets = 40, np.arange(0.2, 15, spacing)
    taps, value = weights(first + np.arange(count) * pitch, targets, spacing)
    dense = np.zeros((len(targets), count))
    np.add.at(dense, (np.arange(len(targets))[:, None], taps), value)
    rows = np.stack([np.eye(count, dtype=np.float32)] * 2)
    where = frame(np.arange(2.0), (pitch, 1.0), rows_mm=first)
    (plane,) = resample(rows, where, (np.zeros(1), targets, np.arange(float(count))), (1.0, spacing, 1.0))
    np.testing.assert_allclose(plane, dense, atol=1e-5)


def test_weights_of_an_uneven_axis_are_those_of_the_definition() -> None:
    # Samples at 0, 1, 2, 5: at 1.25 linear between 1 and 2; at 3 linear over the gap of 3; at 0.9 with spacing 2 the
    # triangle of half-width 2 over stretches 1, 1, 2 gives 0.55, 0.95, 0.45 · 2 before they are made to sum to 1.
    taps, value = weights(np.array([0.0, 1, 2, 5]), np.array([1.25, 3.0]), 1.0)
    dense = np.zeros((2, 4))
    np.add.at(dense, (np.arange(2)[:, None], taps), value)
    np.testing.assert_allclose(dense, [[0, 0.75, 0.25, 0], [0, 0, 2 / 3, 1 / 3]])
    taps, value = weights(np.array([0.0, 1, 2, 5]), np.array([0.9]), 2.0)
    dense = np.zeros((1, 4))
    np.add.at(dense, (np.zeros((1, 1), int), taps), value)
    np.testing.assert_allclose(dense, [[0.55 / 2.4, 0.95 / 2.4, 0.9 / 2.4, 0]])


@pytest.mark.parametrize("spacing", [(1.6, 1.0, 1.2), (0.3, 0.2, 0.3)])
def test_a_linear_function_of_space_survives_tilt_and_shift(spacing: tuple[float, float, float]) -> None:
    # Coarser targets are whole multiples of the pitch: only then does the widened triangle keep a ramp exactly.
    slices, rows, columns = np.arange(20) * 0.8, np.arange(20) * 0.3, np.arange(20) * -0.2
    where = frame(slices, (0.5, 0.6), rows, columns)
    k, r, c = np.indices((20, 60, 50))
    voxels = (7 * slices[k] - 5 * (rows[k] + r * 0.5) + 3 * (columns[k] + c * 0.6)).astype(np.float32)
    targets = tuple(
        np.arange(low, high, step) for (low, high), step in zip([(2.5, 12), (9, 27), (4, 21)], spacing, strict=True)
    )
    out = np.stack([plane.copy() for plane in resample(voxels, where, targets, spacing)])  # type: ignore[arg-type]
    z, y, x = np.meshgrid(*targets, indexing="ij")
    np.testing.assert_allclose(out, 7 * z - 5 * y + 3 * x, atol=1e-3)


def test_uneven_slices_are_interpolated_at_their_true_positions() -> None:
    slices = np.array([0.0, 1, 2.5, 3, 7, 8])
    voxels = np.broadcast_to((10 * slices)[:, None, None], (6, 9, 9)).astype(np.int16)
    targets = np.arange(0.25, 8, 0.25), np.arange(4.0), np.arange(4.0)
    out = np.stack([plane.copy() for plane in resample(voxels, frame(slices, (1, 1)), targets, (0.25, 1, 1))])
    np.testing.assert_allclose(out[:, 1, 2], 10 * targets[0], atol=1e-4)


@pytest.mark.parametrize("step", [0.5, 1.0, 3.0])
def test_a_wide_gap_holds_background_and_nothing_made_up(step: float) -> None:
    """Ten slices of 100, a gap of 55 mm, ten slices of 300, at targets finer and coarser than the slices."""
    slices = np.concatenate([np.arange(10.0), 64 + np.arange(10.0)])
    voxels = np.repeat([100, 300], 10)[:, None, None] * np.ones((1, 6, 6), np.int16)
    heights = np.arange(0, 73.1, step)
    targets = heights, np.arange(6.0), np.arange(6.0)
    out = [p[2, 2] for p in resample(voxels, frame(slices, (1, 1)), targets, (step, 1, 1), background=-1024)]
    expected = np.select([heights <= 9.5, heights >= 63.5], [100, 300], -1024)
    np.testing.assert_allclose(out, expected, atol=1e-3)


def test_a_gap_of_a_few_slices_is_still_interpolated() -> None:
    slices = np.array([0.0, 5, 10, 20, 25])  # one missing slice of 5 mm
    voxels = (10 * slices)[:, None, None] * np.ones((1, 4, 4))
    targets = np.arange(0, 25.1, 2.5), np.arange(4.0), np.arange(4.0)
    out = [p[1, 1] for p in resample(voxels.astype(np.int16), frame(slices, (1, 1)), targets, (2.5, 1, 1))]
    np.testing.assert_allclose(out, 10 * targets[0], atol=1e-3)


def test_the_outside_of_a_shifted_slice_is_background() -> None:
    voxels = np.full((4, 6, 6), 100, np.int16)
    where = frame(np.arange(4.0), (1, 1), rows_mm=np.array([0.0, 0, 0, 3]))
    targets = np.arange(4.0), np.arange(6.0), np.arange(6.0)
    out = np.stack([plane.copy() for plane in resample(voxels, where, targets, (1, 1, 1), background=-1024)])
    assert (out[:3] == 100).all()
    assert (out[3, :3] == -1024).all()
    assert (out[3, 3:] == 100).all()


def test_a_constant_stays_and_two_runs_agree_to_the_bit() -> None:
    voxels = np.full((30, 64, 128), 321, np.int16)
    where = frame(np.cumsum(np.random.default_rng(1).uniform(0.4, 2, 30)), (0.4, 0.4))
    span = where.slices_mm[[0, -1]]
    targets = np.linspace(span[0], span[1], 25), np.linspace(-0.1, 25, 33), np.linspace(0, 50, 64)
    one, two = ([p.copy() for p in resample(voxels, where, targets, (1.9, 0.8, 0.8), background=-5)] for _ in range(2))
    np.testing.assert_allclose(np.stack(one), 321, atol=1e-3)
    np.testing.assert_array_equal(one, two)


def volume(affine: NDArray[np.float64], origins: NDArray[np.float64]) -> Volume:
    return Volume(np.zeros((len(origins), 5, 6), np.int16), affine, origins, "MR", "1.2")


def test_the_frame_is_right_handed_in_space_whatever_the_slice_order() -> None:
    affine = np.array([[0, 0, 0.5, 10], [0, 0.7, 0, 20], [-2, 0, 0, 30], [0, 0, 0, 1.0]])
    origins = np.array([[10, 20, 30 - 2 * k] for k in range(4)], float)
    where = frame_of(volume(affine, origins))
    np.testing.assert_allclose(where.directions, [[0, 0, -1], [0, 1, 0], [1, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(where.slices_mm, [-30, -28, -26, -24])
    np.testing.assert_allclose((where.rows_mm[0], where.columns_mm[0], *where.pitch_mm), (20, 10, 0.7, 0.5), atol=1e-5)
    back = where.slices_mm[1] * where.directions[0] + 20 * where.directions[1] + 10 * where.directions[2]
    np.testing.assert_allclose(back, origins[1])


def test_two_slices_at_one_place_are_no_stack() -> None:
    affine = np.array([[0, 0, 0.5, 0], [0, 0.7, 0, 0], [2, 0, 0, 0], [0, 0, 0, 1.0]])
    with pytest.raises(SeriesError) as caught:
        frame_of(volume(affine, np.array([[0, 0, 0], [0, 0, 2], [0, 0, 2.0]])))
    assert caught.value.reason == "no_geometry"
