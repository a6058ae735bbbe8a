"""What viewers read: SR, SEG and NIfTI of a series in every plane, read back by other software."""

import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import ct_slice, write_series
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, generate_uid
from pydicom.valuerep import DSfloat

from aneurysm_ray.data.dicom import read_series
from aneurysm_ray.data.outputs import nifti, seg, sr, viewer
from aneurysm_ray.data.points import SourceSlices, source_slices

ROWS, COLUMNS, SLICES = 24, 32, 10
SPACING_MM = (3.0, 0.9, 0.7)
OBLIQUE = np.linalg.qr(np.array([[0.9, 0.2, 0.1], [-0.3, 0.8, 0.4], [0.1, -0.5, 0.9]]))[0]
DIRECTIONS = {  # along a row (to the next column), down a column (to the next row)
    "axial": ([1, 0, 0], [0, 1, 0]),
    "coronal": ([1, 0, 0], [0, 0, -1]),
    "sagittal": ([0, 1, 0], [0, 0, -1]),
    "oblique": (list(OBLIQUE[:, 0]), list(OBLIQUE[:, 1])),
}


def decimals(values: Iterable[float]) -> list[DSfloat]:
    """Return numbers as DS, which has room for 16 characters."""
    return [DSfloat(float(value), auto_format=True) for value in values]


def series(plane: str, multi_frame: bool = False) -> tuple[SourceSlices, list[Dataset]]:
    """Return the slice grid and headers of a small series; the last two slices stand apart by twice the spacing."""
    along, down = (np.array(d, float) for d in DIRECTIONS[plane])
    normal = np.cross(along, down)
    heights = np.arange(SLICES) * SPACING_MM[0]
    heights[-1] += SPACING_MM[0]
    origins = np.array([-20.0, 35.0, 12.0]) + heights[:, None] * normal
    study, uid, frame_of_reference = generate_uid(), generate_uid(), generate_uid()

    def header(origin: np.ndarray | None) -> Dataset:
        h = Dataset()
        h.SOPClassUID = EnhancedMRImageStorage if multi_frame else CTImageStorage
        h.Modality = "MR" if multi_frame else "CT"
        h.StudyInstanceUID, h.SeriesInstanceUID, h.SOPInstanceUID = study, uid, generate_uid()
        h.FrameOfReferenceUID = frame_of_reference
        h.Rows, h.Columns = ROWS, COLUMNS
        if origin is not None:
            h.ImagePositionPatient = decimals(origin)
            h.ImageOrientationPatient = decimals((*along, *down))
            h.PixelSpacing = list(SPACING_MM[1:])
            h.SliceThickness = SPACING_MM[0]
        return h

    if multi_frame:
        image = header(None)
        image.NumberOfFrames = SLICES
        shared, measures, orientation = Dataset(), Dataset(), Dataset()
        measures.PixelSpacing, measures.SliceThickness = list(SPACING_MM[1:]), SPACING_MM[0]
        orientation.ImageOrientationPatient = decimals((*along, *down))
        shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
        image.SharedFunctionalGroupsSequence = [shared]
        frames = []
        for origin in origins[::-1]:  # stored against their order in space
            position, frame = Dataset(), Dataset()
            position.ImagePositionPatient = decimals(origin)
            frame.PlanePositionSequence = [position]
            frames.append(frame)
        image.PerFrameFunctionalGroupsSequence = frames
        headers = [image]
        instances = tuple((image.SOPInstanceUID, SLICES - 1 - k) for k in range(SLICES))
    else:
        headers = [header(origin) for origin in origins]
        instances = tuple((h.SOPInstanceUID, 0) for h in headers)
    return SourceSlices(origins, down * SPACING_MM[1], along * SPACING_MM[2], ROWS, COLUMNS, instances), headers


def position(slices: SourceSlices, index: int, row: float, column: float) -> np.ndarray:
    return slices.origins_mm[index] + row * slices.row_mm + column * slices.column_mm


def validate(path: Path) -> None:
    """Hold a file against the standard with dicom3tools' dciodvfy, where that is installed."""
    if shutil.which("dciodvfy"):
        said = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False).stderr
        assert "Error" not in said, said


CASES = [*((plane, False) for plane in DIRECTIONS), ("oblique", True)]


@pytest.mark.parametrize(("plane", "multi_frame"), CASES)
def test_pixel_of_a_patient_position_is_found_in_every_plane(plane: str, multi_frame: bool) -> None:
    slices, _ = series(plane, multi_frame)
    for index, row, column in [(0, 0.0, 0.0), (4, 7.25, 20.5), (9, 23.0, 31.0)]:
        found = slices.pixel(position(slices, index, row, column))
        assert (found.sop_uid, found.frame) == slices.instances[index]
        assert (found.row, found.column) == pytest.approx((row, column), abs=1e-9)
        assert found.distance_mm == pytest.approx(0, abs=1e-9)


