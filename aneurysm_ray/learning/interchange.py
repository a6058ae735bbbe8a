"""A run's models in formats that others run: ONNX, torch's own exported program (`.pt2`), and MONAI Bundles.

All hold one graph: a batch of patches in, the mean probabilities of all folds out, mirrored passes and all else that
the run's settings ask of a network included. Cutting a volume into windows and joining the answers is the caller's:
what it needs to know of that - size and spacing of a patch, the labels, what a cell is - goes with the file.
"""

import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aneurysm_ray import overrides, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.data.window import BRAIN, DARK_BLOOD
from aneurysm_ray.errors import AneurysmRayError, RequestError
from aneurysm_ray.labels import LABELS
from aneurysm_ray.learning import atlas, bundle, ensemble, export
from aneurysm_ray.learning.export import TrainedModels

log = logging.getLogger(__name__)

INPUT, OUTPUT = "image", "probability"
AGREES = 1e-4
"""Largest difference in probability between torch and another runtime that is rounding: both compute in float32."""
CHECKED_PATCHES = 2


class Graph(nn.Module):
    """The models of a run as one: patches (B, 1, z, y, x) in [0, 1] to mean probabilities (B, 14, cz, cy, cx)."""

    def __init__(self, trained: TrainedModels) -> None:
        super().__init__()
        self.models = nn.ModuleList(trained.models)
        # Other runtimes choose their own arithmetic.
        self.config: Config = overrides.build({"optim.precision": "float32"}, base=trained.config)

    def forward(self, image: Tensor) -> Tensor:
        return ensemble.ask(list(self.models), image, self.config)[0]  # type: ignore[arg-type]


def write(run: Path, out: Path) -> None:
    """Write a run's models in the format that a name's ending says: .safetensors, .onnx, .pt2, or .bundle, a folder.

    Raises RequestError for another ending or a missing package, AneurysmRayError when another runtime answers
    something else than torch does, RunDirError for a run without models.
    """
    if out.suffix == ".safetensors":
        export.export_run(run, out)
        return
    writers: Mapping[str, Callable[[Graph, Path], None]] = {".onnx": _write_onnx, ".pt2": _write_program}
    if out.suffix not in (*writers, ".bundle"):
        raise RequestError(
            f"{out.name}: the name's ending says the format; it must be .safetensors (for aneurysm-ray), .onnx, .pt2 "
            "or .bundle (for MONAI)"
        )
    if out.suffix == ".onnx" and (missing := [n for n in ("onnx", "onnxscript") if not importlib.util.find_spec(n)]):
        raise RequestError(f"{' and '.join(missing)} must be installed to write ONNX: pip install -e '.[onnx]'")
    graph = Graph(export.load(run)).eval()
    if out.suffix == ".bundle":
        network = bundle.Network(graph, graph.config, bundle.step_of(graph.config, graph.models[0])).eval()
        traced = bundle.script(network, _patches(graph.config))
        _check(network, lambda images: traced(torch.from_numpy(images)).numpy(), "TorchScript")
        bundle.write(network, traced, out)
        return
    with tempfile.TemporaryDirectory(prefix="aneurysm-ray-") as folder:
        path = Path(folder) / f"model{out.suffix}"
        writers[out.suffix](graph, path)
        with rundir.atomic(out, "wb") as file:
            file.write(path.read_bytes())


def facts(graph: Graph) -> dict[str, str]:
    """Return what a caller must know of a graph, as text."""
    config, size = graph.config, [atlas.SIZE] * 3
    learnt = np.mean([model.atlas.cpu().numpy() for model in graph.models], 0)  # type: ignore[operator]
    return {
        "labels": json.dumps(LABELS),
        "patch_size_zyx": json.dumps(config.patch.size),
        "spacing_mm_zyx": json.dumps(config.volume.spacing_mm),
        "input": "patches (B, 1, z, y, x) of a prepared volume, uint8 / 255: z to the head, y to the back, x to left",
        "input_of_dark_blood": f"of {', '.join(DARK_BLOOD)}: clip({3 * BRAIN} - 2 * uint8, 0, 255) / 255 in its place",
        "output": "probabilities (B, 14, cz, cy, cx) in the order of labels; cells share the patch evenly",
        "atlas": json.dumps(learnt.ravel().round(3).tolist() if config.inference.atlas else []),
        "atlas_is": f"{size} factors (z, y, x), even shares of the stored volume: multiply each cell by the one there",
        "config": overrides.to_toml(config),
    }


def largest_difference(
    graph: Graph | bundle.Network, answer: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> float:
    """Return the largest difference in probability between a graph and another runtime's `answer`, on patches of
    smooth noise, which have the bright and the dark of images."""
    with torch.inference_mode():
        images = _patches(graph.config)
        return float(np.abs(answer(images.numpy()) - graph(images).numpy()).max())


def _patches(config: Config) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(CHECKED_PATCHES, 1, *(max(2, n // 4) for n in config.patch.size), generator=generator)
    return nn.functional.interpolate(coarse, size=config.patch.size, mode="trilinear", align_corners=False)


def _write_onnx(graph: Graph, path: Path) -> None:
    import onnx

    example, shapes = _example(graph)
    # It warns of torchvision's operators, which no network here has.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, of its own insides
        torch.onnx.export(
            graph,
            (example,),
            path,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamo=True,
            dynamic_shapes=shapes,
            external_data=False,
            verbose=False,
        )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, facts(graph))
    onnx.save(model, path)
    if importlib.util.find_spec("onnxruntime"):
        _check(graph, onnx_answer(path), "onnxruntime")
    else:
        log.warning("* onnxruntime is not installed: nothing was compared; pip install -e '.[onnx]' to do so")


def onnx_answer(path: Path) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Return what asks an ONNX file, on the CPU."""
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run([OUTPUT], {INPUT: images})[0]


def _write_program(graph: Graph, path: Path) -> None:
    example, shapes = _example(graph)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(graph, (example,), dynamic_shapes=shapes)
        torch.export.save(program, path, extra_files=facts(graph))
        again: Any = torch.export.load(path).module()
    _check(graph, lambda images: again(torch.from_numpy(images)).numpy(), "the program that was read back")


def _example(graph: Graph) -> tuple[Tensor, dict[str, Any]]:
    return _patches(graph.config), {"image": {0: torch.export.Dim("batch", min=1, max=1024)}}


def _check(
    graph: Graph | bundle.Network, answer: Callable[[NDArray[np.float32]], NDArray[np.float32]], what: str
) -> None:
    difference = largest_difference(graph, answer)
    if not difference <= AGREES:
        raise AneurysmRayError(f"{what} answers otherwise than torch, by up to {difference:.2g}; nothing was written")
    log.info("* %s answers as torch does, within %.1g", what, max(difference, 1e-9))
