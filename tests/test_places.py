"""Series in archives and in an object store."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import dicom_sets
import fsspec
import nibabel
import numpy as np
import pytest

from aneurysm_ray.config import VolumeConfig
from aneurysm_ray.data import catalogue, places, store, urls, work
from aneurysm_ray.errors import DatasetError
from aneurysm_ray.labels import LABELS

VOLUME = VolumeConfig(spacing_mm=(5, 5, 5)).model_dump(mode="json")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("places")
    dicom_sets.write_set(root, 3, slices=12)
    return root


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A URL in a real S3-speaking server on the loopback."""
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").mkdir("heads")
        yield "s3://heads"
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        server.stop()


def tasks(data: str, out: str, *, content: bool = False) -> list[work.Task]:
    found, _ = catalogue.find_sources(data)
    return [work.Task(source, out, VOLUME, "00", content) for source in found]


def test_archives_stand_for_folders_and_keep_their_labels(data: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(data, root)
    for number, kind in ((1, "zip"), (2, "tar")):
        folder = root / "series" / dicom_sets.series_uid(number)
        shutil.make_archive(str(folder), kind, folder)
        shutil.rmtree(folder)
    found = {source.key: source for source in catalogue.find_sources(str(root))[0]}
    plain = {source.series_uid: source for source in catalogue.find_sources(str(data))[0]}
    uids = [dicom_sets.series_uid(number) for number in range(3)]
    assert sorted(found) == sorted([f"series/{uids[0]}", f"series/{uids[1]}.zip", f"series/{uids[2]}.tar"])
    for source in found.values():
        there = plain[source.series_uid]
        assert (source.targets, source.points, source.modality) == (there.targets, there.points, there.modality)
        assert source.voxel_bytes == there.voxel_bytes == 2 * 12 * 40 * 40


def test_archives_of_a_folder_without_tables_are_series_too(data: Path, tmp_path: Path) -> None:
    uids = [dicom_sets.series_uid(number) for number in range(2)]
    (tmp_path / "site").mkdir()
    shutil.make_archive(str(tmp_path / "site" / "head"), "zip", data / "series" / uids[0])
    shutil.copytree(data / "series" / uids[1], tmp_path / "plain")
    found = {source.key: source.series_uid for source in catalogue.find_sources(str(tmp_path))[0]}
    assert found == {"site/head.zip": uids[0], "plain": uids[1]}


def test_an_object_store_gives_the_same_volumes_as_a_folder(data: Path, bucket: str, tmp_path: Path) -> None:
    filesystem = fsspec.filesystem("s3")
    filesystem.put(f"{data}/", f"{bucket}/data", recursive=True)
    uid = dicom_sets.series_uid(1)
    local = {task.source.series_uid: work.prepare(task) for task in tasks(str(data), str(tmp_path))}
    remote_tasks = tasks(f"{bucket}/data", f"{bucket}/volumes")
    remote = {task.source.series_uid: work.prepare(task) for task in remote_tasks}
    assert set(remote) == set(local) == {dicom_sets.series_uid(number) for number in range(3)}
    there = store.read_volume(tmp_path / store.volume_path(uid))
    here = store.read_volume(f"{bucket}/volumes/{store.volume_path(uid)}")
    np.testing.assert_array_equal(here.voxels, there.voxels)
    assert here.points == there.points and len(here.points) == 1
    assert here.modality == "CTA" and here.targets[LABELS.index(LABELS[6])] == 1
    assert urls.size_of(f"{bucket}/volumes/{store.picture_path(uid)}")
    # Done is done: with the same ETags a second look finds every status good.
    assert all(work.done_already(task, task.source.digest) for task in remote_tasks)
    again = {task.source.series_uid: task for task in tasks(f"{bucket}/data", f"{bucket}/volumes")}
    assert again[uid].source.digest == remote[uid]["digest"]
    first = sorted(filesystem.find(f"{bucket}/data/series/{uid}"))[0]
    filesystem.pipe_file(first, filesystem.cat_file(first) + b"\0\0")
    changed = {task.source.series_uid: task for task in tasks(f"{bucket}/data", f"{bucket}/volumes")}
    assert changed[uid].source.digest != again[uid].source.digest


def test_masks_come_along_from_an_object_store(data: Path, bucket: str, tmp_path: Path) -> None:
    filesystem = fsspec.filesystem("s3")
    uid = dicom_sets.series_uid(1)
    root = tmp_path / "masked"
    shutil.copytree(data, root)
    labels = np.zeros((40, 40, 12), np.uint8)
    labels[12:18, 15:25, 4:9], labels[22:28, 15:25, 4:9] = 9, 10  # right at low x, as LPS has it
    affine = np.diag([-5.0, -5.0, 5.0, 1.0])
    affine[:2, 3] = 97.5
    dome = np.zeros_like(labels)
    dome[14:17, 18:22, 5:8] = 1
    (root / "segmentations").mkdir()
    for ending, mask in (("cowseg", labels), ("dome", dome)):
        image = nibabel.Nifti1Image(mask, affine)
        image.set_sform(affine, 1)
        nibabel.save(image, root / "segmentations" / f"{uid}_{ending}.nii.gz")
    filesystem.put(f"{root}/", f"{bucket}/masked", recursive=True)
    there = {status["row"]["series_uid"]: status for status in map(work.prepare, tasks(str(root), str(tmp_path)))}
    remote_tasks = tasks(f"{bucket}/masked", f"{bucket}/masks-out")
    here = {status["row"]["series_uid"]: status for status in map(work.prepare, remote_tasks)}
    told = [status["row"]["quality"] for status in (there[uid], here[uid])]
    assert told[0] == told[1] and not any(code.startswith("mask") for code in told[0])
    assert [status["row"]["has_vessels"] for status in (there[uid], here[uid])] == [True, True]
    assert sum(status["row"]["has_vessels"] + status["row"]["has_domes"] for status in here.values()) == 2
    local = store.read_volume(tmp_path / store.volume_path(uid))
    stored = store.read_volume(f"{bucket}/masks-out/{store.volume_path(uid)}")
    np.testing.assert_array_equal(stored.vessels, local.vessels)
    np.testing.assert_array_equal(stored.domes, local.domes)
    assert set(np.unique(local.vessels)) == {0, 9, 10}
    assert all(work.done_already(task, task.source.digest) for task in remote_tasks)
    mask = f"{bucket}/masked/segmentations/{uid}_cowseg.nii.gz"
    filesystem.pipe_file(mask, filesystem.cat_file(mask) + b"\0")
    changed = {task.source.series_uid: task for task in tasks(f"{bucket}/masked", f"{bucket}/masks-out")}
    assert [key for key, task in changed.items() if not work.done_already(task, task.source.digest)] == [uid]


def test_prefixes_below_each_other_are_series_of_their_own(bucket: str, tmp_path: Path) -> None:
    for number, name in enumerate(("a", "a/inner")):
        dicom_sets.write_series(tmp_path / str(number), dicom_sets.series_uid(number + 20), slices=9 + 3 * number)
        fsspec.filesystem("s3").put(f"{tmp_path / str(number)}/", f"{bucket}/nested/{name}", recursive=True)
    found, _ = catalogue.find_sources(f"{bucket}/nested")
    assert {source.key: (source.series_uid, source.files) for source in found} == {
        "a": (dicom_sets.series_uid(20), 9),
        "a/inner": (dicom_sets.series_uid(21), 12),
    }
    made = {task.source.key: work.prepare(task) for task in tasks(f"{bucket}/nested", str(tmp_path / "out"))}
    assert made["a"]["own_uid"] == dicom_sets.series_uid(20)
    assert "other_series" not in made["a"]["row"]["quality"]


def test_objects_with_climbing_names_belong_to_no_series(bucket: str) -> None:
    assert places._remote_series("series/../../etc/passwd", True) == (None, "")
    assert places._remote_series("a/../b/1.dcm", False) == (None, "")
    assert places._remote_series("series/1.2/x/1.dcm", True) == ("series/1.2", "x/1.dcm")
    assert places._remote_series("site/1.zip", False) == ("site/1.zip", "1.zip")


def test_a_bucket_that_is_not_there_is_a_sentence(bucket: str) -> None:
    with pytest.raises(DatasetError, match=r"cannot be listed|holds no series"):
        catalogue.find_sources("s3://no-such-bucket/data")


def test_files_of_an_object_store_are_written_whole_and_read_back(bucket: str) -> None:
    where = urls.join(f"{bucket}/set/", "a/b.bin")
    assert where == f"{bucket}/set/a/b.bin"
    assert urls.read_bytes(where) is None and urls.size_of(where) is None
    urls.write_bytes(where, b"12345")
    assert urls.read_bytes(where) == b"12345" and urls.size_of(where) == 5
    assert urls.files_below(f"{bucket}/set") == [where]
    urls.remove(where)
    assert urls.files_below(f"{bucket}/set") == []
