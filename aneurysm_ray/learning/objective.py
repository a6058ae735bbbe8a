"""What a network is trained for: targets of a batch, and the weighted sum of losses against them.

A pooled network learns the 14 labels of whole patches. A grid network learns where lesions are, on which vessel, and
what is vessel at all; `stage = "vessels"` trains it on the last alone, for `init` to carry into detection.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aneurysm_ray.config import Config
from aneurysm_ray.errors import RequestError
from aneurysm_ray.labels import LOCATIONS, PRESENT_INDEX
from aneurysm_ray.learning import losses, targets
from aneurysm_ray.learning.cases import Case
from aneurysm_ray.learning.models import Answer, Network
from aneurysm_ray.learning.patches import Batch, cut, no_voxels
from aneurysm_ray.learning.sampler import Plan

PRIOR_PATCHES = 2048
"""Patches of the first epoch's plan from which the frequency of positive targets is estimated."""


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights of positive targets."""

    patch: Tensor
    """(14,), of whole patches."""
    cell: Tensor
    """Of a lesion's cells."""

    def to(self, device: torch.device) -> "Weights":
        return Weights(self.patch.to(device), self.cell.to(device))


def teachable(cases: Sequence[Case], config: Config) -> tuple[Case, ...]:
    """Return the cases that the stage can learn from. Raises RequestError when there are none."""
    if config.stage == "vessels":
        kept = tuple(case for case in cases if case.has_vessels)
        what, cure = (
            "mask of its vessels",
            "prepare the set with segmentations/ beside its train.csv and volume.masks on",
        )
    else:
        kept = tuple(case for case in cases if not np.isnan(case.targets).all())
        what, cure = "known label", "train on volumes prepared with a train.csv"
    if not kept:
        raise RequestError(f"no training series has a {what}; {cure}")
    return kept


def learns_vessels(config: Config, cases: Sequence[Case]) -> bool:
    """Return whether a network is taught what is vessel, by masks."""
    asked = config.model.head == "grid" and (config.stage == "vessels" or config.loss.vessel_weight > 0)
    return asked and any(case.has_vessels for case in cases)


def needs_masks(config: Config, cases: Sequence[Case]) -> bool:
    """Return whether patches must be cut with their masks of vessels and domes."""
    learns_domes = config.model.head == "grid" and config.stage == "lesions" and any(case.has_domes for case in cases)
    return learns_domes or learns_vessels(config, cases)


def freeze_unasked(network: Network, config: Config, cases: Sequence[Case]) -> None:
    """Train no head that no loss asks: weight decay alone would change it, and data-parallel workers wait for all."""
    if config.stage == "vessels":
        network.head.requires_grad_(False)
    if network.vessel_head is not None and not learns_vessels(config, cases):
        network.vessel_head.requires_grad_(False)


def wanted(batch: Batch, config: Config, network: Network) -> list[Tensor]:
    """Return targets: of whole patches (B, 14); of a grid's cells too, (B, 14, z, y, x), and with masks its vessels.

    Vessels are (B, 1, z, y, x).
    """
    patch = config.patch
    of_patch = targets.pooled(
        batch.points_BP3, batch.labels_BP, batch.base_BL, batch.cut_B32, batch.spacing_B3, patch.size, patch.border_mm
    )
    if network.pooled:
        return [of_patch]
    z, y, x = (length // network.stride for length in patch.size)
    cells, near = targets.cells(
        *(batch.points_BP3, batch.labels_BP, batch.radii_mm_BP, batch.base_BL, batch.spacing_B3),
        *((z, y, x), network.stride, patch.radius_mm, patch.ignore_mm, batch.domes_BZYX),
    )
    if batch.vessels_BZYX is None:
        return [of_patch, cells]
    return [of_patch, cells, targets.vessels(batch.vessels_BZYX, near, network.stride)]


def patch_losses(answer: Answer, goals: Sequence[Tensor], config: Config, network: Network, weights: Weights) -> Tensor:
    """Return (B,) losses of an answer against the targets of `wanted`."""
    loss = config.loss
    if network.pooled:
        return losses.patch_losses(answer.cells.mean((2, 3, 4)), goals[0], loss, weights.patch)
    of_patch, cells, *vessels = goals
    total = torch.zeros(len(answer.cells), device=answer.cells.device)
    if config.stage == "lesions":
        lesion, of_lesion = answer.cells[:, PRESENT_INDEX], cells[:, PRESENT_INDEX]
        total = losses.cell_losses(lesion, of_lesion, loss, weights.cell)
        if loss.tversky_weight:
            total = total + loss.tversky_weight * losses.tversky_losses(lesion, of_lesion)
        if loss.location_weight:
            places = slice(len(LOCATIONS))
            total = total + loss.location_weight * losses.location_losses(answer.cells[:, places], cells[:, places])
        if loss.series_weight:
            present = slice(PRESENT_INDEX, PRESENT_INDEX + 1)
            pooled = losses.pool_logits(answer.cells[:, present], config.inference.top_k)
            of_series = losses.cell_losses(pooled, of_patch[:, present], loss, torch.ones_like(weights.cell))
            total = total + loss.series_weight * of_series
    if vessels and answer.vessels is not None:
        weight = 1.0 if config.stage == "vessels" else loss.vessel_weight
        total = total + weight * losses.vessel_losses(answer.vessels, vessels[0])
    return total


def positive_frequencies(cases: Sequence[Case], plan: Plan, config: Config, network: Network) -> tuple[Tensor, Tensor]:
    """Return each label's share of positives among the known targets of a plan: of whole patches, and of cells.

    Both are (14,), from geometry alone: no voxel is read. A pooled network's are the same twice.
    """
    counts = torch.zeros(2, 2, 14, dtype=torch.float64)
    looked_at = min(len(plan), PRIOR_PATCHES)
    for chosen in np.array_split(np.arange(looked_at), -(-looked_at // 64)):
        batch = cut(cases, plan, chosen, config.patch.size, no_voxels)
        goals = wanted(batch, config, network)
        for i, goal in enumerate((goals[0], goals[-1])):
            flat = goal.transpose(0, 1).flatten(1)
            counts[i, 0] += torch.nansum(flat, 1)
            counts[i, 1] += (~torch.isnan(flat)).sum(1)
    share = (counts[:, 0] / counts[:, 1].clamp(min=1)).float()
    return share[0], share[1]


def positive_weights(config: Config, of_patches_L: Tensor, of_cells_L: Tensor, network: Network) -> Weights:
    """Return the weights of positive targets, given their frequencies.

    Half of the patches are positive by the sampler's choice; only cells are rare and need `positive_weight`.
    """
    plain = config.loss if network.pooled else config.loss.model_copy(update={"positive_weight": 1.0})
    cell = losses.positive_weights(config.loss, of_cells_L)[PRESENT_INDEX]
    return Weights(losses.positive_weights(plain, of_patches_L), cell)
