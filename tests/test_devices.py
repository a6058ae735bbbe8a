"""A worker computes on what Ray reserved for it, and on nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aneurysm_ray.distributed import devices
from aneurysm_ray.errors import AneurysmRayError


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in devices.VISIBLE:
        monkeypatch.delenv(name, raising=False)


def test_who_reserved_no_gpu_computes_on_the_cpu_though_there_are_some(two_gpus: None) -> None:
    assert devices._device([]) == "cpu"


def test_who_asked_ray_for_nothing_leaves_a_clusters_gpus_to_others(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the driver of a job, which scores a few series itself."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert devices.here() == "cuda"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert devices.here() == "cpu"


@pytest.mark.parametrize(
    ("visible", "gpus", "device"),
    [("3", ["3"], "cuda:0"), ("1,3", ["3"], "cuda:1"), ("1,3", ["1"], "cuda:0"), (None, ["1"], "cuda:1")],
)
def test_the_reserved_gpu_is_counted_within_those_that_are_visible(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch, visible: str | None, gpus: list[str], device: str
) -> None:
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices._device(gpus) == device


def test_a_reserved_gpu_that_torch_cannot_use_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        AneurysmRayError, match=r"Ray reserved GPU 0 here, and torch .* can use 0 GPUs; install a torch"
    ):
        devices._device(["0"])


def test_who_computes_on_the_cpu_has_the_threads_that_were_reserved() -> None:
    before = torch.get_num_threads()
    try:
        assert devices.use(devices.Place("cpu", before + 2)) == "cpu"
        assert torch.get_num_threads() == before + 2
    finally:
        torch.set_num_threads(before)


RESERVED = """
import sys, tempfile
from pathlib import Path
import ray
sys.path.insert(0, sys.argv[1])
from learning_sets import small_config, write_set
from aneurysm_ray import overrides
from aneurysm_ray.distributed import devices, train
from aneurysm_ray.errors import AneurysmRayError

ray.init(address="local", num_cpus=3, num_gpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False,
         _temp_dir=tempfile.mkdtemp(prefix="ar", dir="/tmp"))
place = ray.get(ray.remote(num_cpus=2)(devices.reserved).remote())
print(place.device, place.threads)
folder = Path(sys.argv[2])
config = small_config(folder, folds__count=3, optim__epochs=1, resources__gpus_per_worker=1)
try:
    train.train(write_set(folder / "set", 12), folder / "run", config)
except AneurysmRayError as error:
    print(error)
free = overrides.build({"resources.gpus_per_worker": 0}, base=config)
print(train.train(folder / "set", folder / "free", free)["n"])
"""


@pytest.mark.slow
def test_training_takes_what_it_reserved_or_says_why_not(tmp_path: Path) -> None:
    """On a machine whose Ray is told of a GPU that is not there: the network would train on one thread, unnoticed."""
    command = [sys.executable, "-c", RESERVED, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr
    place, failed, scored = done.stdout.splitlines()
    assert place == "cpu 2"
    assert failed.startswith("fold 0 failed: Ray reserved GPU 0 here, and torch")
    assert scored == "4"
