"""A head as an image: the signal of every tissue in CTA, TOF-MRA, T2 and contrast-enhanced T1, thick slices and noise.

CTA is in Hounsfield units; MR in arbitrary units in which white matter is about 300.
"""

from collections.abc import Sequence
from math import comb

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from aneurysm_ray.phantom.appearance import Appearance
from aneurysm_ray.phantom.clutter import Blob, Clutter
from aneurysm_ray.phantom.grid import Grid, Pose
from aneurysm_ray.phantom.head import Anatomy, Head, draw_head, enlarge
from aneurysm_ray.phantom.lesions import Lesion
from aneurysm_ray.phantom.paint import Field, empty_field, paint_ellipsoid, paint_tube
from aneurysm_ray.phantom.vessels import Tube

Array = NDArray[np.float64]
F32 = NDArray[np.float32]

RENDER_SLICE_MM = 1.3
"""Thicker slices are rendered in parts at most this thick and averaged, as a scanner does."""


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
    anatomy: Anatomy,
    arteries: Field,
    strengths: F32,
    first_lesion: int,
    veins: Field,
    clutter: Clutter,
) -> F32:
    """Compose the noiseless image: soft tissue, then bone, what lies about, veins, arteries and calcifications.

    `strengths` gives each arterial owner's share of the arterial signal.
    """
    head = draw_head(rng, grid, pose, look.tissue, anatomy)
    image = enlarge(head.soft, grid.shape, head.step)
    edge = edge_mm(grid, look)
    _add_bone(image, head, look, edge)
    _add_blobs(image, grid, pose, clutter.under, edge)
    _blend(image, veins, np.array([0, look.vein], np.float32), edge)
    background = np.float32(look.tissue["grey"])
    values = background + strengths * (np.float32(look.artery) - background)
    _blend(image, arteries, values, edge, _slab(grid, look), first_lesion, look.slow_flow)
    _add_blobs(image, grid, pose, clutter.over, edge)
    return image


def _add_blobs(image: F32, grid: Grid, pose: Pose, blobs: Sequence[Blob], edge: float) -> None:
    if not blobs:
        return
    field = empty_field(grid.shape, grid.spacing_mm)
    for number, blob in enumerate(blobs, start=1):
        centre = grid.to_local(pose.to_patient(blob.centre))
        axes = grid.to_local(pose.to_patient(blob.centre + blob.axes)) - centre
        axes /= np.linalg.norm(axes, axis=1, keepdims=True)
        paint_ellipsoid(field, centre, axes, blob.radii_mm * pose.size, number, edge)
    _blend(image, field, np.array([0, *(blob.value for blob in blobs)], np.float32), edge)


def edge_mm(grid: Grid, look: Appearance) -> float:
    """Width over which a surface is blurred: a voxel, and at least the resolution of a scanner, or more."""
    return look.softness * max(0.75, float(np.cbrt(np.prod(grid.spacing_mm))))


def _slab(grid: Grid, look: Appearance) -> F32:
    """Share of the arterial signal by slice: it falls along each slab of about 32 mm."""
    height = np.arange(grid.shape[0]) * grid.spacing_mm[0]
    return np.asarray(1 - look.slab_fall * (height % 32.0) / 32.0, np.float32)


def _add_bone(image: F32, head: Head, look: Appearance, edge: float) -> None:
    """Lay bone over soft tissue; where it was subtracted, what software leaves in its place."""
    depth = enlarge(head.bone_mm, (image.shape[0], image.shape[1], image.shape[2]), head.step)
    at = np.flatnonzero(depth > -edge / 2)
    depth = depth.ravel()[at]
    if look.without_bone:
        value = np.full(len(depth), look.tissue["air"])
    else:
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
    sensitivity = np.ones(shape, np.float32) if ct else _coil(rng, shape, look.shading)
    along = np.ones(count) if ct else 1 + 0.12 * np.sin(np.linspace(0, rng.uniform(1, 3), count) + rng.uniform(0, 6))
    last = np.zeros(shape, np.float32)
    for index in range(count):
        plane = image[index * parts] if parts == 1 else image[index * parts : (index + 1) * parts].mean(axis=0)
        if look.sharpening:
            plane = plane + np.float32(look.sharpening) * (plane - uniform_filter(plane, 3))
        fresh = _correlated(rng, shape, look.grain) * np.float32(look.noise)
        if ct:
            plane = plane + 0.85 * fresh + 0.53 * last
            last = fresh
        else:
            plane = plane * (sensitivity * np.float32(along[index])) + fresh
            other = _correlated(rng, shape, look.grain) * np.float32(look.noise)
            plane = np.sqrt(plane**2 + other**2)
        np.clip(np.rint(plane), -1024 if ct else 0, 3071 if ct else 4095, out=plane)
        out[index] = plane
    return out


def _coil(rng: np.random.Generator, shape: tuple[int, int], shading: float) -> F32:
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    a, b, c, d = rng.uniform(-shading, shading, 4)
    return np.asarray(1 + a * y[:, None] + b * x[None] + c * y[:, None] ** 2 + d * x[None] ** 2, np.float32)


def _correlated(rng: np.random.Generator, shape: tuple[int, int], passes: int) -> F32:
    """White noise of unit variance, smoothed with [1, 1] along both axes `passes` times and renormalised."""
    y, x = shape
    noise = rng.standard_normal((y + passes, x + passes), dtype=np.float32)
    for _ in range(passes):
        noise = noise[1:] + noise[:-1]
        noise = noise[:, 1:] + noise[:, :-1]
    # The squares of a binomial kernel along one axis sum to the middle one of twice as many passes.
    noise /= np.float32(comb(2 * passes, passes))
    return noise
