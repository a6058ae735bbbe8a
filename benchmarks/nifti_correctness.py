"""Read every DICOM series of a folder, and what dcm2niix makes of it, and compare voxels by their places.

    python benchmarks/nifti_correctness.py ../shared/data/dicom

A row a series: what dcm2niix wrote, and whether the file of it that agrees best has the same values in the same places
as our volume. Places are compared in patient mm, values exactly. dcm2niix is told to rescale as the DICOM standard
says (`-p n`); it is known to be wrong, or to have no word for what DICOM says, where KNOWN says so.
"""

import argparse
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from aneurysm_ray.data.dicom import read_series
from aneurysm_ray.data.nifti import read_nifti
from aneurysm_ray.data.volume import Volume
from aneurysm_ray.errors import SeriesError

PLACE_TOLERANCE = 0.01
"""Of a voxel: dcm2niix keeps affines in float32."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    counts: Counter[str] = Counter()
    print("| series | dcm2niix wrote | verdict | known of it |\n|---|---|---|---|")
    for series in sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in ("ref", "bad")):
        wrote, verdict = compare(series)
        counts[verdict.split(":")[0]] += 1
        known = "" if verdict.startswith("equal") else KNOWN.get(series.name, "")
        print(f"| {series.name} | {wrote} | {verdict} | {known} |", flush=True)
    print("\n" + ", ".join(f"{verdict} {count}" for verdict, count in counts.most_common()))


def compare(series: Path) -> tuple[str, str]:
    """Return what dcm2niix wrote of a series, and how it compares with our own reading."""
    with tempfile.TemporaryDirectory(prefix="d2n-") as out:
        subprocess.run(
            ["dcm2niix", "-p", "n", "-b", "n", "-z", "1", "-o", out, "-f", "x%s", series],
            capture_output=True,
            timeout=600,
        )
        files = sorted(Path(out).glob("*.nii.gz"))
        wrote = f"{len(files)} file{'s' * (len(files) != 1)}" if files else "nothing"
        try:
            expected = read_series(series)
        except SeriesError as error:
            outcomes = [refusal(path, "MR") or "read" for path in files]
            return wrote, f"DICOM refused ({error.reason}): NIfTI {', '.join(outcomes) or '-'}"
        if not files:
            return wrote, "no NIfTI: dcm2niix cannot read it"
        verdicts = sorted((verdict(path, expected) for path in files), key=ORDER.index_of)
        return wrote, verdicts[0]


class _Order:
    """Best verdict first: of several files one may be the volume and the others its resampled versions."""

    words = ("equal", "refused", "values differ", "places differ", "shape differs")

    def index_of(self, verdict: str) -> int:
        return next(rank for rank, word in enumerate(self.words) if verdict.startswith(word))


ORDER = _Order()
KNOWN = {
    "ct_ge_head_tilt_varspacing": "NIfTI cannot hold slices of varying distance",
    "d2n_fail_gantrytilt": "the affine of a tilted stack is not exact",
    "d2n_fail_sliceincrement": "a missing slice: NIfTI cannot hold a gap",
    "d2n_nonisotropic_slopes": "with -p n every slice is rescaled by one slope, not by its own; equal with -p y",
    "q_missing_slice": "a missing slice: NIfTI cannot hold a gap",
    "q_uneven_gap": "NIfTI cannot hold slices of varying distance",
    "q_enhanced_j2k_slopes": "frames without a dimension index are written in their stored order",
    "q_enhanced_shuffled_rle": "frames without a dimension index are written in their stored order",
    "q_deflated": "the transfer syntax is not supported",
    "q_modality_lut": "the Modality LUT is not applied",
    "q_monochrome1": "values are inverted",
    "q_no_ipp": "no place is written where there is no Image Position; we place slices by Slice Location, and tell",
    "q_no_rescale": "no rescale: we take the values for Hounsfield units, and tell",
    "q_padding": "padding keeps its value",
    "q_scout_in_series": "a scout is merged into the stack",
    "q_two_stacks": "two stacks are merged",
    "q_two_timepoints": "two passes become 4D; we keep one whole pass, and tell",
    "mosaic_syntaxes": "mosaics are unpacked, which we do not",
    "codec_matrix_ct_slice": "one slice, many times",
}


def refusal(path: Path, modality: str) -> str:
    """Return why a file is refused, or nothing."""
    try:
        read_nifti(path, modality=modality)
    except SeriesError as error:
        return error.reason
    return ""


def verdict(path: Path, expected: Volume) -> str:
    """Say whether a file holds the expected volume."""
    try:
        volume = read_nifti(path, modality=expected.modality)
    except SeriesError as error:
        return f"refused: {error.reason}, {error.told}"
    if sorted(volume.shape) != sorted(expected.shape):
        return f"shape differs: {volume.shape} for {expected.shape}"
    to_other = np.linalg.inv(volume.affine)
    same, total, off = 0, 0, 0.0
    for values, places in slices(expected):
        at = places @ to_other[:3, :3].T + to_other[:3, 3]
        nearest = np.rint(at).astype(int)
        off = max(off, float(np.abs(at - nearest).max()))
        if (nearest < 0).any() or (nearest >= volume.shape).any():
            return "places differ: by more than the volume"
        other = volume.voxels[tuple(nearest.T)]
        same += int(np.isclose(other, values.ravel(), rtol=1e-5, atol=1e-4).sum())
        total += values.size
    if off > PLACE_TOLERANCE:
        return f"places differ: by up to {off:.2f} voxel, {same / total:.1%} of values equal"
    if same < total:
        return f"values differ: {same / total:.1%} equal"
    told = [code for code in volume.quality if code not in ("series_uid_assumed", *expected.quality)]
    return "equal" + (f": {', '.join(told)}" if told else "")


def slices(volume: Volume) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield each slice's values and the patient places (N, 3) of its voxels in mm."""
    row, column = volume.affine[:3, 1], volume.affine[:3, 2]
    y, x = np.mgrid[: volume.shape[1], : volume.shape[2]]
    inside = y.reshape(-1, 1) * row + x.reshape(-1, 1) * column
    for origin, values in zip(volume.origins_mm, volume.voxels, strict=True):
        yield values, inside + origin


if __name__ == "__main__":
    main()
