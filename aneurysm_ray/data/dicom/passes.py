"""The passes of a stack: frames that belong together, told apart before anybody asks where they stand.

A series may hold several reconstructions, contrast phases, energies, echoes, time points, a repeat after the patient
moved. A volume is one pass. `passes` splits a stack by what the headers say - each of `marks.MARKS` in turn - and,
where images still share their positions, by where their pictures lie in their planes and by the order in which they
were made. Parts of one scan that follow each other along the normal, and packages of slices that lie between each
other, stay together.
"""

from collections.abc import Hashable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.data.dicom import elements as tags
from aneurysm_ray.data.dicom.frames import Frame
from aneurysm_ray.data.dicom.marks import MARKS, ORDERS, Mark, number, order
from aneurysm_ray.data.volume import typical_step_mm

SAME_POSITION_MM = 0.01
"""Slices nearer along their normal stand at one position."""
NEAR = 0.3
"""Share of a stack's typical step within which two images of different passes show the same slice."""
EVEN_RTOL, EVEN_ATOL_MM = 0.05, 0.02
"""Steps between slices that differ from the median by less are even; positions are often rounded to 0.01 mm."""
THICK = 1.5
"""Packages that lie between each other have slices no thicker than so many steps of the whole."""
LONG_WAIT, FAR_STEPS = 3.0, 4
"""What is waited for longer than so many times as usual, or lies so many steps away, belongs to another go."""
OUT_OF_STEP = 0.25
"""A lone slice is no part of a stack where it lies off the stack's steps by this share of them."""
SHIFT_MM = 0.1
"""Images of one slice whose first pixels lie farther apart in the plane are of two passes."""
WHOLE = 0.9
"""Share of the positions that an order of frames must put into its best pass to be believed."""
REPEATED = 0.5
"""Share of positions with two images or more above which a stack holds a second pass, and not a few repeated slices."""
SLAB_OVERLAP = 0.2
"""Share of the shorter of two MR slabs that may overlap with the other and be taken from one of them."""
MAX_GROUPS, MAX_KINDS = 10_000, 100
"""Values of a mark, ordered or not, beyond which it is noise: comparing every pair would take minutes."""

Positions = NDArray[np.float64]


def normal_of(frame: Frame) -> Positions:
    """Return the slice normal: row direction x column direction (PS3.3 C.7.6.2.1.1)."""
    assert frame.orientation is not None
    a, b, c, d, e, f = frame.orientation
    return np.array((b * f - c * e, c * d - a * f, a * e - b * d))


def distances_mm(frames: Sequence[Frame]) -> Positions:
    """Return each frame's position along the normal of the first one."""
    return np.array([frame.position_mm for frame in frames]) @ normal_of(frames[0])


def positions(frames: Sequence[Frame]) -> int:
    """Return at how many positions a stack's frames stand."""
    return len(_distinct(distances_mm(frames), SAME_POSITION_MM)) if frames else 0


def _distinct(distances: Positions, tolerance_mm: float) -> Positions:
    """Return sorted distances, each farther than the tolerance from the last one kept."""
    ordered = np.sort(distances)
    if len(ordered) < 2 or np.diff(ordered).min() > tolerance_mm:
        return ordered
    kept: list[float] = []
    for distance in ordered.tolist():
        if not kept or distance - kept[-1] > tolerance_mm:
            kept.append(distance)
    return np.array(kept)


def passes(frames: list[Frame]) -> list[list[Frame]]:
    """Return the passes of a stack: frames of one matrix, spacing and orientation, all with positions."""
    found = [frames]
    at_mm = distances_mm(frames)
    if np.ptp(at_mm) <= SAME_POSITION_MM:
        return found
    # Most series have one pass, and most marks one value in it: those cost a look.
    constant = {
        tag
        for tag, values in zip(tags.PASS_TAGS, zip(*{frame.marks for frame in frames}, strict=True), strict=True)
        if len(set(values)) == 1
    }
    even = _is_even(frames, at_mm)
    for mark in MARKS:
        if mark.tag not in constant and not (even and mark.weaves):
            found = [part for whole in found for part in _split(whole, mark)]
    if even:
        return found
    found = [part for whole in found for part in _by_place(whole)]
    for mark in ORDERS:
        if mark.repeats and all(_repeated(part) < REPEATED for part in found):
            break
        if mark.tag not in constant:
            found = [part for whole in found for part in _split(whole, mark)]
    return found


