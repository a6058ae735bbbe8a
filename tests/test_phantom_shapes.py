"""The parts of the phantom that need no image: vessels, aneurysms, distances, the plan of a data set."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aneurysm_ray.data.dataset import SEGMENTATION_VALUES
from aneurysm_ray.errors import RequestError
from aneurysm_ray.labels import LOCATIONS
from aneurysm_ray.phantom.grid import Pose, draw_pose, make_grid
from aneurysm_ray.phantom.lesions import PLAIN, VARIED, Build, draw_diameter_mm, grow, sites_of
from aneurysm_ray.phantom.options import PhantomOptions, plan_series
from aneurysm_ray.phantom.paint import empty_field, paint_ellipsoid, paint_tube
from aneurysm_ray.phantom.vessels import Tube, draw_arteries
from aneurysm_ray.phantom.write import uid_of


def distance_to(tubes: list[Tube], point: np.ndarray) -> float:
    """Distance from a point to the nearest wall, negative inside a lumen; along the chords between the points."""
    nearest = np.inf
    for tube in tubes:
        start, along = tube.points[:-1], np.diff(tube.points, axis=0)
        share = np.clip(np.sum((point - start) * along, axis=1) / np.sum(along**2, axis=1), 0, 1)
        gap = np.linalg.norm(point - start - share[:, None] * along, axis=1)
        radius = tube.radii_mm[:-1] + share * np.diff(tube.radii_mm)
        nearest = min(nearest, float((gap - radius).min()))
    return nearest


def test_tube_distance_is_that_of_a_cone_with_round_ends() -> None:
    field = empty_field((5, 9, 21), np.array([2.0, 1.0, 0.5]))
    paint_tube(field, np.array([[4.0, 4.0, 2.0], [4.0, 4.0, 8.0]]), np.array([1.0, 2.0]), 7, reach_mm=0.5)
    assert field.distance_mm[2, 4, 10] == pytest.approx(-1.5)
    assert field.distance_mm[2, 7, 10] == pytest.approx(3 - 1.5)
    assert field.distance_mm[2, 4, 0] == pytest.approx(2 - 1.0)
    assert field.owner[2, 4, 10] == 7 and field.owner[0, 0, 0] == 0


def test_nearer_shape_owns_the_voxel() -> None:
    field = empty_field((1, 1, 20), np.ones(3))
    paint_ellipsoid(field, np.array([0.0, 0.0, 5.0]), np.eye(3), np.full(3, 2.0), 1, 10.0)
    paint_ellipsoid(field, np.array([0.0, 0.0, 12.0]), np.eye(3), np.full(3, 3.0), 2, 10.0)
    assert field.owner[0, 0, [5, 7, 9, 12]].tolist() == [1, 1, 2, 2]
    assert field.distance_mm[0, 0, 12] == pytest.approx(-3)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_grids_are_right_handed_and_centred(plane: str) -> None:
    centre = np.array([10.0, -20.0, 5.0])
    grid = make_grid(plane, centre, np.array([30.0, 40.0, 50.0]), np.array([3.0, 1.0, 0.5]), np.array([5.0, 2.0, 1.0]))
    assert grid.shape == (10, 40, 100)
    assert grid.spacing_mm == pytest.approx([3, 1, 0.5])
    assert grid.to_index(centre) == pytest.approx([4.5, 19.5, 49.5])
    # Slices advance along the normal: column direction x row direction (PS3.3 C.7.6.2.1.1).
    normal = np.cross(grid.affine[:3, 2], grid.affine[:3, 1])
    assert np.dot(normal / np.linalg.norm(normal), grid.affine[:3, 0]) == pytest.approx(3)
    thin = grid.with_thinner_slices(3)
    assert thin.to_index(centre) == pytest.approx([14.5, 19.5, 49.5])


@pytest.mark.parametrize("build", [PLAIN, VARIED])
@pytest.mark.parametrize("seed", range(8))
def test_domes_stand_on_the_wall_and_not_in_a_lumen(seed: int, build: Build) -> None:
    rng = np.random.default_rng(seed)
    tubes = list(draw_arteries(rng))
    for site in sites_of(tubes):
        lesion = grow(rng, site, draw_diameter_mm(rng, 3, 9), tubes, build=build)
        gap = distance_to([tube for tube in tubes if tube.name == site.wall_of], lesion.centre)
        assert 0 < gap < lesion.radii_mm[0], (site.location, gap)


@pytest.mark.parametrize("build", [PLAIN, VARIED])
def test_domes_of_all_sites_are_mostly_clear_of_every_lumen(build: Build) -> None:
    rng = np.random.default_rng(100)
    gaps = []
    for _ in range(6):
        tubes = list(draw_arteries(rng))
        gaps += [distance_to(tubes, grow(rng, site, 5.0, tubes, build=build).centre) for site in sites_of(tubes)]
    assert np.mean(np.array(gaps) > 0) > 0.95


def test_every_location_has_sites_and_every_segment_a_tube() -> None:
    tubes = draw_arteries(np.random.default_rng(3))
    assert {site.location for site in sites_of(tubes)} == set(LOCATIONS)
    heads = [draw_arteries(np.random.default_rng(seed)) for seed in range(4)]
    assert {tube.location for tubes in heads for tube in tubes if tube.location} == set(LOCATIONS)
    assert set(SEGMENTATION_VALUES) == set(LOCATIONS) and sorted(SEGMENTATION_VALUES.values()) == list(range(1, 14))


def test_sides_and_calibres_are_those_of_people() -> None:
    heads = [draw_arteries(np.random.default_rng(seed)) for seed in range(12)]
    published = {"ICA siphon": 2.4, "M1": 1.5, "basilar": 1.7, "M2 superior": 1.0}
    for name, radius in published.items():
        found = [tube.radii_mm.mean() for tubes in heads for tube in tubes if tube.name.startswith(name)]
        assert np.mean(found) == pytest.approx(radius, abs=0.25), name
    for tube in (tube for tubes in heads for tube in tubes if tube.location and tube.name[:2] in ("M1", "IC")):
        assert (tube.points[:, 0].mean() > 0) == tube.location.startswith("Left")


def test_diameters_follow_the_published_distribution() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([draw_diameter_mm(rng, 2, 20) for _ in range(4000)])
    assert drawn.min() >= 2 and drawn.max() <= 20
    # Log-normal with median 4.5 and sigma 0.45, cut at 2 (3.6 % of its mass): the rest's median is 4.58.
    assert np.median(drawn) == pytest.approx(4.58, abs=0.12)
    assert np.quantile(drawn, 0.95) == pytest.approx(4.5 * np.exp(0.45 * 1.66), rel=0.06)


def test_plan_deals_exact_shares() -> None:
    options = PhantomOptions(count=100, positive_fraction=0.4, multiframe_fraction=0.1, masks=0.3)
    plans = plan_series(options)
    kinds = [plan.modality for plan in plans]
    assert [kinds.count(name) for name in options.modalities] == [41, 29, 23, 7]
    for name, positives in zip(options.modalities, (16, 12, 9, 3), strict=True):
        assert sum(plan.lesions > 0 for plan in plans if plan.modality == name) == positives
    assert sum(plan.multiframe for plan in plans) == 10
    assert all(plan.modality in ("MRA", "MRI T2") for plan in plans if plan.multiframe)
    assert sum(plan.segmentation for plan in plans) == 30
    assert all(plan.plane == "axial" for plan in plans if plan.modality == "CTA")
    assert plans == plan_series(options) != plan_series(replace(options, seed=1))


def test_short_names_of_modalities_are_understood() -> None:
    assert PhantomOptions(modalities=("t2", "T1post", "CTA")).modalities == ("MRI T2", "MRI T1post", "CTA")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modalities": ("PET",)}, "modality 'PET'"),
        ({"positive_fraction": 1.5}, "positive_fraction is 1.5"),
        ({"min_mm": 9.0, "max_mm": 3.0}, "from 9.0 to 3.0"),
        ({"spacing_mm": 0.0}, "spacing is 0.0 mm"),
        ({"count": 0}, "at least one series"),
        ({"frame_base": 2}, "frame_base is 2"),
        ({"geometry": Path("/nowhere")}, "holds no .nii"),
        ({"geometry": Path("/nowhere"), "varied": True}, "give only one of the two"),
    ],
)
def test_impossible_options_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        plan_series(PhantomOptions(**change))  # type: ignore[arg-type]


def test_uids_are_valid_and_stable() -> None:
    uid = uid_of("aneurysm_ray phantom", "0", "0", "series")
    assert uid.is_valid and len(uid) <= 64 and uid.startswith("1.2.826.0.1.3680043.8.498.")
    assert (
        uid == uid_of("aneurysm_ray phantom", "0", "0", "series") != uid_of("aneurysm_ray phantom", "0", "1", "series")
    )


def test_pose_keeps_shapes() -> None:
    pose = draw_pose(np.random.default_rng(5))
    assert isinstance(pose, Pose)
    points = np.array([[0.0, 0, 0], [1, 0, 0], [0, 2, 0]])
    moved = pose.to_patient(points)
    assert np.linalg.norm(moved[1] - moved[0]) == pytest.approx(pose.size)
    assert np.linalg.norm(moved[2] - moved[0]) == pytest.approx(2 * pose.size)
