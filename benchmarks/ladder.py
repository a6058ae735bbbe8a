"""Does each rung of the ladder, `--preset v1` to `v5`, detect better than the one before, on phantoms?

    python benchmarks/ladder.py WORK [--count 240] [--folds 3] [--presets v1,v2,v3,v4,v5] [key=value ...]
    python benchmarks/ladder.py WORK --geometry TREES            # real vessel trees in place of the spline ones
    python benchmarks/ladder.py WORK --count 600 --transfer TREES --presets v5    # splines teach, real trees test
    python benchmarks/ladder.py WORK --transfer TREES --presets v5 --networks A.pt,B.pt    # score networks together

Writes CTA and MRA phantoms as DICOM, prepares them, and trains every preset on one fold with the same small settings,
the same patches per epoch and the same number of epochs; the test patients are scored once, at the end. Presets that
differ in inference alone share one training, whose network is kept as WORK/PRESET_SEED_EPOCHS.pt. What WORK already
holds of DICOM and volumes is used again. Networks that are given must not have learnt from the test: those of
`--transfer` have learnt from all splines. The table goes to benchmarks/ladder.md, or to a file of its own with `--out`.
"""

import argparse
import datetime
import math
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from aneurysm_ray import overrides, phantom, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.data import folds, store
from aneurysm_ray.data.dataset import SeriesEntry, open_dataset
from aneurysm_ray.data.dicom import read_series
from aneurysm_ray.data.preprocess import prepare_series
from aneurysm_ray.labels import PRESENT
from aneurysm_ray.learning import engine, froc, metrics, models
from aneurysm_ray.learning.cache import open_cache
from aneurysm_ray.learning.cases import from_table
from aneurysm_ray.learning.validation import score_cases, validate

SMALL: dict[str, Any] = {
    "volume.spacing_mm": (1.0, 1.0, 1.0),
    "model.width": 16,
    "model.output_stride": 2,
    "patch.size": (32, 32, 32),
    "sampler.patches_per_volume": 5,
    "sampler.hard_negative_every": 5,
    "optim.epochs": 14,
    "optim.lr": 1e-3,
    "augment.affine_probability": 0.0,
    "inference.overlap": 0.25,
    "feed.threads": 1,
}
"""What makes a rung cheap enough for one core: coarse voxels, a quarter of the width, few epochs."""

