"""Kinds of CT angiogram: what each shows beside the head, and that the head in it is the same."""

import nibabel
import numpy as np
import pytest
from phantom_sets import write_and_keep

from aneurysm_ray.data.dataset import SEGMENTATION_VALUES, open_dataset
from aneurysm_ray.data.dicom import read_series
from aneurysm_ray.errors import RequestError
from aneurysm_ray.phantom import PhantomOptions, plan_series
from aneurysm_ray.phantom.appearance import draw_appearance, draw_varied_appearance
from aneurysm_ray.phantom.clutter import CLEAR_MM, CLINOIDS, draw_clutter
from aneurysm_ray.phantom.scans import SCANS
from aneurysm_ray.phantom.series import Rendered, make_series
from aneurysm_ray.phantom.veins import draw_veins
from aneurysm_ray.phantom.vessels import draw_arteries


@pytest.fixture(scope="module")
def scans() -> dict[str, Rendered]:
    made = {}
    for name in SCANS:
        options = PhantomOptions(count=1, seed=3, spacing_mm=3.0, modalities=("CTA",), scans=(name,))
        made[name] = make_series(options, plan_series(options)[0])
    return made


def extent_mm(scan: Rendered) -> np.ndarray:
    return np.array(scan.voxels.shape) * scan.grid.spacing_mm


def test_every_kind_covers_what_it_says(scans: dict[str, Rendered]) -> None:
    for name, scan in scans.items():
        assert extent_mm(scan) == pytest.approx(SCANS[name].extent_mm, abs=6), name
        assert scan.vessels.any(), name


def test_a_scan_of_the_neck_ends_in_the_lungs(scans: dict[str, Rendered]) -> None:
    voxels = scans["neck"].voxels
    middle = voxels.shape[2] // 2
    inside = voxels[:, 20:-20, middle - 15 : middle + 15]
    lowest, shoulders = inside[:12], voxels[20:30]
    assert (lowest < -800).mean() > 0.02  # lungs and windpipe
    assert (shoulders > -200).mean() > 0.5  # shoulders fill the field of view, which a head does not
    # Contrast runs up the neck: some of every slice is brighter than any muscle, and is no bone.
    blood = ((voxels > 180) & (voxels < 500)).sum(axis=(1, 2))
    assert (blood[10:90] > 0).all()


