"""The picture of a prepared volume: where its box lies in the scan, which side is which, its points and vessels."""

import io
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scans import MARK_MM, head_hu, scan

from aneurysm_ray.config import VolumeConfig
from aneurysm_ray.data import picture
from aneurysm_ray.data.preprocess import prepare_series
from aneurysm_ray.data.store import Point, PreparedVolume
from aneurysm_ray.data.volume import Volume

SMALL = VolumeConfig(extent_mm=(120, 160, 140), spacing_mm=(2, 2, 2))
SCANS = {
    "axial": scan(first=(-180, -125, -100), shape=(110, 100, 144)),
    "turned": scan(columns=(-1, 0, 0), rows=(0, -1, 0), first=(177.5, 122.5, -100), shape=(110, 100, 144)),
    "coronal": scan(rows=(0, 0, -1), step=(0, 3, 0), first=(-180, -120, 227), shape=(80, 131, 144)),
    "sagittal": scan(
        columns=(0, 1, 0), rows=(0, 0, -1), step=(3, 0, 0), first=(-180, -125, 227), shape=(120, 131, 100)
    ),
    "head first": scan(step=(0, 0, -3), first=(-180, -125, 227), shape=(110, 100, 144)),
}


def pixels(prepared: PreparedVolume, volume: Volume | None = None) -> NDArray[np.int64]:
    return np.asarray(Image.open(io.BytesIO(picture.draw(prepared, volume))).convert("RGB")).astype(int)


@pytest.mark.parametrize("name", SCANS)
def test_the_overview_shows_the_box_around_the_head_in_every_plane(name: str) -> None:
    volume = SCANS[name]
    prepared = prepare_series(volume, SMALL)
    image = picture._overview(volume, prepared, axis=1)  # from the front: 360 mm wide, 330 mm high, the head up
    box = np.argwhere((np.abs(np.asarray(image).astype(int) - picture._BOX) < 30).all(-1))
    mm = np.array([330, 360]) / np.array([image.height, image.width])
    top, left = box.min(0) * mm
    bottom, right = (box.max(0) + 1) * mm
    top_mm, right_mm = 230 - top, -180 + left  # the scan begins at z = -100 and x = -180, the patient's right
    assert (bottom - top, right - left) == pytest.approx((120, 140), abs=8)
    assert top_mm == pytest.approx(109, abs=8)
    assert right_mm == pytest.approx(-70, abs=8)


def test_left_and_right_are_drawn_as_the_letters_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "letter", lambda *_, **__: None)
    prepared = prepare_series(scan(), SMALL)
    origin = np.linalg.inv(prepared.affine) @ [*MARK_MM, 1]
    image = picture._view(prepared, picture._places(None), 1, float(origin[1]))  # through the mark, on the left
    at = np.argwhere(np.asarray(image.convert("L")) > 200).mean(0) / (image.height, image.width)
    assert at[1] == pytest.approx((origin[2] + 0.5) / prepared.voxels.shape[2], abs=0.03) and at[1] > 0.6
    assert at[0] == pytest.approx(1 - (origin[0] + 0.5) / prepared.voxels.shape[0], abs=0.03)


@pytest.mark.parametrize(("axis", "corners"), [(0, "RLAP"), (1, "RLHF"), (2, "APHF")])
def test_every_view_has_its_letters(axis: int, corners: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, tuple[float, float]] = {}

    def text(self: object, xy: tuple[float, float], words: str, **_: object) -> None:
        written[words] = xy

    monkeypatch.setattr(picture.ImageDraw.ImageDraw, "text", text)
    picture.letter(Image.new("RGB", (80, 60)), axis)
    left, right, up, down = corners
    assert written[left][0] < 10 and written[right][0] > 70 and written[up][1] < 10 and written[down][1] > 50


def test_vessels_are_outlined_and_points_circled() -> None:
    prepared = prepare_series(scan(head_hu), SMALL)
    vessels = np.zeros(prepared.voxels.shape, np.uint8)
    vessels[30:40, 30:50, 20:30], vessels[30:40, 30:50, 45:55], vessels[25:28] = 9, 10, 255
    plain = pixels(prepared)
    masked = pixels(replace(prepared, vessels=vessels))
    changed = np.abs(masked - plain).max(-1) > 60
    assert 50 < changed.sum() < 0.2 * changed.size
    for classes, colour in picture.VESSEL_COLOURS[:2]:
        near = (np.abs(masked - colour).max(-1) < 60) & changed
        assert near.sum() > 8, classes
    unknown = np.full(prepared.voxels.shape, 255, np.uint8)
    np.testing.assert_array_equal(pixels(replace(prepared, vessels=unknown)), plain)
    point = replace(prepared, points=(Point(30, 40, 35, "Basilar Tip"),))
    red, _, blue = np.moveaxis(pixels(point), -1, 0)
    assert (red - blue > 60).sum() > 20 and not (np.ptp(plain, axis=-1) > 60).any()


def test_equal_volumes_give_equal_bytes_and_odd_shapes_do_not_fail() -> None:
    volume = SCANS["axial"]
    prepared = prepare_series(volume, SMALL)
    assert picture.draw(prepared, volume) == picture.draw(prepared, volume)
    thin = scan(shape=(2, 100, 100), step=(0, 0, 1))
    assert picture.draw(prepare_series(thin, SMALL), thin)
    floats = replace(volume, voxels=volume.voxels.astype(np.float32), modality="MR")
    assert picture.draw(prepare_series(floats, SMALL), floats)