class _Group:
    """Frames with one value of a mark, along the normal."""

    def __init__(self, value: Hashable, frames: list[Frame], at_mm: Positions) -> None:
        self.value = self.last = value
        """Of the first and of the last frame, in the order that they were made in."""
        self.start_mm, self.end_mm = float(at_mm[0]), float(at_mm[-1])
        self.keep(frames, at_mm)

    def keep(self, frames: list[Frame], at_mm: Positions) -> None:
        """Hold these frames, at these places, and no others."""
        self.frames, self.at_mm = frames, at_mm
        self.low, self.high = float(at_mm.min()), float(at_mm.max())


def _split(frames: list[Frame], mark: Mark) -> list[list[Frame]]:
    """Return the passes that a mark tells apart, or all frames as one."""
    if mark.repeats and _repeated(frames) < REPEATED:
        return [frames]
    values = [mark.of(frame) for frame in frames]
    if len(set(values)) < 2:
        return [frames]
    at_mm = distances_mm(frames)
    if mark.ordered and not mark.repeats and _one_way(values, at_mm):
        return [frames]
    near = _near_mm(frames, at_mm)
    groups = _groups(frames, values, at_mm, mark)
    if len(groups) > (MAX_GROUPS if mark.ordered else MAX_KINDS):
        return [frames]
    if not mark.joins:
        return [group.frames for group in groups]
    one_each = len(groups) == len(frames)
    if mark.ordered:
        groups = _goes(groups)
    if _apart(groups, near):
        return [frames] if one_each else _lone_ones(groups, near)
    if mark.weaves and _is_even(frames, at_mm):
        return [frames]
    chains = _chains(groups, near, mark, slabs=frames[0].modality == "MR")
    # Where every image has a value of its own, such as a time, the values are only an order: it must make sense.
    if max(len(_distinct(group.at_mm, near)) for group in groups) < 3 or mark.repeats:
        best = max(len(_distinct(np.concatenate([group.at_mm for group in chain]), near)) for chain in chains)
        counts = _counts(at_mm, near)
        if best < WHOLE * len(counts) or _repeated(frames) < REPEATED or (mark.repeats and len(chains) > counts.max()):
            return [frames]
    if one_each:
        return [[frame for group in chain for frame in group.frames] for chain in chains]
    return [part for chain in chains for part in _lone_ones(chain, near)]


def _one_way(values: list[Hashable], at_mm: Positions) -> bool:
    """Whether images with growing values lie one after another: all in one way, as in most series."""
    numbers = np.array(values, np.float64)
    steps = np.diff(at_mm[np.argsort(numbers, kind="stable")])
    return bool((len(np.unique(numbers)) == len(numbers)) and ((steps > 0).all() or (steps < 0).all()))


def _groups(frames: list[Frame], values: list[Hashable], at_mm: Positions, mark: Mark) -> list[_Group]:
    """Group frames by value: in its order, or that of the first frame with it."""
    members: dict[Hashable, list[int]] = {}
    for index in sorted(range(len(frames)), key=lambda index: order(frames[index])):
        members.setdefault(values[index], []).append(index)
    keys = sorted(members) if mark.ordered else list(members)  # type: ignore[type-var]
    return [_Group(key, [frames[i] for i in members[key]], at_mm[members[key]]) for key in keys]


def _goes(groups: list[_Group]) -> list[_Group]:
    """Return images that each have a value of their own as those that were made in one go, others as they are.

    A go ends before a long wait, and where the next image lies back, far ahead or out of step. That too many are made
    of it shows that the values are no order in which anybody scans.
    """
    if len(groups) < 4 or max(group.high - group.low for group in groups) > SAME_POSITION_MM:
        return groups
    steps = np.diff([group.low for group in groups])
    moved = np.abs(steps[np.abs(steps) > SAME_POSITION_MM])
    typical = float(np.median(moved)) if len(moved) else 1.0
    waits = _waits(groups)
    long = LONG_WAIT * float(np.median(waits)) if waits.any() else np.inf
    goes = [groups[:1]]
    way = 0.0
    for group, step, wait in zip(groups[1:], steps.tolist(), waits.tolist(), strict=True):
        count = round(abs(step) / typical)
        in_step = 1 <= count <= FAR_STEPS and abs(abs(step) - count * typical) <= NEAR / 2 * typical
        if in_step and step * way >= 0 and wait <= long:
            goes[-1].append(group)
            way = step
        else:
            goes.append([group])
            way = 0.0
    if len(groups) < 3 * len(goes):
        return groups
    return [_joined(go) for go in goes]


