"""What a step asks of a device that is not the host: one copy, and no answer."""

import contextlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learning_sets import small_config, write_set
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aneurysm_ray.config import Config
from aneurysm_ray.data import store
from aneurysm_ray.learning import augment, engine, epoch, objective
from aneurysm_ray.learning.augment import MicroBatch
from aneurysm_ray.learning.cache import VolumeCache
from aneurysm_ray.learning.cases import Case, from_table
from aneurysm_ray.learning.patches import cut

ALL_CHANGES: dict[str, Any] = {
    "volume__spacing_mm": (1.0, 1.0, 1.0),
    "augment__affine_probability": 0.7,
    "augment__turn": 0.5,
    "augment__mixup": 0.5,
    "augment__blur": 0.5,
    "augment__gamma": 0.2,
    "augment__noise": 0.02,
}


class Copies(TorchDispatchMode):
    """Notes every operation between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given, got = ([x for x in tree_leaves(values) if isinstance(x, torch.Tensor)] for values in (args, made))
        if len({tensor.device for tensor in [*given, *got]}) > 1:
            self.seen.append((str(func), given[0].nbytes))
        return made


def prepared(folder: Path, config: Config) -> tuple[tuple[Case, ...], MicroBatch]:
    """Return the cases of a small set, and a batch of them."""
    volumes = write_set(folder / "set", 4, masks=(0, 1, 2))
    cases = from_table(store.volumes_table(volumes), volumes)
    plan, door = engine._plan(cases, config, 0, 0, ()), VolumeCache(folder / "cache", 10**9).patch
    chosen = np.arange(config.optim.batch_size)
    batch = cut(cases, plan, chosen, config.patch.size, door, masks=objective.needs_masks(config, cases))
    return cases, augment.prepare(batch, augment.draw(config.augment, (0, 0, 0), chosen))


@pytest.mark.parametrize("head", ["pooled", "grid"])
def test_a_step_on_a_device_makes_one_copy_and_waits_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    """On torch's device without values, where whoever asks for one gets an exception."""
    config = small_config(tmp_path, model__head=head, **ALL_CHANGES)
    cases, (batch, changes) = prepared(tmp_path, config)
    learner = engine._start(config, cases, 0, torch.device("cpu"), lambda network: network, None)
    wanted = epoch.losses_of(learner, epoch.examples(batch, changes, config, learner.network), config)
    packed = augment.packed(batch, changes, pin=False)
    there = torch.device("meta")
    learner.network.to(there)
    learner.weights = learner.weights.to(there)
    # It knows no autocasting, and has no generator.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "Generator", lambda device: _NoGenerator())
    with Copies() as copies:
        loss = epoch.losses_of(learner, epoch.examples(*packed.to(there), config, learner.network), config)
        loss.sum().backward()
    assert copies.seen == [("aten._to_copy.default", packed.tensors.bytes_N.nbytes)]
    assert (loss.device, loss.shape) == (there, wanted.shape)
    with pytest.raises(RuntimeError):
        loss.sum().item()


class _NoGenerator:
    def manual_seed(self, seed: int) -> None: ...


@pytest.mark.parametrize("head", ["pooled", "grid"])
def test_a_packed_batch_comes_out_the_same(tmp_path: Path, head: str) -> None:
    config = small_config(tmp_path, model__head=head, **ALL_CHANGES)
    _, micro_batch = prepared(tmp_path, config)
    for before, after in zip(micro_batch, augment.packed(*micro_batch, pin=False).to(torch.device("cpu")), strict=True):
        for field in fields(before):
            first, second = getattr(before, field.name), getattr(after, field.name)
            assert type(first) is type(second)
            if isinstance(first, torch.Tensor):
                assert first.dtype == second.dtype and first.data_ptr() != second.data_ptr()
                torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
