"""Everything in a head but vessels: skull, skull base, brain, ventricles, cisterns, sinuses, orbits, face, skin.

All is computed on a coarse grid (2.4 mm) from implicit shapes in head coordinates and enlarged to the image, which is
what makes a series a matter of a second. Bone keeps a signed distance, so that its edges stay sharp when enlarged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from aneurysm_ray.phantom.grid import Grid, Pose

F32 = NDArray[np.float32]
Real = NDArray[np.floating[Any]]
COARSE_MM = 2.4

SOFT_TISSUES: tuple[str, ...] = ("air", "skin", "fat", "muscle", "grey", "white", "csf", "mucosa")
"""What the soft part is made of; every modality gives each a value."""


@dataclass(frozen=True, eq=False)
class Head:
    """A head on a coarse grid that covers an image's grid."""

    soft: F32
    """Signal without bone and vessels."""
    bone_mm: F32
    """Depth below the surface of bone, negative outside it."""
    step: tuple[float, float, float]
    """Coarse voxels per image voxel along (z, y, x)."""


def draw_head(rng: np.random.Generator, grid: Grid, pose: Pose, signal: Mapping[str, float]) -> Head:
    """Draw the head as it lies in a grid; `signal` is the value of each of `SOFT_TISSUES`."""
    sizes = [max(COARSE_MM, float(spacing)) for spacing in grid.spacing_mm]
    counts = [int(np.ceil(n * s / c)) + 1 for n, s, c in zip(grid.shape, grid.spacing_mm, sizes, strict=True)]
    step = [(c - 1) / max(n - 1, 1) for c, n in zip(counts, grid.shape, strict=True)]
    x, y, z = _head_coordinates(grid, pose, counts, step)
    noise = [_noise(rng, x.shape, [width_mm / size for size in sizes]) for width_mm in (3.0, 4.0, 8.0)]
    ripple = noise[2]

    brain = _brain_cavity(x, y, z) + 1.2 * ripple
    skin = _skin(x, y, z) + 0.8 * ripple
    air = _air_spaces(x, y, z, noise[1])
    orbit = _ellipsoid(np.abs(x), y, z, (31, -50, -8), (17, 24, 16))
    globe = _ellipsoid(np.abs(x), y, z, (31, -58, -8), (12, 12, 12))
    cavernous = _ellipsoid(np.abs(x), y, z, (10, -4, -12), (5.5, 14, 7))

    soft = np.full(x.shape, signal["muscle"], np.float32)
    _over(soft, signal["fat"], _inside(0.25 - noise[1], 0.5))
    _over(soft, signal["muscle"], _inside(cavernous, 2))
    _over(soft, signal["fat"], _inside(orbit, 2))
    _over(soft, signal["csf"], _inside(globe, 2))
    # The scalp: a layer of fat under the skin.
    _over(soft, signal["fat"], _inside(np.abs(skin + 4.5) - 2.5, 2))
    _over(soft, signal["skin"], _inside(np.abs(skin + 0.8) - 1.2, 2))
    _paint_brain(soft, signal, brain, x, y, z, noise)
    _over(soft, signal["mucosa"], _inside(air - 1.2, 2) * (brain > 0))
    _over(soft, signal["air"], _inside(air, 2) * (brain > 0))
    _over(soft, signal["air"], _inside(-skin, 2))

    thickness = np.clip(6.0 + 2.0 * noise[2], 3.5, 11)
    plate = np.minimum(brain - 0.3, thickness - brain)
    base = _base_bones(x, y, z) + 1.3 * noise[1]
    shells = 1.1 - np.abs(air - 0.4)
    bone = np.maximum(np.maximum(plate, -base), np.where(brain > 0, shells, -9))
    bone = np.minimum(bone, np.minimum(brain + 0.5, -skin - 3))
    bone = np.minimum(bone, np.minimum(cavernous, air + 0.2))
    return Head(soft, bone.astype(np.float32), (step[0], step[1], step[2]))


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


