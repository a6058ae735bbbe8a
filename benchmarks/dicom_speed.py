"""How much CPU time and memory does reading a series take, against the tools people use?

    python benchmarks/dicom_speed.py ../shared/data/dicom --rounds 3

A real CT series of 28 slices of 512 x 512 is continued to 140 by shifted copies and written in five transfer syntaxes
into /dev/shm. Every reading runs in its own process, after a warm-up on four slices and on memory, with tools in turn
within a round: CPU time of the process (all threads) and its peak memory beyond what imports took. Medians over rounds.

Peers that are not in pyproject.toml are left out where they are not installed: `pip install dcm2niix pylibjpeg
pylibjpeg-libjpeg pylibjpeg-openjpeg python-gdcm` (the last four are pydicom's decoders, for highdicom and MONAI too).
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from pydicom import uid
from pydicom.encaps import encapsulate, generate_frames

SOURCE = "ct_philips_5mm_j2k"
COPIES = 5
SLICES = 140
SYNTAXES = {
    "uncompressed": uid.ExplicitVRLittleEndian,
    "RLE": uid.RLELossless,
    "JPEG lossless": uid.JPEGLosslessSV1,
    "JPEG-LS": uid.JPEGLSLossless,
    "JPEG 2000": uid.JPEG2000Lossless,
}
TO_REACH = {"uncompressed": 0.25, "RLE": 0.55, "JPEG lossless": 0.45, "JPEG-LS": 0.85, "JPEG 2000": 0.65}
"""CPU time as a share of dcm2niix's."""


def encode(image: Any, syntax: str) -> bytes:
    """Return the compressed bytes of one 12-bit slice."""
    if syntax == uid.RLELossless:
        planes = [
            imagecodecs.packbits_encode(np.ascontiguousarray(image >> shift).astype(np.uint8)) for shift in (8, 0)
        ]
        planes = [plane + b"\0" * (len(plane) % 2) for plane in planes]
        header = np.zeros(16, "<u4")
        header[:3] = 2, 64, 64 + len(planes[0])
        return header.tobytes() + b"".join(planes)
    if syntax == uid.JPEGLosslessSV1:
        return imagecodecs.jpeg8_encode(image, lossless=True, bitspersample=12, predictor=1)
    if syntax == uid.JPEGLSLossless:
        return imagecodecs.jpegls_encode(image)
    return imagecodecs.jpeg2k_encode(image, level=0, reversible=True, bitspersample=12, codecformat="j2k")


def write_series(source: Path, out: Path, syntax: str) -> None:
    """Write the enlarged series in one transfer syntax."""
    out.mkdir(parents=True)
    slices = sorted(map(pydicom.dcmread, source.iterdir()), key=lambda slice_: float(slice_.ImagePositionPatient[2]))
    for index, dataset in enumerate(slices):
        image = imagecodecs.jpeg2k_decode(next(generate_frames(dataset.PixelData, number_of_frames=1)))
        native = syntax == uid.ExplicitVRLittleEndian
        dataset.PixelData = image.tobytes() if native else encapsulate([encode(image, syntax)])
        dataset["PixelData"].VR = "OW" if native else "OB"
        dataset["PixelData"].is_undefined_length = not native
        dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
        x, y, z = dataset.ImagePositionPatient
        for copy in range(COPIES):
            place = float(z) + 140 * copy
            dataset.ImagePositionPatient = [x, y, f"{place:.2f}"]
            dataset.SliceLocation = f"{place:.2f}"
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.{index}.{copy}"
            dataset.save_as(out / f"{copy}{index:02d}")


def ours(folder: Path) -> Any:
    from aneurysm_ray.data.dicom import read_series

    return read_series(folder).voxels


def read_floor(folder: Path) -> Any:
    out = np.empty((SLICES, 512, 512), np.int16)
    for z, file in enumerate(sorted(folder.iterdir())):
        with file.open("rb", buffering=0) as source:
            size = os.fstat(source.fileno()).st_size
            source.seek(max(0, size - out[z % SLICES].nbytes))
            source.readinto(out[z % SLICES].data.cast("B"))
    return None


def simpleitk(folder: Path) -> Any:
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return sitk.GetArrayFromImage(reader.Execute())


def plain_pydicom(folder: Path) -> Any:
    datasets = [pydicom.dcmread(file) for file in folder.iterdir()]
    datasets.sort(key=lambda dataset: float(dataset.ImagePositionPatient[2]))
    return np.stack([dataset.pixel_array for dataset in datasets])


def monai(folder: Path) -> Any:
    from monai.data import PydicomReader

    reader = PydicomReader()
    return reader.get_data(reader.read(str(folder)))[0]


def highdicom(folder: Path) -> Any:
    import highdicom as hd

    return hd.get_volume_from_series([pydicom.dcmread(file) for file in folder.iterdir()]).array


