"""How soon does a command say something, and how long is it silent at most?

    python benchmarks/silence.py aneurysm-ray demo --out /tmp/demo

Runs the command with its output in pipes, as a job's log sees it, and prints the seconds from its start to its first
line and between lines, with the lines around the longest silence. Its exit code is the command's.
"""

import itertools
import selectors
import subprocess
import sys
import time
from typing import IO


def watch(command: list[str]) -> tuple[int, list[tuple[float, str]]]:
    """Run a command; return its exit code and the seconds at which each of its lines came."""
    begun = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        waiting = selectors.DefaultSelector()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            waiting.register(stream, selectors.EVENT_READ)
        lines: list[tuple[float, str]] = []
        while waiting.get_map():
            for key, _ in waiting.select():
                stream: IO[bytes] = key.fileobj  # type: ignore[assignment]
                if line := stream.readline():
                    lines.append((time.monotonic() - begun, line.decode(errors="replace").rstrip()))
                else:
                    waiting.unregister(stream)
        code = process.wait()
    return code, [*lines, (time.monotonic() - begun, "(end)")]


def main(command: list[str]) -> int:
    """Print the figures of one command."""
    code, lines = watch(command)
    for seconds, line in lines:
        print(f"{seconds:8.2f}  {line}")
    gaps = [(after - before, number) for number, ((before, _), (after, _)) in enumerate(itertools.pairwise(lines), 1)]
    longest, where = max(gaps)
    print(f"\nfirst line after {lines[0][0]:.2f} s; longest silence {longest:.2f} s, before: {lines[where][1]}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
