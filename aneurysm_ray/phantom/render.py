"""A head as an image: the signal of every tissue in CTA, TOF-MRA, T2 and contrast-enhanced T1, thick slices and noise.

CTA is in Hounsfield units; MR in arbitrary units in which white matter is about 300.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.phantom.grid import Grid, Pose
from aneurysm_ray.phantom.head import SOFT_TISSUES, Head, draw_head, enlarge
from aneurysm_ray.phantom.lesions import Lesion
from aneurysm_ray.phantom.paint import Field, empty_field, paint_ellipsoid, paint_tube
from aneurysm_ray.phantom.vessels import Tube

Array = NDArray[np.float64]
F32 = NDArray[np.float32]

RENDER_SLICE_MM = 1.3
"""Thicker slices are rendered in parts at most this thick and averaged, as a scanner does."""


@dataclass(frozen=True)
class Appearance:
    """What one series shows of each tissue."""

    tissue: Mapping[str, float]
    cortical_bone: float
    marrow: float
    artery: float
    vein: float
    noise: float
    """Standard deviation, in the image's unit."""
    slab_fall: float
    """TOF: share of the arterial signal lost from a slab's entry to its exit."""
    slow_flow: float
    """TOF: share of the signal lost per mm of depth inside a sac."""


# Means by tissue, in the order of SOFT_TISSUES, then cortical bone and marrow.
_SIGNAL: dict[str, tuple[float, ...]] = {
    "CTA": (-1000, 10, -90, 55, 38, 28, 8, 40, 1250, 450),
    "MRA": (2, 300, 330, 170, 275, 300, 130, 240, 45, 130),
    "MRI T2": (2, 250, 520, 130, 430, 310, 1000, 800, 25, 220),
    "MRI T1post": (2, 520, 800, 300, 290, 350, 130, 600, 40, 420),
}


def draw_appearance(rng: np.random.Generator, modality: str) -> Appearance:
    """Draw a series' contrast within the published ranges of its modality."""
    *soft, cortical, marrow = _SIGNAL[modality]
    if modality == "CTA":
        artery = rng.uniform(220, 460)
        tissue = dict(zip(SOFT_TISSUES, np.array(soft) + rng.normal(0, 3, len(soft)), strict=True))
        vein = 40 + rng.uniform(0.3, 0.75) * (artery - 40)
        bone = rng.uniform(0.8, 1.25)
        return Appearance(tissue, cortical * bone, marrow * bone, artery, vein, rng.uniform(10, 22), 0, 0)
    scale = rng.uniform(0.6, 1.6)
    tissue = dict(zip(SOFT_TISSUES, scale * np.array(soft) * rng.normal(1, 0.05, len(soft)), strict=True))
    white = tissue["white"]
    artery, vein, noise = {
        "MRA": (rng.uniform(2.5, 4.0), rng.uniform(0.75, 1.25), rng.uniform(0.08, 0.14)),
        "MRI T2": (rng.uniform(0.05, 0.25), rng.uniform(0.15, 0.5), rng.uniform(0.04, 0.09)),
        "MRI T1post": (rng.uniform(1.2, 2.6), rng.uniform(2.2, 3.2), rng.uniform(0.05, 0.1)),
    }[modality]
    fall, slow = (rng.uniform(0.1, 0.3), rng.uniform(0.03, 0.08)) if modality == "MRA" else (0.0, 0.0)
    return Appearance(tissue, cortical * scale, marrow * scale, artery * white, vein * white, noise * white, fall, slow)


def paint_arteries(grid: Grid, pose: Pose, tubes: Sequence[Tube], lesions: Sequence[Lesion], reach_mm: float) -> Field:
    """Paint arteries as owners 1..T in their order and lesions as T+1..T+L."""
    field = empty_field(grid.shape, grid.spacing_mm)
    for owner, tube in enumerate(tubes, start=1):
        paint_tube(field, grid.to_local(pose.to_patient(tube.points)), tube.radii_mm * pose.size, owner, reach_mm)
    for owner, lesion in enumerate(lesions, start=len(tubes) + 1):
        centre = grid.to_local(pose.to_patient(lesion.centre))
        axes = grid.to_local(pose.to_patient(lesion.centre + lesion.axes)) - centre
        axes /= np.linalg.norm(axes, axis=1, keepdims=True)
        paint_ellipsoid(field, centre, axes, lesion.radii_mm * pose.size, owner, reach_mm)
        radius = lesion.neck_radius_mm * pose.size
        paint_tube(field, grid.to_local(pose.to_patient(lesion.neck)), np.array([radius, radius]), owner, reach_mm)
        if lesion.bleb:
            bleb = grid.to_local(pose.to_patient(lesion.bleb[0]))
            paint_ellipsoid(field, bleb, np.eye(3), np.full(3, lesion.bleb[1] * pose.size), owner, reach_mm)
    return field


def paint_veins(grid: Grid, pose: Pose, tubes: Sequence[Tube], reach_mm: float) -> Field:
    """Paint veins as owner 1."""
    field = empty_field(grid.shape, grid.spacing_mm)
    for tube in tubes:
        paint_tube(field, grid.to_local(pose.to_patient(tube.points)), tube.radii_mm * pose.size, 1, reach_mm)
    return field


