"""What preparing a data set will take, from a few of its series prepared into a folder that is thrown away."""

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace

from aneurysm_ray.config import Config
from aneurysm_ray.data import work
from aneurysm_ray.data.catalogue import Source
from aneurysm_ray.data.guard import Guard
from aneurysm_ray.distributed.progress import clock
from aneurysm_ray.errors import SeriesError

log = logging.getLogger(__name__)

SAMPLED = 5
"""Series that are tried, spread evenly from the largest to the smallest."""


def say(sources: Sequence[Source], config: Config) -> None:
    """Log the number of series, their bytes, and the time and disk that preparing them will take on this machine."""
    size = sum(source.bytes for source in sources)
    files = sum(source.files for source in sources)
    log.info("%s series, %s files, %.1f GB", f"{len(sources):,}", f"{files:,}", size / 1e9)
    seconds, written, read = _sample(sources, config)
    if not read:
        log.info("none of %d sampled series is a volume; time and disk cannot be told", min(SAMPLED, len(sources)))
        return
    cores = len(os.sched_getaffinity(0))
    log.info(
        "about %s on the %d core(s) of this machine, and %.1f GB of disk, judged by %d series",
        clock(seconds * size / read / cores),
        cores,
        written * size / read / 1e9,
        min(SAMPLED, len(sources)),
    )


def _sample(sources: Sequence[Source], config: Config) -> tuple[float, int, int]:
    """Return the seconds, bytes written and bytes read of the sampled series that are volumes."""
    steps = sorted({round(i * (len(sources) - 1) / max(SAMPLED - 1, 1)) for i in range(SAMPLED)})
    seconds, written, read = 0.0, 0, 0
    with (
        contextlib.closing(Guard(config.prepare.memory_mb)) as guard,
        tempfile.TemporaryDirectory(prefix="aneurysm-ray-") as folder,
    ):
        for source in (sources[step] for step in steps):
            # Named by whatever its voxels are of: a sample is thrown away.
            own = replace(source, series_uid=None, own_uid=None)
            task = work.Task(own, folder, config.volume.model_dump(mode="json"), "00", False)
            guard.start()
            begun = time.monotonic()
            try:
                status = guard.run(work.prepare, task, timeout_seconds=config.prepare.timeout_seconds)
            except SeriesError:
                continue
            if "row" in status:
                seconds += time.monotonic() - begun
                written += status["row"]["bytes"]
                read += source.bytes
    return seconds, written, read