def test_position_between_uneven_slices_goes_to_the_nearest() -> None:
    slices, _ = series("axial")
    found = slices.pixel(position(slices, 8, 3, 4) + np.array([0, 0, 2.5]))  # 6 mm lie between slices 8 and 9
    assert (found.sop_uid, found.distance_mm) == (slices.instances[8][0], pytest.approx(2.5))
    assert slices.pixel(position(slices, 8, 3, 4) + np.array([0, 0, 3.5])).sop_uid == slices.instances[9][0]


def test_gantry_tilt_moves_the_pixel_not_the_position() -> None:
    slices, _ = series("axial")
    slices.origins_mm[:, 1] += 0.5 * np.arange(SLICES)  # each slice starts further back than the one below
    assert slices.pixel(position(slices, 6, 5, 8)).row == pytest.approx(5)


@pytest.mark.parametrize(("plane", "multi_frame"), CASES)
def test_structured_report_names_image_frame_point_site_and_certainty(
    plane: str, multi_frame: bool, tmp_path: Path
) -> None:
    slices, headers = series(plane, multi_frame)
    pixels = [slices.pixel(position(slices, 4, 7.25, 20.5)), slices.pixel(position(slices, 2, 3, 9))]
    candidates = pd.DataFrame(
        {
            "sop_uid": [p.sop_uid for p in pixels],
            "frame": [p.frame for p in pixels],
            "row": [p.row for p in pixels],
            "column": [p.column for p in pixels],
            "probability": [0.8312, 0.25],
            "location": ["Left Supraclinoid Internal Carotid Artery", "Basilar Tip"],
        }
    )
    path = tmp_path / "report.dcm"
    sr.write_report(path, candidates, headers, present_probability=0.91, model_digest="a" * 64)
    validate(path)

    document = hd.sr.srread(path)
    assert document.StudyInstanceUID == headers[0].StudyInstanceUID
    groups = document.content.get_planar_roi_measurement_groups()
    assert len(groups) == 2
    region = groups[0].roi
    assert region.graphic_type == hd.sr.GraphicTypeValues.POINT
    assert region.value.tolist() == [[21.0, 7.75]]  # SCOORD counts from the pixel's corner
    image = region.ContentSequence[0].ReferencedSOPSequence[0]
    assert image.ReferencedSOPInstanceUID == pixels[0].sop_uid
    # Stored against their order in space and counted from 1, slice 4 of 10 is frame 6.
    assert image.get("ReferencedFrameNumber") == (6 if multi_frame else None)
    score = groups[0].get_measurements()[0]
    assert (score.value, score.name.meaning) == (0.83, "Detector score, not calibrated")
    site = groups[0].finding_sites[0]
    assert (site.value.meaning, site.laterality.meaning) == ("Internal carotid artery", "Left")
    assert groups[1].finding_sites[0].laterality is None
    overall = document.content.get_image_measurement_groups()
    assert [g.get_measurements()[0].value for g in overall] == [0.91]
    assert "Research only" in document.content[0].ContentSequence[-1].TextValue


def test_structured_report_without_candidates_is_valid(tmp_path: Path) -> None:
    _, headers = series("axial")
    none = pd.DataFrame(columns=["sop_uid", "frame", "row", "column", "probability", "location"])
    sr.write_report(tmp_path / "none.dcm", none, headers, present_probability=0.1, model_digest="b" * 64)
    validate(tmp_path / "none.dcm")
    assert hd.sr.srread(tmp_path / "none.dcm").content.get_planar_roi_measurement_groups() == []


def test_attributes_the_source_has_wrong_are_not_handed_on(tmp_path: Path) -> None:
    _, headers = series("axial")
    for header in headers:
        with warnings.catch_warnings(action="ignore"):
            header.PatientAge, header.PatientSex, header.PatientName = "42", "unknown", "Müller^Zoë"
        header.SpecificCharacterSet = "ISO 2022 IR 100"
        header.PatientIdentityRemoved, header.DeidentificationMethod = "YES", ""
    none = pd.DataFrame(columns=["sop_uid", "frame", "row", "column", "probability", "location"])
    sr.write_report(tmp_path / "none.dcm", none, headers, present_probability=0.1, model_digest="b" * 64)
    validate(tmp_path / "none.dcm")
    document = hd.sr.srread(tmp_path / "none.dcm")
    assert "PatientAge" not in document and document.PatientSex == ""
    assert document.PatientName == "Müller^Zoë"
    assert headers[0].PatientAge == "42"  # the source's own header is as it was


NO_CANDIDATES = pd.DataFrame(columns=["sop_uid", "frame", "row", "column", "probability", "location"])


