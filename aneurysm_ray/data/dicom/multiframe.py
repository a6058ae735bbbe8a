"""Frames of a multi-frame file: functional groups per frame, then shared, then the top level (PS3.3 C.7.6.16)."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from aneurysm_ray.data.dicom import elements as tags
from aneurysm_ray.data.dicom.fields import (
    SPACING_LIMITS_MM,
    Vector,
    checked_intercept,
    checked_position,
    checked_slope,
    checked_spacing,
    number,
    orthonormal,
    text,
)
from aneurysm_ray.data.dicom.frames import Frame
from aneurysm_ray.data.dicom.header import RawHeader
from aneurysm_ray.data.dicom.quality import BadFile
from aneurysm_ray.errors import shown

AXIAL: Vector = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def has_groups(raw: RawHeader) -> bool:
    """Whether a file describes its frames by functional groups."""
    return raw.dataset is not None and (tags.PER_FRAME_GROUPS in raw.dataset or tags.SHARED_GROUPS in raw.dataset)


def grouped_frames(whole: Frame, raw: RawHeader) -> list[Frame]:
    """Return the frames that functional groups describe; `whole` holds what the top level says."""
    assert raw.dataset is not None
    per_frame = _items(raw.dataset, "PerFrameFunctionalGroupsSequence")
    shared = _items(raw.dataset, "SharedFunctionalGroupsSequence")[:1]
    count = whole.stored.frames
    if per_frame and len(per_frame) != count:
        raise BadFile("no_geometry", f"has functional groups for {len(per_frame)} of {count} frames")
    frames = [_placed(whole, index, [*per_frame[index : index + 1], *shared, raw.dataset]) for index in range(count)]
    if any(frame.position_mm is None for frame in frames) and count > 1:
        return stacked_frames(frames[0], raw)
    return frames


def _placed(whole: Frame, index: int, levels: list[Any]) -> Frame:
    """Return one frame by the first level that knows each thing."""
    notes = list(whole.notes)
    position = _numbers(levels, "PlanePositionSequence", "ImagePositionPatient", 3)
    orientation = _numbers(levels, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    spacing = _numbers(levels, "PixelMeasuresSequence", "PixelSpacing", 2)
    slope = _number(levels, "PixelValueTransformationSequence", "RescaleSlope")
    intercept = _number(levels, "PixelValueTransformationSequence", "RescaleIntercept")
    if whole.modality == "CT" and slope is None and intercept is None and (whole.slope, whole.intercept) == (1, 0):
        notes.append("rescale_assumed")
    kind = _first(levels, ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence"), "FrameType")
    component = _first(levels, ("MRImageFrameTypeSequence",), "ComplexImageComponent")
    return replace(
        whole,
        index=index,
        position_mm=whole.position_mm if position is None else checked_position(position),
        orientation=whole.orientation if orientation is None else orthonormal(orientation, notes),
        spacing_mm=checked_spacing(spacing or whole.spacing_mm or None),
        slope=whole.slope if slope is None else checked_slope(slope),
        intercept=whole.intercept if intercept is None else checked_intercept(intercept),
        kind=(*(str(part).upper() for part in (kind or whole.kind)), *((str(component).upper(),) if component else ())),
        instance=index,
        acquisition=int(_number(levels, "FrameContentSequence", "FrameAcquisitionNumber") or whole.acquisition),
        temporal=int(_number(levels, "FrameContentSequence", "TemporalPositionIndex") or whole.temporal),
        echo_ms=_number(levels, "MREchoSequence", "EffectiveEchoTime") or whole.echo_ms,
        b_value=_number(levels, "MRDiffusionSequence", "DiffusionBValue") or 0.0,
        marks=_marks(whole, levels[:-1]),
        notes=tuple(dict.fromkeys(notes)),
    )


_MARKS = {
    tags.RESCALE_TYPE: ("PixelValueTransformationSequence", "RescaleType"),
    tags.KERNEL: ("CTReconstructionSequence", "ConvolutionKernel"),
    tags.KVP: ("CTXRayDetailsSequence", "KVP"),
    tags.INVERSION_TIME: ("MRModifierSequence", "InversionTimes"),
    tags.FLIP_ANGLE: ("MRTimingAndRelatedParametersSequence", "FlipAngle"),
    tags.TRIGGER_TIME: ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    tags.SLICE_THICKNESS: ("PixelMeasuresSequence", "SliceThickness"),
    tags.ACQUISITION_DATETIME: ("FrameContentSequence", "FrameAcquisitionDateTime"),
}
"""Functional group and element that say of a frame what `elements.PASS_TAGS` say of a file."""


def _marks(whole: Frame, groups: list[Any]) -> tuple[bytes | None, ...]:
    """Return what tells a frame's pass: its groups' word where they have one, else that of the top level."""
    told = {tag: value for tag, names in _MARKS.items() if (value := _first(groups, names[:1], names[1])) is not None}
    return tuple(
        str(told[tag]).encode("ascii", "replace") if tag in told else mark
        for tag, mark in zip(tags.PASS_TAGS, whole.marks, strict=True)
    )


def stacked_frames(first: Frame, raw: RawHeader) -> list[Frame]:
    """Return frames that have no positions of their own: stored order along the normal, nominal spacing, flagged."""
    step = _nominal_step_mm(raw)
    if step is None:
        raise BadFile("no_geometry", f"has {first.stored.frames} frames without positions or slice spacing")
    orientation = first.orientation or AXIAL
    normal = np.cross(orientation[:3], orientation[3:])
    start = np.array(first.position_mm or (0.0, 0.0, 0.0))
    notes = tuple(dict.fromkeys((*first.notes, "geometry_assumed")))
    return [
        replace(
            first,
            index=index,
            instance=index,
            position_mm=tuple((start + index * step * normal).tolist()),
            orientation=orientation,
            notes=notes,
        )
        for index in range(first.stored.frames)
    ]


def _nominal_step_mm(raw: RawHeader) -> float | None:
    """Return Spacing Between Slices, else Slice Thickness, from the top level or the shared groups.

    A negative spacing says that the frames run against the normal, as in nuclear medicine (PS3.3 C.8.4.15).
    """
    candidates = [text(raw.values, tag) for tag in (tags.SPACING_BETWEEN_SLICES, tags.SLICE_THICKNESS)]
    if raw.dataset is not None:
        for name in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
            for groups in _items(raw.dataset, name)[:1]:
                for measures in _items(groups, "PixelMeasuresSequence")[:1]:
                    candidates += [str(measures.get(key, "")) for key in ("SpacingBetweenSlices", "SliceThickness")]
    for candidate in candidates:
        if candidate and candidate != "None":
            step = number(candidate, "slice spacing")
            if SPACING_LIMITS_MM[0] <= abs(step) <= SPACING_LIMITS_MM[1]:
                return step
    return None


def _items(level: Any, name: str) -> list[Any]:
    value = level.get(name)
    return list(value) if value else []


def _first(levels: list[Any], groups: Iterable[str], name: str) -> Any:
    for level in levels:
        for group in groups:
            for item in _items(level, group)[:1]:
                if item.get(name):
                    return item.get(name)
    return None


def _numbers(levels: list[Any], group: str, name: str, count: int) -> Vector | None:
    value = _first(levels, (group,), name)
    if value is None:
        return None
    if isinstance(value, (str, bytes)) or not hasattr(value, "__len__") or len(value) != count:
        raise BadFile("no_geometry", f"has as {name} {shown(str(value))}")
    return tuple(number(str(part), name) for part in value)


def _number(levels: list[Any], group: str, name: str) -> float | None:
    for level in levels:
        for item in _items(level, group)[:1]:
            if item.get(name) is not None:
                return number(str(item.get(name)), name)
    return None
