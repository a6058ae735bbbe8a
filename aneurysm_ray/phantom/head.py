"""Everything in a head but vessels: skull, skull base, brain, ventricles, cisterns, sinuses, orbits, face, skin.

All is computed on a coarse grid (2.4 mm) from implicit shapes in head coordinates and enlarged to the image, which is
what makes a series a matter of a second. Bone keeps a signed distance, so that its edges stay sharp when enlarged.
A varied head is warped, its bones, sinuses and air cells grow and shrink apart, and its brain is smooth or coarse.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from aneurysm_ray.phantom.body import arms, holder, lungs_and_airway, spinal_canal, trunk
from aneurysm_ray.phantom.grid import Grid, Pose
from aneurysm_ray.phantom.shapes import F32, Real, capsule, ellipsoid, nearest

COARSE_MM = 2.4

WARP_MM = 2.5
"""Varied heads: standard deviation of what each of the waves moves."""
GROWTH_MM = 1.5
"""Varied heads: standard deviation by which each bone and each air space is larger or smaller."""


@dataclass(frozen=True, eq=False)
class Head:
    """A head on a coarse grid that covers an image's grid."""

    soft: F32
    """Signal without bone and vessels."""
    bone_mm: F32
    """Depth below the surface of bone, negative outside it."""
    step: tuple[float, float, float]
    """Coarse voxels per image voxel along (z, y, x)."""


@dataclass(frozen=True)
class Anatomy:
    """What differs from one varied head to the next; the plain head is the default."""

    bones_mm: NDArray[np.float64]
    """Growth of each bone of the skull base."""
    air_mm: NDArray[np.float64]
    """Growth of each air space."""
    skull: float = 1.0
    """Thickness of the skull's vault as a multiple of the usual."""
    texture: float = 1.0
    """Depth of sulci and folds as a share of the usual."""
    warp: tuple[tuple[NDArray[np.float64], NDArray[np.float64], float], ...] = ()
    """Waves of displacement: wave vector, size in mm, phase."""
    arms: bool = False
    """The arms are raised beside the head."""
    holder: bool = False
    """The head lies in a cradle."""


def plain_anatomy() -> Anatomy:
    """Return the anatomy of every plain head."""
    return Anatomy(np.zeros(BONES), np.zeros(AIR_SPACES))


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw a varied head's anatomy."""
    waves = []
    for _ in range(5):
        along = rng.normal(size=3)
        along *= 2 * np.pi / rng.uniform(60, 200) / np.linalg.norm(along)
        waves.append((along, rng.normal(0, WARP_MM, 3), float(rng.uniform(0, 2 * np.pi))))
    return Anatomy(
        rng.normal(0, GROWTH_MM, BONES),
        rng.normal(0, GROWTH_MM, AIR_SPACES) - 4 * (rng.random(AIR_SPACES) < 0.15),  # some are not there at all
        float(rng.uniform(0.6, 1.6)),
        float(rng.uniform(0, 1.3)),
        tuple(waves),
    )


