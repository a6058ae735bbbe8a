"""Random changes to a batch: mirroring, affine moves, intensity, noise, mixing.

What is drawn for a patch depends on (seed, fold, epoch) and its place in the epoch's plan alone, so a batch looks the
same however it is split over workers. Points move with the image; left and right labels change places with a mirrored
head. Shapes: B patches, P points, axes (z, y, x).

`prepare` changes all but voxels on the CPU, in the threads that cut the batch; `apply` and `mix` change voxels where
they lie, with what `prepare` made. Both travel to a GPU as one `Packed`, so that a step copies nothing else there and
waits for nothing.
"""

import itertools
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from aneurysm_ray.config import AugmentConfig
from aneurysm_ray.data.masks import MIRRORED_CLASSES, UNKNOWN
from aneurysm_ray.labels import LOCATIONS, MIRRORED, PRESENT_INDEX
from aneurysm_ray.learning.patches import Batch, Packed, pack

_SWAPPED = torch.tensor(MIRRORED)
_SWAPPED_CLASSES = torch.tensor(
    [MIRRORED_CLASSES[label] if label < len(MIRRORED_CLASSES) else label for label in range(256)], dtype=torch.uint8
)

_ORDERS = [list(order) for order in itertools.permutations(range(3))]

KNOTS = np.linspace(0, 1, 5)
"""Intensities that a curve maps; between them it is straight."""

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
    curve: NDArray[np.float64]
    """(B, 5): what the intensities KNOTS become, rising."""
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
    rows, curves = [], []
    for index in chosen:
        rng = np.random.default_rng((*seed, int(index), 0xA6))
        u = rng.uniform(-1, 1, 15)
        share = float(rng.beta(0.4, 0.4)) if rng.random() < config.mixup else 1.0
        noise_seed = float(rng.integers(2**53))
        turn = int(rng.integers(48)) if rng.random() < config.turn else 0
        rows.append((*u, max(share, 1 - share), noise_seed, turn))
        curves.append(np.sort(KNOTS + config.curve * rng.uniform(-1, 1, len(KNOTS))))
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
        curve=np.clip(np.reshape(curves, (-1, len(KNOTS))), 0, 1),
        gamma=np.exp(table[:, 12] * config.gamma),
        blur=np.where((table[:, 13] + 1) / 2 < config.blur, (table[:, 14] + 1) / 2, 0.0),
        noise=np.abs(table[:, 11]) * config.noise,
        noise_seed=table[:, 16].astype(np.int64),
        mix=table[:, 15],
    )


@dataclass(frozen=True, eq=False)
class Changes:
    """What `apply` and `mix` do to a batch. Tensors lie where the batch lies; None where nothing is to be done."""

    flipped_F: Tensor | None
    """int64, patches that are mirrored."""
    classes: Tensor | None
    """(256,) uint8, class of a vessel in the mirrored head."""
    turn: NDArray[np.int64]
    """As in `Draws`."""
    moved_M: Tensor | None
    """int64, patches that are moved."""
    theta_M34: Tensor | None
    """float32, whence each voxel of theirs comes, as `affine_grid` wants it."""
    curve_B256: Tensor | None
    """float32, what each byte of an image becomes."""
    gamma_B: Tensor | None
    """float32; the same for the other changes of intensity."""
    factor_B: Tensor
    offset_B: Tensor
    blurred_K: Tensor | None
    """int64, patches that are blurred."""
    blur_K: Tensor | None
    noise: NDArray[np.float64]
    """As in `Draws`."""
    noise_seed: NDArray[np.int64]
    partner_B: Tensor | None
    """int64, the patch that each mixes with."""
    share_B: Tensor | None
    """float32, of its own image."""


MicroBatch = tuple[Batch, Changes]


