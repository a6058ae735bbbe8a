"""Stored pixel values of a file's frames, read or decoded straight into their place in the volume."""

import os
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.data.dicom.codecs import CODECS, Words, decode_frame, split_frames
from aneurysm_ray.data.dicom.files import OpenFiles, read_at
from aneurysm_ray.data.dicom.frames import Frame, Stored
from aneurysm_ray.data.dicom.quality import BadFile

Readable = int | bytes


class Extremes(NamedTuple):
    """Smallest and largest stored value."""

    smallest: int
    largest: int
    masked: bool = False
    """Bits above Bits Stored were set, and cleared."""
    wider: bool = False
    """Values need more bits than Bits Stored says, and were kept."""


class OpenPixels:
    """The pixels of one file, open for reading frame after frame; compressed frames are split once."""

    def __init__(self, stored: Stored, files: OpenFiles) -> None:
        """Open a file's pixels; raises BadFile where the file is not what its header was read from."""
        self.stored = stored
        self._compressed: list[memoryview] | None = None
        self._source: Readable
        if stored.body is not None:
            self._source = stored.body
            return
        file = files.open(stored.path)
        if file.size != stored.size:
            raise BadFile("vanished", "changed while it was read")
        self._source = file.descriptor

    def read(self, index: int, out: Words) -> Extremes:
        """Fill `out` (rows, columns) with a frame's stored values as 16-bit two's complement; raises BadFile.

        Unsigned values above 32767 appear as their bit pattern; the result has the true extremes.
        """
        if self.stored.syntax in CODECS:
            self._read_compressed(index, out)
        else:
            _read_native(self.stored, self._source, index, out)
        return _settle_bits(self.stored, out)

    def _read_compressed(self, index: int, out: Words) -> None:
        stored = self.stored
        if self._compressed is None:
            # No lossless code of a slice is longer than twice its pixels; what else the file holds is not read.
            most = 2 * stored.frames * stored.rows * stored.columns * stored.bits_allocated // 8 + 2**20
            there = stored.size - stored.offset
            value = read_at(self._source, stored.offset, min(there, most))
            self._compressed = split_frames(value, stored.frames, whole=there <= most)
        if index >= len(self._compressed):
            raise BadFile("unreadable_pixels", f"has {len(self._compressed)} compressed frames of {stored.frames}")
        decode_frame(stored.syntax, self._compressed[index], out, stored.bits_allocated)


def _read_native(stored: Stored, source: Readable, index: int, out: Words) -> None:
    count = stored.rows * stored.columns * stored.bits_allocated // 8
    offset = stored.offset + index * count
    if stored.bits_allocated == 16:
        if isinstance(source, bytes):
            out[:] = np.frombuffer(source, np.int16, out.size, offset).reshape(out.shape)
        elif os.preadv(source, [out.data.cast("B")], offset) != count:
            raise BadFile("unreadable_pixels", "is truncated within its pixels")
        if not stored.little_endian:
            out.byteswap(inplace=True)
    elif stored.little_endian or not stored.words:
        out[:] = np.frombuffer(read_at(source, offset, count), np.uint8).reshape(out.shape)
    else:  # PS3.5 A.3: bytes of a big-endian OW are swapped in pairs, counted from the start of Pixel Data
        start = offset - index * count % 2
        pairs = np.frombuffer(read_at(source, start, (count + 3) // 2 * 2), np.uint16).byteswap()
        out[:] = pairs.view(np.uint8)[offset - start : offset - start + count].reshape(out.shape)


def _settle_bits(stored: Stored, out: Words) -> Extremes:
    """Bring words to their stored value: shifted to High Bit, cleared above Bits Stored, sign-extended.

    Values that need more bits than Bits Stored allows are either something else in these bits, such as an overlay, or
    an image whose header is wrong. An image is smooth: the reading with the smaller steps between neighbours is right.
    """
    bits, unsigned = stored.bits_stored, out.view(np.uint16)
    shift = stored.high_bit + 1 - bits if stored.syntax not in CODECS else 0
    # The standard of today allows no shift, and most files that claim one have a wrong High Bit: the low bits tell.
    if shift and not np.bitwise_and(unsigned, (1 << shift) - 1).any():
        np.right_shift(unsigned, shift, out=unsigned)
    if not stored.signed:
        largest = int(unsigned.max())
        if not largest >> bits:
            return Extremes(int(unsigned.min()) if bits == 16 else 0, largest)
        masked = np.bitwise_and(unsigned, (1 << bits) - 1)
        wider = stored.largest >> bits > 0 or _roughness(unsigned) < _roughness(masked)
        if not wider:
            unsigned[:] = masked
        return Extremes(int(unsigned.min()), int(unsigned.max()), masked=not wider, wider=wider)
    smallest, largest, limit = int(out.min()), int(out.max()), 1 << (bits - 1)
    if smallest >= -limit and largest < limit:
        return Extremes(smallest, largest)
    extended = np.right_shift(np.left_shift(out, 16 - bits), 16 - bits)
    wider = _roughness(out) < _roughness(extended)
    # Sign bits that a codec or writer left clear look like this as well, so they are no note on their own.
    masked_bits = not wider and bool((unsigned >> bits).any() and largest >= 2 * limit)
    if not wider:
        out[:] = extended
    return Extremes(int(out.min()), int(out.max()), masked=masked_bits, wider=wider)


def _roughness(image: NDArray[Any]) -> int:
    """Return the sum of the steps between neighbours, in rows and columns."""
    wide = image.astype(np.int32)
    return sum(int(np.abs(np.diff(wide, axis=axis)).sum(dtype=np.int64)) for axis in (0, 1))


def same_pixels(one: Frame, other: Frame, files: OpenFiles) -> bool:
    """Whether two images have equal pixels and equal rescale; False where one cannot be read."""
    if (one.shape, one.slope, one.intercept) != (other.shape, other.slope, other.intercept):
        return False
    images = np.empty((2, *one.shape), np.int16)
    try:
        for image, frame in zip(images, (one, other), strict=True):
            OpenPixels(frame.stored, files).read(frame.index, image)
    except BadFile:
        return False
    return bool(np.array_equal(images[0], images[1]))
