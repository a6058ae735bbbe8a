"""Decoders of compressed frames by transfer syntax; each fills one (rows, columns) array of 16-bit words.

Sizes in the codestream are compared with the header's before a decoder allocates anything by them. imagecodecs is used
directly because its decoders release the GIL and are 2-4 times faster than pydicom's default plugins.
"""

import struct
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.encaps import generate_frames

from aneurysm_ray.data.dicom.quality import BadFile

NATIVE = frozenset(
    str(syntax)
    for syntax in (
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
    )
)
"""Transfer syntaxes whose pixels are not compressed."""

MAX_TILES = 4096
"""Tiles of a JPEG 2000 image; slices have one, or a few hundred."""
RLE_SLACK = 4096
"""Bytes that an RLE segment may decode to beyond its pixels."""

Words = NDArray[np.int16]
_decoders: Any = imagecodecs  # its stubs allow bytes alone, its decoders take any buffer


def decode_jpeg(data: memoryview, out: Words, bits: int) -> None:
    """Decode JPEG baseline, extended or lossless (ISO 10918-1)."""
    precision = _jpeg_precision("JPEG", data, out, lossless_ls=False)
    _decode(_decoders.jpeg8_decode, data, precision, out, bits)


def decode_jpegls(data: memoryview, out: Words, bits: int) -> None:
    """Decode JPEG-LS (ISO 14495-1)."""
    precision = _jpeg_precision("JPEG-LS", data, out, lossless_ls=True)
    _decode(_decoders.jpegls_decode, data, precision, out, bits)


def decode_jpeg2000(data: memoryview, out: Words, bits: int) -> None:
    """Decode JPEG 2000, high throughput included (ISO 15444-1, -15)."""
    start = bytes(data[:4096]).find(b"\xff\x4f\xff\x51")  # a codestream may stand in a JP2 box
    if start < 0 or len(data) < start + 43:
        raise BadFile("unreadable_pixels", "has no JPEG 2000 codestream")
    x1, y1, x0, y0, tile_x, tile_y, _, _, parts, depth = struct.unpack_from(">8IHB", data, start + 8)
    _check_size("JPEG 2000", out, (y1 - y0, x1 - x0, parts))
    if tile_x < 1 or tile_y < 1 or (x1 // tile_x + 1) * (y1 // tile_y + 1) > MAX_TILES:
        raise BadFile("unreadable_pixels", f"has JPEG 2000 tiles of {tile_x} x {tile_y} pixels")
    _decode(_decode_codestream, data[start:], (depth & 0x7F) + 1, out, bits)


def _decode_codestream(data: memoryview, out: NDArray[np.uint16] | None = None) -> NDArray[Any]:
    return np.asarray(_decoders.jpeg2k_decode(data, out=out, numthreads=1))


def decode_rle(data: memoryview, out: Words, bits: int) -> None:
    """Decode RLE Lossless (PS3.5 annex G): one PackBits segment a byte plane, the most significant first."""
    count = bits // 8
    if len(data) < 64:
        raise BadFile("unreadable_pixels", "has an RLE frame shorter than its header")
    segments, *offsets = struct.unpack_from("<16I", data)
    if segments != count or any(not 64 <= offset < len(data) for offset in offsets[:count]):
        raise BadFile("unreadable_pixels", f"has {segments} RLE segments, {count} are right")
    planes = []
    for start, end in zip(offsets, [*offsets[1:count], len(data)], strict=False):
        # Writers pad segments, so that a decoder may find a few bytes after the last pixel.
        room = np.empty(out.size + RLE_SLACK, np.uint8)
        plane = np.asarray(_decoders.packbits_decode(data[start:end], out=room))[: out.size]
        if plane.size != out.size:
            raise BadFile("unreadable_pixels", f"has an RLE segment of {plane.size:,} pixels")
        planes.append(plane.reshape(out.shape))
    if count == 1:
        out[:] = planes[0]
    else:  # shifting is three times faster than writing every second byte
        words = np.left_shift(planes[0], 8, out=out.view(np.uint16), dtype=np.uint16)
        np.bitwise_or(words, planes[1], out=words)


def _decode(decoder: Callable[..., Any], data: memoryview, precision: int, out: Words, bits: int) -> None:
    """Decode into `out` itself where the decoder gives words, else by way of its bytes."""
    if not 1 <= precision <= bits:
        raise BadFile("unreadable_pixels", f"is compressed with {precision} bits, {bits} are allocated")
    if precision > 8:
        decoder(data, out=out.view(np.uint16))
    else:
        pixels = np.asarray(decoder(data))
        if pixels.shape != out.shape or pixels.dtype.itemsize != 1:
            raise BadFile("unreadable_pixels", f"decodes to {pixels.dtype} {pixels.shape}, not to bytes {out.shape}")
        out[:] = pixels


def _jpeg_precision(name: str, data: memoryview, out: Words, lossless_ls: bool) -> int:
    """Check the frame header (SOF) of a JPEG or JPEG-LS stream and return its bits a sample."""
    position = 2
    while position + 9 < len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        is_frame = marker == 0xF7 if lossless_ls else 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)
        if is_frame:
            precision: int
            precision, rows, columns, parts = struct.unpack_from(">BHHB", data, position + 4)
            _check_size(name, out, (rows, columns, parts))
            return precision
        position += 2 + struct.unpack_from(">H", data, position + 2)[0]
    raise BadFile("unreadable_pixels", f"has no {name} frame header")


