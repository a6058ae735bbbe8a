import math

import numpy as np
import torch

from aneurysm_ray.data.masks import UNKNOWN
from aneurysm_ray.labels import LABELS, LOCATIONS, PRESENT_INDEX
from aneurysm_ray.learning import targets
from aneurysm_ray.learning.cases import IGNORED, base_labels

MCA, TIP = LOCATIONS.index("Left Middle Cerebral Artery"), LOCATIONS.index("Basilar Tip")
SIZE = (16, 16, 16)


def _pooled(*points: tuple[float, float, float, int], cut: bool = True, spacing: float = 1.0) -> torch.Tensor:
    """Targets of a patch of 16 voxels with the given points, border 3 mm."""
    return targets.pooled(
        torch.tensor([[p[:3] for p in points]]).view(1, -1, 3),
        torch.tensor([[p[3] for p in points]]).view(1, -1),
        torch.zeros(1, 14),
        torch.full((1, 3, 2), cut),
        torch.full((1, 3), spacing),
        SIZE,
        3.0,
    )[0]


def test_a_point_well_inside_is_positive_for_its_label_and_present() -> None:
    wanted = _pooled((8, 8, 8, MCA))
    assert wanted[MCA] == 1 and wanted[PRESENT_INDEX] == 1
    assert wanted.sum() == 2


def test_a_lesion_cut_by_the_border_is_neither() -> None:
    for place in (1.0, 14.5, -2.0, 18.0):
        wanted = _pooled((8, 8, place, MCA))
        assert torch.isnan(wanted[[MCA, PRESENT_INDEX]]).all()
        assert torch.isnan(wanted).sum() == 2
    assert (_pooled((8, 8, 19.0, MCA)) == 0).all()
    assert (_pooled((8, -4.0, 8, MCA)) == 0).all()


def test_border_is_in_mm() -> None:
    assert _pooled((8, 8, 1.0, MCA), spacing=2.0)[MCA] == 1
    assert torch.isnan(_pooled((8, 8, 1.0, MCA), spacing=1.0)[MCA])


def test_the_end_of_the_volume_cuts_nothing() -> None:
    assert _pooled((8, 8, 0.0, MCA), cut=False)[MCA] == 1


def test_a_second_lesion_inside_outweighs_one_on_the_border() -> None:
    wanted = _pooled((8, 8, 8, TIP), (8, 8, 15.0, MCA))
    assert wanted[PRESENT_INDEX] == 1 and wanted[TIP] == 1
    assert torch.isnan(wanted[MCA])


def test_padding_points_do_nothing() -> None:
    assert (_pooled((8, 8, 8, -1)) == 0).all()
    assert (_pooled() == 0).all()


def test_an_aneurysm_at_an_unknown_location_is_present_and_nowhere_said_to_be() -> None:
    """Locations are what their base says, unknown; the label of the whole is positive."""
    only_present = np.full(14, np.nan, np.float32)
    only_present[PRESENT_INDEX] = 1
    base = base_labels(only_present, np.array([PRESENT_INDEX]))
    assert np.isnan(base[:PRESENT_INDEX]).all() and base[PRESENT_INDEX] == 0
    base_BL = torch.from_numpy(base)[None]
    point, label = torch.tensor([[[8.0, 8, 8]]]), torch.tensor([[PRESENT_INDEX]])
    one = torch.ones(1, 3)
    pooled = targets.pooled(point, label, base_BL, torch.ones(1, 3, 2, dtype=torch.bool), one, SIZE, 3.0)[0]
    assert pooled[PRESENT_INDEX] == 1 and torch.isnan(pooled[:PRESENT_INDEX]).all()
    cells, _ = targets.cells(point, label, torch.full((1, 1), torch.nan), base_BL, one, (4, 4, 4), 4, 3.0, 6.0)
    assert (cells[0, PRESENT_INDEX] == 1).any() and (cells[0, PRESENT_INDEX] == 0).any()
    assert torch.isnan(cells[0, :PRESENT_INDEX]).all()


