"""A series may be a folder, one file or an archive; an archive is not trusted."""

import io
import os
import resource
import stat
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from dicom_files import ct_slice, ramp, save, write_series

from aneurysm_ray.data.dicom import archives, read_series, scan_series
from aneurysm_ray.errors import SeriesError


def archive(folder: Path, path: Path) -> Path:
    """Pack a folder as the name of the archive says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
            for file in folder.iterdir():
                target.write(file, f"study/series/{file.name}")
    else:
        with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as target:
            target.add(folder, "study")
    return path


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz"])
def test_an_archive_reads_like_its_folder(tmp_path: Path, name: str) -> None:
    folder = write_series(tmp_path / "folder", 4)
    path = archive(folder, tmp_path / name)
    expected, volume = read_series(folder), read_series(path)
    np.testing.assert_array_equal(volume.voxels, expected.voxels)
    np.testing.assert_array_equal(volume.affine, expected.affine)
    assert (volume.instances, volume.quality) == (expected.instances, expected.quality)
    header = scan_series(path)
    assert header == scan_series(folder)


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private = tmp_path / "private"
    private.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(private))
    path = archive(write_series(tmp_path / "folder", 3), tmp_path / "a.zip")
    read_series(path)
    with pytest.raises(SeriesError):
        (tmp_path / "junk").mkdir()
        (tmp_path / "junk" / "a.txt").write_text("x")
        read_series(archive(tmp_path / "junk", tmp_path / "junk.zip"))
    assert list(private.iterdir()) == []


def test_one_file_is_a_series_where_it_has_many_frames(tmp_path: Path) -> None:
    whole = ct_slice(0, NumberOfFrames=3)
    whole.PixelData = b"".join(ramp(z).tobytes() for z in range(3))
    volume = read_series(save(whole, tmp_path / "whole.dcm"))
    assert volume.shape[0] == 3
    assert volume.quality == ("geometry_assumed",)


def refusal(path: Path) -> str:
    with pytest.raises(SeriesError) as error:
        read_series(path)
    assert str(path) in str(error.value)
    return error.value.reason


def test_names_that_climb_out_are_only_names(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "folder", 3)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as target:
        for index, file in enumerate(folder.iterdir()):
            target.writestr(("../../out", "/etc/out", "..\\out")[index] + str(index), file.read_bytes())
    assert read_series(path).shape[0] == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.zip", "folder"]


def test_links_in_archives_are_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as target:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo("x")
            info.type, info.linkname = kind, "/etc/passwd"
            target.addfile(info)
    assert refusal(path) == "no_files"
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as target:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        target.writestr(info, "/etc/passwd")
    assert refusal(path) == "no_files"


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ratio.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("a", bytes(20_000_000))
    assert refusal(path) == "bad_archive"
    folder = write_series(tmp_path / "folder", 3)
    monkeypatch.setattr(archives, "MAX_ARCHIVE_BYTES", 5000)
    assert refusal(archive(folder, tmp_path / "large.zip")) == "bad_archive"
    assert refusal(archive(folder, tmp_path / "large.tar")) == "bad_archive"


def test_a_member_longer_than_it_says_is_cut_off(tmp_path: Path) -> None:
    member = archives._Member("a", 10, lambda: io.BytesIO(bytes(1000)))
    with pytest.raises(SeriesError) as error:
        archives._unpack(tmp_path / "a.zip", member, tmp_path, 0)
    assert error.value.reason == "bad_archive"


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_damaged_archives_are_refused(tmp_path: Path, name: str) -> None:
    path = archive(write_series(tmp_path / "folder", 3), tmp_path / name)
    data = path.read_bytes()
    path.write_bytes(data[:300])
    assert refusal(path) == "bad_archive"
    path.write_bytes(b"no archive")
    assert refusal(path) == "bad_archive"


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    path = archive(write_series(tmp_path / "folder", 3), tmp_path / "a.zip")
    data = bytearray(path.read_bytes())
    place = 0
    while (place := data.find(b"PK\x01\x02", place)) >= 0:  # the encryption flag of each entry of the directory
        data[place + 8] |= 1
        place += 4
    path.write_bytes(data)
    assert refusal(path) == "bad_archive"


def test_a_series_of_more_files_than_may_be_open_is_read_and_all_are_closed(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", 40)
    expected = read_series(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The limit is on the number of a file, and those that other tests left open have gaps between their numbers.
    highest = max(int(number) for number in os.listdir("/proc/self/fd"))
    spare = [os.open(os.devnull, os.O_RDONLY) for _ in range(highest + 1 - len(os.listdir("/proc/self/fd")))]
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 24, hard))
    try:
        volume = read_series(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for number in spare:
            os.close(number)
    np.testing.assert_array_equal(volume.voxels, expected.voxels)
    assert volume.quality == expected.quality and volume.dropped == ()
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    assert not [link for link in links if os.path.realpath(link).startswith(str(tmp_path))]
