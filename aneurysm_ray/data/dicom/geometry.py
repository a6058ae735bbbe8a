"""Which frames of a series make its volume, in which order, and what is uneven about them.

A series may hold several things: scouts, projections, stacks of other orientation, passes, duplicates. One volume is
chosen by rules that depend on nothing but the headers, and in a CT of several phases on their vessels; everything else
is dropped and reported.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.data.dicom.frames import Frame
from aneurysm_ray.data.dicom.marks import contrast_agent, kernel, order, units
from aneurysm_ray.data.dicom.multiframe import AXIAL
from aneurysm_ray.data.dicom.passes import (
    EVEN_ATOL_MM,
    EVEN_RTOL,
    REPEATED,
    SAME_POSITION_MM,
    distances_mm,
    normal_of,
    passes,
    positions,
)
from aneurysm_ray.data.dicom.quality import Dropped
from aneurysm_ray.data.volume import largest_gap_mm

SAME_DIRECTION = 5e-3
"""Direction cosines that differ by less are one orientation (0.3 degrees)."""
SAME_SPACING_RTOL = 1e-3
"""Pixel spacings that differ by less are one."""
MULTIPLE_RTOL = 0.1
"""A step within this share of the median around a multiple of it is a gap of missing slices."""
TILT_DEGREES, TILT_MM = 0.2, 0.1
"""A stack is tilted where it leans by more than both: an angle, and a way over the whole stack."""
SHIFT_MM = 0.1
"""A slice farther in its plane from the stack's straight line is shifted."""
WHOLE_PASS = 0.9
"""A pass with this share of the slices of the largest one is as whole as that."""
STRAY_SHARE = 0.1
"""Slices beyond a gap that are fewer than this share of a stack are strays, and no part of the head."""

COMPARED_STACKS = 100
"""Stacks that a frame is compared with: a rotating projection has hundreds, and every pair would take minutes."""

_PROJECTIONS = ("PROJECTION IMAGE", "MIP", "MINIP", "MAXIMUM", "MAX_IP", "MIN_IP")
_PHASES = ("P", "PHASE", "PHASE MAP", "PHASE_MAP", "SW_P", "R", "REAL", "I", "IMAGINARY", "MIXED")


@dataclass(frozen=True)
class Stack:
    """Frames chosen for a volume: for each position along the normal the candidates, the best first."""

    slots: tuple[tuple[Frame, ...], ...]
    dropped: tuple[Dropped, ...]
    ambiguous: bool = False
    """Most positions have several images and nothing tells which of them belong together."""


