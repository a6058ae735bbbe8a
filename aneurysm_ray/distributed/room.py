"""How much of the cluster a training run takes - a fold, or a trial of a search - and how many fit at a time."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aneurysm_ray.config import ResourcesConfig
from aneurysm_ray.errors import RequestError

Amounts = Mapping[str, float]
"""Resources by Ray's names for them."""


@dataclass(frozen=True)
class Growth:
    """What an autoscaler may add to a cluster."""

    nodes: tuple[Amounts, ...] = ()
    """Nodes of each kind, as many as there may be of that kind; none where the autoscaler tells nobody."""
    most: float = math.inf
    """Nodes that it adds at most, of all kinds together."""


@dataclass(frozen=True)
class Cluster:
    """The nodes that run, and what may come."""

    nodes: tuple[Amounts, ...]
    growth: Growth | None
    """None where the cluster stays as it is."""

    def most(self, name: str) -> float:
        """Return how much of a resource the cluster has in all, or can have."""
        there = sum(node.get(name, 0.0) for node in self.nodes)
        if not self.growth:
            return there
        richest = sorted((node.get(name, 0.0) for node in self.growth.nodes), reverse=True)
        return max(there, sum(richest[: _whole(self.growth.most)]))


def _whole(number: float) -> int | None:
    return None if math.isinf(number) else int(number)


def per_worker(resources: ResourcesConfig, cluster: Cluster, runs: int) -> dict[str, float]:
    """Return the CPUs and GPUs of one worker.

    `gpus_per_worker` = -1 is one where the cluster has any, else none. `cpus_per_worker` = 0 is an equal share: of a
    node's CPUs the part that falls to a GPU or, without GPUs, to one of the workers of `runs` at a time, so that a
    workstation is used in full.
    """
    gpus = resources.gpus_per_worker
    if gpus < 0:
        gpus = 1.0 if cluster.most("GPU") >= 1 else 0.0
    cpus = resources.cpus_per_worker or _share(cluster, gpus, runs * resources.workers)
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {})}


def _share(cluster: Cluster, gpus: float, workers: int) -> float:
    nodes = [*cluster.nodes, *(cluster.growth.nodes if cluster.growth else ())]
    if gpus:
        shares = [node.get("CPU", 0.0) / node["GPU"] * gpus for node in nodes if node.get("GPU", 0.0) >= gpus]
    else:
        able = [node["CPU"] for node in nodes if node.get("CPU", 0.0) >= 1]
        shares = [cpus // min(cpus, math.ceil(workers / len(able))) for cpus in able]
    return max(1.0, math.floor(min(shares, default=1.0)))


def workers_on(nodes: Sequence[Amounts], need: Amounts, most: float = math.inf) -> int:
    """Return how many workers fit, none of them across two nodes, on `most` of the nodes."""
    # The small slack keeps three workers of a third of a GPU on one GPU.
    fit = [min(math.floor(node.get(name, 0.0) / amount + 1e-6) for name, amount in need.items()) for node in nodes]
    return sum(sorted(fit, reverse=True)[: _whole(most)])


def runs_at_once(resources: ResourcesConfig, need: Amounts, cluster: Cluster, asked: int) -> int:
    """Return how many runs to hold at a time: as many as fit or, on a cluster that grows, can fit; at most `asked`.

    Those that have no room yet wait for nodes to come. A run's workers are given room all at once or not at all, so
    that no two wait for each other. Raises RequestError when not one run can ever fit, since Ray would wait for ever.
    """
    least = resources.min_workers or resources.workers
    fit = workers_on(cluster.nodes, need) // least
    grown: float = fit
    if growth := cluster.growth:
        grown = workers_on(growth.nodes, need, growth.most) // least if growth.nodes else math.inf
    if max(fit, grown) < 1:
        there = "; ".join(
            " and ".join(f"{node.get(name, 0.0):g} {name}s" for name in need) for node in (cluster.nodes or ({},))[:4]
        )
        raise RequestError(
            f"{least} worker(s) with {said(need)} each do not fit the cluster, whose nodes have "
            f"{there}. Use fewer resources.workers, or less resources.cpus_per_worker or resources.gpus_per_worker"
        )
    # An elastic run takes what there is when it starts, and leaves to others what it cannot get.
    return int(min(asked, max(fit, 1 if resources.min_workers else grown, 1)))


def said(need: Amounts) -> str:
    """Write resources as words."""
    return " and ".join(f"{amount:g} {name}s" for name, amount in need.items())


def waits_for(need: Amounts, free: Amounts, roomless: int, runs: int = 1) -> str:
    """Say what `runs` that have not begun wait for, `roomless` of which were given no room yet.

    What is free does not tell: a run that was given room takes it from the moment on in which its workers start.
    """
    if not roomless:
        return "starts its workers"
    lacking = [name for name, amount in need.items() if free.get(name, 0.0) < amount]
    there = " and ".join(f"{free.get(name, 0.0):g} {name}s" for name in lacking or need)
    waits = f"waits for {said(need)} a worker; the cluster has {there} free"
    return waits if roomless >= runs else f"{runs - roomless} of {runs} starts its workers, the rest {waits}"
