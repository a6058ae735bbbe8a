"""Models in the formats of others: the same answers, and what their callers must know."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learning_sets import write_set

from aneurysm_ray import overrides
from aneurysm_ray.errors import AneurysmRayError, RequestError
from aneurysm_ray.labels import LABELS
from aneurysm_ray.learning import ensemble, export, interchange, models

SMALL = {
    "model.name": "small3d",
    "model.width": 4,
    "patch.size": [16, 16, 16],
    "inference.flip": True,
    "optim.precision": "float32",
}


def trained(head: str, count: int = 2) -> export.TrainedModels:
    config = overrides.build({**SMALL, "model.head": head})
    torch.manual_seed(0)
    networks = tuple(models.build(config.model).eval().requires_grad_(False) for _ in range(count))
    for network in networks:
        for weights in network.parameters():
            weights.add_(0.1 * torch.randn_like(weights))
    return export.TrainedModels(networks, config, np.full(14, 0.5), (None,) * 14, "")


@pytest.fixture(scope="module")
def in_onnx(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, export.TrainedModels]:
    """Two grid networks as one file of ONNX, and themselves."""
    pytest.importorskip("onnx")
    made, folder = trained("grid"), tmp_path_factory.mktemp("onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "load", lambda run: made)
        interchange.write(folder, folder / "model.onnx")
    return folder / "model.onnx", made


def test_onnx_answers_as_torch_does_and_says_what_it_is(in_onnx: tuple[Path, export.TrainedModels]) -> None:
    import onnx

    path, made = in_onnx
    answer = interchange.onnx_answer(path)
    images = np.random.default_rng(0).random((3, 1, 16, 16, 16), np.float32)
    expected, _ = ensemble.ask(made.models, torch.from_numpy(images), made.config)
    assert float(expected.std()) > 0.0005, "answers that differ by nothing would agree with anything"
    np.testing.assert_allclose(answer(images), expected, atol=1e-5)
    np.testing.assert_allclose(answer(images[:1]), expected[:1], atol=1e-5)
    facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(facts["labels"]) == list(LABELS)
    assert json.loads(facts["patch_size_zyx"]) == [16, 16, 16]
    assert overrides.build(overrides.parse_toml(facts["config"], path)).model == made.config.model


def test_a_program_of_torch_answers_as_the_run_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trained("pooled", count=1)
    monkeypatch.setattr(export, "load", lambda run: made)
    path = tmp_path / "model.pt2"
    interchange.write(tmp_path, path)
    extra = {"labels": ""}
    again: Any = torch.export.load(path, extra_files=extra).module()
    images = torch.rand(3, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    expected, _ = ensemble.ask(made.models, images, made.config)
    torch.testing.assert_close(again(images), expected, atol=1e-5, rtol=0)
    assert again(images).shape == (3, 14, 1, 1, 1)
    assert json.loads(extra["labels"]) == list(LABELS)


@pytest.mark.parametrize("name", ["model.pt2", "model.bundle"])
def test_another_answer_than_torch_s_is_an_error_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    made = trained("pooled", count=1)
    monkeypatch.setattr(export, "load", lambda run: made)
    monkeypatch.setattr(interchange, "largest_difference", lambda graph, answer: 0.01)
    with pytest.raises(AneurysmRayError, match=r"answers otherwise than torch, by up to 0\.01"):
        interchange.write(tmp_path, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_the_ending_says_the_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match=r"model\.pth: the name's ending says the format"):
        interchange.write(tmp_path, tmp_path / "model.pth")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"onnx and onnxscript must be installed .* pip install -e '\.\[onnx\]'"):
        interchange.write(tmp_path, tmp_path / "model.onnx")


def test_the_python_of_the_page_runs_on_a_set_with_nothing_of_this_package(
    in_onnx: tuple[Path, export.TrainedModels], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    shutil.copy(in_onnx[0], tmp_path / "model.onnx")
    write_set(tmp_path / "volumes", 2, shape=(15, 30, 40))
    page = (Path(__file__).resolve().parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert "aneurysm_ray" not in code
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split("  ") for line in done.stdout.splitlines()]
    assert [label for _, label in rows] == list(LABELS)
    assert all(0 < float(probability) < 1 for probability, _ in rows)
