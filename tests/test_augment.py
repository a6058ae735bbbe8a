from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aneurysm_ray.config import AugmentConfig
from aneurysm_ray.data.dataset import SEGMENTATION_VALUES
from aneurysm_ray.data.masks import MIRRORED_CLASSES
from aneurysm_ray.labels import LOCATIONS, MIRRORED, PRESENT_INDEX
from aneurysm_ray.learning import augment
from aneurysm_ray.learning.cases import IGNORED
from aneurysm_ray.learning.patches import Batch

LEFT, RIGHT = LOCATIONS.index("Left Middle Cerebral Artery"), LOCATIONS.index("Right Middle Cerebral Artery")
NOTHING = AugmentConfig(flip=0, affine_probability=0, gamma=0, brightness=0, contrast=0, blur=0, noise=0)


def _batch(count: int = 4, size: tuple[int, int, int] = (12, 20, 24)) -> Batch:
    """Patches with a bright blob at their only point."""
    rng = np.random.default_rng(0)
    points = rng.uniform(4, np.array(size) - 5, (count, 1, 3))
    grid = np.indices(size).transpose(1, 2, 3, 0)
    image = np.stack([255 * np.exp(-(((grid - p[0]) / (1.2, 1.8, 1.8)) ** 2).sum(-1) / 2) for p in points])
    base = torch.zeros(count, 14)
    base[:, RIGHT] = torch.nan
    faces = torch.zeros(count, 3, 2, dtype=torch.bool)
    faces[:, 2, 0] = True
    return Batch(
        torch.from_numpy(image.astype(np.uint8)),
        torch.from_numpy(points).float(),
        torch.full((count, 1), LEFT),
        torch.full((count, 1), 2.5),
        base,
        faces,
        torch.tensor([[1.5, 1.0, 1.0]]).repeat(count, 1),
        torch.zeros(count, dtype=torch.int64),
    )


def _draws(count: int, **drawn: object) -> augment.Draws:
    """Draw nothing but what is said."""
    return replace(augment.draw(NOTHING, (0, 0, 0), np.arange(count)), **drawn)


def _changed(batch: Batch, draws: augment.Draws) -> Batch:
    return augment.apply(*augment.prepare(batch, draws))


def _mirrored(batch: Batch, *chosen: int) -> Batch:
    return _changed(batch, _draws(len(batch), flip=np.isin(np.arange(len(batch)), chosen)))


def _turned(batch: Batch, orientation: int) -> Batch:
    return _changed(batch, _draws(len(batch), turn=np.full(len(batch), orientation)))


def _brightest(image: torch.Tensor) -> np.ndarray:
    """Centre of mass of a patch (z, y, x)."""
    mass = image.double().numpy()
    return np.array([(axis * mass).sum() for axis in np.indices(mass.shape)]) / mass.sum()


def test_blur_mixes_voxels_with_the_mean_of_their_neighbourhood() -> None:
    batch = _batch(3, (11, 12, 13))
    done = _changed(batch, _draws(3, blur=np.array([0.0, 0.25, 1.0])))
    for image, was, share in zip(
        done.image_BZYX.numpy(), batch.image_BZYX.double().numpy() / 255, (0, 0.25, 1.0), strict=True
    ):
        smooth = scipy.ndimage.uniform_filter(was, 3, mode="nearest")
        np.testing.assert_allclose(image, (1 - share) * was + share * smooth, atol=1e-6)


def test_nothing_asked_nothing_done() -> None:
    batch = _batch()
    done = _changed(batch, augment.draw(NOTHING, (0, 0, 0), np.arange(4)))
    torch.testing.assert_close(done.image_BZYX, batch.image_BZYX / 255)
    torch.testing.assert_close(done.points_BP3, batch.points_BP3)


def test_mirroring_leaves_unknown_locations_and_ignored_places_what_they_are() -> None:
    batch = _batch()
    labels = torch.tensor([[PRESENT_INDEX], [IGNORED], [-1], [LOCATIONS.index("Basilar Tip")]])
    done = _mirrored(replace(batch, labels_BP=labels), 0, 1, 2, 3)
    torch.testing.assert_close(done.labels_BP, labels)


