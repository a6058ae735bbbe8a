import numpy as np
import pytest

from aneurysm_ray.data import vesselness

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
    assert vesselness.factors(SPACING_MM) == (2, 2, 2) and found.shape == (40, 40, 40)
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


def test_blocks_are_the_means_of_their_voxels() -> None:
    voxels = np.random.default_rng(0).integers(0, 256, (7, 12, 10), dtype=np.uint8)
    padded = np.pad(voxels, [(0, 1), (0, 0), (0, 2)], mode="edge")
    expected = padded.reshape(4, 2, 4, 3, 3, 4).mean((1, 3, 5))
    np.testing.assert_allclose(vesselness._block_means(voxels, (2, 3, 4)), expected, rtol=1e-6)
