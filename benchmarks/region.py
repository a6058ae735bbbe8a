"""Is the head found, and does the stored box hold what must be seen, in every kind of scan?

    python benchmarks/region.py ../shared/data/dicom [--count 12] [--spacing 2]

Parts: (a) the top that is found against the true one, the circle of Willis inside the box, CPU time, for phantoms of
every kind and for two real heads that are padded, cropped, given arms and a cradle, and bone-subtracted; (b) aneurysms
and arteries outside the box or within 5 mm of one of its faces behind which the scan goes on, by kind and extent.
The folder is that of the series `ct_ge_head_tilt_varspacing` and `mr_xa30_enhanced_t1`; where they are in it was read
off their pictures by eye.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.config import VolumeConfig
from aneurysm_ray.data.dataset import SEGMENTATION_VALUES
from aneurysm_ray.data.dicom import read_series
from aneurysm_ray.data.preprocess import prepare_series
from aneurysm_ray.data.region import Head, find_head, head_box, patient_axes
from aneurysm_ray.data.resample import frame_of
from aneurysm_ray.data.volume import Volume
from aneurysm_ray.phantom.grid import Pose, draw_pose
from aneurysm_ray.phantom.head import _skin
from aneurysm_ray.phantom.options import PhantomOptions, SeriesPlan
from aneurysm_ray.phantom.scans import SCANS
from aneurysm_ray.phantom.series import make_series

Array = NDArray[np.float64]

NEAR_MM = 5.0
GRID_MM = 2.5
SEED = 17
CIRCLE = [2, 3, 4, 7, 8, 11, 12, 13]
"""Classes of the circle of Willis itself; the others reach far from it."""
EXTENTS: list[tuple[float, float, float]] = [
    *((96, 128, 112), (150, 160, 130), (160, 200, 160), (170, 190, 150), (180, 190, 150)),
]
"""The slab of the demonstration, the ladder's region, the default before, and what the default was chosen from."""
REAL: dict[str, tuple[float, float, float, float]] = {
    "ct_ge_head_tilt_varspacing": (95, 149, 124, 155),
    "mr_xa30_enhanced_t1": (100, 135, 95, 151),
}
"""Series to the circle of Willis, in mm from the scan's top, front and right, and the head's middle from the front."""


@dataclass(frozen=True, eq=False)
class Case:
    """A scan and what is true of it."""

    kind: str
    volume: Volume
    skin_mm: Array
    """(N, 3) patient positions of the head's surface about its top."""
    middle_mm: Array
    """(3,) patient position of the head's middle at the level of the circle of Willis."""
    circle_mm: Array
    """(N, 3) patient positions that belong to the circle of Willis, inside the scan."""
    lesions_mm: Array
    arteries: dict[int, Array]
    """By class, patient positions of artery in the scan."""


def to_volume(voxels: NDArray[np.int16], affine: Array, modality: str) -> Volume:
    origins = np.arange(len(voxels))[:, None] * affine[:3, 0] + affine[:3, 3]
    return Volume(voxels, affine, origins, modality, "1.2")


def phantoms(count: int, spacing_mm: float) -> Iterator[Case]:
    """Make `count` series of every kind of CT angiogram and of MR in its planes."""
    kinds = [("CTA", "axial", scan) for scan in SCANS]
    kinds += [(modality, "axial", "head") for modality in ("MRA", "MRI T2", "MRI T1post")]
    kinds += [("MRA", plane, "head") for plane in ("coronal", "sagittal")]
    for number, (modality, plane, scan) in enumerate(kinds):
        for index in range(count):
            options = PhantomOptions(count=1, seed=SEED, modalities=(modality,), spacing_mm=spacing_mm)
            plan = SeriesPlan(100 * number + index, modality, plane, 4, False, True, True, 60, scan=scan)
            rendered = make_series(options, plan)
            pose = draw_pose(np.random.default_rng([SEED, 2, plan.index]))
            name = f"CTA {scan}" if modality == "CTA" else f"{modality} {plane}"
            volume = to_volume(rendered.voxels, rendered.grid.affine, "CT" if modality == "CTA" else "MR")
            case = _case(name, volume, pose, rendered.vessels, np.array([x.centre_mm for x in rendered.lesions]))
            yield case
            if name == "CTA head":
                yield replace(case, kind="CTA intercept twice", volume=replace(volume, voxels=rendered.voxels - 1024))


def _case(kind: str, volume: Volume, pose: Pose, vessels: NDArray[np.uint8], lesions: Array) -> Case:
    affine = volume.affine
    arteries = {
        value: np.argwhere(vessels == value)[::7] @ affine[:3, :3].T + affine[:3, 3]
        for value in SEGMENTATION_VALUES.values()
    }
    circle = np.concatenate([arteries[value] for value in CIRCLE])
    middle = pose.to_patient(np.array([0.0, 18.0, 0.0]))
    return Case(kind, volume, _skin_of(pose), middle, circle, lesions.reshape(-1, 3), arteries)


