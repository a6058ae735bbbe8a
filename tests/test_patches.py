import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from learning_sets import write_set

from aneurysm_ray.data import store
from aneurysm_ray.errors import RequestError
from aneurysm_ray.labels import LOCATIONS
from aneurysm_ray.learning.cache import VolumeCache
from aneurysm_ray.learning.cases import from_table, shuffled
from aneurysm_ray.learning.patches import cut, prefetch
from aneurysm_ray.learning.sampler import Plan


def test_patches_are_the_volumes_own_voxels_points_and_labels(tmp_path: Path) -> None:
    volumes = write_set(tmp_path, 4, shape=(20, 40, 40))
    cases = from_table(store.volumes_table(volumes), volumes)
    positive = next(i for i, case in enumerate(cases) if len(case.points))
    start = np.array([[0, 3, 7], [0, 16, 16]])
    plan = Plan(np.array([positive, (positive + 1) % 4]), start, np.zeros(2, np.int64))
    batch = cut(cases, plan, np.arange(2), (24, 24, 24), VolumeCache(tmp_path / "cache", 10**9).patch)
    prepared = store.read_volume(cases[positive].path)
    image = batch.image_BZYX.numpy()
    np.testing.assert_array_equal(image[0, :20], prepared.voxels[:, 3:27, 7:31])
    assert (image[0, 20:] == 0).all()
    point = prepared.points[0]
    np.testing.assert_allclose(batch.points_BP3[0, 0], [point.z, point.y - 3, point.x - 7], rtol=1e-5)
    assert batch.labels_BP[0, 0] == LOCATIONS.index(point.location)
    assert batch.cut_B32[0].tolist() == [[False, False], [True, True], [True, True]]
    assert batch.cut_B32[1].tolist() == [[False, False], [True, False], [True, False]]
    np.testing.assert_allclose(batch.spacing_B3, 1)
    assert len(batch) == 2
    assert batch.vessels_BZYX is None and batch.domes_BZYX is None


def test_masks_are_cut_with_their_patch_and_unknown_elsewhere(tmp_path: Path) -> None:
    volumes = write_set(tmp_path, 3, shape=(20, 40, 40), masks=(0, 1))
    cases = from_table(store.volumes_table(volumes), volumes)
    assert [case.has_vessels for case in cases] == [case.has_domes for case in cases] == [True, True, False]
    plan = Plan(np.arange(3), np.array([[0, 3, 7], [0, 16, 16], [0, 0, 0]]), np.zeros(3, np.int64))
    door = VolumeCache(tmp_path / "cache", 10**9).patch
    for _ in range(2):  # decoded, then from the cache
        batch = cut(cases, plan, np.arange(3), (24, 24, 24), door, masks=True)
        assert batch.vessels_BZYX is not None and batch.domes_BZYX is not None
        assert batch.vessels_BZYX.dtype == batch.domes_BZYX.dtype == torch.uint8
        for b, start in enumerate(plan.start[:2]):
            prepared = store.read_volume(cases[b].path)
            for mask, stored in ((batch.vessels_BZYX, prepared.vessels), (batch.domes_BZYX, prepared.domes)):
                z, y, x = (slice(first, first + 24) for first in start)
                np.testing.assert_array_equal(mask[b, :20], stored[z, y, x])
                assert (mask[b, 20:] == 255).all()
        assert (batch.vessels_BZYX[2] == 255).all() and (batch.domes_BZYX[2] == 255).all()
    plain = cut(cases, plan, np.arange(3), (24, 24, 24), door)
    for name in ("image_BZYX", "points_BP3", "labels_BP", "base_BL", "cut_B32", "spacing_B3"):
        torch.testing.assert_close(getattr(plain, name), getattr(batch, name), equal_nan=True)
    assert plain.vessels_BZYX is None and plain.domes_BZYX is None