def compose(
    rng: np.random.Generator,
    grid: Grid,
    pose: Pose,
    look: Appearance,
    arteries: Field,
    strengths: F32,
    first_lesion: int,
    veins: Field,
    calcifications: Sequence[tuple[Array, float, float]],
) -> F32:
    """Compose the noiseless image: soft tissue, then bone, veins, arteries and calcifications over it.

    `strengths` gives each arterial owner's share of the arterial signal; calcifications are (centre in patient mm,
    radius in mm, value).
    """
    head = draw_head(rng, grid, pose, look.tissue)
    image = enlarge(head.soft, grid.shape, head.step)
    edge = edge_mm(grid)
    _add_bone(image, head, look, edge)
    _blend(image, veins, np.array([0, look.vein], np.float32), edge)
    background = np.float32(look.tissue["grey"])
    values = background + strengths * (np.float32(look.artery) - background)
    _blend(image, arteries, values, edge, _slab(grid, look), first_lesion, look.slow_flow)
    if calcifications:
        stones = empty_field(grid.shape, grid.spacing_mm)
        for number, (centre, radius, _) in enumerate(calcifications, start=1):
            paint_ellipsoid(stones, grid.to_local(centre), np.eye(3), np.full(3, radius), number, edge)
        _blend(image, stones, np.array([0, *(value for _, _, value in calcifications)], np.float32), edge)
    return image


def edge_mm(grid: Grid) -> float:
    """Width over which a surface is blurred: a voxel, and at least the resolution of a scanner."""
    return max(0.75, float(np.cbrt(np.prod(grid.spacing_mm))))


def _slab(grid: Grid, look: Appearance) -> F32:
    """Share of the arterial signal by slice: it falls along each slab of about 32 mm."""
    height = np.arange(grid.shape[0]) * grid.spacing_mm[0]
    return np.asarray(1 - look.slab_fall * (height % 32.0) / 32.0, np.float32)


def _add_bone(image: F32, head: Head, look: Appearance, edge: float) -> None:
    depth = enlarge(head.bone_mm, (image.shape[0], image.shape[1], image.shape[2]), head.step)
    at = np.flatnonzero(depth > -edge / 2)
    depth = depth.ravel()[at]
    value = look.cortical_bone + (look.marrow - look.cortical_bone) * np.clip((depth - 1.0) / 1.5, 0, 1)
    cover = np.clip(0.5 + depth / edge, 0, 1)
    flat = image.reshape(-1)
    flat[at] += cover * (value - flat[at])


def _blend(
    image: F32,
    field: Field,
    values: F32,
    edge: float,
    by_slice: F32 | None = None,
    first_slow: int = 256,
    slow_flow: float = 0.0,
) -> None:
    """Lay painted shapes over the image; `values` by owner, those from `first_slow` on darker in their depth."""
    distance = field.distance_mm.reshape(-1)
    at = np.flatnonzero(distance < edge / 2)
    distance, owner = distance[at], field.owner.reshape(-1)[at]
    value = values[owner]
    if by_slice is not None:
        value *= by_slice[at // (image.shape[1] * image.shape[2])]
    if slow_flow:
        depth = np.maximum(-distance - 1.0, 0)
        value = np.where(owner >= first_slow, value * np.maximum(1 - slow_flow * depth, 0.4), value)
    cover = np.clip(0.5 - distance / edge, 0, 1)
    flat = image.reshape(-1)
    flat[at] += cover * (value - flat[at])


def acquire(rng: np.random.Generator, image: F32, parts: int, look: Appearance, ct: bool) -> NDArray[np.int16]:
    """Average slices of `parts` and add the noise of the scanner.

    CT noise is Gaussian and correlated by the reconstruction kernel and between neighbouring slices; MR noise is Rician
    (Gudbjartsson and Patz 1995) under a smooth coil sensitivity.
    """
    count = image.shape[0] // parts
    shape = (image.shape[1], image.shape[2])
    out = np.empty((count, *shape), np.int16)
    sensitivity = np.ones(shape, np.float32) if ct else _coil(rng, shape)
    along = np.ones(count) if ct else 1 + 0.12 * np.sin(np.linspace(0, rng.uniform(1, 3), count) + rng.uniform(0, 6))
    last = np.zeros(shape, np.float32)
    for index in range(count):
        plane = image[index * parts] if parts == 1 else image[index * parts : (index + 1) * parts].mean(axis=0)
        fresh = _correlated(rng, shape, 2 if ct else 1) * np.float32(look.noise)
        if ct:
            plane = plane + 0.85 * fresh + 0.53 * last
            last = fresh
        else:
            plane = plane * (sensitivity * np.float32(along[index])) + fresh
            other = _correlated(rng, shape, 1) * np.float32(look.noise)
            plane = np.sqrt(plane**2 + other**2)
        np.clip(np.rint(plane), -1024 if ct else 0, 3071 if ct else 4095, out=plane)
        out[index] = plane
    return out


def _coil(rng: np.random.Generator, shape: tuple[int, int]) -> F32:
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    a, b, c, d = rng.uniform(-0.12, 0.12, 4)
    return np.asarray(1 + a * y[:, None] + b * x[None] + c * y[:, None] ** 2 + d * x[None] ** 2, np.float32)


def _correlated(rng: np.random.Generator, shape: tuple[int, int], passes: int) -> F32:
    """White noise of unit variance, smoothed with [1, 1] along both axes `passes` times and renormalised."""
    y, x = shape
    noise = rng.standard_normal((y + passes, x + passes), dtype=np.float32)
    for _ in range(passes):
        noise = noise[1:] + noise[:-1]
        noise = noise[:, 1:] + noise[:, :-1]
    # Variance of the binomial kernel along one axis: 2 for [1, 1], 6 for [1, 2, 1].
    noise /= np.float32({1: 2, 2: 6}[passes])
    return noise
