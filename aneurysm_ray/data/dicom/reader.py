"""Read one series of DICOM files into a volume."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aneurysm_ray.data.dicom.archives import open_series
from aneurysm_ray.data.dicom.assemble import Assembled, assemble
from aneurysm_ray.data.dicom.files import OpenFiles
from aneurysm_ray.data.dicom.frames import Frame, describe_frame, describe_pixels, image_type
from aneurysm_ray.data.dicom.geometry import choose, dropped_frame, place
from aneurysm_ray.data.dicom.header import RawHeader
from aneurysm_ray.data.dicom.layouts import Layouts
from aneurysm_ray.data.dicom.multiframe import grouped_frames, has_groups, stacked_frames
from aneurysm_ray.data.dicom.quality import QUALITY, BadFile, Dropped, quality_code, refuse
from aneurysm_ray.data.volume import Volume
from aneurysm_ray.errors import SeriesError


def read_series(path: Path) -> Volume:
    """Read one CT or MR series - a folder of DICOM files, one file, or a .zip or .tar of them - into a volume.

    Voxels are Hounsfield units for CT and rescaled values for MR: int16, or float32 where a rescale is not integral or
    a value does not fit. Slices are ordered by Image Position (Patient) projected on the slice normal (PS3.3
    C.7.6.2.1.1), never by file name or Instance Number.

    Only what was scanned is in the volume: missing slices are not made up, uneven and tilted ones are not moved;
    `origins_mm` has the true position of each slice and resampling uses it. Padding voxels are set to background,
    -1024 HU in CT and else 0, and `padding` records the value they had. MONOCHROME1 concerns display (PS3.3
    C.7.6.3.1.2) and leaves the values alone; stored values are inverted only where Presentation LUT Shape says INVERSE.
    Where a folder holds more than one volume, `geometry.choose` picks one. `quality` has a code of `QUALITY` for
    everything repaired, assumed or left out, and `dropped` what was left out, file by file.

    Raises SeriesError where no volume of two slices or more comes of it: `single_slice`, or the commonest defect.
    """
    try:
        with open_series(path) as source, OpenFiles() as opened:
            frames, dropped = read_all(source.files, opened)
            return volume_of(path, frames, dropped, opened)
    except MemoryError as error:
        raise SeriesError("memory", f"{path}: takes more memory than there is") from error


def read_all(files: Sequence[str], opened: OpenFiles) -> tuple[list[Frame], list[Dropped]]:
    """Return the frames of all files, and the files that have none with the reason why."""
    frames: list[Frame] = []
    dropped: list[Dropped] = []
    layouts = Layouts()
    for file in files:
        try:
            there = opened.open(file)
            frames += frames_of(file, layouts.read_header(there.descriptor, there.size))
        except BadFile as problem:
            dropped.append(Dropped(file, problem.code, str(problem)))
        except Exception as error:
            # pydicom parses an element when it is asked for, and raises nearly anything then.
            dropped.append(Dropped(file, "unreadable_files", f"cannot be parsed: {type(error).__name__}"))
    return frames, dropped


def frames_of(path: str, raw: RawHeader) -> list[Frame]:
    """Return the frames that a header describes; raises BadFile for what is no greyscale image in space."""
    notes = ["no_preamble"] if raw.bare else []
    kind = image_type(raw)
    stored = describe_pixels(path, raw, notes)
    whole = describe_frame(stored, raw, kind, notes, grouped=has_groups(raw))
    if has_groups(raw):
        return grouped_frames(whole, raw)
    return [whole] if stored.frames == 1 else stacked_frames(whole, raw)


MAX_ATTEMPTS = 4
"""Stacks of a series that are tried; a second one is only where nothing of the first can be read."""


def volume_of(path: Path, frames: list[Frame], dropped: list[Dropped], opened: OpenFiles) -> Volume:
    """Choose, decode and place the frames of one volume; raises SeriesError."""
    for attempt in range(MAX_ATTEMPTS):
        stack = choose(frames)
        missing = [*dropped, *stack.dropped]
        if not stack.slots:
            raise refuse(path, missing)
        if len(stack.slots) == 1:
            raise _single(path, stack.slots[0], missing)
        tried = {_key(frame) for slot in stack.slots for frame in slot}
        rest = [frame for frame in frames if _key(frame) not in tried]
        try:
            decoded = assemble(stack.slots, str(path), opened)
        except (MemoryError, SeriesError) as error:
            if not rest or attempt == MAX_ATTEMPTS - 1:
                raise
            code = error.reason if isinstance(error, SeriesError) else "memory"
            dropped = [*dropped, dropped_frame(stack.slots[0][0], code, "belongs to a stack that is too large")]
        else:
            missing += decoded.dropped
            if len(decoded.frames) >= 2:
                return _volume(path, decoded, missing)
            if not rest or attempt == MAX_ATTEMPTS - 1:
                break
            dropped = [*dropped, *decoded.dropped]
        frames = rest
    raise refuse(path, missing)


def _key(frame: Frame) -> tuple[int, int]:
    return id(frame.stored), frame.index


def _single(path: Path, slot: Sequence[Frame], dropped: Sequence[Dropped]) -> SeriesError:
    if len(slot) > 1:
        text = f"all {len(slot)} images lie at one position, {slot[0].position_mm} mm"
    else:
        text = f"{Path(slot[0].stored.path).name} is the only slice; a volume needs two"
    why = f"; {len(dropped)} more were left out: {Path(dropped[0].file).name} {dropped[0].message}" if dropped else ""
    return SeriesError("single_slice", f"{path}: {text}{why}")


def _volume(path: Path, decoded: Assembled, dropped: list[Dropped]) -> Volume:
    placement = place(list(decoded.frames))
    first = decoded.frames[0]
    notes = {note for frame in decoded.frames for note in frame.notes}
    notes |= decoded.notes | set(placement.notes) | {quality_code(drop.code) for drop in dropped}
    instances = tuple((frame.sop_uid, frame.index) for frame in decoded.frames)
    if len(set(instances)) < len(instances):
        notes.add("repeated_instance_uids")
    if not first.series_uid:
        notes.add("series_uid_assumed")
    return Volume(
        voxels=decoded.voxels,
        affine=placement.affine,
        origins_mm=placement.origins_mm,
        modality=first.modality,
        series_uid=first.series_uid or path.name,
        patient_id=first.patient_id,
        quality=tuple(code for code in QUALITY if code in {quality_code(note) for note in notes}),
        instances=instances,
        padding=decoded.padding,
        dropped=tuple((Path(drop.file).name, drop.message) for drop in dropped),
    )


@dataclass(frozen=True)
class SeriesHeader:
    """A series at a glance; everything but `files` and `bytes` is what the first readable image says."""

    files: int
    bytes: int
    rows: int
    columns: int
    frames: int
    """Images in all, taking every file for one like the first."""
    modality: str
    series_uid: str

    @property
    def voxel_bytes(self) -> int:
        """Bytes of the volume in int16."""
        return 2 * self.frames * self.rows * self.columns


PROBED_FILES = 8
"""Files that are tried for one readable header."""


def scan_series(path: Path) -> SeriesHeader:
    """Return what a series holds; raises SeriesError where none of its first files is an image."""
    with open_series(path, at_most=PROBED_FILES) as source, OpenFiles() as opened:
        for file in source.files[:PROBED_FILES]:
            frames, _ = read_all([file], opened)
            if frames:
                stored = frames[0].stored
                return SeriesHeader(
                    files=source.count,
                    bytes=source.bytes,
                    rows=stored.rows,
                    columns=stored.columns,
                    frames=stored.frames * source.count,
                    modality=frames[0].modality,
                    series_uid=frames[0].series_uid,
                )
    raise SeriesError("no_images", f"{path}: none of its first {PROBED_FILES} files is a DICOM image")
