"""Read every DICOM series of a folder, and what dcm2niix makes of it, and compare voxels by their places.

    python benchmarks/nifti_correctness.py ../shared/data/dicom

A row a series: what dcm2niix wrote, and whether the file of it that agrees best has the same values in the same places
as our volume. Places are compared in patient mm, values exactly. Where they are equal both are prepared, and the stored
volumes compared: how far a corner of the box lies from the other's, and by how many of 255 greys voxels differ.
dcm2niix is told to rescale as the DICOM standard says (`-p n`); it is known to be wrong, or to have no word for what
DICOM says, where KNOWN says so.
"""

import argparse
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from aneurysm_ray.config import VolumeConfig
from aneurysm_ray.data.dicom import read_series
from aneurysm_ray.data.nifti import read_nifti
from aneurysm_ray.data.preprocess import prepare_series
from aneurysm_ray.data.store import PreparedVolume
from aneurysm_ray.data.volume import Volume
from aneurysm_ray.errors import SeriesError
from aneurysm_ray.labels import LABELS

PLACE_TOLERANCE = 0.01
"""Of a voxel: dcm2niix keeps affines in float32."""
PLACE_MM = 0.01
"""Between corners of one box: of the same origin."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    counts: Counter[str] = Counter()
    print("| series | dcm2niix wrote | verdict | prepared | known of it |\n|---|---|---|---|---|")
    for series in sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in ("ref", "bad")):
        wrote, verdict, stored = compare(series)
        counts[verdict.split(":")[0].split(" (")[0]] += 1
        counts[f"prepared: {stored.split(',')[0]}"] += bool(stored)
        known = "" if verdict.startswith("equal") else KNOWN.get(series.name, "")
        print(f"| {series.name} | {wrote} | {verdict} | {stored} | {known} |", flush=True)
    print("\n" + ", ".join(f"{verdict} {count}" for verdict, count in counts.most_common()))


def compare(series: Path) -> tuple[str, str, str]:
    """Return what dcm2niix wrote of a series, how it compares with our own reading, and how the two are prepared."""
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
            return wrote, f"DICOM refused ({error.reason}): NIfTI {', '.join(outcomes) or '-'}", ""
        if not files:
            return wrote, "no NIfTI: dcm2niix cannot read it", ""
        found = [(verdict(path, expected), path) for path in files]
        best, path = min(found, key=lambda pair: ORDER.index_of(pair[0]))
        return wrote, best, stored(path, expected) if best.startswith("equal") else ""


def stored(path: Path, expected: Volume) -> str:
    """Say how a file's prepared volume differs from that of the DICOM series."""
    volume = read_nifti(path, modality=expected.modality)
    outcomes: list[PreparedVolume | str] = []
    for one in (expected, volume):
        try:
            outcomes.append(prepared(one))
        except SeriesError as error:
            outcomes.append(error.reason)
    ours, other = outcomes
    if isinstance(ours, str) or isinstance(other, str):
        return f"refused ({ours}) by both" if ours == other else f"DICOM {ours}; NIfTI {other}"
    if ours.voxels.shape != other.voxels.shape:
        return f"another box: {other.voxels.shape} for {ours.voxels.shape}"
    ends = np.array(np.meshgrid(*((0, length - 1) for length in ours.voxels.shape), [1.0])).reshape(4, -1)
    mm = np.linalg.norm(((ours.affine - other.affine) @ ends)[:3], axis=0).max()
    grey = np.abs(ours.voxels.astype(int) - other.voxels.astype(int))
    if mm == 0 and not grey.any():
        return "bit by bit"
    return f"{'the same box' if mm < PLACE_MM else 'the box moved'}, {mm:.4f} mm; greys differ by {grey.max()}"


def prepared(volume: Volume) -> PreparedVolume:
    """Prepare a volume of which no table says anything."""
    return prepare_series(
        volume,
        VolumeConfig(),
        targets=np.full(len(LABELS), np.nan, np.float32),
        localizers=(),
        modality=volume.modality,
        series_uid="1.2",
        patient="p",
        source_digest="",
    )


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
