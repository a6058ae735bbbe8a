"""Training one fold: `fit` is a generator that yields once per epoch. It knows no Ray, writes no files, prints nothing.

Every random draw derives from (seed, fold, epoch) and a patch's place in the epoch's plan. So a state holds no
generator's state, one worker and two train on the same batches, and a run that goes on from a state gives the numbers
of one that never stopped.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
import torch.distributed
from torch import Tensor, nn

from aneurysm_ray.config import Config
from aneurysm_ray.errors import AneurysmRayError, ConfigError, RunDirError
from aneurysm_ray.learning import augment, checkpoint, losses, models, optim, targets
from aneurysm_ray.learning.augment import Draws
from aneurysm_ray.learning.cache import VolumeCache, open_cache
from aneurysm_ray.learning.cases import Case, from_table, shuffled
from aneurysm_ray.learning.ensemble import HeatMap
from aneurysm_ray.learning.patches import Batch, cut, no_voxels, prefetch
from aneurysm_ray.learning.sampler import HardNegative, Plan, plan_epoch, rank_batches
from aneurysm_ray.learning.validation import find_hard_negatives, score_cases, validate

PRIOR_PATCHES = 2048
"""Patches of the first epoch's plan from which the frequency of positive targets is estimated."""

MicroBatches = list[tuple[Batch, Draws]]
Thing = TypeVar("Thing")


@dataclass(frozen=True, eq=False)
class EpochResult:
    """What an epoch gave. All workers yield the same, computed over the predictions of all."""

    epoch: int
    metrics: dict[str, float]
    """train/loss, val/loss, val/score, val/auc_present, val/auc/<label>, lr, seconds, patches_per_s,
    data_wait_fraction, epoch; NaN where a value is not defined."""
    predictions: pd.DataFrame
    """One row per validation series: series_uid, patient, fold, modality, plane, 14 probabilities, 14
    target/<label>."""
    candidates: pd.DataFrame
    """series_uid, x_mm, y_mm, z_mm, probability, location."""
    heatmaps: dict[str, HeatMap]
    """By series UID."""
    state: dict[str, Any]
    """All that going on needs, in tensors and plain values. The tensors are the live ones: save or copy them before
    asking for the next epoch."""


@dataclass(eq=False)
class Learner:
    """What changes during training."""

    network: models.Network
    replica: nn.Module
    """The network as a step calls it: compiled, data-parallel, or itself."""
    average: optim.Ema
    optimizer: torch.optim.Optimizer
    weights: Tensor
    """(14,) of positive targets of the head's grid."""
    series_weights: Tensor
    """(14,) of positive targets of whole patches."""
    step: int = 0
    next_epoch: int = 0
    hard: list[HardNegative] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)


