"""Does one value mean one tissue in every scan, and which window keeps vessel apart from bone and brain in 8 bits?

    python benchmarks/intensity.py [--count 8]

On phantoms: (a) MR, raw values of brain and of vessel and what a network sees of them, for the whole scan, 30 % of its
slices and the scan padded with air, with and without the phantom's own field of the coil; (b) how much of the vessels
is clipped by the upper end of the MR window; (c) windows for CT.
"""

import argparse
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from aneurysm_ray.config import VolumeConfig
from aneurysm_ray.data.region import find_head
from aneurysm_ray.data.resample import frame_of
from aneurysm_ray.data.volume import Volume
from aneurysm_ray.data.window import Window, find_window, to_uint8
from aneurysm_ray.phantom import render
from aneurysm_ray.phantom.options import PhantomOptions, SeriesPlan
from aneurysm_ray.phantom.series import Rendered, make_series

SEED, SPACING_MM = 23, 1.2
CT_WINDOWS = [(0, 400), (0, 600), (-100, 500), (-100, 700), (-200, 1000), (-1000, 1000)]
HIGHS = (2.5, 3.0, 4.0, 5.0, 6.0)
NEAR_MM = 8
SHARE = 0.3
FROM = {"top": 1 - SHARE, "middle": 0.5 - SHARE / 2, "bottom": 0.0}
"""Slabs: where each begins, as a share of the slices, which rise from the feet."""


def make(modality: str, index: int) -> Rendered:
    options = PhantomOptions(count=1, seed=SEED, modalities=(modality,), spacing_mm=SPACING_MM)
    return make_series(options, SeriesPlan(index, modality, "axial", 2, False, True, True, 60))


class _Still:
    """numpy without waves, by which the phantom's scanner lets its signal come and go along the slices."""

    def __getattr__(self, name: str) -> Any:
        return np.zeros_like if name == "sin" else getattr(np, name)


def without_coil(modality: str, index: int) -> Rendered:
    """Make the same series by a scanner that is equally sensitive everywhere."""
    flat = mock.patch.object(render, "_coil", lambda rng, shape, *_: np.ones(shape, np.float32))
    with flat, mock.patch.object(render, "np", _Still()):
        return make(modality, index)


def to_volume(voxels: NDArray[np.int16], affine: NDArray[np.float64], modality: str) -> Volume:
    origins = np.arange(len(voxels))[:, None] * affine[:3, 0] + affine[:3, 3]
    return Volume(voxels, affine, origins, "CT" if modality == "CTA" else "MR", "1.2")


def slab(volume: Volume, first: float) -> Volume:
    n = len(volume.voxels)
    keep = slice(round(first * n), round((first + SHARE) * n))
    affine = volume.affine.copy()
    affine[:3, 3] = volume.origins_mm[keep][0]
    return replace(volume, voxels=volume.voxels[keep], affine=affine, origins_mm=volume.origins_mm[keep])


