"""Points marked on images, placed in the volume and in the patient."""

from pathlib import Path

import numpy as np
import pytest
from dicom_files import SERIES_UID, ct_slice, ramp, save, write_series

from aneurysm_ray.data.dicom import read_series
from aneurysm_ray.data.points import locate, to_patient_mm


def test_a_point_on_a_slice_is_its_voxel(tmp_path: Path) -> None:
    volume = read_series(write_series(tmp_path, 4))
    voxel = locate(volume, f"{SERIES_UID}.3", x=7.5, y=11)
    assert voxel is not None
    np.testing.assert_array_equal(voxel, [2, 11, 7.5])
    # position of slice 2 plus 11 rows of 0.5 mm and 7.5 columns of 0.4 mm
    np.testing.assert_allclose(to_patient_mm(volume, voxel), [-10 + 3, -20 + 5.5, 104])
    assert volume.voxels[2, 11, 7] == int(ramp(2)[11, 7]) - 1024


def test_an_image_that_is_not_in_the_volume_has_no_voxel(tmp_path: Path) -> None:
    volume = read_series(write_series(tmp_path, 3))
    assert locate(volume, "1.2.3", 1, 1) is None


def test_a_uid_shared_by_slices_places_nothing(tmp_path: Path) -> None:
    volume = read_series(write_series(tmp_path, [ct_slice(z, SOPInstanceUID="1.2.3") for z in range(3)]))
    assert "repeated_instance_uids" in volume.quality
    assert locate(volume, "1.2.3", 1, 1) is None


def test_a_frame_of_a_multi_frame_file_is_found_by_its_number(tmp_path: Path) -> None:
    whole = ct_slice(0, NumberOfFrames=3, SOPInstanceUID="1.2.9")
    whole.PixelData = b"".join(ramp(z).tobytes() for z in range(3))
    volume = read_series(save(whole, tmp_path / "whole.dcm"))
    found = locate(volume, "1.2.9", 4, 5, frame=2)
    assert found is not None
    np.testing.assert_array_equal(found, [2, 5, 4])
    assert locate(volume, "1.2.9", 4, 5) is None


def test_shuffled_frames_are_found_at_their_position(shared_data: Path) -> None:
    plain = read_series(shared_data / "dicom" / "q_plain")
    shuffled = read_series(shared_data / "dicom" / "q_enhanced_shuffled_rle")
    uid, frame = shuffled.instances[4]
    assert [index for _, index in shuffled.instances] != list(range(12))
    voxel = locate(shuffled, uid, 30, 40, frame)
    assert voxel is not None
    np.testing.assert_allclose(to_patient_mm(shuffled, voxel), to_patient_mm(plain, np.array([4, 40, 30])), atol=1e-4)


def test_a_frame_number_on_a_single_frame_file_is_ignored(tmp_path: Path) -> None:
    volume = read_series(write_series(tmp_path, 3))
    found = locate(volume, f"{SERIES_UID}.2", 4, 5, frame=9)
    assert found is not None
    np.testing.assert_array_equal(found, [1, 5, 4])


def test_patient_coordinates_follow_true_positions_and_tilt(tmp_path: Path) -> None:
    places = [(-10, -20, 100), (-10, -19, 102), (-10, -16, 108)]
    made = [ct_slice(z, ImagePositionPatient=list(place)) for z, place in enumerate(places)]
    volume = read_series(write_series(tmp_path, made))
    for z, place in enumerate(places):
        np.testing.assert_allclose(to_patient_mm(volume, np.array([z, 0, 0])), place)
    np.testing.assert_allclose(to_patient_mm(volume, np.array([1.5, 2, 5])), [-10 + 2, -17.5 + 1, 105])
    np.testing.assert_allclose(
        to_patient_mm(volume, np.array([[3, 0, 0], [-1, 0, 0]])), [[-10, -13, 114], [-10, -21, 98]]
    )


def test_the_affine_and_the_true_positions_agree_on_a_regular_stack(shared_data: Path) -> None:
    volume = read_series(shared_data / "dicom" / "q_double_oblique")
    points = np.random.default_rng(0).uniform(0, 10, (20, 3))
    by_affine = points @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    np.testing.assert_allclose(to_patient_mm(volume, points), by_affine, atol=1e-3)
    assert volume.spacing_mm == pytest.approx((5, 0.451171875, 0.451171875), abs=1e-4)