def draw_head(
    rng: np.random.Generator, grid: Grid, pose: Pose, signal: Mapping[str, float], anatomy: Anatomy | None = None
) -> Head:
    """Draw the head as it lies in a grid; `signal` is the value of each of `appearance.SOFT_TISSUES`."""
    anatomy = anatomy or plain_anatomy()
    sizes = [max(COARSE_MM, float(spacing)) for spacing in grid.spacing_mm]
    counts = [int(np.ceil(n * s / c)) + 1 for n, s, c in zip(grid.shape, grid.spacing_mm, sizes, strict=True)]
    step = [(c - 1) / max(n - 1, 1) for c, n in zip(counts, grid.shape, strict=True)]
    x, y, z = _warped(*_head_coordinates(grid, pose, counts, step), anatomy)
    noise = [_noise(rng, x.shape, [width_mm / size for size in sizes]) for width_mm in (3.0, 4.0, 8.0)]
    ripple = noise[2]

    brain = _brain_cavity(x, y, z) + 1.2 * ripple
    skin = _skin(x, y, z) + 0.8 * ripple
    if anatomy.arms:
        skin = nearest([skin, arms(x, y, z)])
    cells = _air_spaces(x, y, z, noise[1], anatomy.air_mm)
    air = nearest([cells, lungs_and_airway(x, y, z)]) if reaches_the_neck(z) else cells
    orbit = ellipsoid(np.abs(x), y, z, (31, -50, -8), (17, 24, 16))
    globe = ellipsoid(np.abs(x), y, z, (31, -58, -8), (12, 12, 12))
    cavernous = ellipsoid(np.abs(x), y, z, (10, -4, -12), (5.5, 14, 7))

    soft = np.full(x.shape, signal["muscle"], np.float32)
    _over(soft, signal["fat"], _inside(0.25 - noise[1], 0.5))
    _over(soft, signal["cavernous"], _inside(cavernous, 2))
    _over(soft, signal["fat"], _inside(orbit, 2))
    _over(soft, signal["csf"], _inside(globe, 2))
    # The scalp: a layer of fat under the skin.
    _over(soft, signal["fat"], _inside(np.abs(skin + 4.5) - 2.5, 2))
    _over(soft, signal["skin"], _inside(np.abs(skin + 0.8) - 1.2, 2))
    _paint_brain(soft, signal, brain, x, y, z, noise, anatomy.texture)
    _over(soft, signal["mucosa"], _inside(air - 1.2, 2) * (brain > 0))
    _over(soft, signal["air"], _inside(air, 2) * (brain > 0))
    _over(soft, signal["air"], _inside(-skin, 2))
    if anatomy.holder:
        _over(soft, signal["skin"], _inside(holder(x, y, z), 3) * _inside(-skin, 2))

    thickness = np.clip(6.0 + 2.0 * noise[2], 3.5, 11) * anatomy.skull
    plate = np.minimum(brain - 0.3, thickness - brain)
    base = _base_bones(x, y, z, anatomy.bones_mm) + 1.3 * noise[1]
    shells = 1.1 - np.abs(cells - 0.4)
    bone = np.maximum(np.maximum(plate, -base), np.where(brain > 0, shells, -9))
    bone = np.minimum(bone, np.minimum(brain + 0.5, -skin - 3))
    bone = np.minimum(bone, np.minimum(cavernous, air + 0.2))
    if anatomy.arms:
        bone = np.maximum(bone, -arms(x, y, z) - 28)
    return Head(soft, bone.astype(np.float32), (step[0], step[1], step[2]))


def reaches_the_neck(z: F32) -> bool:
    """Whether an image goes on below the skull, so that the rest of the body must be drawn."""
    return bool(z.min() < -120)


def enlarge(coarse: F32, shape: tuple[int, int, int], step: Sequence[float]) -> F32:
    """Enlarge a coarse volume to an image's shape by linear interpolation, one axis after the other."""
    z, y, x = (_positions(n, s, m) for n, s, m in zip(shape, step, coarse.shape, strict=True))
    wide = coarse @ _matrix(x, coarse.shape[2]).T
    tall = np.matmul(_matrix(y, coarse.shape[1])[None], wide)
    out = np.empty(shape, np.float32)
    for index, (low, share) in enumerate(zip(*z, strict=True)):
        np.multiply(tall[low], 1 - share, out=out[index])
        out[index] += share * tall[low + 1] if low + 1 < len(tall) else 0
    return out


def _positions(count: int, step: float, coarse_count: int) -> tuple[NDArray[np.intp], F32]:
    at = np.arange(count) * step
    low = np.minimum(at.astype(np.intp), max(coarse_count - 2, 0))
    return low, (at - low).astype(np.float32)


def _matrix(positions: tuple[NDArray[np.intp], F32], coarse_count: int) -> F32:
    low, share = positions
    weights = np.zeros((len(low), coarse_count), np.float32)
    weights[np.arange(len(low)), low] = 1 - share
    weights[np.arange(len(low)), np.minimum(low + 1, coarse_count - 1)] += share
    return weights


def _head_coordinates(grid: Grid, pose: Pose, counts: Sequence[int], step: Sequence[float]) -> tuple[F32, F32, F32]:
    inverse = np.linalg.inv(pose.matrix)
    origin = inverse @ (grid.affine[:3, 3] - pose.shift_mm)
    steps = inverse @ grid.affine[:3, :3] / np.asarray(step)
    z, y, x = (np.arange(n, dtype=np.float32) for n in counts)
    out = [
        (
            np.float32(origin[axis])
            + np.float32(steps[axis, 0]) * z[:, None, None]
            + np.float32(steps[axis, 1]) * y[None, :, None]
            + np.float32(steps[axis, 2]) * x[None, None, :]
        )
        for axis in range(3)
    ]
    return out[0], out[1], out[2]