def test_an_ignored_place_is_neither_positive_nor_negative() -> None:
    assert torch.isnan(_pooled((8, 8, 8, IGNORED))).all()
    assert (_pooled((8, 8, 30, IGNORED)) == 0).all()
    beside = _pooled((8, 8, 8, IGNORED), (8, 8, 9, MCA))
    assert beside[MCA] == beside[PRESENT_INDEX] == 1 and torch.isnan(beside[TIP])
    point, label = torch.tensor([[[8.0, 8, 8]]]), torch.tensor([[IGNORED]])
    unknown, base = torch.full((1, 1), torch.nan), torch.zeros(1, 14)
    cells, near = targets.cells(point, label, unknown, base, torch.ones(1, 3), (4, 4, 4), 4, 3.0, 6.0)
    assert not (cells == 1).any()
    assert torch.isnan(cells[0, :, 1:3, 1:3, 1:3]).all() and cells[0, PRESENT_INDEX, 0, 0, 0] == 0
    assert near[0, 1:3, 1:3, 1:3].all() and not near[0, 0, 0, 0]
    negative = np.zeros(14, np.float32)
    assert (base_labels(negative, np.array([IGNORED])) == 0).all()
    positive = negative.copy()
    positive[PRESENT_INDEX] = 1
    assert np.isnan(base_labels(positive, np.array([IGNORED]))[PRESENT_INDEX]), "its own aneurysm may be anywhere"


