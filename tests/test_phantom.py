"""The phantom as a data set: its points, masks and geometry agree with its images, and trusted readers see the same."""

import csv
import hashlib
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from phantom_sets import write_and_keep

from aneurysm_ray import demo, overrides
from aneurysm_ray.data.dataset import Dataset, open_dataset
from aneurysm_ray.data.dicom import read_series
from aneurysm_ray.data.points import locate, to_patient_mm
from aneurysm_ray.errors import RequestError
from aneurysm_ray.labels import LABELS, PRESENT_INDEX
from aneurysm_ray.phantom import PhantomOptions, plan_series, write_dataset
from aneurysm_ray.phantom.geometry import paint_tree, read_tree
from aneurysm_ray.phantom.grid import Grid, Pose
from aneurysm_ray.phantom.series import Rendered, make_series

OPTIONS = PhantomOptions(
    count=8,
    seed=4,
    spacing_mm=2.0,
    min_mm=4,
    max_mm=9,
    positive_fraction=0.75,
    oblique_fraction=0.25,
    multiframe_fraction=0.25,
    masks=1.0,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Rendered]]:
    return write_and_keep(tmp_path_factory.mktemp("phantom") / "data", OPTIONS)


@pytest.fixture(scope="module")
def folder(written: tuple[Path, dict[str, Rendered]]) -> Path:
    return written[0]


@pytest.fixture(scope="module")
def data(folder: Path) -> Dataset:
    return open_dataset(folder)


@pytest.fixture(scope="module")
def rendered(written: tuple[Path, dict[str, Rendered]]) -> dict[str, Rendered]:
    """The series as they were before they were written, by patient."""
    return written[1]


def truth(folder: Path) -> dict[str, list[dict[str, str]]]:
    rows: dict[str, list[dict[str, str]]] = {}
    with (folder / "phantom.csv").open() as stream:
        for row in csv.DictReader(stream):
            rows.setdefault(row["series_uid"], []).append(row)
    return rows


def test_the_test_set_has_every_kind(data: Dataset, folder: Path) -> None:
    rows = [row for of_series in truth(folder).values() for row in of_series]
    assert {row["multiframe"] for row in rows} == {"0", "1"}
    assert {row["plane"] for row in rows} > {"axial"}
    assert {entry.modality for entry in data.series} == {"CTA", "MRA", "MRI T2", "MRI T1post"}
    assert data.notes and all("frames from 0" in note or "nothing tells" in note for note in data.notes)


def test_headers_of_the_tables_are_the_competitions(folder: Path) -> None:
    first = (folder / "train.csv").read_text().splitlines()
    assert first[0] == ",".join(["SeriesInstanceUID,PatientAge,PatientSex,Modality", *LABELS])
    assert [line.split(",")[0] for line in first[1:]] == sorted(path.name for path in (folder / "series").iterdir())
    header = (folder / "train_localizers.csv").read_text().splitlines()[0]
    assert header == "SeriesInstanceUID,SOPInstanceUID,coordinates,location"


def test_present_is_the_maximum_and_every_positive_has_its_points(data: Dataset) -> None:
    # Three quarters of 3 CTA, 2 MRA, 2 T2 and 1 T1post, each rounded.
    assert sum(entry.targets[PRESENT_INDEX] for entry in data.series) == 2 + 2 + 2 + 1
    for entry in data.series:
        assert entry.targets[PRESENT_INDEX] == entry.targets[:PRESENT_INDEX].max()
        assert {point.location for point in entry.points} == {
            LABELS[index] for index in np.flatnonzero(entry.targets[:PRESENT_INDEX])
        }