def test_mirroring_swaps_sides_with_the_image() -> None:
    batch = _batch()
    done = _mirrored(batch, 1)
    assert done.labels_BP[:, 0].tolist() == [LEFT, RIGHT, LEFT, LEFT]
    assert torch.isnan(done.base_BL[1, LEFT]) and done.base_BL[1, RIGHT] == 0
    assert done.cut_B32[1, 2].tolist() == [False, True]
    np.testing.assert_allclose(_brightest(done.image_BZYX[1]), done.points_BP3[1, 0], atol=0.3)
    assert abs(float(done.points_BP3[1, 0, 2] - batch.points_BP3[1, 0, 2])) > 1
    torch.testing.assert_close(done.image_BZYX[0], batch.image_BZYX[0] / 255)
    image = (done.image_BZYX * 255).round().to(torch.uint8)
    twice = _mirrored(replace(done, image_BZYX=image), 1)
    twice = replace(twice, image_BZYX=(twice.image_BZYX * 255).round().to(torch.uint8))
    for name in ("image_BZYX", "points_BP3", "labels_BP", "base_BL", "cut_B32"):
        torch.testing.assert_close(getattr(twice, name), getattr(batch, name), equal_nan=True)


def test_padding_points_stay_padding_when_mirrored() -> None:
    batch = _batch()
    batch.labels_BP[:] = -1
    assert (_mirrored(batch, 0, 1, 2, 3).labels_BP == -1).all()


def test_present_is_its_own_mirror() -> None:
    assert MIRRORED[PRESENT_INDEX] == PRESENT_INDEX
    assert [MIRRORED[i] for i in MIRRORED] == list(range(14))


@pytest.mark.parametrize(
    "config",
    [
        NOTHING.model_copy(update={"rotate_deg": 40, "scale": 0, "translate": 0, "affine_probability": 1, "flip": 0}),
        NOTHING.model_copy(update={"rotate_deg": 0, "scale": 0.4, "translate": 0, "affine_probability": 1, "flip": 0}),
        NOTHING.model_copy(update={"rotate_deg": 0, "scale": 0, "translate": 0.15, "affine_probability": 1, "flip": 0}),
        NOTHING.model_copy(
            update={"rotate_deg": 25, "scale": 0.2, "translate": 0.05, "affine_probability": 1, "flip": 0.5}
        ),
    ],
)
def test_points_move_with_the_image(config: AugmentConfig) -> None:
    batch = _batch(16)
    done = _changed(batch, augment.draw(config, (3, 0, 0), np.arange(16)))
    moved, checked = 0.0, 0
    for b in range(16):
        point = done.points_BP3[b, 0].numpy()
        if (point < 4).any() or (point > np.array([7, 15, 19])).any():
            continue  # the blob is cut off, its centre of mass no longer its centre
        np.testing.assert_allclose(_brightest(done.image_BZYX[b]), point, atol=0.35)
        moved, checked = max(moved, float(np.abs(point - batch.points_BP3[b, 0].numpy()).max())), checked + 1
    assert checked >= 3 and moved > 0.8


def test_rotation_is_rigid_in_mm() -> None:
    config = AugmentConfig(rotate_deg=45, scale=0, translate=0, affine_probability=1, flip=0)
    batch = _batch(8)
    draws = augment.draw(config, (1, 0, 0), np.arange(8))
    done = _changed(batch, draws)
    centre = (torch.tensor(batch.image_BZYX.shape[1:]) - 1) / 2

    def from_centre_mm(points: torch.Tensor) -> torch.Tensor:
        return ((points - centre) * batch.spacing_B3[:, None]).norm(dim=-1)

    torch.testing.assert_close(from_centre_mm(done.points_BP3), from_centre_mm(batch.points_BP3))


def test_draws_depend_on_the_place_in_the_plan_alone() -> None:
    config = AugmentConfig(mixup=0.5)
    whole = augment.draw(config, (5, 1, 2), np.arange(8))
    part = augment.draw(config, (5, 1, 2), np.arange(4, 8))
    np.testing.assert_array_equal(whole.angles_deg[4:], part.angles_deg)
    np.testing.assert_array_equal(whole.noise_seed[4:], part.noise_seed)
    other = augment.draw(config, (5, 1, 3), np.arange(8))
    assert (whole.angles_deg != other.angles_deg).all()


def test_intensities_stay_in_range_and_noise_is_as_strong_as_asked() -> None:
    image = torch.full((2, 20, 20, 20), 128, dtype=torch.uint8)
    batch = _batch(2)
    batch = replace(batch, image_BZYX=image)
    draws = augment.draw(NOTHING.model_copy(update={"noise": 0.05}), (0, 0, 0), np.arange(2))
    done = _changed(batch, draws).image_BZYX
    for b in range(2):
        assert done[b].std().item() == pytest.approx(draws.noise[b], rel=0.05)
    wild = _changed(batch, augment.draw(AugmentConfig(brightness=1, contrast=0.9), (0, 0, 0), np.arange(2)))
    assert wild.image_BZYX.min() >= 0 and wild.image_BZYX.max() <= 1


