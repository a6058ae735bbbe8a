"""A volume as a file of small compressed cubes, of which a patch reads those that it touches.

A patch of a plain array lies scattered over as many pieces as it has rows, and one of a Parquet file takes the
decompression of the whole volume. Cubes of 32 voxels cost a patch of 64 x 96 x 96 at most three times its own bytes,
less what compression saves, and LZ4 gives back one to two gigabytes a second on one core.

Layout, little-endian: the magic word; three int64 of shape (z, y, x); int64 offsets of the cubes from the beginning of
the file, in the order of an array of them, and one more for the end; then the cubes, each LZ4-compressed on its own.
"""

import math
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

EDGE = 32
"""Voxels along each edge of a cube."""

_MAGIC = b"bricks1\n"
_INT = np.dtype("<i8")
_FIXED = len(_MAGIC) + 3 * _INT.itemsize


class Damaged(Exception):
    """A file is none of cubes, or not all of it is there."""


def write(file: BinaryIO, array: NDArray[np.uint8]) -> None:
    """Write an array (Z, Y, X) as a file of cubes."""
    codec = pa.Codec("lz4_raw")
    corners = np.ndindex(*_counts(array.shape))
    cubes = [codec.compress(np.ascontiguousarray(array[_span(corner)]).data, asbytes=True) for corner in corners]
    first = _FIXED + (len(cubes) + 1) * _INT.itemsize
    offsets = first + np.concatenate([[0], np.cumsum([len(cube) for cube in cubes])])
    file.write(_MAGIC + np.array(array.shape, _INT).tobytes() + offsets.astype(_INT).tobytes())
    file.writelines(cubes)


class Bricks:
    """An open file of cubes. It stays readable when its name is removed; threads may read at the same time."""

    def __init__(self, path: Path) -> None:
        """Open a file. Raises OSError when it cannot be, Damaged when it is no whole file of cubes."""
        self._file = os.open(path, os.O_RDONLY)
        fixed = os.pread(self._file, _FIXED, 0)
        if len(fixed) < _FIXED or not fixed.startswith(_MAGIC):
            raise Damaged(f"{path} is no file of cubes")
        z, y, x = np.frombuffer(fixed, _INT, 3, len(_MAGIC)).tolist()
        self.shape = (z, y, x)
        self._counts = _counts(self.shape)
        table = os.pread(self._file, (math.prod(self._counts) + 1) * _INT.itemsize, _FIXED)
        if len(table) != (math.prod(self._counts) + 1) * _INT.itemsize:
            raise Damaged(f"{path} ends early")
        self._offsets = np.frombuffer(table, _INT)
        self.bytes = os.fstat(self._file).st_size
        if self._offsets[-1] != self.bytes:
            raise Damaged(f"{path} has {self.bytes} bytes of {self._offsets[-1]}")
        self._codec = pa.Codec("lz4_raw")

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def read(self, start: NDArray[np.int64], size: tuple[int, int, int]) -> tuple[NDArray[np.uint8], int]:
        """Return a part of the array, smaller than asked where that ends, and how many bytes it took from the file.

        Raises Damaged when a cube cannot be decompressed.
        """
        low = np.minimum(start, self.shape)
        high = np.minimum(low + size, self.shape)
        part = np.empty(high - low, np.uint8)
        taken = 0
        if not part.size:
            return part, taken
        first, last = low // EDGE, -(-high // EDGE)
        for z in range(first[0], last[0]):
            for y in range(first[1], last[1]):
                # Cubes that follow each other along x do so in the file, and are read at once.
                row = self._index(z, y, first[2])
                begin, end = self._offsets[row], self._offsets[row + last[2] - first[2]]
                row_bytes = memoryview(os.pread(self._file, end - begin, begin))
                taken += len(row_bytes)
                for number, x in enumerate(range(first[2], last[2])):
                    bounds = self._offsets[row + number : row + number + 2] - begin
                    cube = self._decompress(row_bytes[bounds[0] : bounds[1]], (z, y, x))
                    corner = np.array([z, y, x]) * EDGE
                    inner_low, inner_high = np.maximum(low - corner, 0), np.minimum(high - corner, cube.shape)
                    outer = corner - low
                    part[_box(outer + inner_low, outer + inner_high)] = cube[_box(inner_low, inner_high)]
        return part, taken

    def _index(self, z: int, y: int, x: int) -> int:
        return int((z * self._counts[1] + y) * self._counts[2] + x)

    def _decompress(self, data: memoryview, corner: tuple[int, int, int]) -> NDArray[np.uint8]:
        shape = [min(EDGE, n - at * EDGE) for n, at in zip(self.shape, corner, strict=True)]
        try:
            raw = self._codec.decompress(data, math.prod(shape))
        except (pa.ArrowException, OSError) as error:
            raise Damaged(str(error)) from error
        return np.frombuffer(raw, np.uint8).reshape(shape)


def _counts(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-(-n // EDGE) for n in shape)


def _span(corner: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(at * EDGE, (at + 1) * EDGE) for at in corner)


def _box(low: NDArray[np.int64], high: NDArray[np.int64]) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