def test_a_calibrated_probability_is_a_certainty_in_whole_percent(tmp_path: Path) -> None:
    _, headers = series("axial")
    path = tmp_path / "report.dcm"
    sr.write_report(
        *(path, NO_CANDIDATES, headers), present_probability=0.9, model_digest="b" * 64, calibrated_probability=0.62345
    )
    validate(path)
    (group,) = hd.sr.srread(path).content.get_image_measurement_groups()
    measured = group.get_measurements()[0]
    assert (measured.name.meaning, measured.value, measured.unit.value) == ("Certainty of Finding", 62, "%")


@pytest.mark.parametrize(
    ("written", "handed_on"),
    [
        ({"StudyDate": "2020.01.31", "StudyTime": "12:30:59.25"}, {"StudyDate": "20200131", "StudyTime": "123059.25"}),
        ({"StudyDate": "2020-01-31", "StudyTime": "12:30"}, {"StudyDate": "20200131", "StudyTime": "1230"}),
        ({"PatientBirthDate": "00000000", "StudyTime": "noon"}, {"PatientBirthDate": "", "StudyTime": ""}),
        ({"StudyDate": "20201332", "StudyTime": "256199"}, {"StudyDate": "", "StudyTime": ""}),
        ({"StudyDate": "20200229", "StudyTime": "235959"}, {"StudyDate": "20200229", "StudyTime": "235959"}),
    ],
)
def test_old_dates_and_times_are_written_as_today_or_left_empty(
    tmp_path: Path, written: dict[str, str], handed_on: dict[str, str]
) -> None:
    slices, headers = series("axial")
    for header in headers:
        with warnings.catch_warnings(action="ignore"):
            for name, value in written.items():
                setattr(header, name, value)
    sr.write_report(tmp_path / "a.dcm", NO_CANDIDATES, headers, present_probability=0.1, model_digest="b" * 64)
    assert seg.write_segmentation(tmp_path / "b.dcm", *heat(slices), slices, headers)
    for path in (tmp_path / "a.dcm", tmp_path / "b.dcm"):
        validate(path)
        document = pydicom.dcmread(path)
        assert {name: str(document.get(name) or "") for name in handed_on} == handed_on


def remove(headers: list[Dataset], name: str) -> None:
    for header in headers:
        delattr(header, name)


def spread(headers: list[Dataset], name: str) -> None:
    for number, header in enumerate(headers):
        setattr(header, name, f"1.2.3.{number % 2}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda headers: remove(headers, "FrameOfReferenceUID"), "no FrameOfReferenceUID"),
        (lambda headers: remove(headers, "ImagePositionPatient"), "no Image Position"),
        (lambda headers: spread(headers, "FrameOfReferenceUID"), "2 Frames of Reference"),
        (lambda headers: spread(headers, "StudyInstanceUID"), "2 studies"),
        (lambda headers: spread(headers, "SOPClassUID"), "none of DICOM's"),
    ],
)
def test_why_no_segmentation_can_be_is_said(
    tmp_path: Path, change: Callable[[list[Dataset]], None], words: str
) -> None:
    slices, headers = series("axial")
    change(headers)
    with pytest.raises(ValueError, match=words):
        seg.write_segmentation(tmp_path / "seg.dcm", *heat(slices), slices, headers)


def test_a_missing_slice_thickness_is_the_distance_of_the_slices(tmp_path: Path) -> None:
    slices, headers = series("axial")
    remove(headers, "SliceThickness")
    assert seg.write_segmentation(tmp_path / "seg.dcm", *heat(slices), slices, headers)
    validate(tmp_path / "seg.dcm")
    shared = pydicom.dcmread(tmp_path / "seg.dcm").SharedFunctionalGroupsSequence[0]
    assert float(shared.PixelMeasuresSequence[0].SliceThickness) == SPACING_MM[0]


def test_a_uid_that_images_share_is_referred_to_by_nothing(tmp_path: Path) -> None:
    made = [ct_slice(z, SOPInstanceUID="1.2.3") for z in range(4)]
    for dataset in made:
        dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = "1.2.4", "1.2.5"
    volume = read_series(write_series(tmp_path / "in", made))
    grid = np.full((2, 3, 3), 0.6, np.float32)
    where = volume.affine @ np.diag([2.0, 8, 8, 1])
    notes = viewer.write_all(
        *(tmp_path / "out", tmp_path / "in", source_slices(volume), NO_CANDIDATES, grid, where, 0.9, "c" * 64)
    )
    assert [note[:12] for note in notes] == ["no DICOM SR:", "no DICOM SEG"]
    assert all("4 source images share a SOP Instance UID" in note for note in notes)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [viewer.NIFTI]


