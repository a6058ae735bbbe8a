"""What dies in a job of Ray Data is done again, and nothing waits for the dead."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray.data

from aneurysm_ray.distributed import data_passes
from aneurysm_ray.distributed.data_passes import Pass


def worker() -> type:
    """Return a class that workers, which cannot import this file, are sent whole."""

    class Worker:
        """Doubles numbers; dies of 3 once, and of 5 always."""

        def __init__(self, folder: str) -> None:
            self.died = Path(folder) / "died"

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            number = int(row["number"])
            if number == 5 or (number == 3 and not self.died.exists()):
                self.died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return {"number": number, "twice": 2 * number}

    return Worker


def doubled(numbers: set[int], folder: Path) -> tuple[dict[int, int], list[Pass]]:
    """Double numbers by one actor at a time; return what came, and the passes."""
    left, passes = set(numbers), []
    found: dict[int, int] = {}

    def once(one: Pass) -> Iterator[dict[str, int]]:
        passes.append(one)
        rows = ray.data.from_items([{"number": n} for n in sorted(left)], override_num_blocks=len(left))
        with data_passes.undeprecated():
            done = rows.map(
                worker(),
                fn_constructor_args=(str(folder),),
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=1, max_tasks_in_flight_per_actor=2),
                num_cpus=1,
                **one.of_actors,
            )
        yield from done.iter_rows()

    for row in data_passes.until_done(once, lambda: len(left), 60.0):
        left.discard(row["number"])
        found[row["number"]] = row["twice"]
    return found, passes


def test_a_job_whose_only_actor_died_goes_on(tmp_path: Path, ray_session: None) -> None:
    found, passes = doubled({1, 2, 3, 4}, tmp_path)
    assert found == {1: 2, 2: 4, 3: 6, 4: 8}
    assert [one.lossy for one in passes] == [False, True]


def test_what_always_kills_is_given_up_and_the_rest_is_done(tmp_path: Path, ray_session: None) -> None:
    found, passes = doubled({1, 2, 5, 6, 7}, tmp_path)
    assert found == {1: 2, 2: 4, 6: 12, 7: 14}
    assert [one.careful for one in passes][-data_passes.TRIES :] == [True] * data_passes.TRIES


def test_a_job_in_which_nobody_dies_prints_nothing(
    tmp_path: Path, ray_session: None, capfd: pytest.CaptureFixture[str]
) -> None:
    found, passes = doubled({1, 2}, tmp_path)
    assert found == {1: 2, 2: 4} and passes == [Pass(0)]
    assert capfd.readouterr() == ("", "")
