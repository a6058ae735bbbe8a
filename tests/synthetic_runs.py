"""Run directories made up for the page tests, with the files of real ones and no training behind them."""

from pathlib import Path

import numpy as np
import pandas as pd

from aneurysm_ray import overrides, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.data import store
from aneurysm_ray.labels import LABELS, LOCATIONS
from aneurysm_ray.reporting import pictures

AFFINE = np.array([[0, 0, 2.0, -32], [0, 2.0, 0, -40], [2.0, 0, 0, 10], [0, 0, 0, 1]])
SHAPE = (32, 40, 32)


def uid(index: int) -> str:
    return f"1.2.826.0.1.3680043.8.498.{10**20 + index}"


def volume(index: int, rng: np.random.Generator) -> store.PreparedVolume:
    """Return a head-like ellipsoid with a bright blob at its point, in every third series."""
    grid = np.indices(SHAPE, dtype=np.float64)
    centre = np.array(SHAPE) / 2
    radius = np.sqrt(sum(((grid[a] - centre[a]) / (0.45 * SHAPE[a])) ** 2 for a in range(3)))
    voxels = np.where(radius < 1, 90, 5) + np.where((radius > 0.9) & (radius < 1), 120, 0) + rng.normal(0, 8, SHAPE)
    targets, points = np.zeros(14, np.float32), ()
    if index % 3 == 0:
        location = int(rng.integers(0, 13))
        targets[[location, 13]] = 1
        where = centre + rng.uniform(-6, 6, 3)
        voxels += 120 * (sum((grid[a] - where[a]) ** 2 for a in range(3)) < 6)
        points = (store.Point(*where, LOCATIONS[location]),)
    return store.PreparedVolume(
        series_uid=uid(index),
        patient=f"{index:016x}",
        modality=("CTA", "MRA", "MRI T2", "MRI T1post")[index % 4],
        plane="sagittal" if index % 11 == 5 else "axial",
        voxels=np.clip(voxels, 0, 255).astype(np.uint8),
        affine=AFFINE,
        targets=targets,
        points=points,
        quality=("duplicate_positions", "missing_slices")[: index % 5 // 2] if index % 5 > 1 else (),
        source_digest=f"{index:064x}",
    )


def write_volumes(folder: Path, count: int, files: int | None = None) -> pd.DataFrame:
    """Write a prepared set of `count` rows, the first `files` (default all) with volume files."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(count):
        prepared = volume(index, rng)
        size = 1000
        if files is None or index < files:
            size = store.write_volume(folder, prepared, overrides.volume_identity(Config())).stat().st_size
        rows.append(store.table_row(prepared, size))
        picture = folder / store.picture_path(prepared.series_uid)
        picture.parent.mkdir(parents=True, exist_ok=True)
        pictures.slices(prepared, np.array(SHAPE) / 2).resize((240, 96)).save(picture, "JPEG", quality=82)
    store.write_table(folder, rows)
    rejected = [
        (uid(10**6 + i), f"series/{i}", ("no_geometry", "single_slice")[i % 3 // 2], "it is so") for i in range(7)
    ]
    rundir.write_csv(
        folder / rundir.REJECTED, pd.DataFrame(rejected, columns=["series_uid", "source", "reason", "message"])
    )
    settings = Config().volume.model_dump(mode="json")
    described = {"kind": "volumes", "source": "5ca1ab1e", "seconds": 61.0, "volume": settings}
    rundir.write_json(folder / rundir.PREPARE, described)
    return store.volumes_table(folder)


def predictions(table: pd.DataFrame, skill: float = 1.5, seed: int = 0, folds: int = 3) -> pd.DataFrame:
    """Return out-of-fold predictions of a reader of some skill for every row of a volumes table."""
    rng = np.random.default_rng(seed)
    frame = table[["series_uid", "patient", "modality", "plane"]].copy()
    frame.insert(2, "fold", np.arange(len(frame)) // 3 % folds)
    targets = table[list(LABELS)].to_numpy(np.float64)
    logits = rng.normal(size=targets.shape) - 1.5 + skill * targets
    frame[list(LABELS)] = 1 / (1 + np.exp(-logits))
    frame[[f"target/{label}" for label in LABELS]] = targets
    return frame


def candidates(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Return two false candidates a series and, for two in three points, a true one."""
    rng = np.random.default_rng(seed)
    rows = []
    for row in table.to_dict("records"):
        affine = np.asarray(row["affine"]).reshape(4, 4)
        for _ in range(2):
            rows.append((row["series_uid"], *rng.uniform(-20, 20, 3), rng.random() * 0.6, LOCATIONS[0]))
        for point in row["points"]:
            if rng.random() < 0.67:
                where = (affine @ (point["z"], point["y"], point["x"], 1))[:3] + rng.normal(0, 1, 3)
                rows.append((row["series_uid"], *where, 0.3 + 0.7 * rng.random(), point["location"]))
    return pd.DataFrame(rows, columns=["series_uid", "x_mm", "y_mm", "z_mm", "probability", "location"])


def epoch_metrics(epochs: int, fold: int) -> pd.DataFrame:
    """Return a metrics table that looks like learning."""
    rng = np.random.default_rng(fold)
    epoch = np.arange(epochs)
    score = 0.5 + 0.3 * (1 - np.exp(-epoch / 4)) + rng.normal(0, 0.01, epochs)
    return pd.DataFrame(
        {
            "epoch": epoch,
            "train/loss": 0.7 * np.exp(-epoch / 6) + 0.1,
            "val/loss": 0.7 * np.exp(-epoch / 6) + 0.16 + 0.004 * epoch,
            "val/score": score,
            "val/auc_present": score + 0.04,
            "lr": 1e-3,
            "seconds": 12.5,
            "patches_per_s": 40.0,
            "data_wait_fraction": 0.01,
            "seconds/feed": 0.1,
            "seconds/steps": 9.9,
            "seconds/validation": 2.0,
            "seconds/mining": 0.5,
            "seconds/writing": 0.2,
        }
    )


def write_run(
    folder: Path, volumes: Path, table: pd.DataFrame, *, folds: int = 3, skill: float = 1.5, seed: int = 0
) -> Path:
    """Write a finished training run over a prepared set."""
    config = overrides.build({"optim.epochs": 12, "model.head": "grid"})
    provenance = {
        "kind": "train",
        "volumes": str(volumes),
        "versions": {"torch": "2.9"},
        "started": "2026-11-24T21:00:00",
    }
    rundir.create(folder, config, {**provenance, "command": "aneurysm-ray train <volumes> prepare.patient_key=hunter2"})
    found, scored = candidates(table), predictions(table, skill, seed, folds)
    heat_affine = AFFINE @ np.diag([8.0, 8.0, 8.0, 1.0])
    heat_affine[:3, 3] = (AFFINE @ (3.5, 3.5, 3.5, 1))[:3]
    rng = np.random.default_rng(1)
    for fold in range(folds):
        inside = scored[scored["fold"] == fold]
        own = rundir.fold_dir(folder, fold)
        rundir.write_csv(own / rundir.METRICS, epoch_metrics(12, fold))
        rundir.write_csv(own / rundir.PREDICTIONS, inside)
        rundir.write_csv(own / rundir.CANDIDATES, found[found["series_uid"].isin(inside["series_uid"])])
        (own / rundir.HEATMAPS).mkdir(parents=True, exist_ok=True)
        for series in inside["series_uid"].head(40):
            grid = (rng.random((4, 5, 4)) ** 4).astype(np.float16)
            np.savez(own / rundir.HEATMAPS / f"{series}.npz", grid=grid, affine=heat_affine)
    rundir.write_csv(folder / rundir.PREDICTIONS, scored)
    rundir.write_csv(folder / rundir.CANDIDATES, found)
    rundir.write_json(folder / rundir.SUMMARY, {"kind": "train", "seconds": 512.0})
    return folder


def write_search(folder: Path, table: pd.DataFrame, *, trials: int = 24, seed: int = 0) -> Path:
    """Write a finished search of a smooth score, some trials stopped early and two failed."""
    space = {
        "optim.lr": {"loguniform": [1e-5, 1e-2]},
        "loss.focal_gamma": {"uniform": [0.0, 4.0]},
        "model.name": {"choice": ["resnet3d10", "resnet3d18"]},
        "optim.weight_decay": {"loguniform": [1e-5, 1e-1]},
    }
    early = {"tune.grace_epochs": 2, "tune.startup_trials": 8}
    config = overrides.build({"tune.trials": trials, "tune.space": space, "optim.epochs": 9, **early})
    rundir.create(folder, config, {"kind": "tune", "started": "2026-11-24T21:00:00", "versions": {"optuna": "5"}})
    rng = np.random.default_rng(seed)
    rows, curves = [], []
    for trial in range(trials):
        rate = 3e-4 if trial == 0 else float(10 ** rng.uniform(-5, -2))
        gamma = 2.0 if trial == 0 else float(rng.uniform(0, 4))
        name = "resnet3d18" if trial == 0 else str(rng.choice(["resnet3d10", "resnet3d18"]))
        score = 0.85 - 0.08 * (np.log10(rate) + 3) ** 2 - 0.01 * (gamma - 1) ** 2 + 0.02 * (name == "resnet3d18")
        state = "FAIL" if trial in (5, 11) else "COMPLETE" if trial == 0 or trial % 3 == 0 else "PRUNED"
        epochs = {"FAIL": 1, "COMPLETE": 9, "PRUNED": 2 + trial % 2}[state]
        values = score - 0.3 * np.exp(-np.arange(1, epochs + 1) / 3) + rng.normal(0, 0.005, epochs)
        for step, value in enumerate(values, 1):
            curves.append({"trial": trial, "step": step, "epoch": step - 1, "val/score": value, "train/loss": 1 / step})
        start = pd.Timestamp("2026-11-24T21:00:00Z") + pd.Timedelta(seconds=30 * (trial // 2))
        rows.append(
            {
                "trial": trial,
                "state": state,
                "value": np.nan if state == "FAIL" else values[-1],
                "param/optim.lr": rate,
                "param/loss.focal_gamma": gamma,
                "param/model.name": name,
                "param/optim.weight_decay": float(10 ** rng.uniform(-5, -1)),
                "epochs": epochs,
                "started": start.isoformat(),
                "ended": (start + pd.Timedelta(seconds=3 * epochs)).isoformat(),
                "seconds": 3.0 * epochs,
                "gpu_seconds": 0.0,
                "worker": f"node{trial % 2}:{1000 + trial}",
                "origin": "default" if trial == 0 else f"start {trial - 1}" if trial < 8 else "sampler",
                "error": "RuntimeError: out of memory" if trial == 5 else None,
            }
        )
        own = folder / "trials" / f"trial_{trial:04d}"
        own.mkdir(parents=True)
        if state == "FAIL":
            rundir.write_text(
                own / "error.txt", "Traceback (most recent call last):\n  File x\nValueError: bad <b>value</b>\n"
            )
        else:
            rundir.write_csv(
                own / rundir.PREDICTIONS, predictions(table, skill=max(0.2, 8 * (values[-1] - 0.55)), seed=3)
            )
    rundir.write_csv(folder / rundir.TRIALS, pd.DataFrame(rows))
    rundir.write_csv(folder / rundir.CURVES, pd.DataFrame(curves))
    rundir.write_json(folder / rundir.SUMMARY, {"kind": "tune", "trials": trials})
    return folder