def test_arms_stand_beside_the_head(scans: dict[str, Rendered]) -> None:
    voxels = scans["arms"].voxels
    level = voxels[int(0.8 * len(voxels))]  # through the brain
    tissue = (level > -200).any(axis=0)
    left, gap, head = tissue[:16].any(), ~tissue[16:40].all(), tissue[voxels.shape[2] // 2]
    assert left and gap and head and tissue[-16:].any()
    assert (level[:, :20] > 700).any() and (level[:, -20:] > 700).any()  # the bone in each


def test_the_holder_stands_behind_the_head_and_apart_from_it(scans: dict[str, Rendered]) -> None:
    voxels = scans["holder"].voxels
    line = voxels[len(voxels) // 2, :, voxels.shape[2] // 2] > -300
    edges = np.flatnonzero(np.diff(line.astype(int)))
    assert len(edges) >= 3 and line[edges[-2] + 1 :].sum() <= 5  # skin, air, then a thin shell at the back
    assert not (scans["head"].voxels[:, -2:] > -300).any()


def test_subtraction_leaves_vessels_and_no_bone(scans: dict[str, Rendered]) -> None:
    assert (scans["head"].voxels > 900).sum() > 2000
    left = scans["subtracted"].voxels
    assert (left > 1300).sum() == 0 and (left > 180).any()


def test_a_slab_cuts_the_head_above_and_below(scans: dict[str, Rendered]) -> None:
    voxels = scans["slab"].voxels
    assert (voxels[0] > -200).mean() > 0.3 and (voxels[-1] > -200).mean() > 0.3
    assert (scans["head"].voxels[-1] > -200).mean() < 0.05


def test_kinds_are_dealt_in_turn_to_ct_alone_and_unknown_ones_refused() -> None:
    options = PhantomOptions(count=12, modalities=("CTA", "MRA"), scans=("head", "neck"))
    plans = plan_series(options)
    kinds = [plan.scan for plan in plans if plan.modality == "CTA"]
    assert kinds == (["head", "neck"] * 12)[: len(kinds)] and len(kinds) > 3
    assert {plan.scan for plan in plans if plan.modality == "MRA"} == {"head"}
    with pytest.raises(RequestError, match="did you mean neck"):
        PhantomOptions(scans=("nek",))


def test_masks_of_vessels_and_domes_lie_where_they_were_drawn(tmp_path) -> None:
    options = PhantomOptions(
        count=3, seed=6, spacing_mm=2.0, modalities=("CTA", "MRA"), positive_fraction=1, min_mm=6, domes=True
    )
    folder, drawn = write_and_keep(tmp_path / "data", options)
    for entry in open_dataset(folder).series:
        volume = read_series(entry.path)
        rendered = drawn[volume.patient_id]
        for ending, truth in (("_cowseg.nii", rendered.vessels), ("_dome.nii", rendered.aneurysms)):
            image = nibabel.load(tmp_path / "data" / "segmentations" / f"{entry.series_uid}{ending}")
            at = np.argwhere(np.asarray(image.dataobj))
            lps = at @ image.affine[:3, :3].T @ np.diag([-1, -1, 1]) + image.affine[:3, 3] * [-1, -1, 1]
            here = np.rint((np.linalg.inv(rendered.grid.affine) @ np.c_[lps, np.ones(len(lps))].T).T[:, :3]).astype(int)
            assert len(here) == np.count_nonzero(truth) > 0
            assert (truth[tuple(here.T)] == np.asarray(image.dataobj)[tuple(at.T)]).all()
        assert set(np.unique(rendered.vessels)) <= {0, *SEGMENTATION_VALUES.values()}
        assert rendered.aneurysms.max() == len(rendered.lesions)
    assert not list((tmp_path / "data").rglob("*.tmp"))


@pytest.mark.parametrize("varied", [False, True])
def test_clutter_keeps_off_arteries_but_for_plaques_in_their_walls(varied: bool) -> None:
    seen = touching = heads_with_a_clinoid = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        arteries, veins = draw_arteries(rng), draw_veins(rng, varied=varied)
        look = (draw_varied_appearance if varied else draw_appearance)(rng, "CTA")
        clutter = draw_clutter(rng, "CTA", look, arteries, None, veins, varied=varied)
        points = np.concatenate([tube.points for tube in arteries])
        radii = np.concatenate([tube.radii_mm for tube in arteries])
        of_veins = np.concatenate([tube.points for tube in veins])
        carotids = np.concatenate([tube.points for tube in arteries if tube.name.startswith(CLINOIDS)])
        bone = [blob for blob in clutter.under if blob.value == look.cortical_bone]
        beside = [np.linalg.norm(carotids - blob.centre, axis=1).min() - blob.radii_mm.max() < 5 for blob in bone]
        heads_with_a_clinoid += sum(beside) >= 3  # a process is a row of balls
        for blob in clutter.under:
            on_a_vein = np.linalg.norm(of_veins - blob.centre, axis=1).min() < 3
            room = (np.linalg.norm(points - blob.centre, axis=1) - radii).min()
            is_bone_or_air = varied and blob.value in (look.cortical_bone, look.tissue["air"])
            assert on_a_vein or room > (blob.radii_mm.min() * 0.4 if is_bone_or_air else CLEAR_MM)
            touching += is_bone_or_air and room - blob.radii_mm.max() < CLEAR_MM
            assert blob.axes @ blob.axes.T == pytest.approx(np.eye(3), abs=1e-9)
            seen += 1
        for blob in clutter.over:  # on a wall, or one of the stones, which lie in known places
            wall = np.abs(np.linalg.norm(points - blob.centre, axis=1) - radii).min()
            assert wall < 0.2 or blob.value <= 1000
    assert seen > 10
    assert bool(touching) == varied  # as the clinoids touch the carotids
    assert heads_with_a_clinoid >= 6 if varied else heads_with_a_clinoid == 0


@pytest.mark.parametrize("modality", ["CTA", "MRA", "MRI T2", "MRI T1post"])
def test_arteries_stay_what_they_are_to_the_brain_however_varied(modality: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        look = draw_varied_appearance(rng, modality)
        if modality == "CTA":
            assert look.artery - look.tissue["grey"] > 100 and look.artery > look.vein
        elif modality == "MRI T2":
            assert look.artery < 0.4 * look.tissue["white"]
        else:
            assert look.artery > 1.05 * look.tissue["white"]
        assert min(look.noise, look.softness) > 0
