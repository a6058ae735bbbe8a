"""A file's header as frames: one image in space each, with everything needed to place, choose and decode it."""

import struct
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import ExplicitVRLittleEndian, JPEGLosslessSV1

from aneurysm_ray.data.dicom import elements as tags
from aneurysm_ray.data.dicom.codecs import CODECS, NATIVE
from aneurysm_ray.data.dicom.elements import UNDEFINED
from aneurysm_ray.data.dicom.fields import (
    Vector,
    checked_intercept,
    checked_position,
    checked_slope,
    checked_spacing,
    decimal,
    double,
    integer,
    number,
    orthonormal,
    short,
    text,
    uid,
    vector,
)
from aneurysm_ray.data.dicom.header import RawHeader
from aneurysm_ray.data.dicom.quality import BadFile
from aneurysm_ray.errors import shown

MAX_PIXELS = 2**24
"""Rows x columns of one frame: 4096 x 4096; slices have at most 2048 x 2048."""
MAX_FRAMES = 5_000
"""Frames of one file; the largest of the competition has about 500."""
MAX_FILE_PIXELS = 2**30
"""Pixels of all frames of a file: 4,096 frames of 512 x 512."""
_MODALITY_OF_CLASS = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
}


# A series has hundreds of these, and a frozen dataclass takes four times as long to make: 6 us a slice.
@dataclass(slots=True)
class Stored:
    """How and where the pixels of a file are stored. Nothing changes one."""

    path: str
    body: bytes | None
    """The inflated file where the pixels are in memory already."""
    syntax: str
    little_endian: bool
    words: bool
    """Pixel Data has VR OW: bytes of a big-endian file are swapped in pairs even for 8-bit pixels."""
    offset: int
    length: int | None
    """Bytes of Pixel Data; None where encapsulated."""
    size: int
    rows: int
    columns: int
    frames: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    padding: tuple[int, int] | None
    """Smallest and largest stored value that mean: outside the scanned field."""
    inverted: bool
    largest: int = 0
    """Largest Image Pixel Value, 0 where it is not said."""
    lut: tuple[int, NDArray[np.int64]] | None = None
    """Modality LUT: first stored value mapped, and the entries."""