def test_points_through_the_dicom_affine_lie_on_the_aneurysms(
    data: Dataset, folder: Path, rendered: dict[str, Rendered]
) -> None:
    rows, checked = truth(folder), 0
    for entry in data.series:
        assert entry.series_uid is not None
        volume = read_series(entry.path)
        series = rendered[volume.patient_id]
        lesions = [row for row in rows[entry.series_uid] if row["location"]]
        assert len(entry.points) == len(lesions)
        for point, lesion in zip(entry.points, lesions, strict=True):
            assert point.location == lesion["location"]
            voxel = locate(volume, point.sop_uid, point.x, point.y, point.frame)
            assert voxel is not None
            at_mm = to_patient_mm(volume, voxel)
            centre = np.array([float(lesion[key]) for key in ("x_mm", "y_mm", "z_mm")])
            # In the plane within the dome; across it the nearest slice is half a spacing away at most.
            in_plane = volume.affine[:3, 1:] / np.linalg.norm(volume.affine[:3, 1:], axis=0)
            radius = float(lesion["diameter_mm"]) / 2
            assert np.linalg.norm((at_mm - centre) @ in_plane) < 0.5 * radius
            assert np.linalg.norm(at_mm - centre) < 0.5 * radius + volume.spacing_mm[0] / 2
            # And the voxels of the aneurysm themselves begin within a voxel of the point.
            inside = np.argwhere(series.aneurysms) if series.aneurysms.any() else np.empty((0, 3))
            if len(inside) and volume.spacing_mm[0] < 3:
                on_grid = series.grid.to_index(at_mm)
                gap = np.abs((inside - on_grid) * series.grid.spacing_mm).max(axis=1).min()
                assert gap <= series.grid.spacing_mm.max()
                checked += 1
    assert checked >= 3


def test_masks_through_the_nifti_affine_lie_on_the_vessels(data: Dataset, rendered: dict[str, Rendered]) -> None:
    for entry in data.series:
        assert entry.vessels is not None
        volume = read_series(entry.path)
        mask = nibabel.load(entry.vessels)
        values = np.asarray(mask.dataobj)
        assert values.dtype == np.uint8 and set(np.unique(values)) <= set(range(14)) and values.max() > 0
        at = np.argwhere(values)
        patient = (at @ mask.affine[:3, :3].T + mask.affine[:3, 3]) * (-1, -1, 1)
        on_dicom = np.linalg.solve(volume.affine[:3, :3], (patient - volume.affine[:3, 3]).T).T
        assert np.abs(on_dicom - on_dicom.round()).max() < 0.01
        z, y, x = on_dicom.round().astype(int).T
        if entry.modality == "CTA":
            # Lumen is far above brain; partial volume at the wall takes some of it.
            assert np.median(volume.voxels[z, y, x]) > 150
        series = rendered[volume.patient_id]
        own = series.grid.to_index(patient).round().astype(int)
        assert np.array_equal(series.vessels[tuple(own.T)], values[tuple(at.T)])
        assert np.count_nonzero(series.vessels) == len(at)
        left = np.isin(values[tuple(at.T)], (6, 8, 10))
        right = np.isin(values[tuple(at.T)], (5, 7, 9))
        assert patient[left, 0].mean() > patient[right, 0].mean() + 10


def read_with_simpleitk(path: Path) -> sitk.Image:
    files = sorted(path.iterdir())
    if len(files) > 1:
        return sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)))
    image = sitk.ReadImage(str(files[0]))
    return image[..., 0] if image.GetDimension() == 4 else image


def test_simpleitk_reads_the_same_voxels_and_geometry(data: Dataset) -> None:
    for entry in data.series:
        volume = read_series(entry.path)
        image = read_with_simpleitk(entry.path)
        voxels = sitk.GetArrayFromImage(image)
        assert voxels.shape == volume.voxels.shape
        z, y, x = (n - 1 for n in voxels.shape)
        first = np.array(image.TransformIndexToPhysicalPoint((0, 0, 0)))
        flipped = np.linalg.norm(first - volume.affine[:3, 3]) > 1
        if flipped:
            voxels = voxels[::-1]
        assert np.array_equal(voxels, volume.voxels)
        for index in ((0, 0, 0), (z, 0, 0), (0, y, 0), (0, 0, x), (z, y, x)):
            theirs = image.TransformIndexToPhysicalPoint((index[2], index[1], z - index[0] if flipped else index[0]))
            assert np.allclose(volume.affine[:3, :3] @ index + volume.affine[:3, 3], theirs, atol=0.01)


