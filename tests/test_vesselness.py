import numpy as np
import pytest
from scipy import ndimage

from aneurysm_ray.data import vesselness
from aneurysm_ray.phantom import PhantomOptions, plan_series
from aneurysm_ray.phantom.series import make_series

SPACING_MM = (0.8, 0.8, 0.8)


def _head(dark: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A grey ball of 60 voxels with a tube of 4 voxels along z, a thick bright slab, and air; and where the tube is."""
    z, y, x = np.indices((80, 80, 80))
    voxels = np.where((z - 40) ** 2 + (y - 40) ** 2 + (x - 40) ** 2 < 38**2, 60, 0)
    voxels[25:55, 50:70, 25:55] = 30 if dark else 105
    tube = ((y - 30) ** 2 + (x - 40) ** 2 <= 4) & (voxels == 60)
    voxels[tube] = 5 if dark else 200
    return voxels.astype(np.uint8), tube


@pytest.mark.parametrize(("modality", "dark"), [("CTA", False), ("MRA", False), ("MRI T2", True)])
def test_the_map_holds_the_vessel_and_not_what_is_wide(modality: str, dark: bool) -> None:
    voxels, tube = _head(dark)
    found = vesselness.vessel_map(voxels, SPACING_MM, modality)
    assert vesselness.factors(SPACING_MM, voxels.shape) == (2, 2, 2) and found.shape == (40, 40, 40)
    assert found[tuple((np.argwhere(tube) // 2).T)].mean() > 0.9
    assert not found[16:24, 27:33, 16:24].any()  # the middle of the slab
    assert found.mean() < 0.1


def test_places_are_voxels_of_the_mask_where_there_is_one() -> None:
    voxels, tube = _head()
    mask = np.where(tube, 7, 0).astype(np.uint8)
    mask[0] = 255
    places = vesselness.vessel_places(voxels, SPACING_MM, "CTA", mask)
    assert places.shape == (64, 3) and places.dtype == np.int16
    assert (mask[tuple(places.T)] == 7).all()
    again = vesselness.vessel_places(voxels, SPACING_MM, "CTA", mask)
    np.testing.assert_array_equal(places, again)
    free = vesselness.vessel_places(voxels, SPACING_MM, "CTA", None)
    assert len(free) == 64 and (free >= 0).all() and (free < 80).all()


def test_nothing_has_no_vessels() -> None:
    nothing = np.zeros((20, 20, 20), np.uint8)
    assert len(vesselness.vessel_places(nothing, SPACING_MM, "CTA", None)) == 0
    assert len(vesselness.vessel_places(nothing, SPACING_MM, "CTA", nothing)) == 0


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 40), (3, 2, 50), (40, 1, 1), (9, 31, 17)])
def test_places_lie_in_volumes_of_any_shape(shape: tuple[int, int, int]) -> None:
    voxels = np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8)
    for spacing_mm in ((0.8, 0.5, 0.5), (0.1, 0.1, 0.1), (5.0, 5.0, 5.0)):
        for modality in ("CTA", "MRI T2"):
            places = vesselness.vessel_places(voxels, spacing_mm, modality, None)
            assert places.shape[1] == 3 and ((places >= 0) & (places < shape)).all()


def test_blocks_are_the_sums_of_their_voxels() -> None:
    voxels = np.random.default_rng(0).integers(0, 256, (7, 12, 10), dtype=np.uint8)
    expected = voxels[:6, :, :8].reshape(3, 2, 4, 3, 2, 4).sum((1, 3, 5))
    np.testing.assert_array_equal(vesselness._block_sums(voxels, (2, 3, 4)), expected)
    large = np.full((7, 7, 14), 255, np.uint8)
    np.testing.assert_array_equal(vesselness._block_sums(large, (7, 7, 7)), [[[255 * 343] * 2]])


@pytest.mark.parametrize("modality", ["CTA", "MRI T2"])
def test_the_map_is_what_a_top_hat_of_scipy_finds(modality: str) -> None:
    voxels = np.random.default_rng(1).integers(0, 256, (6, 30, 40), dtype=np.uint8)
    spacing_mm = (1.6, 1.6, 1.6)
    if modality == "CTA":
        hat = ndimage.white_tophat(np.minimum(voxels.astype(int), vesselness.CLIP), (1, 7, 7), mode="nearest")
    else:
        hat = ndimage.black_tophat(voxels.astype(int), (1, 7, 7), mode="nearest") * (voxels > 0)
    most = int(vesselness.SHARE * (voxels > 0).sum())
    least = next(value for value in range(256) if (hat > value).sum() <= most)
    np.testing.assert_array_equal(vesselness.vessel_map(voxels, spacing_mm, modality), hat > least)


def test_the_map_and_the_places_find_the_vessels_of_a_phantom() -> None:
    options = PhantomOptions(count=1, seed=4, modalities=("MRA",), spacing_mm=1.0)
    rendered = make_series(options, plan_series(options)[0])
    mask = (rendered.vessels > 0) & (rendered.vessels < 255)
    voxels = np.clip(rendered.voxels * (255 / np.quantile(rendered.voxels, 0.999)), 0, 255).astype(np.uint8)
    found = vesselness.vessel_map(voxels, rendered.grid.spacing_mm, "MRA")
    factor = vesselness.factors(rendered.grid.spacing_mm, voxels.shape)
    blocks = np.minimum(np.argwhere(mask) // factor, np.array(found.shape) - 1)
    assert found[tuple(blocks.T)].mean() > 0.85
    assert ndimage.binary_dilation(found, np.ones((3, 3, 3)))[tuple(blocks.T)].mean() > 0.95
    near = ndimage.binary_dilation(mask, iterations=2)
    places = vesselness.vessel_places(voxels, rendered.grid.spacing_mm, "MRA", None)
    assert len(places) == vesselness.PLACES
    assert near[tuple(places.T)].mean() > 2.5 * near[voxels > 0].mean()
