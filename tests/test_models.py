import subprocess
import sys

import pytest
import torch
from monai.networks.nets.resnet import ResNet
from torch import nn

from aneurysm_ray.config import ModelConfig
from aneurysm_ray.errors import ConfigError
from aneurysm_ray.labels import LABELS
from aneurysm_ray.learning import models
from aneurysm_ray.learning.layers import Conv3d


@pytest.mark.parametrize("name", list(models.MODELS))
def test_every_network_answers_for_cells(name: str) -> None:
    image = torch.rand(2, 1, 32, 48, 40)
    pooled = models.build(ModelConfig(name=name, head="pooled", width=4))
    answer = pooled(image)
    assert answer.cells.shape == (2, len(LABELS), *(-(-n // pooled.stride) for n in (32, 48, 40)))
    assert answer.vessels is None and torch.isfinite(answer.cells).all()


@pytest.mark.parametrize(
    ("name", "stride"),
    [(name, stride) for name in models.MODELS for stride in (2, 4, 8, 16) if (name, stride) != ("small3d", 16)],
)
def test_stride_is_voxels_per_cell(name: str, stride: int) -> None:
    network = models.build(ModelConfig(name=name, head="grid", width=4, output_stride=stride))
    assert network.stride == stride
    answer = network(torch.rand(1, 1, 32, 64, 48))
    assert answer.cells.shape[2:] == (32 // stride, 64 // stride, 48 // stride)
    assert answer.vessels is not None and answer.vessels.shape[1:] == (1, *answer.cells.shape[2:])


def test_a_fresh_network_answers_with_the_prior() -> None:
    network = models.build(ModelConfig(name="small3d", width=4))
    prior = torch.linspace(0.02, 0.4, len(LABELS))
    models.set_prior(network, prior)
    network.head.weight.data.zero_()
    image = torch.rand(1, 1, 32, 32, 32)
    torch.testing.assert_close(torch.sigmoid(network(image).cells.mean((2, 3, 4))).flatten(), prior)
    models.set_prior(network, prior, weight=5.0)
    odds = torch.sigmoid(network(image).cells.mean((2, 3, 4))).flatten().logit().exp()
    torch.testing.assert_close(odds, 5 * prior / (1 - prior))


def test_a_fresh_grid_takes_all_locations_for_alike() -> None:
    network = models.build(ModelConfig(name="small3d", width=4, head="grid"))
    models.set_prior(network, torch.linspace(0.02, 0.4, len(LABELS)))
    network.head.weight.data.zero_()
    found = models.lesion_probabilities(network(torch.rand(1, 1, 32, 32, 32)), network, gate=True)
    torch.testing.assert_close(found[:, -1], torch.full_like(found[:, -1], 0.4))
    torch.testing.assert_close(found[:, :-1], torch.full_like(found[:, :-1], 0.4 / 13))


def test_lesions_away_from_vessels_are_gated_once_vessels_are_known() -> None:
    network = models.build(ModelConfig(name="small3d", width=4, head="grid", output_stride=4))
    cells = torch.zeros(1, len(LABELS), 9, 9, 9)
    vessels = torch.full((1, 1, 9, 9, 9), -50.0)
    vessels[0, 0, 4, 4, 4] = torch.tensor(0.1).logit()
    answer = models.Answer(cells, vessels)
    assert (models.lesion_probabilities(answer, network, gate=True)[:, -1] == 0.5).all()
    network.knows_vessels.fill_(1.0)
    lesion = models.lesion_probabilities(answer, network, gate=True)[0, -1]
    assert lesion[4, 4, 4].item() == pytest.approx(0.1) and lesion[5, 3, 4].item() == pytest.approx(0.1)
    assert lesion[6, 4, 4].item() < 1e-9 and (lesion > 0.01).sum() == 27
    assert (models.lesion_probabilities(answer, network, gate=False)[:, -1] == 0.5).all()


@pytest.mark.parametrize("name", ["small3d", "resnet3d18"])
def test_a_fresh_grid_network_tells_contrast_medium_from_bone(name: str) -> None:
    """Where an image is even, nothing but its brightness says what it shows."""
    torch.manual_seed(0)
    network = models.build(ModelConfig(name=name, head="grid", width=16))
    with torch.inference_mode():
        dark, bright = (
            network.backbone(torch.full((1, 1, 32, 32, 32), level))[0][0, :, 4, 4, 4] for level in (0.4, 1.0)
        )
    assert torch.cosine_similarity(dark, bright, 0) < 0.95


@pytest.mark.parametrize("name", ["small3d", "resnet3d18"])
def test_cells_do_not_depend_on_what_else_lies_in_a_window(name: str) -> None:
    torch.manual_seed(0)
    network = models.build(ModelConfig(name=name, head="grid", width=4, output_stride=4)).eval()
    nn.init.normal_(network.head.weight)
    small = torch.rand(1, 1, 32, 32, 256)
    large = torch.zeros(1, 1, 32, 32, 320)
    large[..., :256] = small
    # Further away than the receptive field reaches, nothing of what is beside can matter.
    torch.testing.assert_close(network(small).cells[..., :4], network(large).cells[..., :4], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kernel", "size"), [(3, 1), (3, 2), (3, 3), (5, 4), (5, 6), (7, 8), (1, 1)])
@pytest.mark.parametrize("stride", [1, 2])
def test_half_precision_keeps_a_convolutions_gradient(kernel: int, size: int, stride: int) -> None:
    """oneDNN's own is wrong where the input is smaller than the kernel."""
    torch.manual_seed(0)
    layer = Conv3d(8, 16, kernel, stride=stride, padding=kernel // 2, bias=False)
    image = torch.rand(4, 8, size, size, size).to(memory_format=torch.channels_last_3d)
    gradients = []
    for enabled in (False, True):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            answer = layer(image)
        (answer.float() - 0.1).square().mean().backward()
        assert layer.weight.grad is not None
        gradients.append(layer.weight.grad.flatten().clone())
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


@pytest.mark.parametrize("name", ["small3d", "resnet3d18"])
@pytest.mark.parametrize("head", ["pooled", "grid"])
def test_half_precision_keeps_every_layers_gradient(name: str, head: str) -> None:
    torch.manual_seed(0)
    network = models.build(ModelConfig(name=name, head=head, width=8, output_stride=4))
    image = torch.rand(4, 1, 24, 24, 24).to(memory_format=torch.channels_last_3d)
    image[:, :, 8:14, 6:12, 4:9] += 1
    gradients = []
    for enabled in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            answer = network(image)
        total = answer.cells.square().mean() + (0 if answer.vessels is None else answer.vessels.square().mean())
        total.backward()
        gradients.append({key: p.grad.flatten().clone() for key, p in network.named_parameters() if p.grad is not None})
    exact, half = gradients
    assert exact.keys() == half.keys() and len(exact) > 10
    worst = min(torch.cosine_similarity(value, half[key], dim=0) for key, value in exact.items())
    assert worst > 0.9


def test_answers_do_not_depend_on_the_rest_of_the_batch() -> None:
    network = models.build(ModelConfig(name="resnet3d18", width=8))
    network.train()
    images = torch.rand(3, 1, 32, 32, 32)
    torch.testing.assert_close(network(images).cells[1], network(images[1:2]).cells[0])
    assert not any(isinstance(module, torch.nn.BatchNorm3d) for module in network.modules())


def test_resnet_is_monais_apart_from_norm_and_head() -> None:
    network = models.build(ModelConfig(name="resnet3d34", width=64))
    reference = ResNet("basic", [3, 4, 6, 3], [64, 128, 256, 512], n_input_channels=1, conv1_t_stride=2, num_classes=14)
    mine = {name.removeprefix("backbone."): value.shape for name, value in network.named_parameters()}
    theirs = {
        name: value.shape
        for name, value in reference.named_parameters()
        if not name.startswith("fc.") and "downsample.0.bias" not in name
    }
    assert len(theirs) > 100
    assert {name: mine[name] for name in theirs} == theirs
    assert 63e6 < models.count_parameters(network) < 64e6


def test_small3d_is_small() -> None:
    assert 0.4e6 < models.count_parameters(models.build(ModelConfig(name="small3d", width=16))) < 0.6e6


def test_unknown_names_and_impossible_strides_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean resnet3d18"):
        models.build(ModelConfig(name="resnet18"))
    with pytest.raises(ConfigError, match=r"output_stride = 32 is none of the strides of small3d .* 2, 4, 8"):
        models.build(ModelConfig(name="small3d", head="grid", output_stride=32))
    with pytest.raises(ConfigError, match="output_stride = 2 is none"):
        models.build(ModelConfig(head="grid", stem_stride=4, output_stride=2))


def test_networks_of_our_own_load_no_monai() -> None:
    """It takes two seconds of every worker's start."""
    program = """
import sys
from aneurysm_ray.config import ModelConfig
from aneurysm_ray.learning import engine, models
models.build(ModelConfig(name="small3d", width=4))
print("monai" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
