"""Every real series of the test set against the truth, and the reader's own rules on synthetic ones."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_files import COLUMNS, ROWS, SERIES_UID, ct_slice, ramp, save, write_series
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    BasicTextSRStorage,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from aneurysm_ray.data.dicom import QUALITY, read_series, scan_series
from aneurysm_ray.data.volume import Volume
from aneurysm_ray.errors import SERIES_REASONS, SeriesError

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "quality.md"
NO_VOLUME = {"d2n_rgb": "colour", "codec_matrix_ct_slice": "single_slice", "q_single_slice": "single_slice"}
NO_VOLUME["mosaic_syntaxes"] = "unsupported"
EXPECTED_QUALITY = {
    "ct_ge_head_tilt_varspacing": {"uneven_slices", "gantry_tilt", "padding"},
    "d2n_nonisotropic_slopes": {"rescale_varies"},
    "d2n_fail_gantrytilt": {"gantry_tilt", "hu_doubtful"},  # of this and the next, values end at -770
    "d2n_fail_sliceincrement": {"missing_slices", "hu_doubtful"},
    "d2n_fail_orientation": {"other_stacks"},
    "d2n_philips_mag_phase": {"other_components"},
    "q_missing_slice": {"missing_slices"},
    "q_dup_exact": {"duplicate_files"},
    "q_dup_position": {"duplicate_positions"},
    "q_two_timepoints": {"other_passes"},
    "q_scout_in_series": {"localizers"},
    "q_odd_shape_slice": {"other_stacks"},
    "q_two_stacks": {"other_stacks"},
    "q_8bit": {"hu_doubtful"},  # its values end at -801
    "q_monochrome1": {"monochrome1", "hu_doubtful"},
    "q_slope_per_slice": {"rescale_varies"},
    "q_no_rescale": {"rescale_assumed", "hu_doubtful"},
    "q_uneven_gap": {"uneven_slices"},
    "q_no_ipp": {"position_assumed"},
    "q_no_iop": {"orientation_assumed"},
    "q_overlay_bits": {"masked_bits"},
    "q_padding": {"padding"},
    "q_no_preamble": {"no_preamble"},
    "q_modality_lut": {"modality_lut"},
    "q_enhanced_j2k_slopes": {"rescale_varies"},
    "q_multiframe_no_functional_groups": {"geometry_assumed"},
    "q_same_sop_uid": {"repeated_instance_uids"},
}
"""Codes of the real series; every other one has none."""


def canonical_sha256(voxels: np.ndarray[Any, Any], affine: np.ndarray[Any, Any]) -> str:
    """Return the hash of truth.json: float32 in the nearest RAS orientation, Fortran order."""
    affine_ras = np.diag([-1.0, -1, 1, 1]) @ affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(voxels.transpose(2, 1, 0).astype(np.float32), affine_ras)
    canonical = np.asarray(nibabel.as_closest_canonical(image).dataobj, np.float32)
    return hashlib.sha256(canonical.tobytes(order="F")).hexdigest()


def test_every_real_series_is_the_truth(shared_data: Path) -> None:
    root = shared_data / "dicom"
    truths = json.loads((root / "truth.json").read_text())
    assert len(truths) > 50
    for name, truth in truths.items():
        if name in NO_VOLUME:
            with pytest.raises(SeriesError) as refusal:
                read_series(root / name)
            assert (name, refusal.value.reason) == (name, NO_VOLUME[name])
            continue
        volume = read_series(root / name)
        assert (name, set(volume.quality)) == (name, EXPECTED_QUALITY.get(name, set()))
        assert (name, list(volume.shape)) == (name, truth["shape_zyx"])
        affine_ras = np.diag([-1.0, -1, 1, 1]) @ volume.affine[:, [2, 1, 0, 3]]
        np.testing.assert_allclose(affine_ras, truth["affine_ras"], atol=1e-4, err_msg=name)
        if volume.padding is None:
            assert (name, canonical_sha256(volume.voxels, volume.affine)) == (name, truth["canonical_sha256_float32"])


def test_padding_is_background_and_nothing_else_is_touched(shared_data: Path) -> None:
    folder = shared_data / "dicom" / "q_padding"
    volume = read_series(folder)
    assert volume.padding == -3024
    z_of = {uid: z for z, (uid, _) in enumerate(volume.instances)}
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        expected = dataset.pixel_array.astype(int) - 1024
        expected[dataset.pixel_array == -2000] = -1024
        np.testing.assert_array_equal(volume.voxels[z_of[dataset.SOPInstanceUID]], expected)


@pytest.mark.parametrize(
    "syntax",
    [
        *(ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless),
        HTJ2KLossless,
    ],
)
def test_syntaxes_give_the_same_voxels(tmp_path: Path, syntax: str) -> None:
    volume = read_series(write_series(tmp_path, 4, syntax))
    np.testing.assert_array_equal(volume.voxels, [ramp(z).astype(int) - 1024 for z in range(4)])
    assert volume.voxels.dtype == np.int16
    assert volume.quality == ()


def test_affine_and_identity_of_a_plain_series(tmp_path: Path) -> None:
    volume = read_series(write_series(tmp_path, 3))
    # columns: a step of one slice, one row (0.5 mm), one column (0.4 mm); x grows to the left in LPS
    expected = [[0, 0, 0.4, -10], [0, 0.5, 0, -20], [2, 0, 0, 100], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.affine, expected)
    np.testing.assert_allclose(volume.origins_mm, [[-10, -20, 100], [-10, -20, 102], [-10, -20, 104]])
    assert (volume.modality, volume.series_uid, volume.patient_id, volume.plane) == ("CT", SERIES_UID, "P1", "axial")
    assert volume.instances == tuple((f"{SERIES_UID}.{z + 1}", 0) for z in range(3))
    assert volume.dropped == ()


def quality_of(folder: Path, slices: list[Dataset]) -> tuple[str, ...]:
    return read_series(write_series(folder, slices)).quality


def slices(count: int = 4, **tags: Any) -> list[Dataset]:
    return [ct_slice(z, **tags) for z in range(count)]


def test_values_beyond_int16_become_float32(tmp_path: Path) -> None:
    images = [np.full((ROWS, COLUMNS), 60_000 + z, np.uint16) for z in range(2)]
    for image in images:
        image[0, 0] = 0
    volume = read_series(write_series(tmp_path, [ct_slice(z, im, BitsStored=16) for z, im in enumerate(images)]))
    assert volume.voxels.dtype == np.float32
    assert volume.voxels.max() == 60_001 - 1024
    assert volume.voxels.min() == -1024
    assert volume.quality == ("wide_range",)


def test_sixteen_bits_that_fit_stay_int16(tmp_path: Path) -> None:
    volume = read_series(write_series(tmp_path, slices(BitsStored=16, HighBit=15)))
    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels, [ramp(z).astype(int) - 1024 for z in range(4)])


def test_unsigned_padding_does_not_widen_the_volume(tmp_path: Path) -> None:
    """GE writes -2000 into unsigned pixels, 63,536 as they read."""
    images = [ramp(z) for z in range(2)]
    for image in images:
        image[5] = 63_536
    tags = {"BitsStored": 16, "HighBit": 15, "PixelPaddingValue": 63_536}
    volume = read_series(write_series(tmp_path, [ct_slice(z, image, **tags) for z, image in enumerate(images)]))
    assert volume.voxels.dtype == np.int16
    assert volume.padding == 63_536 - 1024
    assert (volume.voxels[:, 5] == -1024).all()
    np.testing.assert_array_equal(volume.voxels[1, 6:], ramp(1)[6:].astype(int) - 1024)


def test_padding_of_a_ct_that_cannot_hold_air_becomes_its_lowest_value(tmp_path: Path) -> None:
    images = [ramp(z) for z in range(2)]
    for image in images:
        image[5] = 4000
    tags = {"PixelPaddingValue": 4000, "RescaleIntercept": None, "RescaleSlope": None}
    volume = read_series(write_series(tmp_path, [ct_slice(z, image, **tags) for z, image in enumerate(images)]))
    assert (volume.voxels[:, 5] == 0).all()
    assert volume.padding == 4000


def test_a_padding_range_is_padding_as_a_whole(tmp_path: Path) -> None:
    images = [ramp(z) for z in range(2)]
    for image in images:
        image[5], image[6] = 4000, 4090
    tags = {"PixelPaddingValue": 4090, "PixelPaddingRangeLimit": 3900}
    volume = read_series(write_series(tmp_path, [ct_slice(z, image, **tags) for z, image in enumerate(images)]))
    assert (volume.voxels[:, 5:7] == -1024).all()
    np.testing.assert_array_equal(volume.voxels[1, 7:], ramp(1)[7:].astype(int) - 1024)


def test_inverse_presentation_inverts_stored_values(tmp_path: Path) -> None:
    tags = {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}
    volume = read_series(write_series(tmp_path, slices(2, **tags)))
    np.testing.assert_array_equal(volume.voxels[1], 4095 - ramp(1).astype(int) - 1024)
    assert {"inverted", "monochrome1"} <= set(volume.quality)


def test_fractional_rescale_gives_float32(tmp_path: Path) -> None:
    volume = read_series(write_series(tmp_path, slices(2, RescaleSlope="1.5", RescaleIntercept="-1000.25")))
    np.testing.assert_array_equal(volume.voxels[1], ramp(1).astype(np.float32) * np.float32(1.5) - np.float32(1000.25))


def test_high_bit_shifts_stored_values_where_the_pixels_are_shifted(tmp_path: Path) -> None:
    for name, shift in (("shifted", 4), ("not shifted", 0)):
        made = [ct_slice(z, ramp(z) << shift, HighBit=15) for z in range(2)]
        volume = read_series(write_series(tmp_path / name, made))
        np.testing.assert_array_equal(volume.voxels[1], ramp(1).astype(int) - 1024)


def test_signed_twelve_bits_are_sign_extended(tmp_path: Path) -> None:
    images = [(ramp(z).astype(np.int16) - 1500) & 0xFFF for z in range(2)]
    tags = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 1, "RescaleIntercept": 0}
    volume = read_series(write_series(tmp_path, [ct_slice(z, image, **tags) for z, image in enumerate(images)]))
    np.testing.assert_array_equal(volume.voxels[1], ramp(1).astype(int) - 1500)


def test_order_is_by_position_not_by_number_or_name(tmp_path: Path) -> None:
    backwards = [ct_slice(z, InstanceNumber=9 - z) for z in range(4)]
    np.testing.assert_array_equal(read_series(write_series(tmp_path, backwards)).voxels[3], ramp(3).astype(int) - 1024)


def test_echoes_and_phases_leave_one_volume(tmp_path: Path) -> None:
    mr = {"Modality": "MR", "ImageType": ["ORIGINAL", "PRIMARY", "M", "SE"]}
    late = [ct_slice(z, 2 * ramp(z) % 4000, EchoTime=80, **mr) for z in range(4)]
    early = [ct_slice(z, EchoTime=20, InstanceNumber=50 + z, **mr) for z in range(4)]
    volume = read_series(write_series(tmp_path, late + early))
    assert "other_passes" in volume.quality
    np.testing.assert_array_equal(volume.voxels[2], ramp(2).astype(int) - 1024)
    assert len(volume.dropped) == 4


def test_a_stack_split_over_image_types_stays_whole(tmp_path: Path) -> None:
    mixed = [
        ct_slice(z, Modality="MR", ImageType=["ORIGINAL", "PRIMARY", "M", "NORM" if z % 2 else "ND"]) for z in range(6)
    ]
    volume = read_series(write_series(tmp_path, mixed))
    assert volume.shape[0] == 6
    assert volume.quality == ()


def test_projections_are_left_out_only_beside_slices(tmp_path: Path) -> None:
    mip = ["DERIVED", "SECONDARY", "PROJECTION IMAGE"]
    only = [ct_slice(z, ImageType=mip) for z in range(3)]
    assert quality_of(tmp_path / "only", only) == ()
    beside = slices(3) + [ct_slice(z, ImageType=mip, SOPInstanceUID=f"1.9.{z}") for z in range(5, 12)]
    volume = read_series(write_series(tmp_path / "beside", beside))
    assert volume.shape[0] == 3
    assert volume.quality == ("projections",)


def test_tilted_uneven_and_shifted_stacks_keep_true_positions(tmp_path: Path) -> None:
    tilted = slices()
    for z, dataset in enumerate(tilted):
        dataset.ImagePositionPatient = [-10, -20 + 0.5 * z, 100 + 2 * z]
    volume = read_series(write_series(tmp_path / "tilted", tilted))
    assert volume.quality == ("gantry_tilt",)
    np.testing.assert_allclose(volume.affine[:3, 0], [0, 0.5, 2])
    assert volume.spacing_mm[0] == pytest.approx(2)
    shifted = slices()
    shifted[2].ImagePositionPatient = [-9, -20, 104]
    volume = read_series(write_series(tmp_path / "shifted", shifted))
    assert volume.quality == ("shifted_slices",)
    np.testing.assert_allclose(volume.origins_mm[2], [-9, -20, 104])
    uneven = slices()
    uneven[3].ImagePositionPatient = [-10, -20, 107]
    assert quality_of(tmp_path / "uneven", uneven) == ("uneven_slices",)


def test_cosines_are_made_orthonormal(tmp_path: Path) -> None:
    volume = read_series(write_series(tmp_path, slices(ImageOrientationPatient=[1.02, 0, 0, 0.03, 1, 0])))
    assert volume.quality == ("orientation_repaired",)
    np.testing.assert_allclose(volume.affine[:3, 2], [0.4, 0, 0])
    np.testing.assert_allclose(volume.affine[:3, 1], [0, 0.5, 0], atol=1e-12)


def test_the_series_with_most_images_wins(tmp_path: Path) -> None:
    other = [ct_slice(z, SeriesInstanceUID="1.2.3", SOPInstanceUID=f"1.2.3.{z}") for z in range(4, 7)]
    volume = read_series(write_series(tmp_path, slices(4) + other))
    assert (volume.series_uid, volume.quality) == (SERIES_UID, ("other_series",))


def test_no_series_uid_takes_the_folders_name(tmp_path: Path) -> None:
    volume = read_series(write_series(tmp_path / "case-7", slices(SeriesInstanceUID=None)))
    assert (volume.series_uid, volume.quality) == ("case-7", ("series_uid_assumed",))


def test_missing_number_of_frames_is_taken_from_the_length(tmp_path: Path) -> None:
    whole = ct_slice(0)
    whole.PixelData = b"".join(ramp(z).tobytes() for z in range(3))
    volume = read_series(write_series(tmp_path, [whole]))
    assert set(volume.quality) == {"frames_assumed", "geometry_assumed"}
    np.testing.assert_array_equal(volume.voxels[2], ramp(2).astype(int) - 1024)


def test_junk_colour_and_damaged_files_are_left_out(tmp_path: Path) -> None:
    folder = write_series(tmp_path, slices(3))
    (folder / "notes.txt").write_text("patient moved")
    report = ct_slice(9, Rows=None, Columns=None, PixelData=None, SOPClassUID=BasicTextSRStorage)
    report.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
    report.save_as(folder / "report.dcm", enforce_file_format=True)
    colour = ct_slice(5, np.zeros((ROWS, COLUMNS), np.uint8), SamplesPerPixel=3, PhotometricInterpretation="RGB")
    save(colour, folder / "screen.dcm")
    (folder / "half.dcm").write_bytes((folder / "000-0.dcm").read_bytes()[:600])
    volume = read_series(folder)
    assert volume.shape[0] == 3
    assert set(volume.quality) == {"junk_files", "colour_files", "unreadable_files"}
    (folder / "half.dcm").unlink()
    assert set(read_series(folder).quality) == {"junk_files", "colour_files"}
    assert {name for name, _ in volume.dropped} == {"notes.txt", "report.dcm", "screen.dcm", "half.dcm"}


def test_a_damaged_duplicate_does_not_cost_the_slice(tmp_path: Path) -> None:
    folder = write_series(tmp_path, 3, JPEGLSLossless)
    damaged = save(ct_slice(1, InstanceNumber=0), folder / "first.dcm", JPEGLSLossless)
    data = damaged.read_bytes()
    damaged.write_bytes(
        data[: data.index(b"\xff\xda") + 4] + b"\xff\xff" * ((len(data) - data.index(b"\xff\xda")) // 2)
    )
    volume = read_series(folder)
    assert volume.shape[0] == 3
    np.testing.assert_array_equal(volume.voxels[1], ramp(1).astype(int) - 1024)
    assert "unreadable_files" in volume.quality


@pytest.mark.parametrize(
    ("reason", "tags"),
    [
        ("no_geometry", {"ImagePositionPatient": None}),
        ("no_geometry", {"PixelSpacing": None}),
        ("no_geometry", {"PixelSpacing": [0, 0.5]}),
        ("no_geometry", {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}),
        ("no_geometry", {"ImagePositionPatient": [0, 0, 1e9]}),
        ("unreadable_pixels", {"RescaleSlope": 0}),
        ("unreadable_pixels", {"RescaleSlope": "1e30"}),
        ("unreadable_pixels", {"RescaleIntercept": "-1e300"}),
        ("unsupported", {"BitsStored": 20, "HighBit": 19}),
        ("unsupported", {"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}),
        ("no_images", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
        ("single_slice", {"ImagePositionPatient": [0, 0, 7]}),
        ("colour", {"PhotometricInterpretation": "PALETTE COLOR"}),
    ],
)
def test_what_cannot_be_a_volume_is_refused_with_its_reason(tmp_path: Path, reason: str, tags: dict[str, Any]) -> None:
    with pytest.raises(SeriesError) as refusal:
        read_series(write_series(tmp_path, slices(**tags)))
    assert refusal.value.reason == reason
    assert str(tmp_path) in str(refusal.value)


def test_a_uid_that_would_leave_its_folder_is_refused(tmp_path: Path) -> None:
    folder = write_series(tmp_path, slices())
    for file in folder.iterdir():
        data = file.read_bytes()
        file.write_bytes(data.replace(SERIES_UID.encode() + b"\0", b"../" * (len(SERIES_UID) // 3) + b"\0"))
    with pytest.raises(SeriesError) as refusal:
        read_series(folder)
    assert refusal.value.reason == "unsafe_path"


def test_modality_lut_maps_stored_values(tmp_path: Path) -> None:
    item = Dataset()
    item.add_new(0x00283002, "US", [4096, 0, 16])
    item.add_new(0x00283006, "OW", (np.arange(4096, dtype="<u2") * 2).tobytes())
    tags = {"ModalityLUTSequence": Sequence([item]), "RescaleSlope": None, "RescaleIntercept": None}
    volume = read_series(write_series(tmp_path, slices(2, **tags)))
    np.testing.assert_array_equal(volume.voxels[1], ramp(1).astype(int) * 2)
    assert volume.quality == ("modality_lut",)


def test_scan_says_what_a_series_holds_without_decoding(tmp_path: Path) -> None:
    folder = write_series(tmp_path, 5)
    header = scan_series(folder)
    assert (header.files, header.rows, header.columns, header.frames) == (5, ROWS, COLUMNS, 5)
    assert header.bytes == sum(file.stat().st_size for file in folder.iterdir())
    assert header.voxel_bytes == 5 * ROWS * COLUMNS * 2
    assert (header.modality, header.series_uid) == ("CT", SERIES_UID)


def test_every_code_is_documented_and_tested() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|$", DOCUMENT.read_text(), re.MULTILINE))
    assert table == {**QUALITY, **SERIES_REASONS}
    sources = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))
    assert [code for code in QUALITY if f'"{code}"' not in sources] == []


def test_quality_codes_come_in_the_order_of_the_table(tmp_path: Path) -> None:
    volume: Volume = read_series(write_series(tmp_path, slices(RescaleSlope=None, RescaleIntercept=None)))
    assert volume.quality == tuple(code for code in QUALITY if code in volume.quality)
    assert "rescale_assumed" in volume.quality