def test_a_curve_takes_each_byte_to_where_its_knots_lead() -> None:
    ramp = torch.arange(256, dtype=torch.uint8).reshape(1, 4, 8, 8)
    batch = replace(_batch(2), image_BZYX=ramp.repeat(2, 1, 1, 1))
    knots = np.array([[0.0, 0.5, 0.5, 0.75, 1.0], augment.KNOTS])
    bent, straight = _changed(batch, _draws(2, curve=knots)).image_BZYX.flatten(1)
    torch.testing.assert_close(straight, torch.arange(256) / 255)
    # 255/4 is half of the way to the second knot's 0.5; from there to 255/2 nothing changes; then a half is 1 of it.
    for byte, becomes in ((0, 0.0), (51, 0.4), (64, 0.5), (127, 0.5), (153, 0.6), (204, 0.8), (255, 1.0)):
        assert float(bent[byte]) == pytest.approx(becomes, abs=1e-6)


def test_curves_rise_and_shift_their_knots_by_what_is_asked() -> None:
    drawn = augment.draw(NOTHING.model_copy(update={"curve": 0.3}), (0, 0, 0), np.arange(2000)).curve
    assert (np.diff(drawn, axis=1) >= 0).all()
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    # Sorting and clipping bring points no further from where they began than the draw did.
    shift = np.abs(drawn - augment.KNOTS).max(0)
    assert (shift <= 0.3).all()
    assert (shift > 0.25).all()


def test_mixing_blends_neighbours_and_keeps_what_is_unknown() -> None:
    draws = augment.draw(AugmentConfig(mixup=1.0), (0, 0, 0), np.arange(4))
    image = torch.arange(4.0).view(4, 1, 1, 1, 1)
    targets = torch.tensor([[1.0], [0.0], [torch.nan], [1.0]])
    _, changes = augment.prepare(_batch(4), draws)
    mixed, (blended,) = augment.mix(image, [targets], changes)
    share = torch.from_numpy(draws.mix).float()
    assert ((share >= 0.5) & (share < 1)).all()
    torch.testing.assert_close(mixed.flatten()[:2], torch.stack([1 - share[0], share[1]]))
    torch.testing.assert_close(blended[:2, 0], torch.stack([share[0], 1 - share[1]]))
    assert torch.isnan(blended[2:]).all()
    unmixed = augment.mix(image, [targets], augment.prepare(_batch(4), _draws(4))[1])
    assert unmixed[0] is image


def _masked(seed: int, count: int = 3, size: tuple[int, int, int] = (18, 26, 30)) -> Batch:
    """Patches of a few balls, each of a class of its own, a dome among them; the last patch has no mask."""
    rng = np.random.default_rng(seed)
    grid = np.indices(size).transpose(1, 2, 3, 0)
    vessels, domes = np.zeros((2, count, *size), np.uint8)
    for b in range(count):
        for label in rng.permutation(np.arange(1, 14))[:4]:
            far = np.linalg.norm((grid - rng.uniform(4, np.array(size) - 5)) * (1.5, 1, 1), axis=-1)
            vessels[b][far < rng.uniform(3.5, 6)] = label
        domes[b] = np.linalg.norm((grid - rng.uniform(4, np.array(size) - 5)) * (1.5, 1, 1), axis=-1) < 4.5
    vessels[-1], domes[-1] = 255, 255
    batch = _batch(count, size)
    return replace(batch, vessels_BZYX=torch.from_numpy(vessels), domes_BZYX=torch.from_numpy(domes))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rotate=st.floats(0, 45),
    scale=st.floats(0, 0.4),
    translate=st.floats(0, 0.4),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_a_mask_moves_as_the_image_of_it_does(
    seed: int, rotate: float, scale: float, translate: float, flip: float
) -> None:
    config = AugmentConfig(
        rotate_deg=rotate, scale=scale, translate=translate, affine_probability=0.8, flip=flip,
        noise=0, brightness=0, contrast=0, mixup=0.5,
    )  # fmt: skip
    batch = _masked(seed)
    draws = augment.draw(config, (seed, 0, 0), np.arange(len(batch)))
    done = _changed(batch, draws)
    assert done.vessels_BZYX is not None and done.domes_BZYX is not None
    assert (done.vessels_BZYX[-1] == 255).all() and (done.domes_BZYX[-1] == 255).all()
    ones = _changed(replace(batch, image_BZYX=torch.full_like(batch.image_BZYX, 255)), draws).image_BZYX
    for name, labels in (("vessels_BZYX", range(14)), ("domes_BZYX", range(2))):
        before, after = getattr(batch, name)[:-1], getattr(done, name)[:-1]
        assert after.dtype == torch.uint8
        assert set(after.unique().tolist()) <= {*labels, 255}
        for label in labels:
            pictured = _changed(replace(batch, image_BZYX=(getattr(batch, name) == label).to(torch.uint8) * 255), draws)
            image = pictured.image_BZYX[:-1].numpy()
            for b in range(len(after)):
                other = MIRRORED_CLASSES[label] if draws.flip[b] and name == "vessels_BZYX" else label
                here, known = (after[b] == other).numpy(), (after[b] != 255).numpy()
                # Where all the voxels around show a label, the nearest of them does, and so for none.
                assert here[(image[b] > 0.999) & known].all()
                assert not here[(image[b] < 0.001) & known].any()
        for b in range(len(after)):
            # Nothing is unknown that did not come from outside: an image of ones is whole there.
            assert not ((after[b] == 255) & (ones[b] > 0.999) & (before[b] != 255).any()).any()


