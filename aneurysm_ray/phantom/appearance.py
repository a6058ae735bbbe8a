"""What a scanner makes of a head: the signal of every tissue, noise, sharpness and shading of one series.

CTA is in Hounsfield units; MR in arbitrary units in which white matter is about 300. A plain phantom stays within the
published ranges of its modality. A varied one goes far beyond them, since a network that has seen one scanner's
greys takes another's for something else (Tobin et al. 2017, arXiv:1703.06907; Billot et al. 2023,
doi:10.1016/j.media.2023.102789, who draw every tissue's grey at random).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SOFT_TISSUES: tuple[str, ...] = (
    *("air", "skin", "fat", "muscle", "grey", "white", "csf", "mucosa", "cavernous", "dura"),
)
"""What the soft part of a head is made of; every modality gives each a value."""


@dataclass(frozen=True)
class Appearance:
    """What one series shows of each tissue."""

    tissue: Mapping[str, float]
    cortical_bone: float
    marrow: float
    artery: float
    vein: float
    noise: float
    """Standard deviation, in the image's unit."""
    slab_fall: float = 0.0
    """TOF: share of the arterial signal lost from a slab's entry to its exit."""
    slow_flow: float = 0.0
    """TOF: share of the signal lost per mm of depth inside a sac."""
    softness: float = 1.0
    """Width of an edge as a multiple of the voxel's or the scanner's resolution."""
    sharpening: float = 0.0
    """Share of its detail that is added to a slice, as an edge-enhancing kernel does."""
    grain: int = 2
    """Passes of a [1, 1] filter over the noise along both axes of a slice."""
    shading: float = 0.12
    """MR: largest coefficient of the coil's sensitivity, a polynomial over the slice."""
    without_bone: bool = False
    """CTA: bone was subtracted."""


# Means by tissue, in the order of SOFT_TISSUES, then cortical bone and marrow. A cavernous sinus and dura take up
# contrast with the veins.
_SIGNAL: dict[str, tuple[float, ...]] = {
    "CTA": (-1000, 10, -90, 55, 38, 28, 8, 40, 90, 65, 1250, 450),
    "MRA": (2, 300, 330, 170, 275, 300, 130, 240, 230, 200, 45, 130),
    "MRI T2": (2, 250, 520, 130, 430, 310, 1000, 800, 170, 60, 25, 220),
    "MRI T1post": (2, 520, 800, 300, 290, 350, 130, 600, 720, 600, 40, 420),
}

SLOW_FLOW = 0.3
"""Varied phantoms: share of MRA whose domes darken inwards."""


def draw_appearance(rng: np.random.Generator, modality: str) -> Appearance:
    """Draw a series' contrast within the published ranges of its modality."""
    *soft, cortical, marrow = _SIGNAL[modality]
    if modality == "CTA":
        artery = rng.uniform(220, 460)
        tissue = dict(zip(SOFT_TISSUES, np.array(soft) + rng.normal(0, 3, len(soft)), strict=True))
        vein = 40 + rng.uniform(0.3, 0.75) * (artery - 40)
        tissue["cavernous"] = 40 + rng.uniform(0.1, 0.9) * (vein - 40)
        bone = rng.uniform(0.8, 1.25)
        return Appearance(tissue, cortical * bone, marrow * bone, artery, vein, rng.uniform(10, 22))
    scale = rng.uniform(0.6, 1.6)
    tissue = dict(zip(SOFT_TISSUES, scale * np.array(soft) * rng.normal(1, 0.05, len(soft)), strict=True))
    white = tissue["white"]
    artery, vein, noise = {
        "MRA": (rng.uniform(2.5, 4.0), rng.uniform(0.75, 1.25), rng.uniform(0.08, 0.14)),
        "MRI T2": (rng.uniform(0.05, 0.25), rng.uniform(0.15, 0.5), rng.uniform(0.04, 0.09)),
        "MRI T1post": (rng.uniform(1.2, 2.6), rng.uniform(2.2, 3.2), rng.uniform(0.05, 0.1)),
    }[modality]
    fall, slow = (rng.uniform(0.1, 0.3), rng.uniform(0.03, 0.08)) if modality == "MRA" else (0.0, 0.0)
    return Appearance(
        tissue,
        cortical * scale,
        marrow * scale,
        artery * white,
        vein * white,
        noise * white,
        slab_fall=fall,
        slow_flow=slow,
        grain=1,
    )


def draw_varied_appearance(rng: np.random.Generator, modality: str) -> Appearance:
    """Draw a series' contrast far beyond one scanner's: arteries stay what they are to their surroundings, no more."""
    *soft, cortical, marrow = _SIGNAL[modality]
    softness = float(rng.uniform(0.8, 2.0))
    if modality == "CTA":
        artery = float(np.exp(rng.uniform(np.log(180), np.log(600))))
        spread = np.array((0, 30, 25, 20, 8, 8, 6, 25, 0, 25))
        tissue = dict(zip(SOFT_TISSUES, np.array(soft) + rng.normal(0, 1, len(soft)) * spread, strict=True))
        vein = 40 + rng.uniform(0.1, 0.95) * (artery - 40)
        tissue["cavernous"] = 40 + rng.uniform(0, 1) * (vein - 40)
        bone = rng.uniform(0.6, 1.5)
        return Appearance(
            tissue,
            cortical * bone,
            marrow * bone * rng.uniform(0.5, 1.3),
            artery,
            vein,
            float(np.exp(rng.uniform(np.log(6), np.log(35)))),
            softness=softness,
            sharpening=float(rng.uniform(0, 1.2)) * (rng.random() < 0.3),
            grain=int(rng.integers(1, 5)),
            without_bone=bool(rng.random() < 0.06),
        )
    scale = float(np.exp(rng.uniform(np.log(0.3), np.log(4))))
    # Fat may be suppressed, and water too: those two vary most.
    spread = np.array((0.5, 0.4, 0.7, 0.25, 0.1, 0.0, 0.35, 0.4, 0.3, 0.4))
    tissue = dict(zip(SOFT_TISSUES, scale * np.array(soft) * np.exp(rng.normal(0, 1, len(soft)) * spread), strict=True))
    white = tissue["white"]
    artery, vein, noise = {
        "MRA": (rng.uniform(1.8, 4.5), rng.uniform(0.6, 1.9), rng.uniform(0.03, 0.18)),
        "MRI T2": (rng.uniform(0.02, 0.35), rng.uniform(0.05, 0.9), rng.uniform(0.02, 0.12)),
        "MRI T1post": (rng.uniform(1.1, 3.2), rng.uniform(1.5, 3.4), rng.uniform(0.02, 0.12)),
    }[modality]
    tissue["cavernous"] = white * {"MRI T1post": vein, "MRI T2": 0.5}.get(modality, 0.9) * rng.uniform(0.6, 1.1)
    bone = rng.uniform(0.5, 2.0)
    slow = rng.uniform(0, 0.04)
    return Appearance(
        tissue,
        cortical * scale * bone,
        marrow * scale * bone,
        artery * white,
        vein * white,
        noise * white,
        slab_fall=float(rng.uniform(0, 0.4)) if modality == "MRA" else 0.0,
        slow_flow=float(slow) if modality == "MRA" and rng.random() < SLOW_FLOW else 0.0,
        softness=softness,
        sharpening=float(rng.uniform(0, 0.6)) * (rng.random() < 0.2),
        grain=int(rng.integers(1, 4)),
        shading=float(rng.uniform(0, 0.3)),
    )
