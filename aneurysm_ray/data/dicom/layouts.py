"""Read a header like one before it: slices of a series mostly differ in values, not in where these stand.

The walk looks at tags, VRs and lengths alone. A file whose bytes at these places equal those of a file that was walked
would be walked the same way, so its values are where they were there. To compare takes a tenth of the time of a walk.
"""

import os
from collections import defaultdict
from operator import itemgetter

import numpy as np

from aneurysm_ray.data.dicom.elements import TRANSFER_SYNTAX, UNDEFINED, WANTED, value_places
from aneurysm_ray.data.dicom.header import HEAD_BYTES, IMPLICIT, META_START, RawHeader, meta, read_header
from aneurysm_ray.data.dicom.quality import BadFile

MAX_LAYOUTS = 16
"""Layouts that are learnt from one series; where they are more, learning costs more than it saves."""
TRIED = 4
"""Layouts of compressed files that a file is compared with; more would cost as much as the walk."""
META_LENGTH = 0x0002_0000


class Layouts:
    """The layouts of a series' files.

    Uncompressed files of one layout have one size; of compressed ones the layouts last used are tried.
    """

    def __init__(self) -> None:
        self._of_size: defaultdict[int, list[_Layout]] = defaultdict(list)
        self._compressed: list[_Layout] = []
        self._room = MAX_LAYOUTS

    def read_header(self, descriptor: int, size: int) -> RawHeader:
        """Read the header of an open file of `size` bytes; raises BadFile. As `header.read_header`, but faster."""
        head = os.pread(descriptor, HEAD_BYTES, 0)
        if not head:
            raise BadFile("junk_files", "is empty")
        for layout in self._of_size[size]:
            if raw := layout.read(head, size):
                return raw
        for place, layout in enumerate(self._compressed[:TRIED]):
            if raw := layout.read(head, size):
                if place:
                    self._compressed.insert(0, self._compressed.pop(place))
                return raw
        raw = read_header(head, descriptor, size)
        if self._room and _can_be_learnt(raw, head):
            self._room -= 1
            if raw.pixel_length == UNDEFINED:
                self._compressed.insert(0, _Layout(raw, head))
            else:
                self._of_size[size].append(_Layout(raw, head))
        return raw


def _can_be_learnt(raw: RawHeader, head: bytes) -> bool:
    """Whether a header was walked in `head`."""
    lean = raw.dataset is None and raw.body is None
    return lean and raw.pixel_offset <= len(head) and len(raw.values) > 1


class _Layout:
    """The places of a header's values. Sequences of undefined length, which the walk looks into, must be equal."""

    def __init__(self, raw: RawHeader, head: bytes) -> None:
        self._like = raw
        # 255 where bytes decide how the header is walked, 0 where they are a value.
        self._mask = np.full(raw.pixel_offset, 255, np.uint8)
        self._mask[: META_START - 4] = 0
        _, start = meta(head)
        for tag, place in value_places(head, META_START, start, explicit=True):
            if tag == TRANSFER_SYNTAX:
                break
            if tag != META_LENGTH:
                self._mask[place] = 0
        wanted = []
        for tag, place in value_places(head, start, raw.pixel_offset, raw.syntax != IMPLICIT):
            self._mask[place] = 0
            if tag in WANTED:
                wanted.append((tag, place))
        self._tags = [tag for tag, _ in wanted]
        self._values = itemgetter(*(place for _, place in wanted))
        self._fixed = self._masked(head)

    def read(self, head: bytes, size: int) -> RawHeader | None:
        """Return the header of a file of this layout, None for another file."""
        like = self._like
        if len(head) < like.pixel_offset or self._masked(head) != self._fixed:
            return None
        values = dict(zip(self._tags, self._values(head), strict=True))
        return RawHeader(values, like.syntax, True, like.pixel_offset, like.pixel_length, like.pixel_vr, size)

    def _masked(self, head: bytes) -> bytes:
        return (np.frombuffer(head, np.uint8, len(self._mask)) & self._mask).tobytes()
