"""Vessels and domes beyond anatomy: what may change of a head and what must not."""

from dataclasses import replace

import numpy as np
import pytest

from aneurysm_ray.labels import LOCATIONS
from aneurysm_ray.phantom.lesions import PLAIN, VARIED, draw_diameter_mm, grow, sites_of
from aneurysm_ray.phantom.options import PhantomOptions, plan_series
from aneurysm_ray.phantom.series import make_series
from aneurysm_ray.phantom.variety import ENTRANCES, MAIN, draw_wildness, sites_anywhere, vary
from aneurysm_ray.phantom.vessels import Tube, draw_arteries

Head = tuple[Tube, ...]


@pytest.fixture(scope="module")
def heads() -> list[tuple[Head, Head]]:
    """Heads as drawn and as varied."""
    pairs = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        tubes = draw_arteries(rng)
        pairs.append((tubes, vary(rng, tubes)))
    return pairs


def test_vessels_that_met_still_meet(heads: list[tuple[Head, Head]]) -> None:
    for plain, varied in heads:
        ends = {tube.name: tube.points[[0, -1]] for tube in plain}
        moved = {tube.name: tube.points[[0, -1]] for tube in varied}
        for side in "LR":
            for one, other in (("ICA siphon", "ICA supra"), ("ICA supra", "M1"), ("ICA supra", "A1"), ("A1", "A2")):
                here, there = f"{one} {side}", f"{other} {side}"
                assert ends[here][1] == pytest.approx(ends[there][0])
                assert moved[here][1] == pytest.approx(moved[there][0])
                assert np.linalg.norm(moved[here][1] - ends[here][1]) > 0.01


def test_main_vessels_stay_whole_and_others_are_cut_or_joined_by_strangers(heads: list[tuple[Head, Head]]) -> None:
    cut, strangers, branches = 0, 0, 0
    for plain, varied in heads:
        left = {tube.name: tube for tube in varied}
        for tube in plain:
            if tube.name.startswith(MAIN) and not tube.name.startswith(ENTRANCES):
                assert len(left[tube.name].points) == len(tube.points)
            elif not tube.name.startswith(MAIN) and len(tube.points) >= 10:
                branches += 1
                cut += len(left[tube.name].points) < len(tube.points)
        strangers += sum(tube.name.startswith("stranger") for tube in varied)
    # A quarter of the branches on average, in heads of which each draws its own share from 0 to a half.
    assert 0.1 < cut / branches < 0.4
    assert strangers > 0


def test_vessels_are_equally_wide_where_they_meet_but_for_their_own_share() -> None:
    """A step at a joint would look like a dome to anybody."""
    for seed in range(12):
        rng = np.random.default_rng(seed)
        tubes = draw_arteries(rng)
        before, after = ({tube.name: tube.radii_mm for tube in some} for some in (tubes, vary(rng, tubes)))
        apart = draw_wildness(np.random.default_rng(0)).apart  # any head's is at most 0.12
        for side in "LR":
            for one, other in ((f"ICA siphon {side}", f"ICA supra {side}"), (f"ICA supra {side}", f"M1 {side}")):
                changed = np.log(after[one][-1] / before[one][-1]) - np.log(after[other][0] / before[other][0])
                assert abs(changed) < 5 * max(0.12, apart)


def test_calibres_vary_about_the_plain_ones() -> None:
    ratio = []
    for seed in range(60):
        rng = np.random.default_rng([seed, 7])
        plain = draw_arteries(rng)
        varied = vary(rng, plain)
        wide = {tube.name: float(np.median(tube.radii_mm)) for tube in varied}
        of_head = [wide[t.name] / np.median(t.radii_mm) for t in plain if t.name.startswith(("ICA", "M1", "basilar"))]
        ratio.append(np.exp(np.mean(np.log(of_head))))
        assert all(tube.radii_mm.min() >= 0.18 and tube.radii_mm.max() <= 3.5 for tube in varied)
    # Heads differ by a quarter, so that the mean of sixty is known to 0.04.
    assert np.exp(np.mean(np.log(ratio))) == pytest.approx(0.95, abs=0.1)
    assert np.std(ratio) > 0.1


def test_ends_taper_unless_they_are_blunt(heads: list[tuple[Head, Head]]) -> None:
    ends = [
        tube.radii_mm[-1] / np.median(tube.radii_mm)
        for _, varied in heads
        for tube in varied
        if not tube.name.startswith(MAIN) and len(tube.points) > 8
    ]
    assert 0.5 < np.mean(np.array(ends) < 0.6) < 1


def test_sites_anywhere_stand_on_main_vessels_and_point_away_from_them(heads: list[tuple[Head, Head]]) -> None:
    outside = []
    for seed, (_, varied) in enumerate(heads):
        tubes = {tube.name: tube for tube in varied}
        for site in sites_anywhere(np.random.default_rng(seed), varied):
            assert site.location in LOCATIONS and site.wall_of.startswith(MAIN)
            points = tubes[site.wall_of].points
            index = int(np.argmin(np.linalg.norm(points - site.origin, axis=1)))
            along = points[index + 1] - points[index - 1]
            assert abs(site.direction @ along) < 1e-6 * np.linalg.norm(along)
            assert np.linalg.norm(site.direction) == pytest.approx(1)
            bend = points[index + 1] + points[index - 1] - 2 * points[index]
            outside.append(site.direction @ bend < 0)
    # Chance alone would be a half, within 0.07 in three standard deviations.
    assert np.mean(outside) > 0.6


def test_varied_domes_sit_lower_on_their_vessel() -> None:
    rng = np.random.default_rng(0)
    share: dict[str, list[float]] = {"plain": [], "varied": []}
    for _ in range(6):
        tubes = draw_arteries(rng)
        for site in sites_of(tubes):
            for name, build in (("plain", PLAIN), ("varied", VARIED)):
                lesion = grow(rng, site, 6.0, tubes, build=build)
                off = np.linalg.norm(lesion.centre - site.origin) - site.parent_radius_mm
                share[name].append(float(off / lesion.radii_mm[0]))
    assert max(share["plain"]) == pytest.approx(0.9)
    # Uniform from 0.35 to 0.95 of the half height, which is the longest half axis or, lying down, the second.
    assert min(share["varied"]) > 0.2 and max(share["varied"]) <= 0.95 and np.mean(share["varied"]) < 0.65
    drawn = [draw_diameter_mm(rng, 2, 20, VARIED) for _ in range(2000)]
    assert np.median(drawn) == pytest.approx(5.3, abs=0.25)


def test_a_varied_series_has_its_points_and_masks_like_any_other() -> None:
    options = PhantomOptions(count=2, seed=4, spacing_mm=2.0, modalities=("MRA",), min_mm=6, positive_fraction=1)
    for plan in plan_series(options):
        plain, varied = make_series(options, plan), make_series(replace(options, varied=True), plan)
        assert varied.lesions and not np.array_equal(plain.voxels, varied.voxels)
        for number, lesion in enumerate(varied.lesions, start=1):
            at = np.argwhere(varied.aneurysms == number) @ varied.grid.affine[:3, :3].T + varied.grid.affine[:3, 3]
            assert np.linalg.norm(at.mean(axis=0) - lesion.centre_mm) < 3