def _check_size(name: str, out: Words, found: tuple[int, int, int]) -> None:
    if found != (*out.shape, 1):
        raise BadFile(
            "unreadable_pixels",
            f"has a {name} image of {found[0]} x {found[1]} x {found[2]} values, "
            f"{out.shape[0]} x {out.shape[1]} x 1 is right",
        )


CODECS: dict[str, Callable[[memoryview, Words, int], None]] = {
    str(uid.JPEGBaseline8Bit): decode_jpeg,
    str(uid.JPEGExtended12Bit): decode_jpeg,
    "1.2.840.10008.1.2.4.53": decode_jpeg,  # retired: spectral selection
    "1.2.840.10008.1.2.4.55": decode_jpeg,  # retired: full progression
    str(uid.JPEGLossless): decode_jpeg,
    str(uid.JPEGLosslessSV1): decode_jpeg,
    str(uid.JPEGLSLossless): decode_jpegls,
    str(uid.JPEGLSNearLossless): decode_jpegls,
    str(uid.JPEG2000Lossless): decode_jpeg2000,
    str(uid.JPEG2000): decode_jpeg2000,
    str(uid.HTJ2KLossless): decode_jpeg2000,
    str(uid.HTJ2KLosslessRPCL): decode_jpeg2000,
    str(uid.HTJ2K): decode_jpeg2000,
    str(uid.RLELossless): decode_rle,
}
"""Transfer syntax UID to decoder."""


def decode_frame(syntax: str, data: memoryview, out: Words, bits: int) -> None:
    """Decode one compressed frame into `out` (rows, columns); raises BadFile for whatever a decoder objects to.

    `bits` are those allocated, 8 or 16. Signed pixels of fewer bits come without sign extension. Where the code itself
    says that it is of another kind than the transfer syntax, the code is right.
    """
    decoder = kind_of(data) or CODECS[syntax]
    try:
        decoder(data, out, bits)
    except BadFile:
        raise
    except (Exception, MemoryError) as error:
        # imagecodecs has an exception class for each library.
        raise BadFile("unreadable_pixels", f"cannot be decoded: {type(error).__name__}: {str(error)[:100]}") from error


def kind_of(data: memoryview) -> Callable[[memoryview, Words, int], None] | None:
    """Return the decoder that a code's first bytes ask for, None where they tell nothing."""
    start = bytes(data[:12])
    if start.startswith(b"\xff\x4f\xff\x51") or start[4:8] == b"jP  ":
        return decode_jpeg2000
    if start.startswith(b"\xff\xd8\xff"):
        return decode_jpegls if _has_marker(data, 0xF7) else decode_jpeg
    if len(data) >= 64 and 1 <= start[0] <= 2 and start[1:8] == b"\0\0\0\x40\0\0\0":
        return decode_rle
    return None


def _has_marker(data: memoryview, wanted: int) -> bool:
    """Whether a JPEG stream's header holds a marker before its first scan."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != 0xDA:
        if data[position + 1] == wanted:
            return True
        position += 1 if data[position + 1] == 0xFF else 2 + struct.unpack_from(">H", data, position + 2)[0]
    return False


ITEM, SEQUENCE_END, TRAILING_PADDING = 0xE000_FFFE, 0xE0DD_FFFE, 0xFFFC_FFFC


def split_frames(value: bytes, frames: int, *, whole: bool) -> list[memoryview]:
    """Return the compressed frames of an encapsulated Pixel Data value (PS3.5 A.4); raises BadFile.

    `value` begins with the Basic Offset Table's item; what follows the last fragment is ignored. Writers leave out the
    delimiter at the end: where `value` is `whole`, the file ends there too, or goes on in zeros.
    """
    fragments: list[memoryview] = []
    view = memoryview(value)
    position = 0
    while position < len(value) or not whole:
        item, length = struct.unpack_from("<II", value, position) if position + 8 <= len(value) else (0, len(value))
        if item in (SEQUENCE_END, TRAILING_PADDING) or (len(fragments) > 1 and item == length == 0):
            break
        if item != ITEM or position + 8 + length > len(value):
            if frames > 1 and len(fragments) > 1:
                break  # those before the damage are whole
            raise BadFile("unreadable_pixels", "is truncated within a compressed frame")
        fragments.append(view[position + 8 : position + 8 + length])
        position += 8 + length
    if len(fragments) < 2:  # the first is the Basic Offset Table
        raise BadFile("unreadable_pixels", "has no compressed frame")
    if frames == 1:
        return [fragments[1] if len(fragments) == 2 else memoryview(b"".join(fragments[1:]))]
    if len(fragments) == frames + 1:
        return fragments[1:]
    complete = b"".join((value[:position], struct.pack("<II", SEQUENCE_END, 0)))
    try:
        return [memoryview(data) for data in generate_frames(complete, number_of_frames=frames)][:frames]
    except (Exception, MemoryError) as error:
        raise BadFile("unreadable_pixels", f"has damaged frames: {type(error).__name__}") from error
