"""Is every kind of input from public trouble reports read as it should be?

    python benchmarks/dicom_cases.py ../shared/cases

Runs each builder of the folder's `dicom/` into a temporary folder, reads or prepares what it made, and prints a table:
case, what came of it, and whether that is what the folder's INDEX.md calls right. Slices of a second pass are 40 above
their twins there, so a volume that mixes passes is told from one that does not. Exit code 1 when a row is wrong.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
from numpy.typing import NDArray

from aneurysm_ray import overrides, rundir
from aneurysm_ray.data import store
from aneurysm_ray.data.dicom import read_series
from aneurysm_ray.data.inspection import inspect
from aneurysm_ray.data.outputs import viewer
from aneurysm_ray.data.points import source_slices, to_patient_mm
from aneurysm_ray.data.volume import Volume
from aneurysm_ray.errors import AneurysmRayError, SeriesError
from aneurysm_ray.labels import LOCATIONS

Verdict = tuple[bool, str]
SLICES = 12


class Plain:
    """The real slices that most cases are made of, by plain pydicom: Hounsfield units, lowest first."""

    def __init__(self, data: Path) -> None:
        slices = sorted(map(pydicom.dcmread, (data / "q_plain").iterdir()), key=lambda d: d.ImagePositionPatient[2])
        self.stored = np.array([d.pixel_array.astype(np.int32) for d in slices])
        self.heights_mm = np.array([float(d.ImagePositionPatient[2]) for d in slices])
        self.uid = str(slices[0].SeriesInstanceUID)

    @property
    def hu(self) -> NDArray[np.int32]:
        return self.stored - 1024


def told(volume: Volume) -> str:
    quality = ", ".join(volume.quality) or "no code"
    return f"{len(volume.voxels)} slices, {quality}" + (f", {len(volume.dropped)} left out" if volume.dropped else "")


def one_pass(code: str | None, offset: int | None = None) -> Callable[[Path, Plain], Verdict]:
    """Expect all slices of one pass, at their heights, and a code for what was left out."""

    def check(folder: Path, plain: Plain) -> Verdict:
        try:
            volume = read_series(folder)
        except SeriesError as error:
            return False, f"{error.reason}: {error.told}"
        if volume.voxels.shape != plain.hu.shape:
            return False, told(volume)
        lifted = volume.voxels - plain.hu
        levels = np.unique(lifted)
        at_place = np.abs(volume.origins_mm[:, 2] - plain.heights_mm).max() < 0.06
        right = len(levels) == 1 and levels[0] in ((0, 40) if offset is None else (offset,)) and at_place
        return bool(right and (code is None or code in volume.quality)), told(volume)

    return check


def coded(code: str) -> Callable[[Path, Plain], Verdict]:
    """Expect a volume that carries a code."""

    def check(folder: Path, plain: Plain) -> Verdict:
        volume = read_series(folder)
        return code in volume.quality, told(volume)

    return check


def refused(*reasons: str) -> Callable[[Path, Plain], Verdict]:
    """Expect SeriesError with one of some reasons."""

    def check(folder: Path, plain: Plain) -> Verdict:
        try:
            return False, told(read_series(folder))
        except SeriesError as error:
            return error.reason in reasons, f"{error.reason}: {error.told}"

    return check


def odd_pixels(folder: Path, plain: Plain) -> Verdict:
    """Expect values whole, though Bits Stored is too small."""
    volume = read_series(folder)
    expected = (plain.stored.astype(np.float64) / 1785 * 45000).clip(0, 60000).astype(np.uint16)
    return bool(np.array_equal(volume.voxels, expected)) and "bits_contradicted" in volume.quality, told(volume)


def delimiter_bytes(folder: Path, plain: Plain) -> Verdict:
    volume = read_series(folder)
    expected = plain.hu.copy()
    expected[:, 3, :4] = np.array([0xFE, 0xFF, 0xDD, 0xE0]) - 1024
    return bool(np.array_equal(volume.voxels, expected)), told(volume)


def padding_zero(folder: Path, plain: Plain) -> Verdict:
    volume = read_series(folder)
    expected = plain.hu.copy()
    expected[:, 30:90, 30:90] = 0
    expected[expected == 0] = -1024
    return bool(np.array_equal(volume.voxels, expected)) and "padding" in volume.quality, told(volume)


def evidence(folder: Path, plain: Plain) -> Verdict:
    """Expect SR and SEG that dciodvfy (where installed) finds no error in, or a note for each that is missing."""
    volume = read_series(folder)
    slices = source_slices(volume)
    pixel = slices.pixel(to_patient_mm(volume, np.array([4.0, 40, 30])))
    row = (pixel.sop_uid, pixel.frame, pixel.row, pixel.column, 0.83, LOCATIONS[0])
    candidates = pd.DataFrame([row], columns=["sop_uid", "frame", "row", "column", "probability", "location"])
    grid = np.zeros((6, 16, 14), np.float32)
    grid[2:4, 4:8, 4:8] = 0.6
    with tempfile.TemporaryDirectory() as out, warnings.catch_warnings(action="ignore"):
        affine = volume.affine @ np.diag([2.0, 8, 8, 1])
        notes = viewer.write_all(Path(out), folder, slices, candidates, grid, affine, 0.9, "a" * 64)
        written = [path.name for path in sorted(Path(out).glob("*.dcm"))]
        errors = [line for name in written for line in _dciodvfy(Path(out) / name)]
    return len(written) + len(notes) == 2 and not errors, f"{', '.join(written) or 'nothing'}; {'; '.join(notes)}"


def _dciodvfy(path: Path) -> list[str]:
    try:
        said = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False).stderr
    except FileNotFoundError:
        return []
    return [line for line in said.splitlines() if line.startswith("Error")]


def prepared(
    expected: Callable[[pd.DataFrame, pd.DataFrame, Plain], bool],
) -> Callable[[Path, Plain], Verdict]:
    """Prepare a data set with Ray and hold its tables, volumes and refusals, against an expectation."""

    def check(folder: Path, plain: Plain) -> Verdict:
        from aneurysm_ray.distributed.prepare import prepare

        with tempfile.TemporaryDirectory() as place:
            out = Path(place) / "volumes"
            config = overrides.build({"volume.spacing_mm": (5.0, 5.0, 5.0)})
            try:
                prepare(str(folder), str(out), config)
            except AneurysmRayError as error:
                return False, str(error)
            table, rejected = store.volumes_table(out), rundir.read_csv(out / rundir.REJECTED)
        codes = sorted({code for codes in table["quality"] for code in codes})
        reasons = rejected["reason"].value_counts().to_dict()
        said = f"{len(table)} volumes{' ' + ', '.join(codes) if codes else ''}"
        return expected(table, rejected, plain), said + (f"; refused {reasons}" if reasons else "")

    return check


def table_dialect(name: str) -> Callable[[Path, Plain], Verdict]:
    """Expect two series with a point each, or a sentence that names line or column."""
    wrong = {"semicolon": "no column", "utf16": "CSV table", "blank_last_rows": "line 4", "repeated_row": "line 4"}
    wrong |= {"json_quotes": "line 2", "nan_coordinates": "line 2", "numpy_repr": "line 2", "spaced_uid": "line 2"}

    def check(folder: Path, plain: Plain) -> Verdict:
        try:
            facts = inspect(folder)
        except AneurysmRayError as error:
            return wrong.get(name, "\0") in str(error), str(error)[-100:]
        right = name not in wrong and facts["series"] == 2 and not facts["rejected"]
        points = 2 if name != "repeated_point" else facts["points"]  # told as such where it is joined
        return right and facts["points"] == points, f"{facts['series']} series, {facts['points']} points"

    return check


DIALECTS = ("bom", "crlf", "extra_column", "index_column", "semicolon", "utf16", "blank_last_rows", "repeated_row")
DIALECTS += ("json_quotes", "nan_coordinates", "numpy_repr", "repeated_point", "spaced_uid")
QUIRKS = ("age_text", "hashed_sop_class", "latin1_as_utf8", "no_frame_of_reference", "no_positions", "no_thickness")
QUIRKS += ("old_dates", "plain", "same_sop_uid", "study_uid_missing", "two_frames_of_reference", "two_studies")
QUIRKS += ("unknown_charset",)

CHECKS: dict[str, dict[str, Callable[[Path, Plain], Verdict]]] = {
    "annex_symlinks": {"in": prepared(lambda table, rejected, plain: len(table) == 1 and not len(rejected))},
    "deduplicated_by_links": {"in/series": one_pass(None, 0)},
    "ct_spectral_maps": {"in": one_pass("other_passes", 0)},
    "trigger_time_phases": {"in": one_pass("other_passes")},
    "shuttle_passes_renumbered": {"in": one_pass("other_passes")},
    "reduced_fov_second_recon": {"in": one_pass("other_passes")},
    "enhanced_two_instances_temporal": {"in": one_pass("other_passes")},
    "passes_off_by_0p05mm": {"in": one_pass("other_passes")},
    "premonitoring_slice": {"in": one_pass("other_passes", 0)},
    "bolus_tracking_in_series": {"in": one_pass("other_passes", 0)},
    "study_folder_wrong_uid": {
        "in": prepared(lambda table, rejected, plain: table["series_uid"].tolist() == [plain.uid])
    },
    "fractional_seg_beside_ct": {"in": one_pass("derived_objects", 0)},
    "latin1_folder_name": {"in": prepared(lambda table, rejected, plain: len(table) == 2 and not len(rejected))},
    "latin1_file_names": {
        "in": prepared(
            lambda table, rejected, plain: len(table) == 1 and rejected["reason"].tolist() == ["no_geometry"]
        )
    },
    "double_rescale": {"in": one_pass("rescale_twice", 0)},
    "unsigned_bits_stored_too_small": {"in": odd_pixels},
    "negative_spacing_multiframe": {"in": one_pass("geometry_assumed", 0)},
    "no_sequence_delimiter": {"in_eof": one_pass(None, 0), "in_zeros": one_pass(None, 0)},
    "syntax_says_explicit_but_implicit": {"in": one_pass("syntax_misnamed", 0)},
    "syntax_says_jpeg_but_native": {"in": one_pass("syntax_misnamed", 0)},
    "syntax_says_native_but_jpeg": {"in": one_pass("syntax_misnamed", 0)},
    "evidence_quirks": {f"in_{name}": evidence for name in QUIRKS},
    "copies_with_other_sop_uids": {
        "in": prepared(
            lambda table, rejected, plain: (
                [len(points) for points in table["points"]] == [1]
                and {"duplicate_files", "point_elsewhere"} <= set(table["quality"][0])
            )
        )
    },
    "orientation_drifts": {"in": coded("other_stacks")},
    "orientation_flickers": {"in": coded("other_stacks")},
    "tables": {f"in/{name}": table_dialect(name) for name in DIALECTS},
    "odd_names": {"in": prepared(lambda table, rejected, plain: len(table) == 6 and not len(rejected))},
    "zip_from_windows": {"in/export.zip": one_pass(None, 0)},
    "htj2k": {"in": one_pass(None, 0)},
    "j2k_sign_mismatch": {name: one_pass(None, 0) for name in ("in_u13", "in_s13", "in_s16", "in_u16")},
    "delimiter_bytes_in_fragment": {"in": delimiter_bytes},
    "multi_frame_fragments": {name: one_pass(None, 0) for name in ("in_empty", "in_bot", "in_eot")},
    "mixed_signs_and_intercepts": {"in": one_pass("rescale_varies", 0)},
    "un_and_empty_tags": {"in": one_pass(None, 0)},
    "enhanced_three_stacks": {"in": one_pass(None, 0)},
    "two_table_heights": {"in": one_pass("other_passes", 0)},
    "comma_decimals": {"in": refused("no_geometry")},
    "series_uid_per_slice": {"in": refused("single_slice")},
    "odd_and_long_pixel_data": {"in_long": one_pass(None, 0), "in_double": one_pass(None, 0)},
    "padding_value_zero_signed": {"in": padding_zero},
    "refused_for_many_reasons": {
        "in_others_outnumber": refused("no_geometry", "single_slice"),
        "in_copies_and_one_damaged": refused("unreadable_pixels", "single_slice"),
    },
}
"""Parts of each case, and what is right there."""


def build(builder: Path, out: Path) -> str:
    """Run a builder in a process of its own; returns what went wrong, empty where nothing did."""
    environment = {**os.environ, "CASES": str(out)}
    done = subprocess.run([sys.executable, builder], env=environment, capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path)
    parser.add_argument("--only", nargs="+", help="names of cases")
    options = parser.parse_args()
    builders = {path.stem: path for path in sorted((options.cases / "dicom").glob("*.py")) if path.stem != "kit"}
    plain = Plain(options.cases.parent / "data" / "dicom")
    counts = {True: 0, False: 0}
    print("| case | what came of it | as it should be |\n|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="dicom-cases-") as temporary:
        os.environ["ANEURYSM_RAY_PATIENT_KEY"] = "the key of a benchmark"
        for name in options.only or sorted({*builders, *CHECKS}):
            problem = build(builders[name], Path(temporary)) if name in builders else "there is no such builder"
            for part, check in CHECKS.get(name, {"": lambda folder, plain: (False, "no check")}).items():
                try:
                    right, said = (False, problem) if problem else check(Path(temporary) / name / part, plain)
                # A table of what comes of trouble has a row for surprises as well.
                except Exception as error:
                    right, said = False, f"{type(error).__name__}: {error}"
                counts[right] += 1
                row = name if part == "in" else f"{name}/{part.removeprefix('in/')}"
                print(
                    f"| {row} | {json.dumps(said, ensure_ascii=True)[1:-1]} | {'yes' if right else 'NO'} |", flush=True
                )
    print(f"\n{counts[True]} as they should be, {counts[False]} not")
    return 1 if counts[False] else 0


if __name__ == "__main__":
    sys.exit(main())