TRANSFER_COUNT = 160
"""Renderings of real trees that test what splines taught: of 40 trees, each with and without its aneurysm, twice."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--folds", type=int, default=3, help="the first of so many folds is the test")
    parser.add_argument("--presets", default="v1,v2,v3,v4,v5")
    parser.add_argument("--lesions", default="4,15", help="smallest and largest diameter in mm of spline phantoms")
    parser.add_argument("--modalities", default="CTA,MRA")
    parser.add_argument("--seed", type=int, default=0, help="of the spline phantoms")
    parser.add_argument("--seeds", default="0", help="seeds of the trainings; each gives a row")
    parser.add_argument("--varied", action="store_true", help="vary the spline phantoms far beyond anatomy")
    parser.add_argument("--every", type=int, default=0, help="also score after every so many epochs, to watch")
    parser.add_argument("--geometry", type=Path, help="folder of NIfTI vessel trees to render and learn from")
    parser.add_argument(
        "--networks", default="", help="files of trained networks to score as one, in place of training"
    )
    parser.add_argument("--transfer", type=Path, help="folder of NIfTI vessel trees to render and test on")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("ladder.md"))
    parser.add_argument("settings", nargs="*", help="key=value overrides, after the presets")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(options.threads)
    extra = dict(overrides.parse_override(text) for text in options.settings)
    base = {**SMALL, "folds.count": options.folds, "feed.cache_dir": str(options.work / "cache"), **extra}
    volumes = _volumes(options, overrides.build(base), "", options.count, options.geometry)
    table = store.volumes_table(volumes)
    if options.transfer:
        tested = _volumes(options, overrides.build(base), "-trees", TRANSFER_COUNT, options.transfer)
        train, test = table, store.volumes_table(tested)
    else:
        tested = volumes
        train, test = _split(overrides.build(base), table)
    rows, trained = [], {}
    runs = [(name, seed) for seed in options.seeds.split(",") for name in options.presets.split(",")]
    for name, seed in runs:
        config = overrides.build(base, overrides.preset(name), {"seed": int(seed)}, extra)
        # Presets that differ in how a volume is scored have one network between them.
        key = config.model_copy(update={"inference": None, "preset": ""}).model_dump_json()
        if options.networks:
            trained[key] = [_load(config, path, options) for path in options.networks.split(",")], 0.0
        elif key not in trained:
            trained[key] = _train(config, volumes, train, tested, test, options)
        rows.append(_score(config, tested, test, *trained[key], options))
        print(rows[-1], flush=True)
    _write(options, overrides.build(base), train, test, pd.DataFrame(rows))


def _volumes(options: argparse.Namespace, config: Config, suffix: str, count: int, geometry: Path | None) -> Path:
    """Return a prepared set in WORK, written first where it is not there."""
    dicom, volumes = options.work / f"dicom{suffix}", options.work / f"volumes{suffix}"
    if (volumes / rundir.VOLUMES).exists():
        return Path(volumes)
    if not (dicom / "train.csv").exists():
        spacing = min(config.volume.spacing_mm)
        smallest, largest = map(float, options.lesions.split(","))
        phantom.write_dataset(
            dicom,
            phantom.PhantomOptions(
                count=count, seed=0 if geometry else options.seed, modalities=tuple(options.modalities.split(",")),
                min_mm=smallest, max_mm=largest, spacing_mm=spacing, positive_fraction=0.5,
                varied=options.varied and not geometry, geometry=geometry, workers=options.workers,
            ),
        )  # fmt: skip
    one = partial(_prepare, volumes=volumes, config=config)
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        rows = list(pool.map(one, open_dataset(dicom).series))
    store.write_table(volumes, rows)
    settings = config.volume.model_dump(mode="json")
    rundir.write_json(volumes / rundir.PREPARE, {"kind": "volumes", "volume": settings})
    return Path(volumes)


def _prepare(entry: SeriesEntry, volumes: Path, config: Config) -> dict[str, Any]:
    assert entry.series_uid is not None
    volume = read_series(entry.path)
    prepared = prepare_series(
        volume, config.volume, targets=entry.targets, localizers=entry.points,
        modality=entry.modality, series_uid=entry.series_uid, patient=volume.patient_id,
        vessels=entry.vessels, domes=entry.domes,
    )  # fmt: skip
    path = store.write_volume(volumes, prepared, overrides.volume_identity(config))
    return store.table_row(prepared, path.stat().st_size)


def _split(config: Config, table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    test = (folds.assign(table, config.folds)["fold"] == 0).to_numpy()
    return table[~test], table[test]


def _train(
    config: Config,
    volumes: Path,
    train: pd.DataFrame,
    tested: Path,
    test: pd.DataFrame,
    options: argparse.Namespace,
) -> tuple[list[models.Network], float]:
    """Return the averaged network after the last epoch, alone, and the seconds of training."""
    seconds, started = 0.0, time.monotonic()
    network = models.build(config.model).to(options.device).eval()
    for result in engine.fit(config, volumes, train, train[:0], device=options.device):
        seconds += time.monotonic() - started
        network.load_state_dict(result.state["ema"])
        loss, waited = result.metrics["train/loss"], result.metrics["data_wait_fraction"]
        print(f"{config.preset} epoch {result.epoch} {seconds:.0f} s loss {loss:.4f} waited {waited:.3f}", flush=True)
        if options.every and (result.epoch + 1) % options.every == 0:
            print(_score(config, tested, test, [network], seconds, options), flush=True)
        started = time.monotonic()
    name = f"{config.preset}_{config.seed}_{config.optim.epochs}.pt"
    torch.save(network.state_dict(), options.work / name)
    return [network], seconds


def _load(config: Config, path: str, options: argparse.Namespace) -> models.Network:
    network = models.build(config.model).to(options.device).eval()
    network.load_state_dict(torch.load(path, map_location=options.device, weights_only=True))
    return network


def _score(
    config: Config,
    volumes: Path,
    test: pd.DataFrame,
    networks: list[models.Network],
    seconds: float,
    options: argparse.Namespace,
) -> dict[str, Any]:
    cases = from_table(test, volumes)
    started = time.monotonic()
    cache = open_cache(volumes, config.feed)
    scores = dict(score_cases(networks, cases, cache, config, torch.device(options.device)))
    found = validate(cases, scores, 0, config.stage)
    score = metrics.bootstrap(
        metrics.targets_of(found.predictions),
        metrics.probabilities_of(found.predictions),
        metrics.patients_of(found.predictions),
    )
    present = metrics.per_label(found.predictions).set_index("label").loc[PRESENT]
    curve = froc.froc(found.candidates, froc.points_mm(test), found.predictions)
    return {
        "preset": config.preset,
        "seed": config.seed,
        "network": f"{len(networks)} x {config.model.name} {config.model.head}",
        "parameters": sum(map(models.count_parameters, networks)),
        "present": (present["auc"], present["low"], present["high"]),
        "score": (score.value, score.low, score.high),
        "sensitivity": float(curve.table.set_index("fp_per_scan").loc[1.0, "sensitivity"]),
        "train_seconds": seconds,
        "seconds_per_series": (time.monotonic() - started) / len(test),
    }


def _write(
    options: argparse.Namespace, config: Config, train: pd.DataFrame, test: pd.DataFrame, rows: pd.DataFrame
) -> None:
    default = {row["key"]: row["value"] for row in overrides.describe()}
    changed = [f"{r['key']}={r['value']}" for r in overrides.describe(config=config) if r["value"] != default[r["key"]]]
    settings = " ".join(text for text in changed if not text.startswith("feed."))
    kind = "varied spline trees" if options.varied else "spline trees"
    splines = "aneurysms of {} to {} mm on {}".format(*options.lesions.split(","), kind)
    learnt = "renderings of real vessel trees" if options.geometry else splines
    tested = "renderings of real vessel trees" if options.transfer else f"fold 0 of {config.folds.count}"
    counts = train["modality"].value_counts().to_dict()
    taught = f"{len(train)} series of {train['patient'].nunique()} patients ({counts}), {learnt}"
    if options.networks:
        taught = f"before this run, {', '.join(Path(path).name for path in options.networks.split(','))}"
    lines = [
        f"# The ladder: {'from splines to real trees' if options.transfer else learnt}\n",
        f"{datetime.date.today()}, {options.device}, {options.threads} torch threads. Training: {taught}. Test: "
        f"{len(test)} series of {test['patient'].nunique()} patients, {int(test[PRESENT].sum())} series with an "
        f"aneurysm, {tested}.\n",
        f"Changes to the presets' defaults: `{settings}`. Presets that differ in inference alone share one training; "
        "intervals are 95 % over patients; sensitivity is at 1 false positive per scan.\n",
        "| preset | seed | network | parameters | present AUC | score | sensitivity | training s | scoring s/series |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows.to_dict("records"):
        present, score = (f"{v:.3f} [{low:.3f}, {high:.3f}]" for v, low, high in (row["present"], row["score"]))
        sensitivity = "-" if math.isnan(row["sensitivity"]) else f"{row['sensitivity']:.2f}"
        lines.append(
            f"| {row['preset']} | {row['seed']} | {row['network']} | {row['parameters'] / 1e6:.2f} M | {present} | "
            f"{score} | "
            f"{sensitivity} | {row['train_seconds']:.0f} | {row['seconds_per_series']:.2f} |"
        )
    rundir.write_text(options.out, "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