def test_a_table_with_a_series_twice_is_refused(tmp_path: Path) -> None:
    table = store.volumes_table(write_set(tmp_path, 2))
    with pytest.raises(RequestError, match="stands in the table twice"):
        from_table(table.iloc[[0, 1, 0]], tmp_path)


def test_cases_hold_what_the_table_says(tmp_path: Path) -> None:
    table = store.volumes_table(write_set(tmp_path, 2))
    for case in from_table(table, tmp_path):
        prepared = store.read_volume(case.path)
        assert case.series_uid == prepared.series_uid and case.shape == prepared.voxels.shape
        np.testing.assert_array_equal(case.affine, prepared.affine)
        np.testing.assert_array_equal(case.targets, prepared.targets)
        assert [LOCATIONS[i] for i in case.point_labels] == [point.location for point in prepared.points]


def test_shuffling_deals_labels_out_and_loses_none(tmp_path: Path) -> None:
    cases = from_table(store.volumes_table(write_set(tmp_path, 12)), tmp_path)
    dealt = shuffled(cases, (0,))
    before, after = np.array([c.targets for c in cases]), np.array([c.targets for c in dealt])
    assert (before != after).any()
    np.testing.assert_array_equal(np.sort(before, axis=0), np.sort(after, axis=0))
    assert [c.series_uid for c in cases] == [c.series_uid for c in dealt]
    assert all(len(c.points) == c.targets[-1] for c in dealt)


def test_shuffling_is_the_same_for_every_fold_and_keeps_a_patients_series_together(tmp_path: Path) -> None:
    cases = from_table(store.volumes_table(write_set(tmp_path, 12, masks=range(12))), tmp_path)
    # Six patients of two series each, alike in their labels, which a patient in training and among the judges betrays.
    pairs = [replace(case, patient=f"p{k // 2}", targets=cases[k // 2].targets) for k, case in enumerate(cases)]
    dealt = {case.series_uid: case for case in shuffled(pairs, (0,))}
    otherwise = {case.series_uid: case for case in shuffled([*pairs[7:], *pairs[:7]], (0,))}
    for first, second in zip(pairs[::2], pairs[1::2], strict=True):
        one, other = dealt[first.series_uid], dealt[second.series_uid]
        np.testing.assert_array_equal(one.targets, other.targets)
        np.testing.assert_array_equal(one.targets, otherwise[first.series_uid].targets)
    assert any((dealt[case.series_uid].targets != case.targets).any() for case in pairs)
    # And where a patient's series have labels of their own.
    mixed = [replace(case, patient=f"p{k // 2}") for k, case in enumerate(cases)]
    otherwise = {case.series_uid: case for case in shuffled([*mixed[7:], *mixed[:7]], (0,))}
    for case in shuffled(mixed, (0,)):
        np.testing.assert_array_equal(case.targets, otherwise[case.series_uid].targets)
    assert all(case.has_domes for case in pairs[::2]) and not any(case.has_domes for case in dealt.values())


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_prefetching_keeps_the_order(threads: int) -> None:
    def make(i: int) -> int:
        time.sleep(0.002 * (i % 3))
        return i * i

    assert list(prefetch(make, range(20), threads, ahead=4)) == [i * i for i in range(20)]


def test_prefetching_works_ahead_but_not_too_far() -> None:
    made: list[int] = []
    enough = threading.Event()

    def make(i: int) -> int:
        made.append(i)
        if len(made) == 3:
            enough.set()
        return i

    stream = prefetch(make, range(100), threads=2, ahead=3)
    assert next(stream) == 0
    assert enough.wait(5)
    time.sleep(0.02)
    assert len(made) <= 4
    stream.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_surfaces_where_its_item_was_due(threads: int) -> None:
    def make(i: int) -> int:
        if i == 2:
            raise RequestError("two is bad")
        return i

    stream = prefetch(make, range(10), threads, ahead=4)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(RequestError, match="two is bad"):
        next(stream)