def test_missing_study_is_said(tmp_path: Path) -> None:
    _, headers = series("axial")
    del headers[0].StudyInstanceUID
    none = pd.DataFrame(columns=["sop_uid", "frame", "row", "column", "probability", "location"])
    with pytest.raises(ValueError, match="no StudyInstanceUID"):
        sr.write_report(tmp_path / "none.dcm", none, headers, present_probability=0.1, model_digest="b" * 64)


def heat(slices: SourceSlices) -> tuple[np.ndarray, np.ndarray]:
    """Return a grid of 6 mm cells with one hot cell, centred on row 12, column 16 of slice 4, and its affine."""
    grid = np.zeros((7, 6, 5), np.float32)
    grid[3, 2, 2] = 0.8
    affine = np.array([[0, 0, 6.0, 0], [0, 6.0, 0, 0], [6.0, 0, 0, 0], [0, 0, 0, 1]])
    affine[:3, 3] = position(slices, 4, 12, 16) - affine[:3, :3] @ [3, 2, 2]
    return grid, affine


@pytest.mark.parametrize(("plane", "multi_frame"), CASES)
def test_segmentation_lies_on_the_source_pixels(plane: str, multi_frame: bool, tmp_path: Path) -> None:
    slices, headers = series(plane, multi_frame)
    grid, affine = heat(slices)
    path = tmp_path / "seg.dcm"
    assert seg.write_segmentation(path, grid, affine, slices, headers)
    validate(path)

    document = hd.seg.segread(path)
    uid, frame = slices.instances[4]
    if multi_frame:
        found = document.get_pixels_by_source_frame(uid, [frame + 1], rescale_fractional=True)
    else:
        found = document.get_pixels_by_source_instance([uid], rescale_fractional=True)
    plane_values = found[0, :, :, 0]
    assert np.unravel_index(plane_values.argmax(), plane_values.shape) == (12, 16)
    assert plane_values[12, 16] == pytest.approx(0.8, abs=1 / 255)
    # The cell falls off linearly along each axis of its own grid: one row down is a known step in cells.
    fall = np.abs(slices.row_mm) / 6.0
    assert plane_values[13, 16] == pytest.approx(0.8 * np.prod(1 - fall), abs=1 / 255)
    assert plane_values[0, 0] == 0


def test_segmentation_of_a_cold_map_is_not_written(tmp_path: Path) -> None:
    slices, headers = series("axial")
    grid, affine = heat(slices)
    assert not seg.write_segmentation(tmp_path / "cold.dcm", grid * 0.01, affine, slices, headers)
    assert not (tmp_path / "cold.dcm").exists()


def test_sampling_equals_a_reference_resampler() -> None:
    slices, _ = series("oblique")
    slices.origins_mm[-1] = 2 * slices.origins_mm[-2] - slices.origins_mm[-3]  # even, as SimpleITK needs it
    rng = np.random.default_rng(0)
    grid = rng.uniform(0.1, 1, (7, 6, 5)).astype(np.float32)
    _, affine = heat(slices)
    image = sitk.GetImageFromArray(grid)
    image.SetSpacing((6.0, 6.0, 6.0))
    image.SetOrigin(affine[:3, 3])
    step = slices.origins_mm[1] - slices.origins_mm[0]
    like = sitk.Image(COLUMNS, ROWS, SLICES, sitk.sitkFloat32)
    like.SetSpacing((SPACING_MM[2], SPACING_MM[1], SPACING_MM[0]))
    like.SetOrigin(slices.origins_mm[0])
    axes = [v / np.linalg.norm(v) for v in (slices.column_mm, slices.row_mm, step)]
    like.SetDirection(np.stack(axes, axis=1).ravel())
    expected = sitk.GetArrayFromImage(sitk.Resample(image, like, sitk.Transform(), sitk.sitkLinear, -1.0))
    found = seg.sampled(grid, affine, slices)
    inside = expected >= 0
    assert inside.sum() > 500
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-4)


def test_nifti_puts_the_hottest_cell_where_other_software_finds_it(tmp_path: Path) -> None:
    slices, _ = series("oblique")
    grid, affine = heat(slices)
    nifti.write_heatmap(tmp_path / "heat.nii.gz", grid, affine)
    expected = position(slices, 4, 12, 16)
    image = sitk.ReadImage(tmp_path / "heat.nii.gz")
    assert image.GetPixel(2, 2, 3) == pytest.approx(0.8)
    assert image.TransformIndexToPhysicalPoint((2, 2, 3)) == pytest.approx(expected, abs=1e-4)
    ras = nib.load(tmp_path / "heat.nii.gz").affine @ [2, 2, 3, 1]
    assert ras[:3] == pytest.approx(expected * [-1, -1, 1], abs=1e-4)
