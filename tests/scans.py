"""Scans of a made-up head as volumes, in memory: fields of values at patient positions, sampled on any slices."""

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.data.volume import Volume

HEAD_RADII_MM = np.array([75.0, 95, 105])  # x, y, z of an ellipsoid at the patient's origin: its top is at z = 105
MARK_MM = np.array([30.0, -20, 40])  # a bright ball: left, front, high


def head_hu(mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """CT values of the synthetic head at patient positions (..., 3)."""
    inside = ((mm / HEAD_RADII_MM) ** 2).sum(-1) < 1
    neck = (np.hypot(mm[..., 0], mm[..., 1] - 10) < 60) & (mm[..., 2] < 0)
    mark = ((mm - MARK_MM) ** 2).sum(-1) < 8**2
    return np.where(mark, 600.0, np.where(inside | neck, 40.0, -1000.0))


def shoulders_hu(mm: NDArray[np.float64]) -> NDArray[np.float64]:
    body = ((mm[..., 0] / 230) ** 2 + ((mm[..., 1] - 60) / 110) ** 2 < 1) & (mm[..., 2] < -110)
    lung = (np.hypot(np.abs(mm[..., 0]) - 90, mm[..., 1] - 60) < 60) & (mm[..., 2] < -180)
    table = (np.abs(mm[..., 1] - 175) < 3) & (np.abs(mm[..., 0]) < 200)
    return np.where(lung, -850.0, np.where(body | table, 50.0, head_hu(mm)))


def scan(
    field: object = head_hu,
    *,
    columns: tuple[float, float, float] = (1, 0, 0),
    rows: tuple[float, float, float] = (0, 1, 0),
    step: tuple[float, float, float] = (0, 0, 3),
    first: tuple[float, float, float] = (-125, -125, -100),
    shape: tuple[int, int, int] = (75, 100, 100),
    pitch: tuple[float, float] = (2.5, 2.5),
    modality: str = "CT",
) -> Volume:
    affine = np.eye(4)
    affine[:3] = np.stack([step, np.multiply(rows, pitch[0]), np.multiply(columns, pitch[1]), first], axis=1)
    k, r, c = np.indices(shape)
    mm = np.stack([k, r, c, np.ones(shape)], -1) @ affine[:3].T
    origins = np.arange(shape[0])[:, None] * affine[:3, 0] + affine[:3, 3]
    instances = tuple((f"1.2.{k}", 0) for k in range(shape[0]))
    voxels = np.rint(field(mm)).astype(np.int16)  # type: ignore[operator]
    return Volume(voxels, affine, origins, modality, "1.2", "patient", (), instances)


BRAIN, VESSEL = 300.0, 900.0
VESSEL_MM = np.array([20.0, 0.0, 20.0])  # on the axis of a straight vessel from front to back


def mr_head(mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Time of flight: noisy air, bright scalp, dark skull, grey and white matter, dark ventricles, a bright vessel."""
    radius = np.sqrt(((mm / HEAD_RADII_MM) ** 2).sum(-1))
    folds = np.sin(mm / 7).prod(-1)
    brain = np.where(folds > 0, 1.06 * BRAIN, 0.94 * BRAIN)
    ventricle = (((mm - [0, 10, 30]) / [15.0, 35, 12]) ** 2).sum(-1) < 1
    vessel = (np.hypot(mm[..., 0] - VESSEL_MM[0], mm[..., 2] - VESSEL_MM[2]) < 7) & (np.abs(mm[..., 1]) < 55)
    values = np.select(
        [radius > 1, radius > 0.95, radius > 0.88, vessel, ventricle], [0.0, 640.0, 30.0, VESSEL, 110.0], brain
    )
    noise = np.random.default_rng(7).normal(0, 25, (2, *values.shape))
    return np.asarray(np.hypot(values + noise[0], noise[1]))
