import pytest
import torch
from monai.networks.nets.resnet import ResNet

from aneurysm_ray.config import ModelConfig
from aneurysm_ray.errors import ConfigError
from aneurysm_ray.labels import LABELS
from aneurysm_ray.learning import models


@pytest.mark.parametrize("name", list(models.MODELS))
@pytest.mark.parametrize(("head", "grid"), [("pooled", (1, 1, 1)), ("grid", (4, 6, 5))])
def test_every_network_maps_a_patch_to_a_grid_of_14_logits(name: str, head: str, grid: tuple[int, ...]) -> None:
    network = models.build(ModelConfig(name=name, head=head, width=4))
    logits = network(torch.rand(2, 1, 32, 48, 40))
    assert logits.shape == (2, len(LABELS), *grid)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(
    ("name", "stride"),
    [(name, stride) for name in models.MODELS for stride in (4, 8, 16, 32) if (name, stride) != ("small3d", 32)],
)
def test_stride_is_voxels_per_cell(name: str, stride: int) -> None:
    network = models.build(ModelConfig(name=name, head="grid", width=4, output_stride=stride))
    assert network.stride == stride
    assert network.cells(torch.rand(1, 1, 64, 64, 64)).shape[2:] == (64 // stride,) * 3


def test_pooled_logits_are_the_mean_of_the_cells() -> None:
    network = models.build(ModelConfig(name="small3d", width=4)).eval()
    image = torch.rand(2, 1, 32, 32, 48)
    torch.testing.assert_close(network(image), network.cells(image).mean((2, 3, 4), keepdim=True))


def test_a_fresh_network_answers_with_the_prior() -> None:
    network = models.build(ModelConfig(name="small3d", width=4))
    prior = torch.linspace(0.02, 0.4, len(LABELS))
    models.set_prior(network, prior)
    network.head.weight.data.zero_()
    torch.testing.assert_close(torch.sigmoid(network(torch.rand(1, 1, 32, 32, 32))).flatten(), prior)
    models.set_prior(network, prior, weight=5.0)
    odds = torch.sigmoid(network(torch.rand(1, 1, 32, 32, 32))).flatten().logit().exp()
    torch.testing.assert_close(odds, 5 * prior / (1 - prior))


def test_answers_do_not_depend_on_the_rest_of_the_batch() -> None:
    network = models.build(ModelConfig(name="resnet3d18", width=8))
    network.train()
    images = torch.rand(3, 1, 32, 32, 32)
    torch.testing.assert_close(network(images)[1], network(images[1:2])[0])
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


def test_small3d_has_the_size_its_notes_say() -> None:
    assert 0.8e6 < models.count_parameters(models.build(ModelConfig(name="small3d", width=16))) < 1.3e6


def test_unknown_names_and_impossible_strides_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean resnet3d18"):
        models.build(ModelConfig(name="resnet18"))
    with pytest.raises(ConfigError, match="output_stride = 4 cannot be reached"):
        models.build(ModelConfig(head="grid", stem_stride=3, output_stride=4))
    with pytest.raises(ConfigError, match="output_stride = 32"):
        models.build(ModelConfig(name="small3d", head="grid", output_stride=32))
