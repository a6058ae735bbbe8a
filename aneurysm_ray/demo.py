"""The whole system on synthetic patients: DICOM files → volumes → a trained fold → a small search → pages.

Sized for two CPU cores and a few minutes. Everything is what a real run does, only smaller: coarser voxels, a smaller
network, fewer epochs. Running it again goes on where it stopped.
"""

import logging
import os
import time
from pathlib import Path
from typing import Any

from aneurysm_ray import overrides, rundir
from aneurysm_ray.data import phantom
from aneurysm_ray.distributed import prepare, session, train, tune
from aneurysm_ray.reporting import pages

log = logging.getLogger(__name__)

PATIENTS = 130
SETTINGS: dict[str, Any] = {
    "volume.spacing_mm": [1.0, 1.0, 1.0],
    "model.name": "small3d",
    "model.head": "grid",
    "patch.size": [48, 48, 48],
}
TRIALS = 6
TRIAL_EPOCHS = 3


def run(out: Path, seed: int = 0) -> dict[str, Any]:
    """Write the demonstration into `out` and return the training run's summary."""
    data, volumes = out / "dicom", out / "volumes"
    started = time.monotonic()
    config = overrides.build(SETTINGS, {"seed": seed})
    with rundir.keep_log(out), session.connect():
        if not (data / "train.csv").exists():
            log.info("* writing %d synthetic head CTA and MRA series as DICOM files", PATIENTS)
            phantom.write_dataset(
                data,
                phantom.PhantomOptions(
                    count=PATIENTS,
                    seed=seed,
                    modalities=("CTA", "MRA"),
                    min_mm=3.0,
                    max_mm=9.0,
                    spacing_mm=1.0,
                    workers=len(os.sched_getaffinity(0)),
                ),
            )
        log.info("* decoding them to volumes")
        prepare.prepare(str(data), str(volumes), config)
        pages.write_report(volumes)
        log.info("* training one fold")
        summary = train.train(volumes, out / "train", config, folds="0", resume=(out / "train").exists())
        log.info("* searching %d short trials", TRIALS)
        # The depths of the default space are for GPUs.
        space = {key: words for key, words in config.tune.space.items() if key != "model.name"}
        short = {"tune.trials": TRIALS, "optim.epochs": TRIAL_EPOCHS, "tune.grace_epochs": 1, "tune.space": space}
        search = overrides.build(short, base=config)
        tune.tune(volumes, out / "tune", search, resume=(out / "tune").exists(), then_train=False)
    log.info("* done in %d:%02d", *divmod(round(time.monotonic() - started), 60))
    return summary
