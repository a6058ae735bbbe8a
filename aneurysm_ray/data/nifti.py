"""Read one NIfTI file into a volume.

NIfTI-1 and -2 map a voxel index (i, j, k) to RAS in mm: x grows to the patient's right, y to the front, z to the head.
A `Volume` is in DICOM's LPS with axes (z, y, x), so axes are reversed, and x and y change sign. Unlike DICOM a file
says neither what was scanned nor of whom: the caller does, or the values are asked whether they are those of a CT.
"""

import os
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from aneurysm_ray.data.dicom.hounsfield import hu_doubtful, looks_like_hu
from aneurysm_ray.data.dicom.quality import QUALITY
from aneurysm_ray.data.volume import Volume
from aneurysm_ray.errors import DatasetError, SeriesError

SUFFIXES = (".nii", ".nii.gz")
ELSEWHERE = (".mgz", ".mgh", ".nrrd", ".mha", ".mhd", ".hdr", ".img")
"""Files that other tools read as images; they are turned into NIfTI by these tools."""
TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
MAX_VOLUME_BYTES = 2 * 2**30
SPACING_LIMITS_MM = (0.01, 50.0)
MAX_COORDINATE_MM = 1e5
HEAD_MM = (20.0, 1000.0)
"""Longest side of a scan of a head; a unit that makes it longer or shorter is a wrong word in the header."""
SHEAR_TOLERANCE = 1e-2
"""Cosine between the axes of a slice beyond which a form is no place in a room but a fit to a template."""
TILT_TOLERANCE = 1e-3
SAME_PLACE_VOXELS = 0.1
"""Forms that place every corner of the volume within this much of a voxel agree."""
UNIT_MM = {1: 1000.0, 2: 1.0, 3: 0.001}
"""mm in NIfTI's units of length; 0 is unknown, which is mm."""
MOST_LABELS = 48
"""Values of a mask; FreeSurfer's has the most, about 45. The noise alone of a scan has more."""
AIR_HU, OLD_AIR = -1024, 0
"""A CT stored without its intercept has air at 0 and water at 1024."""

Affine = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Placement:
    """Where a file's voxels lie."""

    affine: Affine
    """(4, 4): index on the file's own axes (i, j, k, 1) to patient (x, y, z, 1) in mm, LPS."""
    codes: tuple[str, ...]


def is_nifti(path: str | Path) -> bool:
    """Whether a name is that of a NIfTI file."""
    return str(path).lower().endswith(SUFFIXES)


def check_once(paths: Iterable[Path]) -> None:
    """Raise DatasetError where `.nii` and `.nii.gz` of one name lie side by side: nothing says which of them counts."""
    seen: dict[str, Path] = {}
    for path in sorted(path for path in paths if is_nifti(path)):
        other = seen.setdefault(re.sub(r"\.nii(\.gz)?$", "", str(path), flags=re.IGNORECASE), path)
        if other != path:
            raise DatasetError(f"{path.parent} has {other.name} and {path.name}; which of them counts? Keep one")


