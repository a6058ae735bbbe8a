"""Frames of one file: functional groups per frame, then shared, then the top level; and files without any."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import ct_slice, ramp, rle, save
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items
from pydicom.uid import EnhancedMRImageStorage, RLELossless

from aneurysm_ray.data.dicom import read_series
from aneurysm_ray.errors import SeriesError


def group(name: str, **tags: Any) -> Items:
    """Return a functional group's sequence of one item."""
    item = Dataset()
    for key, value in tags.items():
        setattr(item, key, value)
    return Items([item])


def enhanced(
    heights_mm: Sequence[float], *, shared: dict[str, Items], per_frame: Sequence[dict[str, Items]]
) -> Dataset:
    """Return an enhanced MR file with a frame at each height; frame i shows `ramp(i)`."""
    top = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None, "SliceThickness": None}
    dataset = ct_slice(0, Modality="MR", RescaleSlope=None, RescaleIntercept=None, **top)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = EnhancedMRImageStorage
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "NONE"]
    dataset.NumberOfFrames = len(heights_mm)
    dataset.PixelData = b"".join(ramp(index).tobytes() for index in range(len(heights_mm)))
    dataset.SharedFunctionalGroupsSequence = Items([Dataset()])
    for name, items in shared.items():
        setattr(dataset.SharedFunctionalGroupsSequence[0], name, items)
    frames = []
    for height, groups in zip(heights_mm, per_frame, strict=True):
        frame = Dataset()
        frame.PlanePositionSequence = group("PlanePosition", ImagePositionPatient=[0, 0, height])
        for name, items in groups.items():
            setattr(frame, name, items)
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = Items(frames)
    return dataset


SHARED = {
    "PixelMeasuresSequence": group("PixelMeasures", PixelSpacing=[0.5, 0.25], SliceThickness=3),
    "PlaneOrientationSequence": group("PlaneOrientation", ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
}


def test_shuffled_frames_are_sorted_by_their_positions(tmp_path: Path) -> None:
    heights = [9.0, 0, 6, 3]
    volume = read_series(save(enhanced(heights, shared=SHARED, per_frame=[{}] * 4), tmp_path / "a"))
    np.testing.assert_array_equal(volume.voxels, [ramp(index) for index in (1, 3, 2, 0)])
    assert [index for _, index in volume.instances] == [1, 3, 2, 0]
    np.testing.assert_allclose(volume.affine, [[0, 0, 0.25, 0], [0, 0.5, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1]])
    assert volume.quality == ()


def test_a_frames_own_groups_win_over_shared_ones(tmp_path: Path) -> None:
    rescale = [group("PixelValueTransformation", RescaleSlope=slope, RescaleIntercept=-slope) for slope in (1, 2, 0.5)]
    per_frame = [{"PixelValueTransformationSequence": item} for item in rescale]
    shared = {**SHARED, "PixelValueTransformationSequence": group("PixelValueTransformation", RescaleSlope=99)}
    volume = read_series(save(enhanced([0, 3, 6], shared=shared, per_frame=per_frame), tmp_path / "a"))
    expected = [ramp(index) * np.float32(slope) - np.float32(slope) for index, slope in enumerate((1, 2, 0.5))]
    np.testing.assert_array_equal(volume.voxels, expected)
    assert volume.quality == ("rescale_varies",)


def test_the_first_echo_of_many_is_kept(tmp_path: Path) -> None:
    per_frame = [{"MREchoSequence": group("MREcho", EffectiveEchoTime=echo)} for echo in (80.0, 20, 80, 20, 80, 20)]
    volume = read_series(save(enhanced([0, 0, 3, 3, 6, 6], shared=SHARED, per_frame=per_frame), tmp_path / "a"))
    assert [index for _, index in volume.instances] == [1, 3, 5]
    assert volume.quality == ("other_passes",)


def test_phase_frames_are_left_out(tmp_path: Path) -> None:
    kinds = [["ORIGINAL", "PRIMARY", kind, "NONE"] for kind in "PMPMPM"]
    per_frame = [{"MRImageFrameTypeSequence": group("MRImageFrameType", FrameType=kind)} for kind in kinds]
    volume = read_series(save(enhanced([0, 0, 3, 3, 6, 6], shared=SHARED, per_frame=per_frame), tmp_path / "a"))
    assert [index for _, index in volume.instances] == [1, 3, 5]
    assert volume.quality == ("other_components",)


def test_compressed_frames_are_found_in_their_file(tmp_path: Path) -> None:
    dataset = enhanced([6, 3, 0], shared=SHARED, per_frame=[{}] * 3)
    path = save(dataset, tmp_path / "a")
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.PixelData = encapsulate([rle(ramp(index)) for index in range(3)])
    dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path)
    np.testing.assert_array_equal(read_series(path).voxels, [ramp(index) for index in (2, 1, 0)])


def test_frames_without_positions_stand_in_stored_order(tmp_path: Path) -> None:
    dataset = enhanced([0, 0, 0], shared=SHARED, per_frame=[{}] * 3)
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        del frame.PlanePositionSequence
    volume = read_series(save(dataset, tmp_path / "a"))
    np.testing.assert_array_equal(volume.voxels, [ramp(index) for index in range(3)])
    assert volume.spacing_mm == pytest.approx((3, 0.5, 0.25))  # Slice Thickness of the shared groups
    assert volume.quality == ("geometry_assumed",)


@pytest.mark.parametrize("defect", ["frames", "spacing", "positions"])
def test_damaged_groups_are_refused(tmp_path: Path, defect: str) -> None:
    shared = {} if defect == "spacing" else SHARED
    dataset = enhanced([0, 3, 6], shared=shared, per_frame=[{}] * 3)
    if defect == "frames":
        del dataset.PerFrameFunctionalGroupsSequence[-1]
    if defect == "positions":
        dataset.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0].ImagePositionPatient = [1, 2]
    with pytest.raises(SeriesError) as refusal:
        read_series(save(dataset, tmp_path / "a"))
    assert refusal.value.reason == "no_geometry"


def test_all_frames_at_one_position_are_no_volume(tmp_path: Path) -> None:
    with pytest.raises(SeriesError) as refusal:
        read_series(save(enhanced([5, 5, 5], shared=SHARED, per_frame=[{}] * 3), tmp_path / "a"))
    assert refusal.value.reason == "single_slice"
    assert "one position" in str(refusal.value)
