"""The large veins and sinuses of the head, which CTA and contrast-enhanced MR show beside the arteries."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.phantom.vessels import Tube, lay_tube

Array = NDArray[np.float64]

_MIDLINE: dict[str, tuple[tuple[tuple[float, float, float], ...], tuple[float, float]]] = {
    "superior sagittal sinus": (
        ((0, -58, 40), (0, -40, 64), (0, -10, 78), (0, 20, 81), (0, 50, 77), (0, 80, 58), (0, 95, 36), (0, 97, 10)),
        (1.5, 4.0),
    ),
    "straight sinus": (((0, 46, 24), (0, 60, 19), (0, 78, 12), (0, 95, 7)), (2.0, 2.5)),
}
_PAIRED: dict[str, tuple[tuple[tuple[float, float, float], ...], tuple[float, float]]] = {
    "transverse sinus": (((0, 96, 7), (22, 90, 1), (44, 74, -4), (50, 55, -8)), (3.2, 3.4)),
    "sigmoid sinus": (((50, 55, -8), (48, 46, -20), (42, 36, -32), (34, 26, -42), (30, 24, -80)), (3.4, 4.0)),
    "internal cerebral vein": (((2, 6, 22), (2.5, 20, 27), (2, 34, 27), (0.5, 46, 24)), (0.8, 1.2)),
    "basal vein": (((14, 2, 3), (17, 12, 3.5), (20, 24, 5), (15, 36, 14), (1, 46, 24)), (0.8, 1.1)),
    "sylvian vein": (((22, -14, 0), (34, -10, 3), (44, -2, 10), (52, 12, 20), (57, 22, 32)), (1.3, 0.8)),
    "superficial sylvian vein": (((18, -14, -6), (36, -14, 0), (50, -6, 8), (58, 10, 18), (60, 30, 20)), (1.2, 0.9)),
    "vein of Labbé": (((60, 10, 14), (60, 30, 6), (54, 48, -2), (50, 56, -7)), (0.9, 1.4)),
    "septal vein": (((2, -16, 30), (2.5, -6, 27), (2, 6, 22)), (0.6, 0.8)),
}


def draw_veins(rng: np.random.Generator, *, varied: bool = False) -> tuple[Tube, ...]:
    """Draw one head's veins: sinuses, deep and Sylvian veins, and a few bridging veins; left and right differ.

    A varied head's are half to twice as wide, and some small ones are missing.
    """
    wide = float(np.exp(rng.uniform(np.log(0.6), np.log(1.7)))) if varied else 1.0
    tubes = [_lay(rng, name, 1, nodes, ends, 1.0) for name, (nodes, ends) in _MIDLINE.items()]
    for sign in (1, -1):
        for name, (nodes, ends) in _PAIRED.items():
            tubes.append(_lay(rng, name, sign, nodes, ends, rng.uniform(0.55, 1.15)))
        for number in range(int(rng.integers(3, 7))):
            tubes.append(_bridging(rng, sign, number))
    kept = [tube for tube in tubes if not varied or "sinus" in tube.name or rng.random() < 0.8]
    return tuple(replace(tube, radii_mm=tube.radii_mm * wide) for tube in kept)


def _lay(
    rng: np.random.Generator,
    name: str,
    sign: int,
    nodes: tuple[tuple[float, float, float], ...],
    ends: tuple[float, float],
    calibre: float,
) -> Tube:
    path = np.array(nodes, float) * (sign, 1, 1)
    path[1:-1] += rng.normal(0, 1.2, path[1:-1].shape) * ((0.4, 1, 1) if abs(path[:, 0]).max() < 1 else (1, 1, 1))
    return lay_tube(rng, f"{name} {sign:+d}", None, path, ends, calibre)


def _bridging(rng: np.random.Generator, sign: int, number: int) -> Tube:
    """A cortical vein that climbs the convexity to the superior sagittal sinus."""
    y = rng.uniform(-30, 70)
    top = 81 - 0.0085 * (y - 20) ** 2
    height = np.array([0.55, 0.78, 0.93, 1.0]) * top
    # The cavity's half width shrinks towards the vertex; the vein keeps just inside it.
    across = np.sqrt(np.maximum(1 - ((height - 22) / 62) ** 2 - ((y - 18) / 86) ** 2, 0)) * 62
    nodes = np.stack([sign * across, y + np.cumsum(rng.normal(-2, 3, 4)), height], axis=1)
    nodes[-1, 0] = 0
    return lay_tube(rng, f"bridging vein {sign:+d} {number}", None, nodes, (0.7, 1.2), 1.0)
