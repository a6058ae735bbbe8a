"""What a network should answer for a patch, from the points in and around it and from masks.

Shapes: B patches, P points (padded), L labels (14), axes (z, y, x). Coordinates are voxels of the patch. A target is 1,
0 or NaN, where NaN is left out of the loss:

- A label's `base` is what holds away from its points: 0 where the series is negative for it, or positive with a point;
  NaN where no table says, and where the series is positive without a point, since the lesion may be anywhere.
- Whole patches: 1 where a point lies inside by `border_mm`, NaN where one lies within `border_mm` of a face that cuts
  the head, on either side of it. A face at the end of the stored volume cuts nothing.
- Cells, the last label (a lesion): 1 within the aneurysm's radius, or `radius_mm` where that is unknown or smaller, and
  in the cell that holds the point; NaN up to `ignore_mm`, or that much beyond a larger radius. Where a mask knows the
  dome, 1 where it holds enough of the cell, NaN where it holds less, and nothing else is near: the vessel that bears an
  aneurysm is none.
- Cells, the other labels (where the lesion is): 1 and 0 in cells of lesions with a location, NaN everywhere else.
- Ignored places, such as treated aneurysms: NaN for every label where a point would be positive or NaN.
- Vessels: whether a mask labels a cell; NaN near points, as masks may or may not hold the aneurysm.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from aneurysm_ray.data.masks import UNKNOWN
from aneurysm_ray.labels import LABELS, LOCATIONS, PRESENT_INDEX
from aneurysm_ray.learning.cases import IGNORED

FINE_SHARE, COARSE_SHARE = 0.5, 0.25
"""Share of a cell that a mask must hold for it to count, at a stride up to 2 and beyond, where few vessels fill one."""


def pooled(
    points_BP3: Tensor,
    labels_BP: Tensor,
    base_BL: Tensor,
    cut_B32: Tensor,
    spacing_B3: Tensor,
    size: tuple[int, int, int],
    border_mm: float,
) -> Tensor:
    """Return targets (B, 14) of whole patches.

    `labels_BP` is each point's location index, -1 where there is no point, IGNORED in an ignored place; `cut_B32` says
    of each face, first and last along each axis, whether the head goes on behind it; `size` is the patch's.
    """
    border_B13 = (border_mm / spacing_B3).unsqueeze(1)
    low = torch.where(cut_B32[:, None, :, 0], border_B13, 0.0) - 0.5
    # Filled where it lies: a tensor of Python's numbers would be copied there, and a GPU wait for it.
    end = torch.stack([border_B13.new_full((), length - 0.5) for length in size])
    high = end - torch.where(cut_B32[:, None, :, 1], border_B13, 0.0)
    inside = ((points_BP3 >= low) & (points_BP3 <= high)).all(-1)
    near = ((points_BP3 >= -0.5 - border_B13) & (points_BP3 <= end + border_B13)).all(-1)
    of_label_BPL = _of_label(labels_BP)
    positive = (inside.unsqueeze(2) & of_label_BPL).any(1)
    doubtful = (near.unsqueeze(2) & (of_label_BPL | (labels_BP == IGNORED).unsqueeze(2))).any(1)
    return torch.where(positive, 1.0, torch.where(doubtful, torch.nan, base_BL))


def cells(
    points_BP3: Tensor,
    labels_BP: Tensor,
    radii_mm_BP: Tensor,
    base_BL: Tensor,
    spacing_B3: Tensor,
    shape: tuple[int, int, int],
    stride: int,
    radius_mm: float,
    ignore_mm: float,
    domes_BZYX: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return targets (B, 14, gz, gy, gx) of the cells of a grid, and which cells (B, gz, gy, gx) are near a point.

    `radii_mm_BP` are the aneurysms' radii, NaN where unknown; `domes_BZYX` the masks of domes, if there are any.
    """
    axes = [(torch.arange(n, device=points_BP3.device) + 0.5) * stride - 0.5 for n in shape]
    centres_ZYX3 = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    offset = points_BP3[:, :, None, None, None] - centres_ZYX3
    distance = (offset * spacing_B3[:, None, None, None, None]).square().sum(-1).sqrt()
    holds = (offset.abs() <= stride / 2).all(-1)
    beyond = (radii_mm_BP.nan_to_num(0.0) - radius_mm).clamp(min=0)[..., None, None, None]
    is_point, is_ignored = (labels_BP >= 0)[..., None, None, None], (labels_BP == IGNORED)[..., None, None, None]
    inside = (distance <= radius_mm + beyond) | holds
    positive = inside & is_point
    ring = inside | (distance <= ignore_mm + beyond)
    near = (ring & (is_point | is_ignored)).any(1)
    is_lesion = positive.any(1)
    if domes_BZYX is not None:
        mask = domes_BZYX.unsqueeze(1)
        unknown = F.max_pool3d((mask == UNKNOWN).float(), stride)[:, 0] > 0
        share = F.avg_pool3d((mask == 1).float(), stride)[:, 0]
        in_dome = (share >= _least_share(stride)) | (holds & is_point).any(1)
        is_lesion = torch.where(unknown, is_lesion, in_dome)
        near = torch.where(unknown, near, in_dome | (share > 0) | (ring & is_ignored).any(1))
    lesion = torch.where(near, torch.nan, base_BL[:, PRESENT_INDEX, None, None, None])
    lesion = torch.where(is_lesion, 1.0, lesion).unsqueeze(1)
    of_label = _of_label(labels_BP)[..., : len(LOCATIONS), None, None, None]
    location = (positive.unsqueeze(2) & of_label).any(1)
    known = location.any(1, keepdim=True) & is_lesion.unsqueeze(1)
    return torch.cat([torch.where(known, location.float(), torch.nan), lesion], 1), near


def vessels(vessels_BZYX: Tensor, near_BZYX: Tensor, stride: int) -> Tensor:
    """Return targets (B, 1, gz, gy, gx) from masks; `near_BZYX` (B, gz, gy, gx) are the cells near a point."""
    mask = vessels_BZYX.unsqueeze(1)
    share = F.avg_pool3d(((mask > 0) & (mask != UNKNOWN)).float(), stride)
    unknown = F.max_pool3d((mask == UNKNOWN).float(), stride) > 0
    wanted = (share >= _least_share(stride)).float()
    return torch.where(unknown | near_BZYX.unsqueeze(1), torch.nan, wanted)


def _least_share(stride: int) -> float:
    return FINE_SHARE if stride <= 2 else COARSE_SHARE


def _of_label(labels_BP: Tensor) -> Tensor:
    """Return (B, P, 14): of which labels a point is; every point is of the last."""
    of_label = labels_BP.unsqueeze(-1) == torch.arange(len(LABELS), device=labels_BP.device)
    of_label[..., PRESENT_INDEX] = labels_BP >= 0
    return of_label