def _skin_of(pose: Pose) -> Array:
    z, y, x = np.meshgrid(np.arange(70, 120, 0.5), np.arange(-40, 80, 2), np.arange(-40, 40, 2), indexing="ij")
    inside = _skin(*(axis.astype(np.float32) for axis in (x, y, z))) < 0
    return pose.to_patient(np.stack([x, y, z], -1)[inside])


def real_heads(folder: Path) -> Iterator[Case]:
    """Make nine scans of two real heads."""
    for name, (below, behind, left, middle) in REAL.items():
        whole = _regular(read_series(folder / name))
        kind = "CT" if whole.modality == "CT" else "MR"
        tissue = whole.voxels > (-300 if kind == "CT" else 0.1 * np.percentile(whole.voxels, 98))
        top = max(z for z, area in _level_areas(whole, tissue) if area > 300)
        circle = np.array([left, behind, GRID_MM * (len(whole.voxels) - 1) - below])
        sphere = circle + 22.0 * (np.array(list(np.ndindex(3, 3, 3))) - 1)
        skin, centre = np.array([[left, middle, top]]), np.array([left, middle, circle[2]])
        base = Case(f"real {kind}", whole, skin, centre, sphere, np.zeros((0, 3)), {})
        yield base
        yield replace(base, kind=f"real {kind} padded", volume=_padded(whole))
        cut = to_volume(whole.voxels[whole.origins_mm[:, 2] <= top - 40], whole.affine, whole.modality)
        yield replace(base, kind=f"real {kind} cropped", volume=cut)
        if kind == "CT":
            wide = _padded(whole)
            for change in (_with_arms, _with_cradle, _subtracted):
                changed = replace(wide, voxels=change(wide, left, middle))
                yield replace(base, kind=f"real CT{change.__name__.replace('_', ' ')}", volume=changed)


def _regular(volume: Volume) -> Volume:
    """Return a scan on a grid of 2.5 mm that can be changed, in mm from its right, front and bottom."""
    config = VolumeConfig(extent_mm=(1000, 1000, 1000), spacing_mm=(GRID_MM, GRID_MM, GRID_MM), dtype="int16")
    prepared = prepare_series(volume, config)
    voxels = prepared.voxels.astype(np.int16)
    return to_volume(voxels, np.diag([GRID_MM] * 3 + [1])[[2, 1, 0, 3]], volume.modality)


def _level_areas(volume: Volume, tissue: NDArray[np.bool_]) -> list[tuple[float, float]]:
    """Return height in mm and area of tissue in mm² of every slice; slices of a regular grid are levels."""
    return [(float(volume.origins_mm[k, 2]), float(tissue[k].sum()) * GRID_MM**2) for k in range(len(tissue))]


def _padded(volume: Volume, by: int = 24) -> Volume:
    air = -1000 if volume.modality == "CT" else 0
    voxels = np.pad(volume.voxels, [(0, by), (by, by), (by, by)], constant_values=air)
    affine = volume.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.array([0, by, by], float)
    return to_volume(voxels, affine, volume.modality)


def _places(volume: Volume) -> tuple[Array, Array, Array]:
    z, y, x = (GRID_MM * np.arange(n) for n in volume.shape)
    corner = volume.affine[:3, 3]
    return (z + corner[2])[:, None, None], (y + corner[1])[:, None], x + corner[0]


def _with_arms(volume: Volume, left: float, middle: float) -> NDArray[np.int16]:
    """Raise arms of 84 mm beside the head, and lay one over it."""
    z, y, x = _places(volume)
    beside = np.minimum(np.hypot(x - left - 122, y - middle), np.hypot(x - left + 122, y - middle)) + 0 * z
    above = np.hypot(y - middle, z - z.max()) + np.where(np.abs(x - left) < 122, 0, 999)
    arms = (np.minimum(beside, above) < 42) & (volume.voxels < -300)
    return np.where(arms, 50, volume.voxels).astype(np.int16)


def _with_cradle(volume: Volume, left: float, middle: float) -> NDArray[np.int16]:
    """Lay the head into a trough of -100 HU, 30 mm thick, that goes on beyond its top."""
    z, y, x = _places(volume)
    around = np.hypot((x - left) / 0.9, y - middle) + 0 * z
    cradle = (around > 98) & (around < 128) & (y > middle) & (volume.voxels < -300)
    return np.where(cradle, -100, volume.voxels).astype(np.int16)


def _subtracted(volume: Volume, left: float, middle: float) -> NDArray[np.int16]:
    """Put air in the place of bone."""
    return np.where(volume.voxels > 180, -1024, volume.voxels).astype(np.int16)