def choose(frames: list[Frame], brighter: Callable[[list[Frame], list[Frame]], bool] | None = None) -> Stack:
    """Choose the frames of one volume; the stack has no slots where no frame has a place in space.

    In turn: the series with the most images, CT and MR before others; frames with a position; no scouts, projections or
    phase images where anything else is there; of all passes of all stacks (orientation, matrix, spacing) one, whole,
    see `_chosen`, where `brighter` says of two CT passes whether the second shows brighter vessels; no slices beyond a
    gap that holds nothing. Where images of a pass share a position, the lowest Acquisition, then Instance Number leads.
    """
    dropped: list[Dropped] = []

    def keep(kept: Iterable[Frame], code: str, message: str) -> None:
        nonlocal frames
        kept = list(kept)
        if len(kept) == len(frames):
            return
        stay = set(map(id, kept))
        dropped.extend(dropped_frame(frame, code, message) for frame in frames if id(frame) not in stay)
        frames = [frame for frame in frames if id(frame) in stay]

    def avoid(test: Callable[[Frame], bool], code: str, message: str) -> None:
        rest = [frame for frame in frames if not test(frame)]
        keep(rest or frames, code, message)

    counts = Counter(frame.series_uid for frame in frames)
    scanned = {frame.series_uid for frame in frames if frame.modality in ("CT", "MR") and frame.position_mm}
    series_uid = min(counts, key=lambda uid: (uid not in scanned, -counts[uid], uid), default="")
    keep([f for f in frames if f.series_uid == series_uid], "other_series", "is of another series")
    frames = _placed(frames, dropped)
    keep([f for f in frames if "LOCALIZER" not in f.kind], "localizers", "is a scout")
    avoid(_is_projection, "projections", "is a projection")
    avoid(_is_phase, "other_components", "is no magnitude image")
    if not frames:
        return Stack((), tuple(dropped))
    copies = _copies(frames)
    stacks = _stacks([same[0] for same in copies.values()] if copies else frames)
    best, parts, stack = _chosen(stacks, brighter)
    others = [frame for other in stacks if other is not stack for frame in other]
    dropped += [dropped_frame(f, "other_stacks", "is of another orientation, matrix or spacing") for f in others]
    frames = stack
    keep([*best, *_repeats(best, parts)], "other_passes", "is of another pass: reconstruction, phase, echo or time")
    keep(_without_strays(frames), "far_slices", "stands beyond a gap")
    leads = set(map(id, best))
    slots = [sorted(slot, key=lambda frame: (id(frame) not in leads, order(frame))) for slot in _slots(frames)]
    return Stack(
        tuple(tuple(c for f in slot for c in copies[_where(f)]) if copies else tuple(slot) for slot in slots),
        tuple(dropped),
        ambiguous=sum(len(slot) > 1 for slot in slots) > REPEATED * len(slots),
    )


def _where(frame: Frame) -> tuple[object, ...]:
    told = frame.kind, frame.echo_ms, frame.b_value, frame.temporal, frame.marks
    return frame.sop_uid, frame.index, frame.position_mm, frame.orientation, told


def _copies(frames: list[Frame]) -> dict[tuple[object, ...], list[Frame]]:
    """Return images by name and place, copies behind the first in order; nothing where each name is one image's."""
    if len({(frame.sop_uid, frame.index) for frame in frames}) == len(frames):
        return {}
    found: dict[tuple[object, ...], list[Frame]] = {}
    for frame in frames:
        found.setdefault(_where(frame), []).append(frame)
    for same in found.values():
        same.sort(key=order)
    return found


def _chosen(
    stacks: list[list[Frame]], brighter: Callable[[list[Frame], list[Frame]], bool] | None
) -> tuple[list[Frame], list[list[Frame]], list[Frame]]:
    """Return the pass that becomes the volume, all passes of its stack, and that stack.

    The pass with the most slices. Of passes that are nearly as whole (`WHOLE_PASS`): the finest pixels; Hounsfield
    units before other maps; in CT the one whose header names a contrast agent, else the one with the brighter vessels
    if the two differ in nothing but when they were scanned; then again the most slices; else the first kind of image,
    the lowest echo time, b-value, Temporal Position, Acquisition and Instance Number.
    """
    found: list[tuple[int, list[Frame], list[Frame]]] = []
    most = 0
    for stack in sorted(stacks, key=len, reverse=True):
        if len(stack) < WHOLE_PASS * most:
            break
        found += [(positions(part), part, stack) for part in passes(stack)]
        most = max(count for count, _, _ in found)
    whole = [(count, part, stack) for count, part, stack in found if count >= WHOLE_PASS * most]
    kinds = {frame.kind: None for _, part, _ in whole for frame in sorted(part, key=order)}
    kind_order = {kind: place for place, kind in enumerate(kinds)}

    def rank(count: int, part: list[Frame]) -> tuple[object, ...]:
        first = min(part, key=order)
        told = kind_order[first.kind], first.echo_ms, first.b_value, first.temporal, order(first)
        return *_class(part), -count, *told

    whole.sort(key=lambda one: rank(*one[:2]))
    _, best, stack = whole[0]
    for _, part, its in whole[1:]:
        twin = its is stack and part[0].modality == "CT" and _class(part) == _class(best)
        if brighter and twin and kernel(part[0]) == kernel(best[0]) and brighter(best, part):
            best = part
    return best, [part for _, part, its in found if its is stack], stack


