"""Where the head is: its top and its middle through arms, cradles, shoulders, subtraction, cuts and wrong units."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scans import HEAD_RADII_MM, head_hu, mr_head, scan, shoulders_hu

from aneurysm_ray.config import VolumeConfig
from aneurysm_ray.data.preprocess import prepare_series
from aneurysm_ray.data.region import Head, find_head
from aneurysm_ray.data.resample import frame_of
from aneurysm_ray.data.volume import Volume
from aneurysm_ray.data.window import brain_median
from aneurysm_ray.errors import SeriesError

Field = Callable[[NDArray[np.float64]], NDArray[np.float64]]
TOP_MM = 105.0
WIDE = {"first": (-250, -170, -160), "shape": (130, 130, 200)}  # to z = 227, 65 mm of air and arms above the head


def noisy(field: Field) -> Field:
    return lambda mm: field(mm) + np.random.default_rng(2).normal(0, 15, mm.shape[:-1])


def skull_hu(mm: NDArray[np.float64], bone: float = 900.0) -> NDArray[np.float64]:
    """A head whose skull is 7 mm thick under 6 mm of scalp."""
    radius = np.sqrt(((mm / [75.0, 95, 105]) ** 2).sum(-1))
    return np.where((radius > 0.87) & (radius < 0.94), bone, head_hu(mm))


def arms_hu(mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Both arms raised beside the head and crossed above it, 42 mm thick at the elbows' height."""
    beside = [np.hypot(mm[..., 0] - side, mm[..., 1] - 30) < 42 for side in (-120, 118)]
    above = (np.hypot(mm[..., 1] - 30, mm[..., 2] - 175) < 40) & (np.abs(mm[..., 0]) < 130)
    return np.where(beside[0] | beside[1] | above, 55.0, skull_hu(mm))


def thick_arms_hu(
    mm: NDArray[np.float64], radius: float = 52.0, sides: tuple[int, ...] = (-1, 1)
) -> NDArray[np.float64]:
    """Raised upper arms, each as thick as half a head, that lean against it and go on beyond the scan."""
    at = [np.hypot(mm[..., 0] - side * (79 + radius), mm[..., 1] - 30) < radius for side in sides]
    return np.where(np.any(at, axis=0), 55.0, skull_hu(mm))


