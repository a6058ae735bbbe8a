"""Data sets of NIfTI files prepared: the same points from every layout; what is ignored, unknown or wrong."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nifti_sets import (
    GRID,
    LEFT,
    RIGHT,
    TREATED,
    Ball,
    head,
    mask,
    points_mm,
    prepared,
    ras,
    save,
    write_bids,
    write_nnunet,
    write_table,
)

from aneurysm_ray.data import doubts
from aneurysm_ray.data.store import PreparedVolume
from aneurysm_ray.labels import PRESENT, PRESENT_INDEX

CASES: dict[str, Sequence[Ball]] = {"a": (LEFT, RIGHT), "b": ()}


def volumes(found: dict[str, PreparedVolume | str]) -> list[PreparedVolume]:
    kept = [volume for _, volume in sorted(found.items())]
    assert all(isinstance(volume, PreparedVolume) for volume in kept), found
    return [volume for volume in kept if isinstance(volume, PreparedVolume)]


def remarks(volume: PreparedVolume) -> list[str]:
    """Return what the page says first of a volume."""
    row = {"quality": list(volume.quality), PRESENT: volume.targets[PRESENT_INDEX], "points": volume.points}
    return [text for text, weight in doubts.remarks(row) if weight >= 3]


def one(root: Path, out: Path, columns: str, values: str) -> PreparedVolume | str:
    """Prepare the one image `a.nii.gz` of a table."""
    (root / "series.csv").write_text(f"image,{columns}\na.nii.gz,{values}\n")
    (found,) = prepared(root, out).values()
    return found


def test_every_layout_gives_the_same_volumes_and_points(tmp_path: Path) -> None:
    writers = {"bids": write_bids, "nnunet": write_nnunet, "table": write_table}
    found = {
        name: volumes(prepared(write(tmp_path / name, CASES), tmp_path / f"{name}_out"))
        for name, write in writers.items()
    }
    for positive, negative in found.values():
        assert np.array_equal(positive.voxels, found["bids"][0].voxels)
        assert np.array_equal(negative.voxels, found["bids"][1].voxels)
        centres = sorted(points_mm(positive, positive.points).tolist())
        assert np.abs(np.array(centres) - [RIGHT[0], LEFT[0]]).max() < 0.5 * 2.5
        radii = sorted(point.radius_mm or 0 for point in positive.points)
        assert radii == pytest.approx([RIGHT[1], LEFT[1]], rel=0.05)
        assert positive.targets[PRESENT_INDEX] == 1 and np.isnan(positive.targets[:PRESENT_INDEX]).all()
        assert (negative.targets == 0).all() and negative.points == ()
        assert remarks(positive) == remarks(negative) == []
    for name in ("bids", "nnunet"):
        domes = found[name][0].domes
        assert domes is not None and set(np.unique(domes)) == {0, 1}
        volume_mm3 = (domes == 1).sum() * 8
        assert volume_mm3 == pytest.approx(4 / 3 * np.pi * (LEFT[1] ** 3 + RIGHT[1] ** 3), rel=0.1)


ORDERS = [
    np.stack([axes, signs], axis=1)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
"""All 48 ways to store the same voxels: which axis comes first, and which way each runs (nibabel's orientations)."""


@pytest.mark.parametrize("turned", ["a.nii.gz", "m.nii.gz"])
def test_a_right_mask_is_right_in_whichever_order_it_or_its_image_is_stored(tmp_path: Path, turned: str) -> None:
    kept = {"a.nii.gz": head((LEFT, RIGHT)), "m.nii.gz": mask((LEFT, RIGHT))}
    stored = {name: nibabel.load(save(tmp_path / name, voxels)) for name, voxels in kept.items()}
    for number, order in enumerate(ORDERS):
        root = tmp_path / str(number)
        root.mkdir()
        for name in kept:
            if name == turned:
                nibabel.save(stored[name].as_reoriented(order), root / name)
            else:
                (root / name).hardlink_to(tmp_path / name)
        volume = one(root, root / "out", "mask,modality", "m.nii.gz,CTA")
        assert isinstance(volume, PreparedVolume), (order, volume)
        assert remarks(volume) == [], order
        centres = np.array(sorted(points_mm(volume, volume.points).tolist()))
        assert np.abs(centres - [RIGHT[0], LEFT[0]]).max() < 0.5 * 2.5, order


class TestIgnored:
    """As in ADAM, where 1 is an aneurysm and 2 a treated one."""

    def write(self, root: Path, balls: Sequence[Ball]) -> Path:
        save(root / "a.nii.gz", head(balls))
        save(root / "m.nii.gz", mask(balls))
        return root

    def test_a_treated_aneurysm_is_a_place_of_its_own(self, tmp_path: Path) -> None:
        volume = one(self.write(tmp_path, (LEFT, TREATED)), tmp_path / "out", "mask,ignored", "m.nii.gz,2")
        assert isinstance(volume, PreparedVolume) and volume.domes is not None
        assert np.abs(points_mm(volume, volume.points) - [LEFT[0]]).max() < 1.25
        assert np.abs(points_mm(volume, volume.ignored) - [TREATED[0]]).max() < 1.25
        assert volume.targets[PRESENT_INDEX] == 1
        at = tuple(round(value) for value in (volume.ignored[0].z, volume.ignored[0].y, volume.ignored[0].x))
        assert volume.domes[at] == 255, "nobody says what is there"
        assert set(np.unique(volume.domes)) == {0, 1, 255}

    def test_with_treated_ones_alone_nobody_knows(self, tmp_path: Path) -> None:
        volume = one(self.write(tmp_path, (TREATED,)), tmp_path / "out", "mask,ignored", "m.nii.gz,2")
        assert isinstance(volume, PreparedVolume)
        assert volume.points == () and len(volume.ignored) == 1
        assert np.isnan(volume.targets).all()

    def test_the_text_of_centres_takes_radii_from_the_mask(self, tmp_path: Path) -> None:
        self.write(tmp_path, (LEFT, TREATED))
        i, j, k = np.linalg.inv(ras())[:3] @ (-LEFT[0][0], -LEFT[0][1], LEFT[0][2], 1)
        (tmp_path / "location.txt").write_text(f"{round(i)}, {round(j)}, {round(k)}, 3.2\n")
        columns, values = "mask,ignored,points", "m.nii.gz,2,location.txt"
        volume = one(tmp_path, tmp_path / "out", columns, values)
        assert isinstance(volume, PreparedVolume)
        assert np.abs(points_mm(volume, volume.points) - [LEFT[0]]).max() < 2
        assert volume.points[0].radius_mm == pytest.approx(LEFT[1], rel=0.05)
        assert len(volume.ignored) == 1


def flipped_image(root: Path) -> str:
    affine = np.diag([-1.0, 1, 1, 1]) @ ras()
    affine[0, 3] -= 40
    save(root / "a.nii.gz", head(), affine)
    save(root / "m.nii.gz", mask((LEFT,)))
    return "mask"


def flipped_in_its_box(root: Path) -> str:
    turn = np.diag([-1.0, 1, 1, 1])
    turn[0, 3] = GRID.shape[2] - 1
    save(root / "a.nii.gz", head((LEFT,)), ras() @ turn)
    save(root / "m.nii.gz", mask((LEFT,)))
    return "mask"


def turned_and_of_another_patient(root: Path) -> str:
    save(root / "a.nii.gz", head())
    path = save(root / "m.nii.gz", mask((LEFT,)))
    affine = ras()
    affine[:3, 3] += (15, -20, 30)
    image = nibabel.Nifti1Image(mask((LEFT,)).T, affine)
    nibabel.save(image.as_reoriented([[2, 1], [0, -1], [1, 1]]), path)
    return "mask"


def of_another_patient(root: Path) -> str:
    save(root / "a.nii.gz", head())
    affine = ras()
    affine[:3, 3] += (15, -20, 30)
    save(root / "m.nii.gz", mask((LEFT,)), affine)
    return "mask"


def far_away(root: Path) -> str:
    save(root / "a.nii.gz", head())
    affine = ras()
    affine[:3, 3] += 400
    save(root / "m.nii.gz", mask((LEFT,)), affine)
    return "mask"


def empty_mask(root: Path) -> str:
    save(root / "a.nii.gz", head())
    save(root / "m.nii.gz", mask(()))
    return f"mask,{PRESENT}"


def mask_of_a_negative(root: Path) -> str:
    save(root / "a.nii.gz", head())
    save(root / "m.nii.gz", mask((LEFT,)))
    return f"mask,{PRESENT}=0"


def junk_mask(root: Path) -> str:
    save(root / "a.nii.gz", head())
    (root / "m.nii.gz").write_bytes(b"\x1f\x8bno mask")
    return "mask"


def noise_mask(root: Path) -> str:
    save(root / "a.nii.gz", head())
    save(root / "m.nii.gz", (np.random.default_rng(0).random(GRID.shape) > 0.99).astype(np.uint8))
    return "mask"


def lps_as_ras(root: Path) -> str:
    return places(root, "x_ras_mm,y_ras_mm,z_ras_mm\n{x},{y},{z}", LEFT)


def ras_as_lps(root: Path) -> str:
    return places(root, "x_lps_mm,y_lps_mm,z_lps_mm\n-{x},-{y},{z}", LEFT)


def mm_as_voxels(root: Path) -> str:
    return places(root, "i,j,k\n{x},{y},{z}", LEFT)


def swapped_sides(root: Path) -> str:
    text = "x_lps_mm,y_lps_mm,z_lps_mm,location\n{x},{y},{z},Right Middle Cerebral Artery"
    return places(root, text, LEFT)


def outside_the_head(root: Path) -> str:
    return places(root, "x_lps_mm,y_lps_mm,z_lps_mm\n120,{y},{z}", LEFT)


def no_place(root: Path) -> str:
    save(root / "a.nii.gz", head())
    return PRESENT


def places(root: Path, text: str, ball: Ball) -> str:
    save(root / "a.nii.gz", head())
    x, y, z = ball[0]
    (root / "p.csv").write_text(text.format(x=x, y=y, z=z).replace("--", ""))
    return "points"


def forms_that_disagree(root: Path) -> str:
    image = nibabel.load(save(root / "a.nii.gz", head()))
    image.set_qform(np.diag([-1.0, 1, 1, 1]) @ ras(), 1)
    nibabel.save(image, root / "a.nii.gz")
    return PRESENT + "=0"


def four_axes(root: Path) -> str:
    image = nibabel.Nifti1Image(np.stack([head().T] * 2, axis=-1), ras())
    nibabel.save(image, root / "a.nii.gz")
    return PRESENT + "=0"


def pointer(root: Path) -> str:
    (root / "a.nii.gz").symlink_to(".git/annex/objects/x/y/MD5E-s1--0/MD5E-s1--0")
    return PRESENT + "=0"


def mask_pointer(root: Path) -> str:
    save(root / "a.nii.gz", head())
    (root / "m.nii.gz").write_text("/annex/objects/MD5E-s1--0")
    return "mask"


def no_hounsfield(root: Path) -> str:
    save(root / "a.nii.gz", head() + np.int16(1024))
    return "modality"


def no_form(root: Path) -> str:
    header = nibabel.Nifti1Header()
    image = nibabel.Nifti1Image(head().T, None, header)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, root / "a.nii.gz")
    return PRESENT + "=0"


