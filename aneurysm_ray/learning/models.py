"""3D networks by name; every network maps a patch to cells of logits.

Shapes: B patches, C channels, L labels (14), Z Y X voxels or, after the network, cells. Images are (B, 1, Z, Y, X) in
[0, 1].

- Pooled: the answer for a patch is the mean of its cells' logits, which equals a linear layer on mean-pooled features.
  So the cells are also the class-activation map (Zhou et al. 2016), which tells where in the patch the answer is from.
- Grid: a light decoder brings the backbone's stages to the output stride, and each cell answers for its place. One
  channel says whether a lesion is there; where it is, 13 others say which vessel it sits on, so that rare locations
  need not learn what an aneurysm is. Beside them each cell says whether it is vessel: that can be learnt from masks
  without any aneurysm, and a lesion away from every vessel is none (`gated`).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aneurysm_ray.config import ModelConfig
from aneurysm_ray.errors import ConfigError, did_you_mean
from aneurysm_ray.labels import LABELS, LOCATIONS, PRESENT_INDEX
from aneurysm_ray.learning import atlas
from aneurysm_ray.learning.layers import Block, ChannelNorm, Conv3d, Decoder, group_norm

PRIOR = 0.01
"""Probability every output starts from when nothing is known about the targets (Lin et al. 2017, section 4.1)."""

GATE_VOXELS = 6
"""A lesion cell asks for a vessel within this distance along each axis."""


class Answer(NamedTuple):
    """Logits of a network's cells."""

    cells: Tensor
    """(B, 14, z, y, x). Grid: the last channel is the lesion's, the others those of its location, given a lesion."""
    vessels: Tensor | None
    """(B, 1, z, y, x); None of a pooled network."""


class Backbone(nn.Module):
    """What maps an image to features of several strides, the finest first."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]


class Network(nn.Module):
    """A backbone, a decoder where cells have a place, and 1x1x1 convolutions to logits.

    `stride` is the number of voxels per cell. Cell i is taken to be centred at voxel (i + 0.5) * stride - 0.5, so that
    the grid of a mirrored patch is the mirrored grid; sizes along each axis should be multiples of the stride.

    Raises ConfigError for an output stride that none of the backbone's stages has.
    """

    def __init__(self, backbone: Backbone, config: ModelConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooled = config.head == "pooled"
        self.stride = backbone.strides[-1] if self.pooled else config.output_stride
        if self.stride not in backbone.strides:
            raise ConfigError(
                f"model.output_stride = {config.output_stride} is none of the strides of {config.name} with "
                f"model.stem_stride = {config.stem_stride}, which are {', '.join(map(str, backbone.strides))}"
            )
        self.finest = backbone.strides.index(self.stride)
        channels = backbone.channels[self.finest :]
        self.decoder = None if self.pooled else Decoder(channels)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Conv3d(channels[0], len(LABELS), kernel_size=1)
        nn.init.normal_(self.head.weight, std=0.01)
        self.vessel_head: nn.Conv3d | None = None
        if not self.pooled:
            self.vessel_head = nn.Conv3d(channels[0], 1, kernel_size=1)
            nn.init.normal_(self.vessel_head.weight, std=0.01)
            nn.init.constant_(_bias(self.vessel_head), -3.0)
        self.knows_vessels: Tensor
        self.register_buffer("knows_vessels", torch.zeros(()))
        """1 once masks taught it vessels: only then they may gate its lesions."""
        self.atlas: Tensor
        self.register_buffer("atlas", torch.ones(atlas.SIZE, atlas.SIZE, atlas.SIZE))
        """Where the aneurysms lay that it learnt from."""
        set_prior(self, torch.full((len(LABELS),), PRIOR))

    def forward(self, image_BCZYX: Tensor) -> Answer:
        """Return the logits of every cell, in float32 whatever the arithmetic before."""
        stages = self.backbone(image_BCZYX)
        features = self.dropout(stages[-1] if self.decoder is None else self.decoder(stages[self.finest :]))
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            vessels = None if self.vessel_head is None else self.vessel_head(features)
            return Answer(self.head(features), vessels)


def lesion_probabilities(answer: Answer, network: Network, *, gate: bool) -> Tensor:
    """Return (B, 14, z, y, x) of a grid network: of a lesion in the last channel, of one at each location before it.

    gate: where the network knows vessels, a lesion is at most twice as probable as the most probable vessel near it.
    """
    lesion = torch.sigmoid(answer.cells[:, PRESENT_INDEX:])
    if gate and answer.vessels is not None:
        reach = GATE_VOXELS // network.stride
        near = F.max_pool3d(torch.sigmoid(answer.vessels), 2 * reach + 1, stride=1, padding=reach)
        lesion = torch.where(network.knows_vessels > 0, lesion * (2 * near).clamp(max=1), lesion)
    location = torch.softmax(answer.cells[:, : len(LOCATIONS)], 1)
    return torch.cat([location * lesion, lesion], 1)


def set_prior(network: Network, probability_L: Tensor, weight: float | Tensor = 1.0) -> None:
    """Set the last bias so that an untrained network answers with each label's frequency.

    A loss that weighs positives by `weight` is least at the odds times that weight. Frequencies are kept above 1e-4,
    since a label without positives would otherwise start at minus infinity. Locations of a grid start all alike.
    """
    probability = probability_L.clamp(1e-4, 1 - 1e-4)
    odds = torch.log(probability / (1 - probability) * weight)
    if not network.pooled:
        odds[: len(LOCATIONS)] = 0.0
    with torch.no_grad():
        _bias(network.head).copy_(odds)


class SmallFeatures(Backbone):
    """A 5x5x5 stem and two blocks at twice and four times its stride: quick on a CPU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        w = config.width
        self.channels = (w, 3 * w, 6 * w)
        self.strides = (config.stem_stride, 2 * config.stem_stride, 4 * config.stem_stride)
        first = Conv3d(1, w, 5, stride=config.stem_stride, padding=2, bias=False)
        self.stem = nn.Sequential(first, _first_norm(config, first), nn.ReLU(inplace=True))
        self.blocks = nn.ModuleList([Block(w, 3 * w, 2, _norm(config)), Block(3 * w, 6 * w, 2, _norm(config))])

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        stages = [self.stem(x_BCZYX)]
        for block in self.blocks:
            stages.append(block(stages[-1]))
        return stages


