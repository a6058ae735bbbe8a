"""The one inference path: windows of a volume → one grid of probabilities → 14 probabilities and candidate points.

Used by validation, prediction and the server alike. Windows overlap; every model sees each, and its mirror image if
asked, with left and right labels swapped back; all answers are averaged as probabilities. A grid head's cells are
stitched where they lie, weighted towards the middle of each window; a pooled head's windows are themselves the cells.
A series' probability of a label is the mean of its `top_k` highest cells.

A pooled head knows only its window, 20-50 mm wide. Its candidates are placed inside by the cells before pooling: the
last layer is linear, so their logits average to the window's own (a class-activation map, Zhou et al. 2016), and the
strongest cell is where the answer came from.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from aneurysm_ray import rundir
from aneurysm_ray.config import Config
from aneurysm_ray.data.store import PreparedVolume
from aneurysm_ray.data.window import bright_blood, to_uint8
from aneurysm_ray.labels import LABELS, LOCATIONS, MIRRORED, PRESENT_INDEX
from aneurysm_ray.learning import atlas, windows
from aneurysm_ray.learning.models import Answer, Network, lesion_probabilities
from aneurysm_ray.learning.optim import autocast


@dataclass(frozen=True, eq=False)
class HeatMap:
    """The highest probability of any label in each cell of a volume's grid."""

    grid: NDArray[np.float16]
    """(z, y, x)"""
    affine: NDArray[np.float64]
    """(4, 4): cell index (z, y, x, 1) to patient (x, y, z, 1) in mm."""


def write_heatmap(path: Path, heatmap: HeatMap) -> None:
    """Write a heat map as .npz with `grid` and `affine`, atomically."""
    with rundir.atomic(path, "wb") as file:
        np.savez_compressed(file, grid=heatmap.grid, affine=heatmap.affine)


@dataclass(frozen=True, eq=False)
class SeriesScore:
    """What the models say of a series."""

    probabilities: NDArray[np.float64]
    """(14,)"""
    heatmap: HeatMap
    candidates: pd.DataFrame
    """x_mm, y_mm, z_mm, probability, location; the most probable first."""
    vessels: NDArray[np.float16] | None = None
    """(z, y, x) probability of vessel on the heat map's grid, of a grid head."""
    dice: float = float("nan")
    """Overlap of its vessels with those of the series' mask, where both are known (Dice 1945)."""


@dataclass(frozen=True, eq=False)
class _Answers:
    """Means over models, windows and mirror images."""

    grid: NDArray[np.float64]
    """(14, z, y, x) probabilities."""
    inner: NDArray[np.float64] | None
    """Pooled heads: (W, cz, cy, cx) probability of the series-level label in the cells inside each window."""
    vessels: NDArray[np.float64] | None
    """Grid heads: (z, y, x) probability of vessel."""


def score_volume(
    models: Sequence[Network], prepared: PreparedVolume, config: Config, device: torch.device | str
) -> SeriesScore:
    """Score a prepared volume by the mean of one or several models of one configuration, which are in eval mode."""
    device = torch.device(device)
    network = models[0]
    z, y, x = prepared.voxels.shape
    factor, overlap = 1 if network.pooled else config.inference.window, config.inference.overlap
    size = windows.size((z, y, x), config.patch.size, factor, network.stride, overlap)
    layout = windows.layout((z, y, x), size, overlap, network.stride, pooled=network.pooled)
    seen = bright_blood(to_uint8(prepared.voxels, prepared.window), prepared.modality)
    answers = _answer(models, seen, layout, size, config, device)
    if config.inference.atlas:
        learnt = np.mean([model.atlas.cpu().numpy() for model in models], 0)
        answers.grid[:] *= atlas.on_cells(learnt, layout.first, layout.step, layout.grid, (z, y, x))
    heat = answers.grid.max(0)
    return SeriesScore(
        probabilities=pool(answers.grid, config.inference.top_k),
        heatmap=HeatMap(heat.astype(np.float16), layout.affine(prepared.affine)),
        candidates=_candidates(answers, heat, layout, prepared.affine, config),
        vessels=None if answers.vessels is None else answers.vessels.astype(np.float16),
    )