def _warped(x: F32, y: F32, z: F32, anatomy: Anatomy) -> tuple[F32, F32, F32]:
    """Move coordinates by a anatomy's waves; without any they are returned as they are."""
    moved = [x, y, z]
    for along, size, phase in anatomy.warp:
        wave = np.sin(np.float32(along[0]) * x + np.float32(along[1]) * y + np.float32(along[2]) * z + phase)
        moved = [axis + np.float32(shift) * wave for axis, shift in zip(moved, size, strict=True)]
    return moved[0], moved[1], moved[2]


def _noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: Sequence[float]) -> F32:
    """Smooth noise of unit variance; `sigma` in voxels along each axis."""
    noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, mode="wrap", truncate=2.5)
    return np.asarray(noise / noise.std(), np.float32)


def _inside(distance: Real, width: float) -> Real:
    """Share of a voxel inside a surface: 1 well below it, 0 well above, linear over a voxel's width."""
    return np.asarray(np.clip(0.5 - distance / width, 0, 1))


def _over(soft: F32, value: float, cover: Real) -> None:
    """Lay a tissue over what is there."""
    soft += cover * (np.float32(value) - soft)


def _brain_cavity(x: F32, y: F32, z: F32) -> F32:
    side = np.abs(x)
    upper = np.maximum(ellipsoid(x, y, z, (0, 18, 22), (66, 83, 60)), 4 - z)
    temporal = ellipsoid(side, y, z, (38, 8, 0), (25, 33, 19))
    posterior = ellipsoid(x, y, z, (0, 54, -12), (52, 42, 34))
    suprasellar = ellipsoid(x, y, z, (0, 2, 3), (15, 16, 8))
    clivus = ellipsoid(x, y, z, (0, 23, -18), (15, 15, 34))
    canal = capsule(x, y, z, (0, 27, -20), (0, 38, -110), (14, 12))
    cavity = [upper, temporal, posterior, suprasellar, clivus, canal]
    return nearest([*cavity, spinal_canal(x, y, z)] if reaches_the_neck(z) else cavity)


def _skin(x: F32, y: F32, z: F32) -> F32:
    skull = ellipsoid(x, y, z, (0, 18, 16), (78, 95, 77))
    face = ellipsoid(x, y, z, (0, -22, -42), (60, 60, 72))
    nose = ellipsoid(x, y, z, (0, -84, -34), (11, 17, 20))
    ear = ellipsoid(np.abs(x), y, z, (80, 28, -26), (6, 15, 26))
    neck = capsule(x, y, z, (0, 26, -35), (0, 34, -160), (60, 56))
    parts = [skull, face, nose, ear, neck]
    return nearest([*parts, trunk(x, y, z)] if reaches_the_neck(z) else parts)


AIR_SPACES = 8


def _air_spaces(x: F32, y: F32, z: F32, noise: F32, growth_mm: NDArray[np.float64]) -> F32:
    side = np.abs(x)
    cells = 1.5 * noise
    return nearest(
        [
            ellipsoid(x, y, z, (0, -9, -19), (7.5, 13, 8)),
            ellipsoid(x, y, z, (0, -42, -10), (10, 20, 13)) + 1.5 * cells,
            ellipsoid(side, y, z, (28, -48, -36), (13, 15, 14)),
            ellipsoid(side, y, z, (8, -50, -36), (4, 22, 16)) + cells,
            ellipsoid(x, y, z, (0, -16, -56), (11, 14, 26)),
            ellipsoid(side, y, z, (54, 38, -24), (8, 11, 13)) + 2.5 * cells,
            ellipsoid(side, y, z, (13, -72, 10), (10, 4, 8)) + cells,
            capsule(side, y, z, (58, 16, -24), (80, 20, -26), (3, 4)),
        ],
        growth_mm,
    )


BONES = 11


def _base_bones(x: F32, y: F32, z: F32, growth_mm: NDArray[np.float64]) -> F32:
    side = np.abs(x)
    return nearest(
        [
            capsule(side, y, z, (17, 6, -22), (48, 30, -20), (5, 10)),
            capsule(side, y, z, (50, 34, -24), (54, 40, -44), (11, 7)),
            capsule(x, y, z, (0, 5, -8), (0, 13, -46), (3.5, 5)),
            capsule(side, y, z, (16, -16, 1), (11.5, -8.5, -1), (3.0, 1.8)),
            capsule(side, y, z, (15, -17, 1), (50, -26, 8), (2.5, 3)),
            capsule(side, y, z, (12, -14, -22), (44, -4, -26), (4, 4)),
            ellipsoid(x, y, z, (0, -9, -19), (9.5, 15, 10)),
            np.abs(capsule(x, y, z, (0, 36, -58), (0, 38, -110), (18, 18))) - 4,
            capsule(side, y, z, (40, -20, -60), (50, 10, -30), (5, 5)),
            capsule(side, y, z, (50, -45, -32), (66, -4, -24), (4, 3)),
            np.abs(ellipsoid(side, y, z, (31, -47, -8), (20, 27, 18))) - 1.2,
        ],
        growth_mm,
    )


