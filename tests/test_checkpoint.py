import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from learning_sets import small_config
from safetensors.torch import save_file

from aneurysm_ray.config import Config, ModelConfig
from aneurysm_ray.errors import RunDirError
from aneurysm_ray.learning import checkpoint, models


def _state(config: Config, network: models.Network, average: models.Network | None = None) -> dict[str, Any]:
    return {
        "config": config.model_dump(mode="json"),
        "model": dict(network.state_dict()),
        "ema": dict(average.state_dict()) if average else {},
        "history": [{"epoch": 0.0, "val/score": float("nan")}],
        "hard": [["1.2.3", 1.0, 2.0, 3.0, 0.5]],
    }


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    state = _state(config, models.build(config.model))
    checkpoint.save(tmp_path / "last", state)
    loaded = checkpoint.load(tmp_path / "last")
    assert loaded["hard"] == state["hard"] and loaded["config"] == state["config"]
    torch.testing.assert_close(loaded["model"], state["model"])
    assert [path.name for path in (tmp_path / "last").iterdir()] == ["state.pt"]


@pytest.mark.parametrize("left", [0, 10, 0.3, 0.9, -10, "changed"])
def test_a_damaged_state_is_called_so_and_the_cure_named(tmp_path: Path, left: float | str) -> None:
    config = small_config(tmp_path)
    checkpoint.save(tmp_path / "last", _state(config, models.build(config.model)))
    path = tmp_path / "last" / "state.pt"
    whole = path.read_bytes()
    if isinstance(left, str):
        middle = len(whole) // 2
        path.write_bytes(
            whole[:middle] + bytes(255 - byte for byte in whole[middle : middle + 40]) + whole[middle + 40 :]
        )
    else:
        path.write_bytes(whole[: int(left * len(whole)) if isinstance(left, float) else left])
    with pytest.raises(RunDirError, match=r"last/state\.pt: damaged.*; remove .*/last and run .* --resume") as refused:
        checkpoint.load(tmp_path / "last")
    assert "code" not in str(refused.value)


def test_weights_that_are_cut_short_are_not_called_code(tmp_path: Path) -> None:
    path = tmp_path / "pretrained.pth"
    for zipped in (True, False):
        torch.save({"a": torch.ones(1000)}, path, _use_new_zipfile_serialization=zipped)
        path.write_bytes(path.read_bytes()[:700])
        with pytest.raises(RunDirError, match=r"pretrained\.pth: damaged or cut short .*; fetch the file again"):
            checkpoint.read_weights(path)


@pytest.mark.parametrize("averaged", [True, False])
def test_the_network_that_validation_used_is_loaded(tmp_path: Path, averaged: bool) -> None:
    config = small_config(tmp_path, model__head="grid")
    network, average = models.build(config.model), models.build(config.model)
    checkpoint.save(tmp_path, _state(config, network, average if averaged else None))
    loaded, its_config = checkpoint.load_model(tmp_path)
    assert its_config == config and not loaded.training
    image = torch.rand(1, 1, 24, 24, 24)
    torch.testing.assert_close(loaded(image), (average if averaged else network).eval()(image))


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path("/tmp/aneurysm_ray_was_here").touch, ()


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    torch.save({"model": Malicious(), "config": {}}, tmp_path / "state.pt")
    with pytest.raises(RunDirError, match="files that hold code are never loaded"):
        checkpoint.load(tmp_path)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"model": Malicious()}, protocol=2))
    with pytest.raises(RunDirError, match="files that hold code are never loaded"):
        checkpoint.read_weights(tmp_path / "plain.pth")
    assert not Path("/tmp/aneurysm_ray_was_here").exists()


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match=r"state\.pt: cannot be read"):
        checkpoint.load(tmp_path)
    for junk in (b"", b"half", b"PK\x03\x04 not a zip"):
        (tmp_path / "state.pt").write_bytes(junk)
        with pytest.raises(RunDirError, match=r"state\.pt: damaged or cut short"):
            checkpoint.load(tmp_path)
    torch.save({"other": torch.ones(1)}, tmp_path / "state.pt")
    with pytest.raises(RunDirError, match="is not a checkpoint of aneurysm_ray"):
        checkpoint.load(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"junk")
    with pytest.raises(RunDirError, match="not a safetensors file"):
        checkpoint.read_weights(tmp_path / "a.safetensors")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(RunDirError, match="holds no named tensors"):
        checkpoint.read_weights(tmp_path / "none.pth")


def _medicalnet(network: models.Network) -> dict[str, torch.Tensor]:
    """State dict with MedicalNet's names: DataParallel's prefix, BatchNorm's statistics, a segmentation head."""
    mine = {
        "module." + name.removeprefix("backbone."): torch.randn_like(value)
        for name, value in network.state_dict().items()
        if name.startswith("backbone.")
    }
    mine["module.bn1.running_mean"] = torch.zeros(8)
    mine["module.conv_seg.0.weight"] = torch.zeros(2, 2)
    return mine


def test_medicalnet_weights_find_their_place(tmp_path: Path) -> None:
    config = ModelConfig(name="resnet3d10", width=8)
    network = models.build(config)
    foreign = _medicalnet(network)
    foreign["module.layer4.0.conv2.weight"] = torch.zeros(3)
    torch.save({"state_dict": foreign}, tmp_path / "resnet_10.pth")
    report = checkpoint.transfer(network, checkpoint.read_weights(tmp_path / "resnet_10.pth"))
    torch.testing.assert_close(network.state_dict()["backbone.conv1.weight"], foreign["module.conv1.weight"])
    torch.testing.assert_close(
        network.state_dict()["backbone.layer2.0.downsample.0.weight"], foreign["module.layer2.0.downsample.0.weight"]
    )
    assert report.misshapen == ("backbone.layer4.0.conv2.weight",)
    own = {"head.weight", "head.bias", "knows_vessels", "atlas"}
    assert set(report.missing) == {"backbone.layer4.0.conv2.weight", *own}
    assert set(report.unused) == {"module.bn1.running_mean", "module.conv_seg.0.weight"}
    assert len(report.matched) == len(network.state_dict()) - 5
    assert str(report) == (
        f"{len(report.matched)} of {len(network.state_dict())} tensors fit; "
        "1 of another shape (backbone.layer4.0.conv2.weight); "
        "4 not in the file (knows_vessels, atlas, head.weight, ...); "
        "2 not used (module.bn1.running_mean, module.conv_seg.0.weight)"
    )


def test_own_checkpoints_and_safetensors_match_in_full(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    source, target = models.build(config.model), models.build(config.model)
    checkpoint.save(tmp_path / "run", _state(config, source))
    save_file(dict(source.state_dict()), tmp_path / "weights.safetensors")
    for path in (tmp_path / "run", tmp_path / "weights.safetensors"):
        target = models.build(config.model)
        report = checkpoint.transfer(target, checkpoint.read_weights(path))
        assert not report.missing and not report.unused
        torch.testing.assert_close(target.state_dict(), source.state_dict())


def test_weights_of_nothing_alike_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="hardly any of the file's weights fits"):
        checkpoint.transfer(models.build(ModelConfig(name="small3d", width=4)), {"a.b": torch.ones(2)})


def test_weights_of_another_network_are_refused_though_a_few_tensors_fit() -> None:
    small = models.build(ModelConfig(name="small3d", head="grid", width=4))
    with pytest.raises(RunDirError, match=r"^hardly any.*: [1-9] of \d+ tensors fit.*give the settings of the network"):
        checkpoint.transfer(models.build(ModelConfig(name="resnet3d10", width=4)), small.state_dict())
