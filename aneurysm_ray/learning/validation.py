"""Scoring many series: the tables and metrics of a validation, and the places in negative series that fooled a
model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from aneurysm_ray.config import Config
from aneurysm_ray.data.masks import UNKNOWN
from aneurysm_ray.data.store import PreparedVolume
from aneurysm_ray.labels import LABELS, PRESENT_INDEX
from aneurysm_ray.learning import metrics, targets
from aneurysm_ray.learning.cache import VolumeCache
from aneurysm_ray.learning.cases import Case
from aneurysm_ray.learning.ensemble import HeatMap, SeriesScore, score_volume
from aneurysm_ray.learning.models import Network
from aneurysm_ray.learning.patches import prefetch
from aneurysm_ray.learning.sampler import HardNegative

HARD_PER_SERIES, HARD_AWAY_MM = 12, 10.0
"""Places that a search for hard negatives keeps of each series, and how far beyond an aneurysm's radius they lie."""


@dataclass(frozen=True, eq=False)
class Validation:
    """Predictions for all validation series, and what they are worth."""

    metrics: dict[str, float]
    predictions: pd.DataFrame
    candidates: pd.DataFrame
    heatmaps: dict[str, HeatMap]


def score_cases(
    networks: Sequence[Network], cases: Sequence[Case], cache: VolumeCache, config: Config, device: torch.device
) -> Iterator[tuple[str, SeriesScore]]:
    """Score series one after the other, the next ones read meanwhile; yield (series UID, score).

    Where the networks know vessels, the score says how far they agree with a mask, in place of where they are.
    """
    knows_vessels = bool(networks[0].knows_vessels)

    def read(case: Case) -> PreparedVolume:
        return _prepared(case, cache, masks=knows_vessels)

    for prepared in prefetch(read, cases, min(1, config.feed.threads), ahead=2):
        score = score_volume(networks, prepared, config, device)
        dice = float("nan")
        if score.vessels is not None and prepared.vessels is not None:
            dice = vessel_dice(score.vessels, prepared.vessels, networks[0].stride)
        yield prepared.series_uid, replace(score, vessels=None, dice=dice)


def quick(config: Config) -> Config:
    """Return the settings with which a volume is scored fastest: every voxel in one window, once."""
    return config.model_copy(update={"inference": config.inference.model_copy(update={"flip": False, "overlap": 0.0})})


def due(config: Config, epoch: int) -> bool:
    """Return whether a fold is validated after an epoch."""
    return in_full(config, epoch) or (epoch + 1) % config.validation.every == 0


def in_full(config: Config, epoch: int) -> bool:
    """Return whether the validation after an epoch is of all series, scored as prediction scores them."""
    every = config.validation.full_every
    return epoch == config.optim.epochs - 1 or (every > 0 and (epoch + 1) % every == 0)


def part(cases: Sequence[Case], count: int, seed: tuple[int, ...]) -> list[Case]:
    """Return `count` of the cases in their order, every modality with and without aneurysm by its share to within one.

    0 or more than there are: all. `seed` is (seed, fold), so that all epochs and workers look at the same ones.
    """
    if not 0 < count < len(cases):
        return list(cases)
    shuffled = np.random.default_rng((*seed, 0x56)).permutation(len(cases))
    stratum = [(cases[i].modality, str(cases[i].targets[PRESENT_INDEX])) for i in shuffled]
    in_strata = shuffled[sorted(range(len(cases)), key=lambda k: stratum[k])]
    chosen = np.sort(in_strata[((np.arange(count) + 0.5) * len(cases) / count).astype(int)])
    return [cases[i] for i in chosen]


def vessel_dice(probabilities: NDArray[np.float16], mask: NDArray[np.uint8], stride: int) -> float:
    """Return the Dice overlap of cells above 1/2 with a mask (Z, Y, X) brought to their grid; NaN where both are empty.

    Cells that the mask does not know, and those past the volume's end, do not count.
    """
    padded = np.full([n * stride for n in probabilities.shape], UNKNOWN, np.uint8)
    z, y, x = (min(a, b) for a, b in zip(mask.shape, padded.shape, strict=True))
    padded[:z, :y, :x] = mask[:z, :y, :x]
    nowhere = torch.zeros(1, *probabilities.shape, dtype=torch.bool)
    wanted = targets.vessels(torch.from_numpy(padded)[None], nowhere, stride)[0, 0].numpy()
    found, known = probabilities > 0.5, ~np.isnan(wanted)
    size = (found & known).sum() + (wanted == 1).sum()
    return float(2 * (found & (wanted == 1)).sum() / size) if size else float("nan")


