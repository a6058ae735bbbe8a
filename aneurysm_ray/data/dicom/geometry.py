"""Which frames of a series make its volume, in which order, and what is uneven about them.

A series may hold several things: scouts, projections, stacks of other orientation, echoes, time points, duplicates. One
volume is chosen by rules that depend on nothing but the headers; everything else is dropped and reported.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.data.dicom.frames import Frame
from aneurysm_ray.data.dicom.multiframe import AXIAL
from aneurysm_ray.data.dicom.quality import Dropped

SAME_POSITION_MM = 0.01
"""Slices nearer along their normal stand at one position."""
SAME_DIRECTION = 5e-3
"""Direction cosines that differ by less are one orientation (0.3 degrees)."""
SAME_SPACING_RTOL = 1e-3
"""Pixel spacings that differ by less are one."""
EVEN_RTOL, EVEN_ATOL_MM = 0.05, 0.02
"""Steps between slices that differ from the median by less are even; positions are often rounded to 0.01 mm."""
MULTIPLE_RTOL = 0.1
"""A step within this share of the median around a multiple of it is a gap of missing slices."""
TILT_DEGREES, TILT_MM = 0.2, 0.1
"""A stack is tilted where it leans by more than both: an angle, and a way over the whole stack."""
SHIFT_MM = 0.1
"""A slice farther in its plane from the stack's straight line is shifted."""
PASS_COVERAGE = 0.9
"""Share of a stack's positions that one echo or time point must cover to be a volume of its own."""

COMPARED_STACKS = 100
"""Stacks that a frame is compared with: a rotating projection has hundreds, and every pair would take minutes."""

_PROJECTIONS = ("PROJECTION IMAGE", "MIP", "MINIP", "MAXIMUM", "MAX_IP", "MIN_IP")
_PHASES = ("P", "PHASE", "PHASE MAP", "PHASE_MAP", "SW_P", "R", "REAL", "I", "IMAGINARY", "MIXED")


@dataclass(frozen=True)
class Stack:
    """Frames chosen for a volume: for each position along the normal the candidates, the best first."""

    slots: tuple[tuple[Frame, ...], ...]
    dropped: tuple[Dropped, ...]


def choose(frames: list[Frame]) -> Stack:
    """Choose the frames of one volume; the stack has no slots where no frame has a place in space.

    In turn: the series with the most images; frames with a position; no scouts, projections or phase images where
    anything else is there; the stack (orientation, matrix, spacing) with the most positions, among equals the finest;
    of several echoes or time points that cover the same positions the first one; at each position the lowest
    Acquisition Number, then Instance Number.
    """
    dropped: list[Dropped] = []

    def keep(kept: Iterable[Frame], code: str, message: str) -> None:
        nonlocal frames
        stay = set(map(id, kept))
        dropped.extend(dropped_frame(frame, code, message) for frame in frames if id(frame) not in stay)
        frames = [frame for frame in frames if id(frame) in stay]

    def avoid(test: Callable[[Frame], bool], code: str, message: str) -> None:
        rest = [frame for frame in frames if not test(frame)]
        keep(rest or frames, code, message)

    counts = Counter(frame.series_uid for frame in frames)
    series_uid = min(counts, key=lambda uid: (-counts[uid], uid), default="")
    keep([f for f in frames if f.series_uid == series_uid], "other_series", "is of another series")
    frames = _placed(frames, dropped)
    keep([f for f in frames if "LOCALIZER" not in f.kind], "localizers", "is a scout")
    avoid(_is_projection, "projections", "is a projection")
    avoid(_is_phase, "other_components", "is no magnitude image")
    stacks = sorted(_stacks(frames), key=_rank)
    keep(stacks[0] if stacks else [], "other_stacks", "is of another orientation, matrix or spacing")
    keep(_one_pass(frames), "other_passes", "is of another echo or time point")
    slots = tuple(tuple(sorted(slot, key=_order)) for slot in _slots(frames))
    return Stack(slots, tuple(dropped))


def dropped_frame(frame: Frame, code: str, message: str) -> Dropped:
    """Return the report of a frame that is not in the volume."""
    part = f" (frame {frame.index})" if frame.stored.frames > 1 else ""
    return Dropped(frame.stored.path + part, code, message)


def _order(frame: Frame) -> tuple[int, int, str, int]:
    return frame.acquisition, frame.instance, frame.stored.path, frame.index


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


def normal_of(frame: Frame) -> NDArray[np.float64]:
    """Return the slice normal: row direction x column direction (PS3.3 C.7.6.2.1.1)."""
    assert frame.orientation is not None
    a, b, c, d, e, f = frame.orientation
    return np.array((b * f - c * e, c * d - a * f, a * e - b * d))


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


def _rank(stack: list[Frame]) -> tuple[int, float, tuple[int, int, str, int]]:
    first = stack[0]
    return -len(_slots(stack)), first.spacing_mm[0] * first.spacing_mm[1], min(map(_order, stack))


def distances_mm(frames: list[Frame]) -> NDArray[np.float64]:
    """Return each frame's position along the normal of the first one."""
    return np.array([frame.position_mm for frame in frames]) @ normal_of(frames[0])


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


def _one_pass(frames: list[Frame]) -> list[Frame]:
    """Return the frames of the first image type, echo, diffusion weight, time or acquisition that is a whole volume."""
    splits: tuple[Callable[[Frame], tuple[object, ...]], ...] = (
        lambda frame: (frame.kind if frame.modality == "MR" else (),),
        lambda frame: (frame.echo_ms,),
        lambda frame: (frame.b_value,),
        lambda frame: (frame.temporal,),
        lambda frame: (frame.acquisition,),
    )
    for split in splits:
        positions = len(_slots(frames))
        if positions == len(frames):
            break
        parts: dict[tuple[object, ...], list[Frame]] = {}
        for frame in sorted(frames, key=_order):
            parts.setdefault(split(frame), []).append(frame)
        whole = [key for key, part in parts.items() if len(_slots(part)) >= PASS_COVERAGE * positions]
        if len(parts) > 1 and whole:
            # Image types keep the order of their first image; numbers count from the lowest.
            chosen = whole[0] if split is splits[0] else min(whole, key=lambda key: float(str(key[0])))
            frames = parts[chosen]
    return frames


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
    missing = (multiples >= 2) & (np.abs(uneven - multiples * median) <= MULTIPLE_RTOL * median)
    return ["missing_slices"] * bool(missing.any()) + ["uneven_slices"] * bool((~missing).any())


def _lean_notes(origins: NDArray[np.float64], distances: NDArray[np.float64], normal: NDArray[np.float64]) -> list[str]:
    way = origins[-1] - origins[0]
    sideways = way - (way @ normal) * normal
    lean = float(np.linalg.norm(sideways))
    tilted = lean > TILT_MM and np.degrees(np.arctan2(lean, distances[-1])) > TILT_DEGREES
    straight = origins[0] + distances[:, None] / distances[-1] * way
    shifted = float(np.abs(origins - straight).max()) > SHIFT_MM
    return ["gantry_tilt"] * bool(tilted) + ["shifted_slices"] * bool(shifted)
