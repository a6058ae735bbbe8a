"""Thresholds for a wanted sensitivity or rate of false alarms, by hand and through a file and a prediction."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_export import run  # noqa: F401  (a fixture)

from aneurysm_ray import overrides
from aneurysm_ray.distributed import steps
from aneurysm_ray.errors import ConfigError
from aneurysm_ray.labels import LABELS, PRESENT_INDEX
from aneurysm_ray.learning import export, inference, metrics, operating
from aneurysm_ray.reporting import predict_page

TARGETS = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, np.nan])
VALUES = np.array([0.9, 0.7, 0.6, 0.2, 0.8, 0.65, 0.3, 0.1, 0.1, 0.99])
"""From above: positive, negative, positive, negative, positive, negative, positive, two negatives; one unknown."""


def test_a_curve_by_hand() -> None:
    steps = operating.curve(TARGETS, VALUES)
    np.testing.assert_allclose(steps, [(0.9, 0.25, 0.0), (0.7, 0.5, 0.2), (0.6, 0.75, 0.4), (0.2, 1.0, 0.6)])


@pytest.mark.parametrize(
    ("wanted", "threshold"),
    [
        ("sensitivity=0.25", 0.9),
        ("sensitivity=0.7", 0.6),
        ("sensitivity=0.75", 0.6),
        ("sensitivity=1", 0.2),
        ("false_alarms=0", 0.9),
        ("false_alarms=0.39", 0.7),
        ("false_alarms=0.4", 0.6),
        ("false_alarms=1", 0.2),
    ],
)
def test_a_threshold_gives_what_is_wanted(wanted: str, threshold: float) -> None:
    point = operating.choose(operating.curve(TARGETS, VALUES), wanted)
    assert point is not None and point.threshold == threshold


def test_what_cannot_be_had_has_no_threshold() -> None:
    assert operating.curve(np.array([1, 1, np.nan]), np.array([0.1, 0.2, 0.3])) == ()
    assert operating.choose((), "sensitivity=0.9") is None
    # The strongest series is a negative one: no threshold finds anybody without a false alarm.
    assert operating.choose(operating.curve([1, 0], [0.4, 0.5]), "false_alarms=0.5") is None


def test_a_long_curve_keeps_its_ends_and_what_a_threshold_did() -> None:
    rng = np.random.default_rng(0)
    targets, values = rng.integers(0, 2, 5000).astype(float), rng.random(5000)
    steps = operating.curve(targets, values)
    assert len(steps) == operating.STEPS and steps[-1][1] == 1.0
    for wanted in (0.3, 0.9):
        point = operating.choose(steps, f"sensitivity={wanted}")
        assert point is not None
        flagged = values >= point.threshold
        assert point.sensitivity == pytest.approx(flagged[targets == 1].mean()) and point.sensitivity >= wanted
        assert point.false_alarms == pytest.approx(flagged[targets == 0].mean())
        assert point.sensitivity < wanted + 0.01


@pytest.mark.parametrize("words", ["sensitivity=2", "specificity=0.9", "0.9", "sensitivity=", "false_alarms=-1"])
def test_what_is_no_operating_point_is_refused(words: str) -> None:
    with pytest.raises(ConfigError, match=r"inference\.operating"):
        overrides.build({"inference.operating": words})


def test_curves_of_a_run_and_its_file_are_those_of_its_out_of_fold_predictions(
    run: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    export.export_run(run, tmp_path / "model.safetensors")
    there = export.load(tmp_path / "model.safetensors")
    assert there.curves == export.load(run).curves
    table = pd.concat([pd.read_csv(run / f"fold_{fold}" / "predictions.csv") for fold in (0, 1)])
    targets, values = metrics.targets_of(table), metrics.probabilities_of(table)
    assert there.curves[PRESENT_INDEX] == operating.curve(targets[:, PRESENT_INDEX], values[:, PRESENT_INDEX])
    assert there.curves[0] == (), "a label without positives"
    asked = there.changed({"inference.operating": "false_alarms=0.1"})
    assert asked.points[0] is None and asked.points[PRESENT_INDEX] != there.points[PRESENT_INDEX]
    assert asked.digest == there.digest


def test_a_file_of_an_earlier_version_has_no_thresholds(run: Path, tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "model.safetensors"
    export.export_run(run, path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    del metadata["operating"]
    save_file(load_file(path), path, metadata)
    assert export.load(path).points == (None,) * len(LABELS)


def test_a_series_is_flagged_at_its_threshold_and_the_page_says_so(run: Path) -> None:  # noqa: F811
    trained = export.load(run)
    limits = [point.threshold if point else None for point in trained.points]
    probabilities = np.array([0.5 if limit is None else limit for limit in limits])
    probabilities[PRESENT_INDEX] -= 1e-6  # just below
    none = pd.DataFrame(columns=list(inference.CANDIDATE_COLUMNS))
    answer = inference.Answer(probabilities, none, None, {})
    result = steps.describe(steps.Item("/x/a", "1.2", source="ab12"), None, answer, trained, [])
    assert result["flagged"] == [
        label for label, limit in zip(LABELS[:-1], limits[:-1], strict=True) if limit is not None
    ]
    assert result["thresholds"]["Aneurysm Present"] == limits[PRESENT_INDEX]
    page = predict_page.series_page(result, None, None)
    assert [tile.value for tile in page.tiles if tile.label == "flagged"] == ["no"]
    table = next(block for block in page.sections[0].blocks if block.key == "probabilities")
    row = next(row for row in table.rows if row[0] == "Aneurysm Present")  # type: ignore[union-attr]
    assert row[3:5] == (limits[PRESENT_INDEX], "no") and row[5] >= 0.9
