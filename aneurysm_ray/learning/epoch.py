"""The steps of one epoch: batch after batch, forward, backward, update.

Each part of a step is a range of its own to torch's profiler.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import record_function

from aneurysm_ray.config import Config
from aneurysm_ray.learning import augment, models, objective, optim
from aneurysm_ray.learning.augment import Changes, PackedMicroBatch
from aneurysm_ray.learning.objective import Weights
from aneurysm_ray.learning.patches import Batch
from aneurysm_ray.learning.sampler import KINDS, HardNegative

PARTS = ("feed", "copy", "augment", "forward", "backward", "optimizer")
"""Names of a step's ranges."""

Tell = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is, and of how much: steps of an epoch's training, series validated."""


@dataclass(frozen=True, eq=False)
class Examples:
    """What a network is asked in a step, and what it should answer."""

    image_BCZYX: Tensor
    """float32 in [0, 1]."""
    goals: list[Tensor]
    """As `objective.wanted` returns them."""
    kind_B: Tensor
    """As `Batch` has it."""


MicroBatches = list[Examples | PackedMicroBatch]
"""Examples lie where the step is made; packed batches become examples there."""


@dataclass(eq=False)
class Learner:
    """What changes during training."""

    network: models.Network
    replica: nn.Module
    """The network as a step calls it: compiled, data-parallel, or itself."""
    average: optim.Ema
    optimizer: torch.optim.Optimizer
    weights: Weights
    step: int = 0
    next_epoch: int = 0
    hard: list[HardNegative] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Taught:
    """What an epoch's steps came to on this worker."""

    losses: np.ndarray
    """(K, 2): sum of the losses and number of the patches of each of `sampler.KINDS`."""
    skipped: int
    """Steps without a finite gradient, the same on all workers."""
    waited_s: float
    """For batches."""
    rate: float
    """Of the last step."""


def train_epoch(
    learner: Learner,
    feed: Iterator[MicroBatches],
    patches: int,
    config: Config,
    world_size: int,
    device: torch.device,
    tell: Tell,
) -> Taught:
    """Make the steps of an epoch."""
    of_epoch = patches // config.optim.batch_size
    steps, done = config.optim.epochs * of_epoch, 0
    losses, skipped = torch.zeros(len(KINDS), 2, device=device), torch.zeros((), device=device)
    waited, rate = 0.0, 0.0
    clip_norm = config.optim.clip_norm or float("inf")
    learner.network.train()
    while True:
        asked = time.perf_counter()
        with record_function("feed"):
            micro_batches = next(feed, None)
        waited += time.perf_counter() - asked
        if micro_batches is None:
            break
        rate = optim.learning_rate(learner.step, steps, config.optim)
        for group in learner.optimizer.param_groups:
            group["lr"] = rate
        for number, micro_batch in enumerate(micro_batches, 1):
            with contextlib.nullcontext() if number == len(micro_batches) else _no_sync(learner.replica):
                with record_function("copy"):
                    there = micro_batch.to(device) if isinstance(micro_batch, PackedMicroBatch) else micro_batch
                with record_function("augment"):
                    shown = there if isinstance(there, Examples) else examples(*there, config, learner.network)
                with record_function("forward"):
                    loss = losses_of(learner, shown, config)
                # Data-parallel gradients are means over workers: this makes them the mean over the global batch.
                with record_function("backward"):
                    (loss.sum() * (world_size / config.optim.batch_size)).backward()  # type: ignore[no-untyped-call]
            loss = loss.detach()
            known = torch.isfinite(loss)
            losses.index_add_(0, shown.kind_B, torch.stack([torch.where(known, loss, 0.0), known.float()], 1))
        with record_function("optimizer"):
            norm = nn.utils.clip_grad_norm_(learner.network.parameters(), clip_norm)
            # The fused optimiser leaves all as it was where this is 1, without anybody having to wait for the answer.
            is_lost = (~torch.isfinite(norm)).float()
            learner.optimizer.found_inf = is_lost  # type: ignore[attr-defined]
            skipped += is_lost
            learner.optimizer.step()
            learner.optimizer.zero_grad(set_to_none=True)
            if config.optim.ema_decay:
                learner.average.update(learner.network, learner.step)
        learner.step += 1
        done += 1
        tell("training", done, of_epoch)
    return Taught(losses.double().cpu().numpy(), int(skipped.item()), waited, rate)


def examples(batch: Batch, changes: Changes, config: Config, network: models.Network) -> Examples:
    """Change a prepared batch's voxels, and make what the network should answer of it."""
    batch = augment.apply(batch, changes)
    goals = objective.wanted(batch, config, network)
    image, goals = augment.mix(batch.image_BZYX.unsqueeze(1), goals, changes)
    return Examples(image, goals, batch.kind_B)


def losses_of(learner: Learner, shown: Examples, config: Config) -> Tensor:
    """Return (B,) losses of patches."""
    image = shown.image_BCZYX.to(memory_format=torch.channels_last_3d)
    with optim.autocast(config.optim, image.device):
        answer = learner.replica(image)
    return objective.patch_losses(answer, shown.goals, config, learner.network, learner.weights)


def made_ahead(device: torch.device) -> bool:
    """Return whether the threads that cut a batch also make examples of it; a GPU makes them faster itself."""
    return device.type == "cpu"


def _no_sync(replica: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Return the context in which a data-parallel network keeps its gradients to itself."""
    context: contextlib.AbstractContextManager[None] = getattr(replica, "no_sync", contextlib.nullcontext)()
    return context
