"""The whole system on synthetic patients: DICOM files → volumes → a trained fold → a small search → pages.

Sized for two CPU cores and a few minutes. Everything is what a real run does, only smaller: fewer patients, a smaller
network, fewer epochs. Running it again goes on where it stopped.
"""

import logging
import os
import time
from pathlib import Path
from typing import Any

from aneurysm_ray import overrides, phantom, rundir
from aneurysm_ray.distributed import driver, prepare, progress, session, train, tune
from aneurysm_ray.reporting import pages

log = logging.getLogger(__name__)

PATIENTS = 160
SETTINGS: dict[str, Any] = {
    **overrides.PRESETS["starter"],
    "preset": "starter",
    # A hundred patients teach a network them by heart: it goes on from the weights that come with the package.
    "init": "starter",
    # What the phantom counts from; its table alone does not prove it.
    "prepare.frame_base": phantom.PhantomOptions.frame_base,
    "folds.count": 4,
    "sampler.patches_per_volume": 10,
    "sampler.hard_negative_every": 2,
    "sampler.hard_negative_series": 30,
    "loss.name": "focal",
    "loss.focal_gamma": 1.0,
    "optim.epochs": 4,
    "optim.lr": 5e-4,
    "validation.every": 2,
    "validation.series": 16,
}
"""The starter's network, taught on by a small set as one's own would be; README.md has what it reaches."""
SEARCH: dict[str, Any] = {
    # Networks of several depths cannot all begin with the same weights.
    "init": "",
    "model.width": 8,
    "patch.size": (32, 32, 32),
    "inference.window": 3,
    "inference.overlap": 0.0,
    "sampler.patches_per_volume": 2,
    "sampler.hard_negative_fraction": 0.0,
    "optim.epochs": 2,
    "optim.lr": 2e-3,
    "validation.every": 1,
    "tune.trials": 5,
    "tune.startup_trials": 3,
    "tune.grace_epochs": 1,
    "tune.space": {
        "sampler.positive_fraction": {"uniform": [0.2, 0.8]},
        "loss.focal_gamma": {"uniform": [0.0, 4.0]},
        "model.name": {"choice": ["small3d", "resnet3d10", "resnet3d18"]},
    },
}
"""A search small enough to watch; its trials are far too short to compare anything in earnest."""


def run(out: Path, seed: int = 0) -> dict[str, Any]:
    """Write the demonstration into `out` and return the training run's summary."""
    data, volumes = out / "dicom", out / "volumes"
    started = time.monotonic()
    cores = len(os.sched_getaffinity(0))
    config = overrides.build(SETTINGS, {"seed": seed, "resources.cpus_per_worker": min(cores, 4)})
    with driver.alone(out), rundir.keep_log(out), session.connect():
        if not (data / "train.csv").exists():
            log.info("* writing %d synthetic head CTA and MRA series as DICOM files", PATIENTS)
            options = phantom.PhantomOptions(
                count=PATIENTS,
                seed=seed,
                modalities=("CTA", "MRA"),
                min_mm=4.0,
                max_mm=15.0,
                positive_fraction=0.5,
                workers=cores,
            )
            written = [0]
            with progress.told(lambda: f"  {written[-1]} of {PATIENTS} series written"):
                phantom.write_dataset(data, options, lambda done, _: written.append(done))
        log.info("* decoding them to volumes")
        with progress.told("decoding"):
            prepare.prepare(str(data), str(volumes), config)
        with progress.told("writing the page of the volumes"):
            pages.write_report(volumes)
        log.info("* training one fold")
        summary = train.train(volumes, out / "train", config, folds="0", resume=(out / "train").exists())
        search = overrides.build(SEARCH, {"resources.cpus_per_worker": 1}, base=config)
        log.info("* searching with %d short trials", search.tune.trials)
        tune.tune(volumes, out / "tune", search, resume=(out / "tune").exists())
    log.info("* done in %d:%02d", *divmod(round(time.monotonic() - started), 60))
    return summary


def sentence(summary: dict[str, Any]) -> str:
    """Say what the trained fold makes of patients it has not seen."""
    present = summary["auc_present"]
    return (
        f"Aneurysm Present AUC {present['value']:.3f} [{present['low']:.3f}, {present['high']:.3f}] "
        f"on {summary['n']} held-out patients, {summary['n_positive']} with an aneurysm"
    )