def _waits(groups: list[_Group]) -> Positions:
    """Return how much later each group begins than the one before it ended; 0 where values are no numbers."""
    if not all(isinstance(group.value, int | float) for group in groups):
        return np.zeros(len(groups) - 1)
    return np.array([float(after.value) - float(before.last) for before, after in pairwise(groups)])  # type: ignore[arg-type]


def _joined(go: list[_Group]) -> _Group:
    whole = _Group(go[0].value, [f for group in go for f in group.frames], np.concatenate([g.at_mm for g in go]))
    whole.last, whole.end_mm = go[-1].value, float(go[-1].at_mm[-1])
    return whole


def _repeated(frames: list[Frame]) -> float:
    """Return the share of positions at which several images stand."""
    if len(frames) < 2:
        return 0.0
    at_mm = distances_mm(frames)
    return float((_counts(at_mm, _near_mm(frames, at_mm)) > 1).mean())


def _near_mm(frames: list[Frame], at_mm: Positions) -> float:
    """Return within what distance two images show one slice of a stack."""
    near = NEAR * typical_step_mm(np.diff(np.sort(at_mm)))
    # Of a stack with many gaps the slices say how far they reach.
    thick = min((value for value in _thicknesses(frames) if value > 0), default=np.inf)
    return max(SAME_POSITION_MM, min(near, thick / 2))


def _thicknesses(frames: list[Frame]) -> list[float]:
    """Return the values of Slice Thickness that there are, -1 for none."""
    place = tags.PASS_TAGS.index(tags.SLICE_THICKNESS)
    return [number(tags.SLICE_THICKNESS)(frame) for frame in {frame.marks[place]: frame for frame in frames}.values()]


def _counts(at_mm: Positions, near: float) -> NDArray[np.intp]:
    """Return how many images stand at each position."""
    places = _distinct(at_mm, near)
    return np.bincount(np.searchsorted(places, at_mm + SAME_POSITION_MM / 10, "right") - 1, minlength=len(places))


def _apart(groups: list[_Group], near: float) -> bool:
    """Whether groups follow each other along the normal, none reaching into another."""
    ordered = sorted(groups, key=lambda group: (group.low, group.high))
    return not any(_overlap(below, above, near, slabs=False) for below, above in pairwise(ordered))


def _is_even(frames: list[Frame], at_mm: Positions) -> bool:
    """Whether frames make one even stack, no position twice and no slice much thicker than the step between them."""
    steps = np.diff(np.sort(at_mm))
    median = float(np.median(steps))
    if steps.min() <= SAME_POSITION_MM or steps.min() < median - max(EVEN_RTOL * median, EVEN_ATOL_MM):
        return False
    multiples = np.round(steps / median)
    if np.any(np.abs(steps - multiples * median) > np.maximum(EVEN_RTOL * multiples * median, EVEN_ATOL_MM)):
        return False
    return max(_thicknesses(frames)) <= THICK * median


def _chains(groups: list[_Group], near: float, mark: Mark, *, slabs: bool) -> list[list[_Group]]:
    """Put each group to a pass in which no other group reaches into it."""
    chains: list[list[_Group]] = []
    for group in groups:
        for chain in chains[-1:] if mark.ordered else chains:
            if not any(_overlap(group, other, near, slabs=slabs) for other in chain):
                chain.append(group)
                break
        else:
            if mark.ordered and chains:
                chains.append([*_late_ones(chains[-1], group, near), group])
            else:
                chains.append([group])
    return [_trimmed(chain) for chain in chains]


def _overlap(one: _Group, other: _Group, near: float, *, slabs: bool) -> bool:
    low, high = max(one.low, other.low), min(one.high, other.high)
    shorter, longer = sorted((one.high - one.low, other.high - other.low))
    # Parts of a scan may follow each other closely; two images that nearly coincide show one slice.
    if high - low < (-near if longer <= near else -SAME_POSITION_MM):
        return False
    return not (slabs and min(len(one.frames), len(other.frames)) > 3 and high - low <= SLAB_OVERLAP * shorter)


