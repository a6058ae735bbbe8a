"""Sensitivity at false positives per scan, by hand."""

import numpy as np
import pandas as pd
import pytest

from aneurysm_ray.labels import PRESENT
from aneurysm_ray.learning import froc


def _candidates(*rows: tuple[str, float, float]) -> pd.DataFrame:
    """Return candidates on the x axis: series, x in mm, probability."""
    frame = pd.DataFrame(rows, columns=["series_uid", "x_mm", "probability"])
    return frame.assign(y_mm=0.0, z_mm=0.0)


def _points(*rows: tuple[str, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["series_uid", "x_mm"]).assign(y_mm=0.0, z_mm=0.0)


def _series(**present: float) -> pd.DataFrame:
    return pd.DataFrame({"series_uid": list(present), f"target/{PRESENT}": list(present.values())})


def _at(result: froc.Froc, rate: float) -> float:
    return float(result.table.set_index("fp_per_scan")["sensitivity"][rate])


def test_by_hand() -> None:
    # Down the thresholds: 0.9 hits a; 0.8 is false; 0.7 hits c; 0.6 and 0.5 are false; c's second point is missed.
    candidates = _candidates(
        ("a", 1, 0.9), ("a", 50, 0.6), ("b", 0, 0.8), ("b", 9, 0.5), ("c", 104, 0.7), ("a", 2, 0.3)
    )
    result = froc.froc(candidates, _points(("a", 0), ("c", 100), ("c", 0)), _series(a=1, b=0, c=1, d=0), draws=20)
    assert (result.n_points, result.n_series, result.n_unmarked) == (3, 4, 0)
    assert _at(result, 0.125) == pytest.approx(1 / 3)  # no false positive allowed among 4 scans
    assert _at(result, 0.25) == pytest.approx(2 / 3)  # one
    assert _at(result, 8) == pytest.approx(2 / 3)  # the third point has no candidate
    assert list(result.curve["threshold"]) == [0.9, 0.8, 0.7, 0.6, 0.5]
    assert list(result.curve["fp_per_scan"]) == [0, 0.25, 0.25, 0.5, 0.75]
    np.testing.assert_allclose(result.curve["sensitivity"], np.array([1, 1, 2, 2, 2]) / 3)
    assert (result.table["low"] <= result.table["sensitivity"]).all()
    assert (result.table["high"] >= result.table["sensitivity"]).all()


def test_five_millimetres_or_the_radius() -> None:
    candidates = _candidates(("a", 5.0, 0.9), ("b", 5.01, 0.9), ("c", 9.0, 0.9))
    points = _points(("a", 0), ("b", 0), ("c", 0)).assign(radius_mm=[np.nan, 2.0, 9.0])
    assert _at(froc.froc(candidates, points, _series(a=1, b=1, c=1), draws=5), 8) == pytest.approx(2 / 3)


def test_a_tie_of_hit_and_false_positive_is_not_in_our_favour() -> None:
    candidates = _candidates(("a", 0, 0.5), ("b", 0, 0.5))
    result = froc.froc(candidates, _points(("a", 0)), _series(a=1, b=0), draws=5)
    assert (_at(result, 0.25), _at(result, 0.5)) == (0.0, 1.0)


def test_positive_without_a_point_is_left_out() -> None:
    candidates = _candidates(("a", 0, 0.9), ("b", 0, 0.95))
    result = froc.froc(candidates, _points(("a", 0)), _series(a=1, b=1), draws=5)
    assert (result.n_unmarked, result.n_series) == (1, 1)
    assert _at(result, 0.125) == 1.0


def test_nothing_to_find_and_nothing_found() -> None:
    nothing = froc.froc(_candidates(("a", 0, 0.9)), _points(), _series(a=0), draws=5)
    assert nothing.table["sensitivity"].isna().all()
    missed = froc.froc(_candidates(), _points(("a", 0)), _series(a=1), draws=5)
    assert (missed.table["sensitivity"] == 0).all()


def test_few_patients_tell_little_though_all_or_none_of_their_aneurysms_are_found() -> None:
    names = [f"s{number}" for number in range(12)]
    points, scans = _points(*((name, 0) for name in names)), _series(**dict.fromkeys(names, 1))
    scans["patient"] = [f"p{number // 2}" for number in range(12)]
    none = froc.froc(_candidates(), points, scans, draws=20).table
    every = froc.froc(_candidates(*((name, 0, 0.9) for name in names)), points, scans, draws=20).table
    # Clopper and Pearson's table: 0 of 6, [0, 0.459]. Six patients, not twelve points, as two of one are alike.
    np.testing.assert_allclose(none[["low", "high"]], [[0, 0.4593]] * len(none), atol=1e-4)
    np.testing.assert_allclose(every[["low", "high"]], [[0.5407, 1]] * len(every), atol=1e-4)


def test_points_travel_through_the_affine() -> None:
    # Voxel (z, y, x) = (1, 2, 3) with spacing (2, 0.5, 0.25) mm and an origin of (10, 20, 30).
    affine = np.array([[0, 0, 0.25, 10], [0, 0.5, 0, 20], [2, 0, 0, 30], [0, 0, 0, 1.0]])
    volumes = pd.DataFrame(
        {
            "series_uid": ["a", "b"],
            "affine": [affine.ravel(), affine.ravel()],
            "points": [[{"z": 1.0, "y": 2.0, "x": 3.0, "location": "Basilar Tip", "radius_mm": 2.5}], []],
            "ignored": [[], [{"z": 0.0, "y": 0.0, "x": 0.0, "location": "", "radius_mm": None}]],
        }
    )
    points = froc.points_mm(volumes)
    assert points.values.tolist() == [["a", 10.75, 21.0, 32.0, "Basilar Tip", 2.5]]
    ignored = froc.points_mm(volumes, "ignored")
    assert ignored.values.tolist()[0][:5] == ["b", 10.0, 20.0, 30.0, ""] and ignored["radius_mm"].isna().all()


def test_a_candidate_on_a_treated_aneurysm_is_neither_true_nor_false() -> None:
    candidates = _candidates(("a", 0, 0.9), ("a", 50, 0.8), ("b", 50, 0.7))
    points, ignored = _points(("a", 0)), _points(("a", 50), ("a", 2))
    kept = froc.judged(candidates, points, ignored)
    assert kept["probability"].tolist() == [0.9, 0.7], "the first hits both, the second nothing that can be judged"
    assert froc.judged(candidates, points, ignored[:0]) is candidates
