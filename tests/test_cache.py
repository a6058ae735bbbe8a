import multiprocessing
import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from learning_sets import write_set

from aneurysm_ray.config import FeedConfig
from aneurysm_ray.data import store
from aneurysm_ray.errors import RunDirError
from aneurysm_ray.learning.cache import HEADER_BYTES, VolumeCache, open_cache
from aneurysm_ray.learning.cases import Case, from_table

BYTES = 32 * 40 * 40 + HEADER_BYTES


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    return write_set(tmp_path / "volumes", 6)


def _cases(volumes: Path) -> tuple[Case, ...]:
    return from_table(store.volumes_table(volumes), volumes)


def _kept(cache: VolumeCache) -> set[str]:
    return {path.name for path in cache.folder.iterdir()} - {".lock"}


def test_voxels_are_those_of_the_file_and_the_second_time_a_map(volumes: Path, tmp_path: Path) -> None:
    cache, case = VolumeCache(tmp_path / "cache", 10**9), _cases(volumes)[0]
    expected = store.read_volume(case.path).voxels
    np.testing.assert_array_equal(cache.voxels(case), expected)
    again = cache.voxels(case)
    assert isinstance(again, np.memmap)
    np.testing.assert_array_equal(again, expected)
    assert not again.flags.writeable


def test_the_folder_keeps_to_its_limit_and_the_recently_used(volumes: Path, tmp_path: Path) -> None:
    cache, cases = VolumeCache(tmp_path / "cache", 3 * BYTES), _cases(volumes)
    for number, case in enumerate(cases[:3]):
        cache.voxels(case)
        os.utime(cache._path(case), (number, number))
    cache.voxels(cases[0])  # now the most recent
    cache.voxels(cases[3])
    assert _kept(cache) == {cache._path(cases[i]).name for i in (0, 2, 3)}


def test_a_map_stays_valid_when_its_file_is_evicted(volumes: Path, tmp_path: Path) -> None:
    cache, cases = VolumeCache(tmp_path / "cache", BYTES), _cases(volumes)
    cache.voxels(cases[0])
    held = cache.voxels(cases[0])
    cache.voxels(cases[1])
    assert _kept(cache) == {cache._path(cases[1]).name}
    np.testing.assert_array_equal(held, store.read_volume(cases[0].path).voxels)


def test_masks_cost_nothing_until_they_are_asked_for(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "masked", 2, masks=(0,))
    cache, cases = VolumeCache(tmp_path / "cache", 10**9), _cases(folder)
    start, size = np.array([4, 30, 30]), (16, 16, 16)
    plain = cache.patch(cases[0], start, size)
    assert plain.vessels is None and plain.domes is None and plain.voxels.shape == (16, 10, 10)
    assert _kept(cache) == {cache._path(cases[0]).name}
    prepared = store.read_volume(cases[0].path)
    for _ in range(2):
        patch = cache.patch(cases[0], start, size, masks=True)
        for name in ("voxels", "vessels", "domes"):
            np.testing.assert_array_equal(getattr(patch, name), getattr(prepared, name)[4:20, 30:, 30:])
    assert _kept(cache) == {cache._path(cases[0], name).name for name in ("voxels", "vessels", "domes")}
    without = cache.patch(cases[1], start, size, masks=True)
    assert without.vessels is None and without.domes is None


def test_a_table_that_promises_a_mask_that_is_not_there_is_told(tmp_path: Path) -> None:
    case = _cases(write_set(tmp_path / "plain", 1))[0]
    promised = replace(case, has_vessels=True)
    with pytest.raises(RunDirError, match="holds no vessels, though the set's table says so"):
        VolumeCache(tmp_path / "cache", 10**9).patch(promised, np.zeros(3, np.int64), (8, 8, 8), masks=True)


def test_no_room_costs_speed_only(volumes: Path, tmp_path: Path) -> None:
    case = _cases(volumes)[0]
    for cache in (
        VolumeCache(tmp_path / "none", 0),
        VolumeCache(Path("/proc/no/such/folder"), 10**9),
    ):
        np.testing.assert_array_equal(cache.voxels(case), store.read_volume(case.path).voxels)
        assert not cache.folder.exists()


def test_a_changed_or_damaged_file_is_read_anew(volumes: Path, tmp_path: Path) -> None:
    cache, case = VolumeCache(tmp_path / "cache", 10**9), _cases(volumes)[0]
    cache.voxels(case)
    cache._path(case).write_bytes(b"half a header")
    np.testing.assert_array_equal(cache.voxels(case), store.read_volume(case.path).voxels)
    prepared = store.read_volume(case.path)
    store.write_volume(volumes, replace(prepared, voxels=255 - prepared.voxels), "{}")
    np.testing.assert_array_equal(cache.voxels(case), 255 - prepared.voxels)


def test_a_missing_volume_is_named(volumes: Path, tmp_path: Path) -> None:
    cache, case = VolumeCache(tmp_path / "cache", 10**9), _cases(volumes)[0]
    case.path.unlink()
    with pytest.raises(RunDirError, match=rf"{case.path}.*prepare the set again"):
        cache.voxels(case)


def _read_all(volumes: Path, folder: Path, wrong: "multiprocessing.Queue[int]") -> None:
    cache = VolumeCache(folder, 3 * BYTES)
    bad = 0
    for _ in range(5):
        for case in _cases(volumes):
            bad += not np.array_equal(cache.voxels(case), store.read_volume(case.path).voxels)
    wrong.put(bad)


def test_processes_share_a_folder_that_is_too_small(volumes: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    wrong = context.Queue()
    workers = [context.Process(target=_read_all, args=(volumes, tmp_path / "cache", wrong)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [wrong.get(timeout=60) for _ in workers] == [0, 0]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    kept = [path for path in (tmp_path / "cache").iterdir() if path.name != ".lock"]
    assert 0 < len(kept) <= 3 and all(path.suffix == ".npy" for path in kept)


def test_the_default_folder_is_private_and_named_by_the_set(volumes: Path, tmp_path: Path) -> None:
    feed = FeedConfig(cache_dir=str(tmp_path / "parent"))
    cache = open_cache(volumes, feed)
    assert cache.folder.parent == tmp_path / "parent" and cache.limit_bytes == 16e9
    assert open_cache(tmp_path, feed).folder != cache.folder
    cache.voxels(_cases(volumes)[0])
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
