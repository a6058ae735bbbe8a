"""Headers that contradict their pixels: read as what is there, with a code, or refused with the true cause."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import COLUMNS, ENCODERS, ROWS, ct_slice, ramp, save, write_series
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1, RLELossless

from aneurysm_ray.data.dicom import read_series
from aneurysm_ray.errors import SeriesError

SIZE = 64
DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"


def head_hu(z: int) -> NDArray[np.int16]:
    """A slice in Hounsfield units: air around, brain with noise, a ring of bone."""
    rng = np.random.default_rng(z)
    y, x = np.indices((SIZE, SIZE)) - SIZE / 2 + 0.5
    radius = np.hypot(y, x)
    hu = np.where(radius < 25, 35, np.where(radius < 28, 1100, -1000)) + rng.normal(0, 6, (SIZE, SIZE))
    return hu.astype(np.int16)


def head(z: int, stored: NDArray[Any], **tags: Any) -> Dataset:
    bits = {"BitsStored": 16, "HighBit": 15, "BitsAllocated": 16}
    return ct_slice(z, stored, **{**bits, **tags})


@pytest.mark.parametrize("intercept", [-1024, -1000])
def test_hounsfield_units_that_are_rescaled_again_are_left_as_they_are(tmp_path: Path, intercept: int) -> None:
    made = [head(z, head_hu(z), RescaleIntercept=intercept) for z in range(6)]
    volume = read_series(write_series(tmp_path, made))
    np.testing.assert_array_equal(volume.voxels, [head_hu(z) for z in range(6)])
    assert volume.quality == ("rescale_twice",)


def test_only_the_slices_that_are_rescaled_twice_are_mended(tmp_path: Path) -> None:
    made = [
        head(z, head_hu(z)) if z % 2 else head(z, (head_hu(z) + 1024).astype(np.uint16), PixelRepresentation=0)
        for z in range(8)
    ]
    volume = read_series(write_series(tmp_path, made))
    np.testing.assert_array_equal(volume.voxels, [head_hu(z) for z in range(8)])
    assert volume.quality == ("rescale_varies", "rescale_twice")


@pytest.mark.parametrize(
    ("outside", "tags", "quality"),
    [(-2000, {}, ()), (-2000, {"PixelPaddingValue": -2000}, ("padding",)), (-1024, {}, ())],
)
def test_a_value_for_what_lies_outside_is_no_second_rescale(
    tmp_path: Path, outside: int, tags: dict[str, Any], quality: tuple[str, ...]
) -> None:
    """GE stores -2000 beside its circle, in signed pixels with an intercept of -1024 that is right."""
    made = []
    for z in range(6):
        stored = head_hu(z) + 1024
        stored[:, :6] = outside
        made.append(head(z, stored.astype(np.int16), **tags))
    volume = read_series(write_series(tmp_path, made))
    np.testing.assert_array_equal(volume.voxels[:, :, 6:], [head_hu(z)[:, 6:] for z in range(6)])
    assert volume.quality == quality


@pytest.mark.parametrize("shift", [-1024, 900, 2000, -700])
def test_values_that_are_no_hounsfield_units_are_doubted_on_both_sides(tmp_path: Path, shift: int) -> None:
    made = [head(z, (head_hu(z) + 1024).astype(np.int16), RescaleIntercept=-1024 + shift) for z in range(6)]
    volume = read_series(write_series(tmp_path, made))
    assert ("hu_doubtful" in volume.quality) == (shift in (-1024, 900, 2000, -700))
    assert (
        read_series(
            write_series(tmp_path / "right", [head(z, head_hu(z), RescaleIntercept=0) for z in range(3)])
        ).quality
        == ()
    )


def test_scaled_bytes_are_no_hounsfield_units(tmp_path: Path) -> None:
    made = [ct_slice(z, (ramp(z) // 12).astype(np.uint8), RescaleIntercept=-1024) for z in range(3)]
    assert "hu_doubtful" in read_series(write_series(tmp_path, made)).quality


def smooth(top: int, dtype: type) -> list[NDArray[Any]]:
    """Slices that climb smoothly from 0, or minus a third, to a top."""
    bottom = 0 if dtype is np.uint16 else -top // 3
    ramps = np.linspace(bottom, top, ROWS * COLUMNS).reshape(ROWS, COLUMNS)
    return [(ramps - 3 * z * (ramps > 3 * z)).astype(dtype) for z in range(3)]


@pytest.mark.parametrize(
    ("dtype", "bits", "top"),
    [(np.uint16, 15, 45_000), (np.uint16, 12, 9_000), (np.int16, 12, 3_071), (np.int16, 15, 29_000)],
)
def test_values_wider_than_bits_stored_are_kept_where_the_image_is_smooth_so(
    tmp_path: Path, dtype: type, bits: int, top: int
) -> None:
    images = smooth(top, dtype)
    tags = {"Modality": "MR", "BitsStored": bits, "HighBit": bits - 1, "RescaleIntercept": 0}
    volume = read_series(write_series(tmp_path, [ct_slice(z, image, **tags) for z, image in enumerate(images)]))
    np.testing.assert_array_equal(volume.voxels, images)
    assert "bits_contradicted" in volume.quality


def test_an_overlay_above_bits_stored_is_cleared(tmp_path: Path) -> None:
    made = []
    for z, image in enumerate(smooth(3000, np.uint16)):
        image[4:9, 3:15] |= 0x8000
        made.append(ct_slice(z, image, Modality="MR", RescaleIntercept=0))
    volume = read_series(write_series(tmp_path, made))
    np.testing.assert_array_equal(volume.voxels, smooth(3000, np.uint16))
    assert volume.quality == ("masked_bits",)


def test_sign_bits_that_were_left_clear_are_no_contradiction(tmp_path: Path) -> None:
    images = smooth(2000, np.int16)
    tags = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 1, "RescaleIntercept": 0, "Modality": "MR"}
    made = [ct_slice(z, (image & 0xFFF).astype(np.uint16), **tags) for z, image in enumerate(images)]
    volume = read_series(write_series(tmp_path, made))
    np.testing.assert_array_equal(volume.voxels, images)
    assert volume.quality == ()


def with_syntax(path: Path, syntax: str) -> None:
    """Name another transfer syntax in the file meta information and change nothing else."""
    data = path.read_bytes()
    length = struct.unpack_from("<I", data, 140)[0]
    start = data.index(b"\x02\0\x10\0UI")
    old = struct.unpack_from("<H", data, start + 6)[0]
    new = syntax.encode() + b"\0" * (len(syntax) % 2)
    meta = struct.pack("<I", length - old + len(new))
    path.write_bytes(
        data[:140] + meta + data[144 : start + 6] + struct.pack("<H", len(new)) + new + data[start + 8 + old :]
    )


@pytest.mark.parametrize(
    ("written", "named"),
    [(ImplicitVRLittleEndian, ExplicitVRLittleEndian), (ExplicitVRLittleEndian, ImplicitVRLittleEndian)],
)
def test_value_representations_are_read_as_they_are_there(tmp_path: Path, written: str, named: str) -> None:
    folder = write_series(tmp_path, 4, written)
    for file in folder.iterdir():
        with_syntax(file, named)
    volume = read_series(folder)
    np.testing.assert_array_equal(volume.voxels, [ramp(z).astype(int) - 1024 for z in range(4)])
    assert volume.quality == ("syntax_misnamed",)


@pytest.mark.parametrize("named", [JPEGLosslessSV1, RLELossless, JPEG2000Lossless])
def test_plain_pixels_under_the_name_of_a_code_are_read(tmp_path: Path, named: str) -> None:
    folder = write_series(tmp_path, 4)
    for file in folder.iterdir():
        with_syntax(file, named)
    volume = read_series(folder)
    np.testing.assert_array_equal(volume.voxels, [ramp(z).astype(int) - 1024 for z in range(4)])
    assert volume.quality == ("syntax_misnamed",)


@pytest.mark.parametrize("written", list(ENCODERS))
@pytest.mark.parametrize("named", [ExplicitVRLittleEndian, JPEGLosslessSV1, RLELossless, JPEG2000Lossless])
def test_a_code_under_another_name_is_read_as_what_it_is(tmp_path: Path, written: str, named: str) -> None:
    folder = write_series(tmp_path, 3, written)
    for file in folder.iterdir():
        with_syntax(file, named)
    np.testing.assert_array_equal(read_series(folder).voxels, [ramp(z).astype(int) - 1024 for z in range(3)])


@pytest.mark.parametrize(
    "tail", [b"", bytes(8), bytes(200), b"\xfc\xff\xfc\xff\0\0\0\0"], ids=["end", "zeros", "more", "padding"]
)
@pytest.mark.parametrize("written", list(ENCODERS))
def test_a_missing_delimiter_costs_no_slice(tmp_path: Path, written: str, tail: bytes) -> None:
    folder = write_series(tmp_path, 3, written)
    for file in folder.iterdir():
        data = file.read_bytes()
        assert data.endswith(DELIMITER)
        file.write_bytes(data[: -len(DELIMITER)] + tail)
    np.testing.assert_array_equal(read_series(folder).voxels, [ramp(z).astype(int) - 1024 for z in range(3)])


def test_frames_without_a_delimiter_are_found_too(tmp_path: Path) -> None:
    whole = ct_slice(0, NumberOfFrames=3)
    frames = [ENCODERS[RLELossless](ramp(z)) for z in range(3)]
    for name, fragments in (("one", 1), ("two", 2)):
        whole.PixelData = encapsulate(frames, fragments_per_frame=fragments)
        whole.file_meta.TransferSyntaxUID = RLELossless
        whole["PixelData"].VR, whole["PixelData"].is_undefined_length = "OB", True
        path = tmp_path / name
        whole.save_as(path, enforce_file_format=True)
        path.write_bytes(path.read_bytes().removesuffix(DELIMITER))
        np.testing.assert_array_equal(read_series(path).voxels, [ramp(z).astype(int) - 1024 for z in range(3)])


def test_a_fragment_that_is_cut_off_is_truncated(tmp_path: Path) -> None:
    folder = write_series(tmp_path, 3, RLELossless)
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(SeriesError, match="truncated within a compressed frame") as refusal:
        read_series(folder)
    assert refusal.value.reason == "unreadable_pixels"


@pytest.mark.parametrize("spacing", [-2.0, 2.0])
def test_frames_run_against_the_normal_where_their_spacing_is_negative(tmp_path: Path, spacing: float) -> None:
    whole = ct_slice(0, NumberOfFrames=4, SpacingBetweenSlices=spacing)
    whole.PixelData = b"".join(ramp(z).tobytes() for z in range(4))
    volume = read_series(save(whole, tmp_path / "whole.dcm"))
    order = range(4) if spacing > 0 else range(3, -1, -1)
    np.testing.assert_array_equal(volume.voxels, [ramp(z).astype(int) - 1024 for z in order])
    heights = [100, 102, 104, 106] if spacing > 0 else [94, 96, 98, 100]
    np.testing.assert_allclose(volume.origins_mm[:, 2], heights)
    assert volume.quality == ("geometry_assumed",)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_bytes_behind_the_pixels_of_slices_are_no_frames(tmp_path: Path, times: int) -> None:
    made = [ct_slice(z) for z in range(4)]
    for dataset in made:
        dataset.PixelData = dataset.PixelData * times + b"\1" * (dataset.InstanceNumber % 2 * 2)
    volume = read_series(write_series(tmp_path, made))
    np.testing.assert_array_equal(volume.voxels, [ramp(z).astype(int) - 1024 for z in range(4)])
    assert volume.quality == ()
