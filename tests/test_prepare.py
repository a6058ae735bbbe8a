"""Preparing a data set with Ray Data: complete, resumable, private, and within its folder."""

import json
import os
import shutil
import subprocess
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dicom_sets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from ray.exceptions import ActorDiedError

from aneurysm_ray import rundir
from aneurysm_ray.config import Config
from aneurysm_ray.data import catalogue, identity, ledger, store, work
from aneurysm_ray.distributed import prepare as preparation
from aneurysm_ray.distributed import session
from aneurysm_ray.distributed.data_passes import Pass
from aneurysm_ray.distributed.prepare import PrepareSummary, prepare
from aneurysm_ray.distributed.progress import Status
from aneurysm_ray.errors import AneurysmRayError, DatasetError, OutputError, RequestError, RunDirError, SeriesError
from aneurysm_ray.labels import LABELS
from aneurysm_ray.overrides import build

CONFIG = build({"volume.spacing_mm": (5.0, 5.0, 5.0)})
KEY = "a test's key"


@pytest.fixture(scope="module", autouse=True)
def _key() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(identity.KEY_VARIABLE, KEY)
        # Each actor imports for seconds what these small series need for moments.
        patch.setattr(preparation, "workers_on", lambda nodes, need: 1)
        yield


def name_of(place: str) -> str:
    """By what a set knows a place."""
    return identity.place_hash(KEY.encode(), place)


