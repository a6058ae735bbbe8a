"""From a slice's stored values to the volume's: inversion, Modality LUT, rescale and padding (PS3.3 C.11.1)."""

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.data.dicom.codecs import Words
from aneurysm_ray.data.dicom.frames import Frame
from aneurysm_ray.data.dicom.pixels import Extremes

CT_BACKGROUND = -1024
"""Hounsfield units given to voxels outside the scanned field of a CT; other modalities get 0, no signal."""

_INT16 = np.iinfo(np.int16)


def is_integral(frame: Frame) -> bool:
    """Whether a frame's rescale turns integers into integers."""
    return frame.slope.is_integer() and frame.intercept.is_integer()


def possible(frame: Frame) -> Extremes:
    """Return the smallest and largest stored value that a frame's bits can hold."""
    bits = frame.stored.bits_stored
    if frame.stored.signed:
        return Extremes(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    return Extremes(0, (1 << bits) - 1)


def fits_int16(frame: Frame, stored: Extremes) -> bool:
    """Whether stored values between two extremes stay within int16 once they are the volume's."""
    low, high = stored.smallest, stored.largest
    if frame.stored.inverted:
        low, high = _inverted(frame, high), _inverted(frame, low)
    if frame.stored.lut is not None:
        first, entries = frame.stored.lut
        low, high = (min(max(end - first, 0), len(entries) - 1) for end in (low, high))
        low, high = int(entries[low : high + 1].min()), int(entries[low : high + 1].max())
    ends = low * frame.slope + frame.intercept, high * frame.slope + frame.intercept
    return min(ends) >= _INT16.min and max(ends) <= _INT16.max


def _inverted(frame: Frame, value: int) -> int:
    return -1 - value if frame.stored.signed else (1 << frame.stored.bits_stored) - 1 - value


def scanned(frame: Frame, words: Words, found: Extremes) -> Extremes:
    """Return the extremes of a slice's stored values without its padding."""
    outside = _padding_mask(frame, words)
    if outside is None or outside.all():
        return found
    inside = (words if frame.stored.signed else words.view(np.uint16))[~outside]
    return Extremes(int(inside.min()), int(inside.max()))


def finish(frame: Frame, words: Words, out: NDArray[np.int16] | NDArray[np.float32]) -> int | None:
    """Turn stored `words` (rows, columns) into the volume's values in `out`, which may be the same array.

    int16 arithmetic is modulo 2^16, which is exact where the result fits. Returns the value of padding after rescale
    where some voxel held it; these voxels are set to background.
    """
    stored, signed = frame.stored, frame.stored.signed
    outside = _padding_mask(frame, words)
    unsigned = words.view(np.uint16)
    if stored.inverted:
        np.subtract(np.uint16(_inverted(frame, 0) & 0xFFFF), unsigned, out=unsigned)
    if stored.lut is not None:
        first, entries = stored.lut
        values = (words if signed else unsigned).astype(np.int64)
        unsigned[:] = entries[np.clip(values - first, 0, len(entries) - 1)]
        signed = False
    if out.dtype == np.int16:
        result = out.view(np.uint16)
        if out is not words:
            result[:] = unsigned
        if frame.slope != 1:
            np.multiply(result, np.uint16(int(frame.slope) & 0xFFFF), out=result)
        if frame.intercept != 0:
            np.add(result, np.uint16(int(frame.intercept) & 0xFFFF), out=result)
    else:
        np.multiply(words if signed else unsigned, np.float32(frame.slope), out=out, dtype=np.float32)
        np.add(out, np.float32(frame.intercept), out=out)
    if outside is None or not outside.any():
        return None
    out[outside] = background(frame)
    assert stored.padding is not None
    return round(stored.padding[0] * frame.slope + frame.intercept)


def background(frame: Frame) -> int:
    """Return the value of voxels outside the scanned field: air in a CT, or its lowest value if it cannot hold air."""
    if frame.modality != "CT":
        return 0
    lowest = possible(frame).smallest if frame.stored.lut is None else int(frame.stored.lut[1].min())
    return max(CT_BACKGROUND, round(lowest * frame.slope + frame.intercept))


def _padding_mask(frame: Frame, words: Words) -> NDArray[np.bool_] | None:
    """Return where stored words are padding; None where the frame has none, or it is background already."""
    if frame.stored.padding is None:
        return None
    low, high = frame.stored.padding
    values = words if frame.stored.signed else words.view(np.uint16)
    if low == high:
        if low * frame.slope + frame.intercept == background(frame):
            return None
        return np.asarray(values == low)
    return np.asarray((values >= low) & (values <= high))
