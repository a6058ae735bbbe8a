"""Random changes to a batch, made where it lies: mirroring, affine moves, intensity, noise, mixing.

What is drawn for a patch depends on (seed, fold, epoch) and its place in the epoch's plan alone, so a batch looks the
same however it is split over workers. Points move with the image; left and right labels change places with a mirrored
head. Shapes: B patches, P points, axes (z, y, x).
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from aneurysm_ray.config import AugmentConfig
from aneurysm_ray.data.masks import MIRRORED_CLASSES, UNKNOWN
from aneurysm_ray.labels import LOCATIONS, MIRRORED, PRESENT_INDEX
from aneurysm_ray.learning.patches import Batch

_MIRRORED_LABELS = [MIRRORED_CLASSES[label] if label < len(MIRRORED_CLASSES) else label for label in range(256)]

_ORDERS = [list(order) for order in itertools.permutations(range(3))]

DARKEST = 1e-4
"""What black is taken for before an exponent, whose slope at 0 is infinite."""


@dataclass(frozen=True, eq=False)
class Draws:
    """What is to happen to each patch of a batch; arrays start with B."""

    flip: NDArray[np.bool_]
    turn: NDArray[np.int64]
    """One of the 48 orientations of a cube: 8 times the order of its axes plus the axes that are mirrored; 0 is as it
    was."""
    move: NDArray[np.bool_]
    """Whether the affine move is made."""
    angles_deg: NDArray[np.float64]
    """(B, 3): about the z, y and x axes, in this order."""
    scale: NDArray[np.float64]
    """Factor of size."""
    shift: NDArray[np.float64]
    """(B, 3): share of the patch's size."""
    contrast: NDArray[np.float64]
    """Factor about the middle of the range."""
    brightness: NDArray[np.float64]
    gamma: NDArray[np.float64]
    """Exponent of intensity."""
    blur: NDArray[np.float64]
    """Share of each voxel that is the mean of its 3x3x3 neighbourhood."""
    noise: NDArray[np.float64]
    """Standard deviation."""
    noise_seed: NDArray[np.int64]
    mix: NDArray[np.float64]
    """Share of the patch's own image; 1 is unmixed. Patches 2i and 2i+1 mix with each other."""


def draw(config: AugmentConfig, seed: tuple[int, ...], chosen: NDArray[np.int64]) -> Draws:
    """Draw the changes of the chosen patches of a plan; `seed` is (seed, fold, epoch)."""
    rows = []
    for index in chosen:
        rng = np.random.default_rng((*seed, int(index), 0xA6))
        u = rng.uniform(-1, 1, 15)
        share = float(rng.beta(0.4, 0.4)) if rng.random() < config.mixup else 1.0
        noise_seed = float(rng.integers(2**53))
        turn = int(rng.integers(48)) if rng.random() < config.turn else 0
        rows.append((*u, max(share, 1 - share), noise_seed, turn))
    table = np.array(rows, np.float64).reshape(-1, 18)
    unit = (table[:, :2] + 1) / 2
    return Draws(
        flip=unit[:, 0] < config.flip,
        turn=table[:, 17].astype(np.int64),
        move=unit[:, 1] < config.affine_probability,
        angles_deg=table[:, 2:5] * config.rotate_deg,
        scale=1 + table[:, 5] * config.scale,
        shift=table[:, 6:9] * config.translate,
        contrast=1 + table[:, 9] * config.contrast,
        brightness=table[:, 10] * config.brightness,
        gamma=np.exp(table[:, 12] * config.gamma),
        blur=np.where((table[:, 13] + 1) / 2 < config.blur, (table[:, 14] + 1) / 2, 0.0),
        noise=np.abs(table[:, 11]) * config.noise,
        noise_seed=table[:, 16].astype(np.int64),
        mix=table[:, 15],
    )


def apply(batch: Batch, draws: Draws) -> Batch:
    """Return the changed batch, its image float32 in [0, 1]."""
    batch = mirror(batch, np.flatnonzero(draws.flip))
    batch = turn(batch, draws.turn)
    batch = batch.with_image(batch.image_BZYX / 255)
    batch = move(batch, np.flatnonzero(draws.move), draws)
    _change_intensity(batch.image_BZYX, draws)
    return batch


