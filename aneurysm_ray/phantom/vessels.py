"""The arteries of the head as splines: Circle of Willis with its 13 named segments, their branches, and variants.

Every head gets its own: nodes and bends move, calibres follow their published means and spreads, segments are missing,
thin or doubled as often as in people. Loops, infundibula and wide forks stand in for aneurysms and are not, and so do
the winding, beaded branches over the brain.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

Array = NDArray[np.float64]
STEP_MM = 1.8
"""Distance between the points of a sampled centre line."""
SIPHON_BEND_MM = (0.6, 1.7)
"""How far the bends of the carotid siphon move: it may be nearly straight, or folded upon itself."""
TWIGS = (4, 13)
"""Fewest small branches of a side, and one more than most."""


@dataclass(frozen=True, eq=False)
class Tube:
    """A piece of vessel along a sampled centre line."""

    name: str
    """Anatomical name with its side, such as `M1 L`."""
    location: str | None
    """The label column whose segment this is; None for branches outside the 13 segments."""
    points: Array
    """(N, 3) head coordinates in mm, in the direction of flow."""
    radii_mm: Array
    """(N,)."""
    strength: float = 1.0
    """Share of the arterial signal: slow and distal flow is weaker."""


# Head coordinates in mm of one side (x grows away from the midline); see grid.py for the frame.
_ICA_INFRA = ((24, 14, -75), (23.5, 12, -52), (23, 9, -36), (19, 6, -27.5), (13, 3, -24.5), (10, 4, -19))
# Its other shape in the skull base: level, then straight up, so that two right angles follow each other.
_ICA_INFRA_LEVEL = ((24, 14, -75), (24, 12, -56), (22.5, 8.5, -43), (18, 5, -35), (12, 3.5, -31.5), (10, 4, -19))
_ICA_CAVERNOUS = (
    (10, 4, -19),
    (9.6, 1.5, -14.5),
    (9.6, -5, -13.8),
    (9.4, -11.5, -12.2),
    (9, -14, -8),
    (8.8, -11.5, -4),
)
_ICA_SUPRA = ((8.8, -11.5, -4), (9.8, -8, -1.5), (11.2, -4.5, 1.5), (12.6, -2, 5.5))
# Its other shape: folded back upon the cavernous segment before it climbs, which closes the siphon.
_ICA_SUPRA_FOLDED = ((8.8, -11.5, -4), (9.2, -5.5, -4), (10.6, 0.5, -2), (12.6, -2, 5.5))
_M1 = ((12.6, -2, 5.5), (19, -3.2, 6.8), (26, -2.4, 4.8), (31.5, -1, 5.5))
_M2_SUPERIOR = ((31.5, -1, 5.5), (36, 0, 10), (37.5, 6, 17), (38.5, 13, 24), (43, 20, 27), (50, 24, 32), (53, 32, 41))
_M2_INFERIOR = ((31.5, -1, 5.5), (36, 2, 3), (39, 9, 5), (41, 18, 10), (45, 28, 15), (50, 38, 18), (53, 48, 26))
_M3_FRONTAL = ((37.5, 6, 17), (42, -2, 24), (48, -8, 30), (50, -14, 40))
_A1 = ((12.6, -2, 5.5), (9, -6.5, 6.2), (5, -10.5, 6.4), (2.2, -13, 7.8))
_A2 = ((2.2, -13, 7.8), (1.8, -17, 12), (1.7, -22.5, 20), (1.7, -25, 30))
_A3 = ((1.7, -25, 30), (1.8, -21, 40), (1.8, -8, 47), (1.8, 8, 50), (1.8, 24, 50), (2, 38, 48))
_CALLOSOMARGINAL = ((1.7, -25, 30), (2.6, -32, 38), (3, -30, 50), (3.5, -16, 60), (4.5, -4, 68))
_PCOM = ((10.6, -6, 0), (9.6, -1.5, -1), (8.4, 4, -0.5), (7.8, 9.5, 0.5), (8.2, 14, 1.2))
_P1 = ((0, 12, -2.5), (3.5, 12.2, -0.5), (8.2, 14, 1.2))
_P2 = ((8.2, 14, 1.2), (14, 19, 1), (18.5, 27, 2.5), (19, 36, 5), (16, 45, 8), (13, 57, 9), (10, 70, 12))
_SCA = ((0.4, 12, -5), (6, 14, -5.2), (13, 20, -4), (17, 28, -2), (15, 40, 3))
_AICA = ((0.4, 14, -20), (7, 16, -22), (15, 20, -26), (24, 26, -27), (30, 34, -26))
_V4 = ((22, 44, -82), (19, 42, -62), (13, 31, -53), (7, 22, -45), (0, 16, -36))
_BASILAR = ((0, 16, -36), (0.6, 13.8, -26), (0.2, 12.4, -15), (0, 12, -2.5))
_PICA = ((12, 29.5, -51.5), (15, 34, -50), (12, 40, -47), (9, 44, -51), (8, 50, -44), (14, 60, -40))
_OPHTHALMIC = ((9, -12, -3.8), (11, -18, -4), (16, -28, -4.5), (20, -40, -3))
_CHOROIDAL = ((11.6, -4, 2.8), (13.5, 2, 2), (16, 9, 1), (20, 16, 2))
_MENINGEAL = ((36, 4, -30), (46, 0, -14), (60, -6, 4), (65, 2, 26), (64, 20, 44))
_TEMPORAL = ((70, 18, -40), (76, 12, -10), (77, 4, 14), (73, -14, 40), (64, -22, 60))
_LENTICULOSTRIATE = ((21, -3, 6.6), (22, 0, 13), (24, 4, 22))


def draw_arteries(rng: np.random.Generator) -> tuple[Tube, ...]:
    """Draw one head's arteries, look-alikes of aneurysms among them."""
    bend = rng.uniform(0.3, 0.75)
    winding = rng.uniform(0.2, 1.0)
    calibre = rng.normal(1, 0.07)
    join = _jitter(rng, np.array([_BASILAR[0], _BASILAR[-1]], float), bend)
    anterior = rng.normal(0, (0.5, 1.2, 1.0))
    tubes: list[Tube] = []
    first_segments = []
    for side, sign in (("Left", 1), ("Right", -1)):
        made = _one_side(rng, side, sign, bend, winding, calibre, join, anterior)
        tubes += made
        first_segments.append(next(tube for tube in made if tube.name.startswith("A2")))
    basilar = np.array(_BASILAR, float)
    basilar[1:-1] = _jitter(rng, basilar[1:-1], 1.6 * bend)
    basilar[0], basilar[-1] = join
    trunk = lay_tube(rng, "basilar", "Other Posterior Circulation", basilar, (1.8, 1.55), calibre)
    # The label's segment is the last few millimetres before the fork.
    tip = -int(np.ceil(4 / STEP_MM))
    tubes.append(replace(trunk, points=trunk.points[: tip + 1], radii_mm=trunk.radii_mm[: tip + 1]))
    tubes.append(Tube("basilar tip", "Basilar Tip", trunk.points[tip:], trunk.radii_mm[tip:] * rng.uniform(1, 1.15)))
    left, right = (tube.points[0] for tube in first_segments)
    middle = (left + right) / 2 + rng.normal(0, 0.5, 3)
    tubes.append(
        lay_tube(rng, "ACom", "Anterior Communicating Artery", np.array([left, middle, right]), (0.8, 0.8), calibre)
    )
    if rng.random() < 0.08:
        tubes.append(_fenestration(rng, trunk))
    return tuple(tubes)