def padded(volume: Volume) -> Volume:
    by = [n // 2 for n in volume.shape]
    affine = volume.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.array(by, float)
    return to_volume(np.pad(volume.voxels, [(n, n) for n in by]), affine, "MR")


def window_of(volume: Volume) -> Window:
    return find_window(volume.modality, find_head(volume, frame_of(volume)), VolumeConfig())


def seen_by_coverage(rendered: Rendered, modality: str) -> tuple[list[float], list[float]]:
    """Return raw brain and vessel and what a network sees of them; and how far each coverage moves that, in %."""
    volume = to_volume(rendered.voxels, rendered.grid.affine, modality)
    whole = window_of(volume)
    brain = (whole.high - whole.low) / VolumeConfig().window_medians[1]
    vessel = float(np.median(rendered.voxels[rendered.vessels > 0]))
    seen = [float(to_uint8(np.array([value], np.float32), whole)[0]) for value in (brain, vessel)]
    others = [*(slab(volume, first) for first in FROM.values()), padded(volume)]
    return [brain, vessel, *seen], [100 * np.log(whole.high / window_of(other).high) for other in others]


def mr_table(count: int) -> None:
    print("\n(a) MR: raw values, and what a network sees of the same voxels (0-255); median and worst change in %,")
    print("of its logarithm; what the coil does is one scan's change less the other's")
    print(f"| modality, coil | raw brain, vessel | whole | {' | '.join(f'{place} 30 %' for place in FROM)} | padded |")
    print("|---|---|---|" + "---|" * (len(FROM) + 1))
    for modality in ("MRA", "MRI T2", "MRI T1post"):
        made = {
            coil: [seen_by_coverage(making(modality, index), modality) for index in range(count)]
            for coil, making in (("uneven", make), ("even", without_coil))
        }
        changes = {coil: np.array([change for _, change in rows]) for coil, rows in made.items()}
        changes["what the coil does"] = changes["uneven"] - changes["even"]
        for coil, change in changes.items():
            cells = ["", ""]
            if coil in made:
                raw, seen = np.split(np.median([levels for levels, _ in made[coil]], axis=0), 2)
                cells = [" and ".join(f"{value:.0f}" for value in pair) for pair in (raw, seen)]
            middle, worst = np.median(np.abs(change), axis=0), np.abs(change).max(0)
            cells += [f"{m:.1f}, {w:.1f}" for m, w in zip(middle, worst, strict=True)]
            print(f"| {modality}, {coil} | {' | '.join(cells)} |")


def span_table(count: int) -> None:
    print("\n(b) MR: share of arterial lumen above the window's upper end, in %, and the brain's level of 255")
    print(f"| modality | {' | '.join(f'{high:g} medians' for high in HIGHS)} |")
    print("|---|" + "---:|" * len(HIGHS))
    for modality in ("MRA", "MRI T2", "MRI T1post"):
        shares = []
        for index in range(count):
            rendered = make(modality, index)
            window = window_of(to_volume(rendered.voxels, rendered.grid.affine, modality))
            lumen = rendered.voxels[(rendered.vessels > 0) | (rendered.aneurysms > 0)] * 5 / window.high
            shares.append([100 * float((lumen > high).mean()) for high in HIGHS])
        print(f"| {modality} | {' | '.join(f'{share:.2f}' for share in np.mean(shares, axis=0))} |")
    print(f"| brain | {' | '.join(f'{255 / high:.0f}' for high in HIGHS)} |")


def ct_table(count: int) -> None:
    from scipy.ndimage import distance_transform_edt

    print(f"\n(c) CT in 8 bits, means over {count} CTA; bone is what lies within {NEAR_MM} mm of a vessel above 350 HU")
    print("| window, HU | HU a step | lumen clipped, % | AUC against brain | AUC against bone | SD of brain, steps |")
    print("|---|---:|---:|---:|---:|---:|")
    rows: dict[tuple[int, int], list[list[float]]] = {window: [] for window in CT_WINDOWS}
    rng = np.random.default_rng(0)
    for index in range(count):
        rendered = make("CTA", index)
        vessel = rendered.vessels > 0
        away = distance_transform_edt(~vessel, sampling=rendered.grid.spacing_mm)
        outside = (away > 2) & (rendered.aneurysms == 0)
        bone = outside & (away < NEAR_MM) & (rendered.voxels > 350)
        brain = outside & (rendered.voxels > 0) & (rendered.voxels < 100)
        parts = [rng.choice(rendered.voxels[where], 4000) for where in (vessel, brain, bone)]
        for window in CT_WINDOWS:
            lumen, grey, hard = (to_uint8(part, Window(*window)).astype(float) for part in parts)
            truth = np.r_[np.ones(4000), np.zeros(4000)]
            against_brain = roc_auc_score(truth, np.r_[lumen, grey])
            # Bone is brighter than vessels: the AUC of darkness.
            against_bone = roc_auc_score(truth, -np.r_[lumen, hard])
            step = (window[1] - window[0]) / 255
            rows[window].append([step, 100 * (lumen == 255).mean(), against_brain, against_bone, grey.std()])
    for window, values in rows.items():
        step, clipped, brain_auc, bone_auc, deviation = np.mean(values, axis=0)
        name = f"{window[0]} to {window[1]}"
        print(f"| {name} | {step:.1f} | {clipped:.1f} | {brain_auc:.4f} | {bone_auc:.4f} | {deviation:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=8, help="phantoms of each modality")
    options = parser.parse_args()
    mr_table(options.count)
    span_table(options.count)
    ct_table(options.count)


if __name__ == "__main__":
    main()
