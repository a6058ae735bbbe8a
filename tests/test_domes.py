"""Masks of aneurysms as points with sizes."""

import numpy as np
import pytest
from numpy.typing import NDArray

from aneurysm_ray.data.domes import MAX_PIECES, domes_of

AFFINE = np.array([[-0.5, 0.0, 0.0, 40.0], [0.0, 0.4, 0.0, -30.0], [0.0, 0.0, 0.8, 10.0], [0, 0, 0, 1.0]])
SHAPE = (120, 130, 60)


def _ball(mask: NDArray[np.int16], centre_mm: tuple[float, float, float], radius_mm: float, value: int = 1) -> None:
    places = np.moveaxis(np.indices(mask.shape), 0, -1) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    mask[np.linalg.norm(places - centre_mm, axis=-1) <= radius_mm] = value


@pytest.mark.parametrize("radius_mm", [1.5, 3.0, 6.0])
def test_a_ball_has_its_centre_and_both_its_diameters(radius_mm: float) -> None:
    mask = np.zeros(SHAPE, np.int16)
    centre = (11.3, -7.2, 30.1)
    _ball(mask, centre, radius_mm)
    (dome,) = domes_of(mask, AFFINE)
    assert dome.centre_mm == pytest.approx(centre, abs=0.2)
    assert dome.equivalent_mm == pytest.approx(2 * radius_mm, rel=0.05)
    assert dome.largest_mm == pytest.approx(2 * radius_mm, abs=0.8)
    assert dome.radius_mm == dome.equivalent_mm / 2
    assert dome.value == 1 and not dome.ignored


def test_pieces_are_told_apart_larger_first_and_values_are_kinds_of_their_own() -> None:
    mask = np.zeros(SHAPE, np.int16)
    _ball(mask, (0, 0, 30), 2)
    _ball(mask, (20, -10, 30), 4)
    _ball(mask, (20, -3, 30), 3, value=2)  # touches the one before
    domes = domes_of(mask, AFFINE, ignored=(2,))
    assert [(dome.value, dome.ignored) for dome in domes] == [(1, False), (2, True), (1, False)]
    assert domes[1].centre_mm == pytest.approx((20, -3, 30), abs=0.3)


def test_voxels_that_share_a_corner_are_one_piece() -> None:
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[5:8, 5:8, 5:8] = mask[8:11, 8:11, 8:11] = 1
    (dome,) = domes_of(mask, np.eye(4))
    assert dome.largest_mm == pytest.approx(np.sqrt(3) * 5 + 1)
    assert dome.equivalent_mm == pytest.approx(2 * (54 * 3 / 4 / np.pi) ** (1 / 3))


def test_the_centre_of_a_ring_lies_on_it() -> None:
    mask = np.zeros((30, 30, 9), np.uint8)
    i, j = np.indices((30, 30)) - 15
    mask[(np.hypot(i, j) > 8) & (np.hypot(i, j) < 11), 3:6] = 1
    (dome,) = domes_of(mask, np.eye(4))
    at = tuple(np.rint(dome.centre_mm).astype(int))
    assert mask[at] == 1


def test_crumbs_are_left_out_unless_there_is_nothing_else() -> None:
    mask = np.zeros((40, 40, 40), np.uint8)
    mask[30, 30, 30] = 1
    small = np.diag([0.4, 0.4, 0.6, 1.0])
    assert len(domes_of(mask, small)) == 1
    mask[5:10, 5:10, 5:10] = 1
    (dome,) = domes_of(mask, small)
    assert dome.centre_mm == pytest.approx((2.8, 2.8, 4.2))
    assert len(domes_of(mask, np.diag([3.0, 3.0, 3.0, 1.0]))) == 2, "one voxel of 27 mm3 is no crumb"


def test_an_empty_mask_has_none_and_a_flat_piece_has_a_size() -> None:
    mask = np.zeros((30, 30, 5), np.uint8)
    assert domes_of(mask, np.eye(4)) == ()
    mask[5:25, 5:25, 2] = 1
    (dome,) = domes_of(mask, np.eye(4))
    assert dome.largest_mm == pytest.approx(np.sqrt(2) * 19 + 1)


def test_a_mask_of_noise_is_refused() -> None:
    mask = (np.random.default_rng(0).random((60, 60, 60)) > 0.997).astype(np.uint8)
    mask = np.repeat(np.repeat(np.repeat(mask, 2, 0), 2, 1), 2, 2)
    with pytest.raises(ValueError, match="separate pieces of the value 1, more than a head"):
        domes_of(mask, np.eye(4))
    assert MAX_PIECES < 500
