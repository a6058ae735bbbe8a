"""Masks from NIfTI to the stored volume: in space, never by index, or told of."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from phantom_sets import write_and_keep
from scans import MARK_MM, scan

from aneurysm_ray import overrides, phantom
from aneurysm_ray.config import VolumeConfig
from aneurysm_ray.data import catalogue, masks, store, work
from aneurysm_ray.data.dataset import SEGMENTATION_VALUES, DomeMask, Localizer
from aneurysm_ray.data.masks import UNKNOWN
from aneurysm_ray.data.preprocess import prepare_series
from aneurysm_ray.data.volume import Volume
from aneurysm_ray.phantom.series import Rendered

LEFT, RIGHT = "Left Middle Cerebral Artery", "Right Middle Cerebral Artery"
SMALL = VolumeConfig(extent_mm=(120, 160, 140), spacing_mm=(2, 2, 2))
HEAD = scan()
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def vessels_at(mm: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Labels of a made-up tree at patient positions (..., 3): two middle arteries and a midline one."""
    found = np.zeros(mm.shape[:-1], np.uint8)
    for name, side in ((LEFT, 1), (RIGHT, -1)):
        start = np.array([8.0 * side, -10, 35])
        along = np.clip((mm - start) @ [side, 0, 0], 0, 30)
        found[np.linalg.norm(mm - start - along[..., None] * [side, 0, 0], axis=-1) < 5] = SEGMENTATION_VALUES[name]
    found[np.linalg.norm(mm - [0, -25, 40], axis=-1) < 6] = 13
    return found