def read_nifti(path: Path, *, modality: str | None = None, patient_id: str = "") -> Volume:
    """Read a NIfTI-1 or -2 file, `.nii` or `.nii.gz`, into a volume; `modality` is CT or MR where the caller knows.

    Voxels are the scaled values, int16 where all of them are whole and fit, else float32; values that are no number are
    background. Slices lie along the file's last axis: what a header says of its slice axis may be left over from before
    the file was turned. Of the two places that a header may give the sform counts, unless it is sheared within slices;
    `quality` tells where they disagree, and all that was assumed.
    Raises SeriesError: `not_fetched` for a pointer of git-annex or Git LFS, `mixed_passes` for 4D, `not_hounsfield` for
    a CT in another unit, `no_images` for a mask, `no_geometry` where nothing tells left from right, and
    others of `SERIES_REASONS`.
    """
    where = str(path)
    image = _opened(path)
    try:
        shape = _shape(image, where)
        placement = placed(image.header, shape, where)
        raw = np.asanyarray(image.dataobj.get_unscaled()).reshape(shape)
        slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
    except MemoryError as error:
        raise SeriesError("memory", "takes more memory than there is", where) from error
    except _DAMAGE as error:
        raise SeriesError("unreadable_pixels", f"cannot be read to its end ({type(error).__name__})", where) from error
    affine = placement.affine[:, [2, 1, 0, 3]]
    voxels, strange = _values(raw.transpose(), slope, intercept, background=0)
    codes = {*placement.codes, *strange, "series_uid_assumed"}
    if modality != "CT":
        _check_no_mask(voxels, where)
    if modality == "MR" and looks_like_hu(voxels):
        codes.add("modality_doubtful")
    if modality is None:
        modality = "CT" if looks_like_hu(voxels) else "MR"
        codes.add("modality_assumed")
    if modality == "CT":
        if "not_finite" in codes:
            voxels, _ = _values(raw.transpose(), slope, intercept, background=AIR_HU)
        _check_hounsfield(voxels, where)
        codes |= {"hu_doubtful"} if hu_doubtful(voxels) else set()
    step, row, column = affine[:3, 0], affine[:3, 1], affine[:3, 2]
    normal = np.cross(row, column) / np.linalg.norm(np.cross(row, column))
    if np.linalg.norm(step - (step @ normal) * normal) > TILT_TOLERANCE * np.linalg.norm(step):
        codes.add("gantry_tilt")
    return Volume(
        voxels=voxels,
        affine=affine,
        origins_mm=affine[:3, 3] + np.arange(len(voxels))[:, None] * step,
        modality=modality,
        series_uid=path.name,
        patient_id=patient_id,
        quality=tuple(code for code in QUALITY if code in codes),
    )


def voxel_bytes(path: Path) -> int:
    """Return the bytes of a file's volume in int16, as its header promises. Raises SeriesError."""
    return 2 * int(np.prod(_shape(_opened(path), str(path))))


_DAMAGE = (OSError, EOFError, ValueError, KeyError, TypeError, OverflowError, zlib.error)
"""What nibabel, gzip and numpy raise for files that are cut or damaged."""


def _opened(path: Path) -> Any:
    where = str(path)
    check_is_here(path)
    try:
        image = nibabel.load(path)
        # A header's scaling is looked at when it is asked for, and may be as damaged as the rest.
        image.header.get_slope_inter()
    except (ImageFileError, HeaderDataError, AttributeError) as error:
        raise SeriesError("no_images", f"is no NIfTI file ({type(error).__name__})", where) from error
    except _DAMAGE as error:
        raise SeriesError("no_images", f"has no header that can be read ({type(error).__name__})", where) from error
    return image


def check_is_here(path: Path) -> None:
    """Raise SeriesError for what is no NIfTI file by name or first bytes, with the cure; pointers among them."""
    where, name = str(path), path.name.lower()
    if name.endswith(ELSEWHERE):
        kind = name[name.rfind(".") :]
        tool = "mri_convert IMAGE OUT.nii.gz" if kind in (".mgz", ".mgh") else "its own tools or SimpleITK"
        raise SeriesError("no_images", f"is {kind}, not NIfTI; convert it with {tool}", where)
    if path.is_symlink() and not path.exists():
        target = os.readlink(path)
        if "annex/objects" in target.replace(os.sep, "/"):
            raise SeriesError("not_fetched", _fetch_with("git-annex", "git annex get . (or: datalad get .)"), where)
        raise SeriesError("vanished", "is a link that leads nowhere", where)
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise SeriesError("vanished", f"cannot be read: {error.strerror}", where) from error
    if b"annex/objects/" in start:
        raise SeriesError("not_fetched", _fetch_with("git-annex", "git annex get . (or: datalad get .)"), where)
    if start.startswith(b"version https://git-lfs"):
        raise SeriesError("not_fetched", _fetch_with("Git LFS", "git lfs pull"), where)
    packed = start.startswith(b"\x1f\x8b")
    if packed and not name.endswith(".gz"):
        raise SeriesError("no_images", "is gzip-compressed but not named so; rename it to .nii.gz", where)
    if start and not packed and name.endswith(".gz"):
        raise SeriesError("no_images", "is named .gz but not compressed; if it is NIfTI, rename it to .nii", where)


