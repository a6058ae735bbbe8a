"""What a header says of a frame, by which the passes of a series are told apart."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from aneurysm_ray.data.dicom import elements as tags
from aneurysm_ray.data.dicom.frames import Frame


def order(frame: Frame) -> tuple[int, int, str, int]:
    """Return by what images of equal standing are ordered."""
    return frame.acquisition, frame.instance, frame.stored.path, frame.index


@dataclass(frozen=True)
class Mark:
    """Something that a header says of a frame, by which passes are told apart."""

    of: Callable[[Frame], Hashable]
    tag: int = 0
    """The element of `elements.PASS_TAGS` that says it, 0 for a field of the frame."""
    joins: bool = True
    """Groups that lie one after another along the normal are parts of one scan, such as the steps of a table."""
    weaves: bool = False
    """Groups that lie between each other in even steps are packages of one scan."""
    ordered: bool = False
    """Values grow from pass to pass: a group joins the pass before it or begins another."""
    repeats: bool = False
    """It counts only where most positions have several images."""


def text(tag: int) -> Callable[[Frame], Hashable]:
    place = tags.PASS_TAGS.index(tag)

    def of(frame: Frame) -> Hashable:
        value = frame.marks[place]
        return value.strip(b"\0 ").upper() if value else b""

    return of


def number(tag: int) -> Callable[[Frame], float]:
    """Return a reader of a number or time, whatever it is written like; -1 where there is none."""
    place = tags.PASS_TAGS.index(tag)

    def of(frame: Frame) -> float:
        try:
            return float((frame.marks[place] or b"-1").strip(b"\0 ").replace(b":", b""))
        except ValueError:
            return -1.0

    return of


def _seconds(tag: int) -> Callable[[Frame], float]:
    """Return a reader of a time (HHMMSS.FFFFFF) or date and time (YYYYMMDD before it) in seconds; -1 for none."""
    place = tags.PASS_TAGS.index(tag)

    def of(frame: Frame) -> float:
        digits = (frame.marks[place] or b"").strip(b"\0 ").replace(b":", b"").split(b"+")[0].split(b"-")[0]
        whole, _, fraction = digits.partition(b".")
        days, clock = (whole[:-6], whole[-6:]) if len(whole) > 8 else (b"0", whole)
        try:
            hours, minutes, seconds = (int(clock[at : at + 2] or 0) for at in (0, 2, 4))
            return 86_400.0 * int(days) + 3600 * hours + 60 * minutes + seconds + float(b"0." + (fraction or b"0"))
        except ValueError:
            return -1.0

    return of


rescale_type = text(tags.RESCALE_TYPE)
kernel = text(tags.KERNEL)
contrast_agent = text(tags.CONTRAST_AGENT)
_UNITS = {b"": b"", b"HU": b"", b"US": b""}


def units(frame: Frame) -> Hashable:
    """Return what a frame's values are measured in, empty for Hounsfield and unspecified units (PS3.3 C.11.1.1.2)."""
    named = rescale_type(frame)
    return _UNITS.get(named, named) if isinstance(named, bytes) else named


MARKS = (
    Mark(lambda frame: frame.patient_id, joins=False),
    Mark(text(tags.SERIES_NUMBER), tags.SERIES_NUMBER, joins=False),
    Mark(units, tags.RESCALE_TYPE, joins=False),
    Mark(lambda frame: frame.temporal, joins=False),
    Mark(lambda frame: frame.kind[2:] if frame.modality == "CT" else ()),
    Mark(lambda frame: frame.kind[:2] if frame.modality == "CT" else frame.kind, weaves=True),
    Mark(lambda frame: round(frame.echo_ms, 1)),
    Mark(lambda frame: frame.b_value),
    Mark(kernel, tags.KERNEL),
    Mark(contrast_agent, tags.CONTRAST_AGENT),
    Mark(number(tags.KVP), tags.KVP),
    Mark(number(tags.INVERSION_TIME), tags.INVERSION_TIME),
    Mark(number(tags.FLIP_ANGLE), tags.FLIP_ANGLE),
    Mark(lambda frame: frame.stored.path if frame.stored.frames > 1 else "", weaves=True),
    Mark(number(tags.SLICE_THICKNESS), tags.SLICE_THICKNESS, weaves=True),
    Mark(lambda frame: frame.acquisition, weaves=True, ordered=True),
    Mark(number(tags.TRIGGER_TIME), tags.TRIGGER_TIME, weaves=True, ordered=True),
    Mark(_seconds(tags.ACQUISITION_TIME), tags.ACQUISITION_TIME, weaves=True, ordered=True),
    Mark(_seconds(tags.ACQUISITION_DATETIME), tags.ACQUISITION_DATETIME, weaves=True, ordered=True),
)
"""What tells passes apart, wherever their frames stand."""

ORDERS = (
    Mark(_seconds(tags.CONTENT_TIME), tags.CONTENT_TIME, weaves=True, ordered=True),
    Mark(lambda frame: frame.instance, weaves=True, ordered=True),
    Mark(lambda frame: frame.stored.path.rpartition("/")[0], repeats=True),
    Mark(lambda frame: (frame.stored.path, frame.index), ordered=True, repeats=True),
    Mark(lambda frame: _numbers(frame.sop_uid), ordered=True, repeats=True),
)
"""Orders in which frames were made or numbered. Those of names are the last resort, where most positions have several
images and nothing else tells why."""


def _numbers(uid: str) -> tuple[tuple[int, str], ...]:
    return tuple((len(part), part) for part in uid.split("."))