def write(path: Path, labels: NDArray[Any], affine: NDArray[np.float64]) -> Path:
    """Write labels whose voxels (i, j, k) lie at patient LPS `affine`."""
    image = nibabel.Nifti1Image(labels, RAS @ affine)
    image.set_sform(RAS @ affine, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def grid(volume: Volume, flip: bool = True) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Return the tree on a volume's own voxels as (X, Y, Z), y flipped as the competition's is, and an affine."""
    z, y, x = np.indices(volume.shape)
    labels = vessels_at(np.stack([z, y, x, np.ones(z.shape)], -1) @ volume.affine[:3].T)
    turn = np.array([[0, 0, 1, 0], [0, -1, 0, volume.shape[1] - 1], [1, 0, 0, 0], [0, 0, 0, 1]], float)
    if not flip:
        turn[1] = [0, 1, 0, 0]
    return np.ascontiguousarray((labels[:, ::-1] if flip else labels).transpose(2, 1, 0)), volume.affine @ turn


def check(prepared: store.PreparedVolume, volume: Volume) -> None:
    """Assert that a stored mask has, in each voxel, the tree's label at the centre of the nearest voxel of a scan."""
    z, y, x = np.indices(prepared.voxels.shape)
    places = np.stack([z, y, x, np.ones(z.shape)], -1) @ (np.linalg.inv(volume.affine) @ prepared.affine)[:3].T
    nearest = np.rint(places)
    expected = vessels_at(np.concatenate([nearest, np.ones((*z.shape, 1))], -1) @ volume.affine[:3].T)
    # NIfTI keeps its affine in float32, so that ties go either way.
    clear = (np.abs(places - nearest) < 0.49).all(-1)
    clear &= ((nearest >= 0) & (nearest < np.array(volume.shape))).all(-1)
    assert prepared.vessels is not None
    np.testing.assert_array_equal(prepared.vessels[clear], expected[clear])
    assert (prepared.vessels[clear] > 0).sum() > 100


PLANES = {
    "axial": HEAD,
    "feet first": scan(step=(0, 0, -3), first=(-125, -125, 122)),
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


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("plane", PLANES)
def test_a_mask_lies_where_its_affine_says_in_every_plane(plane: str, flip: bool, tmp_path: Path) -> None:
    volume = PLANES[plane]
    path = write(tmp_path / "m.nii.gz", *grid(volume, flip))
    prepared = prepare_series(volume, SMALL, vessels=path)
    assert prepared.quality == () and prepared.domes is None
    check(prepared, volume)
    assert prepared.vessels is not None and prepared.vessels.shape == prepared.voxels.shape
    x_mm = [
        (np.argwhere(prepared.vessels == SEGMENTATION_VALUES[name]) @ prepared.affine[:3, :3].T)[:, 0].mean()
        for name in (LEFT, RIGHT)
    ]
    assert x_mm[0] > x_mm[1] + 20  # the patient's left is at positive x


def test_a_mask_of_another_size_and_another_grid_is_taken_through_its_affine(tmp_path: Path) -> None:
    for name, other in {
        "coarser": scan(step=(0, 0, 4), first=(-120, -120, -90), shape=(50, 70, 70), pitch=(3.4, 3.4)),
        "turned": PLANES["oblique"],
    }.items():
        prepared = prepare_series(HEAD, SMALL, vessels=write(tmp_path / f"{name}.nii", *grid(other)))
        assert prepared.quality == (), name
        check(prepared, other)


def test_where_a_mask_ends_nothing_is_known(tmp_path: Path) -> None:
    upper = scan(first=(-125, -125, 5), shape=(40, 100, 100))
    prepared = prepare_series(HEAD, SMALL, vessels=write(tmp_path / "m.nii", *grid(upper)))
    z_mm = prepared.affine[2, 3] + 2 * np.arange(prepared.voxels.shape[0])
    assert prepared.vessels is not None
    assert (prepared.vessels[z_mm < 1.9] == UNKNOWN).all() and z_mm.min() < 1
    assert (prepared.vessels[z_mm > 6] != UNKNOWN).all()


def test_masks_are_left_alone_where_the_settings_say_so(tmp_path: Path) -> None:
    labels, affine = grid(HEAD)
    vessels, domes = write(tmp_path / "m.nii", labels, affine), write(tmp_path / "d.nii", labels * 0, affine)
    without = SMALL.model_copy(update={"masks": False})
    prepared = prepare_series(HEAD, without, vessels=vessels, domes=(DomeMask(domes),))
    assert prepared.vessels is None and prepared.domes is None and prepared.quality == ()


def test_domes_are_one_inside_and_nothing_more(tmp_path: Path) -> None:
    labels, affine = grid(HEAD)
    prepared = prepare_series(
        HEAD, SMALL, domes=(DomeMask(write(tmp_path / "d.nii", (labels == 13) * np.int16(7), affine)),)
    )
    assert prepared.domes is not None and prepared.vessels is None
    assert set(np.unique(prepared.domes)) == {0, 1}
    vessels = prepare_series(HEAD, SMALL, vessels=write(tmp_path / "v.nii", labels, affine)).vessels
    np.testing.assert_array_equal(prepared.domes, vessels == 13)


def _junk(path: Path) -> None:
    path.write_bytes(b"no NIfTI at all" * 30)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _bad_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes())[:-20])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _no_place(path: Path) -> None:
    image = nibabel.Nifti1Image(grid(HEAD)[0], None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nibabel.save(image, path)


def _two_volumes(path: Path) -> None:
    labels, affine = grid(HEAD)
    write(path, np.stack([labels, labels], -1), affine)


def _unknown_label(path: Path) -> None:
    labels, affine = grid(HEAD)
    write(path, np.where(labels == 13, 14, labels).astype(np.uint8), affine)


def _probabilities(path: Path) -> None:
    labels, affine = grid(HEAD)
    write(path, np.where(labels > 0, np.nan, 0).astype(np.float32), affine)


def _flat(path: Path) -> None:
    labels, affine = grid(HEAD)
    affine[:, 1] = 0
    image = nibabel.Nifti1Image(labels, None)
    image.header["sform_code"] = 1
    image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = (RAS @ affine)[:3]
    nibabel.save(image, path)


@pytest.mark.parametrize(
    "damage",
    [_junk, _cut, _bad_gzip, _empty, _no_place, _two_volumes, _unknown_label, _probabilities, _flat],
    ids=lambda damage: damage.__name__[1:],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_mask_that_cannot_be_used_is_left_out_and_told(
    damage: Callable[[Path], None], suffix: str, tmp_path: Path
) -> None:
    path = write(tmp_path / f"m{suffix}", *grid(HEAD))
    damage(path)
    prepared = prepare_series(HEAD, SMALL, vessels=path, domes=(DomeMask(path),) if damage is _junk else ())
    assert prepared.vessels is None and prepared.domes is None
    assert prepared.quality == ("mask_unreadable",)


def test_a_mask_of_another_place_is_left_out_and_told(tmp_path: Path) -> None:
    labels, affine = grid(HEAD)
    for by, code in ((150.0, "mask_misses"), (20.0, "")):
        moved = affine.copy()
        moved[2, 3] += by
        prepared = prepare_series(HEAD, SMALL, vessels=write(tmp_path / "m.nii", labels, moved))
        assert prepared.quality == ((code,) if code else ())
        assert (prepared.vessels is None) == bool(code)
    nothing = prepare_series(HEAD, SMALL, vessels=write(tmp_path / "n.nii", labels * 0, affine))
    assert nothing.vessels is None and nothing.quality == ("mask_misses",)


def click_at(mm: NDArray[np.float64], location: str) -> Localizer:
    """A click on the scan's image nearest to a place."""
    voxel = np.linalg.inv(HEAD.affine) @ [*mm, 1]
    return Localizer(f"1.2.{round(voxel[0])}", voxel[2], voxel[1], None, location)


def test_a_mask_that_contradicts_its_points_or_itself_is_left_out_and_told(tmp_path: Path) -> None:
    labels, affine = grid(HEAD)
    path = write(tmp_path / "m.nii", labels, affine)
    on_left = np.array([30.0, -8, 37])
    cases = {
        (): [],
        ("mask_contradicts",): [
            [click_at(on_left * [-1, 1, 1], LEFT)],  # a left label on the right side
            [click_at(np.array([0.0, 60, 60]), LEFT)],  # far from any vessel
        ],
    }
    cases[()] += [
        [click_at(on_left, LEFT)],
        [click_at(on_left + np.array([0, 0, 15.0]), LEFT)],
        [],
        [click_at(MARK_MM, LEFT)],
    ]
    cases[()] += [[click_at(np.array([0.0, -12, 30]), "Basilar Tip")]]  # a class that the mask does not have
    for quality, clicks in cases.items():
        for some in clicks:
            prepared = prepare_series(HEAD, SMALL, vessels=path, localizers=some)
            assert tuple(code for code in prepared.quality if code.startswith("mask")) == quality, some
            assert (prepared.vessels is None) == bool(quality)
    swapped = np.array([*range(9), 10, 9, *range(11, 14)], np.uint8)[labels]
    prepared = prepare_series(HEAD, SMALL, vessels=write(tmp_path / "s.nii", swapped, affine))
    assert prepared.vessels is None and prepared.quality == ("mask_contradicts",)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Rendered]]:
    """A phantom of axial and oblique series, and what was drawn of it, by patient."""
    options = phantom.PhantomOptions(count=6, seed=4, spacing_mm=2.0, oblique_fraction=0.3, multiframe_fraction=0.3)
    return write_and_keep(tmp_path_factory.mktemp("masks") / "data", options)