def _one_side(
    rng: np.random.Generator,
    side: str,
    sign: int,
    bend: float,
    winding: float,
    calibre: float,
    join: Array,
    anterior: Array,
) -> list[Tube]:
    letter = side[0]
    terminus = np.array(_M1[0], float) + rng.normal(0, (1.0, 1.0, 1.0))
    clinoid = np.array(_ICA_SUPRA[0], float) + rng.normal(0, (0.8, 2.0, 1.2))
    fork = np.array(_M1[-1], float) + rng.normal(0, (2.5, 1.2, 1.6))
    front = np.array(_A1[-1], float) + anterior + rng.normal(0, (0.3, 0.4, 0.4))
    union = np.array(_P1[-1], float) + rng.normal(0, (0.8, 0.8, 0.6))
    genu = np.array(_A2[-1], float) + rng.normal(0, (0.3, 1.5, 2))
    flip = np.array([sign, 1, 1])
    low, top = join * flip
    siphon_bend = rng.uniform(*SIPHON_BEND_MM)

    def make(
        name: str,
        location: str | None,
        nodes: Sequence[Sequence[float]] | Array,
        ends: tuple[float, float],
        start: Array | None = None,
        end: Array | None = None,
        strength: float = 1.0,
        looping: float = 0.0,
        bend: float = bend,
    ) -> Tube:
        path = _jitter(rng, np.array(nodes, float), bend)
        if start is not None:
            path[0] = start
        if end is not None:
            path[-1] = end
        tube = _wound(rng, lay_tube(rng, f"{name} {letter}", location, path, ends, calibre, strength), winding)
        if rng.random() < looping:
            tube = _loop(rng, tube)
        return replace(tube, points=tube.points * flip)

    supra = f"{side} Supraclinoid Internal Carotid Artery"
    infra = f"{side} Infraclinoid Internal Carotid Artery"
    mca, aca = f"{side} Middle Cerebral Artery", f"{side} Anterior Cerebral Artery"
    pcom, other = f"{side} Posterior Communicating Artery", "Other Posterior Circulation"
    wide_a1 = 1.25 if rng.random() > 0.12 else 0.6
    kind = rng.choice(("absent", "thin", "usual", "fetal"), p=(0.12, 0.3, 0.45, 0.13))
    wide_pcom = {"absent": 0.0, "thin": 0.4, "usual": 0.65, "fetal": 1.1}[kind]
    wide_p1 = 0.6 if kind == "fetal" else 1.15

    low_nodes = _between(_ICA_INFRA, _ICA_INFRA_LEVEL, rng.random())
    top_nodes = _between(_ICA_SUPRA, _ICA_SUPRA_FOLDED, rng.uniform(0, 1.7))
    petrous = np.array(_ICA_CAVERNOUS[0], float) + rng.normal(0, (1, 1.5, 1.5))
    ica_low = make("ICA petrous", infra, low_nodes, (2.5, 2.45), end=petrous, strength=0.95, bend=siphon_bend)
    siphon = make("ICA siphon", infra, _ICA_CAVERNOUS, (2.45, 2.2), start=petrous, end=clinoid, bend=siphon_bend)
    carotid = make("ICA supra", supra, top_nodes, (2.1, 1.8), start=clinoid, end=terminus, bend=0.7 * siphon_bend)
    m1 = make("M1", mca, _M1, (1.55, 1.4), start=terminus, end=fork, looping=0.03)
    upper = make("M2 superior", mca, _M2_SUPERIOR, (1.2, 0.75), start=fork, strength=0.9, looping=0.6)
    lower = make("M2 inferior", mca, _M2_INFERIOR, (1.2, 0.75), start=fork, strength=0.9, looping=0.6)
    a1 = make("A1", aca, _A1, (wide_a1, wide_a1), start=terminus, end=front, looping=0.03)
    a2 = make("A2", aca, _A2, (1.15, 1.05), start=front, end=genu)
    a3 = make("A3", aca, _A3, (0.95, 0.6), start=genu, strength=0.85, looping=0.2)
    p1 = make("P1", other, _P1, (wide_p1, wide_p1), start=top, end=union)
    p2 = make("P2", other, _P2, (1.15, 0.65), start=union, strength=0.9, looping=0.2)
    dominance = rng.uniform(0.7, 1.1)
    v4 = make("V4", other, _V4, (1.9 * dominance, 1.6 * dominance), end=low, looping=0.06)
    tubes = [ica_low, siphon, carotid, m1, upper, lower, a1, a2, a3, p1, p2, v4]
    origin = carotid.points[int(0.55 * len(carotid.points))] * flip
    if wide_pcom:
        bridge = make("PCom", pcom, _PCOM, (wide_pcom, wide_pcom), start=origin, end=union)
        tubes.append(_infundibulum(rng, bridge) if rng.random() < 0.15 else bridge)
    leaving = v4.points[int(0.62 * len(v4.points))] * flip
    tubes += [
        make("SCA", other, _SCA, (0.75, 0.5), start=top + (top - low) * -0.09, strength=0.8),
        make("AICA", other, _AICA, (0.55, 0.4), start=low + (top - low) * rng.uniform(0.2, 0.5), strength=0.7),
        make("PICA", other, _PICA, (0.75, 0.45), start=leaving, strength=0.75, looping=0.15),
        make("ophthalmic", None, _OPHTHALMIC, (0.65, 0.5), start=carotid.points[0] * flip, strength=0.8),
        make("anterior choroidal", None, _CHOROIDAL, (0.45, 0.35), start=carotid.points[-3] * flip, strength=0.7),
        make("callosomarginal", None, _CALLOSOMARGINAL, (0.75, 0.45), start=genu, strength=0.75),
        make("M3 frontal", None, _M3_FRONTAL, (0.7, 0.4), start=upper.points[len(upper.points) // 3] * flip),
        make("middle meningeal", None, _MENINGEAL, (0.6, 0.4), strength=0.7),
        make("superficial temporal", None, _TEMPORAL, (0.9, 0.6), strength=0.7),
        make("lenticulostriate", None, _LENTICULOSTRIATE, (0.35, 0.25), start=m1.points[len(m1.points) // 2] * flip),
    ]
    parents = [tube for tube in tubes if tube.name[:2] in ("M1", "M2", "A2", "A3", "P2")]
    for number in range(int(rng.integers(*TWIGS))):
        twig = _wound(rng, _twig(rng, parents[rng.integers(len(parents))], number), winding)
        if rng.random() < 0.3:
            twig = _loop(rng, twig)
        tubes.append(twig)
        if "M2" in twig.name:  # over the insula branches leave branches
            parents.append(twig)
    return tubes


def _between(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]], share: float) -> Array:
    """Return a path between two of as many nodes."""
    return np.asarray((1 - share) * np.array(one, float) + share * np.array(other, float))


def _jitter(rng: np.random.Generator, nodes: Array, size: float) -> Array:
    """Move the nodes of a path; more the farther they are from the first, as vessels differ most at their ends."""
    growth = np.linspace(0.6, 1.6, len(nodes))[:, None]
    return np.asarray(nodes + rng.normal(0, size, nodes.shape) * growth)


def lay_tube(
    rng: np.random.Generator,
    name: str,
    location: str | None,
    nodes: Array,
    ends: tuple[float, float],
    calibre: float,
    strength: float = 1.0,
) -> Tube:
    """Lay a spline through nodes; the radius runs from one end to the other and wavers by 3 to 11 per cent."""
    chord = np.concatenate([[0], np.cumsum(np.sqrt(np.linalg.norm(np.diff(nodes, axis=0), axis=1)))])
    spline = CubicSpline(chord, nodes)
    fine = spline(np.linspace(0, chord[-1], 200))
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(fine, axis=0), axis=1))])
    count = max(int(np.ceil(length[-1] / STEP_MM)) + 1, 3)
    at = np.linspace(0, length[-1], count)
    points = np.stack([np.interp(at, length, fine[:, axis]) for axis in range(3)], axis=1)
    waver = np.convolve(rng.normal(0, rng.uniform(0.06, 0.25), count + 4), np.ones(5) / 5, mode="valid")
    radii = np.linspace(*ends, count) * calibre * rng.normal(1, 0.06) * (1 + waver)
    return Tube(name, location, points, np.maximum(radii, 0.2), strength)


