"""NIfTI files as volumes: space, values, what is refused; and against the DICOM reader with dcm2niix in between."""

import gzip
import shutil
import subprocess
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from aneurysm_ray.data.dicom import read_series
from aneurysm_ray.data.nifti import read_nifti, voxel_bytes
from aneurysm_ray.data.volume import Volume
from aneurysm_ray.errors import SeriesError

SHAPE = (5, 6, 4)
"""(i, j, k)."""
RAS = np.array([[-0.5, 0, 0, 30.0], [0, 0.6, 0, -20.0], [0, 0, 2.0, 5.0], [0, 0, 0, 1.0]])
"""Columns run to the patient's left, as in an axial image: the mark below lies at RAS (29, -18.2, 9) mm."""
MARK = (2, 3, 2)
MARK_LPS = (-29.0, 18.2, 9.0)


def _values(dtype: str = "int16") -> NDArray[np.generic]:
    data = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    data[MARK] = 120 if dtype == "uint8" else 1000
    return data.astype(dtype)


def _save(
    path: Path,
    data: NDArray[np.generic] | None = None,
    sform: NDArray[np.float64] | None = RAS,
    qform: NDArray[np.float64] | None = RAS,
    *,
    big_endian: bool = False,
    slope: tuple[float, float] | None = None,
    unit: str = "mm",
    kind: type = nibabel.Nifti1Image,
) -> Path:
    data = _values() if data is None else data
    header = kind.header_class(endianness=">" if big_endian else "<")
    header.set_data_dtype(data.dtype)
    header.set_data_shape(data.shape)
    header.set_xyzt_units(unit)
    for form, setter in ((sform, header.set_sform), (qform, header.set_qform)):
        setter(form, 0 if form is None else 1)
    image = kind(data, None, header)
    if slope is not None:
        image.header.set_slope_inter(*slope)
    nibabel.save(image, path)
    return path


def _brightest_lps(volume: Volume) -> NDArray[np.float64]:
    zyx = np.unravel_index(int(volume.voxels.argmax()), volume.shape)
    return volume.affine[:3, :3] @ zyx + volume.affine[:3, 3]


def _refused(path: Path, **asked: str) -> SeriesError:
    with pytest.raises(SeriesError) as caught:
        read_nifti(path, **asked)
    assert path.name not in caught.value.told, "a name may be a person's"
    return caught.value


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII"])
def test_a_voxel_lies_where_the_form_says_in_lps(tmp_path: Path, name: str) -> None:
    volume = read_nifti(_save(tmp_path / name), modality="MR")
    assert volume.shape == SHAPE[::-1]
    assert volume.voxels.dtype == np.int16 and volume.voxels[MARK[::-1]] == 1000
    assert np.allclose(_brightest_lps(volume), MARK_LPS)
    assert volume.spacing_mm == pytest.approx((2.0, 0.6, 0.5))
    assert volume.plane == "axial"
    assert np.allclose(volume.origins_mm[:, 2], [5, 7, 9, 11])
    assert volume.quality == ("series_uid_assumed",)


@pytest.mark.parametrize("code", ["RAS", "LPS", "PSR", "AIL", "SRP"])
def test_whatever_the_order_of_the_axes_a_place_keeps_its_value(tmp_path: Path, code: str) -> None:
    image = nibabel.load(_save(tmp_path / "a.nii"))
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(code)
    )
    nibabel.save(image.as_reoriented(turn), tmp_path / "b.nii")
    assert np.allclose(_brightest_lps(read_nifti(tmp_path / "b.nii", modality="MR")), MARK_LPS)


def test_an_oblique_volume_keeps_its_angles(tmp_path: Path) -> None:
    turn = np.linalg.qr(np.array([[1.0, 0.15, -0.1], [-0.15, 1.0, 0.2], [0.1, -0.2, 1.0]]))[0]
    oblique = RAS.copy()
    oblique[:3, :3] = turn @ RAS[:3, :3]
    volume = read_nifti(_save(tmp_path / "a.nii", None, oblique, oblique), modality="MR")
    right, front, up = oblique[:3, :3] @ MARK + oblique[:3, 3]
    assert np.allclose(_brightest_lps(volume), (-right, -front, up), atol=1e-4)
    assert volume.spacing_mm == pytest.approx((2.0, 0.6, 0.5), abs=1e-5)
    assert "gantry_tilt" not in volume.quality


