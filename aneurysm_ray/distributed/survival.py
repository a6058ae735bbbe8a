"""What is asked of Ray Train for a group of workers: how many, on what, and which losses it survives.

Folds ask for it, and so do the trials of a search that have several workers.
"""

from collections.abc import Mapping

import ray.train
from ray.train.v2._internal.constants import WORKER_GROUP_START_TIMEOUT_S_ENV_VAR

from aneurysm_ray.config import ResourcesConfig


def scaling(resources: ResourcesConfig, need: Mapping[str, float]) -> ray.train.ScalingConfig:
    """Say to Ray Train how many workers to hold and what each needs."""
    return ray.train.ScalingConfig(
        num_workers=(resources.min_workers, resources.workers) if resources.min_workers else resources.workers,
        use_gpu="GPU" in need,
        resources_per_worker=dict(need),
    )


def run_config(
    name: str, scratch: str, resources: ResourcesConfig, callbacks: list[ray.train.UserCallback]
) -> ray.train.RunConfig:
    """Say to Ray Train what to do with losses, whom to tell, and where it may write what nobody reads.

    A run's state lies in the run, not in `scratch`. Ray Train's own record of checkpoints is not used: it is written in
    place, so that a kill or a full disk can leave one that no run goes on from; it belongs to one version of Ray; and a
    trial that runs without Ray Train has none.
    """
    return ray.train.RunConfig(
        name=name,
        storage_path=scratch,
        callbacks=callbacks,
        failure_config=ray.train.FailureConfig(
            # A node that is taken back with notice, as spot ones are, is not counted.
            max_failures=resources.max_failures,
            controller_failure_limit=-1 if resources.min_workers else resources.max_failures,
        ),
        logging_config=ray.train.LoggingConfig(log_level="ERROR"),
    )


def patience(resources: ResourcesConfig) -> dict[str, str]:
    """Return the variables by which Ray Train waits for nodes as long as it takes, and counts no wait as a failure.

    An elastic group decides on its size by what it saw a moment ago, so that it must be let decide again.
    """
    return {} if resources.min_workers else {WORKER_GROUP_START_TIMEOUT_S_ENV_VAR: str(10**8)}