def mirror(batch: Batch, chosen: NDArray[np.int64]) -> Batch:
    """Mirror the chosen patches left to right, with points, faces, masks, and left and right labels and vessels."""
    if len(chosen) == 0:
        return batch
    device = batch.image_BZYX.device
    index = torch.from_numpy(chosen).to(device)
    swap = torch.tensor(MIRRORED, device=device)
    image, points = batch.image_BZYX.clone(), batch.points_BP3.clone()
    labels, base, faces = batch.labels_BP.clone(), batch.base_BL.clone(), batch.cut_B32.clone()
    image[index] = image[index].flip(-1)
    points[index, :, 2] = (image.shape[-1] - 1) - points[index, :, 2]
    old = labels[index]
    labels[index] = torch.where(old >= 0, swap[old.clamp(min=0)], old)
    base[index] = base[index][:, swap]
    faces[index, 2] = faces[index, 2].flip(-1)
    vessels, domes = batch.vessels_BZYX, batch.domes_BZYX
    if vessels is not None:
        other_side = torch.tensor(_MIRRORED_LABELS, dtype=torch.uint8, device=device)
        vessels = vessels.clone()
        vessels[index] = other_side[vessels[index].flip(-1).int()]
    return replace(
        batch, image_BZYX=image, points_BP3=points, labels_BP=labels, base_BL=base, cut_B32=faces,
        vessels_BZYX=vessels, domes_BZYX=None if domes is None else domes.index_copy(0, index, domes[index].flip(-1)),
    )  # fmt: skip