def prepare(batch: Batch, draws: Draws) -> MicroBatch:
    """Change a batch on the CPU but for its voxels, and return with it what changes those."""
    flipped, moved = np.flatnonzero(draws.flip), np.flatnonzero(draws.move)
    batch, theta = _move(_turn(_mirror(batch, flipped), draws.turn), moved, draws)
    blurred = np.flatnonzero(draws.blur)
    mixes = bool((draws.mix != 1).any())
    partner = np.arange(len(draws.mix)) ^ 1
    partner[partner >= len(partner)] = len(partner) - 1
    return batch, Changes(
        flipped_F=_indices(flipped),
        classes=None if batch.vessels_BZYX is None or not len(flipped) else _SWAPPED_CLASSES,
        turn=draws.turn,
        moved_M=_indices(moved),
        theta_M34=theta,
        curve_B256=_curves(draws.curve) if (draws.curve != KNOTS).any() else None,
        gamma_B=_float(draws.gamma) if (draws.gamma != 1).any() else None,
        factor_B=_float(draws.contrast),
        offset_B=_float(0.5 - 0.5 * draws.contrast + draws.brightness),  # contrast turns about the middle
        blurred_K=_indices(blurred),
        blur_K=_float(draws.blur[blurred]) if len(blurred) else None,
        noise=draws.noise,
        noise_seed=draws.noise_seed,
        partner_B=torch.from_numpy(partner) if mixes else None,
        share_B=_float(draws.mix) if mixes else None,
    )


@dataclass(frozen=True, eq=False)
class PackedMicroBatch:
    """A prepared batch whose tensors are one."""

    tensors: Packed
    changes: Changes
    """Those on the CPU."""

    def to(self, device: torch.device) -> MicroBatch:
        """Copy to a device in one go, without waiting where the memory is pinned."""
        there: dict[str, Any] = {**self.tensors.to(device)}
        batch = Batch(**{f.name: there.pop(f.name) for f in fields(Batch) if f.name in there})
        return batch, replace(self.changes, **there)


def packed(batch: Batch, changes: Changes, *, pin: bool) -> PackedMicroBatch:
    """Copy all tensors into one, pinned if asked, which a GPU fetches by itself and at once."""
    return PackedMicroBatch(pack({**_tensors(batch), **_tensors(changes)}, pin=pin), changes)


def apply(batch: Batch, changes: Changes) -> Batch:
    """Return a prepared batch with its voxels changed, its image float32 in [0, 1]."""
    names = [name for name in ("image_BZYX", "vessels_BZYX", "domes_BZYX") if getattr(batch, name) is not None]
    voxels: dict[str, Tensor] = {name: getattr(batch, name) for name in names}
    if (index := changes.flipped_F) is not None:
        for name, tensor in voxels.items():
            flipped = tensor[index].flip(-1)
            if name == "vessels_BZYX":
                assert changes.classes is not None
                flipped = changes.classes[flipped.int()]
            voxels[name] = tensor.clone()
            voxels[name][index] = flipped
    if (turned := np.flatnonzero(changes.turn)).size:
        for name, tensor in voxels.items():
            voxels[name] = tensor.clone()
            for b in turned:
                order, mirrored = _orientation(changes.turn[b])
                voxels[name][b] = tensor[b].permute(order).flip(mirrored)
    voxels["image_BZYX"] = _in_unit_range(voxels["image_BZYX"], changes.curve_B256)
    if (index := changes.moved_M) is not None:
        assert changes.theta_M34 is not None
        size = [len(index), 1, *batch.image_BZYX.shape[1:]]
        grid = F.affine_grid(changes.theta_M34, size, align_corners=False)
        moved = [_moved_image(voxels["image_BZYX"][index], grid)]
        if masks := [voxels[name][index] for name in names[1:]]:
            moved += _moved_masks(torch.stack(masks, 1), grid).unbind(1)
        for name, part in zip(names, moved, strict=True):
            voxels[name] = voxels[name].clone()
            voxels[name][index] = part
    _change_intensity(voxels["image_BZYX"], changes)
    return replace(batch, **voxels)