def tasks(data: Path, out: Path, *, content: bool = False, **changes: object) -> list[work.Task]:
    config = overrides.build({"volume.spacing_mm": [1.5] * 3}, {f"volume.{key}": v for key, v in changes.items()})
    volume = config.volume.model_dump(mode="json")
    return [work.Task(source, str(out), volume, "00", content) for source in catalogue.find_sources(str(data))[0]]


def test_a_phantoms_mask_stored_and_read_back_is_its_own_vessels_resampled(
    made: tuple[Path, dict[str, Rendered]], tmp_path: Path
) -> None:
    data, drawn = made
    statuses = [work.prepare(task) for task in tasks(data, tmp_path)]
    rows = {status["row"]["series_uid"]: status["row"] for status in statuses}
    planes = set()
    for rendered in drawn.values():
        uid = next(uid for uid in rows if _is_of(rendered, store.read_volume(tmp_path / rows[uid]["path"])))
        prepared = store.read_volume(tmp_path / rows[uid]["path"])
        assert rows[uid]["has_vessels"] and prepared.vessels is not None
        to_scan = np.linalg.inv(rendered.grid.affine) @ prepared.affine
        z, y, x = np.indices(prepared.voxels.shape)
        places = np.stack([z, y, x, np.ones(z.shape)], -1) @ to_scan[:3].T
        nearest = np.clip(np.rint(places), 0, np.array(rendered.vessels.shape) - 1).astype(int)
        expected = rendered.vessels[tuple(np.moveaxis(nearest, -1, 0))]
        # NIfTI keeps its affine in float32, so that ties go either way.
        clear = (np.abs(places - np.rint(places)) < 0.49).all(-1)
        np.testing.assert_array_equal(prepared.vessels[clear], expected[clear])
        assert (expected > 0).sum() > 200
        sides = [
            (np.argwhere(np.isin(prepared.vessels, values)) @ prepared.affine[:3, :3].T)[:, 0].mean()
            for values in ([8, 10, 12], [7, 9, 11])
        ]
        assert sides[0] > sides[1] + 10
        planes.add(prepared.plane)
    assert len(planes) > 1


