"""Training one fold: `fit` is a generator that yields once per epoch. It knows no Ray, writes no files, prints nothing.

Every random draw derives from (seed, fold, epoch) and a patch's place in the epoch's plan. So a state holds no
generator's state, one worker and two train on the same batches, and a run that goes on from a state gives the numbers
of one that never stopped.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
import torch.distributed
from torch import Tensor, nn

from aneurysm_ray.config import Config
from aneurysm_ray.errors import AneurysmRayError, ConfigError, RunDirError
from aneurysm_ray.learning import atlas, augment, checkpoint, models, objective, optim, validation
from aneurysm_ray.learning.arithmetic import arithmetic
from aneurysm_ray.learning.cache import VolumeCache, groups_of, open_cache
from aneurysm_ray.learning.cases import Case, from_table, shuffled
from aneurysm_ray.learning.ensemble import HeatMap
from aneurysm_ray.learning.epoch import Learner, MicroBatches, Tell, examples, made_ahead, train_epoch
from aneurysm_ray.learning.patches import cut, prefetch
from aneurysm_ray.learning.sampler import KINDS, HardNegative, Plan, gathered, plan_epoch, rank_batches
from aneurysm_ray.learning.validation import find_hard_negatives, score_cases, validate

SKIPPED = 0.05
"""Largest share of an epoch's steps that may come to no finite gradient."""

Thing = TypeVar("Thing")


@dataclass(frozen=True, eq=False)
class EpochResult:
    """What an epoch gave. All workers yield the same, computed over the predictions of all."""

    epoch: int
    metrics: dict[str, float]
    """train/loss, train/loss/<kind> and train/drawn/<kind> of each kind of patch, train/skipped (steps without a finite
    gradient), val/loss, val/score, val/dice (of vessels, where masks are known), val/auc_present, val/auc/<label>, lr,
    seconds, patches_per_s, data_wait_fraction, epoch, and where its seconds went: seconds/feed, seconds/steps,
    seconds/validation, seconds/mining, and seconds/writing of the epoch before. NaN where a value is not defined."""
    predictions: pd.DataFrame
    """One row per series that was validated: series_uid, patient, fold, modality, plane, 14 probabilities, 14
    target/<label>."""
    candidates: pd.DataFrame
    """series_uid, x_mm, y_mm, z_mm, probability, location."""
    heatmaps: dict[str, HeatMap]
    """By series UID; none where not all series were validated in full."""
    state: dict[str, Any]
    """All that going on needs, in tensors and plain values. The tensors are the live ones: save or copy them before
    asking for the next epoch."""


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
    tell: Tell = lambda what, done, total: None,
) -> Iterator[EpochResult]:
    """Train on some rows of a prepared set's table and validate on others, as `config.validation` says.

    `volumes` is the set's folder. With several workers each calls this with its rank, torch.distributed is initialised,
    and `wrap` makes the network data-parallel. `resume` is the state of an earlier epoch; the epochs after it are
    yielded. `init` are weights to start from, of `checkpoint.read_weights`. `tell` is told how far an epoch is.

    Raises ConfigError for settings that do not fit each other, RequestError when nothing is labelled, RunDirError when
    a volume or the state cannot be used, AneurysmRayError when the loss is no longer a number.
    """
    device = torch.device(device)
    taught_cases, valid_cases = from_table(train, volumes), from_table(valid, volumes)
    if config.control == "shuffle":
        dealt = shuffled([*taught_cases, *valid_cases], (config.seed, 0x5F))
        taught_cases, valid_cases = dealt[: len(taught_cases)], dealt[len(taught_cases) :]
    cases = objective.teachable(taught_cases, config)
    some_cases = validation.part(valid_cases, config.validation.series, (config.seed, fold))
    cache = open_cache(volumes, config.feed)
    groups = groups_of(cases, config.feed, masks=objective.needs_masks(config, cases))
    if config.optim.batch_size < world_size:
        raise ConfigError(f"optim.batch_size = {config.optim.batch_size} is fewer than one patch per worker")

    with arithmetic(config.optim.deterministic, device):
        learner = _start(config, cases, fold, device, wrap, init)
        if resume is not None:
            _restore(learner, resume)
        writing = 0.0
        for epoch in range(learner.next_epoch, config.optim.epochs):
            started = time.perf_counter()
            torch.manual_seed(_torch_seed(config.seed, fold, epoch + 1, rank))
            plan = _plan(cases, config, fold, epoch, learner.hard)
            plan = gathered(plan, cases, groups, (config.seed, fold, epoch))
            cache.begin_epoch()
            part = (rank, world_size)
            feed = _feed(cases, plan, cache, config, (config.seed, fold, epoch), part, device, learner.network)
            taught = train_epoch(learner, feed, len(plan), config, world_size, device, tell)
            seconds = time.perf_counter() - started
            losses = np.sum(gather([taught.losses], world_size), axis=0)
            steps = len(plan) // config.optim.batch_size
            if taught.skipped > SKIPPED * steps:
                raise AneurysmRayError(
                    f"{taught.skipped} of the {steps} steps of epoch {epoch} had no finite gradient; "
                    "try a smaller optim.lr or optim.precision=float32"
                )

            scored = [learner.average.network if config.optim.ema_decay else learner.network]
            scored[0].eval()
            full = validation.in_full(config, epoch)
            looked_at = valid_cases if full else some_cases if validation.due(config, epoch) else []
            share = looked_at[rank::world_size]
            # By series UID: a series that two workers scored counts once.
            ways = config if full else validation.quick(config)
            training_done = time.perf_counter()
            mine_scored = _counted(score_cases(scored, share, cache, ways, device), "validation", len(share), tell)
            scores = dict(gather(list(mine_scored), world_size))
            validated = validate(looked_at, scores, fold, config.stage)
            validation_done = time.perf_counter()
            is_due = config.sampler.hard_negative_fraction and (epoch + 1) % config.sampler.hard_negative_every == 0
            if is_due and epoch + 1 < config.optim.epochs:  # nobody draws from what the last epoch would find
                seed = (config.seed, fold, epoch)
                mine = find_hard_negatives(scored, cases, cache, config, device, seed, part, tell)
                learner.hard = _refreshed(learner.hard, gather(mine, world_size))
            mining_done = time.perf_counter()

            metrics = {
                "epoch": float(epoch),
                **_of_training(losses, taught.skipped),
                **validated.metrics,
                "lr": taught.rate,
                "seconds": mining_done - started,
                "patches_per_s": len(plan) / seconds,
                "data_wait_fraction": taught.waited_s / seconds,
                "seconds/feed": taught.waited_s,
                "seconds/steps": seconds - taught.waited_s,
                "seconds/validation": validation_done - training_done,
                "seconds/mining": mining_done - validation_done,
                "seconds/writing": writing,
            }
            learner.history.append(metrics)
            learner.next_epoch = epoch + 1
            tables = (validated.predictions, validated.candidates, validated.heatmaps if full else {})
            yielded = time.perf_counter()
            yield EpochResult(epoch, metrics, *tables, _state(learner, config, fold))
            writing = time.perf_counter() - yielded