def _faces(volume: Volume, head: Head, extent_mm: tuple[float, float, float]) -> tuple[Array, Array, Array]:
    """Return the box's and the scan's edges (3, 2), in mm along the frame's axes, and the axes themselves."""
    frame = frame_of(volume)
    return head_box(head, volume, frame, extent_mm), frame.edges_mm(volume.shape), frame.directions


def lost(points_mm: Array, faces: tuple[Array, Array, Array]) -> tuple[int, int]:
    """Count points outside a box, and those inside within NEAR_MM of a face behind which the scan goes on."""
    if not len(points_mm):
        return 0, 0
    box, scan, directions = faces
    along = points_mm @ directions.T
    outside = ((along < box[:, 0]) | (along > box[:, 1])).any(1)
    goes_on = np.abs(box - scan) > 1.0
    near = ((along - box[:, 0] < NEAR_MM) & goes_on[:, 0]) | ((box[:, 1] - along < NEAR_MM) & goes_on[:, 1])
    return int(outside.sum()), int((near.any(1) & ~outside).sum())


def head_table(cases: list[Case]) -> None:
    print("\n(a) the head, by the default box")
    print("| kind | scans | doubtful | top, worst mm | middle, worst mm | circle of Willis held | CPU ms |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    extent = VolumeConfig().extent_mm
    for kind in dict.fromkeys(case.kind for case in cases):
        rows = []
        for case in (case for case in cases if case.kind == kind):
            frame = frame_of(case.volume)
            started = time.process_time()
            head = find_head(case.volume, frame)
            spent = time.process_time() - started
            axes, signs = patient_axes(frame)
            up, back, left = (sign * frame.directions[axis] for axis, sign in zip(axes, signs, strict=True))
            edges = signs[0] * frame.edges_mm(case.volume.shape)[axes[0]]
            top = min(float((case.skin_mm @ up).max()), float(edges.max()))
            middle = np.abs(np.subtract(head.centre_mm, (case.middle_mm @ back, case.middle_mm @ left))).max()
            outside, _ = lost(case.circle_mm, _faces(case.volume, head, extent))
            held = outside / max(len(case.circle_mm), 1) < 0.001
            rows.append((head.doubtful, head.top_mm - top, middle, held, 1e3 * spent))
        doubtful, top, middles, held_all, ms = (np.array(column) for column in zip(*rows, strict=True))
        worst = top[np.abs(top).argmax()]
        print(
            f"| {kind} | {len(rows)} | {doubtful.sum()} | {worst:+.1f} | {middles.max():.1f} | "
            f"{held_all.sum()} of {len(rows)} | {np.median(ms):.0f} |"
        )


def extent_table(cases: list[Case]) -> None:
    print("\n(b) outside the box / within 5 mm of its faces, % of aneurysms, and % of artery outside")
    names = {value: name for name, value in SEGMENTATION_VALUES.items()}
    shown = {"infraclinoid": [5, 6], "supraclinoid": [7, 8], "basilar tip": [2], "other posterior": [1], "MCA": [9, 10]}
    assert all(values[0] in names for values in shown.values())
    print(f"| kind | extent, mm | aneurysms | outside | near | {' | '.join(shown)} |")
    print("|---|---|---:|---:|---:|" + "---:|" * len(shown))
    made = [case for case in cases if case.arteries]
    for kind in dict.fromkeys(case.kind for case in made):
        heads = [(case, find_head(case.volume, frame_of(case.volume))) for case in made if case.kind == kind]
        for extent in EXTENTS:
            points = np.zeros(2)
            vessels = {name: np.zeros(2) for name in shown}
            for case, head in heads:
                faces = _faces(case.volume, head, extent)
                points += lost(case.lesions_mm, faces)
                for name, values in shown.items():
                    of_class = np.concatenate([case.arteries[value] for value in values])
                    vessels[name] += lost(of_class, faces)[0], len(of_class)
            total = max(sum(len(case.lesions_mm) for case, _ in heads), 1)
            shares = " | ".join(f"{100 * out / max(n, 1):.1f}" for out, n in vessels.values())
            size = "×".join(f"{mm:g}" for mm in extent)
            outside, near = 100 * points / total
            print(f"| {kind} | {size} | {total} | {outside:.1f} | {near:.1f} | {shares} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of real DICOM series")
    parser.add_argument("--count", type=int, default=12, help="phantoms of each kind")
    parser.add_argument("--spacing", type=float, default=2.0, help="voxels of the phantoms, mm")
    options = parser.parse_args()
    cases = [*phantoms(options.count, options.spacing), *real_heads(options.folder)]
    head_table(cases)
    extent_table(cases)


if __name__ == "__main__":
    main()