def _fetch_with(tool: str, command: str) -> str:
    return f"is a pointer of {tool}: its content was not fetched; run in the data set's folder: {command}"


def _shape(image: Any, where: str) -> tuple[int, int, int]:
    """Return the size (i, j, k) of the one volume in a file."""
    shape, dtype = tuple(int(length) for length in image.shape), image.get_data_dtype()
    if dtype.fields is not None:
        raise SeriesError("colour", "holds colours, not one value a voxel", where)
    if dtype.kind not in "iufb":
        raise SeriesError("unsupported", f"holds values of type {dtype}, not real numbers", where)
    extra = int(np.prod(shape[3:])) if len(shape) > 3 else 1
    if extra > 1:
        raise SeriesError(
            "mixed_passes",
            f"is 4D, {'×'.join(map(str, shape))}: {extra} volumes, such as time points or echoes; keep one of them in "
            "a file of its own (fslroi IN OUT 0 1, or nibabel.four_to_three)",
            where,
        )
    if len(shape) < 3 or min(shape[:3]) < 2:
        told = f"is of {'×'.join(map(str, shape))} voxels; a volume needs two slices and more than a line in each"
        raise SeriesError("single_slice", told, where)
    i, j, k = shape[:3]
    size = i * j * k * max(dtype.itemsize, 2)
    if size > MAX_VOLUME_BYTES:
        raise SeriesError("too_large", f"{i} x {j} x {k} voxels take {size:,} bytes", where)
    return i, j, k


def placed(header: Any, shape: tuple[int, int, int], where: str) -> Placement:
    """Return where a volume lies by its sform or qform (NIfTI-1, "3D image orientation and location in space").

    Raises SeriesError (`no_geometry`).
    """
    forms = {}
    for name in ("sform", "qform"):
        try:
            matrix, code = getattr(header, f"get_{name}")(coded=True)
        # A quaternion whose squares sum to more than one.
        except (ValueError, HeaderDataError):
            continue
        if code and matrix is not None and np.isfinite(matrix).all() and abs(np.linalg.det(matrix[:3, :3])) > 1e-9:
            forms[name] = np.asarray(matrix, np.float64)
    if not forms:
        raise SeriesError(
            "no_geometry",
            "has neither an sform nor a qform, so that nothing tells left from right; convert it again from DICOM "
            "(dcm2niix), or write its affine if you know it",
            where,
        )
    codes = []
    sheared = {name: _shear(matrix) > SHEAR_TOLERANCE for name, matrix in forms.items()}
    if all(sheared.values()):
        raise SeriesError("no_geometry", "has axes that are not at right angles to each other in its slices", where)
    chosen = next(name for name in ("sform", "qform") if name in forms and not sheared[name])
    if len(forms) == 2 and not _agree(forms["sform"], forms["qform"], shape):
        codes.append("forms_disagree")
    scale, told = _unit_mm(header, forms[chosen], shape)
    affine = TO_LPS @ np.diag([scale, scale, scale, 1.0]) @ forms[chosen]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not all(SPACING_LIMITS_MM[0] <= value <= SPACING_LIMITS_MM[1] for value in spacing):
        raise SeriesError("no_geometry", f"has a spacing of {' x '.join(f'{value:g}' for value in spacing)} mm", where)
    if np.abs(affine[:3, 3]).max() > MAX_COORDINATE_MM:
        raise SeriesError("no_geometry", f"lies {np.abs(affine[:3, 3]).max():g} mm from the scanner's centre", where)
    return Placement(affine, tuple(codes + told))


def _shear(matrix: Affine) -> float:
    """Return the cosine between the two axes within a slice; slices themselves may be tilted."""
    row, column = matrix[:3, 1], matrix[:3, 0]
    return abs(float(row @ column)) / float(np.linalg.norm(row) * np.linalg.norm(column))