TOOLS: dict[str, Callable[[Path], Any]] = {
    "aneurysm_ray": ours,
    "SimpleITK": simpleitk,
    "pydicom, no rescale": plain_pydicom,
    "MONAI PydicomReader": monai,
    "highdicom": highdicom,
    "read floor": read_floor,
}


def child(tool: str, folder: Path) -> None:
    """Read once and print CPU ms a slice, peak MB beyond imports and the sum of all voxels."""
    warnings.simplefilter("ignore")
    read = TOOLS[tool]
    read(folder.parent / f"{folder.name} warm-up")
    # A worker has read series before; a fresh process pays up to 0.5 ms a slice for first touches on a busy host.
    np.ones((SLICES, 512, 512), np.int16)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _memory_kb("VmRSS")
    start = time.process_time()
    voxels = read(folder)
    seconds = time.process_time() - start
    peak = _memory_kb("VmHWM")
    total = None if voxels is None else int(voxels.sum(dtype=np.float64))
    print(json.dumps({"ms": seconds * 1000 / SLICES, "mb": (peak - before) / 1024, "sum": total}))


def _memory_kb(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(name)).split()[1])


def measure(tool: str, folder: Path, environment: dict[str, str]) -> dict[str, Any] | None:
    """Run one reading in a process of its own; None where the tool cannot read the series."""
    if tool != "dcm2niix":
        command = [sys.executable, __file__, str(folder.parent), "--child", tool, "--series", folder.name]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None
    with tempfile.TemporaryDirectory(dir=folder.parent) as out:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [_dcm2niix(), "-z", "n", "-b", "n", "-f", "out", "-o", out, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if not list(Path(out).glob("*.nii")):
            return None
        import nibabel

        total = int(np.asarray(nibabel.load(next(Path(out).glob("*.nii"))).dataobj).sum(dtype=np.float64))
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"ms": seconds * 1000 / SLICES, "mb": None, "sum": total}


def _dcm2niix() -> str:
    """Return the binary of the PyPI package, which knows JPEG-LS, else the one on the path."""
    try:
        import dcm2niix

        return str(dcm2niix.bin)
    except ImportError:
        return shutil.which("dcm2niix") or sys.exit("dcm2niix is not installed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--series", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.root / options.series)
        return
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    names = [*TOOLS, "dcm2niix"]
    results: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="dicom-speed", dir="/dev/shm") as temporary:
        for name, syntax in SYNTAXES.items():
            write_series(options.root / SOURCE, Path(temporary) / name, syntax)
            warm = Path(temporary) / f"{name} warm-up"
            warm.mkdir()
            for file in sorted((Path(temporary) / name).iterdir())[:4]:
                shutil.copy(file, warm)
            for _ in range(options.rounds):
                for tool in names:
                    result = measure(tool, Path(temporary) / name, environment)
                    if result:
                        results.setdefault((tool, name), []).append(result)
            shutil.rmtree(Path(temporary) / name)
    report(results, names)


def report(results: dict[tuple[str, str], list[dict[str, Any]]], names: list[str]) -> None:
    """Print a table: median CPU ms a slice, its ratio to dcm2niix's, peak memory, and whether voxels agree."""

    def median(tool: str, syntax: str, key: str = "ms") -> float | None:
        values = [result[key] for result in results.get((tool, syntax), []) if result[key] is not None]
        return statistics.median(values) if values else None

    print("CPU ms a slice (ratio to dcm2niix), medians\n")
    print("| tool | " + " | ".join(SYNTAXES) + " | peak MB beyond imports |\n|---|" + "---:|" * (len(SYNTAXES) + 1))
    for tool in names:
        cells = []
        for syntax in SYNTAXES:
            ms, base = median(tool, syntax), median("dcm2niix", syntax)
            cells.append("-" if ms is None else f"{ms:.2f}" + (f" ({ms / base:.2f})" if base else ""))
        peaks = [peak for syntax in SYNTAXES if (peak := median(tool, syntax, "mb")) is not None]
        print(f"| {tool} | " + " | ".join(cells) + f" | {f'{max(peaks):.0f}' if peaks else '-'} |")
    print("| to reach | " + " | ".join(f"{ratio:.2f}" for ratio in TO_REACH.values()) + " | |")
    volume_mb = SLICES * 512 * 512 * 2 / 2**20
    print(f"\nvolume {volume_mb:.0f} MB")
    sums = {
        tool: {result["sum"] for (name, _), many in results.items() if name == tool for result in many}
        for tool in names
    }
    print(
        "sums of voxels: " + "; ".join(f"{tool} {sorted(total)}" for tool, total in sums.items() if None not in total)
    )


if __name__ == "__main__":
    main()