def pool(grid: NDArray[np.float64], top_k: int) -> NDArray[np.float64]:
    """Return (14,): the mean of each label's `top_k` highest cells of a grid (14, z, y, x)."""
    flat = grid.reshape(len(grid), -1)
    count = min(top_k, flat.shape[1])
    highest = np.partition(flat, flat.shape[1] - count, axis=1)[:, -count:]
    return np.asarray(np.sort(highest, axis=1).mean(1))


@torch.inference_mode()
def _answer(
    models: Sequence[Network],
    voxels: NDArray[np.uint8],
    layout: windows.Layout,
    size: tuple[int, int, int],
    config: Config,
    device: torch.device,
) -> _Answers:
    starts = layout.all_starts()
    is_empty = windows.empty(voxels, starts, size)
    # The first empty window answers for all of them.
    asked = np.flatnonzero(~is_empty | (is_empty & (np.cumsum(is_empty) == 1)))
    answer_of = np.searchsorted(asked, np.arange(len(starts)))
    if is_empty.any():
        answer_of[is_empty] = answer_of[np.argmax(is_empty)]

    z, y, x = voxels.shape
    padded = torch.zeros(layout.padded, dtype=torch.uint8, device=device)
    padded[:z, :y, :x] = torch.from_numpy(np.array(voxels)).to(device)
    heads, inners = [], []
    # As many voxels at a time as so many patches have.
    batch_size = max(1, config.inference.batch_size * math.prod(config.patch.size) // math.prod(size))
    for first in range(0, len(asked), batch_size):
        chosen = starts[asked[first : first + batch_size]]
        image = torch.stack([padded[z : z + size[0], y : y + size[1], x : x + size[2]] for z, y, x in chosen])
        head, inner = ask(models, image.unsqueeze(1).float().div_(255), config)
        heads.append(head)
        inners.append(inner)
    of_windows, of_cells = (torch.cat(parts).cpu().numpy() for parts in (heads, inners))
    if models[0].pooled:
        of_windows, of_cells = (values.astype(np.float64)[answer_of] for values in (of_windows, of_cells))
        return _Answers(of_windows.reshape(*layout.grid, len(LABELS)).transpose(3, 0, 1, 2), of_cells, None)
    cells = starts // models[0].stride
    return _Answers(
        _stitch(of_windows, answer_of, cells, layout.grid),
        None,
        _stitch(of_cells[:, None], answer_of, cells, layout.grid)[0],
    )


def ask(models: Sequence[Network], image_BCZYX: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Return mean probabilities: the head's (B, 14, ...), and (B, cz, cy, cx) of every cell for a label or for vessel.

    A pooled head's cells speak of the series-level label, a grid head's of vessel.

    Networks may lie on several GPUs: all are asked before any answer is fetched, so that the GPUs work side by side.
    """
    device = image_BCZYX.device
    swap = list(MIRRORED)
    heads, inners = [], []
    for network in models:
        image = _on(image_BCZYX, next(network.parameters(), image_BCZYX).device)
        with _half(config, image.device):
            for mirrored in (False, True) if config.inference.flip else (False,):
                answer: Answer = network(image.flip(-1) if mirrored else image)
                if network.pooled:
                    head = torch.sigmoid(answer.cells.mean((2, 3, 4), keepdim=True))
                    inner = torch.sigmoid(answer.cells[:, PRESENT_INDEX])
                else:
                    assert answer.vessels is not None
                    head = lesion_probabilities(answer, network, gate=config.inference.gate)
                    inner = torch.sigmoid(answer.vessels[:, 0])
                heads.append(head.flip(-1)[:, swap] if mirrored else head)
                inners.append(inner.flip(-1) if mirrored else inner)
    head, inner = (torch.stack([_on(answer, device) for answer in answers]).mean(0) for answers in (heads, inners))
    return head, inner


def _on(values: Tensor, device: torch.device) -> Tensor:
    """Return values on a device. A graph that is traced, where they are there already, then names no device."""
    return values if values.device == device else values.to(device, non_blocking=True)


def _half(config: Config, device: torch.device) -> torch.autocast:
    """Return the context of the forward pass: as in training, but float16 on GPUs that only emulate bfloat16.

    Those before Ampere, the T4 among them, do. Without gradients float16 needs no loss scaling.
    """
    context = autocast(config.optim, device)
    if context._enabled and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", torch.float16)
    return context


def _stitch(
    answers: NDArray[np.float32],
    answer_of: NDArray[np.int64],
    cell_starts: NDArray[np.int64],
    shape: tuple[int, int, int],
) -> NDArray[np.float64]:
    """Average windows' cells into a grid (C, z, y, x), those in the middle of a window most.

    `answers` are (A, C, cz, cy, cx); window w begins at cell `cell_starts[w]` and has the answer `answer_of[w]`.
    """
    weight = windows.centre_weights((answers.shape[2], answers.shape[3], answers.shape[4]))
    total, weights = np.zeros((answers.shape[1], *shape)), np.zeros(shape)
    for number, (z, y, x) in zip(answer_of, cell_starts, strict=True):
        place = np.s_[z : z + weight.shape[0], y : y + weight.shape[1], x : x + weight.shape[2]]
        total[:, *place] += np.multiply(answers[number], weight, dtype=np.float64)
        weights[place] += weight
    total /= weights
    return total


def _candidates(
    answers: _Answers,
    heat: NDArray[np.float64],
    layout: windows.Layout,
    affine: NDArray[np.float64],
    config: Config,
) -> pd.DataFrame:
    """List the local maxima of the heat map, the strongest of those near each other."""
    peaks = np.argwhere(heat == ndimage.maximum_filter(heat, size=3, mode="nearest"))
    order = np.argsort(-heat[tuple(peaks.T)], kind="stable")
    size = np.array(config.patch.size)
    kept: list[NDArray[np.float64]] = []
    rows: list[tuple[Any, ...]] = []
    for z, y, x in peaks[order]:
        if len(rows) == config.inference.candidates:
            break
        if answers.inner is None:
            voxel = layout.first + layout.step * _refine(heat, (z, y, x))
        else:
            inner = answers.inner[np.ravel_multi_index((z, y, x), layout.grid)]
            strongest = np.unravel_index(int(inner.argmax()), inner.shape)
            start = np.array([layout.starts[axis][cell] for axis, cell in enumerate((z, y, x))])
            voxel = start + (_refine(inner, strongest) + 0.5) / inner.shape * size - 0.5
        place = (affine @ [*voxel, 1.0])[:3]
        if all(np.linalg.norm(place - other) >= config.inference.candidate_distance_mm for other in kept):
            kept.append(place)
            location = LOCATIONS[int(answers.grid[: len(LOCATIONS), z, y, x].argmax())]
            rows.append((*place, heat[z, y, x], location))
    return pd.DataFrame(rows, columns=["x_mm", "y_mm", "z_mm", "probability", "location"])


def _refine(values: NDArray[np.float64], peak: Sequence[Any]) -> NDArray[np.float64]:
    """Return the centroid, in cells, of what stands out around a peak: its 3x3x3 neighbourhood above its lowest
    value."""
    around = tuple(slice(max(0, i - 1), i + 2) for i in peak)
    mass = values[around] - values[around].min()
    if mass.sum() <= 0:
        return np.array(peak, np.float64)
    offsets = np.indices(mass.shape).reshape(3, -1)
    return np.asarray(offsets @ mass.ravel() / mass.sum() + [s.start for s in around])
