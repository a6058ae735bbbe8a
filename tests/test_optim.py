import numpy as np
import pytest
import torch

from aneurysm_ray.config import ModelConfig, OptimConfig
from aneurysm_ray.learning import models, optim


def test_rate_climbs_then_falls_as_a_half_cosine() -> None:
    config = OptimConfig(lr=1.0, warmup=0.2)
    rates = [optim.learning_rate(step, 10, config) for step in range(10)]
    assert rates[:2] == [0.5, 1.0]
    expected = [0.5 * (1 + np.cos(np.pi * k / 9)) for k in range(1, 9)]
    assert rates[2:] == pytest.approx(expected)
    assert optim.learning_rate(0, 3, OptimConfig(lr=1.0, warmup=0.0)) == pytest.approx(0.5 * (1 + np.cos(np.pi / 4)))


def test_only_weights_of_convolutions_decay() -> None:
    network = models.build(ModelConfig(name="small3d", width=4))
    decayed, plain = optim.adamw(network, OptimConfig(weight_decay=0.1)).param_groups
    assert decayed["weight_decay"] == 0.1 and plain["weight_decay"] == 0
    assert all(p.ndim == 5 for p in decayed["params"]) and all(p.ndim == 1 for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(list(network.parameters()))


def test_average_by_hand() -> None:
    network = models.build(ModelConfig(name="small3d", width=4))
    average = optim.Ema(network, 0.9)
    start = average.network.head.weight.clone()
    with torch.no_grad():
        network.head.weight.add_(1.0)
    average.update(network, step=0)  # a young average: decay 1/10
    torch.testing.assert_close(average.network.head.weight, start + 0.9)
    average.update(network, step=10**6)  # an old one: decay 0.9
    torch.testing.assert_close(average.network.head.weight, start + 0.91)
    assert not average.network.training and not average.network.head.weight.requires_grad


def test_arithmetic_follows_the_device() -> None:
    cpu = torch.device("cpu")
    able = torch.cpu.get_capabilities()
    auto = torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32
    for precision, expected in (("auto", auto), ("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with optim.autocast(OptimConfig(precision=precision), cpu):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected
