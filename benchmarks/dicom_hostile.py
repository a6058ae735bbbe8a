"""Does a hostile folder cost more than its hostile files?

    python benchmarks/dicom_hostile.py ../shared/data/dicom

Reads the folders of bad/ and folders made here - links, a FIFO, 3,000 nested sequences, lengths and sizes of many GB,
bombs - in one child process under ADDRESS_SPACE, and prints what came of each, its CPU seconds and the peak memory.
"""

import argparse
import io
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from pathlib import Path

ADDRESS_SPACE = 1536 * 2**20
ALLOWED_SECONDS = 2.0
SPARSE_BYTES = 10 * 2**30


def build(folder: Path, good: list[Path]) -> dict[str, bool]:
    """Make hostile folders, each beside good slices; returns for each whether the good slices must survive."""

    def case(name: str, with_good: bool = True) -> Path:
        place = folder / name
        place.mkdir(parents=True)
        if with_good:
            for file in good:
                shutil.copy(file, place / file.name)
        return place

    case("empty", with_good=False)
    loop = case("symlink loop")
    (loop / "up").symlink_to(loop, target_is_directory=True)
    (loop / "a").symlink_to(loop / "b")
    (loop / "b").symlink_to(loop / "a")
    outside = case("link out of the folder")
    (outside / "passwd").symlink_to("/etc/passwd")
    (outside / "slice").symlink_to(good[0])
    os.mkfifo(case("fifo") / "pipe")
    sample = good[0].read_bytes()
    (case("3,000 nested sequences") / "deep").write_bytes(nested(sample, 3000))
    (case("60,000 nested sequences") / "deep").write_bytes(nested(sample, 60_000))
    (case("2,000,000 elements") / "long").write_bytes(
        before_pixels(sample, element(0x0009, 0x1001, b"LO", 0) * 1_900_000)
    )
    (case("PixelData of 4 GB in a small file") / "length").write_bytes(with_pixel_length(sample, 0xFFFF_FFF0))
    sparse(case("10 GB of frames") / "frames", with_frames(sample, 400_000, 0xFFFF_FFF0))
    alone = sample.replace(b"721.21", b"711.21")  # at a position of its own, so that its pixels are wanted
    sparse(case("10 GB of compressed zeros") / "zeros", compressed(alone))
    (case("65535 x 65535 pixels") / "size").write_bytes(with_shape(sample, 65535, 65535))
    (case("1 GB JPEG 2000 in 200 bytes") / "j2k").write_bytes(tiny_jpeg2000(sample, 30_000, 17_000))
    (case("deflate bomb of 2 GB") / "bomb").write_bytes(deflate_bomb(sample, 2 * 2**30))
    (folder / "bomb.zip").write_bytes(zip_bomb(2**28))
    (folder / "links.tar").write_bytes(tar_of_links())
    (folder / "damaged.zip").write_bytes(b"PK\x03\x04" + bytes(500))
    survivors = {path.name: bool(list(path.glob(good[0].name))) for path in folder.iterdir()}
    return dict(sorted(survivors.items()))


def element(group: int, number: int, vr: bytes, length: int) -> bytes:
    return struct.pack("<HH2sH", group, number, vr, length)


def _pixel_data(sample: bytes) -> int:
    """Return where an explicit little-endian file's Pixel Data element begins."""
    return sample.rindex(b"\xe0\x7f\x10\x00O")


def before_pixels(sample: bytes, elements: bytes) -> bytes:
    start = _pixel_data(sample)
    return sample[:start] + elements + sample[start:]


def nested(sample: bytes, depth: int) -> bytes:
    sequence = struct.pack("<HH2sHI", 0x0040, 0x0275, b"SQ", 0, 0xFFFF_FFFF)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFF_FFFF)
    return before_pixels(sample, (sequence + item) * depth)


def with_pixel_length(sample: bytes, length: int) -> bytes:
    start = _pixel_data(sample)
    return sample[: start + 8] + struct.pack("<I", length) + sample[start + 12 :]


def with_frames(sample: bytes, frames: int, length: int) -> bytes:
    text = str(frames).encode()
    text += b" " * (len(text) % 2)
    place = sample.index(element(0x0028, 0x0010, b"US", 2))
    data = sample[:place] + element(0x0028, 0x0008, b"IS", len(text)) + text + sample[place:]
    return with_pixel_length(data, length)


def with_shape(sample: bytes, rows: int, columns: int) -> bytes:
    for number, value in ((0x0010, rows), (0x0011, columns)):
        place = sample.index(element(0x0028, number, b"US", 2)) + 8
        sample = sample[:place] + struct.pack("<H", value) + sample[place + 2 :]
    return sample