def mask_as_image(root: Path) -> str:
    save(root / "a.nii.gz", mask((LEFT,)))
    return PRESENT + "=1"


def mask_and_image_swapped(root: Path) -> str:
    save(root / "m.nii.gz", head())
    save(root / "a.nii.gz", mask((LEFT,)).astype(np.float32))
    return "mask,modality=MRA"


def image_as_mask(root: Path) -> str:
    save(root / "a.nii.gz", head())
    save(root / "m.nii.gz", np.random.default_rng(0).normal(0, 100, GRID.shape).astype(np.int16))
    return "mask"


def brain_as_aneurysm(root: Path) -> str:
    save(root / "a.nii.gz", head())
    save(root / "m.nii.gz", mask((((0.0, 0.0, 40.0), 50.0, 1),)))
    return "mask"


def ct_called_mr(root: Path) -> str:
    save(root / "a.nii.gz", head())
    return f"modality=MRA,{PRESENT}=0"


VALUES = {"mask": "m.nii.gz", "points": "p.csv", PRESENT: "1", "modality": "CTA"}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (flipped_image, "mask_moved"),
        (flipped_in_its_box, "mask_moved"),
        (of_another_patient, "mask_moved"),
        (turned_and_of_another_patient, "mask_moved"),
        (far_away, "mask_misses"),
        (empty_mask, "mask_empty"),
        (mask_of_a_negative, "label_contradicts"),
        (junk_mask, "mask_unreadable"),
        (noise_mask, "mask_unreadable"),
        (lps_as_ras, "point_dark"),
        (ras_as_lps, "point_dark"),
        (mm_as_voxels, "point_outside"),
        (swapped_sides, "point_side"),
        (outside_the_head, "point_outside"),
        (no_place, "no point marks the aneurysm"),
        (forms_that_disagree, "forms_disagree"),
        (four_axes, "mixed_passes: is 4D"),
        (pointer, "not_fetched: is a pointer of git-annex"),
        (mask_pointer, "not_fetched: has a mask that is a pointer"),
        (no_hounsfield, "not_hounsfield: has air at about 0"),
        (mask_as_image, "no_images: holds 2 values alone (0, 1), as a mask does"),
        (mask_and_image_swapped, "no_images: holds 2 values alone (0, 1), as a mask does"),
        (image_as_mask, "mask_unreadable"),
        (brain_as_aneurysm, "mask_large"),
        (ct_called_mr, "modality_doubtful"),
        (no_form, "no_geometry: has neither an sform nor a qform"),
    ],
)
def test_what_is_wrong_is_refused_or_stands_first_on_the_page(tmp_path: Path, wrong: object, words: str) -> None:
    columns = [word.partition("=") for word in wrong(tmp_path).split(",")]  # type: ignore[operator]
    names = ",".join(name for name, _, _ in columns)
    found = one(tmp_path, tmp_path / "out", names, ",".join(given or VALUES[name] for name, _, given in columns))
    told = found if isinstance(found, str) else " | ".join(remarks(found))
    # A remark on the page is a code's words.
    assert words in told or words.replace("_", " ") in told, told
