"""Can an aneurysm of the phantom be told without looking for it? Four trivial classifiers on 200 synthetic series.

    python benchmarks/phantom_trivial.py [--count 200] [--spacing-mm 1.5] [--workers 2]

Each classifier is one number per series; its AUC for Aneurysm Present counts in whichever direction is better, over all
series as they are and with the number ranked within its modality. Everything should stay below 0.65.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from aneurysm_ray.phantom.options import PhantomOptions, SeriesPlan, plan_series
from aneurysm_ray.phantom.series import make_series


def features(options: PhantomOptions, plan: SeriesPlan) -> dict[str, float | str | bool]:
    """Return a series' four numbers; bright is contrast without bone in CT, twice the head's median in MR."""
    series = make_series(options, plan)
    voxels, voxel_mm3 = series.voxels.astype(np.float32), float(np.prod(series.grid.spacing_mm))
    if plan.modality == "CTA":
        bright = (voxels > 150) & (voxels < 700)
    else:
        head = voxels[voxels > 0.1 * np.percentile(voxels, 99)]
        middle = np.median(head)
        bright = voxels < 0.3 * middle if plan.modality == "MRI T2" else voxels > 2 * middle
        if plan.modality == "MRI T2":
            # Flow voids are dark: look for them where the head is.
            bright &= ndimage.uniform_filter(voxels, 9) > 0.7 * middle
    return {
        "modality": plan.modality,
        "present": bool(series.lesions),
        "mean": float(voxels.mean()),
        "maximum": float(voxels.max()),
        "bright volume": float(bright.sum()) * voxel_mm3,
        "largest bright blob": _largest(bright) * voxel_mm3,
        "thickest bright blob": float(
            ndimage.distance_transform_edt(_inner(bright), sampling=series.grid.spacing_mm).max()
        ),
    }


def _largest(mask: NDArray[np.bool_]) -> float:
    parts, count = ndimage.label(mask)
    return float(np.bincount(parts.ravel())[1:].max()) if count else 0.0


def _inner(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The middle of the image, where the circle of Willis is and the scalp is not."""
    inner = np.zeros_like(mask)
    z, y, x = (slice(n // 5, n - n // 5) for n in mask.shape)
    inner[z, y, x] = mask[z, y, x]
    return inner


def main() -> None:
    """Print the table of AUCs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spacing-mm", type=float, default=1.5)
    parser.add_argument("--workers", type=int, default=2)
    words = parser.parse_args()
    options = PhantomOptions(count=words.count, seed=words.seed, spacing_mm=words.spacing_mm)
    with ProcessPoolExecutor(words.workers) as pool:
        table = pd.DataFrame(list(pool.map(partial(features, options), plan_series(options), chunksize=4)))
    print(
        f"{len(table)} series, {int(table.present.sum())} with an aneurysm, {words.spacing_mm} mm, seed {words.seed}\n"
    )
    print("| classifier | AUC over all | AUC within modality |\n|---|---|---|")
    for name in [column for column in table.columns if column not in ("modality", "present")]:
        ranks = table.groupby("modality")[name].rank(pct=True)
        aucs = [roc_auc_score(table.present, numbers) for numbers in (table[name], ranks)]
        print(f"| {name} | " + " | ".join(f"{max(auc, 1 - auc):.3f}" for auc in aucs) + " |")


if __name__ == "__main__":
    main()
