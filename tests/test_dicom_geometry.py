"""Rules of choosing and placing slices, by hand, by SimpleITK and on random orientations."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import ct_slice, ramp, write_series
from numpy.typing import NDArray

from aneurysm_ray.data.dicom import read_series
from aneurysm_ray.data.dicom.fields import orthonormal
from aneurysm_ray.data.dicom.files import OpenFiles
from aneurysm_ray.data.dicom.frames import Frame
from aneurysm_ray.data.dicom.geometry import choose, place
from aneurysm_ray.data.dicom.quality import BadFile
from aneurysm_ray.data.dicom.reader import read_all


def frames_at(tmp_path: Path, heights_mm: list[float]) -> list[Frame]:
    """Return frames of one axial stack at given heights."""
    with OpenFiles() as opened:
        (frame,) = read_all([str(next(write_series(tmp_path, 1).iterdir()))], opened)[0]
    return [
        replace(frame, position_mm=(0.0, 0.0, height), instance=index, index=index)
        for index, height in enumerate(heights_mm)
    ]


@pytest.mark.parametrize(
    ("heights_mm", "notes"),
    [
        ([0, 1, 2, 3], ()),
        ([0, 1.02, 1.99, 3.01], ()),  # rounding
        ([0, 1, 2, 4, 5], ("missing_slices",)),
        ([0, 1, 2, 5, 6], ("missing_slices",)),
        ([0, 1, 2, 3.5, 4.5], ("uneven_slices",)),
        ([0, 1, 2, 4, 5.5, 6.5], ("missing_slices", "uneven_slices")),
    ],
)
def test_steps(tmp_path: Path, heights_mm: list[float], notes: tuple[str, ...]) -> None:
    placement = place(frames_at(tmp_path, heights_mm))
    assert placement.notes == notes
    np.testing.assert_allclose(placement.origins_mm[:, 2], heights_mm)
    assert placement.affine[2, 0] == pytest.approx(heights_mm[-1] / (len(heights_mm) - 1))


def test_slots_are_positions_in_the_direction_of_the_normal(tmp_path: Path) -> None:
    stack = choose(frames_at(tmp_path, [4, 0, 2, 2.005, 6]))
    assert [[frame.index for frame in slot] for slot in stack.slots] == [[1], [2, 3], [0], [4]]


def test_of_equal_stacks_the_finest_is_chosen(tmp_path: Path) -> None:
    coarse = frames_at(tmp_path, [0, 1, 2])
    fine = [replace(frame, spacing_mm=(0.2, 0.2), index=frame.index + 10) for frame in coarse]
    assert {slot[0].index for slot in choose(coarse + fine).slots} == {10, 11, 12}
    assert {drop.code for drop in choose(coarse + fine).dropped} == {"other_stacks"}


def test_an_acquisition_number_for_each_slice_is_no_time_point(tmp_path: Path) -> None:
    """GE counts acquisitions slice by slice; one repeated slice must not leave a volume of one slice."""
    stack = [replace(frame, acquisition=frame.index) for frame in frames_at(tmp_path, [0, 1, 2, 3, 3])]
    assert len(choose(stack).slots) == 4


def test_the_choice_does_not_depend_on_the_order_of_files(tmp_path: Path) -> None:
    frames = frames_at(tmp_path, [0, 1, 2, 3, 1, 2])
    expected = [[frame.index for frame in slot] for slot in choose(frames).slots]
    rng = np.random.default_rng(1)
    for _ in range(20):
        order = rng.permutation(len(frames))
        assert [[f.index for f in slot] for slot in choose([frames[i] for i in order]).slots] == expected


def rotation(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a random rotation."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q


@pytest.mark.parametrize("seed", range(4))
def test_random_orientations_place_voxels_like_simpleitk(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    axes = rotation(rng)
    start = rng.uniform(-100, 100, 3)
    made = [
        ct_slice(
            z,
            ImagePositionPatient=[f"{value:.6f}" for value in start + 1.7 * z * axes[2]],
            ImageOrientationPatient=[f"{value:.9f}" for value in (*axes[0], *axes[1])],
            SOPInstanceUID=f"1.2.{seed}.{z}",
        )
        for z in range(5)
    ]
    folder = write_series(tmp_path, made)
    volume = read_series(folder)
    assert volume.quality == ()
    np.testing.assert_array_equal(volume.voxels[4], ramp(4).astype(int) - 1024)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    assert image[3, 2, 4] == volume.voxels[4, 2, 3]
    for zyx in rng.integers(0, 5, (5, 3)):
        ours = volume.affine @ [*zyx, 1]
        theirs = image.TransformIndexToPhysicalPoint([int(value) for value in zyx[::-1]])
        np.testing.assert_allclose(ours[:3], theirs, atol=1e-4)


def test_cosines_that_span_no_plane_are_refused() -> None:
    for cosines in ((0.0,) * 6, (1.0, 0, 0, 1, 0, 0), (9.0, 0, 0, 0, 1, 0)):
        with pytest.raises(BadFile):
            orthonormal(cosines, [])


def test_orthonormal_by_hand() -> None:
    notes: list[str] = []
    assert orthonormal((1.0, 0, 0, 0, 1, 0), notes) == (1, 0, 0, 0, 1, 0)
    assert notes == []
    # a column leaning 0.1 along the row loses that part and is stretched back to length 1
    np.testing.assert_allclose(orthonormal((2.0, 0, 0, 0.1, 1, 0), notes), (1, 0, 0, 0, 1, 0))
    assert notes == ["orientation_repaired"]


def test_thousands_of_orientations_are_no_trap(tmp_path: Path) -> None:
    """A rotating projection has an orientation for each image; the stack beside it is found all the same."""
    rng = np.random.default_rng(2)
    stack = frames_at(tmp_path, [0, 1, 2])
    turned = [rotation(rng) for _ in range(3000)]
    around = [
        replace(stack[0], orientation=(*axes[0].tolist(), *axes[1].tolist()), index=100 + index)
        for index, axes in enumerate(turned)
    ]
    assert [slot[0].index for slot in choose(around + stack).slots] == [0, 1, 2]
