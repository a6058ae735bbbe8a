"""Layers that give the same answer for a patch and for a whole volume, and right gradients in half precision."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-2
"""Added to the variance: in air a smaller one would multiply noise, and gradients, by hundreds in every layer."""
SMALLEST = 1e-6
"""Added to the variance whose root is taken: the root's slope at 0 is infinite."""


class ChannelNorm(nn.Module):
    """Normalise the channels of each voxel (Ba et al. 2016, as ConvNeXt has it), then scale and shift them.

    Statistics never leave the voxel. So a volume may be scored in windows of any size, a step's gradient does not
    depend on how a batch is split over workers, and averaged weights need no statistics of their own.

    An image's own channels all grow with its brightness, which normalising divides out: bone and contrast medium would
    be the same. `keeps_size` adds to each channel a learnt multiple of what was divided by.
    """

    def __init__(self, channels: int, *, keeps_size: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.size = nn.Parameter(torch.randn(channels)) if keeps_size else None

    def forward(self, x_BCZYX: Tensor) -> Tensor:
        last = x_BCZYX.movedim(1, -1)
        weight, bias = self.weight.to(last.dtype), self.bias.to(last.dtype)
        normed = F.layer_norm(last, (last.shape[-1],), weight, bias, EPSILON)
        if self.size is not None:
            centred = last.float() - last.float().mean(-1, keepdim=True)
            # `var` goes through the channels one by one, at seven times the cost.
            deviation = (centred.square().mean(-1, keepdim=True) + SMALLEST).sqrt()
            normed = normed + (deviation * self.size).to(last.dtype)
        return normed.movedim(-1, 1)


def group_norm(channels: int) -> nn.GroupNorm:
    """Normalise groups of 16 channels of a whole patch: the best number of Wu and He 2018, section 4.1.

    For networks that see nothing but patches of one size. A step's gradient does not depend on how a batch is split
    over workers either.
    """
    return nn.GroupNorm(math.gcd(channels, max(1, channels // 16)), channels)


class Conv3d(nn.Conv3d):
    """A convolution that works in float32 where its input is smaller than its kernel.

    There oneDNN's weight gradient in bfloat16 is wrong on CPUs, often not a number (torch 2.13); elsewhere it is right.
    """

    def forward(self, x_BCZYX: Tensor) -> Tensor:
        is_small = any(n < k for n, k in zip(x_BCZYX.shape[2:], self.kernel_size, strict=True))
        if is_small and x_BCZYX.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x_BCZYX.float()).to(torch.get_autocast_dtype("cpu"))
        return super().forward(x_BCZYX)


class Block(nn.Module):
    """Two 3x3x3 convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, channels_in: int, channels: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = Conv3d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = norm(channels)
        self.conv2 = Conv3d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = norm(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = Conv3d(channels_in, channels, 1, stride=stride, bias=False)

    def forward(self, x_BCZYX: Tensor) -> Tensor:
        inner = torch.relu(self.norm1(self.conv1(x_BCZYX)))
        return torch.relu(self.norm2(self.conv2(inner)) + self.shortcut(x_BCZYX))


class Decoder(nn.Module):
    """Bring the coarse stages of a backbone back to the finest given one (Lin et al. 2017, feature pyramids).

    From the coarsest on: a 1x1x1 convolution to the next finer stage's channels, nearest-neighbour upsampling, a sum,
    a 3x3x3 convolution.
    """

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        pairs = list(zip(channels[1:], channels[:-1], strict=True))
        self.lateral = nn.ModuleList([Conv3d(coarse, fine, 1) for coarse, fine in pairs])
        self.smooth = nn.ModuleList(
            [nn.Sequential(Conv3d(fine, fine, 3, padding=1, bias=False), ChannelNorm(fine)) for _, fine in pairs]
        )

    def forward(self, stages: list[Tensor]) -> Tensor:
        """Return the finest stage, (B, C, z, y, x), informed by all coarser ones; `stages` are finest first."""
        x = stages[-1]
        for lateral, smooth, stage in reversed(list(zip(self.lateral, self.smooth, stages, strict=False))):
            x = F.interpolate(lateral(x), size=stage.shape[2:], mode="nearest") + stage
            x = torch.relu(smooth(x))
        return x
