"""One DICOM file's header as raw values and the place of its pixels: the lean walk, and pydicom for everything odd.

Both ways end in the same `RawHeader`, so that everything after them - geometry, rescale, decoding - is one code and
their results are equal bit by bit.
"""

import io
import os
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from aneurysm_ray.data.dicom import elements as tags
from aneurysm_ray.data.dicom.elements import UNDEFINED, Short, value_places, walk
from aneurysm_ray.data.dicom.files import read_at
from aneurysm_ray.data.dicom.quality import BadFile, Odd

META_START = 132
"""Offset of the file meta information, its length first, after the preamble and DICM (PS3.10 7.1)."""
HEAD_BYTES = 16 * 2**10
"""First read of a file: holds the whole header unless private elements or icons are long."""
MAX_HEADER_BYTES = 16 * 2**20
"""Longest header that is read; a multi-frame file of 2,000 frames has about 6 MB."""
MAX_PYDICOM_READS = 300_000
"""Reads pydicom may make of one header, three an element: bounds the time a hostile one can take."""
MAX_INFLATED_BYTES = 256 * 2**20
"""Largest data set that a deflated file may inflate to, checked against its own rows, columns and frames as well."""

NO_IMAGES = (
    "1.2.840.10008.1.3.10",  # directory
    "1.2.840.10008.5.1.4.1.1.11.",  # presentation state
    "1.2.840.10008.5.1.4.1.1.66",  # raw data, registration
    "1.2.840.10008.5.1.4.1.1.88.",  # report, key objects
    "1.2.840.10008.5.1.4.1.1.104.",  # document
)
"""SOP Classes of files that have no pixels and are no damaged images: what their UIDs begin with."""

_PIXEL_VRS = (b"OB", b"OW", b"UN")
EXPLICIT, IMPLICIT = str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian)
BIG_ENDIAN, DEFLATED = str(ExplicitVRBigEndian), str(DeflatedExplicitVRLittleEndian)


@dataclass(slots=True)
class RawHeader:
    """Raw element values of a file and where its pixels are."""

    values: dict[int, bytes]
    syntax: str
    """Transfer Syntax UID."""
    little_endian: bool
    pixel_offset: int
    pixel_length: int
    """Length of Pixel Data as declared; UNDEFINED where encapsulated."""
    pixel_vr: bytes
    size: int
    """Bytes of the file, or of `body`."""
    body: bytes | None = None
    """The inflated file where offsets point into that."""
    dataset: Dataset | None = None
    """What pydicom read, for sequences."""
    bare: bool = False
    """The file has no preamble."""
    misnamed: bool = False
    """The data set has VRs where its transfer syntax knows none, or none where that has them."""


def read_header(head: bytes, descriptor: int, size: int) -> RawHeader:
    """Read the header of an open file that begins with `head`, by the lean walk where that can; raises BadFile."""
    try:
        return lean_header(head, descriptor, size)
    except Odd:
        return pydicom_header(head, descriptor, size)


def lean_header(head: bytes, source: int | bytes, size: int) -> RawHeader:
    """Read a header whose start is `head` by the lean walk; raises Odd for what pydicom should read."""
    syntax, start = meta(head)
    if syntax == DEFLATED:
        return _inflated_header(head, source, size, start)
    if syntax == BIG_ENDIAN:
        raise Odd
    while True:
        try:
            values, offset, length, vr = walk(head, start, explicit=syntax != IMPLICIT)
            return RawHeader(values, syntax, True, offset, length, vr, size)
        except Short:
            if len(head) >= min(size, MAX_HEADER_BYTES):
                raise Odd from None
            head = read_at(source, 0, min(size, 16 * len(head)))


def meta(head: bytes) -> tuple[str, int]:
    """Return the Transfer Syntax UID and the offset of the data set after the file meta information (PS3.10 7.1)."""
    if head[128:132] != b"DICM" or head[132:140] != b"\x02\x00\x00\x00UL\x04\x00":
        raise Odd
    start: int = 144 + struct.unpack_from("<I", head, 140)[0]
    if start > len(head):
        raise Odd
    try:
        for tag, place in value_places(head, META_START, start, explicit=True):
            if tag == tags.TRANSFER_SYNTAX:
                return head[place].rstrip(b"\0 ").decode("ascii", "replace"), start
    except struct.error:
        raise Odd from None
    raise Odd


