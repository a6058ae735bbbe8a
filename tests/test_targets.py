import numpy as np
import torch

from aneurysm_ray.labels import LABELS, LOCATIONS, PRESENT_INDEX
from aneurysm_ray.learning import targets
from aneurysm_ray.learning.cases import IGNORED, base_labels

MCA, TIP = LOCATIONS.index("Left Middle Cerebral Artery"), LOCATIONS.index("Basilar Tip")
SIZE = torch.tensor([16.0, 16.0, 16.0])


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
    grid = targets.grid(point, label, base_BL, one, (4, 4, 4), 4, 3.0, 6.0)[0]
    assert (grid[PRESENT_INDEX] == 1).any() and (grid[PRESENT_INDEX] == 0).any()
    assert torch.isnan(grid[:PRESENT_INDEX]).all()


def test_an_ignored_place_is_neither_positive_nor_negative() -> None:
    assert torch.isnan(_pooled((8, 8, 8, IGNORED))).all()
    assert (_pooled((8, 8, 30, IGNORED)) == 0).all()
    beside = _pooled((8, 8, 8, IGNORED), (8, 8, 9, MCA))
    assert beside[MCA] == beside[PRESENT_INDEX] == 1 and torch.isnan(beside[TIP])
    point, label = torch.tensor([[[8.0, 8, 8]]]), torch.tensor([[IGNORED]])
    grid = targets.grid(point, label, torch.zeros(1, 14), torch.ones(1, 3), (4, 4, 4), 4, 3.0, 6.0)[0]
    assert not (grid == 1).any()
    assert torch.isnan(grid[:, 1:3, 1:3, 1:3]).all() and (grid[:, 0, 0, 0] == 0).all()
    negative = np.zeros(14, np.float32)
    assert (base_labels(negative, np.array([IGNORED])) == 0).all()
    positive = negative.copy()
    positive[PRESENT_INDEX] = 1
    assert np.isnan(base_labels(positive, np.array([IGNORED]))[PRESENT_INDEX]), "its own aneurysm may be anywhere"


def test_grid_is_a_sphere_with_an_ignored_shell() -> None:
    spacing = torch.tensor([[2.0, 1.0, 1.0]])
    point = torch.tensor([[[11.5, 15.5, 15.5]]])
    wanted = targets.grid(point, torch.tensor([[TIP]]), torch.zeros(1, 14), spacing, (6, 8, 8), 4, 5.0, 9.0)
    centres = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) * 4 - 0.5 for n in (6, 8, 8)], indexing="ij"), -1)
    offset = (centres - point.numpy()[0, 0]) * [2, 1, 1]
    distance = np.linalg.norm(offset, axis=-1)
    holds = (np.abs(offset / [2, 1, 1]) <= 2).all(-1)
    expected = np.where((distance <= 5) | holds, 1, np.where(distance <= 9, np.nan, 0))
    assert {float(v) for v in expected[~np.isnan(expected)]} == {0.0, 1.0} and np.isnan(expected).any()
    np.testing.assert_array_equal(wanted[0, TIP].numpy(), expected)
    np.testing.assert_array_equal(wanted[0, PRESENT_INDEX].numpy(), expected)
    assert (wanted[0, MCA] == 0).all()


def test_the_cell_that_holds_a_point_is_positive_however_small_the_radius() -> None:
    wanted = targets.grid(
        torch.tensor([[[1.0, 1.0, 30.0]]]),
        torch.tensor([[MCA]]),
        torch.zeros(1, 14),
        torch.ones(1, 3),
        (4, 4, 4),
        8,
        0.1,
        0.2,
    )
    assert wanted[0, MCA].nonzero().tolist() == [[0, 0, 3]]


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
