"""Decoders of compressed frames by transfer syntax; each gives back one (rows, columns) array of 8 or 16 bits.

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

from aneurysm_ray.data.dicom.problems import BadFile

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

Pixels = NDArray[Any]


def decode_jpeg(data: bytes, rows: int, columns: int, bits: int) -> Pixels:
    """Decode JPEG baseline, extended or lossless (ISO 10918-1)."""
    _check_size("JPEG", rows, columns, _jpeg_size(data, lossless_ls=False))
    return np.asarray(imagecodecs.jpeg8_decode(data))


def decode_jpegls(data: bytes, rows: int, columns: int, bits: int) -> Pixels:
    """Decode JPEG-LS (ISO 14495-1)."""
    _check_size("JPEG-LS", rows, columns, _jpeg_size(data, lossless_ls=True))
    return np.asarray(imagecodecs.jpegls_decode(data))


def decode_jpeg2000(data: bytes, rows: int, columns: int, bits: int) -> Pixels:
    """Decode JPEG 2000, high throughput included (ISO 15444-1, -15)."""
    start = data.find(b"\xff\x4f\xff\x51", 0, 4096)  # a codestream may stand in a JP2 box
    if start < 0 or len(data) < start + 42:
        raise BadFile("unreadable_pixels", "has no JPEG 2000 codestream")
    x1, y1, x0, y0, tile_x, tile_y, _, _, parts = struct.unpack_from(">8IH", data, start + 8)
    _check_size("JPEG 2000", rows, columns, (y1 - y0, x1 - x0, parts))
    if tile_x < 1 or tile_y < 1 or (x1 // tile_x + 1) * (y1 // tile_y + 1) > 4096:
        raise BadFile("unreadable_pixels", f"has JPEG 2000 tiles of {tile_x} x {tile_y} pixels")
    return np.asarray(imagecodecs.jpeg2k_decode(data[start:] if start else data, numthreads=1))


def decode_rle(data: bytes, rows: int, columns: int, bits: int) -> Pixels:
    """Decode RLE Lossless (PS3.5 annex G): one PackBits segment a byte plane, the most significant first."""
    count = bits // 8
    if len(data) < 64:
        raise BadFile("unreadable_pixels", "has an RLE frame shorter than its header")
    segments, *offsets = struct.unpack_from("<16I", data)
    if segments != count or any(not 64 <= offset < len(data) for offset in offsets[:count]):
        raise BadFile("unreadable_pixels", f"has {segments} RLE segments, {count} are right")
    ends = [*offsets[1:count], len(data)]
    out = np.empty((rows * columns, count), np.uint8)
    for plane, (start, end) in enumerate(zip(offsets, ends, strict=False)):
        decoded = imagecodecs.packbits_decode(data[start:end], out=rows * columns)
        if len(decoded) != rows * columns:
            raise BadFile("unreadable_pixels", f"has an RLE segment of {len(decoded):,} pixels")
        out[:, count - 1 - plane] = np.frombuffer(decoded, np.uint8)
    return out.reshape(-1).view(np.uint8 if count == 1 else "<u2").reshape(rows, columns)


def _jpeg_size(data: bytes, lossless_ls: bool) -> tuple[int, int, int]:
    """Return rows, columns and components from the frame header (SOF) of a JPEG or JPEG-LS stream."""
    position = 2
    while position + 9 < len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        is_frame = marker == 0xF7 if lossless_ls else 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)
        if is_frame:
            rows, columns, parts = struct.unpack_from(">HHB", data, position + 5)
            return rows, columns, parts
        position += 2 + struct.unpack_from(">H", data, position + 2)[0]
    raise BadFile("unreadable_pixels", "has no JPEG frame header")


def _check_size(name: str, rows: int, columns: int, found: tuple[int, int, int]) -> None:
    if found != (rows, columns, 1):
        raise BadFile(
            "unreadable_pixels",
            f"has a {name} image of {found[0]} x {found[1]} x {found[2]} values, {rows} x {columns} x 1 is right",
        )


CODECS: dict[str, Callable[[bytes, int, int, int], Pixels]] = {
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


def decode_frame(syntax: str, data: bytes, rows: int, columns: int, bits: int) -> Pixels:
    """Decode one compressed frame to (rows, columns); raises BadFile for whatever a decoder objects to."""
    try:
        pixels = CODECS[syntax](data, rows, columns, bits)
    except BadFile:
        raise
    except (Exception, MemoryError) as error:
        # imagecodecs has an exception class for each library.
        raise BadFile("unreadable_pixels", f"cannot be decoded: {type(error).__name__}: {str(error)[:100]}") from error
    if pixels.shape != (rows, columns) or pixels.dtype.itemsize > bits // 8 or pixels.dtype.kind not in "iu":
        raise BadFile(
            "unreadable_pixels", f"decodes to {pixels.dtype} {pixels.shape}, not to {bits} bits {(rows, columns)}"
        )
    return pixels


def split_frames(value: bytes, frames: int) -> list[bytes]:
    """Return the compressed frames of an encapsulated Pixel Data value (PS3.5 A.4); raises BadFile.

    `value` begins with the Basic Offset Table's item; what follows the last fragment is ignored.
    """
    if frames > 1:
        try:
            return list(generate_frames(value, number_of_frames=frames))[:frames]
        except (Exception, MemoryError) as error:
            raise BadFile("unreadable_pixels", f"has damaged frames: {error}") from error
    fragments = []
    position = 0
    while True:
        if position + 8 > len(value):
            raise BadFile("unreadable_pixels", "is truncated within a compressed frame")
        item, length = struct.unpack_from("<II", value, position)
        position += 8
        if item == 0xE0DD_FFFE:
            break
        if item != 0xE000_FFFE or position + length > len(value):
            raise BadFile("unreadable_pixels", "is truncated within a compressed frame")
        fragments.append(value[position : position + length])
        position += length
    if len(fragments) < 2:  # the first is the Basic Offset Table
        raise BadFile("unreadable_pixels", "has no compressed frame")
    return [fragments[1] if len(fragments) == 2 else b"".join(fragments[1:])]
