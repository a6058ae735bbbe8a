import multiprocessing
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from learning_sets import write_set

from aneurysm_ray.config import FeedConfig
from aneurysm_ray.data import store
from aneurysm_ray.errors import RunDirError
from aneurysm_ray.learning import bricks
from aneurysm_ray.learning.cache import VolumeCache, open_cache
from aneurysm_ray.learning.cases import Case, from_table

SHAPE = (32, 40, 40)
MOST = (31, 40, 40)
BYTES = 32 * 40 * 40 + 32 + 4 * 8 + 300
"""A file of four cubes of noise, which LZ4 cannot make smaller, at most."""


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    return write_set(tmp_path / "volumes", 6)


def _cases(volumes: Path) -> tuple[Case, ...]:
    return from_table(store.volumes_table(volumes), volumes)


def _part(cache: VolumeCache, case: Case, size: tuple[int, int, int] = MOST) -> np.ndarray:
    return cache.patch(case, np.zeros(3, np.int64), size).voxels


def _kept(cache: VolumeCache) -> set[str]:
    return {path.name for path in cache.folder.iterdir()} - {".lock"}


def test_voxels_are_those_of_the_file_also_the_second_time(volumes: Path, tmp_path: Path) -> None:
    cache, case = VolumeCache(tmp_path / "cache", 10**9), _cases(volumes)[0]
    expected = store.read_volume(case.path).voxels
    rng = np.random.default_rng(0)
    for number in range(60):
        start, size = rng.integers(0, SHAPE), tuple(rng.integers(1, 45, 3).tolist())
        part = cache.patch(case, start, size).voxels
        np.testing.assert_array_equal(part, expected[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))])
        assert (cache.traffic.asked, cache.traffic.missed) == (number + 1, 1)
    np.testing.assert_array_equal(_part(cache, case, SHAPE), expected)


def test_a_patch_reads_the_cubes_that_it_touches_and_no_others(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 256, (70, 100, 130)).astype(np.uint8)
    with open(tmp_path / "cubes", "wb") as file:
        bricks.write(file, voxels)
    opened = bricks.Bricks(tmp_path / "cubes")
    part, taken = opened.read(np.array([33, 64, 60]), (20, 30, 10))
    np.testing.assert_array_equal(part, voxels[33:53, 64:94, 60:70])
    # Along z and y one cube, along x two; noise grows by LZ4's own words, 1 in 255 at most and some bytes.
    assert 2 * 32**3 <= taken <= 2 * (32**3 * 256 // 255 + 16)
    (tmp_path / "cubes").unlink()
    np.testing.assert_array_equal(opened.read(np.zeros(3, np.int64), (70, 100, 130))[0], voxels)
    nothing, taken = opened.read(np.array([0, 100, 0]), (8, 8, 8))
    assert nothing.size == 0 and taken == 0


def test_the_folder_keeps_to_its_limit_and_the_recently_opened(volumes: Path, tmp_path: Path) -> None:
    cache, cases = VolumeCache(tmp_path / "cache", 3 * BYTES), _cases(volumes)
    for number, case in enumerate(cases[:3]):
        _part(cache, case)
        os.utime(cache._path(case), (number, number))
    _part(VolumeCache(cache.folder, 3 * BYTES), cases[0])  # of another process: now the most recent
    _part(cache, cases[3])
    assert _kept(cache) == {cache._path(cases[i]).name for i in (0, 2, 3)}


def test_an_open_file_stays_readable_when_it_is_evicted(volumes: Path, tmp_path: Path) -> None:
    cache, cases = VolumeCache(tmp_path / "cache", BYTES), _cases(volumes)
    for _ in range(2):
        _part(cache, cases[0])
    _part(VolumeCache(tmp_path / "cache", BYTES), cases[1])  # another process
    assert _kept(cache) == {cache._path(cases[1]).name}
    np.testing.assert_array_equal(_part(cache, cases[0]), store.read_volume(cases[0].path).voxels[:31])
    assert cache.traffic.missed == 1


def test_whole_volumes_take_room_that_is_free_and_none_from_patches(volumes: Path, tmp_path: Path) -> None:
    cache, cases = VolumeCache(tmp_path / "cache", 2 * BYTES), _cases(volumes)
    _part(cache, cases[0])
    _part(cache, cases[1], SHAPE)
    for case in cases[2:]:
        np.testing.assert_array_equal(_part(cache, case, SHAPE), store.read_volume(case.path).voxels)
    assert _kept(cache) == {cache._path(cases[i]).name for i in (0, 1)}


def test_files_are_closed_again(volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aneurysm_ray.learning.cache.OPEN_FILES", 2)
    cache, cases = VolumeCache(tmp_path / "cache", 10**9), _cases(volumes)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        for case in cases:
            np.testing.assert_array_equal(_part(cache, case), store.read_volume(case.path).voxels[:31])
    assert len(os.listdir("/proc/self/fd")) <= before + 2


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
        np.testing.assert_array_equal(_part(cache, case), store.read_volume(case.path).voxels[:31])
        assert not cache.folder.exists()


def _cut_short(data: bytes) -> bytes:
    return data[:-1]


def _spoilt(data: bytes) -> bytes:
    return data[:80] + bytes(len(data) - 80)


@pytest.mark.parametrize("damage", [lambda data: b"half", lambda data: data[:20], _cut_short, _spoilt])
def test_a_damaged_file_is_read_anew(volumes: Path, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    folder, case = tmp_path / "cache", _cases(volumes)[0]
    path = VolumeCache(folder, 10**9)._path(case)
    _part(VolumeCache(folder, 10**9), case)
    path.write_bytes(damage(path.read_bytes()))
    again = VolumeCache(folder, 10**9)
    for _ in range(2):
        np.testing.assert_array_equal(_part(again, case), store.read_volume(case.path).voxels[:31])
    assert again.traffic.missed == 1


def test_a_set_that_was_prepared_anew_is_read_anew(volumes: Path, tmp_path: Path) -> None:
    case = _cases(volumes)[0]
    _part(VolumeCache(tmp_path / "cache", 10**9), case)
    prepared = store.read_volume(case.path)
    store.write_volume(volumes, replace(prepared, voxels=255 - prepared.voxels), "{}")
    np.testing.assert_array_equal(_part(VolumeCache(tmp_path / "cache", 10**9), case), 255 - prepared.voxels[:31])


def test_a_missing_volume_is_named(volumes: Path, tmp_path: Path) -> None:
    cache, case = VolumeCache(tmp_path / "cache", 10**9), _cases(volumes)[0]
    case.path.unlink()
    with pytest.raises(RunDirError, match=rf"{case.path}.*prepare the set again"):
        _part(cache, case)


def _read_all(volumes: Path, folder: Path, wrong: "multiprocessing.Queue[int]") -> None:
    cache = VolumeCache(folder, 3 * BYTES)
    bad = 0
    for _ in range(5):
        for case in _cases(volumes):
            bad += not np.array_equal(_part(cache, case), store.read_volume(case.path).voxels[:31])
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
    assert 0 < len(kept) <= 3 and all(path.suffix == ".bricks" for path in kept)


def test_the_default_folder_is_private_and_named_by_the_set(volumes: Path, tmp_path: Path) -> None:
    feed = FeedConfig(cache_dir=str(tmp_path / "parent"))
    cache = open_cache(volumes, feed)
    assert cache.folder.parent == tmp_path / "parent" and 0 < cache.limit_bytes < shutil.disk_usage(tmp_path).free
    assert open_cache(tmp_path, feed).folder != cache.folder
    _part(cache, _cases(volumes)[0])
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
