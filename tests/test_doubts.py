"""What is told of points on their volume: outside, on the wrong side, on dark voxels, twice, with their radius."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scans import BRAIN, MARK_MM, VESSEL_MM, head_hu, mr_head, scan

from aneurysm_ray.config import VolumeConfig
from aneurysm_ray.data import doubts, store
from aneurysm_ray.data.dataset import Localizer
from aneurysm_ray.data.dicom import QUALITY
from aneurysm_ray.data.preprocess import prepare_series
from aneurysm_ray.data.volume import Volume
from aneurysm_ray.distributed import begin
from aneurysm_ray.errors import SERIES_REASONS
from aneurysm_ray.labels import LABELS, PRESENT

SMALL = VolumeConfig(extent_mm=(120, 160, 140), spacing_mm=(2, 2, 2))
CT = scan()
LEFT, RIGHT, MIDDLE = "Left Middle Cerebral Artery", "Right Middle Cerebral Artery", "Basilar Tip"


def click(volume: Volume, mm: object, location: str, radius_mm: float | None = None) -> Localizer:
    """A click on the image of a scan that is nearest to a place."""
    place = np.asarray(mm, float)
    normal = np.cross(volume.affine[:3, 2], volume.affine[:3, 1])
    k = int(np.argmin(np.abs((place - volume.origins_mm) @ normal)))
    row, column = volume.affine[:3, 1], volume.affine[:3, 2]
    offset = place - volume.origins_mm[k]
    return Localizer(
        f"1.2.{k}",
        float(offset @ column / (column @ column)),
        float(offset @ row / (row @ row)),
        None,
        location,
        radius_mm,
    )


def told(volume: Volume, *clicks: Localizer, config: VolumeConfig = SMALL, modality: str = "CTA") -> tuple[str, ...]:
    return prepare_series(volume, config, localizers=clicks, modality=modality).quality


TURNED = scan(columns=(-1, 0, 0), rows=(0, -1, 0), first=(122.5, 122.5, -100))
CORONAL = scan(rows=(0, 0, -1), step=(0, 3, 0), first=(-125, -120, 125), shape=(80, 95, 100))


@pytest.mark.parametrize("volume", [CT, TURNED, CORONAL], ids=["axial", "turned", "coronal"])
@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_a_point_where_it_should_be_is_not_told_of(volume: Volume, dtype: str) -> None:
    config = SMALL.model_copy(update={"dtype": dtype})
    assert told(volume, click(volume, MARK_MM, LEFT), config=config) == ()
    assert told(volume, click(volume, MARK_MM, RIGHT), config=config) == ("point_side",)
    assert told(volume, click(volume, MARK_MM, MIDDLE), config=config) == ()
    assert told(volume, click(volume, MARK_MM - [60, 0, 0], LEFT), config=config) == ("point_side", "point_dark")


def test_the_middle_is_that_of_the_head_and_not_of_the_scan() -> None:
    aside = scan(lambda mm: head_hu(mm - np.array([45, 0, 0])), first=(-80, -125, -100))
    bright = MARK_MM + np.array([45, 0, 0])
    assert told(aside, click(aside, bright, LEFT)) == ()
    assert told(aside, click(aside, bright, RIGHT)) == ("point_side",)
    for beyond_mm, wrong in ((5.0, False), (8.0, True)):
        near_middle = click(aside, np.array([45 - beyond_mm, -20, 40]), LEFT)
        assert ("point_side" in told(aside, near_middle)) == wrong


def test_points_outside_the_box_are_told() -> None:
    low = click(CT, [10, 0, -60], LEFT)
    assert told(CT, low) == ("point_outside",)
    assert told(CT, low, click(CT, MARK_MM, LEFT)) == ("point_outside",)
    assert told(CT, low, config=SMALL.model_copy(update={"extent_mm": (200, 160, 140)})) == ("point_dark",)


def test_dark_means_darker_than_blood_in_such_a_scan() -> None:
    mr = scan(mr_head, modality="MR")
    on_vessel, in_brain = click(mr, VESSEL_MM, MIDDLE), click(mr, [-25, -30, 55], MIDDLE)
    in_air = click(mr, [-60, -75, 60], MIDDLE)
    assert told(mr, on_vessel, modality="MRA") == ()
    assert told(mr, in_brain, modality="MRA") == ("point_dark",)
    # Flow voids are dark in T2, and of an unknown sequence nothing is known.
    for modality in ("MRI T2", "MR"):
        assert told(mr, in_brain, modality=modality) == ()
        assert told(mr, in_air, modality=modality) == ("point_dark",)
    assert told(mr, in_brain, modality="MRI T1post") == ()
    assert BRAIN > 0


def test_a_repeated_point_counts_once_and_keeps_its_radius() -> None:
    first = click(CT, MARK_MM, LEFT, 3.5)
    beside = click(CT, MARK_MM + np.array([1.0, 0, 0]), LEFT)
    apart = click(CT, MARK_MM + np.array([7.0, 0, 0]), LEFT)
    other = replace(beside, location=MIDDLE)
    prepared = prepare_series(CT, SMALL, localizers=(first, beside, apart, other, first), modality="CTA")
    assert prepared.quality == ("point_repeated",)
    assert [(point.location, point.radius_mm) for point in prepared.points] == [
        (LEFT, 3.5),
        (LEFT, None),
        (MIDDLE, None),
    ]


def test_every_grave_code_is_one_and_series_are_sorted_by_what_they_have_against_them() -> None:
    assert set(doubts.GRAVE) <= {*QUALITY, *SERIES_REASONS} and len(set(doubts.GRAVE)) == len(doubts.GRAVE)
    row = {PRESENT: 1.0, "points": [], "quality": ["junk_files", "missing_slices", "point_outside"]}
    assert doubts.remarks(row) == [
        ("point outside", 5), ("missing slices", 3), ("no point marks the aneurysm", 3), ("junk files", 1),
    ]  # fmt: skip
    assert doubts.remarks({PRESENT: np.nan, "points": [], "quality": []}) == []


def test_training_says_which_positives_it_cannot_see(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, outside = ({"z": z, "y": 4.0, "x": 4.0, "location": LEFT} for z in (4.0, -3.0))
    rows = [
        (1.0, [inside]), (1.0, [outside]), (1.0, [outside, inside]), (1.0, []), (0.0, []), (np.nan, [outside]),
    ]  # fmt: skip
    table = pd.DataFrame({LABELS[-1]: [row[0] for row in rows], "points": [row[1] for row in rows]})
    table["shape"] = [[8, 8, 8]] * len(rows)
    assert begin.unseen_positives(table).tolist() == [False, True, False, False, False, False]
    monkeypatch.setattr(store, "volumes_table", lambda volumes: table)
    with caplog.at_level("INFO", "aneurysm_ray"):
        assert len(begin.labelled(Path("set"))) == 5
    assert "1 of 4 positive volumes have every point outside" in caplog.text
