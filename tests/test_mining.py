"""Which places a search for hard negatives takes, given what a network says."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from aneurysm_ray.config import Config, SamplerConfig
from aneurysm_ray.labels import LABELS, PRESENT_INDEX
from aneurysm_ray.learning import validation
from aneurysm_ray.learning.cases import Case
from aneurysm_ray.learning.validation import HARD_AWAY_MM, HARD_PER_SERIES, find_hard_negatives

SPACING_MM = 2.0
NOTHING = pd.DataFrame(columns=["x_mm", "y_mm", "z_mm", "probability"], dtype=float)


def case(uid: str, present: float, points: list[tuple[float, float, float]], radius_mm: float = np.nan) -> Case:
    affine = np.zeros((4, 4))
    affine[[0, 1, 2, 3], [2, 1, 0, 3]] = SPACING_MM, SPACING_MM, SPACING_MM, 1.0
    targets = np.zeros(len(LABELS), np.float32)
    targets[PRESENT_INDEX] = present
    return Case(
        uid, uid, "CTA", "axial", Path(), (100, 100, 100), affine, targets, np.array(points, np.float32).reshape(-1, 3),
        np.full(len(points), PRESENT_INDEX), np.full(len(points), radius_mm, np.float32),
    )  # fmt: skip


def found(monkeypatch: pytest.MonkeyPatch, cases: Sequence[Case], voxels: Sequence[int], **settings: Any) -> list[Any]:
    """Search where the network answers, in every series, with places along x."""
    rows = [(SPACING_MM * x, 100.0, 100.0, 0.9 - 0.01 * i) for i, x in enumerate(voxels)]
    table = pd.DataFrame(rows, columns=["x_mm", "y_mm", "z_mm", "probability"])

    def score_cases(networks: object, asked: Sequence[Case], *_: object) -> Iterator[tuple[str, Any]]:
        return ((case.series_uid, SimpleNamespace(candidates=table)) for case in asked)

    monkeypatch.setattr(validation, "score_cases", score_cases)
    config = Config(sampler=SamplerConfig(**settings))
    return find_hard_negatives([], cases, None, config, torch.device("cpu"), (0, 0, 0), (0, 1))  # type: ignore[arg-type]


def test_a_negative_series_gives_its_strongest_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    hard = found(monkeypatch, [case("1.1", 0, [])], range(20, 20 + 2 * HARD_PER_SERIES, 1))
    assert [(h.z, h.y) for h in hard] == [(50, 50)] * HARD_PER_SERIES
    assert [h.x for h in hard] == list(range(20, 20 + HARD_PER_SERIES))
    assert hard[0].probability == pytest.approx(0.9)


@pytest.mark.parametrize("radius_mm", [np.nan, 4.0])
def test_a_positive_series_gives_those_away_from_its_aneurysm(
    monkeypatch: pytest.MonkeyPatch, radius_mm: float
) -> None:
    positive = case("1.1", 1, [(50, 50, 40)], radius_mm)
    reach = int((HARD_AWAY_MM + np.nan_to_num(radius_mm)) / SPACING_MM)
    hard = found(monkeypatch, [positive], [40, 40 + reach, 40 + reach + 1, 40 - reach - 1])
    assert [h.x for h in hard] == [40 + reach + 1, 40 - reach - 1]


def test_a_series_whose_aneurysm_has_no_place_or_whose_label_is_unknown_gives_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not found(monkeypatch, [case("1.1", 1, []), case("1.2", np.nan, [])], [20, 60])


def test_a_search_goes_through_so_many_series_and_the_next_through_others(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [case(f"1.{i}", 0, []) for i in range(30)]
    hard = found(monkeypatch, cases, [20, 60], hard_negative_series=7)
    assert len(hard) == 14 and len({h.series_uid for h in hard}) == 7


def test_a_search_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(
        validation,
        "score_cases",
        lambda _, asked, *__: ((c.series_uid, SimpleNamespace(candidates=NOTHING)) for c in asked),
    )
    cases = [case(f"1.{number}", 0, []) for number in range(5)]
    config = Config(sampler=SamplerConfig(hard_negative_series=4))
    find_hard_negatives(
        *([], cases, None, config, torch.device("cpu"), (0, 0, 0), (1, 2)),  # type: ignore[arg-type]
        tell=lambda what, done, total: told.append((done, total)),
    )
    assert told == [(1, 2), (2, 2)]