def _cells(
    *points: tuple[float, float, float, int, float], base: float = 0.0, radius_mm: float = 5.0, ignore_mm: float = 9.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets of 6x8x8 cells of 4 voxels, of points (z, y, x, location, radius in mm), and what is near; 2x1x1 mm."""
    wanted, near = targets.cells(
        torch.tensor([p[:3] for p in points]).view(1, -1, 3),
        torch.tensor([p[3] for p in points]).view(1, -1),
        torch.tensor([p[4] for p in points]).view(1, -1),
        torch.full((1, 14), base),
        torch.tensor([[2.0, 1.0, 1.0]]),
        (6, 8, 8),
        4,
        radius_mm,
        ignore_mm,
    )
    return wanted[0], near[0]


def _offsets_mm(point: tuple[float, float, float]) -> np.ndarray:
    centres = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) * 4 - 0.5 for n in (6, 8, 8)], indexing="ij"), -1)
    return (centres - point) * [2, 1, 1]


def test_lesion_cells_are_a_sphere_with_an_ignored_shell() -> None:
    wanted, near = _cells((11.5, 15.5, 15.5, TIP, math.nan))
    offset = _offsets_mm((11.5, 15.5, 15.5))
    distance = np.linalg.norm(offset, axis=-1)
    holds = (np.abs(offset / [2, 1, 1]) <= 2).all(-1)
    expected = np.where((distance <= 5) | holds, 1, np.where(distance <= 9, np.nan, 0))
    assert {float(v) for v in expected[~np.isnan(expected)]} == {0.0, 1.0} and np.isnan(expected).any()
    np.testing.assert_array_equal(wanted[PRESENT_INDEX].numpy(), expected)
    np.testing.assert_array_equal(near.numpy(), expected != 0)


def test_a_known_radius_larger_than_the_least_moves_sphere_and_shell() -> None:
    small, _ = _cells((11.5, 15.5, 15.5, TIP, 2.0))
    unknown, _ = _cells((11.5, 15.5, 15.5, TIP, math.nan))
    torch.testing.assert_close(small, unknown, equal_nan=True)
    large, _ = _cells((11.5, 15.5, 15.5, TIP, 8.0))
    wider, _ = _cells((11.5, 15.5, 15.5, TIP, math.nan), radius_mm=8.0, ignore_mm=12.0)
    torch.testing.assert_close(large, wider, equal_nan=True)


def test_locations_are_known_in_lesion_cells_alone() -> None:
    wanted, _ = _cells((11.5, 7.5, 7.5, TIP, math.nan), (11.5, 25.5, 25.5, MCA, math.nan))
    positive = wanted[PRESENT_INDEX] == 1
    assert torch.isnan(wanted[:PRESENT_INDEX, ~positive]).all()
    assert not torch.isnan(wanted[:PRESENT_INDEX, positive]).any()
    assert (wanted[:PRESENT_INDEX, positive].sum(0) == 1).all()
    assert wanted[TIP, 3, 2, 2] == 1 or wanted[TIP, 2, 1, 1] == 1
    assert wanted[MCA, 2, 6, 6] == 1


def test_where_a_lesion_may_be_anywhere_only_its_points_are_known() -> None:
    wanted, near = _cells((11.5, 15.5, 15.5, TIP, math.nan), base=math.nan)
    lesion = wanted[PRESENT_INDEX]
    assert (lesion[~torch.isnan(lesion)] == 1).all() and (lesion == 1).any()
    assert near.any() and not near.all()


def test_the_cell_that_holds_a_point_is_positive_however_small_the_radius() -> None:
    wanted, _ = _cells((1.0, 1.0, 30.0, MCA, math.nan), radius_mm=0.1, ignore_mm=0.2)
    assert (wanted[PRESENT_INDEX] == 1).nonzero().tolist() == [[0, 0, 7]]


def test_padding_points_make_no_cells() -> None:
    wanted, near = _cells((11.5, 15.5, 15.5, -1, math.nan))
    assert (wanted[PRESENT_INDEX] == 0).all() and not near.any()


def test_vessels_are_cells_that_a_mask_fills_and_nothing_is_said_near_points_or_where_nobody_looked() -> None:
    mask = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    mask[0, 0:4, 0:4, 0:2] = 3  # half of a cell of 4
    mask[0, 0:4, 4:8, 0] = 13  # a quarter
    mask[0, 4:8, 0:2, 0:1] = 5  # an eighth
    mask[0, 4, 4, 4] = 255
    near = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    near[0, 0, 0, 1] = True
    wanted = targets.vessels(mask, near, 4)[0, 0]
    assert wanted[0, 0, 0] == 1 and wanted[0, 1, 0] == 1 and wanted[1, 0, 0] == 0
    assert torch.isnan(wanted[1, 1, 1]) and torch.isnan(wanted[0, 0, 1])
    assert torch.isnan(wanted).sum() == 2
    fine = targets.vessels(mask[:, :, :, :], torch.zeros(1, 4, 4, 4, dtype=torch.bool), 2)[0, 0]
    assert fine[0, 0, 0] == 1 and fine[0, 2, 0] == 1 and fine[2, 0, 0] == 1


def test_base_is_unknown_where_a_lesion_may_be_anywhere() -> None:
    negative = np.zeros(14, np.float32)
    assert (base_labels(negative, np.array([], np.int64)) == 0).all()
    positive = negative.copy()
    positive[[MCA, PRESENT_INDEX]] = 1
    assert (base_labels(positive, np.array([MCA])) == 0).all()
    without_point = base_labels(positive, np.array([], np.int64))
    assert np.isnan(without_point[[MCA, PRESENT_INDEX]]).all() and np.isnan(without_point).sum() == 2
    two = positive.copy()
    two[TIP] = 1
    partly = base_labels(two, np.array([MCA]))
    assert np.isnan(partly[[TIP, PRESENT_INDEX]]).all() and np.isnan(partly).sum() == 2
    assert np.isnan(base_labels(np.full(len(LABELS), np.nan, np.float32), np.array([], np.int64))).all()
    only_present = np.full(14, np.nan, np.float32)
    only_present[PRESENT_INDEX] = 0
    assert base_labels(only_present, np.array([], np.int64))[PRESENT_INDEX] == 0


def test_a_known_dome_is_the_lesion_and_the_vessel_beside_it_is_none() -> None:
    """4 cells a side of 4 voxels: a dome that fills a cell, half of the next one, and an eighth of a third."""
    domes = torch.zeros(2, 16, 16, 16, dtype=torch.uint8)
    domes[0, 4:8, 4:8, 4:8] = 1
    domes[0, 4:8, 4:8, 8:10] = 1
    domes[0, 4:6, 8:10, 4:6] = 1
    domes[1] = UNKNOWN
    points = torch.tensor([[[6.0, 6, 7]], [[6.0, 6, 7]]])
    labels, radii = torch.full((2, 1), MCA), torch.full((2, 1), 3.0)
    wanted, near = targets.cells(
        points, labels, radii, torch.zeros(2, 14), torch.ones(2, 3), (4, 4, 4), 4, 3.0, 6.0, domes
    )
    lesion = wanted[0, PRESENT_INDEX]
    assert (lesion == 1).nonzero().tolist() == [[1, 1, 1], [1, 1, 2]]
    assert lesion.isnan().nonzero().tolist() == [[1, 2, 1]]
    assert (near[0] == (lesion.isnan() | (lesion == 1))).all()
    assert wanted[0, MCA, 1, 1, 1] == 1 and wanted[0, TIP, 1, 1, 1] == 0
    by_radius, _ = targets.cells(
        points[1:], labels[1:], radii[1:], torch.zeros(1, 14), torch.ones(1, 3), (4, 4, 4), 4, 3.0, 6.0
    )
    torch.testing.assert_close(wanted[1], by_radius[0], equal_nan=True)
    # A dome too small for any cell is in the one that holds its point; an ignored place stays one.
    domes[0] = 0
    domes[0, 6, 6, 7] = 1
    tiny, _ = targets.cells(points, labels, radii, torch.zeros(2, 14), torch.ones(2, 3), (4, 4, 4), 4, 3.0, 6.0, domes)
    assert (tiny[0, PRESENT_INDEX] == 1).nonzero().tolist() == [[1, 1, 1]]
    ignored, _ = targets.cells(
        points, torch.full((2, 1), IGNORED), radii, torch.zeros(2, 14), torch.ones(2, 3), (4, 4, 4), 4, 3.0, 6.0, domes
    )
    assert ignored[0, PRESENT_INDEX, 1, 1, 1].isnan()
