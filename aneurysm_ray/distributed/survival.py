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


def patience(resources: ResourcesConfig) -> dict[str, str]:
    """Return the variables by which Ray Train waits for nodes as long as it takes, and counts no wait as a failure.

    An elastic group decides on its size by what it saw a moment ago, so that it must be let decide again.
    """
    return {} if resources.min_workers else {WORKER_GROUP_START_TIMEOUT_S_ENV_VAR: str(10**8)}


def failure_config(resources: ResourcesConfig) -> ray.train.FailureConfig:
    """Say to Ray Train how many losses a run survives; a node that is taken back with notice is not counted."""
    return ray.train.FailureConfig(
        max_failures=resources.max_failures,
        controller_failure_limit=-1 if resources.min_workers else resources.max_failures,
    )