def turn(batch: Batch, orientation: NDArray[np.int64]) -> Batch:
    """Turn patches, cubes of equal spacing, into orientations as `Draws.turn` counts them, with points, faces, masks.

    A patch that stands otherwise than in a head teaches what an aneurysm looks like, not on which vessel one is: its
    points have no location any more, and nothing is said of the locations.
    """
    if not orientation.any():
        return batch
    turned: dict[str, Tensor] = {}
    for name in ("image_BZYX", "vessels_BZYX", "domes_BZYX", "points_BP3", "labels_BP", "base_BL", "cut_B32"):
        if (tensor := getattr(batch, name)) is not None:
            turned[name] = tensor.clone()
    last = batch.image_BZYX.shape[-1] - 1
    for b in np.flatnonzero(orientation):
        order, mirrored = _ORDERS[orientation[b] // 8], [axis for axis in range(3) if orientation[b] >> axis & 1]
        for name, tensor in turned.items():
            if name.endswith("ZYX"):
                tensor[b] = getattr(batch, name)[b].permute(order).flip(mirrored)
        points, faces = batch.points_BP3[b][:, order], batch.cut_B32[b][order]
        for axis in mirrored:
            points[:, axis] = last - points[:, axis]
            faces[axis] = faces[axis].flip(-1)
        turned["points_BP3"][b], turned["cut_B32"][b] = points, faces
        labels = turned["labels_BP"][b]
        turned["labels_BP"][b] = torch.where(labels >= 0, PRESENT_INDEX, labels)
        turned["base_BL"][b, : len(LOCATIONS)] = torch.nan
    return replace(batch, **turned)


def move(batch: Batch, chosen: NDArray[np.int64], draws: Draws) -> Batch:
    """Rotate, scale and shift the chosen patches about their centre, in mm, with their points and masks.

    Zeros come into the image, and what is not known into masks.
    """
    if len(chosen) == 0:
        return batch
    device = batch.image_BZYX.device
    index = torch.from_numpy(chosen).to(device)
    spacing = batch.spacing_B3[index]
    # In voxels: mm to voxels after the turn, voxels to mm before it, so that anisotropic voxels keep shapes rigid.
    to_voxels = spacing[:, None, :] / spacing[:, :, None]
    matrix, scale = _matrices(draws.angles_deg[chosen], draws.scale[chosen]), draws.scale[chosen, None, None]
    forward = torch.from_numpy(matrix).float().to(device) * to_voxels
    # The inverse of a scaled rotation is its transpose over the square; torch.linalg.inv would make a GPU wait.
    inverse = torch.from_numpy(matrix.transpose(0, 2, 1) / scale**2).float().to(device) * to_voxels
    size = torch.tensor(batch.image_BZYX.shape[1:], device=device, dtype=torch.float32)
    centre = (size - 1) / 2
    shift = torch.from_numpy(draws.shift[chosen]).float().to(device) * size
    points = batch.points_BP3.clone()
    points[index] = torch.einsum("bij,bpj->bpi", forward, points[index] - centre) + (centre + shift)[:, None]

    # grid_sample asks where each output voxel comes from, in units of half the size, x first.
    offset = -torch.einsum("bij,bj->bi", inverse, shift)
    theta = torch.cat([inverse * (size[None, None, :] / size[None, :, None]), (offset * 2 / size)[..., None]], 2)
    theta = torch.cat([theta[:, :, :3].flip(1, 2), theta[:, :, 3:].flip(1)], 2)
    image = batch.image_BZYX.clone()
    grid = F.affine_grid(theta, [len(chosen), 1, *image.shape[1:]], align_corners=False)
    moved = F.grid_sample(image[index].unsqueeze(1), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    image[index] = moved.squeeze(1)
    vessels, domes = (_moved(mask, index, grid) for mask in (batch.vessels_BZYX, batch.domes_BZYX))
    radii = batch.radii_mm_BP.clone()
    radii[index] *= torch.from_numpy(draws.scale[chosen]).float().to(device)[:, None]
    return replace(
        batch, image_BZYX=image, points_BP3=points, radii_mm_BP=radii, vessels_BZYX=vessels, domes_BZYX=domes
    )


def _moved(mask: Tensor | None, index: Tensor, grid: Tensor) -> Tensor | None:
    """Return a mask whose chosen patches take each voxel's label from the nearest of where it comes from."""
    if mask is None:
        return None
    # One more than each label, so that the zeros from outside are told from the label 0.
    labels = (mask[index].unsqueeze(1).float() + 1).contiguous()
    found = F.grid_sample(labels, grid, mode="nearest", padding_mode="zeros", align_corners=False).squeeze(1)
    mask = mask.clone()
    mask[index] = torch.where(found == 0, UNKNOWN, found - 1).to(torch.uint8)
    return mask


def mix(image: Tensor, targets: list[Tensor], draws: Draws) -> tuple[Tensor, list[Tensor]]:
    """Mix each patch and its targets with its neighbour of the batch (Zhang et al. 2018); NaN stays NaN."""
    if (draws.mix == 1).all():
        return image, targets
    partner = np.arange(len(image)) ^ 1
    partner[partner >= len(image)] = len(image) - 1
    index = torch.from_numpy(partner).to(image.device)
    share = torch.from_numpy(draws.mix).float().to(image.device)

    def blend(value: Tensor) -> Tensor:
        weight = share.view(-1, *(1,) * (value.ndim - 1))
        # A weight of 1 must not let a neighbour's NaN through.
        return torch.where(weight == 1, value, weight * value + (1 - weight) * value[index])

    return blend(image), [blend(target) for target in targets]


def _matrices(angles_deg: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (B, 3, 3) rotations about z, then y, then x, times a factor, for offsets (z, y, x) in mm."""
    cos, sin = np.cos(np.deg2rad(angles_deg)), np.sin(np.deg2rad(angles_deg))
    result = np.broadcast_to(np.eye(3), (len(scale), 3, 3))
    for axis in range(3):
        i, j = [k for k in range(3) if k != axis]
        turn = np.broadcast_to(np.eye(3), (len(scale), 3, 3)).copy()
        turn[:, i, i], turn[:, j, j] = cos[:, axis], cos[:, axis]
        turn[:, i, j], turn[:, j, i] = -sin[:, axis], sin[:, axis]
        result = turn @ result
    return np.asarray(result * scale[:, None, None])


def _change_intensity(image: Tensor, draws: Draws) -> None:
    """Change gamma, contrast, brightness, blur and noise of a batch where it lies."""
    device = image.device
    if (draws.gamma != 1).any():
        image.clamp_(DARKEST, 1).pow_(torch.from_numpy(draws.gamma).float().to(device).view(-1, 1, 1, 1))
    change = (draws.contrast, 0.5 - 0.5 * draws.contrast + draws.brightness)  # contrast turns about the middle
    factor, offset = (torch.from_numpy(value).float().to(device).view(-1, 1, 1, 1) for value in change)
    image.mul_(factor).add_(offset)
    if len(blurred := np.flatnonzero(draws.blur)) > 0:
        index = torch.from_numpy(blurred).to(device)
        share = torch.from_numpy(draws.blur[blurred]).float().to(device).view(-1, 1, 1, 1)
        smooth = F.avg_pool3d(F.pad(image[index].unsqueeze(1), (1,) * 6, mode="replicate"), 3, 1).squeeze(1)
        image[index] = image[index].lerp(smooth, share)
    for b, (deviation, seed) in enumerate(zip(draws.noise, draws.noise_seed, strict=True)):
        if deviation > 0:
            generator = torch.Generator(device).manual_seed(int(seed))
            noise = torch.randn(image.shape[1:], generator=generator, device=device)
            image[b].add_(noise, alpha=float(deviation))
    image.clamp_(0, 1)