def _class(part: list[Frame]) -> tuple[object, ...]:
    first = part[0]
    agent = first.modality == "CT" and contrast_agent(first) not in (b"", b"NO", b"NONE", b"WITHOUT")
    return first.spacing_mm[0] * first.spacing_mm[1], bool(units(first)), not agent


def _repeats(best: list[Frame], parts: list[list[Frame]]) -> list[Frame]:
    """Return single images of other passes that repeat a slice of the chosen one: candidates where that is damaged.

    A pass that repeats more than a few slices is a pass, and no image of it ever stands in for one of another.
    """
    found: list[Frame] = []
    if len(parts) < 2:
        return found
    at_mm = distances_mm(best)
    for part in parts:
        if part is not best and positions(part) <= STRAY_SHARE * len(at_mm):
            away = np.abs(distances_mm([best[0], *part])[1:, None] - at_mm).min(axis=1)
            found += part if away.max() <= SAME_POSITION_MM and _class(part) == _class(best) else []
    return found


def _without_strays(frames: Sequence[Frame]) -> list[Frame]:
    """Return frames less those beyond a gap that is too wide to be filled, where these are few."""
    at_mm = distances_mm(list(frames))
    ordered = np.argsort(at_mm, kind="stable")
    steps = np.diff(at_mm[ordered])
    parts = np.split(ordered, np.flatnonzero(steps > largest_gap_mm(steps)) + 1)
    enough = STRAY_SHARE * max(map(len, parts))
    return [
        frames[index] for part in parts if len(part) > enough or len(part) == max(map(len, parts)) for index in part
    ]


def dropped_frame(frame: Frame, code: str, message: str) -> Dropped:
    """Return the report of a frame that is not in the volume."""
    part = f" (frame {frame.index})" if frame.stored.frames > 1 else ""
    return Dropped(frame.stored.path + part, code, message, frame)


def _placed(frames: list[Frame], dropped: list[Dropped]) -> list[Frame]:
    """Return frames with position and orientation; where none at all has one, it is assumed and noted."""
    if any(frame.orientation for frame in frames):
        dropped.extend(
            dropped_frame(frame, "no_geometry", "has no Image Orientation (Patient)")
            for frame in frames
            if not frame.orientation
        )
        frames = [frame for frame in frames if frame.orientation]
    else:
        frames = [replace(f, orientation=AXIAL, notes=(*f.notes, "orientation_assumed")) for f in frames]
    if any(frame.position_mm for frame in frames):
        dropped.extend(
            dropped_frame(frame, "no_geometry", "has no Image Position (Patient)")
            for frame in frames
            if not frame.position_mm
        )
        return [frame for frame in frames if frame.position_mm]
    dropped.extend(
        dropped_frame(frame, "no_geometry", "has neither Image Position (Patient) nor Slice Location")
        for frame in frames
        if frame.slice_location_mm is None
    )
    return [_at_slice_location(frame) for frame in frames if frame.slice_location_mm is not None]


def _at_slice_location(frame: Frame) -> Frame:
    """Place a frame at its Slice Location along the normal, pointing to the head, left or back as patient axes do."""
    normal = normal_of(frame)
    axis = int(np.argmax(np.abs(normal)))
    away = normal * np.sign(normal[axis])
    assert frame.slice_location_mm is not None
    position = tuple((away * frame.slice_location_mm).tolist())
    return replace(frame, position_mm=position, notes=(*frame.notes, "position_assumed"))


def _is_projection(frame: Frame) -> bool:
    return any(part in _PROJECTIONS or part.startswith("MIP_") for part in frame.kind[2:])


def _is_phase(frame: Frame) -> bool:
    return frame.modality == "MR" and any(part in _PHASES or part.startswith("SW_P_") for part in frame.kind[2:])


