"""Raw element values as text, numbers and UIDs, and the checks that a placed image must pass."""

import math
import re
import struct
from functools import lru_cache
from typing import TypeAlias

from aneurysm_ray.data.dicom.quality import BadFile
from aneurysm_ray.errors import shown

SPACING_LIMITS_MM = (0.01, 50.0)
"""Pixel and slice spacings outside are taken for damage."""
SLOPE_LIMITS = (1e-9, 1e9)
"""Magnitudes of a Rescale Slope within which float32 holds the result."""
MAX_COORDINATE_MM = 1e5
"""Positions farther from the origin are taken for damage."""
ORTHONORMAL_TOLERANCE = 1e-3
"""Direction cosines off by more are repaired with a note: 0.1 mm at the edge of a 200 mm image."""
MAX_TEXT_BYTES = 1024
"""What is read of a text; the longest wanted one, Image Type, has a few dozen."""
_SAFE_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Vector: TypeAlias = tuple[float, ...]


def checked_slope(slope: float) -> float:
    """Return a Rescale Slope that keeps the image; raises BadFile for 0, which wipes it out, or one beyond float32."""
    if not SLOPE_LIMITS[0] <= abs(slope) <= SLOPE_LIMITS[1]:
        raise BadFile("unreadable_pixels", f"has Rescale Slope {slope:g}")
    return slope


def checked_intercept(intercept: float) -> float:
    """Return a Rescale Intercept that leaves the image its steps; raises BadFile."""
    if abs(intercept) > SLOPE_LIMITS[1]:
        raise BadFile("unreadable_pixels", f"has Rescale Intercept {intercept:g}")
    return intercept


def checked_spacing(spacing: Vector | None) -> Vector:
    """Return a pixel spacing (y, x) in mm that can be true; raises BadFile."""
    if spacing is None:
        raise BadFile("no_geometry", "has no Pixel Spacing")
    if not all(SPACING_LIMITS_MM[0] <= value <= SPACING_LIMITS_MM[1] for value in spacing):
        raise BadFile("no_geometry", f"has Pixel Spacing {spacing[0]:g} x {spacing[1]:g} mm")
    return spacing


def checked_position(position: Vector) -> Vector:
    """Return a position in mm that can be true; raises BadFile."""
    if any(abs(value) > MAX_COORDINATE_MM for value in position):
        raise BadFile("no_geometry", f"has Image Position (Patient) {position}")
    return position


def orthonormal(cosines: Vector, notes: list[str]) -> Vector:
    """Return direction cosines made orthonormal, noting a visible repair; raises BadFile where they span no plane."""
    repaired, moved = _orthonormal(cosines)
    if moved > ORTHONORMAL_TOLERANCE:
        notes.append("orientation_repaired")
    return repaired


@lru_cache(maxsize=256)
def _orthonormal(cosines: Vector) -> tuple[Vector, float]:
    """Return orthonormal cosines and the largest change of one."""
    row, column = cosines[:3], cosines[3:]
    lengths = math.hypot(*row), math.hypot(*column)
    overlap = sum(r * c for r, c in zip(row, column, strict=True))
    if min(lengths) < 0.5 or max(lengths) > 2 or abs(overlap) > 0.5 * lengths[0] * lengths[1]:
        raise BadFile("no_geometry", f"has Image Orientation (Patient) {cosines}")
    square = [c - r * overlap / lengths[0] ** 2 for r, c in zip(row, column, strict=True)]
    repaired = (*(value / lengths[0] for value in row), *(value / math.hypot(*square) for value in square))
    return repaired, max(abs(a - b) for a, b in zip(repaired, cosines, strict=True))


def text(values: dict[int, bytes], tag: int) -> str:
    """Return an element as text without padding; empty where absent."""
    value = values.get(tag)
    return value[:MAX_TEXT_BYTES].decode("latin-1").strip("\0 ") if value else ""


def uid(values: dict[int, bytes], tag: int) -> str:
    """Return a UID, or a word that an anonymiser put there; empty where absent. Raises BadFile for what is neither."""
    value = text(values, tag)
    if value and not _SAFE_UID.fullmatch(value):
        raise BadFile("unsafe_path", f"has as a UID {shown(value)}")
    return value


def number(value: str, name: str) -> float:
    """Return a decimal string as a finite number; raises BadFile."""
    try:
        result = float(value)
    except ValueError:
        result = math.nan
    if not math.isfinite(result):
        raise BadFile("no_geometry", f"has as {name} {shown(value)}")
    return result


def vector(values: dict[int, bytes], tag: int, count: int) -> Vector | None:
    """Return `count` decimal strings as numbers, None where absent; raises BadFile for anything else."""
    raw = values.get(tag)
    if not raw:
        return None
    numbers = _numbers(raw[:MAX_TEXT_BYTES])
    if numbers is None:
        return None
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise BadFile(
            "no_geometry",
            f"has {shown(text(values, tag))} in ({tag >> 16:04x},{tag & 0xFFFF:04x}); {count} numbers are right",
        )
    return numbers


@lru_cache(maxsize=1024)
def _numbers(raw: bytes) -> Vector | None:
    """Return decimal strings as numbers, None where there is no text, nothing where it is no numbers.

    Slices share orientation and spacing, so that nearly all of this is asked again and again.
    """
    value = raw.decode("latin-1").strip("\0 ")
    if not value:
        return None
    try:
        return tuple(map(float, value.split("\\")))
    except ValueError:
        return ()


def short(values: dict[int, bytes], tag: int, order: str, absent: int) -> int:
    """Return an unsigned short, or `absent`."""
    value = values.get(tag)
    if value is None or len(value) < 2:
        return absent
    return int.from_bytes(value[:2], "little" if order == "<" else "big")


def integer(values: dict[int, bytes], tag: int) -> int:
    """Return an integer string, -1 where absent or damaged: it only ever breaks ties."""
    try:
        return int(text(values, tag) or -1)
    except ValueError:
        return -1


def decimal(values: dict[int, bytes], tag: int) -> float:
    """Return a decimal string, 0 where absent or damaged: it only ever tells images apart."""
    try:
        result = float(text(values, tag) or 0)
    except ValueError:
        return 0.0
    return result if math.isfinite(result) else 0.0


def double(values: dict[int, bytes], tag: int, order: str) -> float:
    """Return a binary double (VR FD), 0 where absent or damaged: it only ever tells images apart."""
    value = values.get(tag, b"")
    result = float(struct.unpack(f"{order}d", value)[0]) if len(value) == 8 else 0.0
    return result if math.isfinite(result) else 0.0