def _is_of(rendered: Any, prepared: store.PreparedVolume) -> bool:
    centre = prepared.affine @ [*((np.array(prepared.voxels.shape) - 1) / 2), 1]
    index = rendered.grid.to_index(centre[:3])
    same_modality = (prepared.modality == rendered.plan.modality) and prepared.plane == rendered.plan.plane
    close = np.abs(index - (np.array(rendered.voxels.shape) - 1) / 2) * rendered.grid.spacing_mm
    return bool(same_modality and np.all(close < 40)) and bool(
        np.abs(prepared.spacing_mm[0] - 1.5) < 1e-6 and _matches(rendered, prepared)
    )


def _matches(rendered: Any, prepared: store.PreparedVolume) -> bool:
    """Whether the voxels of a prepared volume are those of a rendered series, and not only as many."""
    rng = np.random.default_rng(0)
    places = rng.uniform(0.2, 0.8, (400, 3)) * (np.array(prepared.voxels.shape) - 1)
    at = np.c_[np.rint(places), np.ones(400)] @ (np.linalg.inv(rendered.grid.affine) @ prepared.affine)[:3].T
    inside = ((at >= 0) & (at <= np.array(rendered.voxels.shape) - 1)).all(1)
    if inside.sum() < 100:
        return False
    here = prepared.voxels[tuple(np.rint(places[inside]).astype(int).T)].astype(float)
    there = rendered.voxels[tuple(np.rint(at[inside]).astype(int).T)].astype(float)
    return bool(np.corrcoef(here, np.clip(there, np.percentile(there, 2), np.percentile(there, 98)))[0, 1] > 0.6)


def test_a_changed_mask_is_prepared_again_and_an_unchanged_one_is_not(
    made: tuple[Path, dict[str, Rendered]], tmp_path: Path
) -> None:
    data, out = made[0], tmp_path / "out"
    for content in (False, True):
        before = {task.source.key: work.prepare(task)["digest"] for task in tasks(data, out, content=content)}
        mask = sorted((data / "segmentations").iterdir())[0]
        uid = mask.name.split("_")[0]
        kept = mask.read_bytes()
        again = {task.source.key: work.prepare(task)["digest"] for task in tasks(data, out, content=content)}
        assert again == before
        try:
            image = nibabel.load(mask)
            labels = np.asarray(image.dataobj)
            nibabel.save(nibabel.Nifti1Image(labels * 0, image.affine), mask)
            changed = {task.source.key: work.prepare(task)["digest"] for task in tasks(data, out, content=content)}
        finally:
            mask.write_bytes(kept)
        assert [key for key in before if changed[key] != before[key]] == [f"series/{uid}"]


def test_masks_cost_little_room(made: tuple[Path, dict[str, Rendered]], tmp_path: Path) -> None:
    sizes = {}
    for masked in (True, False):
        done = [work.prepare(task) for task in tasks(made[0], tmp_path / str(masked), masks=masked)]
        assert all(status["row"]["has_vessels"] == masked for status in done)
        sizes[masked] = sum(status["row"]["bytes"] for status in done)
    assert sizes[False] < sizes[True] < 1.1 * sizes[False]


def test_a_task_with_masks_travels_as_json(made: tuple[Path, dict[str, Rendered]], tmp_path: Path) -> None:
    task = tasks(made[0], tmp_path)[0]
    assert task.source.vessels and not task.source.domes
    assert work.Task.from_json(task.to_json()) == task


def test_a_grid_beside_its_mask_knows_nothing(tmp_path: Path) -> None:
    mask = masks.read_mask(write(tmp_path / "m.nii", *grid(HEAD)))
    beside = HEAD.affine.copy()
    beside[:3, 3] += 5000
    assert (masks.onto_grid(mask, beside, (1, 1, 1)) == UNKNOWN).all()
    turned = beside @ np.array([[1, 0, 0, 0], [0, 0.9, 0.1, 0], [0, -0.1, 0.9, 0], [0, 0, 0, 1]])
    assert (masks.onto_grid(mask, turned, (30, 30, 30)) == UNKNOWN).all()
