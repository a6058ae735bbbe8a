"""Which failures are tried again, and what is said of the others."""

import errno
import pickle
from pathlib import Path

import pytest
import torch
from ray.exceptions import RayActorError

from aneurysm_ray import rundir
from aneurysm_ray.distributed import failures
from aneurysm_ray.errors import AneurysmRayError, ConfigError, RunDirError

FULL = OSError(errno.ENOSPC, "No space left on device", "/runs/x/state.pt")


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ConfigError("no"), False),
        (AneurysmRayError("the training loss is nan"), False),
        (RunDirError("state.pt: damaged"), False),
        (FULL, False),
        (OSError(errno.EROFS, "Read-only file system"), False),
        (OSError(errno.EIO, "Input/output error"), False),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (TypeError("unsupported operand"), False),
        (KeyError("a"), False),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (NotImplementedError("not here"), False),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (ConnectionResetError("reset"), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:2"), True),
        (torch.distributed.DistBackendError("NCCL error in: x"), True),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True),
        (RayActorError(), True),
        (MemoryError(), True),
    ],
)
def test_only_what_may_pass_is_tried_again(error: Exception, passes: bool) -> None:
    assert failures.passes(error) == passes


def test_a_failure_that_lasts_outweighs_the_connections_that_broke_with_it() -> None:
    lost = RuntimeError("Connection closed by peer")
    assert failures.lasting([lost]) is None
    found = failures.lasting([lost, FULL])
    assert found is not None and str(found) == (
        "/runs/x/state.pt: No space left on device; make room or mend its permissions"
    )


def test_a_failure_travels_between_processes() -> None:
    found = failures.lasting([AneurysmRayError("the loss is nan; try a smaller optim.lr")])
    again = pickle.loads(pickle.dumps(found))
    assert str(again) == "the loss is nan; try a smaller optim.lr"


def test_where_a_failure_happened_is_kept_unless_it_may_pass(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError), failures.kept(tmp_path):
        raise ConnectionResetError
    assert not list(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError), failures.kept(tmp_path):
        print(1 / 0)
    assert "print(1 / 0)" in (tmp_path / rundir.ERROR).read_text()


def test_a_gpu_without_memory_is_given_less() -> None:
    said = failures.sentence(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert "Tried to allocate 2 GiB" in said and "optim.batch_size" in said
