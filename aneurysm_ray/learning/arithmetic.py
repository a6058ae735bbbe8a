"""Which algorithms torch computes with while a network is trained."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def arithmetic(asked: str, device: torch.device) -> Iterator[None]:
    """Choose deterministic algorithms, or else the fastest convolutions by trial, and put back what was set before.

    `asked` is `optim.deterministic`.

    Operations without a deterministic form (3D pooling backwards on CUDA) only warn. Memory that an operation is about
    to write is not filled with NaN first, as torch would in this mode: it costs 3 to 7 % of a step and guards only
    against reading what nobody wrote.
    """
    deterministic = asked == "always" or (asked == "auto" and device.type == "cpu")
    memory: Any = torch.utils.deterministic  # its switch is a property that type checkers do not see
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        memory.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not deterministic
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = before[2]
        memory.fill_uninitialized_memory = before[3]