def narrow_hu(mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """A head too narrow for a wide ball, on a slender neck, above shoulders into which one fits."""
    slim = mm * [75 / 57, 95 / 80, 1]
    neck = (np.hypot(mm[..., 0], mm[..., 1] - 10) < 45) & (mm[..., 2] < 0)
    body = ((mm[..., 0] / 230) ** 2 + ((mm[..., 1] - 60) / 110) ** 2 < 1) & (mm[..., 2] < -130)
    radius = np.sqrt(((slim / HEAD_RADII_MM) ** 2).sum(-1))
    return np.where((radius > 0.87) & (radius < 0.94), 900.0, np.where((radius < 1) | neck | body, 40.0, -1000.0))


def cradle_hu(mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """A padded trough of -100 HU, 30 mm thick, behind the head and beyond its top, on a table."""
    from_axis = np.hypot(mm[..., 0] / 1.1, mm[..., 1] - 10)
    trough = (from_axis > 98) & (from_axis < 128) & (mm[..., 1] > 20) & (mm[..., 2] < 190)
    plate = (np.abs(mm[..., 1] - 150) < 12) & (np.abs(mm[..., 0]) < 200)
    return np.where(trough | plate, -100.0, skull_hu(mm))


def subtracted_hu(mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bone replaced by air."""
    return skull_hu(mm, bone=-1024.0)


def _cut(volume: Volume, slices: slice) -> Volume:
    affine = volume.affine.copy()
    affine[:3, 3] = volume.origins_mm[slices][0]
    kept = volume.voxels[slices], volume.origins_mm[slices], volume.instances[slices]
    return replace(volume, voxels=kept[0], affine=affine, origins_mm=kept[1], instances=kept[2])


def _shifted(volume: Volume, by: float, scale: float = 1.0) -> Volume:
    return replace(volume, voxels=np.rint(volume.voxels * scale + by).astype(np.int16))


PLAIN = scan(noisy(skull_hu), **WIDE)  # type: ignore[arg-type]
KINDS: dict[str, Volume] = {
    "plain": PLAIN,
    "to the lungs": scan(noisy(shoulders_hu), first=(-250, -125, -400), shape=(175, 125, 200)),
    "arms up": scan(noisy(arms_hu), **WIDE),  # type: ignore[arg-type]
    "thick arms": scan(noisy(thick_arms_hu), **WIDE),  # type: ignore[arg-type]
    "one very thick arm": scan(noisy(lambda mm: thick_arms_hu(mm, 58, (1,))), **WIDE),  # type: ignore[arg-type]
    "narrow, to the lungs": scan(noisy(narrow_hu), first=(-250, -125, -400), shape=(175, 125, 200)),
    "cradle": scan(noisy(cradle_hu), **WIDE),  # type: ignore[arg-type]
    "bone subtracted": scan(noisy(subtracted_hu), **WIDE),  # type: ignore[arg-type]
    "intercept twice": _shifted(PLAIN, -1024),
    "no intercept": _shifted(PLAIN, 1024),
    "in other units": _shifted(PLAIN, -900, 0.1),
    "thick slices": scan(noisy(skull_hu), first=(-125, -125, -100), step=(0, 0, 6.5), shape=(36, 100, 100)),
    "coronal": scan(noisy(skull_hu), rows=(0, 0, -1), step=(0, 3, 0), first=(-125, -120, 150), shape=(80, 110, 100)),
    "MR": scan(mr_head, modality="MR"),
    "MR to the lungs": scan(
        lambda mm: np.where(shoulders_hu(mm) > -500, 300.0, 0) * (mm[..., 2] < -60) + mr_head(mm),
        first=(-250, -125, -400),
        shape=(175, 125, 200),
        modality="MR",
    ),
}


def found(volume: Volume) -> Head:
    return find_head(volume, frame_of(volume))


@pytest.mark.parametrize("name", KINDS)
def test_the_top_and_the_middle_of_a_head_are_found(name: str) -> None:
    head = found(KINDS[name])
    assert not head.doubtful
    assert head.top_mm == pytest.approx(TOP_MM, abs=6)
    assert head.centre_mm == pytest.approx((0, 0), abs=8)


@pytest.mark.parametrize("name", ["plain", "arms up", "cradle", "bone subtracted", "MR"])
@pytest.mark.parametrize("above_mm", [-20, -5, 0, 45])
def test_a_scan_that_cuts_the_head_has_its_top_at_the_cut(name: str, above_mm: float) -> None:
    volume = KINDS[name]
    heights = volume.origins_mm[:, 2]
    cut = _cut(volume, slice(0, int(np.searchsorted(heights, TOP_MM - 50 - above_mm))))
    edge = cut.origins_mm[-1, 2] + 1.5
    head = found(cut)
    assert not head.doubtful
    assert head.top_mm == pytest.approx(edge, abs=4)
    assert head.centre_mm == pytest.approx((0, 0), abs=10)


@pytest.mark.parametrize("name", ["MR", "plain"])
def test_a_slab_between_slices_of_one_value_ends_before_them(name: str) -> None:
    volume = KINDS[name]
    slab = (volume.origins_mm[:, 2] > -30) & (volume.origins_mm[:, 2] < 45)
    blank = volume.voxels.copy()
    blank[~slab] = -1024 if volume.modality == "CT" else 0
    head, cut = found(replace(volume, voxels=blank)), found(_cut(volume, slice(*np.flatnonzero(slab)[[0, -1]])))
    assert not head.doubtful and not cut.doubtful
    assert head.top_mm == pytest.approx(cut.top_mm, abs=6)
    assert head.centre_mm == pytest.approx(cut.centre_mm, abs=4)


def padded(volume: Volume, by: tuple[int, int, int], value: int) -> Volume:
    affine = volume.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ by
    voxels = np.pad(volume.voxels, [(n, n) for n in by], constant_values=value)
    origins = affine[:3, 3] + np.arange(len(voxels))[:, None] * affine[:3, 0]
    return replace(volume, voxels=voxels, affine=affine, origins_mm=origins, instances=())


PARTS = {
    "axial": scan(mr_head, step=(0, 0, 3), first=(-125, -125, 0), shape=(20, 100, 100), modality="MR"),
    "sagittal": scan(
        mr_head, columns=(0, 1, 0), rows=(0, 0, -1), step=(-3, 0, 0), first=(24, -125, 125), shape=(16, 80, 100),
        modality="MR",
    ),
    "coronal": scan(
        mr_head, rows=(0, 0, -1), step=(0, 3, 0), first=(-125, -24, 125), shape=(16, 80, 100), modality="MR",
    ),
    "small field of view": scan(mr_head, first=(-50, -60, -20), shape=(30, 48, 40), modality="MR"),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_a_head_is_seen_alike_with_and_without_air_around_it(name: str) -> None:
    part = PARTS[name]
    alone, among = found(part), found(padded(part, (12, 36, 24), 0))  # by whole steps of the thinned copy
    assert not among.doubtful
    assert among.top_mm == pytest.approx(alone.top_mm, abs=6)
    assert among.centre_mm == pytest.approx(alone.centre_mm, abs=4)
    assert brain_median(among.brain) == pytest.approx(brain_median(alone.brain), rel=0.02)


@pytest.mark.parametrize("axis", [0, 1])
def test_what_lies_between_the_slices_of_the_thinned_copy_is_seen(axis: int) -> None:
    """A few thin slices, or rows, in the middle of many without anything on them."""
    thin = scan(mr_head, step=(0, 0, 1), pitch=(1, 2.5), first=(-125, -125, 20), shape=(40, 250, 100), modality="MR")
    for first in range(12, 18):
        blank = np.zeros_like(thin.voxels)
        shown = (slice(None),) * axis + (slice(first, first + 3),)
        blank[shown] = thin.voxels[shown]
        prepared = prepare_series(replace(thin, voxels=blank), VolumeConfig(spacing_mm=(1, 1, 1)))
        assert prepared.voxels.max() > 0
    with pytest.raises(SeriesError, match="all voxels have one value, 7"):
        found(replace(thin, voxels=np.full_like(thin.voxels, 7)))


def test_a_field_of_view_within_the_head_is_kept_whole() -> None:
    inner = scan(noisy(skull_hu), first=(-55, -60, 0), shape=(20, 48, 44))
    assert not found(inner).doubtful
    assert prepare_series(inner, VolumeConfig(spacing_mm=(2, 2, 2))).voxels.shape == (30, 60, 55)


@pytest.mark.parametrize(
    "field",
    [
        lambda mm: np.where(np.hypot(mm[..., 0], mm[..., 1]) < 40, 0.0, -1000.0),
        lambda mm: np.where(np.abs(mm[..., 1] - 60) < 15, -100.0, -1000.0),
    ],
    ids=["bottle", "table"],
)
def test_what_is_no_head_is_called_doubtful_and_kept_from_the_scans_top(field: Field) -> None:
    volume = scan(noisy(field))
    head = found(volume)
    assert head.doubtful and head.top_mm == pytest.approx(volume.origins_mm[-1, 2] + 1.5, abs=3.1)
    assert prepare_series(volume, VolumeConfig(spacing_mm=(4, 4, 4))).quality == ("head_doubtful",)


def test_tilted_and_turned_slices_give_the_same_head() -> None:
    turned = scan(
        noisy(skull_hu), columns=(-1, 0, 0), rows=(0, -1, 0), first=(122.5, 122.5, -100), step=(0, 0, 3),
    )  # fmt: skip
    tilted = scan(noisy(skull_hu), step=(0, 0.6, 3), first=(-125, -150, -100), shape=(75, 110, 100))
    for volume in (turned, tilted):
        head = found(volume)
        assert head.top_mm == pytest.approx(TOP_MM, abs=6)
        assert head.centre_mm == pytest.approx((0, 0), abs=8)


def _moved(volume: Volume, by: NDArray[np.float64]) -> Volume:
    affine = volume.affine.copy()
    affine[:3] += by
    origins = affine[:3, 3] + np.arange(len(volume.voxels))[:, None] * affine[:3, 0]
    return replace(volume, affine=affine, origins_mm=origins)


def _cube(mm: NDArray[np.float64], half_mm: float = 66.0) -> NDArray[np.float64]:
    """A block whose depths are whole steps: a ball of 48 mm fits or does not by the last digit of a spacing."""
    return np.where((np.abs(mm) <= [half_mm, half_mm, half_mm + 20]).all(-1), 300.0, 0.0)


def _grid(mm: float) -> dict[str, object]:
    count = (round(170 / mm), round(220 / mm), round(220 / mm))
    return {
        "shape": count,
        "pitch": (mm, mm),
        "step": (0, 0, mm),
        "first": (-mm * (count[2] // 2), -mm * (count[1] // 2), -80.0),
    }


ROUND = {
    **{f"{kind} {mm}": (field, kind, mm) for mm in (1.2, 2.0, 2.4, 4.0) for kind, field in (("MR", _cube),)},
    "CT 3.0": (lambda mm: _cube(mm) - 1000 * (_cube(mm) == 0) - 260 * (_cube(mm) > 0), "CT", 3.0),
    "ball 1.2": (lambda mm: np.where((mm**2).sum(-1) < HEAD_RADII_MM[0] ** 2, 300.0, 0.0), "MR", 1.2),
}


@pytest.mark.parametrize("name", ROUND)
def test_the_rounding_of_a_files_affine_does_not_move_the_box(name: str) -> None:
    field, modality, mm = ROUND[name]
    volume = scan(field, **_grid(mm), modality=modality)  # type: ignore[arg-type]
    config = VolumeConfig(spacing_mm=(3, 3, 3))
    wanted = prepare_series(volume, config)
    rng = np.random.default_rng(5)
    moves = [rng.uniform(-1e-5, 1e-5, (3, 4)) for _ in range(2)]
    scaled = [sign * 1e-5 * volume.affine[:3] * [1, 1, 1, 0] for sign in (-1, 1)]
    for move in moves + scaled:
        made = prepare_series(_moved(volume, move), config)
        assert made.voxels.shape == wanted.voxels.shape
        assert np.abs(made.affine - wanted.affine).max() < 3e-3
        assert np.abs(made.voxels.astype(int) - wanted.voxels.astype(int)).max() <= 1


@pytest.mark.parametrize("columns", [(1.0, 0.0, 0.0), (0.96, 0.28, 0.0)], ids=["straight", "turned"])
def test_a_scan_kept_in_float32_gives_the_same_volume_bit_by_bit(columns: tuple[float, float, float]) -> None:
    rows = (-columns[1], columns[0], 0.0)
    shape, first = (55, 90, 90), (-120.3, -131.7, -61.9)
    volume = scan(mr_head, columns=columns, rows=rows, first=first, shape=shape, step=(0, 0, 3.1), modality="MR")
    rounded = _moved(volume, volume.affine[:3].astype(np.float32) - volume.affine[:3])
    assert np.abs(rounded.affine - volume.affine).max() > 1e-8
    one, other = (prepare_series(each, VolumeConfig(spacing_mm=(2, 2, 2))) for each in (volume, rounded))
    assert np.array_equal(one.affine, other.affine)
    assert np.array_equal(one.voxels, other.voxels)


def turned_over(volume: Volume, axes: tuple[int, ...]) -> Volume:
    """Return the same voxels at the same places, kept from the other end of some axes."""
    affine = volume.affine.copy()
    for axis in axes:
        affine[:3, 3] += (volume.shape[axis] - 1) * affine[:3, axis]
        affine[:3, axis] *= -1
    origins = affine[:3, 3] + np.arange(volume.shape[0])[:, None] * affine[:3, 0]
    return replace(volume, voxels=np.flip(volume.voxels, axes), affine=affine, origins_mm=origins, instances=())


CORONAL = {"columns": (1, 0, 0), "rows": (0, 0, -1), "step": (0, 3.1, 0), "first": (-121, -140, 131)}
SAGITTAL = {"columns": (0, 1, 0), "rows": (0, 0, -1), "step": (-3.1, 0, 0), "first": (117, -133, 131)}
AXIAL = {"first": (-121, -133, -101), "step": (0, 0, 3.1)}


@pytest.mark.parametrize(("field", "modality"), [(noisy(arms_hu), "CT"), (mr_head, "MR")], ids=["CT", "MR"])
@pytest.mark.parametrize("way", [AXIAL, CORONAL, SAGITTAL], ids=["axial", "coronal", "sagittal"])
def test_a_scan_is_the_same_from_whichever_end_its_file_begins(
    way: dict[str, object], field: Field, modality: str
) -> None:
    volume = scan(field, **way, shape=(83, 104, 101), modality=modality)  # type: ignore[arg-type]
    config = VolumeConfig(spacing_mm=(4, 4, 4))
    wanted = prepare_series(volume, config)
    for axes in ((0,), (1,), (2,), (1, 2), (0, 1, 2)):
        made = prepare_series(turned_over(volume, axes), config)
        assert np.abs(made.affine - wanted.affine).max() < 3e-3, axes
        assert np.abs(made.voxels.astype(int) - wanted.voxels.astype(int)).max() <= 1, axes


def with_axes(volume: Volume, order: tuple[int, int, int]) -> Volume:
    """Return the same voxels at the same places, the file's axes in another order, as converters write them."""
    affine = volume.affine.copy()
    affine[:3, :3] = volume.affine[:3, list(order)]
    voxels = volume.voxels.transpose(order)
    origins = affine[:3, 3] + np.arange(len(voxels))[:, None] * affine[:3, 0]
    return replace(volume, voxels=voxels, affine=affine, origins_mm=origins, instances=())


@pytest.mark.parametrize(("field", "modality"), [(noisy(arms_hu), "CT"), (mr_head, "MR")], ids=["CT", "MR"])
@pytest.mark.parametrize("way", [AXIAL, CORONAL, SAGITTAL], ids=["axial", "coronal", "sagittal"])
def test_a_scan_is_the_same_whatever_order_its_files_axes_have(
    way: dict[str, object], field: Field, modality: str
) -> None:
    volume = scan(field, **way, shape=(83, 104, 101), modality=modality)  # type: ignore[arg-type]
    config = VolumeConfig(spacing_mm=(4, 4, 4))
    wanted = prepare_series(volume, config)
    for order in ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        made = prepare_series(with_axes(volume, order), config)
        assert np.abs(made.affine - wanted.affine).max() < 3e-3, order
        assert np.abs(made.voxels.astype(int) - wanted.voxels.astype(int)).max() <= 1, order