def _ellipsoid(x: F32, y: F32, z: F32, centre: Sequence[float], radii: Sequence[float]) -> F32:
    parts = [(a - c) / r for a, c, r in zip((x, y, z), centre, radii, strict=True)]
    k0 = np.sqrt(parts[0] ** 2 + parts[1] ** 2 + parts[2] ** 2)
    k1 = np.sqrt(sum((part / r) ** 2 for part, r in zip(parts, radii, strict=True)))
    return np.asarray(k0 * (k0 - 1) / np.maximum(k1, 1e-4), np.float32)


def _capsule(x: F32, y: F32, z: F32, start: Sequence[float], end: Sequence[float], radii: tuple[float, float]) -> F32:
    along = [b - a for a, b in zip(start, end, strict=True)]
    length2 = sum(v * v for v in along)
    dx, dy, dz = x - start[0], y - start[1], z - start[2]
    share = np.clip((dx * along[0] + dy * along[1] + dz * along[2]) / length2, 0, 1)
    square = (dx - share * along[0]) ** 2 + (dy - share * along[1]) ** 2 + (dz - share * along[2]) ** 2
    return np.asarray(np.sqrt(square) - (radii[0] + share * (radii[1] - radii[0])), np.float32)


def _nearest(distances: Sequence[Real]) -> F32:
    """Distance to the union of shapes."""
    return np.asarray(np.minimum.reduce(distances), np.float32)


def _brain_cavity(x: F32, y: F32, z: F32) -> F32:
    side = np.abs(x)
    upper = np.maximum(_ellipsoid(x, y, z, (0, 18, 22), (66, 83, 60)), 4 - z)
    temporal = _ellipsoid(side, y, z, (38, 8, 0), (25, 33, 19))
    posterior = _ellipsoid(x, y, z, (0, 54, -12), (52, 42, 34))
    suprasellar = _ellipsoid(x, y, z, (0, 2, 3), (15, 16, 8))
    clivus = _ellipsoid(x, y, z, (0, 23, -18), (15, 15, 34))
    canal = _capsule(x, y, z, (0, 27, -20), (0, 38, -110), (14, 12))
    return _nearest([upper, temporal, posterior, suprasellar, clivus, canal])


def _skin(x: F32, y: F32, z: F32) -> F32:
    skull = _ellipsoid(x, y, z, (0, 18, 16), (78, 95, 77))
    face = _ellipsoid(x, y, z, (0, -22, -42), (60, 60, 72))
    nose = _ellipsoid(x, y, z, (0, -84, -34), (11, 17, 20))
    ear = _ellipsoid(np.abs(x), y, z, (80, 28, -26), (6, 15, 26))
    neck = _capsule(x, y, z, (0, 26, -35), (0, 34, -160), (60, 56))
    return _nearest([skull, face, nose, ear, neck])


def _air_spaces(x: F32, y: F32, z: F32, noise: F32) -> F32:
    side = np.abs(x)
    cells = 1.5 * noise
    return _nearest(
        [
            _ellipsoid(x, y, z, (0, -9, -19), (7.5, 13, 8)),
            _ellipsoid(x, y, z, (0, -42, -10), (10, 20, 13)) + 1.5 * cells,
            _ellipsoid(side, y, z, (28, -48, -36), (13, 15, 14)),
            _ellipsoid(side, y, z, (8, -50, -36), (4, 22, 16)) + cells,
            _ellipsoid(x, y, z, (0, -16, -56), (11, 14, 26)),
            _ellipsoid(side, y, z, (54, 38, -24), (8, 11, 13)) + 2.5 * cells,
            _ellipsoid(side, y, z, (13, -72, 10), (10, 4, 8)) + cells,
            _capsule(side, y, z, (58, 16, -24), (80, 20, -26), (3, 4)),
        ]
    )