def _paint_brain(
    soft: F32,
    signal: Mapping[str, float],
    brain: F32,
    x: F32,
    y: F32,
    z: F32,
    noise: Sequence[F32],
    texture: float,
) -> None:
    """Lay cortex, white matter, sulci, ventricles and cisterns inside the brain's cavity."""
    side = np.abs(x)
    depth = -brain
    _over(soft, signal["white"], _inside(brain, 2))
    inside = (brain < 1).astype(np.float32)
    cortex = np.clip((9 - depth + 5 * noise[1]) / 3, 0, 1) * inside
    deep = _inside(ellipsoid(side, y, z, (16, 8, 16), (10, 18, 10)) + 1.5 * noise[1], 3) * inside
    _over(soft, signal["grey"], np.maximum(cortex, deep))
    # Sulci follow the sheets on which smooth noise changes sign.
    sulci = np.clip(1.2 - np.abs(noise[0] + 0.25 * noise[2]) / 0.3, 0, 1) * np.clip((18 - depth) / 8, 0, 1) * inside
    # The folds of the cerebellum run across, a few millimetres apart.
    behind = _inside(ellipsoid(x, y, z, (0, 54, -16), (50, 36, 24)), 6)
    sulci *= 1 - behind
    folds = behind * np.clip(np.sin(1.3 * (z + 0.35 * y) + 1.2 * noise[2]), 0, 1) * 0.45 * inside
    rim = np.clip((2.4 - depth) / 1.5, 0, 1) * inside
    horn = capsule(side, y, z, (5, -14, 26), (8, 8, 35), (3.5, 3))
    body = capsule(side, y, z, (8, 8, 35), (17, 38, 27), (3, 4.5))
    temporal = capsule(side, y, z, (17, 38, 27), (30, 10, 0), (4, 1.5))
    third = ellipsoid(x, y, z, (0, 12, 15), (2.6, 14, 9))
    fourth = ellipsoid(x, y, z, (0, 40, -20), (7, 5, 9))
    suprasellar = ellipsoid(x, y, z, (0, -2, 2), (14, 13, 7))
    prepontine = ellipsoid(x, y, z, (0, 12, -18), (13, 7, 30))
    sylvian = np.minimum(
        capsule(side, y, z, (16, -4, 6), (34, -1, 6), (3, 4)), capsule(side, y, z, (36, 0, 8), (42, 26, 24), (4, 3))
    )
    ambient = np.abs(ellipsoid(x, y, z, (0, 27, 2), (18, 16, 16)) + noise[2]) - 1.5
    stem = capsule(x, y, z, (0, 29, -8), (0, 36, -90), (11.5, 6))
    falx = np.maximum(np.abs(x + 0.8 * noise[2]) - 1.0, 8 - z)
    canal = np.maximum(capsule(x, y, z, (0, 30, -40), (0, 38, -110), (14, 12)), z + 40)
    water = np.minimum.reduce([horn, body, temporal, third, fourth, suprasellar, sylvian, ambient, falx, canal])
    water = np.minimum(water, prepontine)
    shallow = np.clip(texture * np.maximum(sulci, folds), 0, 1)
    _over(soft, signal["csf"], np.maximum.reduce([shallow, rim, _inside(water, 2) * inside]))
    _over(soft, signal["white"], _inside(stem, 2) * inside)
    # The falx and the tentorium, which take up contrast.
    sheet = np.minimum(np.maximum(np.abs(x + 0.8 * noise[2]), 12 - z), np.abs(_tentorium(x, y, z)))
    _over(soft, signal["dura"], _inside(sheet - 0.5, 2) * inside)


def _tentorium(x: F32, y: F32, z: F32) -> F32:
    """Height over the tent between cerebrum and cerebellum; far away where it is not."""
    height = z - (14 - 0.22 * np.abs(x) - 0.1 * (y - 40))
    return np.asarray(np.where((y > 30) & (np.abs(x) < 50), height, 9), np.float32)