def mix(image: Tensor, targets: list[Tensor], changes: Changes) -> tuple[Tensor, list[Tensor]]:
    """Mix each patch and its targets with its neighbour of the batch (Zhang et al. 2018); NaN stays NaN."""
    if changes.partner_B is None or changes.share_B is None:
        return image, targets
    partner, share = changes.partner_B, changes.share_B

    def blend(value: Tensor) -> Tensor:
        weight = share.view(-1, *(1,) * (value.ndim - 1))
        # A weight of 1 must not let a neighbour's NaN through.
        return torch.where(weight == 1, value, weight * value + (1 - weight) * value[partner])

    return blend(image), [blend(target) for target in targets]


def _mirror(batch: Batch, chosen: NDArray[np.int64]) -> Batch:
    """Mirror the chosen patches left to right: points, faces, and left and right labels."""
    if len(chosen) == 0:
        return batch
    index = torch.from_numpy(chosen)
    points, labels = batch.points_BP3.clone(), batch.labels_BP.clone()
    base, faces = batch.base_BL.clone(), batch.cut_B32.clone()
    points[index, :, 2] = (batch.image_BZYX.shape[-1] - 1) - points[index, :, 2]
    old = labels[index]
    labels[index] = torch.where(old >= 0, _SWAPPED[old.clamp(min=0)], old)
    base[index] = base[index][:, _SWAPPED]
    faces[index, 2] = faces[index, 2].flip(-1)
    return replace(batch, points_BP3=points, labels_BP=labels, base_BL=base, cut_B32=faces)


def _turn(batch: Batch, orientation: NDArray[np.int64]) -> Batch:
    """Turn patches, cubes of equal spacing, into orientations as `Draws.turn` counts them: points and faces.

    A patch that stands otherwise than in a head teaches what an aneurysm looks like, not on which vessel one is: its
    points have no location any more, and nothing is said of the locations.
    """
    if not orientation.any():
        return batch
    points_BP3, labels_BP = batch.points_BP3.clone(), batch.labels_BP.clone()
    base_BL, cut_B32 = batch.base_BL.clone(), batch.cut_B32.clone()
    last = batch.image_BZYX.shape[-1] - 1
    for b in np.flatnonzero(orientation):
        order, mirrored = _orientation(orientation[b])
        points, faces = batch.points_BP3[b][:, order], batch.cut_B32[b][order]
        for axis in mirrored:
            points[:, axis] = last - points[:, axis]
            faces[axis] = faces[axis].flip(-1)
        points_BP3[b], cut_B32[b] = points, faces
        labels_BP[b] = torch.where(labels_BP[b] >= 0, PRESENT_INDEX, labels_BP[b])
        base_BL[b, : len(LOCATIONS)] = torch.nan
    return replace(batch, points_BP3=points_BP3, labels_BP=labels_BP, base_BL=base_BL, cut_B32=cut_B32)


def _move(batch: Batch, chosen: NDArray[np.int64], draws: Draws) -> tuple[Batch, Tensor | None]:
    """Rotate, scale and shift the chosen patches about their centre, in mm: points and radii.

    Return with them (M, 3, 4) whence each voxel comes.
    """
    if len(chosen) == 0:
        return batch, None
    index = torch.from_numpy(chosen)
    spacing = batch.spacing_B3[index]
    # In voxels: mm to voxels after the turn, voxels to mm before it, so that anisotropic voxels keep shapes rigid.
    to_voxels = spacing[:, None, :] / spacing[:, :, None]
    matrix, scale = _matrices(draws.angles_deg[chosen], draws.scale[chosen]), draws.scale[chosen, None, None]
    forward = _float(matrix) * to_voxels
    # The inverse of a scaled rotation is its transpose over the square.
    inverse = _float(matrix.transpose(0, 2, 1) / scale**2) * to_voxels
    size = torch.tensor(batch.image_BZYX.shape[1:], dtype=torch.float32)
    centre = (size - 1) / 2
    shift = _float(draws.shift[chosen]) * size
    points = batch.points_BP3.clone()
    points[index] = torch.einsum("bij,bpj->bpi", forward, points[index] - centre) + (centre + shift)[:, None]

    # grid_sample asks where each output voxel comes from, in units of half the size, x first.
    offset = -torch.einsum("bij,bj->bi", inverse, shift)
    theta = torch.cat([inverse * (size[None, None, :] / size[None, :, None]), (offset * 2 / size)[..., None]], 2)
    theta = torch.cat([theta[:, :, :3].flip(1, 2), theta[:, :, 3:].flip(1)], 2)
    radii = batch.radii_mm_BP.clone()
    radii[index] *= _float(draws.scale[chosen])[:, None]
    return replace(batch, points_BP3=points, radii_mm_BP=radii), theta


