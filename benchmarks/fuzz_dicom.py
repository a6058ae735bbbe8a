"""Does any damaged DICOM file crash, hang or surprise the reader?

    python benchmarks/fuzz_dicom.py ../shared/data/dicom --count 20000 --seed 1

Mutates real files - bit flips, truncations, repeated and deleted stretches, edits of tags, lengths and values, damage
to codestreams - and reads each beside its undamaged neighbours. Allowed are a volume or a SeriesError, within 2 s of
CPU time and 1.5 GB of address space. Cases run in child processes: a crash of the interpreter or a hang is a finding
with the number of the case, not the end of the run. One case again: --start N --count 1.
"""

import argparse
import os
import random
import resource
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ADDRESS_SPACE = 1536 * 2**20
SLOW_SECONDS = 2.0
HANG_SECONDS = 60.0
LARGEST_SEED_FILE = 400_000
INTERESTING = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFE,
    0xFFFF,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFF0,
    0xFFFF_FFFF,
)
TAGS = (
    *((0x0028, e) for e in (0x0002, 0x0004, 0x0008, 0x0010, 0x0011, 0x0030, 0x0100, 0x0101, 0x0102, 0x0103, 0x0120)),
    *((0x0028, 0x1052), (0x0028, 0x1053), (0x0028, 0x3000), (0x0020, 0x0032), (0x0020, 0x0037), (0x0020, 0x000E)),
    *((0x0008, 0x0008), (0x0008, 0x0018), (0x0008, 0x0060), (0x0002, 0x0010), (0x7FE0, 0x0010), (0x5200, 0x9230)),
)
VALUES = (
    b"",
    b"0",
    b"-1",
    b"nan",
    b"1e400",
    b"1\\2",
    b"..\\..",
    b"\xff\xff",
    b"9" * 16,
    b"../../x",
    b"2147483647",
    b"0\\0",
)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return a file with one to four kinds of damage."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if damaged:
            rng.choice(MUTATIONS)(damaged, rng)
    return bytes(damaged)


def flip_bits(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 3, 20))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def flip_header_bits(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 3, 10))):
        data[rng.randrange(min(len(data), 3000))] ^= 1 << rng.randrange(8)


def truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def remove(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.choice((1, 2, 8, 100))]


def repeat(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    part = bytes(data[start : start + rng.choice((1, 8, 100, 2000))])
    data[start:start] = part * rng.choice((1, 2, 50))


def overwrite(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    number = rng.choice(INTERESTING)
    part = number.to_bytes(4, rng.choice(("little", "big")))[: rng.choice((1, 2, 4))]
    data[start : start + len(part)] = part


def edit_element(data: bytearray, rng: random.Random) -> None:
    """Change the VR, length or value of one element that the reader looks at."""
    order = rng.choice("<<<>")
    start = data.find(struct.pack(f"{order}HH", *rng.choice(TAGS)))
    if start < 0 or start + 12 > len(data):
        return
    what = rng.randrange(4)
    if what == 0:
        data[start + 4 : start + 6] = rng.choice((b"SQ", b"UN", b"OB", b"DS", b"XX", b"UT"))
    elif what == 1:
        struct.pack_into(f"{order}H", data, start + 6, rng.choice(INTERESTING) & 0xFFFF)
    elif what == 2:
        struct.pack_into(f"{order}I", data, start + 8, rng.choice(INTERESTING))
    else:
        value = rng.choice(VALUES)
        data[start + 8 : start + 8 + len(value)] = value


def edit_codestream(data: bytearray, rng: random.Random) -> None:
    """Damage the markers of a compressed frame, where decoders take sizes from."""
    markers = (
        b"\xff\x4f\xff\x51",
        b"\xff\xd8\xff",
        b"\xff\xc3",
        b"\xff\xf7",
        b"\xff\x52",
        b"\xff\x90",
        b"\xfe\xff\x00\xe0",
    )
    start = data.find(rng.choice(markers))
    if start >= 0:
        for _ in range(rng.choice((1, 2, 8))):
            place = start + rng.randrange(60)
            if place < len(data):
                data[place] = rng.choice((rng.randrange(256), 0, 255))


MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(flip_bits, flip_header_bits, truncate, remove, repeat, overwrite, edit_element, edit_element, edit_codestream),
)


def seed_series(root: Path) -> list[list[Path]]:
    """Return the series of small files to start from, each a list of files."""
    series = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name not in ("bad", "ref")):
        files = sorted(file for file in folder.iterdir() if file.is_file() and file.stat().st_size < LARGEST_SEED_FILE)
        if files:
            series.append(files[:3])
    assert series, f"{root} holds no series"
    return series


