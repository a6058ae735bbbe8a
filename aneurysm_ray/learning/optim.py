"""The step's parts: which weights decay, the learning rate, the arithmetic, averaged weights."""

import copy
import math
from typing import Any

import torch
from torch import nn

from aneurysm_ray.config import OptimConfig
from aneurysm_ray.learning.models import Network


def adamw(network: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW that decays the weights of convolutions and linear layers, not norms and biases."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Return the rate of a step (from 0): linear warm-up to `lr`, then a half cosine that ends near 0."""
    warmup = round(config.warmup * steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup + 1) / (steps - warmup + 1)))


def autocast(config: OptimConfig, device: torch.device) -> torch.autocast:
    """Return the context of the forward pass: bfloat16 where `precision` asks for it, else float32."""
    bfloat16 = config.precision == "bfloat16" or (config.precision == "auto" and is_half_fast(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)


def is_half_fast(device: torch.device) -> bool:
    """Return whether a device computes faster in bfloat16 than in float32."""
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return device.type == "cuda"


class Ema:
    """Weights averaged over steps. Young averages decay faster, so that the start is soon forgotten."""

    def __init__(self, network: Network, decay: float) -> None:
        self.network = copy.deepcopy(network)
        self.network.eval().requires_grad_(False)
        self.decay = decay

    def update(self, network: nn.Module, step: int) -> None:
        """Move the average towards the weights after a step (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        mine: list[Any] = list(self.network.parameters())
        torch._foreach_lerp_(mine, [p.detach() for p in network.parameters()], 1 - decay)
