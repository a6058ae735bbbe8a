"""3D networks by name; every network maps a patch to a grid of logits.

Shapes: B patches, C channels, L labels (14), Z Y X voxels or, after the network, cells. Images are (B, 1, Z, Y, X) in
[0, 1]. A pooled network's grid is 1x1x1: the mean of its cells' logits, which equals a linear layer on mean-pooled
features. So `cells` is also the class-activation map of a pooled network, and one class serves both heads.

Normalisation is GroupNorm everywhere. Its statistics are those of one patch, so a step's gradient does not depend on
how a batch is split over workers or micro-batches, averaged weights need no statistics of their own, and batches of
two large patches work. On the CPU it is also four times faster than BatchNorm. (MONAI's `norm` argument reaches only
the stem: its `_make_layer` keeps BatchNorm, as of 1.6, so the layers are exchanged here.)
"""

import math
from collections.abc import Callable

import torch
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn

from aneurysm_ray.config import ModelConfig
from aneurysm_ray.errors import ConfigError, did_you_mean
from aneurysm_ray.labels import LABELS

GROUP_CHANNELS = 16
"""Channels that are normalised together: the best number of Wu and He 2018, section 4.1; one alone was the worst."""

PRIOR = 0.01
"""Probability every output starts from when nothing is known about the targets (Lin et al. 2017, section 4.1)."""


class Network(nn.Module):
    """A backbone, then a 1x1x1 convolution to 14 logits in every cell.

    `stride` is the number of voxels per cell. Cell i is taken to be centred at voxel (i + 0.5) * stride - 0.5, so that
    the grid of a mirrored patch is the mirrored grid; sizes along each axis should be multiples of the stride.
    """

    def __init__(self, backbone: nn.Module, channels: int, stride: int, *, pooled: bool, dropout: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Conv3d(channels, len(LABELS), kernel_size=1)
        nn.init.normal_(self.head.weight, std=0.01)
        self.stride = stride
        self.pooled = pooled
        set_prior(self, torch.full((len(LABELS),), PRIOR))

    def cells(self, image_BCZYX: Tensor) -> Tensor:
        """Return the logits (B, 14, gz, gy, gx) of every cell, whatever the head."""
        logits: Tensor = self.head(self.dropout(self.backbone(image_BCZYX)))
        return logits

    def forward(self, image_BCZYX: Tensor) -> Tensor:
        """Return the head's grid of logits: (B, 14, 1, 1, 1) pooled, else one vector per cell."""
        cells = self.cells(image_BCZYX)
        return cells.mean((2, 3, 4), keepdim=True) if self.pooled else cells


def set_prior(network: Network, probability_L: Tensor, weight: float | Tensor = 1.0) -> None:
    """Set the last bias so that an untrained network answers with each label's frequency.

    A loss that weighs positives by `weight` is least at the odds times that weight. Frequencies are kept above 1e-4,
    since a label without positives would otherwise start at minus infinity.
    """
    probability = probability_L.clamp(1e-4, 1 - 1e-4)
    bias = network.head.bias
    assert bias is not None
    with torch.no_grad():
        bias.copy_(torch.log(probability / (1 - probability) * weight))


class SmallBlock(nn.Module):
    """Two 3x3x3 convolutions beside a shortcut (He et al. 2016), GroupNorm, ReLU."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = _norm(channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = _norm(channels)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and channels_in == channels
            else nn.Sequential(nn.Conv3d(channels_in, channels, 1, stride=stride, bias=False), _norm(channels))
        )

    def forward(self, x_BCZYX: Tensor) -> Tensor:
        inner = torch.relu(self.norm1(self.conv1(x_BCZYX)))
        return torch.relu(self.norm2(self.conv2(inner)) + self.shortcut(x_BCZYX))


def _small3d(config: ModelConfig) -> Network:
    """Build one block per stage behind a 5x5x5 stem: 0.9 M parameters at width 16, quick on a CPU."""
    w = config.width
    strides, _ = _stage_strides(config, maxpool=False)
    stages: list[nn.Module] = [
        nn.Conv3d(1, w, 5, stride=config.stem_stride, padding=2, bias=False),
        _norm(w),
        nn.ReLU(inplace=True),
    ]
    channels = w
    for factor, stride in zip((1, 2, 4, 8), (1, *strides), strict=True):
        stages.append(SmallBlock(channels, w * factor, stride))
        channels = w * factor
    stride = config.stem_stride * math.prod(strides)
    return Network(nn.Sequential(*stages), channels, stride, pooled=config.head == "pooled", dropout=config.dropout)


class ResNetFeatures(ResNet):  # type: ignore[misc]  # MONAI is untyped here
    """MONAI's 3D ResNet up to its last stage, with the strides of its stages as given."""

    def forward(self, x_BCZYX: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv1(x_BCZYX)))
        if not self.no_max_pool:
            x = self.maxpool(x)
        features: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return features


