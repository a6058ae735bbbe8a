"""How many runs fit a cluster, what each takes, and what is never going to fit."""

import math

import pytest

from aneurysm_ray.config import ResourcesConfig
from aneurysm_ray.distributed import room
from aneurysm_ray.distributed.room import Cluster, Growth
from aneurysm_ray.errors import RequestError

NODES = ({"CPU": 4.0, "GPU": 1.0}, {"CPU": 3.0})
EIGHT_GPUS = {"CPU": 64.0, "GPU": 8.0}


def fit(resources: dict, asked: int, growth: Growth | None = None, nodes=NODES) -> int:
    chosen = ResourcesConfig(**{"cpus_per_worker": 1, **resources})
    cluster = Cluster(tuple(nodes), growth)
    return room.runs_at_once(chosen, room.per_worker(chosen, cluster, asked), cluster, asked)


@pytest.mark.parametrize(
    ("resources", "asked", "growth", "expected"),
    [
        ({"gpus_per_worker": 0, "cpus_per_worker": 2}, 99, None, 3),
        ({"gpus_per_worker": 0, "cpus_per_worker": 2, "workers": 2}, 99, None, 1),
        ({"gpus_per_worker": 1 / 3}, 99, None, 3),
        ({"gpus_per_worker": -1}, 99, None, 1),
        ({"gpus_per_worker": 0}, 2, None, 2),
        ({"gpus_per_worker": 0}, 99, None, 7),
        ({"gpus_per_worker": 1}, 4, Growth((EIGHT_GPUS,)), 4),
        ({"gpus_per_worker": 1}, 4, Growth(({"CPU": 8.0, "GPU": 1.0},) * 3, 3), 3),
        # A group's workers get room all at once or not at all, so that groups may wait for nodes as well.
        ({"gpus_per_worker": 2, "workers": 2}, 9, Growth((EIGHT_GPUS,)), 2),
        # KubeRay tells nobody what it may add: whoever asks for four is given four, when the nodes have come.
        ({"gpus_per_worker": 1}, 4, Growth(), 4),
        ({"gpus_per_worker": 1, "workers": 4}, 1, Growth(), 1),
        ({"workers": 4, "min_workers": 1, "gpus_per_worker": 0}, 9, Growth(), 7),
    ],
)
def test_as_many_runs_at_a_time_as_fit_or_can_fit(resources, asked, growth, expected):
    assert fit(resources, asked, growth) == expected


def test_a_launchers_total_holds_over_all_kinds_of_nodes():
    kinds = ({"CPU": 32.0},) * 8 + ({"CPU": 8.0, "GPU": 1.0},) * 8
    assert fit({"gpus_per_worker": 1}, 99, Growth(kinds, 16), nodes=()) == 8
    assert fit({"gpus_per_worker": 1}, 99, Growth(kinds, 5), nodes=()) == 5
    assert fit({"gpus_per_worker": 0, "cpus_per_worker": 4}, 99, Growth(kinds, 5), nodes=()) == 5 * 8
    assert Cluster((), Growth(kinds, 5)).most("GPU") == 5


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"cpus_per_worker": 5}, "5 CPUs"),
        ({"workers": 8}, r"8 worker\(s\)"),
        ({"gpus_per_worker": 2}, "2 GPUs"),
    ],
)
def test_a_run_that_can_never_fit_is_refused(resources, words):
    with pytest.raises(RequestError, match=words):
        fit(resources, 1)


def test_what_no_node_to_come_can_hold_is_refused_though_all_together_could():
    with pytest.raises(RequestError, match="16 CPUs"):
        fit({"cpus_per_worker": 16, "gpus_per_worker": 0}, 1, Growth(({"CPU": 8.0, "GPU": 1.0},) * 8))


@pytest.mark.parametrize(
    ("nodes", "growth", "resources", "runs", "cpus"),
    [
        (({"CPU": 16.0},), None, {}, 1, 16),  # a workstation's one fold gets all of it
        (({"CPU": 16.0},), None, {}, 5, 3),
        (({"CPU": 16.0},), None, {"workers": 2}, 2, 4),
        (({"CPU": 2.0},), None, {}, 5, 1),
        (({"CPU": 16.0},) * 3, None, {}, 5, 8),
        (({"CPU": 0.0}, {"CPU": 48.0, "GPU": 4.0}, {"CPU": 64.0}), None, {}, 5, 12),
        (({"CPU": 48.0, "GPU": 4.0},), None, {"gpus_per_worker": 0.5}, 5, 6),
        (({"CPU": 4.0, "GPU": 8.0},), None, {}, 5, 1),
        (({"CPU": 0.0},), Growth(({"CPU": 8.0, "GPU": 1.0},) * 8, 8), {}, 5, 8),
        (({"CPU": 0.0},), Growth(), {}, 5, 1),
        (({"CPU": 16.0},), None, {"cpus_per_worker": 1.5}, 1, 1.5),
    ],
)
def test_a_workers_cpus_are_its_equal_share_of_a_node(nodes, growth, resources, runs, cpus):
    need = room.per_worker(ResourcesConfig(**resources), Cluster(nodes, growth), runs)
    assert need["CPU"] == cpus
    assert ("GPU" in need) == (Cluster(nodes, growth).most("GPU") > 0)


def test_what_is_waited_for_is_said():
    need = {"CPU": 2.0, "GPU": 1.0}
    waits = "waits for 2 CPUs and 1 GPUs a worker; the cluster has 0 GPUs free"
    assert room.waits_for(need, {"CPU": 8.0}, 1) == waits
    assert room.waits_for(need, {"CPU": 8.0}, 2, 2) == waits
    assert room.waits_for(need, {"CPU": 8.0}, 0) == "starts its workers", "nothing is free as it has taken all itself"
    assert room.waits_for(need, {"CPU": 8.0}, 2, 3) == f"1 of 3 starts its workers, the rest {waits}"
    scattered = room.waits_for(need, {"CPU": 2.0, "GPU": 1.0}, 1)
    assert scattered == "waits for 2 CPUs and 1 GPUs a worker; the cluster has 2 CPUs and 1 GPUs free"
    assert math.isinf(Growth().most)