def fit(
    config: Config,
    volumes: Path,
    train: pd.DataFrame,
    valid: pd.DataFrame,
    *,
    fold: int = 0,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    resume: Mapping[str, Any] | None = None,
    init: Mapping[str, Tensor] | None = None,
) -> Iterator[EpochResult]:
    """Train on some rows of a prepared set's table and validate on others after every epoch.

    `volumes` is the set's folder. With several workers each calls this with its rank, torch.distributed is initialised,
    and `wrap` makes the network data-parallel. `resume` is the state of an earlier epoch; the epochs after it are
    yielded. `init` are weights to start from, of `checkpoint.read_weights`.

    Raises ConfigError for settings that do not fit each other, RequestError when nothing is labelled, RunDirError when
    a volume or the state cannot be used, AneurysmRayError when the loss is no longer a number.
    """
    device = torch.device(device)
    cases, valid_cases = from_table(train, volumes), from_table(valid, volumes)
    if config.control == "shuffle":
        cases = shuffled(cases, np.random.default_rng((config.seed, fold, 0x5F)))
    cache = open_cache(volumes, config.feed)
    if config.optim.batch_size < world_size:
        raise ConfigError(f"optim.batch_size = {config.optim.batch_size} is fewer than one patch per worker")

    with _arithmetic(config.optim.deterministic):
        learner = _start(config, cases, fold, device, wrap, init)
        if resume is not None:
            _restore(learner, resume)
        for epoch in range(learner.next_epoch, config.optim.epochs):
            started = time.perf_counter()
            torch.manual_seed(_torch_seed(config.seed, fold, epoch + 1, rank))
            plan = _plan(cases, config, fold, epoch, learner.hard)
            feed = _feed(cases, plan, cache, config, (config.seed, fold, epoch), (rank, world_size), device)
            loss_sum, waited, rate = _train_epoch(learner, feed, len(plan), config, world_size, device)
            seconds = time.perf_counter() - started
            train_loss = sum(gather([loss_sum], world_size)) / len(plan)
            if not np.isfinite(train_loss):
                raise AneurysmRayError(f"the training loss of epoch {epoch} is {train_loss}; try a smaller optim.lr")

            scored = [learner.average.network if config.optim.ema_decay else learner.network]
            scored[0].eval()
            share = valid_cases[rank::world_size]
            # By series UID: a series that two workers scored counts once.
            scores = dict(gather(list(score_cases(scored, share, cache, config, device)), world_size))
            validation = validate(valid_cases, scores, fold)
            if config.sampler.hard_negative_fraction and (epoch + 1) % config.sampler.hard_negative_every == 0:
                seed, part = (config.seed, fold, epoch), (rank, world_size)
                mine = find_hard_negatives(scored, cases, cache, config, device, seed, part)
                learner.hard = _refreshed(learner.hard, gather(mine, world_size))

            metrics = {
                "epoch": float(epoch),
                "train/loss": train_loss,
                **validation.metrics,
                "lr": rate,
                "seconds": time.perf_counter() - started,
                "patches_per_s": len(plan) / seconds,
                "data_wait_fraction": waited / seconds,
            }
            learner.history.append(metrics)
            learner.next_epoch = epoch + 1
            tables = (validation.predictions, validation.candidates, validation.heatmaps)
            yield EpochResult(epoch, metrics, *tables, _state(learner, config, fold))


def check(config: Config) -> None:
    """Build the network once and look whether model and patch fit. Raises ConfigError where they do not."""
    with torch.device("meta"):
        network = models.build(config.model)
    if not network.pooled and any(length % network.stride for length in config.patch.size):
        raise ConfigError(
            f"patch.size = {list(config.patch.size)} must be multiples of the grid's stride, {network.stride} voxels"
        )


def changes_ahead(device: torch.device) -> bool:
    """Return whether the threads that cut a batch also make its random changes; a GPU makes them faster itself."""
    return device.type == "cpu"


def gather(mine: Sequence[Thing], world_size: int) -> list[Thing]:
    """Return the items of all workers, in the order of their ranks, to all of them."""
    if world_size == 1:
        return list(mine)
    everyone: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(everyone, list(mine))
    return [item for part in everyone for item in part]


