"""Read one series of DICOM files into a volume."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from aneurysm_ray.data.dicom.archives import open_series
from aneurysm_ray.data.dicom.assemble import Assembled, assemble
from aneurysm_ray.data.dicom.contrast import brighter_vessels
from aneurysm_ray.data.dicom.files import OpenFiles
from aneurysm_ray.data.dicom.frames import Frame, describe_frame, describe_pixels, image_type, refuse_derived
from aneurysm_ray.data.dicom.geometry import WHOLE_PASS, choose, dropped_frame, place
from aneurysm_ray.data.dicom.header import RawHeader
from aneurysm_ray.data.dicom.layouts import Layouts
from aneurysm_ray.data.dicom.multiframe import grouped_frames, has_groups, stacked_frames
from aneurysm_ray.data.dicom.pixels import same_pixels
from aneurysm_ray.data.dicom.quality import QUALITY, BadFile, Dropped, quality_code, refuse
from aneurysm_ray.data.identity import is_uid
from aneurysm_ray.data.volume import LeftOut, Volume
from aneurysm_ray.errors import SeriesError


def read_series(path: Path, *, deep: bool = True) -> Volume:
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

    Folders below the series' own are searched too, unless it is not `deep`.
    Raises SeriesError where no volume of two slices or more comes of it: `single_slice`, or the commonest defect.
    """
    try:
        with open_series(path, deep=deep) as source, OpenFiles() as opened:
            frames, dropped = read_all(source.files, opened)
            return volume_of(path, frames, [*source.left_out, *dropped], opened)
    except MemoryError as error:
        raise SeriesError("memory", "takes more memory than there is", str(path)) from error


def read_all(files: Sequence[str], opened: OpenFiles) -> tuple[list[Frame], list[Dropped]]:
    """Return the frames of all files, and the files that have none with the reason why."""
    frames: list[Frame] = []
    dropped: list[Dropped] = []
    layouts = Layouts()

    def read(file: str, *, alone: bool = False) -> list[Frame]:
        try:
            there = opened.open(file)
            return frames_of(file, layouts.read_header(there.descriptor, there.size), alone=alone)
        except BadFile as problem:
            dropped.append(Dropped(file, problem.code, str(problem)))
        except Exception as error:
            # pydicom parses an element when it is asked for, and raises nearly anything then.
            dropped.append(Dropped(file, "unreadable_files", f"cannot be parsed: {type(error).__name__}"))
        return []

    for file in files:
        frames += read(file)
    if len(frames) == 1:
        frames = read(frames[0].stored.path, alone=True)
    return frames, dropped


def frames_of(path: str, raw: RawHeader, *, alone: bool = False) -> list[Frame]:
    """Return the frames that a header describes; raises BadFile for what is no greyscale image in space.

    A file that is `alone` may hold more frames than it says.
    """
    notes = ["no_preamble"] * raw.bare + ["syntax_misnamed"] * raw.misnamed
    refuse_derived(raw)
    kind = image_type(raw)
    stored = describe_pixels(path, raw, notes, alone=alone)
    whole = describe_frame(stored, raw, kind, notes, grouped=has_groups(raw))
    if has_groups(raw):
        return grouped_frames(whole, raw)
    return [whole] if stored.frames == 1 else stacked_frames(whole, raw)


MAX_ATTEMPTS = 4
"""Passes and stacks of a series that are tried; a second one only where much of the first cannot be read."""


def volume_of(path: Path, frames: list[Frame], dropped: list[Dropped], opened: OpenFiles) -> Volume:
    """Choose, decode and place the frames of one volume; raises SeriesError.

    Where slices of the chosen pass cannot be read and another pass has more that can, that one is taken, as a whole.
    """
    best: tuple[Assembled, list[Dropped]] | None = None
    problem: SeriesError | MemoryError | None = None
    for _ in range(MAX_ATTEMPTS):
        stack = choose(frames, partial(brighter_vessels, files=opened))
        missing = [*dropped, *stack.dropped]
        if len(stack.slots) < 2 or (best and len(stack.slots) <= len(best[0].frames)):
            problem = problem or (_single(path, stack.slots[0], missing) if stack.slots else refuse(path, missing))
            break
        tried = {_key(frame) for slot in stack.slots for frame in slot}
        frames = [frame for frame in frames if _key(frame) not in tried]
        try:
            decoded = assemble(stack.slots, str(path), opened, ambiguous=stack.ambiguous)
        except (MemoryError, SeriesError) as error:
            code = error.reason if isinstance(error, SeriesError) else "memory"
            problem = problem or error
            dropped = [*dropped, dropped_frame(stack.slots[0][0], code, "belongs to a pass that was refused")]
            continue
        if best is None or len(decoded.frames) > len(best[0].frames):
            best = decoded, [*_copies_named(decoded, missing, opened), *decoded.dropped]
        dropped = [*dropped, *decoded.dropped]
        if len(decoded.frames) >= WHOLE_PASS * len(stack.slots) or not frames:
            break
    if best and len(best[0].frames) >= 2:
        return _volume(path, best[0], best[1])
    raise (refuse(path, best[1]) if best else problem or refuse(path, dropped))


