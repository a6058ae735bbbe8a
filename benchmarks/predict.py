"""Is prediction from DICOM at least twice as fast as MONAI's usual pipeline with the same weights?

    nice -n 10 python benchmarks/predict.py [SERIES...] [--run RUN] [--rounds 3]

Both get the same DICOM folders and the same network. Ours: `read_series`, `prepare_series`, `score_volume`.
MONAI's, as its tutorials write it: LoadImage(PydicomReader) → Orientation → Spacing → ScaleIntensityRange →
sliding_window_inference with the same window, overlap and batch, on the whole scan, since it has no region of
interest; and, to be fair to it, on a volume cropped to about our region before Spacing. CPU seconds of all
threads, so that a busy machine changes little; one torch thread; medians over rounds in turn. Without arguments:
untrained weights, phantoms made on the spot. Prints markdown.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from monai.data import PydicomReader
from monai.inferers import sliding_window_inference
from monai.transforms import (
    Compose,
    LoadImage,
    Orientation,
    ScaleIntensityRange,
    ScaleIntensityRangePercentiles,
    Spacing,
)

from aneurysm_ray import overrides, phantom
from aneurysm_ray.config import Config
from aneurysm_ray.data import dicom, preprocess, reading
from aneurysm_ray.learning import ensemble, export, models

Stages = dict[str, float]


def ours(path: Path, networks: list[models.Network], config: Config) -> Stages:
    """Read, prepare and score; seconds by stage."""
    start = time.process_time()
    volume = dicom.read_series(path)
    read_at = time.process_time()
    prepared = preprocess.prepare_series(volume, config.volume)
    prepared_at = time.process_time()
    ensemble.score_volume(networks, prepared, config, "cpu")
    return {"read": read_at - start, "prepare": prepared_at - read_at, "score": time.process_time() - prepared_at}


def monai(path: Path, networks: list[models.Network], config: Config, modality: str, crop: bool) -> Stages:
    """Load, orient, resample, scale and slide; seconds by stage."""
    start = time.process_time()
    image = LoadImage(reader=PydicomReader(swap_ij=True), image_only=True, ensure_channel_first=True)(path)
    read_at = time.process_time()
    image = Orientation(axcodes="LPS", labels=None)(image)
    if crop:  # about our region: its height from the top, its width and depth in the middle
        x, y, z = (float(mm) for mm in image.pixdim)
        wanted = [round(mm / step) for mm, step in zip(config.volume.extent_mm[::-1], (x, y, z), strict=True)]
        first = [max(0, (n - w) // 2) for n, w in zip(image.shape[1:3], wanted[:2], strict=True)]
        last = [f + w for f, w in zip(first, wanted[:2], strict=True)]
        image = image[:, first[0] : last[0], first[1] : last[1], -wanted[2] :]
    z, y, x = config.volume.spacing_mm
    low, high = config.volume.window_hu
    scale = (
        ScaleIntensityRange(low, high, 0, 1, clip=True)
        if modality == "CT"
        else ScaleIntensityRangePercentiles(1, 99.7, 0, 1, clip=True)
    )
    volume = Compose([Spacing((x, y, z)), scale])(image)
    prepared_at = time.process_time()
    # The network takes (z, y, x).
    batch = volume.as_tensor().permute(0, 3, 2, 1)[None].float()
    with torch.inference_mode():
        for network in networks:
            for mirrored in (False, True) if config.inference.flip else (False,):
                turned = batch.flip(-1) if mirrored else batch
                logits = sliding_window_inference(
                    *(turned, config.patch.size, config.inference.batch_size, lambda image, n=network: n(image).cells),
                    config.inference.overlap,
                )
                torch.sigmoid(logits).amax((2, 3, 4))
    return {"read": read_at - start, "prepare": prepared_at - read_at, "score": time.process_time() - prepared_at}


def median(rounds: list[Stages]) -> Stages:
    stages = {stage: statistics.median(each[stage] for each in rounds) for stage in rounds[0]}
    return {**stages, "whole": statistics.median(sum(each.values()) for each in rounds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("series", nargs="*", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.run:
        trained = export.load(arguments.run)
    else:
        config = overrides.build(
            {
                "volume.spacing_mm": [1.0, 1.0, 1.0],
                "model.name": "small3d",
                "model.width": 16,
                "model.head": "grid",
                "patch.size": [48, 48, 48],
            }
        )
        torch.manual_seed(0)
        platt = (None,) * 14
        trained = export.TrainedModels((models.build(config.model).eval(),), config, np.zeros(14), platt, "")
    # One rule for both: MONAI's windows of the mirrored volume are not ours, so neither mirrors.
    trained = replace(trained, config=overrides.build({"inference.flip": False}, base=trained.config))
    with tempfile.TemporaryDirectory() as folder:
        series = arguments.series or made(Path(folder))
        for path in series:
            report(path, list(trained.models), trained.config, arguments.rounds)


def made(folder: Path) -> list[Path]:
    options = phantom.PhantomOptions(count=2, seed=5, modalities=("CTA", "MRA"), spacing_mm=0.5, workers=1)
    phantom.write_dataset(folder, options)
    return sorted(path for path in (folder / "series").iterdir())


def report(path: Path, networks: list[models.Network], config: Config, rounds: int) -> None:
    facts = reading.read(path, config.volume)
    modality = facts.prepared.modality
    assert facts.slices is not None
    ways: dict[str, Callable[[], Stages]] = {
        "aneurysm_ray": lambda: ours(path, networks, config),
        "MONAI": lambda: monai(path, networks, config, modality, crop=False),
        "MONAI, cropped": lambda: monai(path, networks, config, modality, crop=True),
    }
    seconds: dict[str, list[Stages]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(way())
    shape = f"{len(facts.slices.origins_mm)} × {facts.slices.rows} × {facts.slices.columns}"
    print(f"\n{modality}, {shape}, {len(networks)} network(s)\n")
    print("| pipeline | read, CPU s | prepare | score | whole | ratio |\n|---|---|---|---|---|---|")
    base = median(seconds["aneurysm_ray"])["whole"]
    for name, each in seconds.items():
        found = median(each)
        cells = " | ".join(f"{found[stage]:.2f}" for stage in ("read", "prepare", "score", "whole"))
        print(f"| {name} | {cells} | {found['whole'] / base:.2f} |")


if __name__ == "__main__":
    main()
