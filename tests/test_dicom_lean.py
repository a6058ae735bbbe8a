"""The lean walk and pydicom must find the same things, and our pixels must be pydicom's."""

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import ct_slice, save, write_series
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless, RLELossless

from aneurysm_ray.data.dicom.elements import Short, walk
from aneurysm_ray.data.dicom.files import OpenFiles
from aneurysm_ray.data.dicom.header import HEAD_BYTES, RawHeader, lean_header, pydicom_header, read_header
from aneurysm_ray.data.dicom.layouts import MAX_LAYOUTS, Layouts
from aneurysm_ray.data.dicom.quality import BadFile, Odd
from aneurysm_ray.data.dicom.reader import frames_of, read_series, volume_of


def both_ways(file: Path) -> tuple[RawHeader, RawHeader] | None:
    """Return a header by the lean walk and by pydicom; None where the walk leaves it to pydicom."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        size = file.stat().st_size
        head = os.pread(descriptor, 2**14, 0)
        return lean_header(head, descriptor, size), pydicom_header(head, descriptor, size)
    except (Odd, BadFile):
        return None
    finally:
        os.close(descriptor)


def assert_same(lean: RawHeader, slow: RawHeader) -> None:
    assert {tag: value.rstrip(b"\0 ") for tag, value in lean.values.items()} == {
        tag: value.rstrip(b"\0 ") for tag, value in slow.values.items()
    }
    for name in ("syntax", "little_endian", "pixel_offset", "pixel_length", "pixel_vr", "size"):
        assert getattr(lean, name) == getattr(slow, name), name


def test_both_ways_give_the_same_header_of_every_real_file(shared_data: Path) -> None:
    compared = 0
    for file in sorted((shared_data / "dicom").glob("[!br]*/*")):
        if file.is_file() and "deflate" not in str(file).lower():
            headers = both_ways(file)
            if headers:
                assert_same(*headers)
                compared += 1
    assert compared > 500


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, JPEGLSLossless])
def test_both_ways_give_the_same_volume(tmp_path: Path, syntax: str) -> None:
    folder = write_series(tmp_path / "series", 4, syntax)
    volumes = []
    for way in (0, 1):
        frames = []
        for file in sorted(folder.iterdir()):
            headers = both_ways(file)
            assert headers is not None
            frames += frames_of(str(file), headers[way])
        with OpenFiles() as opened:
            volumes.append(volume_of(folder, frames, [], opened))
    lean, slow = volumes
    np.testing.assert_array_equal(lean.voxels, slow.voxels)
    np.testing.assert_array_equal(lean.affine, slow.affine)
    assert (lean.voxels.dtype, lean.quality, lean.instances) == (slow.voxels.dtype, slow.quality, slow.instances)


def test_pixels_are_those_of_pydicom(shared_data: Path) -> None:
    """Native and RLE pixels, which pydicom decodes without plug-ins."""
    for name in ("q_plain", "q_rle", "q_signed", "q_8bit", "q_big_endian", "q_overlay_bits", "d2n_hitachi"):
        volume = read_series(shared_data / "dicom" / name)
        z_of = {uid: z for z, (uid, _) in enumerate(volume.instances)}
        for file in (shared_data / "dicom" / name).iterdir():
            dataset = pydicom.dcmread(file)
            expected = dataset.pixel_array.astype(int) * int(dataset.get("RescaleSlope", 1))
            expected += int(dataset.get("RescaleIntercept", 0))
            np.testing.assert_array_equal(volume.voxels[z_of[dataset.SOPInstanceUID]], expected, err_msg=str(file))


def nested(depth: int, **tags: object) -> Dataset:
    """Return a slice with sequences of undefined length within each other."""
    dataset = ct_slice(0, **tags)
    inner = Dataset()
    inner.PatientID = "inside"
    for _ in range(depth):
        outer = Dataset()
        outer.ReferencedImageSequence = Sequence([inner])
        outer["ReferencedImageSequence"].is_undefined_length = True
        inner.is_undefined_length_sequence_item = True
        inner = outer
    dataset.ReferencedImageSequence = Sequence([inner])
    dataset["ReferencedImageSequence"].is_undefined_length = True
    return dataset


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_sequences_are_stepped_over_and_their_elements_not_taken(tmp_path: Path, syntax: str) -> None:
    headers = both_ways(save(nested(5), tmp_path / "a.dcm", syntax))
    assert headers is not None
    assert_same(*headers)
    assert headers[0].values[0x0010_0020] == b"P1"


def test_headers_longer_than_the_first_read(tmp_path: Path) -> None:
    dataset = ct_slice(0)
    dataset.add_new(0x0029_0010, "LO", "PRIVATE")
    dataset.add_new(0x0029_1010, "OB", bytes(300_000))
    headers = both_ways(save(dataset, tmp_path / "a.dcm"))
    assert headers is not None
    assert_same(*headers)
    assert headers[0].pixel_offset > 300_000


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def test_walk_by_hand() -> None:
    data = element(0x0008, 0x0060, b"CS", b"CT") + element(0x0028, 0x0010, b"US", b"\x18\0")
    data += struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, 12)
    values, offset, length, vr = walk(data, 0, explicit=True)
    assert values == {0x0008_0060: b"CT", 0x0028_0010: b"\x18\0"}
    assert (offset, length, vr) == (len(data), 12, b"OW")


def test_walk_says_when_the_buffer_is_short_and_when_a_file_is_odd() -> None:
    data = element(0x0008, 0x0060, b"CS", b"CT")
    with pytest.raises(Short):
        walk(data, 0, explicit=True)
    with pytest.raises(Short):
        walk(data[:-1], 0, explicit=True)
    with pytest.raises(Odd):
        walk(element(0x0008, 0x0005, b"??", b"CT"), 0, explicit=True)
    with pytest.raises(Odd):  # functional groups
        walk(struct.pack("<HH2sHI", 0x5200, 0x9230, b"SQ", 0, 0), 0, explicit=True)
    with pytest.raises(Odd):  # 200,000 empty elements
        walk(element(0x0009, 0x0001, b"LO", b"") * 200_000, 0, explicit=True)


def header_or_defect(read: Callable[[int, int], RawHeader], file: Path) -> object:
    """Return what is found in a file: its header's fields, or why there are none."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        raw = read(descriptor, file.stat().st_size)
        return [getattr(raw, name) for name in RawHeader.__dataclass_fields__ if name != "dataset"]
    except BadFile as problem:
        return problem.code, str(problem)
    finally:
        os.close(descriptor)


