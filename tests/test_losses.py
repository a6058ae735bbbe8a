import math

import pytest
import torch

from aneurysm_ray.config import LossConfig
from aneurysm_ray.labels import LABELS, PRESENT_INDEX
from aneurysm_ray.learning import losses

ONES = torch.ones(len(LABELS))


def _logits_and_targets(seed: int = 0, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, len(LABELS), *shape, generator=generator)
    return logits, (torch.rand(4, len(LABELS), *shape, generator=generator) < 0.3).float()


def test_bce_of_one_label_by_hand() -> None:
    logits, targets = torch.zeros(1, 14), torch.full((1, 14), torch.nan)
    logits[0, PRESENT_INDEX], targets[0, PRESENT_INDEX] = 2.0, 1.0
    loss = losses.patch_losses(logits, targets, LossConfig(name="bce"), ONES)
    # Present weighs one half against the mean of the locations; -log sigmoid(2) = log(1 + e^-2).
    assert loss.item() == pytest.approx(0.5 * math.log1p(math.exp(-2)))
    # With three times the weight it counts 3 / (1 + 3); as a positive of weight 5, five times.
    config = LossConfig(name="bce", present_weight=3.0)
    assert losses.patch_losses(logits, targets, config, 5 * ONES).item() == pytest.approx(
        0.75 * 5 * math.log1p(math.exp(-2))
    )


def test_focal_by_hand() -> None:
    logits, targets = torch.zeros(1, 14), torch.full((1, 14), torch.nan)
    logits[0, PRESENT_INDEX], targets[0, PRESENT_INDEX] = math.log(4), 0.0  # p = 0.8 of a negative
    loss = losses.patch_losses(logits, targets, LossConfig(name="focal", focal_gamma=2, focal_alpha=0.25), ONES)
    assert loss.item() == pytest.approx(0.5 * 0.75 * 0.8**2 * -math.log(0.2), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.01, 0.3, 0.7, 1.0, 1.5, 4.0])
def test_focal_has_a_gradient_for_any_gamma_however_sure_the_network_is(gamma: float) -> None:
    sure = torch.tensor([-1e4, -90.0, -17.0, -1.0, 0.0, 1.0, 17.0, 90.0, 1e4])
    logits = sure.view(-1, 1).repeat(1, len(LABELS)).requires_grad_()
    for target in (0.0, 1.0, 0.5, float(torch.sigmoid(torch.tensor(1.0)))):  # the last two as mixed patches have them
        (slope,) = torch.autograd.grad(
            losses.patch_losses(
                logits,
                torch.full_like(logits, target),
                LossConfig(name="focal", focal_gamma=gamma, focal_alpha=0.25),
                ONES,
            ).sum(),
            logits,
        )
        assert torch.isfinite(slope).all(), (gamma, target)
    # Where the loss is not next to nothing it is the formula's: a positive of p = sigmoid(-1).
    missed = losses.patch_losses(
        torch.full((1, 14), -1.0), torch.ones(1, 14), LossConfig(name="focal", focal_gamma=gamma), ONES
    )
    p = 1 / (1 + math.exp(1))
    assert missed.item() == pytest.approx((1 - p) ** gamma * -math.log(p), rel=1e-5)


def test_focal_without_focus_is_cross_entropy() -> None:
    logits, targets = _logits_and_targets()
    focal = losses.patch_losses(logits, targets, LossConfig(name="focal", focal_gamma=0), ONES)
    torch.testing.assert_close(focal, losses.patch_losses(logits, targets, LossConfig(name="bce"), ONES))


def test_bce_equals_torchs() -> None:
    logits, targets = _logits_and_targets(1)
    weights = torch.linspace(1, 9, 14)
    reference = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, targets, weight=losses.label_weights(2.0), pos_weight=weights, reduction="none"
    ).sum(1)
    mine = losses.patch_losses(logits, targets, LossConfig(name="bce", present_weight=2.0), weights)
    torch.testing.assert_close(mine, reference)


