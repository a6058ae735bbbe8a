"""The numbers behind figures and pictures."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic_runs
from PIL import Image

from aneurysm_ray.data.store import Point, PreparedVolume
from aneurysm_ray.errors import RunDirError
from aneurysm_ray.labels import PRESENT
from aneurysm_ray.learning import metrics
from aneurysm_ray.reporting import drawing, figures_run, pictures, words


@pytest.fixture(scope="module")
def predictions(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    table = synthetic_runs.write_volumes(tmp_path_factory.mktemp("volumes"), 60, files=0)
    return synthetic_runs.predictions(table)


def test_epochs_of_all_folds_count_from_one() -> None:
    table = figures_run.epochs({1: synthetic_runs.epoch_metrics(3, 1), 0: synthetic_runs.epoch_metrics(2, 0)})
    assert table[["fold", "epoch"]].values.tolist() == [[0, 1], [0, 2], [1, 1], [1, 2], [1, 3]]
    figure = figures_run.draw_loss(table)
    assert [trace.showlegend for trace in figure.data] == [False, True, False, True]


def test_roc_shows_the_label_tables_interval(predictions: pd.DataFrame) -> None:
    labels = metrics.per_label(predictions)
    curves = figures_run.label_curves(predictions)
    assert next(iter(curves)) == PRESENT
    figure = figures_run.draw_roc(curves, labels)
    row = labels[labels["label"] == PRESENT].iloc[0]
    names = [trace.name for trace in figure.data if trace.meta == PRESENT and trace.name]
    assert names == [f"AUC {row['auc']:.3f} [{row['low']:.3f}, {row['high']:.3f}]<br>20 positive of 60"]


def test_reliability_maps_only_with_several_folds(predictions: pd.DataFrame) -> None:
    assert list(figures_run.reliability(predictions)) == ["as predicted", "mapped out of fold"]
    assert list(figures_run.reliability(predictions.assign(fold=0))) == ["as predicted"]


def _volume() -> PreparedVolume:
    """Return a dark volume with one bright voxel at (z, y, x) = (8, 2, 5), spacing (1, 1, 1) mm."""
    voxels = np.zeros((20, 16, 12), np.uint8)
    voxels[8, 2, 5] = 255
    affine = np.array([[0, 0, 1.0, 0], [0, 1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])
    points = (Point(8, 2, 5, "Basilar Tip"),)
    return PreparedVolume("1.2", "p", "CTA", "axial", voxels, affine, np.zeros(14, np.float32), points, (), "")


def _brightest(image: Image.Image) -> tuple[float, float]:
    """Return (row, column) in mm of the brightest pixel."""
    grey = np.asarray(image.convert("L")).astype(float)
    return tuple((np.array(np.unravel_index(grey.argmax(), grey.shape)) + 0.5) / pictures.PIXELS_PER_MM)  # type: ignore[return-value]


def test_panels_lie_as_a_reader_expects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures.ImageDraw.ImageDraw, "text", lambda *_, **__: None)
    monkeypatch.setattr(pictures, "_CAPTIONS", ("", "", ""))  # which would make columns wider than these planes
    sheet = pictures.slices(_volume(), np.array([8, 2, 5]))
    scale = pictures.PIXELS_PER_MM
    widths = [round(12 * scale), round(12 * scale), round(16 * scale)]
    edges = np.cumsum([0, *(width + pictures.GAP for width in widths)])
    axial, coronal, sagittal = (
        sheet.crop((edges[i], pictures.CAPTION, edges[i] + widths[i], sheet.height)) for i in range(3)
    )
    axial = axial.crop((0, (axial.height - round(16 * scale)) // 2, axial.width, axial.height))
    assert _brightest(axial) == pytest.approx((2.5, 5.5), abs=0.6)  # front is up
    assert _brightest(coronal) == pytest.approx((20 - 8.5, 5.5), abs=0.6)  # head is up
    assert _brightest(sagittal) == pytest.approx((20 - 8.5, 2.5), abs=0.6)  # front is left


@pytest.mark.parametrize("values", [(6e-5, 5e-4), (1e-4, 1e-2), (1e-6, 10.0), (3e-4, 3e-4), (0.0, 2.0)])
def test_a_logarithmic_axis_is_labelled_in_and_around_its_values(values: tuple[float, float]) -> None:
    axis = drawing.log_axis(values)
    low, high = min(value for value in values if value), max(values)
    assert axis["type"] == "log" and [float(text) for text in axis["ticktext"]] == pytest.approx(axis["tickvals"])
    assert axis["tickvals"][0] <= low and axis["tickvals"][-1] >= high
    around = [tick for tick in axis["tickvals"] if low / 3 <= tick <= high * 3]
    assert 1 <= len(around) <= 10


def test_heat_map_glows_where_it_is_hot() -> None:
    grid = np.zeros((5, 4, 3), np.float32)
    grid[4, 3, 2] = 0.8
    affine = np.array([[0, 0, 4.0, 1.5], [0, 4.0, 0, 1.5], [4.0, 0, 0, 1.5], [0, 0, 0, 1]])
    heatmap = pictures.HeatMap(grid, affine)
    np.testing.assert_allclose(pictures.hottest(heatmap), [9.5, 13.5, 17.5])
    volume = _volume()
    voxel = pictures.to_voxel(volume, pictures.hottest(heatmap))
    np.testing.assert_allclose(voxel, [17.5, 13.5, 9.5])
    marked, plain = (np.asarray(pictures.slices(volume, voxel, heatmap, marked=on)).astype(int) for on in (True, False))
    glow = (marked - plain)[pictures.CAPTION :, : round(12 * pictures.PIXELS_PER_MM)]
    row, column = np.unravel_index(glow[..., 0].argmax(), glow.shape[:2])
    assert glow[row, column, 0] > glow[row, column, 2] + 50
    assert row > glow.shape[0] * 0.6
    assert column > glow.shape[1] * 0.6
    assert np.abs(glow[: glow.shape[0] // 3]).max() <= 3


def test_marks_are_drawn_only_near_the_plane() -> None:
    volume = _volume()
    plain = np.asarray(pictures.slices(volume, np.array([8, 2, 5])))
    point = np.array([[8.0, 2.0, 5.0]])
    marked = np.asarray(pictures.slices(volume, np.array([8, 2, 5]), points=point, marked=True))
    assert (marked != plain).any()
    far = np.array([[19.0, 15.0, 11.5]])
    np.testing.assert_array_equal(
        np.asarray(pictures.slices(volume, np.array([0, 0, 0]), points=far, marked=True)),
        np.asarray(pictures.slices(volume, np.array([0, 0, 0]))),
    )


def test_damaged_heat_map_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(RunDirError, match="no heat map can be read"):
        pictures.read_heatmap(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.4, "3 s"), (75, "1 min 15 s"), (3600, "1 h"), (3700, "1 h 1 min"), (90000, "1 d 1 h"), (59.7, "1 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


def test_names_in_a_row() -> None:
    assert [words.listed(names) for names in ([], ["a"], ["a", "b", "c"])] == ["none", "a", "a, b and c"]