def test_slices_that_step_sideways_stay_where_they_are_and_are_told(tmp_path: Path) -> None:
    tilted = RAS.copy()
    tilted[1, 2] = 0.5
    volume = read_nifti(_save(tmp_path / "a.nii", None, tilted, None), modality="MR")
    assert "gantry_tilt" in volume.quality
    assert np.allclose(_brightest_lps(volume), (-29.0, 17.2, 9.0))
    assert volume.spacing_mm[0] == pytest.approx(2.0)


class TestForms:
    def test_either_form_alone_places_the_volume(self, tmp_path: Path) -> None:
        for sform, qform in ((RAS, None), (None, RAS)):
            volume = read_nifti(_save(tmp_path / "a.nii", None, sform, qform), modality="MR")
            assert np.allclose(_brightest_lps(volume), MARK_LPS, atol=1e-4)
            assert "forms_disagree" not in volume.quality

    def test_the_sform_counts_where_they_disagree_and_it_is_told(self, tmp_path: Path) -> None:
        other = np.diag([-1.0, 1, 1, 1]) @ RAS
        volume = read_nifti(_save(tmp_path / "a.nii", None, RAS, other), modality="MR")
        assert np.allclose(_brightest_lps(volume), MARK_LPS, atol=1e-4)
        assert "forms_disagree" in volume.quality

    def test_a_sheared_sform_is_a_fit_to_a_template_and_the_qform_counts(self, tmp_path: Path) -> None:
        template = RAS.copy()
        template[0, 1] = 0.2
        volume = read_nifti(_save(tmp_path / "a.nii", None, template, RAS), modality="MR")
        assert np.allclose(_brightest_lps(volume), MARK_LPS, atol=1e-4)
        assert "forms_disagree" in volume.quality

    def test_without_any_there_is_no_left(self, tmp_path: Path) -> None:
        error = _refused(_save(tmp_path / "a.nii", None, None, None))
        assert error.reason == "no_geometry" and "left from right" in error.told

    def test_shear_alone_a_flat_form_and_absurd_spacings_are_refused(self, tmp_path: Path) -> None:
        sheared, flat, tiny, far = RAS.copy(), RAS.copy(), RAS.copy(), RAS.copy()
        sheared[0, 1], flat[:3, 2] = 0.2, 0
        tiny[:3, :3] /= 1e4
        far[0, 3] = 2e5
        for form in (sheared, flat, tiny, far):
            assert _refused(_save(tmp_path / "a.nii", None, form, None)).reason == "no_geometry"

    def test_metres_are_converted_and_told_and_a_wrong_unit_is_not_believed(self, tmp_path: Path) -> None:
        metres = np.diag([1e-3, 1e-3, 1e-3, 1]) @ RAS
        metres[:3, :3] *= 20  # a head of 100 mm, not of five voxels
        volume = read_nifti(_save(tmp_path / "a.nii", None, metres, None, unit="meter"), modality="MR")
        assert "units_converted" in volume.quality
        assert volume.spacing_mm == pytest.approx((40.0, 12.0, 10.0))
        whole = RAS.copy()
        whole[:3, :3] *= 20
        volume = read_nifti(_save(tmp_path / "a.nii", None, whole, None, unit="meter"), modality="MR")
        assert "units_converted" not in volume.quality
        assert volume.spacing_mm == pytest.approx((40.0, 12.0, 10.0))


