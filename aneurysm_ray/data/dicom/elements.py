"""Find the wanted elements of a little-endian DICOM data set without parsing the rest.

The walk costs a few microseconds where pydicom takes hundreds, because a header has 100-300 elements and a volume needs
30 of them. It knows the two common encodings (PS3.5 7.1: explicit and implicit VR, little endian); whatever looks odd
raises `Odd`, and pydicom reads that file instead.
"""

import struct
from collections.abc import Iterator

from aneurysm_ray.data.dicom.quality import Odd

TRANSFER_SYNTAX = 0x0002_0010
IMAGE_TYPE = 0x0008_0008
ACQUISITION_DATETIME = 0x0008_002A
ACQUISITION_TIME = 0x0008_0032
CONTENT_TIME = 0x0008_0033
SOP_CLASS_UID = 0x0008_0016
SOP_INSTANCE_UID = 0x0008_0018
MODALITY = 0x0008_0060
COMPLEX_COMPONENT = 0x0008_9208
PATIENT_ID = 0x0010_0020
CONTRAST_AGENT = 0x0018_0010
SLICE_THICKNESS = 0x0018_0050
KVP = 0x0018_0060
ECHO_TIME = 0x0018_0081
INVERSION_TIME = 0x0018_0082
SPACING_BETWEEN_SLICES = 0x0018_0088
TRIGGER_TIME = 0x0018_1060
KERNEL = 0x0018_1210
FLIP_ANGLE = 0x0018_1314
B_VALUE = 0x0018_9087
SERIES_INSTANCE_UID = 0x0020_000E
SERIES_NUMBER = 0x0020_0011
ACQUISITION_NUMBER = 0x0020_0012
INSTANCE_NUMBER = 0x0020_0013
IMAGE_POSITION = 0x0020_0032
IMAGE_ORIENTATION = 0x0020_0037
TEMPORAL_POSITION = 0x0020_0100
SLICE_LOCATION = 0x0020_1041
SAMPLES_PER_PIXEL = 0x0028_0002
PHOTOMETRIC = 0x0028_0004
NUMBER_OF_FRAMES = 0x0028_0008
ROWS = 0x0028_0010
COLUMNS = 0x0028_0011
PIXEL_SPACING = 0x0028_0030
BITS_ALLOCATED = 0x0028_0100
BITS_STORED = 0x0028_0101
HIGH_BIT = 0x0028_0102
PIXEL_REPRESENTATION = 0x0028_0103
LARGEST_VALUE = 0x0028_0107
PADDING_VALUE = 0x0028_0120
PADDING_LIMIT = 0x0028_0121
RESCALE_INTERCEPT = 0x0028_1052
RESCALE_SLOPE = 0x0028_1053
RESCALE_TYPE = 0x0028_1054
PRESENTATION_LUT_SHAPE = 0x2050_0020
PIXEL_DATA = 0x7FE0_0010

MODALITY_LUT = 0x0028_3000
SHARED_GROUPS = 0x5200_9229
PER_FRAME_GROUPS = 0x5200_9230
FLOAT_PIXELS = 0x7FE0_0008
DOUBLE_PIXELS = 0x7FE0_0009

PASS_TAGS = (
    *(SERIES_NUMBER, RESCALE_TYPE, KERNEL, CONTRAST_AGENT, KVP, INVERSION_TIME, FLIP_ANGLE, TRIGGER_TIME),
    *(SLICE_THICKNESS, ACQUISITION_DATETIME, ACQUISITION_TIME, CONTENT_TIME),
)
"""Elements that tell the passes of a series apart; a frame keeps them as they were written."""

WANTED = frozenset(
    (
        *(IMAGE_TYPE, SOP_CLASS_UID, SOP_INSTANCE_UID, MODALITY, COMPLEX_COMPONENT, PATIENT_ID),
        *(SLICE_THICKNESS, ECHO_TIME, SPACING_BETWEEN_SLICES, B_VALUE, SERIES_INSTANCE_UID, ACQUISITION_NUMBER),
        *(INSTANCE_NUMBER, IMAGE_POSITION, IMAGE_ORIENTATION, TEMPORAL_POSITION, SLICE_LOCATION),
        *(SAMPLES_PER_PIXEL, PHOTOMETRIC, NUMBER_OF_FRAMES, ROWS, COLUMNS, PIXEL_SPACING, BITS_ALLOCATED),
        *(BITS_STORED, HIGH_BIT, PIXEL_REPRESENTATION, PADDING_VALUE, PADDING_LIMIT, RESCALE_INTERCEPT),
        *(RESCALE_SLOPE, PRESENTATION_LUT_SHAPE, LARGEST_VALUE),
        *PASS_TAGS,
    )
)
"""Elements with a plain value that a volume needs."""
LEFT_TO_PYDICOM = (MODALITY_LUT, SHARED_GROUPS, PER_FRAME_GROUPS, FLOAT_PIXELS, DOUBLE_PIXELS)
"""Elements whose presence makes a file odd."""

