"""The page that draws every label of a prepared set on its image."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import open_page
from learning_sets import describe_set, volume
from PIL import Image

from aneurysm_ray import cli, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.data import store
from aneurysm_ray.data.store import Point
from aneurysm_ray.errors import RequestError
from aneurysm_ray.reporting import overlay_page, pictures


def write(folder: Path, *volumes: store.PreparedVolume) -> Path:
    rows = [store.table_row(v, store.write_volume(folder, v, "{}").stat().st_size) for v in volumes]
    store.write_table(folder, rows)
    describe_set(folder, Config())
    return folder


def test_doubtful_labels_come_first_and_the_gravest_before_others() -> None:
    told = {0: (), 2: ("point_side",), 4: ("point_side", "point_dark"), 6: ("missing_slices",)}
    rows = [store.table_row(replace(volume(i, True), quality=codes), 1) for i, codes in told.items()]
    # A negative series whose mask was left out has no point, and is named all the same; one with nothing is not.
    rows += [store.table_row(replace(volume(1, False), quality=("mask_misses",)), 1)]
    rows += [store.table_row(volume(3, False), 1)]
    found = overlay_page.labels(pd.DataFrame(rows))
    assert [(label.series_uid, label.kind, label.weight) for label in found] == [
        ("1.2.0.4", "aneurysm", 10),
        ("1.2.0.2", "aneurysm", 5),
        ("1.2.0.1", "mask", 5),
        ("1.2.0.0", "aneurysm", 0),
        ("1.2.0.6", "aneurysm", 0),  # what is wrong with the image is no doubt of the label
    ]


def test_every_label_is_drawn_and_says_what_it_is(tmp_path: Path) -> None:
    first = volume(0, True, masks=True)
    point = replace(first.points[0], radius_mm=3.5)
    treated = Point(point.z, point.y - 8, point.x, "")
    both = replace(first, points=(point,), ignored=(treated,))
    dark = replace(volume(2, True), quality=("point_dark",))
    made = overlay_page.page(write(tmp_path / "set", both, dark, volume(1, False, masks=True)), limit=100)
    cases = next(block for block in made.sections[0].blocks if block.key == "labels").cases  # type: ignore[union-attr]
    assert [case.title for case in cases] == ["1.2.0.2", "1.2.0.0", "1.2.0.0", "1.2.0.1"]
    assert cases[0].facts[0] == "DOUBTFUL: nothing within 3 mm of a point is as bright as blood is in such a scan"
    assert any("radius 3.5 mm" in fact for fact in cases[1].facts)
    assert any(fact.startswith("ignored: location unknown") for fact in cases[2].facts)
    assert "no aneurysm" in cases[3].facts and "masks: vessels, domes" in cases[3].facts
    assert all(case.plain != case.overlaid for case in cases)


def test_of_several_points_only_the_one_that_lies_wrong_is_doubtful(tmp_path: Path) -> None:
    first = volume(0, True)
    left = Point(16, 20, 33, "Left Middle Cerebral Artery")
    swapped = Point(16, 20, 5, "Left Middle Cerebral Artery")
    made = overlay_page.page(
        write(tmp_path / "set", replace(first, points=(left, swapped), quality=("point_side",))), limit=9
    )
    cases = next(block for block in made.sections[0].blocks if block.key == "labels").cases  # type: ignore[union-attr]
    assert [any(fact.startswith("DOUBTFUL") for fact in case.facts) for case in cases] == [False, True]


def colours(image: Image.Image, wanted: tuple[int, int, int], to: int) -> np.ndarray:
    """Return (n, 2): row and column of the pixels of about one colour in the first `to` columns below the caption."""
    pixels = np.asarray(image.convert("RGB")).astype(int)[pictures.CAPTION :, :to]
    return np.argwhere(np.abs(pixels - wanted).sum(axis=2) < 20)


def dull(points: tuple[Point, ...], domes: np.ndarray | None = None) -> store.PreparedVolume:
    """Return a black volume of 1 mm voxels, 20 x 30 x 40."""
    affine = np.array([[0, 0, 1.0, 0], [0, 1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])
    voxels = np.zeros((20, 30, 40), np.uint8)
    return store.PreparedVolume(
        "1.2", "p", "CTA", "axial", voxels, affine, np.zeros(14, np.float32), points, (), "", domes=domes
    )


@pytest.mark.parametrize(("z", "radius"), [(10.0, 5.0), (13.0, 4.0)])
def test_a_ring_is_as_wide_as_the_aneurysm_in_that_plane(z: float, radius: float) -> None:
    """At 3 mm from its middle a ball of 5 mm has a radius of 4 mm."""
    image = pictures.labelled(dull((Point(z, 15, 20, "", 5.0),)), np.array([10.0, 15, 20]), pixels_per_mm=10)
    ring = colours(image, (66, 230, 149), 400) / 10
    distance = np.linalg.norm(ring - (15.5, 20.5), axis=1)
    assert len(ring) > 50
    assert distance.max() == pytest.approx(radius, abs=0.25)
    assert distance.min() == pytest.approx(radius, abs=0.35)


def test_domes_are_outlined_where_they_lie_and_nothing_is_drawn_unmarked() -> None:
    domes = np.zeros((20, 30, 40), np.uint8)
    domes[9:12, 5:10, 30:36] = 1
    made = dull((), domes)
    seen = colours(pictures.labelled(made, np.array([10.0, 7, 33]), pixels_per_mm=10), (255, 220, 60), 400)
    assert (seen.min(0) / 10).tolist() == [5.0, 30.0]
    assert ((seen.max(0) + 1) / 10).tolist() == [10.0, 36.0]
    bare = pictures.labelled(made, np.array([10.0, 7, 33]), marked=False, pixels_per_mm=10)
    assert len(colours(bare, (255, 220, 60), 400)) == 0


def test_a_close_look_moves_points_and_masks_along() -> None:
    domes = np.zeros((20, 30, 40), np.uint8)
    domes[10, 15, 20] = 1
    closer, first = pictures.cropped(dull((Point(10, 15, 20, ""),), domes), np.array([10.0, 15, 20]), 4.0)
    point = closer.points[0]
    assert closer.domes is not None and closer.domes[int(point.z), int(point.y), int(point.x)] == 1
    assert (first + np.array([point.z, point.y, point.x])).tolist() == [10, 15, 20]


def test_the_command_writes_a_page_that_opens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "set", replace(volume(0, True, masks=True), quality=("point_outside",)))
    assert cli.main(["inspect", str(folder), "--overlay"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(folder / rundir.OVERLAY)
    opened = open_page(folder / rundir.OVERLAY)
    assert opened.console == []
    assert "a point lies outside the stored volume" in opened.dom


def test_what_is_no_prepared_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no prepared set, whose labels alone are drawn"):
        overlay_page.write(tmp_path, 10)


def test_an_empty_set_and_a_lost_volume_are_told(tmp_path: Path) -> None:
    assert "no points, no masks" in overlay_page.page(write(tmp_path / "empty", volume(1, False)), 9).summary[0]
    folder = write(tmp_path / "lost", volume(0, True))
    (folder / store.volume_path("1.2.0.0")).unlink()
    made = overlay_page.page(folder, 9)
    assert made.summary[-1] == "Volumes of 1 label cannot be read, and are not drawn."
