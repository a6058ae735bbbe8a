"""A volume as a file of small compressed cubes, of which a patch reads those that it touches.

A patch of a plain array lies scattered over as many pieces as it has rows, and one of a Parquet file takes the
decompression of the whole volume. Cubes of 32 voxels cost a patch of 64 x 96 x 96 at most three times its own bytes,
less what compression saves, and LZ4 gives back one to two gigabytes a second on one core.

Layout, little-endian: the magic word; three int64 of shape (z, y, x); int64 offsets of the cubes from the beginning of
the file, in the order of an array of them, and one more for the end; then the cubes, each LZ4-compressed on its own.
"""

import itertools
import math
import os
from collections.abc import Iterator
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
    cubes = [codec.compress(cube.data, asbytes=True) for cube in _cut(np.ascontiguousarray(array))]
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
        self._offsets: list[int] = np.frombuffer(table, _INT).tolist()
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
        planes, rows, cubes = (_cubes(*ends) for ends in zip(low.tolist(), high.tolist(), self.shape, strict=True))
        # Cubes that follow each other along x do so in the file, and are read at once.
        pieces = [self._piece(z, y, cubes[0][0], cubes[-1][0]) for z, *_ in planes for y, *_ in rows]
        for _, begin, end in pieces:  # a disk brings many pieces in little more time than one
            os.posix_fadvise(self._file, begin, end - begin, os.POSIX_FADV_WILLNEED)
        piece = iter(pieces)
        for _, in_z, to_z, depth in planes:
            for _, in_y, to_y, height in rows:
                first, begin, end = next(piece)
                row_bytes = memoryview(os.pread(self._file, end - begin, begin))
                taken += len(row_bytes)
                for x, in_x, to_x, width in cubes:
                    data = row_bytes[self._offsets[first + x] - begin : self._offsets[first + x + 1] - begin]
                    try:
                        raw = self._codec.decompress(data, depth * height * width)
                    except (pa.ArrowException, OSError) as error:
                        raise Damaged(str(error)) from error
                    cube = np.frombuffer(raw, np.uint8).reshape(depth, height, width)
                    part[to_z, to_y, to_x] = cube[in_z, in_y, in_x]
        return part, taken

    def _piece(self, z: int, y: int, low: int, high: int) -> tuple[int, int, int]:
        """Return a row's first cube, and where its cubes from `low` to `high` begin and end in the file."""
        first = (z * self._counts[1] + y) * self._counts[2]
        return first, self._offsets[first + low], self._offsets[first + high + 1]


def _cubes(low: int, high: int, length: int) -> list[tuple[int, slice, slice, int]]:
    """Return, along an axis of so many voxels, the cubes of a part: which, what of it, where to, and how long it is."""
    found = []
    for cube in range(low // EDGE, -(-high // EDGE)):
        corner = cube * EDGE
        first, last = max(low, corner), min(high, corner + EDGE)
        inner, outer = slice(first - corner, last - corner), slice(first - low, last - low)
        found.append((cube, inner, outer, min(EDGE, length - corner)))
    return found


def _counts(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-(-n // EDGE) for n in shape)


def _cut(array: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Yield the voxels of each cube, each in one piece of memory."""
    depth, height, width = array.shape
    whole = width - width % EDGE
    for z, y in itertools.product(range(0, depth, EDGE), range(0, height, EDGE)):
        rows = array[z : z + EDGE, y : y + EDGE]
        if whole:  # an edge of voxels is moved as one thing, in half the time
            yield from np.ascontiguousarray(rows[:, :, :whole].view(f"V{EDGE}").transpose(2, 0, 1)).view(np.uint8)
        if whole < width:
            yield np.ascontiguousarray(rows[:, :, whole:])