UNDEFINED = 0xFFFF_FFFF
MAX_ELEMENTS = 20_000
"""Elements the lean walk steps over before it gives up; real headers have a few hundred."""


class Short(Exception):
    """The buffer ends before the header does."""


def _as_read(tag: int) -> int:
    """Return a tag as one little-endian 32-bit word reads: element in the high half, group in the low."""
    return (tag & 0xFFFF) << 16 | tag >> 16


_WANTED = {_as_read(tag): tag for tag in WANTED}
_ODD = frozenset(_as_read(tag) for tag in LEFT_TO_PYDICOM)
_PIXEL_DATA = _as_read(PIXEL_DATA)
_ITEM, _ITEM_END, _SEQUENCE_END = (_as_read(tag) for tag in (0xFFFE_E000, 0xFFFE_E00D, 0xFFFE_E0DD))


def _vrs(names: bytes) -> frozenset[int]:
    """Return VRs as the 16-bit words they read as: comparing numbers makes no bytes object for each element."""
    return frozenset(int.from_bytes(name, "little") for name in names.split())


_SHORT_VRS = _vrs(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US")
_LONG_VRS = _vrs(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV")
(_SEQUENCE,) = _vrs(b"SQ")
_EXPLICIT = struct.Struct("<IHH").unpack_from
_IMPLICIT = struct.Struct("<II").unpack_from
_LENGTH = struct.Struct("<I").unpack_from


def walk(head: bytes, position: int, explicit: bool) -> tuple[dict[int, bytes], int, int, bytes]:
    """Step over the elements from `position` up to Pixel Data.

    Returns the raw values of the wanted elements, and Pixel Data's offset, length (UNDEFINED where encapsulated) and
    VR. Raises Short where `head` ends first, Odd for anything left to pydicom.
    """
    values: dict[int, bytes] = {}
    wanted, short_vrs, read_explicit = _WANTED, _SHORT_VRS, _EXPLICIT  # locals: a quarter of the walk's time
    try:
        for _ in range(MAX_ELEMENTS):
            if explicit:
                tag, vr, length = read_explicit(head, position)
                if vr in short_vrs:  # nine elements of ten, so nothing is called for them
                    position += 8
                    if tag in wanted:  # cut short by the end of `head`, it is found out at the next element
                        values[wanted[tag]] = head[position : position + length]
                    position += length
                    continue
            tag, vr, length, position = _element(head, position, explicit)
            if tag in wanted:
                end = position + length
                if end > len(head):
                    raise Short
                values[wanted[tag]] = head[position:end]
                position = end
            elif tag == _PIXEL_DATA:
                return values, position, length, struct.pack("<H", vr) if explicit else b""
            elif tag in _ODD:
                raise Odd
            elif length == UNDEFINED:
                position = _skip(head, position, explicit)
            else:
                position += length
    except struct.error:
        raise Short from None
    raise Odd


def value_places(head: bytes, position: int, end: int, explicit: bool) -> Iterator[tuple[int, slice]]:
    """Yield tag and place of every value between `position` and `end`, which is the place of the last one.

    Sequences of undefined length are stepped over. Raises Odd or struct.error where the walk would.
    """
    while True:
        word, _, length, position = _element(head, position, explicit)
        if position >= end:
            return
        if length == UNDEFINED:
            position = _skip(head, position, explicit)
        else:
            yield _as_read(word), slice(position, position + length)
            position += length


def _element(head: bytes, position: int, explicit: bool) -> tuple[int, int, int, int]:
    """Return tag, VR, length and the position of the value."""
    if not explicit:
        tag, length = _IMPLICIT(head, position)
        return tag, 0, length, position + 8
    tag, vr, length = _EXPLICIT(head, position)
    if vr in _SHORT_VRS:
        return tag, vr, length, position + 8
    if vr in _LONG_VRS:
        return tag, vr, _LENGTH(head, position + 8)[0], position + 12
    raise Odd


def _skip(head: bytes, position: int, explicit: bool) -> int:
    """Return the position after a sequence of undefined length; nested ones are counted, not recursed into."""
    depth = 1
    for _ in range(MAX_ELEMENTS):
        tag, length = _IMPLICIT(head, position)
        if tag in (_ITEM, _ITEM_END, _SEQUENCE_END):
            position += 8
            if tag == _SEQUENCE_END:
                depth -= 1
                if depth == 0:
                    return position
            elif tag == _ITEM and length != UNDEFINED:
                position += length
            continue
        tag, vr, length, position = _element(head, position, explicit)
        if length != UNDEFINED:
            position += length
        elif explicit and vr != _SEQUENCE:
            raise Odd
        else:
            depth += 1
    raise Odd