def _everything(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """All losses of a grid's cells at once, (B,); channels 0 to 12 are locations, 13 is the lesion's or a vessel's."""
    lesion, wanted = logits[:, PRESENT_INDEX], targets[:, PRESENT_INDEX]
    return (
        losses.cell_losses(lesion, wanted, LossConfig(), torch.tensor(5.0))
        + losses.tversky_losses(lesion, wanted)
        + losses.location_losses(logits[:, :PRESENT_INDEX], targets[:, :PRESENT_INDEX])
        + losses.vessel_losses(lesion.unsqueeze(1), wanted.unsqueeze(1))
    )


def test_unknown_targets_have_no_gradient_and_leave_the_others_alone() -> None:
    logits, targets = _logits_and_targets(2, 2, 3, 2)
    targets[1, :, 0] = torch.nan
    logits.requires_grad_()
    _everything(logits, targets).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[1, :, 0] == 0).all()
    assert (logits.grad[1, PRESENT_INDEX, 1] != 0).all()
    assert torch.isfinite(logits.grad).all()


def test_gradient_of_a_batch_is_the_mean_of_its_parts() -> None:
    logits, targets = _logits_and_targets(3, 2, 2, 2)
    targets[0] = torch.nan  # a divisor that counted known targets would differ between the parts
    whole = _everything(logits, targets).sum() / 4
    parts = [_everything(logits[i], targets[i]).sum() for i in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(whole, sum(parts) / 4)


def test_cells_and_tversky_by_hand() -> None:
    # Three cells of probability 0.8, 0.5 and 0.2; only the first is a lesion, the last is not known.
    logits = torch.tensor([[[0.8, 0.5, 0.2]]]).logit()
    targets = torch.tensor([[[1.0, 0.0, torch.nan]]])
    config = LossConfig(name="bce")
    entropy = -(5 * math.log(0.8) + math.log(0.5)) / 3
    assert losses.cell_losses(logits, targets, config, torch.tensor(5.0)).tolist() == pytest.approx([entropy])
    overlap = 1.8 / (0.8 + 0.3 * 0.5 + 0.7 * 0.2 + 1)
    assert losses.tversky_losses(logits, targets).tolist() == pytest.approx([1 - overlap])
    none = torch.zeros(1, 1, 3)
    entropy = -(math.log(0.2) + math.log(0.5) + math.log(0.8)) / 3
    assert losses.cell_losses(logits, none, config, torch.tensor(5.0)).tolist() == pytest.approx([entropy])
    assert losses.tversky_losses(logits, none).tolist() == [0.0]


def test_vessels_by_hand() -> None:
    logits, targets = torch.tensor([[[[[0.8, 0.5]]]]]).logit(), torch.tensor([[[[[1.0, 0.0]]]]])
    entropy = -(3 * math.log(0.8) + math.log(0.5)) / 2
    dice = (2 * 0.8 + 2) / (0.8 + 0.5 + 1 + 2)
    assert losses.vessel_losses(logits, targets).tolist() == pytest.approx([entropy + 1 - dice], rel=1e-5)


def test_a_location_is_asked_for_in_known_cells_alone() -> None:
    logits = torch.zeros(1, 13, 1, 1, 3)
    targets = torch.full((1, 13, 1, 1, 3), torch.nan)
    assert losses.location_losses(logits, targets).item() == 0
    targets[..., 0] = 0
    targets[0, 4, 0, 0, 0] = 1
    assert losses.location_losses(logits, targets).item() == pytest.approx(math.log(13))
    targets[0, 7, 0, 0, 0] = 1  # two aneurysms meet
    logits[0, [4, 7], 0, 0, 0] = 100.0
    assert losses.location_losses(logits, targets).item() == pytest.approx(math.log(2))


def test_class_weights_are_negatives_over_positives_with_a_ceiling() -> None:
    frequency = torch.tensor([0.5, 0.2, 0.001, *[0.1] * 11])
    weights = losses.positive_weights(LossConfig(class_weights=True, max_class_weight=20), frequency)
    torch.testing.assert_close(weights[:4], torch.tensor([1.0, 4.0, 20.0, 9.0]))
    assert losses.positive_weights(LossConfig(positive_weight=5), frequency).tolist() == [5.0] * 14


def test_pooled_logits_are_the_mean_of_the_highest() -> None:
    grid = torch.arange(2 * 14 * 8, dtype=torch.float32).view(2, 14, 2, 2, 2)
    assert losses.pool_logits(grid, 3)[0, 0].item() == pytest.approx((7 + 6 + 5) / 3)
    torch.testing.assert_close(losses.pool_logits(grid, 99), grid.flatten(2).mean(2))
