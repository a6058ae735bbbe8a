"""What does preparation cost, where does the time go, and what would the real data set take?

Parts, each a table: (a) Ray Data against a plain process pool, (b) one core against two, (c) CPU per stage with its
floor and peak memory, (d) the real data set extrapolated, (e) MONAI and dcm2niix on the same series, (f) what masks of
vessels cost. All on synthetic series that the script writes into a temporary folder. Run: python benchmarks/prepare.py
[abcdef]
"""

import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pyarrow as pa
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless

from aneurysm_ray.config import Config, VolumeConfig
from aneurysm_ray.data import catalogue, picture, store, work
from aneurysm_ray.data.dicom import read_series
from aneurysm_ray.data.preprocess import prepare_series
from aneurysm_ray.data.region import find_head
from aneurysm_ray.data.resample import frame_of
from aneurysm_ray.phantom import PhantomOptions, write_dataset

COUNT, DISTINCT, MEAN = 200, 8, (236, 512, 512)
"""Series of the comparison with a pool: as many slices as the mean of the real data set's, most of them links."""
TURNS = {1: 1, 2: 5}
"""Turns by the number of cores; medians count."""
LARGE = (400, 512, 512)
MASKED = 9
"""Phantoms with masks of vessels."""
REAL_SERIES, REAL_BYTES = 4348, 311e9
VOLUME = VolumeConfig()