def _agree(one: Affine, other: Affine, shape: tuple[int, int, int]) -> bool:
    corners = np.array(np.meshgrid(*((0, length - 1) for length in shape), [1.0])).reshape(4, -1)
    apart = np.linalg.norm(((one - other) @ corners)[:3], axis=0).max()
    return bool(apart <= SAME_PLACE_VOXELS * np.linalg.norm(one[:3, :3], axis=0).min())


def _unit_mm(header: Any, matrix: Affine, shape: tuple[int, int, int]) -> tuple[float, list[str]]:
    """Return mm per unit of length, and a code where that is not 1; a unit that makes no head is not believed."""
    unit = UNIT_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    longest = float((np.linalg.norm(matrix[:3, :3], axis=0) * shape).max())
    if unit != 1.0 and HEAD_MM[0] <= longest * unit <= HEAD_MM[1] and not HEAD_MM[0] <= longest <= HEAD_MM[1]:
        return unit, ["units_converted"]
    return 1.0, []


def _values(
    raw: NDArray[Any], slope: float, intercept: float, *, background: int
) -> tuple[NDArray[np.int16] | NDArray[np.float32], list[str]]:
    """Return stored values (z, y, x) scaled: int16 where they are whole and fit, else float32; and quality codes."""
    if raw.dtype.kind in "iub" and (slope, intercept) == (1.0, 0.0):
        if np.can_cast(raw.dtype, np.int16) or (raw.max() <= 32767 and raw.min() >= -32768):
            return np.array(raw, np.int16, order="C"), []
        return np.array(raw, np.float32, order="C"), ["wide_range"]
    out = np.empty(raw.shape, np.float32)
    whole, finite = True, True
    for index, plane in enumerate(raw):
        values = plane * slope + intercept
        good = np.isfinite(values)
        if not good.all():
            finite = False
            values = np.where(good, values, background)
        with np.errstate(over="ignore"):
            out[index] = values
        whole = whole and bool((values == np.rint(values)).all())
    if not np.isfinite(out).all():
        out[~np.isfinite(out)] = background
        finite = False
    codes = [] if finite else ["not_finite"]
    if not whole:
        return out, codes
    if out.min() < -32768 or out.max() > 32767:
        return out, [*codes, "wide_range"]
    return out.astype(np.int16), codes


def _check_no_mask(voxels: NDArray[np.int16] | NDArray[np.float32], where: str) -> None:
    """Raise SeriesError for labels where an image should be: few whole values, none below 0."""
    if voxels.dtype != np.int16 or voxels.min() < 0:
        return
    seen = np.zeros(2**15, bool)
    for plane in voxels:
        seen[plane] = True
        if np.count_nonzero(seen) > MOST_LABELS:
            return
    values = np.flatnonzero(seen)
    some = ", ".join(map(str, values[:4])) + (", ..." if len(values) > 4 else "")
    raise SeriesError(
        "no_images",
        f"holds {len(values)} values alone ({some}), as a mask does and no scan; leave it out, or name it in the "
        "column mask of a series.csv",
        where,
    )


def _check_hounsfield(voxels: NDArray[np.int16] | NDArray[np.float32], where: str) -> None:
    """Raise SeriesError for a CT that cannot be in Hounsfield units: it has nothing below water, or air elsewhere."""
    if looks_like_hu(voxels):
        return
    lowest, highest = float(voxels.min()), float(voxels.max())
    if looks_like_hu(voxels, AIR_HU - OLD_AIR):
        told = f"has air at about {OLD_AIR}, not at -1000: it is not in Hounsfield units; subtract {-AIR_HU} from it"
    elif looks_like_hu(voxels, OLD_AIR - AIR_HU):
        told = f"has air at about {2 * AIR_HU}, not at -1000: it is not in Hounsfield units; add {-AIR_HU} to it"
    elif lowest >= 0:
        told = (
            f"has values from {lowest:g} to {highest:g}, none below 0, where Hounsfield units have fat and air: it was "
            "windowed or scaled, and cannot be a CT's; convert the DICOM files again, or say that it is MR"
        )
    else:
        return
    raise SeriesError("not_hounsfield", told, where)
