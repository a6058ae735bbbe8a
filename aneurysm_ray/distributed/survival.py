"""What is asked of Ray Train for a group of workers: how many, on what, and which losses it survives.

Folds ask for it, and so do the trials of a search that have several workers.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import ray.train
from ray.exceptions import RayActorError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.constants import WORKER_GROUP_START_TIMEOUT_S_ENV_VAR

from aneurysm_ray.config import ResourcesConfig
from aneurysm_ray.distributed import failures


def run(make: Callable[[], TorchTrainer], resources: ResourcesConfig, lost: Callable[[str], None]) -> None:
    """Run Ray Train to its end, anew after a death that it does not survive; `lost` is told of what died.

    It survives a worker that dies while it is made or while it works, and none in between, when it is told to begin
    (Ray 2.60, `WorkerGroup._start_impl`). What its workers do must go on from what they wrote. Its controller's own
    death ends a run: what that had reserved is not given back without Ray's dashboard, and a new one would wait for it.
    Raises Ray's TrainingFailedError.
    """
    tries = resources.max_failures
    while True:
        try:
            make().fit()
            return
        except ray.train.ControllerError as error:
            cause = failures.cause_of(error.controller_failure)
            if not tries or not isinstance(cause, RayActorError):
                raise
            tries -= 1
            lost(failures.sentence(cause))


def scaling(resources: ResourcesConfig, need: Mapping[str, float]) -> ray.train.ScalingConfig:
    """Say to Ray Train how many workers to hold and what each needs."""
    return ray.train.ScalingConfig(
        num_workers=(resources.min_workers, resources.workers) if resources.min_workers else resources.workers,
        use_gpu="GPU" in need,
        resources_per_worker=dict(need),
    )


class Connection(TorchConfig):
    """How the workers of a group talk to each other: by NCCL where each has a GPU that torch can use, else by Gloo.

    Ray asks for NCCL wherever GPUs are reserved. A torch that has none then fails in Ray's own words, and Ray tries it
    again and again; by Gloo a worker comes to where it says itself what is wrong with its GPU (`devices.py`).
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """Return what Ray lets connect the workers."""
        return _Connecting


class _Connecting(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        nccl = all(worker_group.execute(_can_nccl))
        super().on_start(worker_group, replace(backend_config, backend="nccl" if nccl else "gloo"))


def _can_nccl() -> bool:
    """Say whether this worker has a GPU of its own that torch can use."""
    import torch

    gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU")
    return bool(gpus) and torch.cuda.is_available() and torch.distributed.is_nccl_available()


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
