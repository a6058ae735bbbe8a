"""Does a model see aneurysms, or what else a phantom with one has? The same heads, with their domes and without.

    python benchmarks/controls.py [--model starter] [--count 120] [--seed 77] [--workers 2]

Renders varied phantoms of CTA and MRA twice: as they are, and with everything drawn alike but the domes, which are left
out of the paint; both keep the labels of the first. Prepares and scores them by the model's own settings. A model that
sees aneurysms tells the first apart, and must be at chance on the second: whatever it has there beyond 0.5 it has from
what comes with an aneurysm. Intervals are of 95 % over patients. Training's own control is `train --control shuffle`.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from aneurysm_ray.data.preprocess import prepare_series
from aneurysm_ray.data.volume import Volume
from aneurysm_ray.learning import bootstrap, ensemble, export
from aneurysm_ray.phantom import series
from aneurysm_ray.phantom.options import PhantomOptions, SeriesPlan, plan_series

MODALITIES = ("CTA", "MRA")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("starter"), help="a run, an exported model, or starter")
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    heads = PhantomOptions(
        count=options.count, seed=options.seed, modalities=MODALITIES, varied=True, min_mm=3, max_mm=18
    )
    plans = plan_series(heads)
    # Threads of torch do not outlive a fork.
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        scored = list(pool.map(partial(scores, options.model, heads), plans))
    print("| modality | series, with an aneurysm | AUC, domes drawn | AUC, domes left out |\n|---|---|---|---|")
    for modality in (*MODALITIES, "all"):
        rows = np.array([row for plan, row in zip(plans, scored, strict=True) if modality in (plan.modality, "all")])
        truth = rows[:, 0]
        cells = [str(auc(truth, rows[:, column])) for column in (1, 2)]
        print(f"| {modality} | {len(truth)}, {int(truth.sum())} | {' | '.join(cells)} |")


def auc(truth: NDArray[np.float64], given: NDArray[np.float64]) -> bootstrap.Score:
    counts = bootstrap.patient_counts(np.arange(len(truth)))
    drawn = bootstrap.weighted_aucs(truth[:, None], given[:, None], counts)[0]
    return bootstrap.Score(float(roc_auc_score(truth, given)), *bootstrap.interval(drawn))


def scores(model: Path, heads: PhantomOptions, plan: SeriesPlan) -> tuple[float, float, float]:
    """Return whether a head has an aneurysm, and its probability with domes and without."""
    drawn = series.make_series(heads, plan)
    paint = series.paint_arteries
    with mock.patch.object(
        series, "paint_arteries", lambda grid, pose, tubes, _, edge: paint(grid, pose, tubes, [], edge)
    ):
        left_out = series.make_series(heads, plan)
    assert drawn.lesions == left_out.lesions and not left_out.aneurysms.any()
    return float(len(drawn.lesions) > 0), probability(model, drawn), probability(model, left_out)


def probability(model: Path, rendered: series.Rendered) -> float:
    trained = loaded(model)
    affine, voxels = rendered.grid.affine, rendered.voxels
    origins = np.arange(len(voxels))[:, None] * affine[:3, 0] + affine[:3, 3]
    volume = Volume(voxels, affine, origins, "CT" if rendered.plan.modality == "CTA" else "MR", "1.2")
    prepared = prepare_series(volume, trained.config.volume, modality=rendered.plan.modality)
    return float(ensemble.score_volume(trained.models, prepared, trained.config, "cpu").probabilities[-1])


@cache
def loaded(model: Path) -> export.TrainedModels:
    torch.set_num_threads(1)
    return export.load(model)


if __name__ == "__main__":
    main()
