"""A search in a process of its own, for tests that kill it: `search_driver.py OUT LOG TRIALS SECONDS [resume]`."""

import functools
import json
import logging
import sys
import tempfile
from pathlib import Path

import ray
import surrogates

from aneurysm_ray import overrides, rundir
from aneurysm_ray.distributed import tune


def main(out: str, log: str, trials: str, seconds: str, *words: str) -> int:
    """Search, print the summary, and return 130 when interrupted."""
    ray.cloudpickle.register_pickle_by_value(surrogates)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = overrides.build(
        {
            "tune.space": {"optim.lr": {"loguniform": [1e-5, 1e-1]}},
            "tune.trials": int(trials),
            "tune.startup_trials": 3,
            "tune.grace_epochs": 2,
            "tune.save_seconds": 0.0,
            "optim.epochs": 9,
        }
    )
    resume = "resume" in words
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        object_store_memory=256 * 2**20,
        _temp_dir=tempfile.mkdtemp(prefix="ar", dir="/tmp"),
    )
    rundir.check(Path(out), config, resume=resume, freed=tune.FREED)
    rundir.create(Path(out), config, {"kind": "tune"})
    fit = functools.partial(surrogates.slow_fit, seconds=float(seconds), log=Path(log))
    summary = tune.run_search(Path(out), config, fit)
    print(json.dumps(summary))
    return 130 if summary["interrupted"] else 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