def test_files_hold_what_was_rendered(data: Dataset, rendered: dict[str, Rendered]) -> None:
    for entry in data.series:
        volume = read_series(entry.path)
        series = rendered[volume.patient_id]
        corners = np.array([[0, 0, 0], np.array(volume.shape) - 1])
        own = series.grid.to_index(corners @ volume.affine[:3, :3].T + volume.affine[:3, 3]).round().astype(int)
        step = np.where(own[1] >= own[0], 1, -1)
        assert np.array_equal(series.voxels[:: step[0], :: step[1], :: step[2]], volume.voxels)
        assert volume.modality == ("CT" if entry.modality == "CTA" else "MR")


def digest(folder: Path) -> str:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    assert paths
    content = b"".join(str(path.relative_to(folder)).encode() + path.read_bytes() for path in paths)
    return hashlib.sha256(content).hexdigest()


def test_equal_options_give_equal_bytes_whatever_the_workers(tmp_path: Path) -> None:
    options = PhantomOptions(count=3, seed=9, spacing_mm=4.0, modalities=("CTA", "MRA"), masks=1)
    calls: list[tuple[int, int]] = []
    once = write_dataset(tmp_path / "a", options, lambda done, total: calls.append((done, total)))
    again = write_dataset(tmp_path / "b", replace(options, workers=2))
    other = write_dataset(tmp_path / "c", replace(options, seed=10))
    assert digest(once) == digest(again) != digest(other)
    assert calls == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_frames_count_from_one_when_asked(tmp_path: Path) -> None:
    options = PhantomOptions(
        count=1, spacing_mm=4.0, modalities=("MRA",), positive_fraction=1, multiframe_fraction=1, min_mm=5
    )
    zero = write_dataset(tmp_path / "a", options)
    one = write_dataset(tmp_path / "b", replace(options, frame_base=1))
    frames = []
    for path in (zero, one):
        with (path / "train_localizers.csv").open() as stream:
            frames.append(int(next(csv.DictReader(stream))["coordinates"].split("'f': ")[1].rstrip("}")))
    assert frames[1] == frames[0] + 1


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RequestError, match="exists already"):
        write_dataset(tmp_path, OPTIONS)


def test_twins_of_a_given_tree_differ_by_the_dome_alone(tmp_path: Path) -> None:
    z, y, x = np.mgrid[0:120, 0:100, 0:100] * 0.5
    labels = (np.hypot(y - 25, x - 25) < 2).astype(np.uint8)
    labels[(np.hypot(z - 30, x - 25) < 1.5) & (y > 5) & (y < 45)] = 1
    dome = np.sqrt((z - 30) ** 2 + (y - 25) ** 2 + (x - 30.5) ** 2) < 4
    labels[dome & (labels == 0)] = 2
    # A neck that was labelled as vessel remains as a stump.
    labels[dome & (x < 28) & (np.hypot(z - 30, y - 25) < 1)] = 1
    nibabel.save(
        nibabel.Nifti1Image(labels.transpose(2, 1, 0), np.diag([-0.5, -0.5, 0.5, 1])), tmp_path / "tree_7.nii.gz"
    )
    options = PhantomOptions(count=2, seed=1, spacing_mm=1.0, modalities=("CTA",), geometry=tmp_path)
    ill, well = (make_series(options, plan) for plan in plan_series(options))
    assert ill.patient == well.patient == "phantom-tree_7"
    assert len(ill.lesions) == 1 and well.lesions == ()
    assert ill.lesions[0].diameter_mm == pytest.approx(8.0, abs=1.2)
    centre = ill.grid.to_index(np.array(ill.lesions[0].centre_mm)).round().astype(int)
    assert ill.aneurysms[tuple(centre)] == 1 and not well.aneurysms.any()
    volume_mm3 = np.count_nonzero(ill.aneurysms) * np.prod(ill.grid.spacing_mm)
    assert volume_mm3 == pytest.approx(np.count_nonzero(labels == 2) * 0.125, rel=0.35)


