"""From DICOM to probabilities and places: the same numbers from every form of a series, an answer for every series."""

from pathlib import Path

import heads
import numpy as np
import pydicom
import pytest
import torch
from torch import nn

from aneurysm_ray import overrides
from aneurysm_ray.data import reading, store
from aneurysm_ray.labels import LABELS
from aneurysm_ray.learning import atlas, inference
from aneurysm_ray.learning.export import TrainedModels
from aneurysm_ray.learning.models import Answer

CONFIG = overrides.build({"patch.size": [32, 32, 32], "volume.spacing_mm": [1.0, 1.0, 1.0]})
CASES = [(plane, multi_frame) for plane in heads.PLANES for multi_frame in (False, True)]


class Bright(nn.Module):
    """A network that answers with the mean brightness of each cell: it finds what is bright, without training."""

    stride = 4
    pooled = False
    knows_vessels = torch.zeros(())
    atlas = torch.ones((atlas.SIZE,) * 3)

    def forward(self, image_BCZYX: torch.Tensor) -> Answer:
        cells = 12 * (nn.functional.avg_pool3d(image_BCZYX, 4) - 0.6)
        return Answer(cells.repeat(1, len(LABELS), 1, 1, 1), cells)


@pytest.fixture(scope="module")
def bright() -> TrainedModels:
    return TrainedModels((Bright(),), CONFIG, np.linspace(0.1, 0.4, len(LABELS)), (None,) * len(LABELS), "0" * 64)  # type: ignore[arg-type]


@pytest.mark.parametrize(("plane", "multi_frame"), CASES)
def test_first_candidate_is_the_blob_in_every_plane(
    bright: TrainedModels, plane: str, multi_frame: bool, tmp_path: Path
) -> None:
    heads.write_head(tmp_path / "head", plane, multi_frame=multi_frame)
    found = inference.answer(bright, tmp_path / "head", "cpu")
    first = found.candidates.iloc[0]
    assert np.linalg.norm(first[["x_mm", "y_mm", "z_mm"]].to_numpy(float) - heads.BLOB_MM) < 0.5
    # The pixel it names in the source file is blob, and the image there has the candidate's position.
    file = next(p for p in (tmp_path / "head").iterdir() if pydicom.dcmread(p).SOPInstanceUID == first["sop_uid"])
    image = pydicom.dcmread(file)
    pixels = image.pixel_array[first["frame"]] if multi_frame else image.pixel_array
    row, column = first["row"], first["column"]
    assert pixels[round(row), round(column)] > 550
    if multi_frame:
        position = image.PerFrameFunctionalGroupsSequence[first["frame"]].PlanePositionSequence[0]
        shared = image.SharedFunctionalGroupsSequence[0]
        orientation, measures = shared.PlaneOrientationSequence[0], shared.PixelMeasuresSequence[0]
    else:
        position = orientation = measures = image
    along, down = np.reshape(orientation.ImageOrientationPatient, (2, 3)).astype(float)
    spacing = [float(value) for value in measures.PixelSpacing]
    expected = np.array(position.ImagePositionPatient, float) + column * spacing[1] * along + row * spacing[0] * down
    # Half a slice of 2 mm is what lies between the candidate and the nearest slice at most.
    assert np.linalg.norm(expected - first[["x_mm", "y_mm", "z_mm"]].to_numpy(float)) <= 1.0 + 1e-6


def test_prepared_volume_gives_bit_equal_answers(bright: TrainedModels, tmp_path: Path) -> None:
    folder = heads.write_head(tmp_path / "head", "oblique")
    series = reading.read(folder, CONFIG.volume)
    path = store.write_volume(tmp_path / "set", series.prepared, overrides.volume_identity(CONFIG))
    ours, theirs = (inference.answer(bright, source, "cpu") for source in (folder, path))
    assert np.array_equal(ours.probabilities, theirs.probabilities)
    assert np.array_equal(ours.heatmap.grid, theirs.heatmap.grid)
    columns = ["x_mm", "y_mm", "z_mm", "probability"]
    assert np.array_equal(ours.candidates[columns], theirs.candidates[columns])
    assert (theirs.candidates["sop_uid"] == "").all()


def test_unreadable_series_get_the_prevalence_and_the_reason(bright: TrainedModels, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.dcm").write_text("no DICOM")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    for source, reason in [("gone", "vanished"), ("text", "no_images"), ("damaged.parquet", "bad_archive")]:
        found = inference.answer(bright, tmp_path / source, "cpu")
        assert found.reason == reason
        assert np.array_equal(found.probabilities, bright.prevalence)
        assert found.candidates.empty
        assert list(found.candidates.columns) == list(inference.CANDIDATE_COLUMNS)
        assert source in found.message