def positive_frequencies(
    cases: Sequence[Case], plan: Plan, config: Config, network: models.Network
) -> tuple[Tensor, Tensor]:
    """Return each label's share of positives among the known targets of a plan: of whole patches, and of grid cells.

    Both are (14,), from geometry alone: no voxel is read.
    """
    counts = torch.zeros(2, 2, 14, dtype=torch.float64)
    looked_at = min(len(plan), PRIOR_PATCHES)
    for chosen in np.array_split(np.arange(looked_at), -(-looked_at // 64)):
        batch = cut(cases, plan, chosen, config.patch.size, no_voxels)
        for i, wanted in enumerate(_targets(batch, config, network)):
            flat = wanted.transpose(0, 1).flatten(1)
            counts[i, 0] += torch.nansum(flat, 1)
            counts[i, 1] += (~torch.isnan(flat)).sum(1)
    share = (counts[:, 0] / counts[:, 1].clamp(min=1)).float()
    return share[0], share[1]


def _start(
    config: Config,
    cases: Sequence[Case],
    fold: int,
    device: torch.device,
    wrap: Callable[[nn.Module], nn.Module],
    init: Mapping[str, Tensor] | None,
) -> Learner:
    check(config)
    torch.manual_seed(_torch_seed(config.seed, fold, 0, 0))
    network = models.build(config.model)
    patches, cells = positive_frequencies(cases, _plan(cases, config, fold, 0, ()), config, network)
    weights = losses.positive_weights(config.loss, patches if network.pooled else cells)
    # Half of the patches are positive by the sampler's choice; only cells are rare and need a weight of their own.
    series_weights = losses.positive_weights(config.loss.model_copy(update={"positive_weight": 1.0}), patches)
    models.set_prior(network, patches if network.pooled else cells, weights)
    if init is not None:
        checkpoint.transfer(network, init)
    layout = torch.channels_last_3d if config.optim.channels_last else torch.preserve_format
    network = network.to(device=device).to(memory_format=layout)  # type: ignore[call-overload]
    average = optim.Ema(network, config.optim.ema_decay)
    optimizer = optim.adamw(network, config.optim)
    replica = wrap(torch.compile(network) if config.optim.compile else network)  # type: ignore[arg-type]
    return Learner(network, replica, average, optimizer, weights.to(device), series_weights.to(device))


def _train_epoch(
    learner: Learner, feed: Iterator[MicroBatches], patches: int, config: Config, world_size: int, device: torch.device
) -> tuple[float, float, float]:
    """Make the steps of an epoch; return the sum of this worker's patch losses, seconds waited for data, the rate."""
    steps = config.optim.epochs * (patches // config.optim.batch_size)
    total, waited, rate = torch.zeros((), device=device), 0.0, 0.0
    learner.network.train()
    while True:
        asked = time.perf_counter()
        micro_batches = next(feed, None)
        waited += time.perf_counter() - asked
        if micro_batches is None:
            break
        rate = optim.learning_rate(learner.step, steps, config.optim)
        for group in learner.optimizer.param_groups:
            group["lr"] = rate
        for number, (batch, draws) in enumerate(micro_batches, 1):
            with contextlib.nullcontext() if number == len(micro_batches) else _no_sync(learner.replica):
                batch = batch.to(device)
                if not changes_ahead(device):
                    batch = augment.apply(batch, draws)
                loss = _loss(learner, batch, draws, config)
                # Data-parallel gradients are means over workers: this makes them the mean over the global batch.
                (loss * (world_size / config.optim.batch_size)).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if config.optim.clip_norm:
            nn.utils.clip_grad_norm_(learner.network.parameters(), config.optim.clip_norm)
        learner.optimizer.step()
        learner.optimizer.zero_grad(set_to_none=True)
        if config.optim.ema_decay:
            learner.average.update(learner.network, learner.step)
        learner.step += 1
    return float(total.item()), waited, rate


def _loss(learner: Learner, batch: Batch, draws: Draws, config: Config) -> Tensor:
    """Return the sum of the patches' losses."""
    wanted = _targets(batch, config, learner.network)
    image, (series, cells) = augment.mix(batch.image_BZYX.unsqueeze(1), wanted, draws)
    if config.optim.channels_last:
        image = image.to(memory_format=torch.channels_last_3d)
    with optim.autocast(config.optim, image.device):
        logits = learner.replica(image)
    if learner.network.pooled:
        return losses.patch_losses(logits.flatten(1), series, config.loss, learner.weights).sum()
    loss = losses.patch_losses(logits, cells, config.loss, learner.weights).sum()
    if config.loss.series_weight:
        pooled = losses.pool_logits(logits, config.inference.top_k)
        series_loss = losses.patch_losses(pooled, series, config.loss, learner.series_weights).sum()
        loss = loss + config.loss.series_weight * series_loss
    return loss


def _targets(batch: Batch, config: Config, network: models.Network) -> list[Tensor]:
    """Return the targets of whole patches (B, 14) and of the grid's cells, the same for a pooled head."""
    size = torch.tensor(config.patch.size, device=batch.points_BP3.device, dtype=torch.float32)
    patch = config.patch
    series = targets.pooled(
        batch.points_BP3, batch.labels_BP, batch.base_BL, batch.cut_B32, batch.spacing_B3, size, patch.border_mm
    )
    if network.pooled:
        return [series, series]
    z, y, x = (length // network.stride for length in patch.size)
    cells = targets.grid(
        *(batch.points_BP3, batch.labels_BP, batch.base_BL, batch.spacing_B3),
        *((z, y, x), network.stride, patch.radius_mm, patch.ignore_mm),
    )
    return [series, cells]


def _plan(cases: Sequence[Case], config: Config, fold: int, epoch: int, hard: Sequence[HardNegative]) -> Plan:
    seed, patch = (config.seed, fold, epoch), config.patch
    return plan_epoch(cases, config.sampler, patch.size, patch.border_mm, config.optim.batch_size, seed, hard)


def _feed(
    cases: Sequence[Case],
    plan: Plan,
    cache: VolumeCache,
    config: Config,
    seed: tuple[int, ...],
    part: tuple[int, int],
    device: torch.device,
) -> Iterator[MicroBatches]:
    """Yield this worker's part of each global batch, as micro-batches, made ahead by threads."""

    def make(step: np.ndarray) -> MicroBatches:
        made = []
        for chosen in np.array_split(step, min(config.optim.accumulate, len(step))):
            batch = cut(cases, plan, chosen, config.patch.size, cache.patch)
            draws = augment.draw(config.augment, seed, chosen)
            if changes_ahead(device):
                batch = augment.apply(batch, draws)
            made.append((batch.pin() if device.type == "cuda" else batch, draws))
        return made

    steps = rank_batches(plan, config.optim.batch_size, *part)
    return prefetch(make, steps, config.feed.threads, config.feed.prefetch)


def _refreshed(old: Sequence[HardNegative], new: Sequence[HardNegative]) -> list[HardNegative]:
    """Return the places found, the new ones in place of the old ones of the same series."""
    searched = {place.series_uid for place in new}
    return sorted(
        [*(place for place in old if place.series_uid not in searched), *new],
        key=lambda place: (place.series_uid, -place.probability),
    )


def _state(learner: Learner, config: Config, fold: int) -> dict[str, Any]:
    return {
        "config": config.model_dump(mode="json"),
        "fold": fold,
        "epoch": learner.next_epoch - 1,
        "step": learner.step,
        "model": dict(learner.network.state_dict()),
        "ema": dict(learner.average.network.state_dict()) if config.optim.ema_decay else {},
        "optimizer": learner.optimizer.state_dict(),
        "hard": [list(astuple(place)) for place in learner.hard],
        "history": [dict(metrics) for metrics in learner.history],
    }


def _restore(learner: Learner, state: Mapping[str, Any]) -> None:
    try:
        learner.network.load_state_dict(state["model"])
        learner.average.network.load_state_dict(state["ema"] or state["model"])
        learner.optimizer.load_state_dict(state["optimizer"])
        learner.step, learner.next_epoch = int(state["step"]), int(state["epoch"]) + 1
        learner.hard = [HardNegative(*place) for place in state["hard"]]
        learner.history = [dict(metrics) for metrics in state["history"]]
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise RunDirError(f"the checkpoint does not fit this configuration ({error}); start a new run") from error


def _no_sync(replica: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Return the context in which a data-parallel network keeps its gradients to itself."""
    context: contextlib.AbstractContextManager[None] = getattr(replica, "no_sync", contextlib.nullcontext)()
    return context


def _torch_seed(*words: int) -> int:
    """Return a seed for torch's own draws: fresh weights and dropout."""
    return int(np.random.SeedSequence(words).generate_state(1)[0])


@contextlib.contextmanager
def _arithmetic(deterministic: bool) -> Iterator[None]:
    """Choose deterministic algorithms, or else the fastest convolutions by trial, and put back what was set before.

    Operations without a deterministic form (3D pooling backwards on CUDA) only warn. Memory that an operation is about
    to write is not filled with NaN first, as torch would in this mode: it costs 3 to 7 % of a step and guards only
    against reading what nobody wrote.
    """
    memory: Any = torch.utils.deterministic  # its switch is a property that type checkers do not see
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        memory.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not deterministic
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = before[2]
        memory.fill_uninitialized_memory = before[3]
