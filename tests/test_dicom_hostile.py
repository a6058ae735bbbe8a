"""Hostile folders and damaged files, in children with 1.5 GB of address space: good slices survive, with reasons."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from dicom_files import ct_slice, save, write_series
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from aneurysm_ray.data.dicom import read_series
from aneurysm_ray.data.dicom.files import list_files
from aneurysm_ray.errors import SeriesError

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


def test_links_are_followed_only_inside_the_folder(tmp_path: Path) -> None:
    outside = write_series(tmp_path / "outside", 2)
    folder = write_series(tmp_path / "inside", 3)
    (folder / "out").symlink_to(next(outside.iterdir()))
    (folder / "in").symlink_to(next(folder.glob("*.dcm")))
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    assert {Path(file).name for file in list_files(folder)} == {
        "in",
        *(file.name for file in folder.glob("*.dcm")),
    }
    assert read_series(folder).shape[0] == 3


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
