"""A run's models as a MONAI Bundle: MONAI itself loads and runs it, and answers as prediction's network does."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.inferers import SlidingWindowInferer
from numpy.typing import NDArray
from test_interchange import trained

from aneurysm_ray.config import Config
from aneurysm_ray.data import preprocess
from aneurysm_ray.data.dicom.reader import read_series
from aneurysm_ray.data.nifti import TO_LPS
from aneurysm_ray.data.store import PreparedVolume
from aneurysm_ray.labels import LOCATIONS
from aneurysm_ray.learning import bundle, ensemble, export, interchange

pytestmark = pytest.mark.filterwarnings("ignore")  # MONAI's of packages that are not here, torch's of TorchScript

GREYS = {"low": 0, "high": 255}
"""The window of a prepared volume."""


def written(folder: Path, head: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, export.TrainedModels]:
    made = trained(head)
    monkeypatch.setattr(export, "load", lambda run: made)
    interchange.write(folder, folder / "model.bundle")
    return folder / "model.bundle", made


def save(path: Path, volume: PreparedVolume) -> Path:
    """Write a prepared volume as NIfTI: axes (x, y, z) to RAS."""
    affine = TO_LPS @ volume.affine[:, [2, 1, 0, 3]]
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(volume.voxels.T), affine), path)
    return path


def parsed(folder: Path, image: Path, **changes: Any) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(folder / bundle.INFERENCE)
    parser.read_meta(folder / bundle.METADATA)
    parser.update({"bundle_root": str(folder), "image": str(image), **GREYS, **changes})
    return parser


def expected(made: export.TrainedModels, greys: NDArray[Any], step: int, overlap: float) -> torch.Tensor:
    """Return what prediction's network answers to windows of a volume that MONAI joins, channels as in a bundle."""

    def answer(patches: torch.Tensor) -> torch.Tensor:
        found, _ = ensemble.ask(made.models, patches, made.config)
        ordered = torch.cat([1 - found[:, 13:], found[:, :13]], 1)
        widths = [size // step // cells for size, cells in zip(made.config.patch.size, found.shape[2:], strict=True)]
        for axis, width in enumerate(widths, start=2):
            ordered = ordered.repeat_interleave(width, axis)
        return ordered

    padded = np.pad(greys, [(0, -length % step) for length in greys.shape])
    image = torch.from_numpy(padded.astype(np.float32) / 255)[None, None]
    windows = SlidingWindowInferer(made.config.patch.size, 4, overlap, mode="gaussian")
    return windows(image, answer)[0]


@pytest.mark.parametrize(("head", "step"), [("grid", 4), ("pooled", 4)])
def test_monai_answers_on_a_real_volume_as_prediction_s_network_does(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str, step: int
) -> None:
    folder, made = written(tmp_path, head, monkeypatch)
    volume = preprocess.prepare_series(
        read_series(shared_data / "dicom" / "mra_tof_head_derived_oblique"),
        made.config.volume.model_copy(update={"spacing_mm": (3.0, 2.5, 2.0), "extent_mm": (80.0, 100.0, 90.0)}),
    )
    image = save(tmp_path / "image.nii.gz", volume)
    parser = parsed(folder, image)
    parser["preprocessing"]["transforms"][2]["pixdim"] = list(volume.spacing_mm)
    sample = parser.get_parsed_content("dataset")[0]
    shown = np.asarray(sample["image"][0])[tuple(map(slice, volume.voxels.shape))]
    np.testing.assert_allclose(shown, volume.voxels / 255, atol=1e-5)
    with torch.inference_mode():
        answers = parser.get_parsed_content("predict")(sample)["pred"]
        wanted = expected(made, volume.voxels, step, made.config.inference.overlap)
    assert float(wanted.std()) > 0.0005 and wanted.shape == answers.shape
    assert float((answers - wanted).abs().max()) < 1e-5


def test_the_network_names_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what was traced on a CPU would take each patch there from a GPU."""
    for head in ("grid", "pooled"):
        folder, _ = written(tmp_path / head, head, monkeypatch)
        graph = str(torch.jit.load(folder / bundle.MODEL).inlined_graph)
        devices, constants = (set(re.findall(rf"(%\d+) : {kind}", graph)) for kind in ("Device =", "Tensor = prim::C"))
        moved = [re.findall(r"%\d+", words) for words in re.findall(r"aten::to\((.*?)\)", graph)]
        # Where a list picks channels, it is a constant that torch takes from the CPU for any device.
        assert moved and not [words for words in moved if devices & set(words) and words[0] not in constants]


def test_monai_s_runner_draws_what_is_probable_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command line, on a scan in another order of axes; nothing of this package is at hand."""
    folder, made = written(tmp_path, "grid", monkeypatch)
    low, high = made.config.volume.window_hu
    seen = np.random.default_rng(0).random((20, 24, 28))  # as networks see it: x to the left, y to the back
    with torch.inference_mode():
        found = expected(made, seen * 255, 4, made.config.inference.overlap)
    threshold = float((1 - found[0]).median())
    wanted = np.where(found[0] <= 1 - threshold, found[1:].argmax(0) + 1, 0)
    wanted = np.kron(wanted, np.ones((4, 4, 4), int))[: seen.shape[0], : seen.shape[1], : seen.shape[2]]
    places = np.diag([-0.5, -0.5, 0.8, 1])
    scan = nibabel.Nifti1Image((low + (high - low) * seen).T, places).as_reoriented([[2, -1], [0, 1], [1, 1]])
    nibabel.save(scan, tmp_path / "scan.nii.gz")
    words = {"config_file": bundle.INFERENCE, "meta_file": bundle.METADATA, "image": str(tmp_path / "scan.nii.gz")}
    code = "import sys; sys.modules['aneurysm_ray'] = None; import monai.bundle; "
    code += f"monai.bundle.run(**{words}, threshold={threshold})"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("eval/**/*.nii.gz")
    mask = nibabel.load(path)
    assert mask.shape == scan.shape and np.allclose(mask.affine, scan.affine)
    drawn = np.asarray(mask.as_reoriented(nibabel.io_orientation(np.linalg.inv(places) @ mask.affine)).dataobj).T
    assert 0.3 < (wanted > 0).mean() < 0.7
    assert (drawn == wanted).mean() > 0.99


def test_the_metadata_names_what_is_answered_and_what_it_is_for(tmp_path: Path) -> None:
    told = bundle._metadata(Config())
    answered = told["network_data_format"]["outputs"]["pred"]
    assert answered["channel_def"] == {"0": "background", **{str(n): name for n, name in enumerate(LOCATIONS, 1)}}
    assert "not a medical device" in told["intended_use"]