def run_case(series: list[list[Path]], seed: int, case: int, folder: Path) -> tuple[str, float]:
    """Write and read one case; returns what came of it and the CPU seconds it took."""
    from aneurysm_ray.data.dicom import read_series, scan_series
    from aneurysm_ray.errors import SeriesError

    rng = random.Random(f"{seed}-{case}")
    files = rng.choice(series)
    victim = rng.randrange(len(files))
    for index, file in enumerate(files):
        data = file.read_bytes()
        (folder / f"{index}").write_bytes(mutate(data, rng) if index == victim else data)
    start = time.process_time()  # a busy machine is no finding; a wait for ever is one by HANG_SECONDS
    try:
        if case % 4 == 0:
            scan_series(folder)
        volume = read_series(folder)
        outcome = "volume"
        placed = abs(volume.affine).max() < 1e6 and abs(volume.origins_mm).max() < 1e6  # false for NaN
        if volume.voxels.ndim != 3 or len(volume.voxels) < 2 or not placed or not abs(volume.voxels[0]).max() < 1e15:
            outcome = "WRONG: a volume without sense"
    except SeriesError as error:
        outcome = error.reason
    except Exception as error:  # the finding that this script is for
        outcome = f"WRONG: {type(error).__name__}: {str(error)[:120]}"
    seconds = time.process_time() - start
    for file in folder.iterdir():
        file.unlink()
    return outcome, seconds


def child(root: Path, seed: int, start: int, stop: int) -> None:
    """Run cases and print one line for each, so that the parent knows where a crash happened."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    series = seed_series(root)
    folder = Path(tempfile.mkdtemp(prefix="fuzz", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        for case in range(start, stop):
            outcome, seconds = run_case(series, seed, case, folder)
            print(f"{case}\t{seconds:.3f}\t{outcome}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fuzz(root: Path, seed: int, start: int, count: int) -> tuple[Counter[str], list[str], float]:
    """Run cases in children; returns outcomes, findings and the slowest case's seconds."""
    outcomes: Counter[str] = Counter()
    findings: list[str] = []
    slowest = 0.0
    case, stop = start, start + count
    while case < stop:
        command = [sys.executable, __file__, str(root), "--child", "--seed", str(seed), "--start", str(case)]
        command += ["--count", str(stop - case)]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
            assert process.stdout is not None
            buffer = b""
            while True:
                ready, _, _ = select.select([process.stdout], [], [], HANG_SECONDS)
                if not ready:
                    process.kill()
                    findings.append(f"case {case}: HANG, more than {HANG_SECONDS:.0f} s")
                    case += 1
                    break
                part = os.read(process.stdout.fileno(), 65536)
                if not part:
                    break
                *lines, buffer = (buffer + part).split(b"\n")
                for line in lines:
                    number, seconds, outcome = line.decode().split("\t", 2)
                    wrong = outcome.startswith("WRONG")
                    outcomes["WRONG" if wrong else outcome] += 1
                    slowest = max(slowest, float(seconds))
                    if wrong or float(seconds) > SLOW_SECONDS:
                        findings.append(f"case {number}: {outcome} in {seconds} s")
                    case = int(number) + 1
        if process.returncode not in (0, -9) and case < stop:
            findings.append(f"case {case}: CRASH, exit {process.returncode}")
            case += 1
    return outcomes, findings, slowest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.root, options.seed, options.start, options.start + options.count)
        return 0
    begin = time.monotonic()
    outcomes, findings, slowest = fuzz(options.root, options.seed, options.start, options.count)
    print("| outcome | cases |\n|---|---:|")
    for outcome, cases in outcomes.most_common():
        print(f"| {outcome} | {cases:,} |")
    total, seconds = sum(outcomes.values()), time.monotonic() - begin
    print(f"\n{total:,} cases, seed {options.seed}, {seconds:.0f} s; slowest {slowest:.2f} s")
    print("\n".join(findings) or "no crash, no hang, no exception but SeriesError")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