def _wound(rng: np.random.Generator, tube: Tube, winding: float) -> Tube:
    """Bend a vessel from side to side between its ends, by up to 3 mm; the thinner it is the more."""
    distance = np.arange(len(tube.points)) * STEP_MM
    aside = np.zeros_like(tube.points)
    for wave_mm in rng.uniform(7, 18, 3):
        aside += rng.normal(size=3) * np.sin(2 * np.pi * (distance / wave_mm + rng.random()))[:, None]
    ends = np.minimum(distance, distance[-1] - distance) / 5
    amplitude = 0.8 * winding * np.clip(1.6 - 0.65 * tube.radii_mm, 0.15, 1.2) * np.clip(ends, 0, 1)
    return replace(tube, points=tube.points + amplitude[:, None] * aside)


def _loop(rng: np.random.Generator, tube: Tube) -> Tube:
    """Throw a bend of a few millimetres into a vessel: seen end on, it looks like a dome."""
    count = len(tube.points)
    centre, width = rng.uniform(0.3, 0.7) * count, rng.uniform(2.8, 4.5) / STEP_MM
    along = tube.points[-1] - tube.points[0]
    across = np.cross(along, rng.normal(size=3))
    across /= np.linalg.norm(across)
    other = np.cross(along / np.linalg.norm(along), across)
    step = (np.arange(count) - centre) / width
    bump = np.exp(-(step**2))[:, None]
    moved = tube.points + rng.uniform(2.5, 5) * (bump * across + bump * np.sin(1.5 * step)[:, None] * other)
    moved[0], moved[-1] = tube.points[0], tube.points[-1]
    return replace(tube, points=moved)