def _late_ones(chain: list[_Group], first: _Group, near: float) -> list[_Group]:
    """Take from the end of a pass what came after the widest break since the images that `first` repeats.

    A second pass that begins where the first one has nothing would otherwise leave its first images there.
    """
    repeated = max(i for i, group in enumerate(chain) if _overlap(first, group, near, slabs=False))
    tail = [*chain[repeated:], first]
    if len(tail) < 3:
        return []
    jumps = np.abs([after.start_mm - before.end_mm for before, after in pairwise(tail)])
    waits = _waits(tail)
    breaks = jumps if waits.max() <= LONG_WAIT * float(np.median(waits)) else waits
    cut = repeated + 1 + int(np.flatnonzero(breaks == breaks.max())[-1])
    late = chain[cut:]
    del chain[cut:]
    return late


def _trimmed(chain: list[_Group]) -> list[_Group]:
    """Cut slabs that overlap in the middle of what they share, so that every position is of one of them."""
    chain = sorted(chain, key=lambda group: group.low)
    for below, above in pairwise(chain):
        if below.high >= above.low:
            middle = (above.low + below.high) / 2
            for group, keep in ((below, below.at_mm <= middle), (above, above.at_mm > middle)):
                group.keep([frame for frame, stays in zip(group.frames, keep, strict=True) if stays], group.at_mm[keep])
    return chain


def _lone_ones(groups: list[_Group], near: float) -> list[list[Frame]]:
    """Return groups as one pass, less single slices that stand beside larger ones out of step, as locators do."""
    counts = [len(_distinct(group.at_mm, near)) for group in groups]
    rest = [group for group, count in zip(groups, counts, strict=True) if count > 1]
    if max(counts) < 3 or len(rest) == len(groups):
        return [[frame for group in groups for frame in group.frames]]
    stack = _distinct(np.concatenate([group.at_mm for group in rest]), near)
    step = typical_step_mm(np.diff(stack))
    found: list[list[Frame]] = [[]]
    for group, count in zip(groups, counts, strict=True):
        away = float(np.abs(stack - group.low).min())
        steps = round(away / step) if step else 0
        if count == 1 and not (1 <= steps < FAR_STEPS and abs(away - steps * step) <= OUT_OF_STEP * step):
            found.append(group.frames)
        else:
            found[0] += group.frames
    return found


def _by_place(frames: list[Frame]) -> list[list[Frame]]:
    """Return the passes of a stack whose images share positions along the normal but not in their planes."""
    if len(frames) < 2 or positions(frames) == len(frames):
        return [frames]
    at_mm = distances_mm(frames)
    if _repeated(frames) < REPEATED:
        return [frames]
    assert frames[0].orientation is not None
    axes = np.array(frames[0].orientation).reshape(2, 3)
    in_plane = np.array([frame.position_mm for frame in frames]) @ axes.T
    paths: list[list[int]] = []
    waiting: list[int] = []
    for index in [*np.argsort(at_mm, kind="stable").tolist(), -1]:
        if index >= 0 and (not waiting or at_mm[index] - at_mm[waiting[0]] <= SAME_POSITION_MM):
            waiting.append(index)
            continue
        _follow(paths, waiting, in_plane)
        waiting = [index]
    return [[frames[i] for i in path] for path in paths]


def _follow(paths: list[list[int]], slot: list[int], in_plane: Positions) -> None:
    """Add the images of one position to the paths whose last image lies nearest; those left over begin new ones."""
    groups: list[list[int]] = []
    for index in slot:
        same = next((g for g in groups if np.abs(in_plane[g[0]] - in_plane[index]).max() <= SHIFT_MM), None)
        groups.append([index]) if same is None else same.append(index)
    free = list(range(len(paths)))
    ways = sorted(
        (float(np.linalg.norm(in_plane[paths[p][-1]] - in_plane[group[0]])), g, p)
        for g, group in enumerate(groups)
        for p in free
    )
    placed = set()
    for _, g, p in ways:
        if g not in placed and p in free:
            paths[p] += groups[g]
            placed.add(g)
            free.remove(p)
    paths += [group for g, group in enumerate(groups) if g not in placed]