def _moved_image(image: Tensor, grid: Tensor) -> Tensor:
    """Return patches moved; zeros come in from outside."""
    image = image.unsqueeze(1)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False).squeeze(1)


def _moved_masks(masks_MKZYX: Tensor, grid: Tensor) -> Tensor:
    """Return K masks of each patch, each voxel's label from the nearest of where it comes from; outside is unknown."""
    # One more than each label, so that the zeros from outside are told from the label 0.
    labels = masks_MKZYX.float().add_(1)
    found = F.grid_sample(labels, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return torch.where(found == 0, UNKNOWN, found - 1).to(torch.uint8)


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


def _curves(knots_B5: NDArray[np.float64]) -> Tensor:
    """Return (B, 256) float32: what each byte becomes under curves through their knots."""
    return _float(np.stack([np.interp(np.arange(256) / 255, KNOTS, knots) for knots in knots_B5]))


def _in_unit_range(image: Tensor, curve_B256: Tensor | None) -> Tensor:
    """Return bytes as float32 in [0, 1], by the curve of each patch where there is one."""
    if curve_B256 is None:
        return image.float().div_(255)  # the same digits as dividing bytes gives, in half the time
    return curve_B256.gather(1, image.flatten(1).long()).view(image.shape)


def _mean_of_27(image_BZYX: Tensor) -> Tensor:
    """Return the mean of each voxel's 3x3x3 neighbourhood, edges repeated; less than a third of what pooling costs."""
    total = F.pad(image_BZYX.unsqueeze(1), (1,) * 6, mode="replicate").squeeze(1)
    for axis, length in enumerate(image_BZYX.shape[1:], 1):
        first, middle, last = (total.narrow(axis, start, length) for start in range(3))
        total = (first + middle).add_(last)
    return total.div_(27)


def _change_intensity(image: Tensor, changes: Changes) -> None:
    """Change gamma, contrast, brightness, blur and noise of a batch where it lies."""
    if changes.gamma_B is not None:
        image.clamp_(DARKEST, 1).pow_(changes.gamma_B.view(-1, 1, 1, 1))
    image.mul_(changes.factor_B.view(-1, 1, 1, 1)).add_(changes.offset_B.view(-1, 1, 1, 1))
    if changes.blurred_K is not None and changes.blur_K is not None:
        index, share = changes.blurred_K, changes.blur_K.view(-1, 1, 1, 1)
        image[index] = image[index].lerp(_mean_of_27(image[index]), share)
    for b, (deviation, seed) in enumerate(zip(changes.noise, changes.noise_seed, strict=True)):
        if deviation > 0:
            generator = torch.Generator(image.device).manual_seed(int(seed))
            noise = torch.randn(image.shape[1:], generator=generator, device=image.device)
            image[b].add_(noise, alpha=float(deviation))
    image.clamp_(0, 1)


def _orientation(turn: np.int64) -> tuple[list[int], list[int]]:
    """Return the order of axes and the axes that are mirrored, of a number as `Draws.turn` has it."""
    return _ORDERS[turn // 8], [axis for axis in range(3) if turn >> axis & 1]


def _float(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values).float()


def _indices(chosen: NDArray[np.int64]) -> Tensor | None:
    return torch.from_numpy(chosen) if len(chosen) else None


def _tensors(of: Batch | Changes) -> dict[str, Tensor]:
    found = {f.name: getattr(of, f.name) for f in fields(of)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}