def head(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Stored values of a noisy CT head that fills most of the field."""
    z, y, x = np.ogrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j]
    radius = np.sqrt((z / 1.05) ** 2 + (y / 0.85) ** 2 + (x / 0.7) ** 2)
    values = np.where(radius < 0.92, 1064, np.where(radius < 1, 2200, 24)).astype(np.int16)
    noise = np.random.default_rng(seed).normal(0, 12, (8, *shape[1:])).astype(np.int16)
    for index in range(shape[0]):
        values[index] += noise[index % 8]
    return values


def rle(plane: np.ndarray) -> bytes:
    """One frame in RLE Lossless (PS3.5 G): high bytes, then low bytes, each packed row by row."""
    parts = [imagecodecs.packbits_encode(np.ascontiguousarray(plane.view(np.uint8)[:, first::2])) for first in (1, 0)]
    parts = [part + b"\0" * (len(part) % 2) for part in parts]
    return struct.pack("<16I", 2, 64, 64 + len(parts[0]), *[0] * 13) + b"".join(parts)


def write(folder: Path, uid: str, shape: tuple[int, int, int], spacing: tuple[float, float], packed: bool) -> None:
    folder.mkdir(parents=True)
    for index, plane in enumerate(head(shape, int(uid.rsplit(".", 1)[-1]))):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = RLELossless if packed else ExplicitVRLittleEndian
        image.file_meta.MediaStorageSOPClassUID, image.file_meta.MediaStorageSOPInstanceUID = (
            CTImageStorage,
            f"{uid}.{index}",
        )
        image.SOPClassUID, image.SOPInstanceUID, image.SeriesInstanceUID = CTImageStorage, f"{uid}.{index}", uid
        image.Modality, image.PatientID, image.InstanceNumber = "CT", uid, index + 1
        image.Rows, image.Columns = plane.shape
        image.PixelSpacing, image.ImageOrientationPatient = [spacing[1]] * 2, [1, 0, 0, 0, 1, 0]
        image.ImagePositionPatient = [
            -spacing[1] * plane.shape[1] / 2,
            -spacing[1] * plane.shape[0] / 2,
            spacing[0] * index,
        ]
        image.BitsAllocated = image.BitsStored = 16
        image.HighBit, image.PixelRepresentation, image.SamplesPerPixel = 15, 1, 1
        image.PhotometricInterpretation, image.RescaleSlope, image.RescaleIntercept = "MONOCHROME2", 1, -1024
        image.PixelData = encapsulate([rle(plane)]) if packed else plane.tobytes()
        image.save_as(folder / f"{uid}.{index}.dcm", enforce_file_format=True)


def linked_set(root: Path) -> list[catalogue.Source]:
    """Write a few series and hard links to them under other names, which take no room and the same work."""
    for number in range(COUNT):
        folder = root / "series" / f"1.2.{1000 + number}"
        if number < DISTINCT:
            write(folder, folder.name, MEAN, (0.7, 0.45), packed=True)
        else:
            shutil.copytree(root / "series" / f"1.2.{1000 + number % DISTINCT}", folder, copy_function=os.link)
    return catalogue.find_sources(str(root))[0]


def tasks_for(found: Iterable[catalogue.Source], out: Path) -> list[work.Task]:
    return [work.Task(source, str(out), VOLUME.model_dump(mode="json"), "00", False) for source in found]


def steady_rate(arrivals: Iterable[Any]) -> float:
    """Series per second between the 20th and the last result: workers have started by then."""
    times = [time.monotonic() for _ in arrivals]
    return (len(times) - 20) / (times[-1] - times[19])


def by_pool(tasks: list[work.Task], workers: int) -> float:
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        return steady_rate(as_completed([pool.submit(work.prepare, task) for task in tasks]))


def by_ray(tasks: list[work.Task], workers: int, data: str) -> float:
    import logging

    import ray

    from aneurysm_ray.distributed import prepare as preparation

    folder = tempfile.mkdtemp(prefix="ar", dir="/tmp")
    # Ray's workers give way to other processes unless told not to, which a pool's do not.
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")
    ray.init(
        address="local",
        num_cpus=workers,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
        object_store_memory=2**28,
        _temp_dir=folder,
    )
    try:
        return steady_rate(preparation._run(tasks, Config(), data))
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def against_a_pool(folder: Path) -> None:
    found = linked_set(folder / "linked")
    print(f"\n(a, b) {COUNT} series of {MEAN[0]} × {MEAN[1]} × {MEAN[2]} RLE, series per second in the steady state")
    print("| cores | process pool | Ray Data | wall, Ray / pool |")
    print("|---|---|---|---|")
    rates: dict[tuple[str, int], list[float]] = {}
    cores = sorted(os.sched_getaffinity(0))
    for workers, turns in TURNS.items():
        for turn in range(turns):
            # Everything, Ray's own processes as well, runs on this many cores.
            os.sched_setaffinity(0, cores[:workers])
            pool = by_pool(tasks_for(found, folder / f"pool{workers}{turn}"), workers)
            with_ray = by_ray(tasks_for(found, folder / f"ray{workers}{turn}"), workers, str(folder))
            rates.setdefault(("pool", workers), []).append(pool)
            rates.setdefault(("ray", workers), []).append(with_ray)
    os.sched_setaffinity(0, cores)
    middle = {key: float(np.median(values)) for key, values in rates.items()}
    for workers in (1, 2):
        pool, with_ray = middle["pool", workers], middle["ray", workers]
        print(f"| {workers} | {pool:.2f} | {with_ray:.2f} | {pool / with_ray:.3f} |")
    for way in ("pool", "ray"):
        print(f"1 → 2 cores: {way} × {middle[way, 2] / middle[way, 1]:.2f}")
    for (way, workers), values in rates.items():
        print(f"{way} on {workers}:", *(f"{rate:.2f}" for rate in values))


def cpu(call: Callable[[], Any], rounds: int = 3) -> tuple[float, Any]:
    """Return the least CPU seconds of a call, its children's included, and its result."""
    least, result = np.inf, None
    for _ in range(rounds):
        before = sum(resource.getrusage(who).ru_utime + resource.getrusage(who).ru_stime for who in (0, -1))
        result = call()
        after = sum(resource.getrusage(who).ru_utime + resource.getrusage(who).ru_stime for who in (0, -1))
        least = min(least, after - before)
    return least, result


def peak_mb(task: work.Task) -> tuple[int, int]:
    """Prepare a series in this process; return its peak memory before and after, in MB."""
    before = high_water_mb()
    work.prepare(task)
    return before, high_water_mb()


def high_water_mb() -> int:
    """Return this process's largest resident memory; getrusage's would include what its parent had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def by_stage(folder: Path) -> dict[str, float]:
    path = folder / "large" / "1.2.5"
    if not path.exists():
        write(path, "1.2.5", LARGE, (0.5, 0.45), packed=True)
    files = sorted(path.iterdir())
    config = VOLUME
    seconds: dict[str, tuple[float, float]] = {}

    read_floor, data = cpu(lambda: [file.read_bytes() for file in files])
    frames = [rle(plane) for plane in head(LARGE, 5)[:40]]
    unpacked = [
        (frame[64 : struct.unpack_from("<3I", frame)[2]], frame[struct.unpack_from("<3I", frame)[2] :])
        for frame in frames
    ]
    codec, _ = cpu(lambda: [imagecodecs.packbits_decode(part) for parts in unpacked for part in parts])
    read, volume = cpu(lambda: read_series(path))
    seconds["read"] = (read_floor, read_floor)
    seconds["decode"] = (read - read_floor, codec * len(files) / 40)

    region, _ = cpu(lambda: find_head(volume, frame_of(volume)))
    seconds["region"] = (region, 0.0)
    whole, prepared = cpu(lambda: prepare_series(volume, config))
    buffer = np.empty(LARGE[1:], np.float32)
    touch, _ = cpu(lambda: [np.subtract(plane, np.float32(0), out=buffer) for plane in volume.voxels])
    out = np.zeros(prepared.voxels.shape[1:], np.float32)
    clip, _ = cpu(lambda: [np.clip(out, 0, 255).astype(np.uint8) for _ in range(prepared.voxels.shape[0])])
    seconds["resample and window"] = (whole - region, touch + clip)
    compress, encoded = cpu(lambda: store.encode(prepared, "{}"))
    floor, _ = cpu(lambda: pa.compress(prepared.voxels.tobytes(), "zstd", asbytes=True))
    seconds["compress"] = (compress, floor)
    draw, _ = cpu(lambda: picture.draw(prepared, volume))
    seconds["picture"] = (draw, 0.0)
    written, _ = cpu(lambda: store.write_volume(folder / "stages", prepared, "{}"))
    plain, _ = cpu(lambda: (folder / "plain").write_bytes(encoded))
    seconds["write"] = (max(written - compress, 0.0), plain)

    print(f"\n(c) CPU seconds per stage, {LARGE[0]} × {LARGE[1]} × {LARGE[2]} RLE, {sum(map(len, data)) / 1e6:.0f} MB")
    print("| stage | seconds | floor |")
    print("|---|---|---|")
    for stage, (spent, least) in seconds.items():
        print(f"| {stage} | {spent:.3f} | {least:.3f} |")
    total = sum(spent for spent, _ in seconds.values())
    print(f"| all | {total:.3f} | {sum(least for _, least in seconds.values()):.3f} |")

    source = catalogue.find_sources(str(path.parent))[0][0]
    task = work.Task(source, str(folder / "peak"), VOLUME.model_dump(mode="json"), "00", False)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        before, after = pool.submit(peak_mb, task).result()
    volume_mb = 2 * np.prod(LARGE) / 2**20
    print(
        f"peak memory of a worker's child: {after} MB ({before} MB before it read); "
        f"limit 3 × {volume_mb:.0f} + 500 = {3 * volume_mb + 500:.0f} MB"
    )
    return {"total": total, "bytes": sum(map(len, data)), "written": len(encoded)}


def extrapolate(large: dict[str, float]) -> None:
    rate = large["bytes"] / large["total"]
    hours = REAL_BYTES / rate / 3600
    print("\n(d) the real data set")
    print(
        f"{large['bytes'] / 1e6:.0f} MB in {large['total']:.2f} CPU s = {rate / 1e6:.0f} MB per CPU s; "
        f"{REAL_BYTES / 1e9:.0f} GB / {rate / 1e6:.0f} MB/s = {hours:.2f} CPU h; "
        f"on 16 cores {60 * hours / 16:.1f} min, if the disk gives {REAL_BYTES / (3600 * hours / 16) / 1e6:.0f} MB/s"
    )
    per_series = large["total"]
    print(
        f"as {REAL_SERIES} series of this size instead: {REAL_SERIES} × {per_series:.2f} s / 16 = "
        f"{REAL_SERIES * per_series / 16 / 60:.1f} min; the mean series has 236 files, this one {LARGE[0]}"
    )


def monai(path: Path, folder: Path) -> None:
    import torch
    from monai.data import PersistentDataset
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, ScaleIntensityRanged, Spacingd

    torch.set_num_threads(1)
    reader = {"reader": "PydicomReader"} if path.is_dir() else {}
    steps = Compose(
        [
            LoadImaged("image", **reader),
            EnsureChannelFirstd("image"),
            Spacingd("image", VOLUME.spacing_mm[::-1], mode="bilinear"),
            ScaleIntensityRanged("image", *VOLUME.window_hu, 0.0, 1.0, clip=True),
        ]
    )
    PersistentDataset([{"image": str(path)}], steps, cache_dir=folder)[0]


def by_dcm2niix(path: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    subprocess.run(["dcm2niix", "-z", "n", "-b", "n", "-f", "x", "-o", folder, path], check=True, capture_output=True)
    monai(next(folder.glob("x*.nii")), folder / "cache")


def peers(folder: Path) -> None:
    path = folder / "large" / "1.2.5"
    if not path.exists():
        write(path, "1.2.5", LARGE, (0.5, 0.45), packed=True)
    source = catalogue.find_sources(str(path.parent))[0][0]
    ours, _ = cpu(
        lambda: work.prepare(
            work.Task(source, tempfile.mkdtemp(dir=folder), VOLUME.model_dump(mode="json"), "00", False)
        )
    )
    slow, _ = cpu(lambda: monai(path, Path(tempfile.mkdtemp(dir=folder))), rounds=1)
    other, _ = cpu(lambda: by_dcm2niix(path, Path(tempfile.mkdtemp(dir=folder)) / "n"), rounds=1)
    print("\n(e) CPU seconds from DICOM to a stored volume at 0.8 × 0.5 × 0.5 mm")
    print("| way | CPU s | of ours |")
    print("|---|---|---|")
    for name, spent in {
        "aneurysm_ray": ours,
        "MONAI: LoadImage(PydicomReader), Spacing, ScaleIntensityRange, PersistentDataset": slow,
        "dcm2niix, nibabel, then the same of MONAI": other,
    }.items():
        print(f"| {name} | {spent:.2f} | {spent / ours:.1f} |")


def with_and_without_masks(folder: Path) -> None:
    options = PhantomOptions(count=MASKED, seed=6, modalities=("CTA", "MRA", "MRI T2"))
    sources = catalogue.find_sources(str(write_dataset(folder / "masked", options)))[0]
    spent: dict[bool, list[float]] = {False: [], True: []}
    kilobytes: dict[bool, list[float]] = {False: [], True: []}
    for source in sources:
        # In turn, so that what else runs meets both alike.
        turns: dict[bool, list[float]] = {False: [], True: []}
        sizes = {}
        for _ in range(5):
            for masks in turns:
                out = folder / "prepared"
                settings = VOLUME.model_copy(update={"masks": masks}).model_dump(mode="json")
                seconds, status = cpu(partial(work.prepare, work.Task(source, str(out), settings, "00", False)), 1)
                turns[masks].append(seconds)
                sizes[masks] = (out / status["row"]["path"]).stat().st_size / 1e3
                shutil.rmtree(out)
        for masks, each in turns.items():
            spent[masks].append(min(each))
            kilobytes[masks].append(sizes[masks])
    print(f"\n(f) {len(sources)} phantoms with masks of vessels: CPU ms a series, least of 5, and its file")
    print("| | CPU ms, median | least to greatest | kB, mean |")
    print("|---|---:|---:|---:|")
    for masks, each in spent.items():
        ms = 1e3 * np.array(each)
        name = "with masks" if masks else "without"
        print(f"| {name} | {np.median(ms):.0f} | {ms.min():.0f} to {ms.max():.0f} | {np.mean(kilobytes[masks]):.0f} |")
    more = 1e3 * np.subtract(spent[True], spent[False])
    print(f"masks take {np.median(more):.0f} ms more, {more.min():.0f} to {more.max():.0f}")


def main() -> None:
    parts = sys.argv[1] if len(sys.argv) > 1 else "abcdef"
    with tempfile.TemporaryDirectory(prefix="ar") as name:
        folder = Path(name)
        if "a" in parts or "b" in parts:
            against_a_pool(folder)
        if "c" in parts or "d" in parts:
            large = by_stage(folder)
            extrapolate(large)
        if "e" in parts:
            peers(folder)
        if "f" in parts:
            with_and_without_masks(folder)


if __name__ == "__main__":
    main()