def run(data: Path, out: Path, config: Config = CONFIG, **kwargs: Any) -> PrepareSummary:
    return prepare(str(data), str(out), config, **kwargs)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five good series, a folder of text, a folder of one slice and an archive."""
    root = tmp_path_factory.mktemp("data")
    dicom_sets.write_set(root)
    (root / "series" / "1.2.3").mkdir()
    (root / "series" / "1.2.3" / "notes.txt").write_text("no image")
    dicom_sets.write_series(root / "series" / "1.2.4", "1.2.4", slices=1)
    uid = dicom_sets.series_uid(7)
    dicom_sets.write_series(root / uid, uid)
    shutil.make_archive(str(root / "series" / uid), "zip", root / uid)
    shutil.rmtree(root / uid)
    return root


@pytest.fixture(scope="module")
def prepared(data: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> tuple[Path, PrepareSummary]:
    out = tmp_path_factory.mktemp("out") / "volumes"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "workers_on", lambda nodes, need: 2)
        return out, run(data, out)


def test_every_series_is_a_volume_or_has_its_reason(prepared: tuple[Path, PrepareSummary]) -> None:
    out, summary = prepared
    assert (summary.prepared, summary.rejected, summary.kept, summary.removed) == (6, 2, 0, ())
    table = store.volumes_table(out)
    assert table["series_uid"].tolist() == sorted(map(dicom_sets.series_uid, [0, 1, 2, 3, 4, 7]))
    assert rundir.read_csv(out / rundir.REJECTED)[["source", "reason"]].values.tolist() == [
        [name, reason]
        for name, reason in sorted([(name_of("series/1.2.3"), "no_images"), (name_of("series/1.2.4"), "single_slice")])
    ]
    facts = rundir.read_json(out / rundir.PREPARE)
    assert (facts["kind"], facts["complete"], facts["prepared"]) == ("volumes", True, 6)
    assert facts["reasons"] == {"no_images": 1, "single_slice": 1}
    assert rundir.kind(out) == "volumes"


def test_volumes_carry_labels_points_and_patients(prepared: tuple[Path, PrepareSummary]) -> None:
    table = store.volumes_table(prepared[0]).set_index("series_uid")
    row = table.loc[dicom_sets.series_uid(1)]
    volume = store.read_volume(prepared[0] / row["path"])
    assert (row["modality"], row[LABELS[6]], row[LABELS[0]]) == ("CTA", 1, 0)
    (point,) = volume.points
    mm = volume.affine[:3, :3] @ [point.z, point.y, point.x] + volume.affine[:3, 3]
    np.testing.assert_allclose(mm, [20 * 5 - 97.5, 18 * 5 - 97.5, 50], atol=1e-6)
    assert volume.voxels.shape == tuple(row["shape"])
    assert table["patient"].nunique() == 6
    assert (prepared[0] / row["path"]).stat().st_size == row["bytes"]
    assert (prepared[0] / store.picture_path(volume.series_uid)).read_bytes()[:2] == b"\xff\xd8"
    assert table.loc[dicom_sets.series_uid(7)][list(LABELS)].isna().all(), "no table names the archive's series"


def test_another_run_gives_the_same_bytes(data: Path, prepared: tuple[Path, PrepareSummary], tmp_path: Path) -> None:
    run(data, tmp_path / "again")
    assert dicom_sets.contents(tmp_path / "again") == dicom_sets.contents(prepared[0])


@pytest.fixture
def copies(data: Path, prepared: tuple[Path, PrepareSummary], tmp_path: Path) -> tuple[Path, Path]:
    """A data set and a set prepared from it that a test may change; times of files are kept."""
    shutil.copytree(data, tmp_path / "data")
    shutil.copytree(prepared[0], tmp_path / "volumes")
    shutil.copy(identity.places_path(str(prepared[0])), tmp_path / "volumes.sources.csv")
    return tmp_path / "data", tmp_path / "volumes"


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("??/*.parquet")}


def test_a_second_run_redoes_nothing(copies: tuple[Path, Path]) -> None:
    data, out = copies
    before, table = times(out), (out / rundir.VOLUMES).read_bytes()
    summary = run(data, out)
    assert (summary.prepared, summary.rejected, summary.kept) == (6, 2, 8)
    assert times(out) == before
    assert (out / rundir.VOLUMES).read_bytes() == table


def test_what_changed_is_redone_and_what_went_is_reported(copies: tuple[Path, Path], ray_session: None) -> None:
    data, out = copies
    before = times(out)
    os.utime(next((data / "series" / dicom_sets.series_uid(0)).iterdir()))
    shutil.rmtree(data / "series" / dicom_sets.series_uid(1))
    labels = pd.read_csv(data / "train.csv", dtype=str)
    labels.loc[labels["SeriesInstanceUID"] == dicom_sets.series_uid(2), LABELS[0]] = "1"
    labels.to_csv(data / "train.csv", index=False)
    (out / store.volume_path(dicom_sets.series_uid(3))).unlink()
    (data / "series" / "1.2.3" / "notes.txt").unlink()
    summary = run(data, out)
    assert summary.removed == (f"series/{dicom_sets.series_uid(1)}",)
    assert (summary.prepared, summary.rejected, summary.kept) == (5, 2, 3)
    changed = {name for name, time in times(out).items() if time != before[name]}
    assert changed == {f"{dicom_sets.series_uid(number)}.parquet" for number in (0, 2, 3)}
    table = store.volumes_table(out).set_index("series_uid")
    assert dicom_sets.series_uid(1) not in table.index
    assert table.loc[dicom_sets.series_uid(2)][LABELS[0]] == 1
    assert sorted(rundir.read_csv(out / rundir.REJECTED)["reason"]) == ["no_files", "single_slice"]


def test_a_series_that_is_none_any_more_leaves_no_volume(copies: tuple[Path, Path], ray_session: None) -> None:
    data, out = copies
    uid = dicom_sets.series_uid(0)
    for path in sorted((data / "series" / uid).iterdir())[1:]:
        path.unlink()
    assert run(data, out).rejected == 3
    assert not (out / store.volume_path(uid)).exists()
    assert not (out / store.picture_path(uid)).exists()


def test_a_run_that_was_stopped_before_its_first_series_is_gone_on_with(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(session, "connect", stopped)
        run(data, tmp_path / "out")
    assert (tmp_path / "out" / rundir.VOLUMES).exists()
    ledger.check_foreign(str(tmp_path / "out"))


def test_other_settings_another_key_or_a_foreign_folder_are_refused(
    copies: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = copies
    with pytest.raises(RunDirError, match=r"volume\.dtype=uint8, not int16"):
        run(data, out, build({"volume.dtype": "int16"}, base=CONFIG))
    key_file = tmp_path / "key"
    key_file.write_text("another")
    key_file.chmod(0o600)
    monkeypatch.delenv(identity.KEY_VARIABLE)
    with pytest.raises(RunDirError, match="another patient key"):
        run(data, out, build({"prepare.patient_key_file": str(key_file)}, base=CONFIG))
    with pytest.raises(RunDirError, match="holds no prepared set"):
        run(data, data)
    with pytest.raises(DatasetError, match="is not a folder"):
        run(data / "absent", out)


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("names", [["README.md"], ["a.txt", "sub/b.txt"], ["photo.jpg"]])
def test_a_folder_that_holds_no_image_is_a_wrong_one(tmp_path: Path, names: list[str], dry_run: bool) -> None:
    for name in names:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text("no image\n" * 100)
    with pytest.raises(DatasetError, match=r"data holds no series.* folder or archive of DICOM files per series"):
        run(tmp_path / "data", tmp_path / "out", dry_run=dry_run)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["/proc/volumes", "/dev/null/volumes"])
def test_a_place_that_cannot_be_written_is_refused_before_ray_starts(data: Path, out: str) -> None:
    with pytest.raises(RequestError, match="cannot be written"):
        prepare(str(data), out, CONFIG)


def test_hashing_the_content_finds_what_times_hide(ray_session: None, tmp_path: Path) -> None:
    data = tmp_path / "data"
    dicom_sets.write_set(data, 2)
    config = build({"prepare.digest": "content"}, base=CONFIG)
    out = tmp_path / "hashed"
    run(data, out, config)
    before = times(out)
    first = next((data / "series" / dicom_sets.series_uid(0)).iterdir())
    stat = first.stat()
    first.write_bytes(first.read_bytes()[:-2] + b"\x01\x02")
    for path in data.rglob("*.dcm"):
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    run(data, out, config)
    changed = {name for name, time in times(out).items() if time != before[name]}
    assert changed == {f"{dicom_sets.series_uid(0)}.parquet"}


def test_a_dry_run_tells_and_writes_nothing(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="aneurysm_ray")
    run(data, tmp_path / "out", dry_run=True)
    assert "8 series, 123 files" in caplog.text
    assert "GB of disk, judged by 5 series" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_ends_the_run_with_a_sentence_and_the_next_run_goes_on(
    data: Path, prepared: tuple[Path, PrepareSummary], tmp_path: Path
) -> None:
    out = tmp_path / "small"
    out.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(out)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        with pytest.raises(AneurysmRayError, match="No space left on device; make room"):
            run(data, out / "volumes")
        subprocess.run(["mount", "-o", "remount,size=100m", str(out)], check=True)
        run(data, out / "volumes")
        assert dicom_sets.contents(out / "volumes") == dicom_sets.contents(prepared[0])
    finally:
        subprocess.run(["umount", "-l", str(out)], check=True)


def one_task(path: Path, out: Path, key: str = "series/x", uid: str | None = None) -> work.Task:
    source = catalogue.Source(key, str(path), uid, None, (None,) * 14, (), digest="00")
    return work.Task(source, str(out), CONFIG.volume.model_dump(mode="json"), "00", False)


def test_a_task_survives_its_journey_as_json(data: Path, tmp_path: Path) -> None:
    found, _ = catalogue.find_sources(str(data))
    labelled = next(source for source in found if source.points)
    task = work.Task(labelled, str(tmp_path), CONFIG.volume.model_dump(mode="json"), "00", False)
    assert work.Task.from_json(task.to_json()) == task


@pytest.mark.parametrize(
    ("poison", "reason"), [("segfault", "crash"), ("sleep_for_ever", "timeout"), ("allocate_without_end", "memory")]
)
def test_poison_is_a_rejected_row_that_the_next_run_tries_again(
    poison: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import poisons

    monkeypatch.setattr(work, "prepare", getattr(poisons, poison))
    task = one_task(tmp_path, tmp_path / "out")
    preparer = preparation._Preparer(memory_mb=600, timeout_seconds=20 if reason != "timeout" else 1)
    row = preparer({"task": task.to_json()})
    preparer.guard.close()
    assert json.loads(row["status"])["reason"] == reason
    written = work.read_status(work.status_path(task.out, task.name))
    assert written is not None and written["reason"] == reason
    assert work.done_already(task, "00") is None


def test_a_uid_that_would_leave_the_set_is_rejected(tmp_path: Path) -> None:
    for number, uid in enumerate(["../../evil", "/tmp/evil", "1.2/../../evil", "1" * 70]):
        folder = tmp_path / "data" / str(number)
        folder.mkdir(parents=True)
        for index in range(9):
            image = dicom_sets.image("1.2.3", index)
            with warnings.catch_warnings(action="ignore"):
                image.SeriesInstanceUID = uid
            image.save_as(folder / f"{index}.dcm", enforce_file_format=True)
        status = work.prepare(one_task(folder, tmp_path / "out", key=str(number)))
        assert status["reason"] == "unsafe_path", status
    written = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert written == {"data", "out"}
    assert {path.relative_to(tmp_path / "out").parts[0] for path in (tmp_path / "out").rglob("*")} == {"status"}


def test_a_series_may_be_a_link_to_where_it_lies(tmp_path: Path) -> None:
    dicom_sets.write_series(tmp_path / "elsewhere", "1.2.3")
    (tmp_path / "data" / "series").mkdir(parents=True)
    (tmp_path / "data" / "series" / "1.2.3").symlink_to(tmp_path / "elsewhere")
    (source,) = catalogue.find_sources(str(tmp_path / "data"))[0]
    task = work.Task(source, str(tmp_path / "out"), CONFIG.volume.model_dump(mode="json"), "00", False)
    assert work.prepare(task)["row"]["series_uid"] == "1.2.3"


def test_an_archive_with_climbing_names_writes_nothing_outside(tmp_path: Path) -> None:
    dicom_sets.write_series(tmp_path / "files", "1.2.3")
    with zipfile.ZipFile(tmp_path / "1.2.3.zip", "w") as archive:
        for index, path in enumerate(sorted((tmp_path / "files").iterdir())):
            archive.write(path, f"../../../../{tmp_path}/evil/{index}.dcm")
    status = work.prepare(one_task(tmp_path / "1.2.3.zip", tmp_path / "out", uid="1.2.3"))
    assert status["row"]["shape"][0] > 8
    assert not (tmp_path / "evil").exists()


def test_of_several_series_with_one_uid_each_has_a_name_of_its_own(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        dicom_sets.write_series(tmp_path / name, "1.2.3")
    found, notes = catalogue.find_sources(str(tmp_path))
    assert {source.key: source.series_uid for source in found} == {"a": "1.2.3", "b": "1.2.3.2", "c": "1.2.3.3"}
    assert any("UID.2" in note for note in notes)


def test_large_series_come_first(tmp_path: Path) -> None:
    for number, slices in enumerate([9, 30, 20]):
        dicom_sets.write_series(tmp_path / str(number), dicom_sets.series_uid(number), slices=slices)
    found, _ = catalogue.find_sources(str(tmp_path))
    assert [source.key for source in found] == ["1", "2", "0"]
    assert [source.voxel_bytes for source in found] == [2 * 40 * 40 * slices for slices in (30, 20, 9)]


def test_status_says_rates_and_what_is_left() -> None:
    status = Status(total=200, done=50, rejected=3, total_bytes=8_000_000_000, done_bytes=2_000_000_000, seconds=100)
    assert str(status) == "50/200  25 %  0.5 series/s  0.020 GB/s  3 rejected  eta 5:00"
    assert Status(10, 0, 0, 10, 0, 0).eta_seconds == 0
    assert preparation.WORKER_BYTES > 0


def test_errors_of_the_set_end_the_task_and_not_the_series(tmp_path: Path) -> None:
    dicom_sets.write_series(tmp_path / "data", "1.2.3")
    with pytest.raises(OutputError, match="cannot be written"):
        work.prepare(one_task(tmp_path / "data", Path("/proc/volumes"), uid="1.2.3"))
    assert issubclass(OutputError, AneurysmRayError) and not issubclass(OutputError, SeriesError)


TEXT_VRS = {
    **{vr: "Xq7Zsecret" for vr in ("LO", "LT", "PN", "SH", "ST", "UC", "UT")},
    **{
        "AE": "Xq7Zsecret",
        "CS": "XQ7ZSECRET",
        "DA": "19470311",
        "DT": "19470311101112",
        "TM": "101112.471",
        "AS": "047Y",
    },
}
PLANTED = (b"Xq7Zsecret", b"XQ7ZSECRET", b"19470311", b"101112.471", b"047Y")


def plant(image: Dataset, kept: frozenset[int]) -> None:
    """Put a secret into every text element that the dictionary knows, and into private and nested ones."""
    nested = Dataset()
    for tag, entry in DicomDictionary.items():
        vr, multiplicity = entry[0], entry[1]
        if vr in TEXT_VRS and tag not in kept and tag >> 16 not in (0x0000, 0x0002) and multiplicity.startswith("1"):
            image.add_new(tag, vr, TEXT_VRS[vr])
            nested.add_new(tag, vr, TEXT_VRS[vr])
    block = image.private_block(0x0029, "Xq7Zsecret creator", create=True)
    block.add_new(0x10, "LO", "Xq7Zsecret private")
    block.add_new(0x11, "OB", b"Xq7Zsecret bytes")
    image.ReferencedPatientSequence = Sequence([nested])


def test_nothing_a_file_says_of_a_person_is_in_any_output(tmp_path: Path, ray_session: None) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    character_set = 0x00080005
    kept = frozenset(int(element.tag) for element in dicom_sets.image("1.2.3", 0)) - {0x00100020} | {character_set}
    for number in range(4):
        folder = data / str(number)
        folder.mkdir(parents=True)
        for index in range(9):
            image = dicom_sets.image(dicom_sets.series_uid(number), index)
            with warnings.catch_warnings(action="ignore"):
                plant(image, kept)
                if number == 1:  # no volume comes of these: their messages must keep quiet as well
                    image.Modality = "XQ7ZSECRET"
                if number == 2:
                    image.PhotometricInterpretation = "XQ7ZSECRET"
                if number == 3:
                    image.PixelSpacing = None
                    image[0x00280030].value = None
                image.save_as(folder / f"{index}.dcm", enforce_file_format=True)
    assert PLANTED[0] in (data / "0" / "0.dcm").read_bytes()
    summary = run(data, out)
    assert summary.prepared >= 1
    texts = b"".join(dicom_sets.contents(out).values()) + (out / rundir.PREPARE).read_bytes()
    for path in out.rglob("*.parquet"):
        # Parquet's pages are compressed, so what they say is searched as well as their bytes.
        texts += repr([{**row, "voxels": b""} for row in pq.read_table(path).to_pylist()]).encode()
        texts += b"".join(row.get("voxels", b"") for row in pq.read_table(path).to_pylist())
    assert [secret for secret in PLANTED if secret in texts] == []


def sized(number: int, voxel_bytes: int) -> work.Task:
    source = catalogue.Source(str(number), "/nowhere", None, None, (None,) * 14, (), voxel_bytes=voxel_bytes)
    return work.Task(source, "/nowhere", {}, "00", False)


def test_series_too_large_for_every_cpu_at_once_run_first_and_fewer_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 2**30
    node = {"Alive": True, "Resources": {"CPU": 4.0, "memory": 8.0 * gib}}  # four tasks at a time, 2 GiB each
    dead = {"Alive": False, "Resources": {"CPU": 1.0, "memory": 1.0}}
    monkeypatch.setattr("ray.nodes", lambda: [node, dead])
    tasks = [sized(0, 9 * gib), sized(1, gib), sized(2, gib // 4), sized(3, 0)]
    (large, first), (small, rest) = preparation._tiers(tasks)
    assert [task.source.key for task in first] == ["0", "1"]
    assert [task.source.key for task in rest] == ["2", "3"]
    assert large == 8 * gib, "no task asks for more than a node has, or Ray would wait for ever"
    assert small == int(preparation.WORKER_BYTES + preparation.VOLUME_COPIES * gib / 4) <= 2 * gib


def test_a_series_whose_worker_dies_is_tried_again_alone_and_rejected_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guilty, innocent = one_task(tmp_path, tmp_path / "out"), one_task(tmp_path, tmp_path / "out", key="innocent")
    passes: list[tuple[list[str], bool]] = []

    def results(tasks: list[work.Task], memory: int, one: Pass, config: Config) -> Iterator[dict[str, str]]:
        passes.append(([task.source.key for task in tasks], one.careful))
        if not one.lossy:
            raise ActorDiedError
        if len(passes) == 3:
            yield {"status": json.dumps({"key": innocent.name}), "failed": ""}

    monkeypatch.setattr(preparation, "_tiers", lambda tasks: [(1, tasks)] if tasks else [])
    monkeypatch.setattr(preparation, "_results", results)
    first, last = preparation._run([guilty, innocent], CONFIG, str(tmp_path))
    both = ["series/x", "innocent"]
    assert passes == [(both, False), (both, False), (both, True), (["series/x"], True)]
    assert first["key"] == innocent.name
    assert last["key"] == guilty.name and last["reason"] == "crash"
    assert work.done_already(guilty, "00") is None, "the next run should try it again"