def _stacks(frames: list[Frame]) -> list[list[Frame]]:
    """Group frames of one matrix, pixel spacing and orientation."""
    stacks: list[list[Frame]] = []
    known: dict[object, list[Frame]] = {}
    for frame in frames:
        exact = (frame.shape, frame.spacing_mm, frame.orientation)
        stack = known.get(exact)
        if stack is None:
            stack = next((stack for stack in stacks[:COMPARED_STACKS] if _alike(stack[0], frame)), None)
            if stack is None:
                stack = []
                stacks.append(stack)
            known[exact] = stack
        stack.append(frame)
    return stacks


def _alike(one: Frame, other: Frame) -> bool:
    assert one.orientation and other.orientation
    return (
        one.shape == other.shape
        and all(abs(a - b) <= SAME_SPACING_RTOL * a for a, b in zip(one.spacing_mm, other.spacing_mm, strict=True))
        and all(abs(a - b) <= SAME_DIRECTION for a, b in zip(one.orientation, other.orientation, strict=True))
    )


def _slots(frames: list[Frame]) -> list[list[Frame]]:
    """Group frames by position along the normal, in its direction."""
    if not frames:
        return []
    distances = distances_mm(frames)
    order = np.argsort(distances, kind="stable")
    slots: list[list[Frame]] = []
    last = -np.inf
    for index in order.tolist():
        if distances[index] - last > SAME_POSITION_MM:
            slots.append([])
            last = distances[index]
        slots[-1].append(frames[index])
    return slots


@dataclass(frozen=True)
class Placement:
    """Slices in space."""

    affine: NDArray[np.float64]
    """(4, 4): voxel (z, y, x, 1) to patient mm; a regular grid from the first slice to the last."""
    origins_mm: NDArray[np.float64]
    """(Z, 3)."""
    notes: tuple[str, ...]


def place(frames: list[Frame]) -> Placement:
    """Return affine and true positions of ordered slices, with codes for what is uneven; needs two slices or more."""
    first = frames[0]
    assert first.orientation is not None
    normal = normal_of(first)
    origins = np.array([frame.position_mm for frame in frames])
    distances = (origins - origins[0]) @ normal
    step = (origins[-1] - origins[0]) / (len(frames) - 1)
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = np.array(first.orientation[3:]) * first.spacing_mm[0]
    affine[:3, 2] = np.array(first.orientation[:3]) * first.spacing_mm[1]
    affine[:3, 3] = origins[0]
    return Placement(affine, origins, (*_step_notes(np.diff(distances)), *_lean_notes(origins, distances, normal)))


def _step_notes(steps: NDArray[np.float64]) -> list[str]:
    median = float(np.median(steps))
    uneven = steps[np.abs(steps - median) > np.maximum(EVEN_RTOL * median, EVEN_ATOL_MM)]
    multiples = np.round(uneven / median)
    wide = bool((steps > largest_gap_mm(steps)).any())
    missing = (multiples >= 2) & (np.abs(uneven - multiples * median) <= MULTIPLE_RTOL * median)
    return ["missing_slices"] * bool(missing.any()) + ["uneven_slices"] * bool((~missing).any()) + ["wide_gap"] * wide


def _lean_notes(origins: NDArray[np.float64], distances: NDArray[np.float64], normal: NDArray[np.float64]) -> list[str]:
    way = origins[-1] - origins[0]
    sideways = way - (way @ normal) * normal
    lean = float(np.linalg.norm(sideways))
    tilted = lean > TILT_MM and np.degrees(np.arctan2(lean, distances[-1])) > TILT_DEGREES
    straight = origins[0] + distances[:, None] / distances[-1] * way
    shifted = float(np.abs(origins - straight).max()) > SHIFT_MM
    return ["gantry_tilt"] * bool(tilted) + ["shifted_slices"] * bool(shifted)