def test_left_and_right_vessels_change_places_with_a_mirrored_head() -> None:
    left, right = (
        SEGMENTATION_VALUES["Left Middle Cerebral Artery"],
        SEGMENTATION_VALUES["Right Middle Cerebral Artery"],
    )
    vessels = torch.zeros(2, 4, 5, 6, dtype=torch.uint8)
    vessels[:, :, :, 0], vessels[:, :, :, 5], vessels[:, 0] = right, left, 13
    vessels[:, 3, 4] = 255
    domes = (vessels == left).to(torch.uint8)
    batch = replace(_batch(2), image_BZYX=vessels, vessels_BZYX=vessels, domes_BZYX=domes)
    done = _mirrored(batch, 1)
    torch.testing.assert_close(done.vessels_BZYX, vessels)  # left lies left again: the head is its own mirror image
    torch.testing.assert_close(done.domes_BZYX[1], batch.domes_BZYX[1].flip(-1))
    torch.testing.assert_close(done.domes_BZYX[0], batch.domes_BZYX[0])
    lopsided = vessels.clone()
    lopsided[:, 1, :, 0] = 0
    once = _mirrored(replace(batch, vessels_BZYX=lopsided), 1).vessels_BZYX
    assert once[1, 1, 2].tolist() == [right, 0, 0, 0, 0, 0] and once[0, 1, 2].tolist() == [0, 0, 0, 0, 0, left]
    assert [MIRRORED_CLASSES[MIRRORED_CLASSES[c]] for c in range(14)] == list(range(14))
    assert (MIRRORED_CLASSES[0], MIRRORED_CLASSES[13], MIRRORED_CLASSES[left]) == (0, 13, right)


def test_training_without_masks_makes_none() -> None:
    done = _changed(_batch(4), augment.draw(AugmentConfig(affine_probability=1), (0, 0, 0), np.arange(4)))
    assert done.vessels_BZYX is None and done.domes_BZYX is None


@pytest.mark.parametrize("orientation", range(48))
def test_a_turned_patch_keeps_points_masks_and_faces_where_they_were_in_its_image(orientation: int) -> None:
    batch = _batch(1, (20, 20, 20))
    blob = (batch.image_BZYX > 60).to(torch.uint8)
    mark = torch.zeros_like(blob)
    mark[:, 0, 5, 7] = 1  # on the first face along z, which cuts the head alone
    faces = torch.zeros(1, 3, 2, dtype=torch.bool)
    faces[:, 0, 0] = True
    batch = replace(batch, vessels_BZYX=blob, domes_BZYX=mark, cut_B32=faces)
    done = _turned(batch, orientation)
    assert done.vessels_BZYX is not None and done.domes_BZYX is not None
    np.testing.assert_allclose(_brightest(done.image_BZYX[0]), done.points_BP3[0, 0], atol=0.4)
    torch.testing.assert_close(done.vessels_BZYX, (done.image_BZYX * 255 > 60).to(torch.uint8))
    ((axis, side),) = done.cut_B32[0].nonzero().tolist()
    assert done.domes_BZYX[0].nonzero()[0, axis] == (19 if side else 0)
    assert done.labels_BP.item() == (PRESENT_INDEX if orientation else LEFT)
    assert bool(done.base_BL[0, :-1].isnan().all()) == (orientation > 0) and done.base_BL[0, -1] == 0


def test_turns_are_as_frequent_as_asked_and_go_into_every_orientation() -> None:
    draws = augment.draw(NOTHING.model_copy(update={"turn": 0.5}), (0, 0, 0), np.arange(4000))
    assert np.mean(draws.turn > 0) == pytest.approx(0.5 * 47 / 48, abs=0.03)  # standard error 0.008
    assert set(draws.turn.tolist()) == set(range(48))
    images = [tuple(_turned(_batch(1, (10, 10, 10)), k).image_BZYX.flatten().tolist()) for k in range(48)]
    assert len(set(images)) == 48