def _inflated_header(head: bytes, source: int | bytes, size: int, start: int) -> RawHeader:
    """Read a deflated file: its header from the first bytes, then no more than its own pixels justify."""
    packed = read_at(source, start, min(size - start, MAX_INFLATED_BYTES))
    try:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, MAX_HEADER_BYTES)
        # The header says how much there should be; a second pass fetches the rest of the pixels.
        values, offset, length, vr = walk(data, 0, explicit=True)
        if length == UNDEFINED or offset + length > MAX_INFLATED_BYTES:
            raise BadFile("too_large", f"inflates to more than {MAX_INFLATED_BYTES:,} bytes")
        if offset + length > len(data):
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, offset + length)
    except zlib.error as error:
        raise BadFile("unreadable_files", f"cannot be inflated: {error}") from error
    except (Short, Odd) as error:
        raise BadFile("unreadable_files", "is deflated and its header cannot be read") from error
    return RawHeader(values, DEFLATED, True, offset, length, vr, len(data), body=data)


def pydicom_header(head: bytes, descriptor: int, size: int) -> RawHeader:
    """Read a header by pydicom, bounded in bytes and reads; raises BadFile."""
    bare = head[128:132] != b"DICM"
    if bare and not _looks_like_a_data_set(head):
        raise BadFile("junk_files", "is no DICOM file")
    file = _BoundedFile(descriptor, size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=bare)
            return _from_dataset(dataset, file, size, bare)
    except BadFile:
        raise
    except (Exception, RecursionError, MemoryError) as error:
        # pydicom raises nearly anything on hostile input: NotImplementedError, KeyError, struct.error, RecursionError.
        raise BadFile("unreadable_files", f"cannot be parsed: {type(error).__name__}") from error


def _looks_like_a_data_set(head: bytes) -> bool:
    """Whether bytes without preamble begin like a data set: an element of group 2 or 8, not too far in."""
    if len(head) < 16:
        return False
    group, element = struct.unpack_from("<HH", head)
    return group in (2, 8) and element <= 0x18


def _from_dataset(dataset: Dataset, file: "_BoundedFile", size: int, bare: bool) -> RawHeader:
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", "")).strip()
    implicit, little_endian = dataset.original_encoding
    if not syntax or syntax == DEFLATED:
        if syntax == DEFLATED:
            raise BadFile("unreadable_files", "is deflated and its header cannot be read")
        syntax = BIG_ENDIAN if not little_endian else IMPLICIT if implicit else EXPLICIT
    place = file.tell()
    order = "<" if little_endian else ">"
    start = read_at(file.descriptor, place, min(12, size - place)).ljust(12, b"\0")
    group, element = struct.unpack_from(f"{order}HH", start)
    if (group, element) != (0x7FE0, 0x0010):
        kind = str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID", ""))
        raise BadFile("junk_files" if kind.startswith(NO_IMAGES) else "no_images", "has no Pixel Data")
    # pydicom reads on when the file meta information is wrong about VRs; the bytes tell how it went on.
    misnamed = syntax in (EXPLICIT, IMPLICIT) and (start[4:6] in _PIXEL_VRS) != (syntax == EXPLICIT)
    if misnamed:
        implicit = syntax == EXPLICIT
    if implicit:
        vr, length, offset = b"", struct.unpack_from(f"{order}I", start, 4)[0], place + 8
    else:
        vr, length, offset = start[4:6], struct.unpack_from(f"{order}I", start, 8)[0], place + 12
    values = {tag: value for tag in tags.WANTED if (value := _raw(dataset, tag)) is not None}
    return RawHeader(
        *(values, syntax, bool(little_endian), offset, length, vr, size),
        dataset=dataset,
        bare=bare,
        misnamed=misnamed,
    )


def _raw(dataset: Dataset, tag: int) -> bytes | None:
    """Return an element's raw value; pydicom keeps it until somebody asks for the parsed one."""
    if tag not in dataset:
        return None
    element: Any = dataset.get_item(tag)
    if isinstance(element, RawDataElement):
        return element.value or b""
    if isinstance(element.value, (list, tuple, pydicom.multival.MultiValue)):
        return "\\".join(str(value) for value in element.value).encode()
    return str(element.value).encode()


class _BoundedFile(io.RawIOBase):
    """A file for pydicom that never reads more than a header's worth at once, nor for ever."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.descriptor = descriptor
        self._size = size
        self._position = 0
        self._reads = 0

    def read(self, count: int = -1) -> bytes:
        self._reads += 1
        wanted = self._size - self._position if count < 0 else min(count, self._size - self._position)
        if wanted > MAX_HEADER_BYTES or self._reads > MAX_PYDICOM_READS:
            raise BadFile("unreadable_files", f"has a header of more than {MAX_HEADER_BYTES:,} bytes")
        data = os.pread(self.descriptor, max(wanted, 0), self._position)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True
