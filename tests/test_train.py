"""Folds on Ray Train: what fits on a cluster, and real runs from prepared volumes to a summary."""

import pytest

from aneurysm_ray.config import ResourcesConfig
from aneurysm_ray.distributed import train
from aneurysm_ray.errors import RequestError


@pytest.mark.parametrize(
    ("resources", "cluster", "folds", "expected"),
    [
        ({}, {"CPU": 2}, 5, train.Plan(0.0, 2)),
        ({"cpus_per_worker": 2}, {"CPU": 2}, 5, train.Plan(0.0, 1)),
        ({}, {"CPU": 32, "GPU": 4}, 5, train.Plan(1.0, 4)),
        ({"workers": 2}, {"CPU": 32, "GPU": 4}, 5, train.Plan(1.0, 2)),
        ({"gpus_per_worker": 0.25}, {"CPU": 32, "GPU": 1}, 3, train.Plan(0.25, 3)),
        ({"gpus_per_worker": 0}, {"CPU": 4, "GPU": 1}, 5, train.Plan(0.0, 4)),
        ({"workers": 8, "min_workers": 2}, {"CPU": 4, "GPU": 4}, 5, train.Plan(1.0, 1)),
    ],
)
def test_folds_run_side_by_side_where_there_is_room(
    resources: dict[str, float], cluster: dict[str, float], folds: int, expected: train.Plan
) -> None:
    assert train.plan(ResourcesConfig.model_validate(resources), cluster, folds) == expected


@pytest.mark.parametrize(
    ("resources", "sentence"),
    [
        ({"workers": 8}, r"8 workers with 1 GPUs each need 8 GPUs; the cluster has 4"),
        ({"workers": 2, "cpus_per_worker": 9}, r"2 workers with 9 CPUs each need 18 CPUs; the cluster has 16"),
        ({"workers": 9, "min_workers": 5}, r"5 workers with 1 GPUs each need 5 GPUs"),
    ],
)
def test_what_cannot_fit_is_refused(resources: dict[str, float], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        train.plan(ResourcesConfig.model_validate(resources), {"CPU": 16, "GPU": 4}, 1)


@pytest.mark.parametrize(("text", "folds"), [("all", [0, 1, 2]), ("1", [1]), ("2,0", [0, 2]), ("1,1", [1])])
def test_folds_are_read(text: str, folds: list[int]) -> None:
    assert train.parse_folds(text, 3) == folds


@pytest.mark.parametrize("text", ["3", "-1", "x", "", "0,9"])
def test_wrong_folds_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="fold"):
        train.parse_folds(text, 3)
