"""Which tool reads which series right?

    python benchmarks/dicom_correctness.py ../shared/data/dicom

Reads every series of the test set with aneurysm_ray, SimpleITK and highdicom and compares voxels (bit by bit, float32)
and affine (TOLERANCE_MM) with truth.json, whose oracle is plain pydicom, and with dcm2niix's output in ref/. Verdicts:

    equal                   voxels and affine are the truth's
    equal, dcm2niix wrong   likewise, where dcm2niix gives something else or nothing
    rejected as expected    no volume can come of it, and the tool says so
    differs, fails          anything else
"""

import argparse
import hashlib
import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from numpy.typing import NDArray

from aneurysm_ray.data.dicom import read_series
from aneurysm_ray.data.volume import Volume
from aneurysm_ray.errors import SeriesError

TOLERANCE_MM = 1e-4
NO_VOLUME = {"d2n_rgb": "colour", "codec_matrix_ct_slice": "single_slice", "q_single_slice": "single_slice"}
NO_VOLUME |= {"mosaic_syntaxes": "unsupported"}
"""Series of which no volume can come, and why."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Image:
    """A volume as (x, y, z) with its affine in RAS, the convention of truth.json."""

    voxels: Array
    affine: NDArray[np.float64]
    note: str = ""


def canonical_sha256(image: Image) -> str:
    """Return truth.json's hash: float32 of the nearest RAS orientation, Fortran order."""
    canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image(image.voxels.astype(np.float32), image.affine))
    return hashlib.sha256(np.asarray(canonical.dataobj, np.float32).tobytes(order="F")).hexdigest()


def from_lps(voxels_ZYX: Array, affine_zyx: NDArray[np.float64], note: str = "") -> Image:
    """Return a volume whose affine maps (z, y, x) to LPS in the truth's convention."""
    return Image(voxels_ZYX.transpose(2, 1, 0), np.diag([-1.0, -1, 1, 1]) @ affine_zyx[:, [2, 1, 0, 3]], note)


def with_padding(volume: Volume, folder: Path) -> Array:
    """Return voxels as the truth has them: padding with its stored value, found by pydicom, not by our reader."""
    voxels = volume.voxels.copy()
    place = {instance: z for z, instance in enumerate(volume.instances)}
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        stored = dataset.pixel_array if not dataset.file_meta.TransferSyntaxUID.is_compressed else None
        if stored is None:
            import imagecodecs

            frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
            stored = imagecodecs.jpeg8_decode(frame).view(np.int16)
        voxels[place[(dataset.SOPInstanceUID, 0)]][stored == dataset.PixelPaddingValue] = volume.padding
    return voxels


def ours(folder: Path) -> Image:
    volume = read_series(folder)
    voxels = volume.voxels if volume.padding is None else with_padding(volume, folder)
    return from_lps(voxels, volume.affine, ", ".join(volume.quality))


def simpleitk(folder: Path) -> Image:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageSeriesReader()
    files = reader.GetGDCMSeriesFileNames(str(folder))
    reader.SetFileNames(files)
    image = sitk.ReadImage(files[0]) if len(files) == 1 else reader.Execute()
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, :3] = direction[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    return from_lps(sitk.GetArrayFromImage(image), affine)


def highdicom(folder: Path) -> Image:
    import highdicom as hd

    datasets = [pydicom.dcmread(file) for file in sorted(folder.iterdir()) if file.is_file()]
    if len(datasets) == 1 and "NumberOfFrames" in datasets[0]:
        volume = hd.Image.from_dataset(datasets[0]).get_volume()
    else:
        volume = hd.get_volume_from_series(datasets)
    return from_lps(volume.array, volume.affine)


TOOLS: dict[str, Callable[[Path], Image]] = {"aneurysm_ray": ours, "SimpleITK": simpleitk, "highdicom": highdicom}


def verdict(tool: Callable[[Path], Image], folder: Path, truth: dict[str, Any], reference: list[dict[str, Any]]) -> str:
    """Return how a tool's reading of a series compares with the truth."""
    expected = NO_VOLUME.get(folder.name)
    try:
        image = tool(folder)
    except SeriesError as error:
        right = error.reason == expected
        return f"rejected as expected ({error.reason})" if right else f"fails: {error.reason}: {error}"
    except (Exception, SystemExit) as error:
        if expected:
            return "rejected as expected"
        return f"fails: {type(error).__name__}: {' '.join(str(error).split())[:60]}"
    if expected:
        return f"differs: {image.voxels.shape} where no volume is"
    if canonical_sha256(image) != truth["canonical_sha256_float32"]:
        return f"differs: voxels {image.voxels.shape[::-1]} {image.voxels.dtype}"
    # Slices may run either way; the truth's order is along the normal.
    error_mm = min(
        np.abs(candidate - np.array(truth["affine_ras"])).max() for candidate in (image.affine, _reversed(image))
    )
    if error_mm > TOLERANCE_MM:
        return f"differs: affine by {error_mm:.2g}"
    known = any(entry["canonical_sha256_float32"] == truth["canonical_sha256_float32"] for entry in reference[:1])
    return ("equal" if known else "equal, dcm2niix wrong") + (f" ({image.note})" if image.note else "")


def _reversed(image: Image) -> NDArray[np.float64]:
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, 2] * (image.voxels.shape[2] - 1)
    affine[:3, 2] *= -1
    return affine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    root: Path = parser.parse_args().root
    warnings.simplefilter("ignore")
    truths = json.loads((root / "truth.json").read_text())
    counts: dict[str, Counter[str]] = {name: Counter() for name in TOOLS}
    print("| series | " + " | ".join(TOOLS) + " |\n|---|" + "---|" * len(TOOLS))
    for name, truth in truths.items():
        file = root / "ref" / name / "ref.json"
        reference = json.loads(file.read_text()) if file.is_file() else []
        verdicts = {tool: verdict(read, root / name, truth, reference) for tool, read in TOOLS.items()}
        for tool, found in verdicts.items():
            counts[tool][found.split(" (")[0].split(":")[0]] += 1
        print(f"| {name} | " + " | ".join(verdicts.values()) + " |", flush=True)
    print()
    for tool, count in counts.items():
        print(f"{tool}: " + ", ".join(f"{cases} {kind}" for kind, cases in count.most_common()))
    return 1 if counts["aneurysm_ray"]["differs"] or counts["aneurysm_ray"]["fails"] else 0


if __name__ == "__main__":
    sys.exit(main())