@dataclass(slots=True)
class Frame:
    """One image in space. Nothing changes one; `replace` makes another."""

    stored: Stored
    index: int
    """Frame of the file, from 0."""
    series_uid: str
    sop_uid: str
    modality: str
    patient_id: str
    kind: tuple[str, ...]
    """Image Type (0008,0008), or Frame Type of a multi-frame file."""
    position_mm: Vector | None
    orientation: Vector | None
    """Direction cosines of a row and of a column, six numbers, orthonormal."""
    spacing_mm: Vector
    """Between rows and between columns: (y, x)."""
    slice_location_mm: float | None
    slope: float
    intercept: float
    acquisition: int
    instance: int
    temporal: int
    echo_ms: float
    b_value: float
    marks: tuple[bytes | None, ...]
    """Values of `elements.PASS_TAGS` as they were written."""
    notes: tuple[str, ...]
    """Keys of QUALITY that hold for this frame."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.stored.rows, self.stored.columns


PHOTOMETRICS = frozenset(
    {
        *("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB"),
        *("YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT"),
    }
)
"""Photometric Interpretations that DICOM defines (PS3.3 C.7.6.3.1.2)."""


def describe_pixels(path: str, raw: RawHeader, notes: list[str], *, alone: bool = False) -> Stored:
    """Return how a file's pixels are stored; raises BadFile for no greyscale slice or missing pixels.

    A file that is `alone` may be a multi-frame one that says nothing of it, and its length tells.
    """
    values, order = raw.values, "<" if raw.little_endian else ">"
    samples = short(values, tags.SAMPLES_PER_PIXEL, order, 1)
    photometric = text(values, tags.PHOTOMETRIC).upper() or "MONOCHROME2"
    if samples != 1 or not photometric.startswith("MONOCHROME"):
        # Messages end in tables: a word of the file is repeated only where DICOM defines it (PS3.3 C.7.6.3.1.2).
        named = photometric if photometric in PHOTOMETRICS else "an unknown Photometric Interpretation"
        raise BadFile("colour", f"has {samples} samples a pixel, {named}")
    rows, columns = short(values, tags.ROWS, order, 0), short(values, tags.COLUMNS, order, 0)
    if rows < 1 or columns < 1 or rows * columns > MAX_PIXELS:
        raise BadFile("no_images", f"has {rows} rows and {columns} columns")
    allocated = short(values, tags.BITS_ALLOCATED, order, 0)
    bits = short(values, tags.BITS_STORED, order, allocated)
    high_bit = short(values, tags.HIGH_BIT, order, bits - 1)
    if allocated not in (8, 16) or not 1 <= bits <= allocated:
        raise BadFile("unsupported", f"has {bits} bits stored in {allocated} allocated")
    if not bits - 1 <= high_bit < allocated:
        high_bit = bits - 1
    if raw.syntax not in CODECS and raw.syntax not in NATIVE:
        raise BadFile("unsupported", f"has transfer syntax {shown(raw.syntax)}")
    encapsulated = raw.pixel_length == UNDEFINED
    syntax = raw.syntax
    if encapsulated != (syntax in CODECS):
        # Archives decompress and compress without changing the file meta information: what is there counts. The code
        # itself says which it is, see `codecs.kind_of`.
        syntax = str(JPEGLosslessSV1) if encapsulated else str(ExplicitVRLittleEndian)
        notes.append("syntax_misnamed")
    frames = _frame_count(raw, encapsulated, notes, rows * columns * allocated // 8 if alone else 0)
    if frames > MAX_FRAMES or rows * columns * frames > MAX_FILE_PIXELS:
        raise BadFile("too_large", f"has {frames:,} frames of {rows} x {columns} pixels")
    _check_length(raw, rows * columns * allocated // 8 * frames, frames, encapsulated)
    signed = short(values, tags.PIXEL_REPRESENTATION, order, 0) == 1
    if photometric == "MONOCHROME1":
        notes.append("monochrome1")
    inverted = text(values, tags.PRESENTATION_LUT_SHAPE).upper() == "INVERSE"
    if inverted:
        notes.append("inverted")
    return Stored(
        path=path,
        body=raw.body,
        syntax=syntax,
        little_endian=raw.little_endian,
        words=raw.pixel_vr == b"OW" or raw.pixel_vr == b"",
        offset=raw.pixel_offset,
        length=None if encapsulated else raw.pixel_length,
        size=raw.size,
        rows=rows,
        columns=columns,
        frames=frames,
        bits_allocated=allocated,
        bits_stored=bits,
        high_bit=high_bit,
        signed=signed,
        padding=_padding(values, order, allocated, signed),
        inverted=inverted,
        largest=short(values, tags.LARGEST_VALUE, order, 0),
        lut=_modality_lut(raw, signed, notes),
    )


def _frame_count(raw: RawHeader, encapsulated: bool, notes: list[str], frame_bytes: int) -> int:
    """Return Number of Frames, or what functional groups or the pixel data's length imply where it is missing.

    The length counts only where `frame_bytes` is not 0: slices of a series may have bytes behind their pixels.
    """
    declared = text(raw.values, tags.NUMBER_OF_FRAMES)
    if declared:
        frames = int(number(declared, "Number of Frames"))
        if frames < 1:
            raise BadFile("no_images", f"has Number of Frames {shown(declared)}")
        return frames
    implied = 1
    if raw.dataset is not None and tags.PER_FRAME_GROUPS in raw.dataset:
        implied = len(raw.dataset[tags.PER_FRAME_GROUPS].value)
    elif frame_bytes and not encapsulated and raw.pixel_length % frame_bytes == 0:
        implied = raw.pixel_length // frame_bytes
    if implied > 1:
        notes.append("frames_assumed")
    return max(implied, 1)


def _check_length(raw: RawHeader, expected: int, frames: int, encapsulated: bool) -> None:
    """Refuse pixel data that the file cannot hold, before any memory is taken for it."""
    available = raw.size - raw.pixel_offset
    if encapsulated:
        # The smallest fragment is an 8-byte item; the emptiest slice shrinks to a 5000th.
        if frames > available // 8 or expected > available * 10_000:
            raise BadFile("unreadable_pixels", f"claims {frames:,} frames in {available:,} bytes")
    elif raw.pixel_length == UNDEFINED or raw.pixel_length > available:
        raise BadFile(
            "unreadable_pixels",
            f"is truncated: Pixel Data is {raw.pixel_length:,} bytes long, {max(available, 0):,} are there",
        )
    elif expected > raw.pixel_length:
        raise BadFile("unreadable_pixels", f"has {raw.pixel_length:,} bytes of Pixel Data, {expected:,} are needed")


def _padding(values: dict[int, bytes], order: str, allocated: int, signed: bool) -> tuple[int, int] | None:
    """Return the range of padding (PS3.3 C.7.5.1.1.2), with the sign of the pixels whatever the element's VR says."""
    if len(values.get(tags.PADDING_VALUE, b"")) < 2:
        return None
    code = f"{order}{'h' if signed else 'H'}"
    ends = [
        struct.unpack_from(code, values[tag])[0]
        for tag in (tags.PADDING_VALUE, tags.PADDING_LIMIT)
        if len(values.get(tag, b"")) >= 2
    ]
    return min(ends), max(ends)


def _modality_lut(raw: RawHeader, signed: bool, notes: list[str]) -> tuple[int, NDArray[np.int64]] | None:
    """Return the Modality LUT (PS3.3 C.11.1.1.1) as first mapped value and entries."""
    if raw.dataset is None or tags.MODALITY_LUT not in raw.dataset or not raw.dataset[tags.MODALITY_LUT].value:
        return None
    item = raw.dataset[tags.MODALITY_LUT].value[0]
    count, first, bits = (int(value) for value in item.LUTDescriptor)
    data = item.LUTData
    if isinstance(data, bytes):
        kind = f"{'<' if raw.little_endian else '>'}u2"
        entries = np.frombuffer(data, np.uint8 if bits == 8 and len(data) < 2 * (count or 65536) else kind)
    else:
        entries = np.asarray(data)
    if signed and first > 0x7FFF:
        first -= 0x1_0000
    if len(entries) < 1:
        raise BadFile("unreadable_pixels", "has an empty Modality LUT")
    notes.append("modality_lut")
    return first, entries.astype(np.int64)