def _resnet(block: str, layers: tuple[int, int, int, int]) -> Callable[[ModelConfig], Network]:
    def make(config: ModelConfig) -> Network:
        strides, maxpool = _stage_strides(config, maxpool=True)
        backbone = ResNetFeatures(
            block=block,
            layers=list(layers),
            block_inplanes=[config.width * factor for factor in (1, 2, 4, 8)],
            n_input_channels=1,
            conv1_t_size=7,
            conv1_t_stride=config.stem_stride,
            no_max_pool=not maxpool,
            feed_forward=False,
            bias_downsample=False,  # as the MedicalNet weights have it
        )
        for name, stride in zip(("layer2", "layer3", "layer4"), strides, strict=True):
            if stride == 1:
                _remove_strides(getattr(backbone, name))
        _exchange_norms(backbone)
        channels = 8 * config.width * (4 if block == "bottleneck" else 1)
        stride = config.stem_stride * math.prod(strides) * (2 if maxpool else 1)
        return Network(backbone, channels, stride, pooled=config.head == "pooled", dropout=config.dropout)

    return make


MODELS: dict[str, Callable[[ModelConfig], Network]] = {
    "resnet3d10": _resnet("basic", (1, 1, 1, 1)),
    "resnet3d18": _resnet("basic", (2, 2, 2, 2)),
    "resnet3d34": _resnet("basic", (3, 4, 6, 3)),
    "resnet3d50": _resnet("bottleneck", (3, 4, 6, 3)),
    "small3d": _small3d,
}
"""Every network by the name that `model.name` takes."""


def build(config: ModelConfig) -> Network:
    """Build a network with fresh weights, drawn from torch's global generator.

    Raises ConfigError for an unknown name, or an output stride that the network's strides cannot give.
    """
    if config.name not in MODELS:
        raise ConfigError(
            f"model.name = {config.name!r} is unknown{did_you_mean(config.name, MODELS)}; there are {', '.join(MODELS)}"
        )
    return MODELS[config.name](config)


def count_parameters(network: nn.Module) -> int:
    """Return the number of trained weights."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def _stage_strides(config: ModelConfig, *, maxpool: bool) -> tuple[tuple[int, int, int], bool]:
    """Return the strides of stages 2-4 and whether the max pool stays.

    A pooled head keeps all of them. A grid head keeps the early ones until the output stride is reached; the max pool
    goes first of all, because an aneurysm of 3 mm is only six voxels wide.
    """
    if config.head == "pooled":
        return (2, 2, 2), maxpool
    left = config.output_stride / config.stem_stride
    strides = []
    for _ in range(3):
        strides.append(2 if left >= 2 else 1)
        left /= strides[-1]
    if left == 2 and maxpool:
        return (strides[0], strides[1], strides[2]), True
    if left != 1:
        raise ConfigError(
            f"model.output_stride = {config.output_stride} cannot be reached by {config.name} with "
            f"model.stem_stride = {config.stem_stride}; their ratio must be 1, 2, 4 or 8"
        )
    return (strides[0], strides[1], strides[2]), False


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, max(1, channels // GROUP_CHANNELS)), channels)


def _exchange_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm3d):
            setattr(module, name, _norm(child.num_features))
        else:
            _exchange_norms(child)


def _remove_strides(stage: nn.Module) -> None:
    for module in stage.modules():
        if isinstance(module, nn.Conv3d):
            module.stride = (1, 1, 1)
