"""Binary cross-entropy and focal loss over 14 labels, unknown targets left out.

Shapes: logits and targets (B, 14, ...), a target in [0, 1] or NaN where it is unknown. The loss of a patch is a sum
over its known targets divided by the number of all its cells, so the loss of a batch is the plain mean over its
patches. That mean, and so the gradient, is the same however a batch is split over workers and micro-batches; a divisor
that counts the known targets would not give that.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from aneurysm_ray.config import LossConfig
from aneurysm_ray.labels import LABELS, LOCATIONS, PRESENT_INDEX

NEAR = 1e-4
"""Least distance of a probability from its target that focal loss tells apart: the slope of a power below 1 is infinite
at 0, which float32 reaches from a logit of 17 on, and infinity times a loss of 0 is not a number."""


def label_weights(present_weight: float) -> Tensor:
    """Return (14,) weights that sum to 1: the mean of the locations against `present_weight` times the last label."""
    weights = torch.full((len(LABELS),), 1 / len(LOCATIONS))
    weights[PRESENT_INDEX] = present_weight
    return weights / weights.sum()


def positive_weights(config: LossConfig, frequency_L: Tensor) -> Tensor:
    """Return (14,) weights of positive targets, given each label's share of positives among the training targets."""
    weights = torch.full((len(LABELS),), config.positive_weight)
    if config.class_weights:
        frequency = frequency_L.clamp(1e-6, 1 - 1e-6)
        weights = weights * ((1 - frequency) / frequency).clamp(1.0, config.max_class_weight)
    return weights


def patch_losses(logits: Tensor, targets: Tensor, config: LossConfig, weights_L: Tensor) -> Tensor:
    """Return (B,) losses of patches. `weights_L` are the weights of positive targets, of `positive_weights`."""
    logits = logits.float()
    known = ~torch.isnan(targets)
    hard = torch.where(known, targets, 0.0)
    loss = F.binary_cross_entropy_with_logits(logits, hard, reduction="none")
    if config.name == "focal":
        # |t - p| is 1 - p_t of Lin et al. 2017 for t of 0 or 1, and Li et al. 2020's form for mixed targets.
        loss = loss * (hard - torch.sigmoid(logits)).abs().clamp_min(NEAR).pow(config.focal_gamma)
        if config.focal_alpha >= 0:
            loss = loss * (config.focal_alpha * hard + (1 - config.focal_alpha) * (1 - hard))
    shape = (1, len(LABELS), *(1,) * (logits.ndim - 2))
    loss = loss * (1 + hard * (weights_L.to(logits).view(shape) - 1))
    loss = loss * label_weights(config.present_weight).to(logits).view(shape) * known
    cells = logits[0, 0].numel()
    return loss.flatten(1).sum(1) / cells


def pool_logits(grid: Tensor, top_k: int) -> Tensor:
    """Return (B, 14): the mean of the `top_k` highest logits of each label's cells."""
    flat = grid.flatten(2)
    return flat.topk(min(top_k, flat.shape[2]), dim=2).values.mean(2)
