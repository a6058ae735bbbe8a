from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from learning_sets import small_config, write_set

from aneurysm_ray.config import Config
from aneurysm_ray.data import store
from aneurysm_ray.labels import LABELS, PRESENT_INDEX
from aneurysm_ray.learning import models, objective
from aneurysm_ray.learning.cases import Case, from_table
from aneurysm_ray.learning.models import Answer, Network
from aneurysm_ray.learning.patches import Batch, cut, no_voxels
from aneurysm_ray.learning.sampler import plan_epoch


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, ...]:
    folder = write_set(tmp_path_factory.mktemp("volumes"), 8)
    return from_table(store.volumes_table(folder), folder)


def _batch(cases: tuple[Case, ...], config: Config) -> Batch:
    patch = config.patch
    plan = plan_epoch(cases, config.sampler, patch.size, patch.border_mm, 8, (0, 0, 0))
    return cut(cases, plan, np.arange(8), patch.size, no_voxels)


def _grid(config: Config) -> tuple[Network, Answer]:
    network = models.build(config.model)
    cells = [n // network.stride for n in config.patch.size]
    answer = Answer(torch.randn(8, len(LABELS), *cells).requires_grad_(), torch.randn(8, 1, *cells).requires_grad_())
    return network, answer


def test_a_grids_loss_is_the_weighted_sum_of_its_parts(cases: tuple[Case, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    names = ("tversky", "location", "vessel", "series")
    none = {f"loss__{name}_weight": 0.0 for name in names}
    weights = objective.Weights(torch.ones(len(LABELS)), torch.tensor(1.0))

    def losses(**changes: float) -> torch.Tensor:
        config = small_config(tmp_path, **{"model__head": "grid", **none, **changes})
        return objective.patch_losses(answer, goals, config, network, weights).detach()

    config = small_config(tmp_path, model__head="grid")
    network, answer = _grid(config)
    batch = _batch(cases, config)
    goals = [*objective.wanted(batch, config, network), torch.ones(8, 1, *answer.cells.shape[2:])]
    bare = losses()
    parts = {name: losses(**{f"loss__{name}_weight": 1.0}) - bare for name in names}
    assert all((part >= -1e-6).all() and part.sum() > 0.01 for part in parts.values())
    total = losses(**{f"loss__{name}_weight": 0.5 for name in names})
    torch.testing.assert_close(total, bare + 0.5 * sum(parts.values()), rtol=1e-4, atol=1e-5)


def test_the_vessel_stage_moves_nothing_but_vessels(cases: tuple[Case, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = small_config(tmp_path, model__head="grid", stage="vessels")
    network, answer = _grid(config)
    goals = [
        *objective.wanted(_batch(cases, config), config, network),
        (torch.rand(8, 1, *answer.cells.shape[2:]) < 0.2).float(),
    ]
    weights = objective.Weights(torch.ones(len(LABELS)), torch.tensor(1.0))
    objective.patch_losses(answer, goals, config, network, weights).sum().backward()
    assert answer.cells.grad is None
    assert answer.vessels is not None and answer.vessels.grad is not None and (answer.vessels.grad != 0).all()


def test_a_rare_location_does_not_outweigh_the_lesion(cases: tuple[Case, ...], tmp_path: Path) -> None:
    """In a positive patch the gradient of the lesion's channel is larger than that of the 13 locations together."""
    torch.manual_seed(0)
    config = small_config(tmp_path, model__head="grid")
    network, answer = _grid(config)
    goals = objective.wanted(_batch(cases, config), config, network)
    positive = (goals[1][:, PRESENT_INDEX] == 1).flatten(1).any(1)
    assert positive.any()
    weights = objective.Weights(torch.ones(len(LABELS)), torch.tensor(5.0))
    objective.patch_losses(answer, goals, config, network, weights)[positive].sum().backward()
    assert answer.cells.grad is not None
    lesion, location = answer.cells.grad[:, PRESENT_INDEX], answer.cells.grad[:, :PRESENT_INDEX]
    assert lesion.abs().sum() > location.abs().sum() > 0


def test_masks_are_asked_for_only_where_they_teach(cases: tuple[Case, ...], tmp_path: Path) -> None:
    masked = [*cases[:-1], replace(cases[-1], has_vessels=True)]
    grid = small_config(tmp_path, model__head="grid")
    assert objective.learns_vessels(grid, masked) and objective.needs_masks(grid, masked)
    assert not objective.learns_vessels(grid, cases) and not objective.needs_masks(grid, cases)
    assert not objective.needs_masks(small_config(tmp_path), masked)
    unasked = small_config(tmp_path, model__head="grid", loss__vessel_weight=0.0)
    assert not objective.learns_vessels(unasked, masked)
    assert objective.needs_masks(unasked, masked) == any(case.has_domes for case in masked)
