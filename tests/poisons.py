"""Functions that stand in for `series.prepare` and do what a hostile file makes a codec do."""

import ctypes
import time
from typing import Any


def segfault(task: Any) -> None:
    ctypes.string_at(0)


def sleep_for_ever(task: Any) -> None:
    time.sleep(1e6)


def allocate_without_end(task: Any) -> None:
    kept = []
    while True:
        kept.append(bytearray(64 * 2**20))