def compressed(sample: bytes, frame: bytes = b"") -> bytes:
    """Return a file that says its pixels are one JPEG 2000 fragment, or an endless one."""
    explicit, j2k = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4.90"
    place = sample.index(explicit)
    data = sample[: place - 2] + struct.pack("<H", len(j2k)) + j2k + sample[place + len(explicit) :]
    (group,) = struct.unpack_from("<I", data, 140)
    data = data[:140] + struct.pack("<I", group + len(j2k) - len(explicit)) + data[144:]
    start = _pixel_data(data)
    value = (
        struct.pack("<HHI", 0xFFFE, 0xE000, 0) + struct.pack("<HHI", 0xFFFE, 0xE000, len(frame) or 0xFFFF_FFF0) + frame
    )
    value += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0) if frame else b""
    return data[:start] + struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFF_FFFF) + value


def tiny_jpeg2000(sample: bytes, rows: int, columns: int) -> bytes:
    import imagecodecs
    import numpy as np

    stream = bytearray(imagecodecs.jpeg2k_encode(np.zeros((64, 64), np.uint16), level=0, codecformat="j2k"))
    struct.pack_into(">II", stream, 8, columns, rows)
    struct.pack_into(">II", stream, 24, columns, rows)
    return compressed(with_shape(sample, rows, columns), bytes(stream))


def peak_mb() -> int:
    """Return the most memory this process was resident in; getrusage would count what its parent held at the fork."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) // 1024


def deflate_bomb(sample: bytes, size: int) -> bytes:
    explicit, deflated = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"
    place = sample.index(explicit)
    (group,) = struct.unpack_from("<I", sample, 140)
    head = sample[:140] + struct.pack("<I", group + 2) + sample[144 : place - 2]
    head += struct.pack("<H", len(deflated)) + deflated
    start = 144 + group
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(with_pixel_length(sample, size)[start:]) + packer.flush(zlib.Z_FULL_FLUSH)
    zeros = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    # After a full flush a block stands for itself, so that one compressed block can be repeated.
    return head + sample[place + len(explicit) : start] + first + zeros * (size // 2**24) + packer.flush()


def zip_bomb(size: int) -> bytes:
    target = io.BytesIO()
    with (
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("a", "w") as member,
    ):
        for _ in range(size // 2**24):
            member.write(bytes(2**24))
    return target.getvalue()


def tar_of_links() -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name in ("../../escape", "/etc/cron.d/x"):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
    return target.getvalue()


def sparse(path: Path, head: bytes) -> None:
    """Write a file that claims SPARSE_BYTES and takes next to nothing on disk."""
    path.write_bytes(head)
    os.truncate(path, SPARSE_BYTES)


def child(folders: list[Path]) -> None:
    """Read each folder under the address-space limit; one line of JSON each."""
    from aneurysm_ray.data.dicom import read_series
    from aneurysm_ray.errors import SeriesError

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    for folder in folders:
        start, wall = time.process_time(), time.monotonic()
        try:
            volume = read_series(folder)
            slices, told = len(volume.voxels), "; ".join(f"{name} {why}" for name, why in volume.dropped)
        except SeriesError as error:
            slices, told = 0, f"{error.reason}: {error}"
        except BaseException as error:  # the finding that this script is for
            slices, told = -1, f"WRONG: {type(error).__name__}: {error}"
        seconds = time.process_time() - start, time.monotonic() - wall
        peak = peak_mb()
        line = {
            "folder": str(folder),
            "slices": slices,
            "told": told,
            "cpu": seconds[0],
            "wall": seconds[1],
            "mb": peak,
        }
        print(json.dumps(line), flush=True)


def read_all(folders: list[Path], timeout: float = 300) -> list[dict[str, object]]:
    """Read folders in a child under the limit; a crash leaves its folder and those after it out of the list."""
    command = [sys.executable, __file__, "--child", *map(str, folders)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout, check=False)
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.paths)
        return 0
    bad = options.paths[0] / "bad"
    with tempfile.TemporaryDirectory(prefix="hostile") as temporary:
        survivors = build(Path(temporary), sorted((bad / "zero_byte").glob("00[0-4].dcm")))
        folders = [*sorted(bad.iterdir()), *(Path(temporary) / name for name in survivors)]
        results = read_all(folders)
    print("| folder | slices | CPU s | what it said |\n|---|---:|---:|---|")
    for result in results:
        told = str(result["told"]).replace(temporary, "").replace(str(bad), "")
        print(f"| {Path(str(result['folder'])).name} | {result['slices']} | {result['cpu']:.2f} | {told[:110]} |")
    wrong = [result for result in results if result["slices"] == -1 or float(str(result["cpu"])) > ALLOWED_SECONDS]
    lost = [r for r in results if survivors.get(Path(str(r["folder"])).name) and r["slices"] != 5]
    print(f"\n{len(results)} of {len(folders)} folders; peak {max(int(str(r['mb'])) for r in results)} MB resident")
    print(f"wrong or slow: {[r['folder'] for r in wrong]}; good slices lost: {[r['folder'] for r in lost]}")
    return 1 if wrong or lost or len(results) < len(folders) else 0


if __name__ == "__main__":
    sys.exit(main())
