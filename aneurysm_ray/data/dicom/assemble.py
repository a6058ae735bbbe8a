"""Decode the chosen frames of a series into one volume."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.data.dicom.codecs import Words
from aneurysm_ray.data.dicom.files import OpenFiles, same_bytes
from aneurysm_ray.data.dicom.frames import Frame
from aneurysm_ray.data.dicom.geometry import dropped_frame
from aneurysm_ray.data.dicom.hounsfield import hu_doubtful, rescale_of, rescaled_twice
from aneurysm_ray.data.dicom.pixels import Extremes, OpenPixels, same_pixels
from aneurysm_ray.data.dicom.quality import BadFile, Dropped
from aneurysm_ray.data.dicom.values import finish, fits_int16, is_integral, possible, scanned
from aneurysm_ray.errors import SeriesError

MAX_VOLUME_BYTES = 2 * 2**30
"""Largest volume in memory: 4,000 slices of 512 x 512 in int16."""


@dataclass(frozen=True)
class Assembled:
    """Slices whose pixels could be read, in order."""

    frames: tuple[Frame, ...]
    voxels: NDArray[np.int16] | NDArray[np.float32]
    """(Z, Y, X)."""
    padding: int | None
    notes: frozenset[str]
    dropped: tuple[Dropped, ...]


def assemble(slots: Sequence[Sequence[Frame]], name: str, files: OpenFiles, *, ambiguous: bool = False) -> Assembled:
    """Decode one frame for each slot, the first candidate that can be read; a slot without any is left out.

    Voxels are int16 where every rescale is integral and every value fits, else float32. Where the choice of slots is
    `ambiguous`, all candidates of one must be equal. A CT whose rescale was applied before it was stored is read again
    without it. Raises SeriesError `too_large` before any memory is taken, `mixed_passes` where candidates differ.
    """
    decoded = _decoded(slots, name, files, ambiguous=ambiguous)
    twice = rescaled_twice(decoded.frames, decoded.voxels)
    if not twice:
        return decoded
    mended = [
        [
            replace(frame, intercept=0.0, notes=(*frame.notes, "rescale_twice"))
            if rescale_of(frame) in twice
            else frame
            for frame in slot
        ]
        for slot in slots
    ]
    return _decoded(mended, name, files, ambiguous=ambiguous)


def _decoded(
    slots: Sequence[Sequence[Frame]], name: str, files: OpenFiles, *, ambiguous: bool, trusting: bool = True
) -> Assembled:
    """Decode slices; `trusting` Bits Stored, rescale each as it comes, and begin again where that turns out wrong."""
    frames = [frame for slot in slots for frame in slot]
    integral = all(map(is_integral, frames))
    rows, columns = slots[0][0].shape
    size = len(slots) * rows * columns * (2 if integral else 4)
    if size > MAX_VOLUME_BYTES:
        raise SeriesError("too_large", f"{len(slots)} x {rows} x {columns} voxels take {size:,} bytes", name)
    voxels = np.empty((len(slots), rows, columns), np.int16 if integral else np.float32)
    scratch = None if integral else np.empty((rows, columns), np.int16)
    in_turn = not integral or (trusting and all(fits_int16(frame, possible(frame)) for frame in frames))

    done: list[tuple[Frame, Extremes]] = []
    dropped: list[Dropped] = []
    paddings: list[int | None] = []
    pixels = _Pixels(files, name, ambiguous=ambiguous)
    for slot in slots:
        words = voxels[len(done)] if scratch is None else scratch
        read = pixels.read_first(slot, words, dropped)
        if read is None:
            continue
        if in_turn:
            paddings.append(finish(read[0], words, words if scratch is None else voxels[len(done)]))
        done.append(read)
    if integral and in_turn and any(found.wider for _, found in done):
        return _decoded(slots, name, files, ambiguous=ambiguous, trusting=False)
    voxels = voxels[: len(done)]
    wide = False
    if not in_turn:
        wide = not all(
            fits_int16(frame, found) or fits_int16(frame, scanned(frame, words, found))
            for (frame, found), words in zip(done, voxels, strict=True)
        )
        words_of = voxels
        if wide:
            voxels = np.empty(voxels.shape, np.float32)
        paddings = [
            finish(frame, words, out if wide else words)
            for (frame, _), words, out in zip(done, words_of, voxels, strict=True)
        ]
    chosen = tuple(frame for frame, _ in done)
    notes = {drop.code for drop in dropped} | set(_value_notes(chosen, voxels))
    padding = next((value for value in paddings if value is not None), None)
    flags = {
        "wide_range": wide,
        "padding": padding is not None,
        "masked_bits": any(found.masked for _, found in done),
        "bits_contradicted": any(found.wider for _, found in done),
    }
    return Assembled(
        chosen, voxels, padding, frozenset(notes | {code for code, on in flags.items() if on}), tuple(dropped)
    )


def _value_notes(frames: Sequence[Frame], voxels: NDArray[np.int16] | NDArray[np.float32]) -> Iterator[str]:
    if len({(frame.slope, frame.intercept) for frame in frames}) > 1:
        yield "rescale_varies"
    if frames and frames[0].modality == "CT" and frames[0].stored.lut is None and hu_doubtful(voxels):
        yield "hu_doubtful"


class _Pixels:
    """Pixels of the files of a series, one file at a time: frames of one file mostly follow each other."""

    def __init__(self, files: OpenFiles, name: str, *, ambiguous: bool) -> None:
        self._files = files
        self._name = name
        self._ambiguous = ambiguous
        self._open: OpenPixels | None = None

    def read_first(self, slot: Sequence[Frame], words: Words, dropped: list[Dropped]) -> tuple[Frame, Extremes] | None:
        """Read the first candidate that can be read; every other one is dropped with its reason."""
        read: tuple[Frame, Extremes] | None = None
        for frame in slot:
            if read is None:
                try:
                    read = frame, self._of(frame).read(frame.index, words)
                except BadFile as problem:
                    dropped.append(dropped_frame(frame, problem.code, str(problem)))
            elif same_bytes(read[0].stored.path, frame.stored.path) or same_pixels(read[0], frame, self._files):
                dropped.append(dropped_frame(frame, "duplicate_files", "equals another image at its place"))
            elif self._ambiguous:
                raise SeriesError(
                    "mixed_passes",
                    f"{len(slot)} different images stand at {frame.position_mm} mm, and as many at other positions; no "
                    "number, time or order tells which belong together",
                    self._name,
                )
            else:
                dropped.append(dropped_frame(frame, "duplicate_positions", "stands where another image does"))
        return read

    def _of(self, frame: Frame) -> OpenPixels:
        if self._open is None or self._open.stored is not frame.stored:
            self._open = OpenPixels(frame.stored, self._files)
        return self._open