def _copies_named(decoded: Assembled, dropped: list[Dropped], opened: OpenFiles) -> list[Dropped]:
    """Tell copies among the images of other passes: equal pixels at the same place as an image of the volume."""
    at = {frame.position_mm: frame for frame in decoded.frames}

    def told(drop: Dropped) -> Dropped:
        twin = at.get(drop.frame.position_mm) if drop.frame and drop.code == "other_passes" else None
        if twin and drop.frame and twin.orientation == drop.frame.orientation and same_pixels(twin, drop.frame, opened):
            return replace(drop, code="duplicate_files", message="equals another image at its place")
        return drop

    return [told(drop) for drop in dropped]


def _key(frame: Frame) -> tuple[int, int]:
    return id(frame.stored), frame.index


def _single(path: Path, slot: Sequence[Frame], dropped: Sequence[Dropped]) -> SeriesError:
    if len(slot) > 1:
        text = f"all {len(slot)} images lie at one position, {slot[0].position_mm} mm"
    else:
        text = "one image is the only slice; a volume needs two"
    why = Counter(drop.message for drop in dropped).most_common(1)
    text += f"; {len(dropped)} more were left out, {why[0][1]} of them as each {why[0][0]}" if why else ""
    return SeriesError("single_slice", text, str(path))


def _volume(path: Path, decoded: Assembled, dropped: list[Dropped]) -> Volume:
    placement = place(list(decoded.frames))
    first = decoded.frames[0]
    notes = {note for frame in decoded.frames for note in frame.notes}
    notes |= decoded.notes | set(placement.notes) | {quality_code(drop.code) for drop in dropped}
    instances = tuple((frame.sop_uid, frame.index) for frame in decoded.frames)
    if len(set(instances)) < len(instances):
        notes.add("repeated_instance_uids")
    named = is_uid(first.series_uid)
    if not named:
        notes.add("series_uid_assumed")
    return Volume(
        voxels=decoded.voxels,
        affine=placement.affine,
        origins_mm=placement.origins_mm,
        modality=first.modality,
        series_uid=first.series_uid if named else path.name,
        patient_id=first.patient_id,
        quality=tuple(code for code in QUALITY if code in {quality_code(note) for note in notes}),
        instances=instances,
        padding=decoded.padding,
        dropped=tuple((Path(drop.file).name, drop.message) for drop in dropped),
        left_out=tuple(_left_out(drop.frame) for drop in dropped if drop.frame and _placeable(drop.frame, first)),
    )


def _placeable(frame: Frame, of_volume: Frame) -> bool:
    """Whether an image that was left out has a place of its own in the patient that the volume shows."""
    return bool(frame.series_uid == of_volume.series_uid and frame.position_mm and frame.orientation)


def _left_out(frame: Frame) -> LeftOut:
    assert frame.position_mm and frame.orientation
    row, column = np.array(frame.orientation[3:]) * frame.spacing_mm[0], np.array(frame.orientation[:3])
    return LeftOut(frame.sop_uid, frame.index, np.array(frame.position_mm), row, column * frame.spacing_mm[1])


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


def scan_series(path: Path, *, deep: bool = True) -> SeriesHeader:
    """Return what a series holds; raises SeriesError where none of its first files is an image."""
    with open_series(path, at_most=PROBED_FILES, deep=deep) as source, OpenFiles() as opened:
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
    raise SeriesError("no_images", f"none of its first {PROBED_FILES} files is a DICOM image", str(path))