_DERIVED_CLASSES = {
    b"1.2.840.10008.5.1.4.1.1.30": "a parametric map",
    b"1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    b"1.2.840.10008.5.1.4.1.1.66.7": "a label map",
    b"1.2.840.10008.5.1.4.1.1.481.2": "a dose map",
}
_DERIVED_MODALITIES = {
    **{b"SEG": "a segmentation", b"RTDOSE": "a dose map", b"RTSTRUCT": "a set of contours", b"REG": "a registration"},
    **{b"PR": "a presentation state", b"KO": "a selection of images", b"SR": "a report", b"DOC": "a document"},
}


def refuse_derived(raw: RawHeader) -> None:
    """Raise BadFile for an object that was made of images and is none, though it may have pixels and positions."""
    sop_class, modality = raw.values.get(tags.SOP_CLASS_UID), raw.values.get(tags.MODALITY)
    if _derived_name(sop_class, modality):
        raise BadFile("derived_objects", f"is {_derived_name(sop_class, modality)}, no image")


@lru_cache(maxsize=64)
def _derived_name(sop_class: bytes | None, modality: bytes | None) -> str:
    """Return what a derived object is, empty for an image."""
    known = _DERIVED_CLASSES.get((sop_class or b"")[:64].strip(b"\0 "))
    return known or _DERIVED_MODALITIES.get((modality or b"")[:64].strip(b"\0 ").upper(), "")


def image_type(raw: RawHeader) -> tuple[str, ...]:
    """Return Image Type in capitals; raises BadFile for a mosaic, whose slices have no places of their own."""
    kind = tuple(part.strip() for part in text(raw.values, tags.IMAGE_TYPE).upper().split("\\"))
    if "MOSAIC" in kind:
        raise BadFile("unsupported", "is a mosaic of slices (Image Type MOSAIC)")
    return kind


def describe_frame(stored: Stored, raw: RawHeader, kind: tuple[str, ...], notes: list[str], grouped: bool) -> Frame:
    """Return the frame that a file's top level describes; raises BadFile for numbers that cannot be.

    Where functional groups follow (`grouped`), pixel spacing and rescale may be left to them.
    """
    values = raw.values
    slope, intercept, rescaled = _rescale(values.get(tags.RESCALE_SLOPE), values.get(tags.RESCALE_INTERCEPT))
    modality = text(values, tags.MODALITY).upper() or _MODALITY_OF_CLASS.get(text(values, tags.SOP_CLASS_UID), "")
    if modality == "CT" and not rescaled and not grouped and stored.lut is None:
        notes.append("rescale_assumed")
    orientation = vector(values, tags.IMAGE_ORIENTATION, 6)
    position = vector(values, tags.IMAGE_POSITION, 3)
    location = text(values, tags.SLICE_LOCATION)
    spacing = vector(values, tags.PIXEL_SPACING, 2)
    return Frame(
        stored=stored,
        index=0,
        series_uid=uid(values, tags.SERIES_INSTANCE_UID),
        sop_uid=text(values, tags.SOP_INSTANCE_UID),
        modality=modality,
        patient_id=text(values, tags.PATIENT_ID),
        kind=kind,
        position_mm=None if position is None else checked_position(position),
        orientation=None if orientation is None else orthonormal(orientation, notes),
        spacing_mm=(spacing or ()) if grouped else checked_spacing(spacing),
        slice_location_mm=number(location, "Slice Location") if location else None,
        slope=slope,
        intercept=intercept,
        acquisition=integer(values, tags.ACQUISITION_NUMBER),
        instance=integer(values, tags.INSTANCE_NUMBER),
        temporal=integer(values, tags.TEMPORAL_POSITION),
        echo_ms=decimal(values, tags.ECHO_TIME),
        b_value=double(values, tags.B_VALUE, "<" if raw.little_endian else ">"),
        marks=tuple(map(values.get, tags.PASS_TAGS)),
        notes=tuple(notes),
    )


@lru_cache(maxsize=1024)
def _rescale(raw_slope: bytes | None, raw_intercept: bytes | None) -> tuple[float, float, bool]:
    values = {tags.RESCALE_SLOPE: raw_slope or b"", tags.RESCALE_INTERCEPT: raw_intercept or b""}
    slope, intercept = text(values, tags.RESCALE_SLOPE), text(values, tags.RESCALE_INTERCEPT)
    factor = number(slope, "Rescale Slope") if slope else 1.0
    offset = number(intercept, "Rescale Intercept") if intercept else 0.0
    return checked_slope(factor), checked_intercept(offset), bool(slope or intercept)
