"""From a scanned series to a prepared volume: orientation, region of interest, windows and points."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scans import MARK_MM, head_hu, scan, shoulders_hu

from aneurysm_ray.config import VolumeConfig
from aneurysm_ray.data.dataset import Localizer
from aneurysm_ray.data.preprocess import prepare_series
from aneurysm_ray.data.volume import LeftOut, Volume
from aneurysm_ray.errors import SeriesError
from aneurysm_ray.labels import LABELS

SMALL = VolumeConfig(extent_mm=(120, 160, 140), spacing_mm=(2, 2, 2))


PLANES = {
    "axial": scan(),
    "axial, head first to feet": scan(step=(0, 0, -3), first=(-125, -125, 122)),
    "axial, turned by 180 degrees": scan(columns=(-1, 0, 0), rows=(0, -1, 0), first=(122.5, 122.5, -100)),
    "coronal": scan(rows=(0, 0, -1), step=(0, 3, 0), first=(-125, -120, 125), shape=(80, 95, 100)),
    "sagittal": scan(columns=(0, 1, 0), rows=(0, 0, -1), step=(3, 0, 0), first=(-115, -125, 125), shape=(75, 95, 100)),
    "tilted": scan(step=(0, 0.6, 3), first=(-125, -150, -100), shape=(75, 110, 100)),
    "oblique": scan(
        columns=(np.cos(0.2), np.sin(0.2), 0),
        rows=(-np.sin(0.2), np.cos(0.2), 0),
        first=(-95, -145, -100),
        shape=(75, 100, 100),
    ),
}


def to_mm(affine: NDArray[np.float64], zyx: NDArray[np.float64]) -> NDArray[np.float64]:
    return affine[:3, :3] @ zyx + affine[:3, 3]


@pytest.mark.parametrize("name", PLANES)
def test_every_acquisition_ends_in_one_orientation_on_one_grid_in_space(name: str) -> None:
    volume = PLANES[name]
    prepared = prepare_series(volume, SMALL)
    steps = prepared.affine[:3, :3]
    standard = np.array([[0, 0, 2.0], [0, 2, 0], [2, 0, 0]])
    if name == "oblique":
        assert np.degrees(np.arccos((steps * standard).sum(0) / 4)).max() == pytest.approx(np.degrees(0.2), abs=1e-3)
    else:
        np.testing.assert_allclose(steps, standard, atol=1e-9)
    assert prepared.plane == (name if name in ("coronal", "sagittal") else "axial")
    z, y, x = np.indices(prepared.voxels.shape)
    expected = head_hu(np.stack([z, y, x, np.ones(z.shape)], -1) @ prepared.affine[:3].T)
    brain = expected == 40
    middle = 255 * (40 + 100) / 800
    # Edges blur; what is well inside or outside must hold its value.
    assert np.mean(np.abs(prepared.voxels[brain] - middle) < 1) > 0.93
    assert np.mean(prepared.voxels[expected == -1000] == 0) > 0.9
    centre = np.array(np.nonzero(prepared.voxels > 200)).mean(1)
    np.testing.assert_allclose(to_mm(prepared.affine, centre), MARK_MM, atol=1.0)


@pytest.mark.parametrize("name", PLANES)
def test_a_click_on_an_image_becomes_a_point_at_the_same_place_in_space(name: str) -> None:
    volume = PLANES[name]
    # Where the mark's centre falls in the slices: the slice nearest along the normal, then its row and column.
    normal = np.cross(volume.affine[:3, 2], volume.affine[:3, 1])
    k = int(np.argmin(np.abs((MARK_MM - volume.origins_mm) @ normal)))
    row, column = volume.affine[:3, 1], volume.affine[:3, 2]
    offset = MARK_MM - volume.origins_mm[k]
    click = Localizer(f"1.2.{k}", offset @ column / (column @ column), offset @ row / (row @ row), None, LABELS[4])
    prepared = prepare_series(volume, SMALL, localizers=[click], targets=np.eye(14, dtype=np.float32)[[4, 13]].sum(0))
    (point,) = prepared.points
    assert np.linalg.norm(to_mm(prepared.affine, np.array([point.z, point.y, point.x])) - MARK_MM) < 1.6
    assert point.location == LABELS[4]
    assert prepared.quality == ()
    assert prepared.voxels[round(point.z), round(point.y), round(point.x)] > 180


def test_the_box_hangs_from_the_top_of_the_head_and_is_centred_on_it() -> None:
    off_centre = scan(lambda mm: head_hu(mm - [20, -15, 0]), shape=(75, 110, 110), first=(-130, -150, -100))
    prepared = prepare_series(off_centre, SMALL)
    assert prepared.voxels.shape == (60, 80, 70)
    top = to_mm(prepared.affine, np.array(prepared.voxels.shape) - 1.0)[2]
    assert 102 < top < 114
    middle = to_mm(prepared.affine, (np.array(prepared.voxels.shape) - 1) / 2)
    np.testing.assert_allclose(middle[:2], [20, -15], atol=4)


def test_a_scan_to_the_lungs_with_a_table_gives_the_same_box() -> None:
    long = scan(shoulders_hu, first=(-250, -125, -400), shape=(175, 125, 200), pitch=(2.5, 2.5))
    short = scan(first=(-250, -125, -100), shape=(75, 125, 200))
    a, b = prepare_series(long, SMALL), prepare_series(short, SMALL)
    np.testing.assert_allclose(a.affine[:, 3], b.affine[:, 3], atol=3.1)
    assert a.voxels.shape == b.voxels.shape == (60, 80, 70)


def test_a_scan_smaller_than_the_box_keeps_its_size() -> None:
    slab = scan(first=(-50, -60, 0), shape=(20, 40, 30))
    prepared = prepare_series(slab, SMALL)
    assert prepared.voxels.shape == (30, 50, 37)
    edge = to_mm(prepared.affine, np.zeros(3))
    np.testing.assert_allclose(edge, [-50 - 1.25 + 1.5, -60 - 1.25 + 1, 0 - 1.5 + 1])


def test_two_slices_are_enough_and_thin_scans_stay_thin() -> None:
    assert prepare_series(scan(shape=(2, 100, 100), step=(0, 0, 1)), SMALL).voxels.shape[0] == 1
    assert prepare_series(scan(shape=(4, 100, 100), step=(0, 0, 5)), SMALL).voxels.shape[0] == 10


def test_a_scan_as_long_as_whole_voxels_has_them_all_however_its_ends_are_rounded() -> None:
    """Both ends count to a micrometre, so that a length may lack two of them."""
    for step in (5 - 2.5e-4, 5, 5 + 2.5e-4):
        assert (
            prepare_series(scan(shape=(12, 100, 100), step=(0, 0, step), first=(-125, -125, 0)), SMALL).voxels.shape[0]
            == 30
        )


def test_ct_without_hounsfield_units_is_cropped_like_mr() -> None:
    volume = scan()
    shifted = replace(volume, voxels=(volume.voxels // 10 - 900).astype(np.int16))
    np.testing.assert_allclose(prepare_series(shifted, SMALL).affine, prepare_series(volume, SMALL).affine, atol=6)


def test_ct_values_are_windowed_after_resampling_and_int16_keeps_hounsfield_units() -> None:
    values = np.array([-1000, -100, 40, 300, 700, 2000])
    # Columns of 4 voxels of one value each: the inner ones are untouched by their neighbours.
    volume = scan(
        lambda mm: values[np.clip((mm[..., 0] // 24).astype(int), 0, 5)],
        first=(1, 1, 1),
        shape=(20, 40, 48),
        pitch=(3, 3),
        step=(0, 0, 3),
    )
    config = VolumeConfig(extent_mm=(400, 400, 400), spacing_mm=(3, 3, 3))
    row = prepare_series(volume, config).voxels[10, 20]
    assert [int(row[8 * i + 4]) for i in range(6)] == [0, 0, round(140 / 800 * 255), round(400 / 800 * 255), 255, 255]
    kept = prepare_series(volume, config.model_copy(update={"dtype": "int16"})).voxels
    assert kept.dtype == np.int16
    assert [int(kept[10, 20, 8 * i + 4]) for i in range(6)] == values.tolist()


def test_a_click_on_a_missing_image_is_dropped_and_said() -> None:
    volume = scan()
    clicks = [Localizer("9.9", 1, 1, None, LABELS[0]), Localizer("1.2.55", 38, 42, 0, LABELS[1])]
    prepared = prepare_series(volume, SMALL, localizers=clicks)
    assert [point.location for point in prepared.points] == [LABELS[1]]
    assert prepared.quality == ("point_lost", "point_dark")


def test_a_click_on_an_image_that_was_left_out_is_placed_by_its_own_geometry() -> None:
    volume = scan()
    away = LeftOut("5.5", 0, np.array([1.0, -2.0, 3.0]), np.array([0, 0.5, 0]), np.array([0.25, 0, 0]))
    click = Localizer("5.5", 8, 10, None, LABELS[1])
    prepared = prepare_series(replace(volume, left_out=(away,)), SMALL, localizers=[click])
    (point,) = prepared.points
    np.testing.assert_allclose(to_mm(prepared.affine, np.array([point.z, point.y, point.x])), [3, 3, 3], atol=1e-9)
    assert prepared.quality == ("point_elsewhere", "point_dark")


def test_a_click_on_an_instance_that_occurs_twice_names_no_slice() -> None:
    volume = replace(scan(), instances=tuple(("1.2.same", 0) for _ in range(75)))
    assert prepare_series(volume, SMALL, localizers=[Localizer("1.2.same", 1, 1, None, LABELS[0])]).points == ()


def test_frames_of_one_file_are_told_apart_by_their_number() -> None:
    volume = replace(scan(), instances=tuple(("1.2.same", k) for k in range(75)))
    clicks = [Localizer("1.2.same", 50, 50, 30, LABELS[0]), Localizer("1.2.same", 50, 50, None, LABELS[0])]
    prepared = prepare_series(volume, SMALL, localizers=clicks)
    (point,) = prepared.points
    assert to_mm(prepared.affine, np.array([point.z, point.y, point.x]))[2] == pytest.approx(-100 + 30 * 3)


@pytest.mark.parametrize(
    ("volume", "reason"),
    [
        (scan(lambda mm: np.full(mm.shape[:-1], -1000.0)), "no_head"),
        (scan(lambda mm: np.zeros(mm.shape[:-1]), modality="MR"), "no_head"),
    ],
)
def test_what_holds_no_head_is_rejected(volume: Volume, reason: str) -> None:
    with pytest.raises(SeriesError) as caught:
        prepare_series(volume, SMALL)
    assert caught.value.reason == reason


def test_what_the_tables_know_replaces_what_the_images_say() -> None:
    prepared = prepare_series(scan(), SMALL, modality="CTA", series_uid="1.2.3.4", patient="ab", source_digest="cd")
    assert (prepared.modality, prepared.series_uid, prepared.patient, prepared.source_digest) == (
        "CTA",
        "1.2.3.4",
        "ab",
        "cd",
    )
    assert np.isnan(prepared.targets).all() and prepared.targets.shape == (14,)
