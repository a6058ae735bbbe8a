"""A prepared volume and its Parquet file."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from aneurysm_ray.data import store
from aneurysm_ray.data.store import Point, PreparedVolume
from aneurysm_ray.data.window import Window
from aneurysm_ray.errors import RunDirError, SeriesError
from aneurysm_ray.labels import LABELS

UID = "1.2.826.0.1.3680043.8.498.42"


def prepared(dtype: type = np.uint8) -> PreparedVolume:
    rng = np.random.default_rng(0)
    targets = np.full(14, np.nan, np.float32)
    targets[[6, 13]] = 1, 1
    targets[0] = 0
    return PreparedVolume(
        series_uid=UID,
        patient="ab" * 16,
        modality="MRA",
        plane="axial",
        voxels=rng.integers(0, 250, (5, 6, 7)).astype(dtype),
        affine=np.array([[0, 0, 0.5, -20.25], [0, 0.5, 0, -30.0], [0.8, 0, 0, 11.125], [0, 0, 0, 1.0]]),
        targets=targets,
        points=(Point(1.25, 2.5, 3.0, LABELS[6], 2.75),),
        quality=("uneven_spacing",),
        source_digest="cd" * 32,
        window=Window(-12.5, 700.25),
    )


def with_masks() -> PreparedVolume:
    rng = np.random.default_rng(1)
    vessels = rng.integers(0, 14, (5, 6, 7)).astype(np.uint8)
    vessels[0] = 255
    return replace(prepared(), vessels=vessels, domes=(vessels == 3).astype(np.uint8))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_a_volume_comes_back_as_it_was_written(tmp_path: Path, dtype: type) -> None:
    there = prepared(dtype)
    back = store.read_volume(store.write_volume(tmp_path, there, "{}"))
    assert back.voxels.dtype == dtype
    np.testing.assert_array_equal(back.voxels, there.voxels)
    np.testing.assert_array_equal(back.affine, there.affine)
    np.testing.assert_array_equal(back.targets, there.targets)
    for name in ("series_uid", "patient", "modality", "plane", "points", "quality", "source_digest", "spacing_mm"):
        assert getattr(back, name) == getattr(there, name), name
    assert back.window == there.window
    assert back.vessels is None and back.domes is None


def test_masks_come_back_as_they_were_written_and_only_when_asked_for(tmp_path: Path) -> None:
    there = with_masks()
    path = store.write_volume(tmp_path, there, "{}")
    back = store.read_volume(path)
    np.testing.assert_array_equal(back.vessels, there.vessels)
    np.testing.assert_array_equal(back.domes, there.domes)
    np.testing.assert_array_equal(back.voxels, there.voxels)
    bare = store.read_volume(path, masks=False)
    assert bare.vessels is None and bare.domes is None
    np.testing.assert_array_equal(bare.voxels, there.voxels)
    half = store.read_volume(store.write_volume(tmp_path / "b", replace(there, domes=None), "{}"))
    assert half.vessels is not None and half.domes is None


def test_plain_pyarrow_reads_a_mask_without_this_package(tmp_path: Path) -> None:
    row = pq.read_table(store.write_volume(tmp_path, with_masks(), "{}")).to_pylist()[0]
    np.testing.assert_array_equal(np.frombuffer(row["vessels"], np.uint8).reshape(row["shape"]), with_masks().vessels)
    assert (row["low"], row["high"]) == (-12.5, 700.25)


def test_what_another_version_stored_is_refused_with_the_cure(tmp_path: Path) -> None:
    path = store.write_volume(tmp_path, prepared(), "{}")
    store.write_table(tmp_path, [store.table_row(prepared(), 9)])
    for file in (path, tmp_path / "volumes.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.drop_columns(["low", "high"]).replace_schema_metadata({}), file)
    for read in (lambda: store.read_volume(path), lambda: store.volumes_table(tmp_path)):
        with pytest.raises(RunDirError, match="prepare the data anew"):
            read()


def test_equal_volumes_give_equal_bytes_and_others_do_not() -> None:
    assert store.encode(prepared(), "{}") == store.encode(prepared(), "{}")
    assert store.encode(prepared(), "{}") != store.encode(replace(prepared(), patient="ef" * 16), "{}")
    assert store.encode(prepared(), "{}") != store.encode(prepared(), '{"dtype": "uint8"}')


def test_voxels_lie_in_c_order_also_when_the_array_does_not(tmp_path: Path) -> None:
    turned = replace(prepared(), voxels=np.asfortranarray(prepared().voxels))
    back = store.read_volume(store.write_volume(tmp_path, turned, "{}"))
    np.testing.assert_array_equal(back.voxels, prepared().voxels)


def test_the_file_holds_one_row_and_says_how_it_was_made(tmp_path: Path) -> None:
    path = store.write_volume(tmp_path, prepared(), '{"extent_mm": [1, 2, 3]}')
    file = pq.ParquetFile(path)
    assert (file.metadata.num_rows, file.metadata.num_row_groups) == (1, 1)
    assert file.schema_arrow.metadata[store.VOLUME_CONFIG_KEY] == b'{"extent_mm": [1, 2, 3]}'
    assert not list(tmp_path.rglob("*.tmp"))


def test_plain_pyarrow_reads_a_volume_without_this_package(tmp_path: Path) -> None:
    path = store.write_volume(tmp_path, prepared(), "{}")
    program = """
import sys
for name in ("aneurysm_ray", "ray", "torch"):
    sys.modules[name] = None
import numpy as np, pyarrow.parquet as pq
row = pq.read_table(sys.argv[1]).to_pylist()[0]
voxels = np.frombuffer(row["voxels"], row["dtype"]).reshape(row["shape"])
affine = np.reshape(row["affine"], (4, 4))
print(voxels.shape, int(voxels.sum()), row["spacing_mm"], affine[2, 3])
"""
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"(5, 6, 7) {int(prepared().voxels.sum())} [0.8, 0.5, 0.5] 11.125"


def test_the_table_lists_series_in_order_with_unknown_labels_as_nan(tmp_path: Path) -> None:
    second = replace(prepared(), series_uid="1.10", quality=(), points=())
    store.write_table(tmp_path, [store.table_row(second, 7), store.table_row(prepared(), 9)])
    table = store.volumes_table(tmp_path)
    assert table["series_uid"].tolist() == ["1.10", UID]
    assert table["bytes"].tolist() == [7, 9]
    assert table["path"][1] == store.volume_path(UID)
    assert table[LABELS[0]].tolist() == [0.0, 0.0]
    assert table[LABELS[1]].isna().all()
    assert table[LABELS[13]].dtype == np.float32
    assert list(table["shape"][1]) == [5, 6, 7]
    assert table["points"][1][0] == {"z": 1.25, "y": 2.5, "x": 3.0, "location": LABELS[6], "radius_mm": 2.75}


@pytest.mark.parametrize("uid", ["", "../../etc/passwd", "/abs", "1.2/3", "1" * 65, "..", ".1", "1.2\n", "1.2\x00"])
def test_a_uid_that_is_no_uid_never_names_a_file(uid: str) -> None:
    with pytest.raises(SeriesError) as caught:
        store.volume_path(uid)
    assert caught.value.reason == "unsafe_path"


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match=r"absent\.parquet: cannot be read"):
        store.read_volume(tmp_path / "absent.parquet")
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(store.encode(prepared(), "{}")[:-40])
    with pytest.raises(RunDirError, match="not a volume file"):
        store.read_volume(damaged)
    with pytest.raises(RunDirError, match="run aneurysm-ray prepare DATA OUT first"):
        store.volumes_table(tmp_path)
