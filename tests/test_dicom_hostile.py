"""Hostile folders and damaged files, in children with 1.5 GB of address space: good slices survive, with reasons."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from dicom_files import ct_slice, save, write_series
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from aneurysm_ray.data.dicom import QUALITY, read_series
from aneurysm_ray.data.dicom.files import list_files
from aneurysm_ray.data.dicom.quality import Dropped, refuse
from aneurysm_ray.errors import SERIES_REASONS, SeriesError

SURVIVING = 5


def script(name: str) -> ModuleType:
    """Import a benchmark, which is a script and no package."""
    path = Path(__file__).resolve().parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def good_slices(folder: Path) -> list[Path]:
    folder.mkdir()
    files = [save(ct_slice(z), folder / f"00{z}.dcm") for z in range(SURVIVING)]
    return files


def test_hostile_folders_cost_no_more_than_their_hostile_files(tmp_path: Path) -> None:
    hostile = script("dicom_hostile")
    survivors = hostile.build(tmp_path / "hostile", good_slices(tmp_path / "good"))
    results = hostile.read_all([tmp_path / "hostile" / name for name in survivors])
    assert [Path(result["folder"]).name for result in results] == list(survivors)  # no crash of the interpreter
    slices = {Path(result["folder"]).name: result["slices"] for result in results}
    assert slices == {name: SURVIVING if survive else 0 for name, survive in survivors.items()}
    told = {Path(result["folder"]).name: result["told"] for result in results}
    assert told["empty"].startswith("no_files")
    assert told["bomb.zip"].startswith("bad_archive")
    assert "inflates to more than" in told["deflate bomb of 2 GB"]
    assert "is truncated" in told["PixelData of 4 GB in a small file"]
    assert max(result["mb"] for result in results) < 500


def test_the_real_hostile_folders(shared_data: Path) -> None:
    hostile = script("dicom_hostile")
    folders = sorted((shared_data / "dicom" / "bad").iterdir())
    assert len(folders) >= 27
    slices = {Path(result["folder"]).name: result["slices"] for result in hostile.read_all(folders)}
    nothing = {"deflate_bomb_200MB", "empty_folder", "mpeg_like_syntax", "not_dicom", "only_zero_byte"}
    whole = {"long_pixeldata_ok": 6, "mixed_with_junk": 6, "mixed_series": 3}
    assert slices == {
        folder.name: 0 if folder.name in nothing else whole.get(folder.name, SURVIVING) for folder in folders
    }


def test_a_short_run_of_the_fuzzer_finds_nothing(tmp_path: Path) -> None:
    fuzzer = script("fuzz_dicom")
    for name, syntax in (("rle", RLELossless), ("lossless", JPEGLosslessSV1), ("ls", JPEGLSLossless)):
        write_series(tmp_path / name, 2, syntax)
    write_series(tmp_path / "j2k", 3, JPEG2000Lossless)
    write_series(tmp_path / "plain", 2)
    outcomes, findings, _ = fuzzer.fuzz(tmp_path, seed=3, start=0, count=600)
    assert findings == []
    assert sum(outcomes.values()) == 600
    assert set(outcomes) >= {"volume", "single_slice", "unreadable_pixels"}  # the mutations reach something


def test_links_are_followed_wherever_they_lead_and_circles_end(tmp_path: Path) -> None:
    """A disk tool or git-annex leaves links to the files, or to whole folders; a folder is listed once."""
    elsewhere = write_series(tmp_path / "elsewhere", [ct_slice(z) for z in range(3, 5)])
    store = write_series(tmp_path / "store" / "objects", [ct_slice(z) for z in range(5, 7)])
    folder = write_series(tmp_path / "inside", 3)
    (folder / "more").symlink_to(elsewhere, target_is_directory=True)
    for number, file in enumerate(sorted(store.iterdir())):
        (folder / f"link{number}").symlink_to(Path("..") / file.relative_to(tmp_path))
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (elsewhere / "up").symlink_to(tmp_path / "inside", target_is_directory=True)
    (folder / "itself").symlink_to(folder / "itself")
    listed = list_files(folder)
    assert len(listed.files) == 7
    assert [(Path(drop.file).name, drop.code) for drop in listed.left_out] == [("itself", "dangling_links")]
    volume = read_series(folder)
    assert (volume.shape[0], volume.quality) == (7, ("dangling_links",))


def test_links_that_lead_nowhere_are_told_with_their_cure(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", 3)
    (folder / "old").symlink_to(tmp_path / "gone")
    (folder / "annexed").symlink_to("../.git/annex/objects/aa/bb/MD5E-s1--00/MD5E-s1--00")
    volume = read_series(folder)
    assert (volume.shape[0], volume.quality) == (3, ("dangling_links",))
    assert {name: "git annex get" in why for name, why in volume.dropped} == {"old": False, "annexed": True}
    for file in folder.glob("*.dcm"):
        file.unlink()
    (folder / "old").unlink()
    with pytest.raises(SeriesError, match="git annex get") as refusal:
        read_series(folder)
    assert refusal.value.reason == "vanished"


def test_a_link_to_a_pipe_or_a_device_is_no_file(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", 3)
    os.mkfifo(tmp_path / "pipe")
    (folder / "pipe").symlink_to(tmp_path / "pipe")
    (folder / "zero").symlink_to("/dev/zero")
    assert len(list_files(folder).files) == 3
    assert read_series(folder).shape[0] == 3


def test_folders_that_are_too_deep_are_told(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", 3)
    write_series(folder / "/".join("abcdefghij"), 2)
    volume = read_series(folder)
    assert volume.shape[0] == 3
    assert [why for _, why in volume.dropped] == ["is more than 8 folders deep"]


def test_every_code_has_a_reason_that_a_series_can_be_refused_with() -> None:
    """Whatever is the commonest thing that is wrong with a series, its refusal is a SeriesError."""
    for code in QUALITY:
        drops = [Dropped("/in/a", code, "is so"), Dropped("/in/b", code, "is so")]
        assert refuse(Path("/in"), drops).reason in SERIES_REASONS
    few = [Dropped("/in/a", "no_geometry", "has no place"), *[Dropped("/in/b", "other_series", "is another's")] * 5]
    assert refuse(Path("/in"), few).reason == "no_geometry"
    assert [str(refuse(Path("/in"), few[:count])).partition(" (")[2] for count in (2, 6)] == [
        "and 1 more file)",
        "and 5 more files)",
    ]
    assert refuse(Path("/in"), []).reason == "no_images"


def test_objects_made_of_images_do_not_compete_with_them(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", 3)
    kinds = {
        "1.2.840.10008.5.1.4.1.1.66.4": "SEG",
        "1.2.840.10008.5.1.4.1.1.30": "OT",
        "1.2.840.10008.5.1.4.1.1.481.2": "RTDOSE",
        "1.2.826.1": "SEG",
    }
    for number, (sop_class, modality) in enumerate(kinds.items()):
        for z in range(6):
            made = ct_slice(z, Modality=modality, SeriesInstanceUID=f"1.2.{number}", SOPInstanceUID=f"1.3.{number}.{z}")
            made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = sop_class
            save(made, folder / f"derived {number} {z}.dcm")
    volume = read_series(folder)
    assert (volume.shape[0], volume.quality) == (3, ("derived_objects",))
    for file in folder.glob("*-*.dcm"):
        file.unlink()
    with pytest.raises(SeriesError, match=r"is a (segmentation|parametric map|dose map), no image") as refusal:
        read_series(folder)
    assert refusal.value.reason == "no_images"


def test_names_that_are_no_text_are_read_and_told(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", 3)
    for file in list(folder.iterdir()):
        os.rename(file, os.path.join(os.fsencode(folder), b"sch\xe4del" + os.fsencode(file.name)))
    assert read_series(folder).shape[0] == 3
    for file in sorted(folder.iterdir())[1:]:
        file.unlink()
    with pytest.raises(SeriesError) as refusal:
        read_series(folder)
    str(refusal.value).encode()
    for file in folder.iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(SeriesError, match=r"sch\\udce4del") as refusal:
        read_series(folder)
    assert refusal.value.told == "is no DICOM file"


def test_folders_within_the_folder_are_searched(tmp_path: Path) -> None:
    write_series(tmp_path / "series" / "DICOM", 3)
    assert read_series(tmp_path / "series").shape[0] == 3


@pytest.mark.parametrize("name", ["nowhere", "nowhere.zip"])
def test_a_source_that_is_not_there_has_vanished(tmp_path: Path, name: str) -> None:
    with pytest.raises(SeriesError) as refusal:
        read_series(tmp_path / name)
    assert refusal.value.reason == "vanished"


def test_a_volume_beyond_the_limit_is_refused_before_memory_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_series(tmp_path, 3)
    monkeypatch.setattr("aneurysm_ray.data.dicom.assemble.MAX_VOLUME_BYTES", 2000)
    with pytest.raises(SeriesError) as refusal:
        read_series(folder)
    assert refusal.value.reason == "too_large"


def test_memory_that_is_not_there_has_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    folder = write_series(tmp_path, 3)
    monkeypatch.setattr("aneurysm_ray.data.dicom.reader.assemble", refuse)
    with pytest.raises(SeriesError) as refusal:
        read_series(folder)
    assert refusal.value.reason == "memory"
