"""The weights that come with the package."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from aneurysm_ray import overrides
from aneurysm_ray.distributed import preflight, submit
from aneurysm_ray.errors import ConfigError, RequestError
from aneurysm_ray.learning import checkpoint, export, models, starter


def test_the_starter_is_small_and_says_what_it_is() -> None:
    assert starter.FILE.stat().st_size < 8e6
    trained = export.load(Path(starter.NAME))
    assert "synthetic heads alone" in trained.note and "research" in trained.note
    assert trained.config.volume.spacing_mm == (0.8, 0.8, 0.8)
    assert trained.digest == export.load(starter.FILE).digest


def test_training_may_start_from_it_with_its_preset(caplog: pytest.LogCaptureFixture) -> None:
    config = overrides.build(overrides.preset("starter"), {"init": "starter"})
    assert preflight.settled(config).init == "starter"
    network = models.build(config.model)
    found = checkpoint.transfer(network, checkpoint.read_weights(Path(config.init)))
    assert not found.missing and not found.unused
    for name, tensor in export.load(Path(starter.NAME)).models[0].state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], tensor)


def test_another_network_cannot_start_from_it() -> None:
    config = overrides.build(overrides.preset("v5"), {"init": "starter"})
    with pytest.raises(ConfigError, match="--preset starter"):
        preflight.check_network(config, pd.DataFrame(), [0])


def test_a_job_may_name_it() -> None:
    submit.check_paths("predict", ["starter", "/shared/new", "--out", "/shared/out"])
    submit.check_paths("train", ["/shared/volumes", "--out", "/shared/out", "init=starter"])
    with pytest.raises(RequestError, match="is relative"):
        submit.check_paths("predict", ["model.safetensors", "/shared/new", "--out", "/shared/out"])