def validate(cases: Sequence[Case], scores: Mapping[str, SeriesScore], fold: int, stage: str) -> Validation:
    """Gather scores by series UID into tables, in the order of the cases, and compute the metrics.

    val/loss is the mean binary cross-entropy of the series' probabilities over known targets, val/dice the mean overlap
    of vessels with masks. In the stage "vessels", which learns no lesion, the overlap is the score: labels are left
    unknown and candidates out, so that nothing judges what was never taught.
    """
    wanted = np.array([case.targets for case in cases], np.float64).reshape(-1, len(LABELS))
    if stage == "vessels":
        wanted[:] = np.nan
    probabilities = np.array([scores[case.series_uid].probabilities for case in cases]).reshape(-1, len(LABELS))
    columns = {
        "series_uid": [case.series_uid for case in cases],
        "patient": [case.patient for case in cases],
        "fold": [fold] * len(cases),
        "modality": [case.modality for case in cases],
        "plane": [case.plane for case in cases],
        **{label: probabilities[:, i] for i, label in enumerate(LABELS)},
        **{f"target/{label}": wanted[:, i] for i, label in enumerate(LABELS)},
    }
    candidates = [
        scores[case.series_uid].candidates.assign(series_uid=case.series_uid) for case in cases if stage == "lesions"
    ]
    order = ["series_uid", "x_mm", "y_mm", "z_mm", "probability", "location"]
    aucs = metrics.label_aucs(wanted, probabilities)
    dices = [score.dice for score in scores.values() if not np.isnan(score.dice)]
    dice = float(np.mean(dices)) if dices else float("nan")
    return Validation(
        metrics={
            "val/loss": _log_loss(wanted, probabilities),
            "val/score": dice if stage == "vessels" else float(metrics.combine(aucs)),
            "val/dice": dice,
            "val/auc_present": float(aucs[PRESENT_INDEX]),
            **{f"val/auc/{label}": float(value) for label, value in zip(LABELS, aucs, strict=True)},
        },
        predictions=pd.DataFrame(columns),
        candidates=pd.concat(candidates, ignore_index=True)[order] if candidates else pd.DataFrame(columns=order),
        heatmaps={case.series_uid: scores[case.series_uid].heatmap for case in cases},
    )


def find_hard_negatives(
    networks: Sequence[Network],
    cases: Sequence[Case],
    cache: VolumeCache,
    config: Config,
    device: torch.device,
    seed: tuple[int, ...],
    part: tuple[int, int],
    tell: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[HardNegative]:
    """Return the most probable candidates of some series that are no aneurysms.

    Of positive series too, away from their points, where all their aneurysms have one. `part` is (rank, world size): a
    worker searches its share of the series that `seed` draws.
    """
    known = [case for case in cases if not np.isnan(case.base[PRESENT_INDEX])]
    rng = np.random.default_rng((*seed, 0x4A))
    drawn = [known[i] for i in rng.permutation(len(known))[: config.sampler.hard_negative_series]][part[0] :: part[1]]
    by_uid = {case.series_uid: case for case in drawn}
    found: list[HardNegative] = []
    for done, (uid, score) in enumerate(score_cases(networks, drawn, cache, quick(config), device), 1):
        tell("search for hard negatives", done, len(drawn))
        case, to_voxel = by_uid[uid], np.linalg.inv(by_uid[uid].affine)
        reach_mm = HARD_AWAY_MM + np.nan_to_num(case.point_radii_mm)
        places = score.candidates[["x_mm", "y_mm", "z_mm", "probability"]].to_numpy(np.float64)
        voxels = np.column_stack([places[:, :3], np.ones(len(places))]) @ to_voxel.T
        far = [
            (*voxel, probability)
            for voxel, probability in zip(voxels[:, :3], places[:, 3], strict=True)
            if (np.linalg.norm((case.points - voxel) * case.spacing_mm, axis=1) > reach_mm).all()
        ]
        found.extend(HardNegative(uid, *map(float, place)) for place in far[:HARD_PER_SERIES])
    return found


def _prepared(case: Case, cache: VolumeCache, *, masks: bool) -> PreparedVolume:
    whole = cache.patch(case, np.zeros(3, np.int64), case.shape, masks=masks)
    return PreparedVolume(
        series_uid=case.series_uid,
        patient=case.patient,
        modality=case.modality,
        plane=case.plane,
        voxels=whole.voxels,
        affine=case.affine,
        targets=case.targets,
        points=(),  # nothing that scores may know them
        quality=(),
        source_digest="",
        vessels=whole.vessels,
    )


def _log_loss(targets: NDArray[np.float64], probabilities: NDArray[np.float64]) -> float:
    known = ~np.isnan(targets)
    if not known.any():
        return float("nan")
    p, t = np.clip(probabilities[known], 1e-7, 1 - 1e-7), targets[known]
    return float(-(t * np.log(p) + (1 - t) * np.log(1 - p)).mean())