def test_a_dome_of_a_given_tree_owns_what_its_shell_encloses(tmp_path: Path) -> None:
    """Maps drawn from surfaces have vessel, or nothing, inside a dome: the twin without it kept a ball in its place."""
    z, y, x = np.mgrid[-12:13, -12:13, -20:21].astype(float)
    from_centre = np.sqrt(z**2 + y**2 + x**2)
    labels = np.zeros(z.shape, np.uint8)
    labels[(np.abs(z) < 2) & (np.abs(y) < 2)] = 1
    labels[from_centre < 9] = 1
    labels[from_centre < 4] = 0
    labels[(from_centre >= 7) & (from_centre < 9)] = 2
    labels[(from_centre >= 2) & (from_centre < 9) & (x > 0) & (np.abs(z) < 1) & (np.abs(y) < 1)] = 0
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), tmp_path / "tree.nii")
    tree = read_tree(tmp_path / "tree.nii", with_domes=True)
    ((_, dome),) = tree.domes
    ball = int((from_centre < 9).sum())
    assert ball * 0.97 < len(dome) <= ball
    ((_, vessel),) = tree.vessels
    assert len(vessel) + len(dome) >= int(((labels > 0) | (from_centre < 8)).sum())
    ((_, left),) = read_tree(tmp_path / "tree.nii", with_domes=False).vessels
    assert len(left) < ball / 4


def test_painting_a_tree_keeps_its_volume(tmp_path: Path) -> None:
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[10:30, 15:25, 15:25] = 1
    nibabel.save(nibabel.Nifti1Image(labels, np.diag([0.5, 0.5, 0.5, 1])), tmp_path / "box.nii")
    tree = read_tree(tmp_path / "box.nii", with_domes=True)
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[::-1]
    ((value, points),) = tree.vessels
    assert value == 0 and len(points) == 2000
    affine[:3, 3] = points.mean(axis=0) - 12
    field = paint_tree(Grid((25, 25, 25), affine), Pose(np.eye(3), np.zeros(3)), tree, edge_mm=1.0)
    share = 0.5 - field.distance_mm
    assert share.sum() == pytest.approx(2000 * 0.125, rel=0.01)
    assert share[12, 12, 12] == pytest.approx(1, abs=0.05)


def test_thirteen_labels_give_a_negative_and_its_mask(tmp_path: Path) -> None:
    labels = np.zeros((80, 80, 80), np.uint8)
    labels[20:60, 38:42, 38:42] = 9
    labels[38:42, 20:38, 38:42] = 11
    (tmp_path / "trees").mkdir()
    nibabel.save(nibabel.Nifti1Image(labels, np.diag([1.0, 1, 1, 1])), tmp_path / "trees" / "cow.nii")
    options = PhantomOptions(count=2, spacing_mm=3.0, modalities=("CTA",), geometry=tmp_path / "trees", masks=1)
    data = open_dataset(write_dataset(tmp_path / "data", options))
    for entry in data.series:
        assert entry.targets.sum() == 0 and entry.vessels is not None
        assert set(np.unique(np.asarray(nibabel.load(entry.vessels).dataobj))) == {0, 9, 11}


def test_leftovers_of_a_run_cut_short_are_replaced(tmp_path: Path) -> None:
    options = PhantomOptions(count=1, spacing_mm=5.0, modalities=("MRA",))
    (tmp_path / "data.phantom.tmp" / "series" / "1.2").mkdir(parents=True)
    out = write_dataset(tmp_path / "data", options)
    assert len(open_dataset(out).series) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_the_demonstration_knows_what_its_own_frames_count_from(folder: Path) -> None:
    settings = overrides.build(demo.SETTINGS)
    notes = open_dataset(folder, settings.prepare.frame_base).notes
    assert notes == (f"localizers count frames from {OPTIONS.frame_base}, as prepare.frame_base says",)