class ResNetFeatures(Backbone):
    """MONAI's 3D ResNet without its max pool, which would halve a dome of four voxels before anything has seen it."""

    def __init__(self, config: ModelConfig, block: str, layers: tuple[int, int, int, int]) -> None:
        super().__init__()
        from monai.networks.nets.resnet import ResNet  # takes two seconds, which the other networks need not

        planes = [config.width * factor for factor in (1, 2, 4, 8)]
        made = ResNet(
            block=block,
            layers=list(layers),
            block_inplanes=planes,
            n_input_channels=1,
            conv1_t_size=7,
            conv1_t_stride=config.stem_stride,
            feed_forward=False,
            bias_downsample=False,  # as the MedicalNet weights have it
        )
        # MONAI's `norm` argument reaches only the stem: its `_make_layer` keeps BatchNorm, as of 1.6.
        _exchange_layers(made, _norm(config))
        self.conv1, self.bn1 = made.conv1, _first_norm(config, made.conv1)
        self.layer1, self.layer2, self.layer3, self.layer4 = made.layer1, made.layer2, made.layer3, made.layer4
        self.channels = tuple(n * (4 if block == "bottleneck" else 1) for n in planes)
        self.strides = tuple(config.stem_stride * factor for factor in (1, 2, 4, 8))

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        x = torch.relu(self.bn1(self.conv1(x_BCZYX)))
        stages = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            stages.append(x)
        return stages


def _resnet(block: str, layers: tuple[int, int, int, int]) -> Callable[[ModelConfig], Backbone]:
    return lambda config: ResNetFeatures(config, block, layers)


MODELS: dict[str, Callable[[ModelConfig], Backbone]] = {
    "resnet3d10": _resnet("basic", (1, 1, 1, 1)),
    "resnet3d18": _resnet("basic", (2, 2, 2, 2)),
    "resnet3d34": _resnet("basic", (3, 4, 6, 3)),
    "resnet3d50": _resnet("bottleneck", (3, 4, 6, 3)),
    "small3d": SmallFeatures,
}
"""Every backbone by the name that `model.name` takes."""


def build(config: ModelConfig) -> Network:
    """Build a network with fresh weights, drawn from torch's global generator.

    Raises ConfigError for an unknown name, or an output stride that the network's strides cannot give.
    """
    if config.name not in MODELS:
        raise ConfigError(
            f"model.name = {config.name!r} is unknown{did_you_mean(config.name, MODELS)}; there are {', '.join(MODELS)}"
        )
    return Network(MODELS[config.name](config), config)


def count_parameters(network: nn.Module) -> int:
    """Return the number of trained weights."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def _norm(config: ModelConfig) -> Callable[[int], nn.Module]:
    """Return what normalises a backbone's features: those of a patch, or where windows may be larger, of a voxel.

    Pooled networks did not learn at all from features whose contrast was taken away voxel by voxel.
    """
    return group_norm if config.head == "pooled" else ChannelNorm


def _first_norm(config: ModelConfig, convolution: nn.Conv3d) -> nn.Module:
    """Return what normalises the channels that the image itself becomes, and of a grid network keeps their size.

    An even image at full brightness then counts about as much by its size as by its direction.
    """
    if config.head == "pooled":
        return group_norm(convolution.out_channels)
    norm = ChannelNorm(convolution.out_channels, keeps_size=True)
    assert norm.size is not None
    with torch.no_grad():
        norm.size.div_(convolution.weight.sum((1, 2, 3, 4)).std(correction=0))
    return norm


def _exchange_layers(module: nn.Module, norm: Callable[[int], nn.Module]) -> None:
    """Put this project's convolutions and norms in the place of torch's."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm3d):
            setattr(module, name, norm(child.num_features))
        elif isinstance(child, nn.Conv3d):
            child.__class__ = Conv3d
        else:
            _exchange_layers(child, norm)


def _bias(layer: nn.Conv3d) -> Tensor:
    assert layer.bias is not None
    return layer.bias
