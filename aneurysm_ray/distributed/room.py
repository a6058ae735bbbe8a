"""How much of the cluster a training run takes - a fold, or a trial of a search - and how many fit at a time."""

import math
from collections.abc import Mapping, Sequence

from aneurysm_ray.config import ResourcesConfig
from aneurysm_ray.errors import RequestError


def per_worker(resources: ResourcesConfig, cluster: Mapping[str, float]) -> dict[str, float]:
    """Return the CPUs and GPUs of one worker; `gpus_per_worker` = -1 is one where the cluster has any, else none."""
    gpus = resources.gpus_per_worker
    if gpus < 0:
        gpus = 1.0 if cluster.get("GPU", 0.0) >= 1 else 0.0
    return {"CPU": resources.cpus_per_worker, **({"GPU": gpus} if gpus else {})}


def workers_on(nodes: Sequence[Mapping[str, float]], need: Mapping[str, float]) -> int:
    """Return how many workers fit, none of them across two nodes."""
    # The small slack keeps three workers of a third of a GPU on one GPU.
    return sum(min(math.floor(node.get(name, 0.0) / amount + 1e-6) for name, amount in need.items()) for node in nodes)


def runs_at_once(
    resources: ResourcesConfig,
    need: Mapping[str, float],
    nodes: Sequence[Mapping[str, float]],
    limit: Sequence[Mapping[str, float]] | None,
    asked: int,
) -> int:
    """Return how many runs to hold at a time: as many as fit, and no more than `asked` unless that is 0.

    `nodes` are the resources of each node of the cluster. `limit` are those of the nodes it can have, None when it
    does not grow; runs of one worker then wait for nodes to come when more are asked for than fit.
    Raises RequestError when not one run fits, since Ray would wait for ever.
    """
    least = resources.min_workers or resources.workers
    fit = workers_on(nodes, need) // least
    grown = workers_on(limit, need) // least if limit else fit
    if max(fit, grown) < 1:
        wanted = " and ".join(f"{amount:g} {name}s" for name, amount in need.items())
        there = "; ".join(
            " and ".join(f"{node.get(name, 0.0):g} {name}s" for name in need) for node in (nodes or [{}])[:4]
        )
        raise RequestError(
            f"{least} worker(s) with {wanted} each do not fit the cluster, whose nodes have "
            f"{there}. Use fewer resources.workers, or less resources.cpus_per_worker or resources.gpus_per_worker"
        )
    if not asked:
        return max(fit, 1)
    # Runs of several workers each hold what they have while they wait for the rest, so more than fit could all wait.
    return min(asked, max(fit, 1)) if resources.workers > 1 or not limit else min(asked, max(fit, grown))
