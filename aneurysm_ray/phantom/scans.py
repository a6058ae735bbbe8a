"""How a series is taken: field of view, slices and surroundings of each kind of scan, and the vessels of the neck."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.phantom.appearance import Appearance
from aneurysm_ray.phantom.grid import Grid, Pose, make_grid
from aneurysm_ray.phantom.head import Anatomy
from aneurysm_ray.phantom.vessels import Tube, lay_tube

Array = NDArray[np.float64]
Path = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Scan:
    """What a kind of CT angiogram covers, and what else is in it."""

    extent_mm: tuple[float, float, float]
    """Field of view (slice, row, column)."""
    centre: tuple[float, float, float]
    """Its centre in head coordinates, mm."""
    arms: bool = False
    holder: bool = False
    without_bone: bool = False


SCANS: dict[str, Scan] = {
    "head": Scan((144, 205, 205), (0, 16, 24)),
    "neck": Scan((420, 240, 240), (0, 24, -112)),
    "arms": Scan((260, 300, 380), (0, 20, -32), arms=True),
    "holder": Scan((170, 250, 250), (0, 24, 12), holder=True),
    "subtracted": Scan((144, 205, 205), (0, 16, 24), without_bone=True),
    "slab": Scan((76, 205, 205), (0, 16, 6)),
}
"""CT angiograms by name: the head alone; from the aortic arch up; with raised arms; in a head holder; with bone
subtracted; a slab that cuts the head."""

# Field of view (slice, row, column) in mm and its centre in head coordinates of MR, by modality and plane.
_MR_VIEW: dict[tuple[str, str], tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    ("MRA", "axial"): ((96, 205, 180), (0, 16, 3)),
    ("MRA", "coronal"): ((116, 170, 180), (0, 12, 12)),
    ("MRA", "sagittal"): ((126, 170, 205), (0, 16, 12)),
    ("thick", "axial"): ((145, 205, 180), (0, 16, 23)),
    ("thick", "coronal"): ((180, 180, 180), (0, 16, 12)),
    ("thick", "sagittal"): ((150, 180, 205), (0, 16, 12)),
}

_NECK: dict[str, tuple[Path, tuple[float, float]]] = {
    "common carotid": (((24, 14, -75), (25, 16, -130), (24, 24, -200), (16, 42, -320)), (2.6, 3.6)),
    "vertebral": (((22, 44, -82), (21, 48, -120), (19, 58, -230), (22, 50, -320)), (1.8, 2.0)),
    "jugular vein": (((30, 24, -80), (34, 20, -150), (38, 26, -230), (30, 40, -320)), (4.5, 6.0)),
}
_CONTINUES = {"common carotid": "ICA petrous", "vertebral": "V4"}
_BELOW_MM = -120.0


def draw_grid(
    rng: np.random.Generator,
    modality: str,
    plane: str,
    scan: str,
    pose: Pose,
    spacing_mm: float | None,
    *,
    varied: bool,
) -> Grid:
    """Lay the slices of a series over a head as a technician would; `scan` is a key of SCANS, for CTA."""
    kind = modality if modality in ("CTA", "MRA") else "thick"
    extent, centre = (SCANS[scan].extent_mm, SCANS[scan].centre) if kind == "CTA" else _MR_VIEW[kind, plane]
    if kind == "thick":
        spacing = np.array([max(rng.uniform(3.5, 5.5), spacing_mm or 0), spacing_mm or 0.8, spacing_mm or 0.8])
    else:
        in_plane = {"CTA": 205 / 256, "MRA": 0.75}[kind]
        slices = {"CTA": 144 / 128, "MRA": 0.75}[kind]
        spacing = np.array([spacing_mm or slices, spacing_mm or in_plane, spacing_mm or in_plane])
    if spacing_mm is None:
        spacing *= rng.uniform(1.0, 1.1)
        if varied:
            spacing *= np.array([rng.uniform(0.5, 1.3), *[rng.uniform(0.75, 1.2)] * 2])
    # A CT gantry stays upright; MR slices follow the head as far as the planner cares.
    tilt = np.zeros(3) if kind == "CTA" else rng.normal(0, (4, 1, 1))
    shift = rng.normal(0, (1.5, 2, 2))
    size = np.array(extent, float)
    if varied:
        size[0] *= rng.uniform(0.85, 1.15)
        shift = shift + rng.normal(0, (2, 4, 6))
        tilt = tilt + rng.normal(0, (6, 3, 3))
    return make_grid(plane, pose.to_patient(np.array(centre) + shift), size, spacing, tilt)


def reaches_the_neck(grid: Grid, pose: Pose) -> bool:
    """Whether a grid goes on below the skull."""
    corners = np.array(np.meshgrid(*((0, n - 1) for n in grid.shape))).reshape(3, -1).T
    patient = corners @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    head = (patient - pose.shift_mm) @ np.linalg.inv(pose.matrix).T
    return bool(head[:, 2].min() < _BELOW_MM)


def draw_neck(rng: np.random.Generator, arteries: Sequence[Tube]) -> tuple[tuple[Tube, ...], tuple[Tube, ...]]:
    """Draw the arteries that feed the head's and the veins that drain it, from the chest up."""
    by_name = {tube.name: tube for tube in arteries}
    drawn: dict[bool, list[Tube]] = {True: [], False: []}
    for letter, sign in (("L", 1), ("R", -1)):
        for name, (nodes, ends) in _NECK.items():
            path = np.array(nodes, float) * (sign, 1, 1)
            path[1:] += rng.normal(0, 2.5, path[1:].shape)
            upper = by_name.get(f"{_CONTINUES.get(name)} {letter}")
            if upper is not None:
                path[0] = upper.points[0]
                ends = (float(upper.radii_mm[0]), ends[1])
            drawn[name in _CONTINUES].append(lay_tube(rng, f"{name} {letter}", None, path, ends, 1.0))
    return tuple(drawn[True]), tuple(drawn[False])


def surround(scan: str, modality: str, anatomy: Anatomy, look: Appearance) -> tuple[Anatomy, Appearance]:
    """Add what a kind of scan shows around the head, or takes away."""
    if modality != "CTA":
        return anatomy, look
    kind = SCANS[scan]
    return (
        replace(anatomy, arms=kind.arms, holder=kind.holder),
        replace(look, without_bone=look.without_bone or kind.without_bone),
    )
