"""Which deaths a group of workers survives, beyond those that Ray Train itself does."""

import pytest
import ray.train
from ray.exceptions import ActorUnavailableError, RayActorError

from aneurysm_ray.config import ResourcesConfig
from aneurysm_ray.distributed import survival
from aneurysm_ray.distributed.failures import LastingFailure

TOLD_TO_BEGIN = ray.train.ControllerError(ActorUnavailableError("Socket closed", None))
"""What Ray Train ends with when a node dies after its worker was made and before it was told to begin."""


def ends(*results: Exception | None, max_failures: int = 3) -> tuple[int, list[str]]:
    """Run what ends in these ways, one after the other; return how often it ran, and what was said of its losses."""
    left, lost = list(results), []

    class Trainer:
        def fit(self) -> None:
            if (error := left.pop(0)) is not None:
                raise error

    survival.run(Trainer, ResourcesConfig(max_failures=max_failures), lost.append)
    return len(results) - len(left), lost


def test_what_died_is_run_anew() -> None:
    count, lost = ends(TOLD_TO_BEGIN, TOLD_TO_BEGIN, None)
    assert count == 3 and len(lost) == 2 and "Socket closed" in lost[0]


def test_deaths_are_survived_as_often_as_the_settings_say() -> None:
    assert ends(TOLD_TO_BEGIN, None, max_failures=1)[0] == 2
    with pytest.raises(ray.train.ControllerError):
        ends(TOLD_TO_BEGIN, TOLD_TO_BEGIN, None, max_failures=1)
    with pytest.raises(ray.train.ControllerError):
        ends(TOLD_TO_BEGIN, None, max_failures=0)


def test_a_run_whose_controller_died_ends() -> None:
    """What it had reserved may still be, and a new one would wait for it."""
    with pytest.raises(RayActorError):
        ends(RayActorError(), None)


def test_what_would_fail_again_is_not_run_anew() -> None:
    for error in (LastingFailure("the disk is full"), ValueError("no")):
        with pytest.raises(ray.train.ControllerError):
            ends(ray.train.ControllerError(error), None)
    with pytest.raises(ray.train.WorkerGroupError):
        ends(ray.train.WorkerGroupError("one failed", {0: RuntimeError("x")}), None)
