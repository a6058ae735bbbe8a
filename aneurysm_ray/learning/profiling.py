"""Where the time of a training's steps goes, by torch's profiler: a table to read and a trace to look into."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile, schedule

from aneurysm_ray import rundir
from aneurysm_ray.learning.epoch import PARTS, Tell

WARM_UP, STEPS = 10, 30
"""Steps that are not looked at, since the first ones allocate and choose algorithms, and those that are."""

TABLE, TRACE = "steps.csv", "trace.json"


@contextmanager
def profiled(folder: Path, tell: Tell) -> Iterator[Tell]:
    """Yield what to tell of each step in place of `tell`; after some steps of training write a table and a trace.

    The table has a row for each part of a step: its milliseconds on the host and on the device a step, and its share.
    The trace is Chrome's: open it in ui.perfetto.dev.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]

    def ready(done: profile) -> None:
        rundir.write_csv(folder / TABLE, table(done))
        # The profiler writes to a path of this machine only.
        with tempfile.TemporaryDirectory() as here:
            done.export_chrome_trace(f"{here}/{TRACE}")
            with rundir.atomic(folder / TRACE, "wb") as file:
                file.write((Path(here) / TRACE).read_bytes())

    looked_at = schedule(wait=0, warmup=WARM_UP, active=STEPS, repeat=1)
    with profile(activities=activities, schedule=looked_at, on_trace_ready=ready, acc_events=True) as running:

        def told(what: str, done: int, total: int) -> None:
            tell(what, done, total)
            if what == "training":
                running.step()

        yield told


def table(done: profile) -> pd.DataFrame:
    """Return the parts of a step: part, host_ms, device_ms, share (of the host's time)."""
    rows = []
    for event in done.key_averages():
        if event.key in PARTS and event.cpu_time_total > 0:
            rows.append((event.key, event.cpu_time_total / 1e3 / STEPS, event.device_time_total / 1e3 / STEPS))
    found = pd.DataFrame(rows, columns=["part", "host_ms", "device_ms"]).groupby("part", as_index=False).max()
    found["share"] = found["host_ms"] / found["host_ms"].sum()
    order = {part: index for index, part in enumerate(PARTS)}
    return found.sort_values("part", key=lambda parts: parts.map(order), ignore_index=True)