def walked(descriptor: int, size: int) -> RawHeader:
    return read_header(os.pread(descriptor, HEAD_BYTES, 0), descriptor, size)


def test_headers_read_by_a_known_layout_are_those_of_the_walk(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walks = files = 0

    def counted(head: bytes, descriptor: int, size: int) -> RawHeader:
        nonlocal walks
        walks += 1
        return read_header(head, descriptor, size)

    monkeypatch.setattr("aneurysm_ray.data.dicom.layouts.read_header", counted)
    for name in ("d2n_hitachi", "mr_t1_implicit_rect", "q_plain", "q_slope_per_slice", "q_two_stacks", "q_uneven_gap"):
        layouts = Layouts()
        for file in sorted((shared_data / "dicom" / name).iterdir()):
            files += 1
            assert header_or_defect(layouts.read_header, file) == header_or_defect(walked, file), str(file)
    assert 0 < walks < files / 3


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_changed_byte_anywhere_in_a_header_is_seen_in_spite_of_the_layout(tmp_path: Path, syntax: str) -> None:
    whole = save(nested(2), tmp_path / "a.dcm", syntax).read_bytes()
    layouts = Layouts()
    file = tmp_path / "b.dcm"
    file.write_bytes(whole)
    first = header_or_defect(layouts.read_header, file)
    draw = random.Random(0)
    by_layout = 0
    for place in range(len(whole) - 24 * 24 * 2):
        changed = bytearray(whole)
        changed[place] ^= draw.randrange(1, 256)
        file.write_bytes(changed)
        found = header_or_defect(layouts.read_header, file)
        assert found == header_or_defect(walked, file), f"byte {place}"
        by_layout += found != first
    assert by_layout > 100


def test_no_more_layouts_are_learnt_than_are_of_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learnt = []

    class Useless:
        def __init__(self, raw: RawHeader, head: bytes) -> None:
            learnt.append(raw)

        def read(self, head: bytes, size: int) -> None:
            return None

    monkeypatch.setattr("aneurysm_ray.data.dicom.layouts._Layout", Useless)
    layouts = Layouts()
    for index in range(MAX_LAYOUTS + 9):
        file = save(ct_slice(0, SeriesDescription="x" * 2 * index), tmp_path / f"{index}.dcm")
        assert header_or_defect(layouts.read_header, file) == header_or_defect(walked, file)
    assert len(learnt) == MAX_LAYOUTS