def _base_bones(x: F32, y: F32, z: F32) -> F32:
    side = np.abs(x)
    return _nearest(
        [
            _capsule(side, y, z, (17, 6, -22), (48, 30, -20), (5, 10)),
            _capsule(side, y, z, (50, 34, -24), (54, 40, -44), (11, 7)),
            _capsule(x, y, z, (0, 5, -8), (0, 13, -46), (3.5, 5)),
            _capsule(side, y, z, (16, -16, 1), (11.5, -8.5, -1), (3.0, 1.8)),
            _capsule(side, y, z, (15, -17, 1), (50, -26, 8), (2.5, 3)),
            _capsule(side, y, z, (12, -14, -22), (44, -4, -26), (4, 4)),
            _ellipsoid(x, y, z, (0, -9, -19), (9.5, 15, 10)),
            np.abs(_capsule(x, y, z, (0, 36, -58), (0, 38, -110), (18, 18))) - 4,
            _capsule(side, y, z, (40, -20, -60), (50, 10, -30), (5, 5)),
            _capsule(side, y, z, (50, -45, -32), (66, -4, -24), (4, 3)),
            np.abs(_ellipsoid(side, y, z, (31, -47, -8), (20, 27, 18))) - 1.2,
        ]
    )


def _paint_brain(
    soft: F32, signal: Mapping[str, float], brain: F32, x: F32, y: F32, z: F32, noise: Sequence[F32]
) -> None:
    """Lay cortex, white matter, sulci, ventricles and cisterns inside the brain's cavity."""
    side = np.abs(x)
    depth = -brain
    _over(soft, signal["white"], _inside(brain, 2))
    inside = (brain < 1).astype(np.float32)
    cortex = np.clip((9 - depth + 5 * noise[1]) / 3, 0, 1) * inside
    deep = _inside(_ellipsoid(side, y, z, (16, 8, 16), (10, 18, 10)) + 1.5 * noise[1], 3) * inside
    _over(soft, signal["grey"], np.maximum(cortex, deep))
    # Sulci follow the sheets on which smooth noise changes sign.
    sulci = np.clip(1.2 - np.abs(noise[0] + 0.25 * noise[2]) / 0.3, 0, 1) * np.clip((18 - depth) / 8, 0, 1) * inside
    # The folds of the cerebellum run across, a few millimetres apart.
    behind = _inside(_ellipsoid(x, y, z, (0, 54, -16), (50, 36, 24)), 6)
    sulci *= 1 - behind
    folds = behind * np.clip(np.sin(1.3 * (z + 0.35 * y) + 1.2 * noise[2]), 0, 1) * 0.45 * inside
    rim = np.clip((2.4 - depth) / 1.5, 0, 1) * inside
    horn = _capsule(side, y, z, (5, -14, 26), (8, 8, 35), (3.5, 3))
    body = _capsule(side, y, z, (8, 8, 35), (17, 38, 27), (3, 4.5))
    temporal = _capsule(side, y, z, (17, 38, 27), (30, 10, 0), (4, 1.5))
    third = _ellipsoid(x, y, z, (0, 12, 15), (2.6, 14, 9))
    fourth = _ellipsoid(x, y, z, (0, 40, -20), (7, 5, 9))
    suprasellar = _ellipsoid(x, y, z, (0, -2, 2), (14, 13, 7))
    prepontine = _ellipsoid(x, y, z, (0, 12, -18), (13, 7, 30))
    sylvian = np.minimum(
        _capsule(side, y, z, (16, -4, 6), (34, -1, 6), (3, 4)), _capsule(side, y, z, (36, 0, 8), (42, 26, 24), (4, 3))
    )
    ambient = np.abs(_ellipsoid(x, y, z, (0, 27, 2), (18, 16, 16)) + noise[2]) - 1.5
    stem = _capsule(x, y, z, (0, 29, -8), (0, 36, -90), (11.5, 6))
    falx = np.maximum(np.abs(x + 0.8 * noise[2]) - 1.0, 8 - z)
    canal = np.maximum(_capsule(x, y, z, (0, 30, -40), (0, 38, -110), (14, 12)), z + 40)
    water = np.minimum.reduce([horn, body, temporal, third, fourth, suprasellar, sylvian, ambient, falx, canal])
    water = np.minimum(water, prepontine)
    _over(soft, signal["csf"], np.maximum.reduce([sulci, rim, folds, _inside(water, 2) * inside]))
    _over(soft, signal["white"], _inside(stem, 2) * inside)