class TestValues:
    @pytest.mark.parametrize("big_endian", [False, True])
    @pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
    def test_whole_values_are_int16_from_every_type(self, tmp_path: Path, dtype: str, big_endian: bool) -> None:
        volume = read_nifti(_save(tmp_path / "a.nii.gz", _values(dtype), big_endian=big_endian), modality="MR")
        assert volume.voxels.dtype == np.int16 and volume.voxels.flags.c_contiguous
        assert np.array_equal(volume.voxels, _values(dtype).T.astype(np.int16))

    def test_slope_and_intercept_are_applied(self, tmp_path: Path) -> None:
        whole = read_nifti(_save(tmp_path / "a.nii", slope=(2.0, -5.0)), modality="MR")
        assert whole.voxels.dtype == np.int16
        assert np.array_equal(whole.voxels, 2 * _values().T - 5)
        part = read_nifti(_save(tmp_path / "b.nii", slope=(0.3, 0.0)), modality="MR")
        assert part.voxels.dtype == np.float32
        assert np.allclose(part.voxels, 0.3 * _values().T, rtol=1e-6)

    def test_what_does_not_fit_is_float32_and_told(self, tmp_path: Path) -> None:
        for data in (_values("uint16") + np.uint16(50000), _values("int32") * 1000, _values("float32") * 1000):
            volume = read_nifti(_save(tmp_path / "a.nii", data), modality="MR")
            assert volume.voxels.dtype == np.float32 and "wide_range" in volume.quality
            assert np.array_equal(volume.voxels, data.T)

    def test_no_numbers_are_background_and_told(self, tmp_path: Path) -> None:
        data = _values("float32")
        data[0, 0, :2] = np.nan, np.inf
        volume = read_nifti(_save(tmp_path / "a.nii", data), modality="MR")
        assert "not_finite" in volume.quality
        assert volume.voxels[0, 0, 0] == volume.voxels[1, 0, 0] == 0
        ct = _head().astype(np.float32)
        ct[0, 0, 0] = np.nan
        assert read_nifti(_save(tmp_path / "c.nii", ct), modality="CT").voxels[0, 0, 0] == -1024


def _head() -> NDArray[np.int16]:
    """Hounsfield units: air, tissue and bone by thirds."""
    data = np.full((24, 24, 8), -1000, np.int16)
    data[8:16], data[16:] = 40, 700
    return data


class TestUnits:
    def test_values_tell_ct_from_mr_where_nobody_does(self, tmp_path: Path) -> None:
        volume = read_nifti(_save(tmp_path / "a.nii", _head()))
        assert volume.modality == "CT" and "modality_assumed" in volume.quality
        volume = read_nifti(_save(tmp_path / "b.nii"))
        assert volume.modality == "MR" and "modality_assumed" in volume.quality

    @pytest.mark.parametrize(
        ("moved", "words"),
        [(1024, "subtract 1024"), (-1024, "add 1024")],
    )
    def test_a_ct_with_air_elsewhere_is_refused_with_the_sum_to_do(
        self, tmp_path: Path, moved: int, words: str
    ) -> None:
        error = _refused(_save(tmp_path / "a.nii", (_head() + moved).astype(np.int16)), modality="CT")
        assert error.reason == "not_hounsfield" and words in error.told

    def test_a_ct_that_was_scaled_is_refused(self, tmp_path: Path) -> None:
        scaled = np.clip((_head() + 100) / 400, 0, 1).astype(np.float32)
        error = _refused(_save(tmp_path / "a.nii", scaled), modality="CT")
        assert error.reason == "not_hounsfield" and "from 0 to 1" in error.told

    def test_a_ct_without_air_is_doubted(self, tmp_path: Path) -> None:
        volume = read_nifti(_save(tmp_path / "a.nii", np.maximum(_head(), -100)), modality="CT")
        assert "hu_doubtful" in volume.quality
        assert "hu_doubtful" not in read_nifti(_save(tmp_path / "b.nii", _head()), modality="CT").quality


