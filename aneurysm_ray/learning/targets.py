"""What a network should answer for a patch, from the points in and around it.

Shapes: B patches, P points (padded), L labels (14), axes (z, y, x). Coordinates are voxels of the patch. A label is 1,
0 or NaN, where NaN is left out of the loss:

- A label's `base` is what holds away from its points: 0 where the series is negative for it, or positive with a point;
  NaN where no table says, and where the series is positive without a point, since the lesion may be anywhere.
- Pooled: 1 where a point lies inside by `border_mm`, NaN where one lies within `border_mm` of a face that cuts the
  head, on either side of it. A face at the end of the stored volume cuts nothing.
- Ignored places, such as treated aneurysms: NaN for every label where a point would be positive or NaN.
- Grid: 1 in cells within `radius_mm` of a point and in the cell that holds it, NaN up to `ignore_mm`.
"""

import torch
from torch import Tensor

from aneurysm_ray.labels import LABELS, PRESENT_INDEX
from aneurysm_ray.learning.cases import IGNORED


def pooled(
    points_BP3: Tensor,
    labels_BP: Tensor,
    base_BL: Tensor,
    cut_B32: Tensor,
    spacing_B3: Tensor,
    size: Tensor,
    border_mm: float,
) -> Tensor:
    """Return targets (B, 14) of whole patches.

    `labels_BP` is each point's location index, -1 where there is no point, IGNORED in an ignored place; `cut_B32` says
    of each face, first and last along each axis, whether the head goes on behind it; `size` (3,) is the patch's size.
    """
    border_B13 = (border_mm / spacing_B3).unsqueeze(1)
    low = torch.where(cut_B32[:, None, :, 0], border_B13, 0.0) - 0.5
    high = size - 0.5 - torch.where(cut_B32[:, None, :, 1], border_B13, 0.0)
    inside = ((points_BP3 >= low) & (points_BP3 <= high)).all(-1)
    near = ((points_BP3 >= -0.5 - border_B13) & (points_BP3 <= size - 0.5 + border_B13)).all(-1)
    return _combine(inside, near, labels_BP, base_BL)


def grid(
    points_BP3: Tensor,
    labels_BP: Tensor,
    base_BL: Tensor,
    spacing_B3: Tensor,
    shape: tuple[int, int, int],
    stride: int,
    radius_mm: float,
    ignore_mm: float,
) -> Tensor:
    """Return targets (B, 14, gz, gy, gx) of the cells of a grid of the given shape and stride."""
    axes = [(torch.arange(n, device=points_BP3.device) + 0.5) * stride - 0.5 for n in shape]
    centres_ZYX3 = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    offset = points_BP3[:, :, None, None, None] - centres_ZYX3
    distance = (offset * spacing_B3[:, None, None, None, None]).square().sum(-1).sqrt()
    holds = (offset.abs() <= stride / 2).all(-1)
    return _combine((distance <= radius_mm) | holds, distance <= ignore_mm, labels_BP, base_BL)


def _combine(positive_BP: Tensor, near_BP: Tensor, labels_BP: Tensor, base_BL: Tensor) -> Tensor:
    """Gather what holds for points, (B, P, ...) booleans, into targets (B, 14, ...)."""
    of_label_BPL = labels_BP.unsqueeze(-1) == torch.arange(len(LABELS), device=labels_BP.device)
    of_label_BPL[..., PRESENT_INDEX] = labels_BP >= 0
    extra = (1,) * (positive_BP.ndim - 2)
    of_label = of_label_BPL.view(*of_label_BPL.shape, *extra)
    positive = (positive_BP.unsqueeze(2) & of_label).any(1)
    ignored = (labels_BP == IGNORED).view(*labels_BP.shape, 1, *extra)
    near = (near_BP.unsqueeze(2) & (of_label | ignored)).any(1)
    base = base_BL.view(*base_BL.shape, *extra).expand_as(positive)
    return torch.where(positive, 1.0, torch.where(near, torch.nan, base))