def _infundibulum(rng: np.random.Generator, tube: Tube) -> Tube:
    """Widen the origin of a vessel to a cone of at most 3 mm, as the posterior communicating artery's often is."""
    distance = np.arange(len(tube.points)) * STEP_MM
    cone = rng.uniform(0.8, 1.3) * np.clip(1 - distance / rng.uniform(2.5, 4.5), 0, 1)
    return replace(tube, radii_mm=np.maximum(tube.radii_mm, cone))


def _fenestration(rng: np.random.Generator, trunk: Tube) -> Tube:
    """Lay a second channel beside the lower basilar artery."""
    part = slice(round(2.5 / STEP_MM), round(12 / STEP_MM))
    points = trunk.points[part]
    aside = np.sin(np.linspace(0, np.pi, len(points)))[:, None] * np.array([rng.choice((-1, 1)) * 3.2, 0.5, 0])
    return Tube("fenestration", trunk.location, points + aside, trunk.radii_mm[part] * 0.6)


def _twig(rng: np.random.Generator, parent: Tube, number: int) -> Tube:
    start = int(rng.integers(len(parent.points) // 2, len(parent.points) - 1))
    forward = parent.points[start + 1] - parent.points[start]
    direction = forward / (np.linalg.norm(forward) + 1e-9) + rng.normal(0, 0.6, 3)
    direction += 0.5 * parent.points[start] / (np.linalg.norm(parent.points[start]) + 1e-9)
    steps = np.cumsum(direction / np.linalg.norm(direction) + rng.normal(0, 0.45, (5, 3)), axis=0) * rng.uniform(3, 6)
    nodes = np.concatenate([parent.points[start][None], parent.points[start] + steps])
    radius = float(parent.radii_mm[start])
    return lay_tube(rng, f"twig {number} of {parent.name}", None, nodes, (0.75 * radius, 0.5 * radius), 1, 0.8)