def check(config: Config) -> None:
    """Build the network once and look whether model and patch fit. Raises ConfigError where they do not."""
    if config.stage == "vessels" and config.model.head != "grid":
        raise ConfigError('stage = "vessels" needs model.head = "grid", whose cells can say what is vessel')
    if config.augment.turn and len({*config.patch.size}) * len({*config.volume.spacing_mm}) > 1:
        raise ConfigError(
            f"augment.turn = {config.augment.turn:g} needs patches that are cubes: patch.size = "
            f"{list(config.patch.size)} with volume.spacing_mm = {list(config.volume.spacing_mm)} are none"
        )
    with torch.device("meta"):
        network = models.build(config.model)
    if not network.pooled and any(length % network.stride for length in config.patch.size):
        raise ConfigError(
            f"patch.size = {list(config.patch.size)} must be multiples of the grid's stride, {network.stride} voxels"
        )


def gather(mine: Sequence[Thing], world_size: int) -> list[Thing]:
    """Return the items of all workers, in the order of their ranks, to all of them."""
    if world_size == 1:
        return list(mine)
    everyone: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(everyone, list(mine))
    return [item for part in everyone for item in part]


def _counted(things: Iterator[Thing], what: str, total: int, tell: Tell) -> Iterator[Thing]:
    for done, thing in enumerate(things, 1):
        tell(what, done, total)
        yield thing


def _of_training(losses: np.ndarray, skipped: int) -> dict[str, float]:
    """Return the metrics of an epoch's training, given sums of losses and numbers of patches by kind, (K, 2)."""
    of_kind = {kind: row for kind, row in zip(KINDS, losses, strict=True) if row[1]}
    return {
        "train/loss": float(losses[:, 0].sum() / max(losses[:, 1].sum(), 1)),
        **{f"train/loss/{kind}": float(total / count) for kind, (total, count) in of_kind.items()},
        **{f"train/drawn/{kind}": float(count) for kind, (_, count) in of_kind.items()},
        "train/skipped": float(skipped),
    }


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
    plan = _plan(cases, config, fold, 0, ())
    patches, cells = objective.positive_frequencies(cases, plan, config, network)
    weights = objective.positive_weights(config, patches, cells, network)
    if network.pooled:
        models.set_prior(network, patches, weights.patch)
    else:
        models.set_prior(network, cells, weights.cell)
    if init is not None:
        checkpoint.transfer(network, init)
    # What nobody goes on teaching drifts: vessels learnt before may gate lesions only where masks keep them right.
    network.knows_vessels.fill_(float(objective.learns_vessels(config, cases)))
    if (learnt := atlas.learn(cases)) is not None:
        network.atlas.copy_(torch.from_numpy(learnt))
    objective.freeze_unasked(network, config, cases)
    # Channels last: as fast or faster for every network, on CPUs and GPUs, and what a norm over channels reads.
    network = network.to(device=device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    average = optim.Ema(network, config.optim.ema_decay)
    optimizer = optim.adamw(network, config.optim)
    replica = wrap(torch.compile(network) if config.optim.compile else network)  # type: ignore[arg-type]
    return Learner(network, replica, average, optimizer, weights.to(device))


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
    network: models.Network,
) -> Iterator[MicroBatches]:
    """Yield this worker's part of each global batch, as micro-batches, made ahead by threads."""
    masks = objective.needs_masks(config, cases)

    def make(step: np.ndarray) -> MicroBatches:
        made: MicroBatches = []
        for chosen in np.array_split(step, min(config.optim.accumulate, len(step))):
            batch = cut(cases, plan, chosen, config.patch.size, cache.patch, masks=masks)
            batch, changes = augment.prepare(batch, augment.draw(config.augment, seed, chosen))
            if made_ahead(device):
                made.append(examples(batch, changes, config, network))
            else:
                made.append(augment.packed(batch, changes, pin=device.type == "cuda"))
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


def _torch_seed(*words: int) -> int:
    """Return a seed for torch's own draws: fresh weights and dropout."""
    return int(np.random.SeedSequence(words).generate_state(1)[0])