class TestRefused:
    def test_4d_is_refused_with_the_tool_and_a_fourth_axis_of_one_is_not(self, tmp_path: Path) -> None:
        error = _refused(_save(tmp_path / "a.nii", np.stack([_values()] * 3, axis=-1)))
        assert error.reason == "mixed_passes" and "3 volumes" in error.told and "fslroi" in error.told
        alone = read_nifti(_save(tmp_path / "b.nii", _values()[..., None]), modality="MR")
        assert np.array_equal(alone.voxels, _values().T)

    def test_one_slice_is_no_volume(self, tmp_path: Path) -> None:
        for data in (_values()[..., :1], _values()[:, :1], _values()[..., 0]):
            assert _refused(_save(tmp_path / "a.nii", data)).reason == "single_slice"

    def test_colours_and_complex_numbers(self, tmp_path: Path) -> None:
        colours = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
        assert _refused(_save(tmp_path / "a.nii", colours)).reason == "colour"
        assert _refused(_save(tmp_path / "b.nii", _values().astype(np.complex64))).reason == "unsupported"

    def test_pointers_name_the_command_that_fetches(self, tmp_path: Path) -> None:
        linked, unlocked, lfs = (tmp_path / name for name in ("a.nii.gz", "b.nii.gz", "c.nii.gz"))
        linked.symlink_to("../.git/annex/objects/Xx/Yy/MD5E-s123--0f/MD5E-s123--0f.nii.gz")
        unlocked.write_text("/annex/objects/MD5E-s123--0f.nii.gz\n")
        lfs.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0f\nsize 123\n")
        for path, command in ((linked, "datalad get"), (unlocked, "git annex get"), (lfs, "git lfs pull")):
            error = _refused(path)
            assert error.reason == "not_fetched" and command in error.told
        stray = tmp_path / "d.nii"
        stray.symlink_to("nowhere.nii")
        assert _refused(stray).reason == "vanished"
        assert _refused(tmp_path / "e.nii").reason == "vanished"

    def test_names_that_lie_and_other_formats_name_the_cure(self, tmp_path: Path) -> None:
        plain = _save(tmp_path / "a.nii")
        (tmp_path / "b.nii").write_bytes(gzip.compress(plain.read_bytes()))
        (tmp_path / "c.nii.gz").write_bytes(plain.read_bytes())
        for name, word in (
            ("b.nii", ".nii.gz"),
            ("c.nii.gz", ".nii"),
            ("d.mgz", "mri_convert"),
            ("e.nrrd", "SimpleITK"),
        ):
            error = _refused(tmp_path / name)
            assert error.reason == "no_images" and word in error.told

    @pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
    def test_whatever_is_cut_or_flipped_is_a_series_error(self, tmp_path: Path, name: str) -> None:
        whole = _save(tmp_path / name, np.zeros((40, 40, 20), np.int16) + np.arange(20, dtype=np.int16)).read_bytes()
        rng = np.random.default_rng(0)
        refused = 0
        for turn in range(100):
            data = bytearray(whole if turn % 2 else whole[: int(rng.integers(0, len(whole)))])
            for place in rng.integers(0, min(len(data), 400), 3) if data else ():
                data[place] = int(rng.integers(256))
            path = tmp_path / f"x_{name}"
            path.write_bytes(bytes(data))
            try:
                read_nifti(path, modality="MR")
            except SeriesError as error:
                refused += 1
                assert error.told
            except zlib.error:
                pytest.fail("zlib's own error escaped")
        assert refused > 30


def test_a_header_promises_the_bytes_of_the_volume(tmp_path: Path) -> None:
    assert voxel_bytes(_save(tmp_path / "a.nii.gz", _values("float64"))) == 2 * 5 * 6 * 4


def test_too_large_a_volume_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.nii")
    data = bytearray(path.read_bytes())
    data[42:48] = np.array([30000, 30000, 300], "<i2").tobytes()
    path.write_bytes(bytes(data))
    assert _refused(path).reason == "too_large"


SAME = {
    "mr_siemens_sag_jpeglossless",
    "mr_t1_implicit_rect",
    "q_coronal",
    "q_double_oblique",
    "q_enhanced",
    "q_plain",
}
"""Real series of which dcm2niix is known to be right."""


@pytest.mark.parametrize("name", sorted(SAME))
def test_the_same_volume_through_dcm2niix(shared_data: Path, tmp_path: Path, name: str) -> None:
    tool = shutil.which("dcm2niix")
    if tool is None:
        pytest.skip("dcm2niix is not installed")
    subprocess.run([tool, "-b", "n", "-z", "1", "-o", tmp_path, shared_data / "dicom" / name], check=True, timeout=300)
    (path,) = tmp_path.glob("*.nii.gz")
    expected = read_series(shared_data / "dicom" / name)
    volume = read_nifti(path, modality=expected.modality)
    assert sorted(volume.shape) == sorted(expected.shape)
    # Which voxel of the one each voxel of the other is, by their places alone.
    grid = np.stack(np.meshgrid(*map(np.arange, expected.shape), indexing="ij"), axis=-1)
    to_other = np.linalg.inv(volume.affine) @ expected.affine
    places = grid @ to_other[:3, :3].T + to_other[:3, 3]
    nearest = np.rint(places).astype(int)
    assert np.abs(places - nearest).max() < 0.01
    assert np.array_equal(volume.voxels[tuple(np.moveaxis(nearest, -1, 0))], expected.voxels)
