"""Losses of whole patches, of a grid's cells, and of its vessels; unknown targets left out.

Shapes: logits and targets (B, channels, ...), a target in [0, 1] or NaN where it is unknown. Every function returns the
loss of each patch, (B,), and the loss of a batch is the plain mean over its patches. That mean, and so the gradient, is
the same however a batch is split over workers and micro-batches; a divisor that counts the known targets of a batch
would not give that.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from aneurysm_ray.config import LossConfig
from aneurysm_ray.labels import LABELS, LOCATIONS, PRESENT_INDEX

FALSE_ALARMS, MISSES = 0.3, 0.7
"""Weights of the Tversky loss (Salehi et al. 2017): a dome is a thousandth of a patch and must not be missed."""
NEAR = 1e-4
"""Least distance of a probability from its target that focal loss tells apart: the slope of a power below 1 is infinite
at 0, which float32 reaches from a logit of 17 on, and infinity times a loss of 0 is not a number."""
VESSEL_WEIGHT = 3.0
"""Of a vessel's cells in the cross-entropy of vessels."""


def label_weights(present_weight: float, device: torch.device | str = "cpu") -> Tensor:
    """Return (14,) weights that sum to 1: the mean of the locations against `present_weight` times the last label."""
    weights = torch.full((len(LABELS),), 1 / len(LOCATIONS), device=device)
    weights[PRESENT_INDEX] = present_weight
    return weights / weights.sum()


def positive_weights(config: LossConfig, frequency_L: Tensor) -> Tensor:
    """Return (14,) weights of positive targets, given each label's share of positives among the training targets."""
    weights = torch.full((len(LABELS),), config.positive_weight)
    if config.class_weights:
        frequency = frequency_L.clamp(1e-6, 1 - 1e-6)
        weights = weights * ((1 - frequency) / frequency).clamp(1.0, config.max_class_weight)
    return weights


def patch_losses(logits_BL: Tensor, targets_BL: Tensor, config: LossConfig, weights_L: Tensor) -> Tensor:
    """Return (B,) losses of whole patches' 14 labels. `weights_L` are those of `positive_weights`."""
    loss, known, hard = _cross_entropy(logits_BL, targets_BL, config)
    loss = loss * (1 + hard * (weights_L - 1)) * label_weights(config.present_weight, loss.device) * known
    return loss.sum(1)


def cell_losses(logits: Tensor, targets: Tensor, config: LossConfig, weight: Tensor) -> Tensor:
    """Return (B,) cross-entropies, focal if asked, of one channel, (B, ...), mean over its cells.

    `weight` is that of positive cells.
    """
    loss, known, hard = _cross_entropy(logits, targets, config)
    return (loss * (1 + hard * (weight - 1)) * known).flatten(1).mean(1)


def tversky_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return (B,) Tversky losses of one channel, (B, ...), 0 of patches without a positive cell."""
    known = ~torch.isnan(targets)
    return _overlap_losses(logits, torch.where(known, targets, 0.0), known, FALSE_ALARMS, MISSES)


def location_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return (B,) cross-entropies over the 13 locations, (B, 13, z, y, x), mean over the cells where one is known."""
    known = ~torch.isnan(targets[:, :1])
    wanted = torch.where(known, targets, 0.0)
    # Two aneurysms may meet in a cell: each location is then right by half.
    wanted = wanted / wanted.sum(1, keepdim=True).clamp(min=1.0)
    loss = -(wanted * torch.log_softmax(logits.float(), 1)).sum(1)
    return loss.flatten(1).sum(1) / known.flatten(1).sum(1).clamp(min=1)


def vessel_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return (B,) losses of a grid's vessel channel, (B, 1, z, y, x): cross-entropy and, where there is one, Dice's."""
    known = ~torch.isnan(targets)
    hard = torch.where(known, targets, 0.0)
    loss = F.binary_cross_entropy_with_logits(logits.float(), hard, reduction="none")
    loss = (loss * (1 + hard * (VESSEL_WEIGHT - 1)) * known).flatten(1).mean(1)
    return loss + _overlap_losses(logits, hard, known, 0.5, 0.5)


def pool_logits(grid: Tensor, top_k: int) -> Tensor:
    """Return (B, C): the mean of the `top_k` highest logits of each channel's cells."""
    flat = grid.flatten(2)
    return flat.topk(min(top_k, flat.shape[2]), dim=2).values.mean(2)


def _cross_entropy(logits: Tensor, targets: Tensor, config: LossConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Return binary cross-entropies, focal if asked, of all targets; which of them are known; and those, else 0."""
    logits = logits.float()
    known = ~torch.isnan(targets)
    hard = torch.where(known, targets, 0.0)
    loss = F.binary_cross_entropy_with_logits(logits, hard, reduction="none")
    if config.name == "focal":
        # |t - p| is 1 - p_t of Lin et al. 2017 for t of 0 or 1, and Li et al. 2020's form for mixed targets.
        loss = loss * (hard - torch.sigmoid(logits)).abs().clamp_min(NEAR).pow(config.focal_gamma)
        if config.focal_alpha >= 0:
            loss = loss * (config.focal_alpha * hard + (1 - config.focal_alpha) * (1 - hard))
    return loss, known, hard


def _overlap_losses(logits: Tensor, hard: Tensor, known: Tensor, false_alarms: float, misses: float) -> Tensor:
    """Return (B,) Tversky losses over known cells, 0 of patches without a positive one; halves give Dice's."""
    p, t = (torch.sigmoid(logits.float()) * known).flatten(1), hard.flatten(1)
    hit = (p * t).sum(1)
    overlap = (hit + 1) / (hit + false_alarms * (p * (1 - t)).sum(1) + misses * ((1 - p) * t).sum(1) + 1)
    return (1 - overlap) * (t.sum(1) > 0)
