"""What a synthetic data set is made of, and the plan of each of its series."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aneurysm_ray.data.dataset import MODALITIES
from aneurysm_ray.errors import RequestError, did_you_mean
from aneurysm_ray.phantom.faults import FAULTS
from aneurysm_ray.phantom.geometry import tree_files
from aneurysm_ray.phantom.scans import SCANS

# Series per modality in the competition's data.
_MODALITY_WEIGHT = {"CTA": 1808, "MRA": 1252, "MRI T2": 983, "MRI T1post": 305}
_SHORT = {"T2": "MRI T2", "T1POST": "MRI T1post"}
# Positive series with one, two, three and four aneurysms.
_LESION_COUNTS = np.array([1615, 202, 38, 9]) / 1864


@dataclass(frozen=True)
class PhantomOptions:
    """A synthetic data set; equal options give equal bytes, whatever the number of workers."""

    count: int = 12
    """Number of series, one patient each."""
    seed: int = 0
    modalities: tuple[str, ...] = MODALITIES
    """Modalities to draw from, mixed as in the competition's data; T2 and T1post are understood too."""
    positive_fraction: float = 0.43
    """Share of the series of every modality that have an aneurysm."""
    min_mm: float = 2.0
    """Smallest longest diameter of an aneurysm."""
    max_mm: float = 20.0
    """Largest longest diameter of an aneurysm."""
    spacing_mm: float | None = None
    """Voxel spacing in all directions (T2 and T1post keep thick slices). None: about 0.8 mm, CTA slices 1.1 mm."""
    oblique_fraction: float = 0.035
    """Share of series in the coronal or sagittal plane; MR only."""
    multiframe_fraction: float = 0.074
    """Share of series written as one Enhanced MR file; MRA and T2 only."""
    frame_base: int = 0
    """What the localizers' `f` counts from: two releases circulate, 0 and 1."""
    masks: float = 1.0
    """Share of series with a vessel mask; 0.05 in the competition's data."""
    domes: bool = False
    """Write the voxels of every aneurysm too, where a series has a vessel mask: the competition's data has none."""
    scans: tuple[str, ...] = ("head",)
    """Kinds of CT angiogram that the CTA series are, in turn: keys of `scans.SCANS`."""
    faults: bool = False
    """Add a small series for each defect of real folders, and faults.csv that lists them."""
    varied: bool = False
    """Vary vessels and domes far beyond anatomy (see `variety`), so that shapes are learnt, not one phantom's own."""
    geometry: Path | None = None
    """Folder of NIfTI label maps to render in place of the spline tree, half of the series without their aneurysm."""
    workers: int = 1
    """Processes that write series."""

    def __post_init__(self) -> None:
        names = tuple(_SHORT.get(name.upper(), name) for name in self.modalities)
        for name in names:
            if name not in MODALITIES:
                raise RequestError(
                    f"modality {name!r} is not one of CTA, MRA, T2, T1post{did_you_mean(name, MODALITIES)}"
                )
        object.__setattr__(self, "modalities", names)
        for field in ("positive_fraction", "oblique_fraction", "multiframe_fraction", "masks"):
            if not 0 <= getattr(self, field) <= 1:
                raise RequestError(f"{field} is {getattr(self, field)}; it must lie between 0 and 1")
        if not (self.count >= 1 and self.workers >= 1 and names):
            raise RequestError("a phantom needs at least one series, one worker and one modality")
        if not 0.5 <= self.min_mm <= self.max_mm <= 30:
            raise RequestError(f"diameters run from {self.min_mm} to {self.max_mm} mm; they must rise within 0.5-30 mm")
        if self.spacing_mm is not None and not 0.3 <= self.spacing_mm <= 5:
            raise RequestError(f"spacing is {self.spacing_mm} mm; it must lie within 0.3-5 mm")
        if self.varied and self.geometry:
            raise RequestError("varied changes the spline trees that geometry replaces; give only one of the two")
        for scan in self.scans:
            if scan not in SCANS:
                raise RequestError(f"scan {scan!r} is not one of {', '.join(SCANS)}{did_you_mean(scan, SCANS)}")
        if not self.scans:
            raise RequestError(f"a phantom needs at least one kind of scan of {', '.join(SCANS)}")
        if self.frame_base not in (0, 1):
            raise RequestError(f"frame_base is {self.frame_base}; localizers count frames from 0 or from 1")


@dataclass(frozen=True)
class SeriesPlan:
    """What one series will be, before anything is drawn."""

    index: int
    modality: str
    plane: str
    lesions: int
    """Number of aneurysms; 0 in a negative series."""
    multiframe: bool
    segmentation: bool
    female: bool
    age: int
    fault: str = ""
    """Key of `faults.FAULTS`, or nothing."""
    tree: str = ""
    """File of the label map to render, or nothing for a tree of splines."""
    scan: str = "head"
    """Key of `scans.SCANS`; CTA only."""


def plan_series(options: PhantomOptions) -> tuple[SeriesPlan, ...]:
    """Deal modality, plane, presence and layout to all series, each in its exact share."""
    plans = _plan_trees(options, options.geometry) if options.geometry else _plan_splines(options)
    cta = [plan.index for plan in plans if plan.modality == "CTA"]
    kinds = dict(zip(cta, itertools.cycle(options.scans)))
    plans = tuple(replace(plan, scan=kinds.get(plan.index, "head")) for plan in plans)
    return plans + (_plan_faults(options) if options.faults else ())


def _plan_splines(options: PhantomOptions) -> tuple[SeriesPlan, ...]:
    rng = np.random.default_rng([options.seed, 1])
    weights = np.array([_MODALITY_WEIGHT[name] for name in options.modalities], float)
    modality = rng.permutation(np.repeat(np.array(options.modalities), _shares(options.count, weights)))
    positive = np.zeros(options.count, bool)
    for name in options.modalities:
        members = np.flatnonzero(modality == name)
        positive[rng.permutation(members)[: round(options.positive_fraction * len(members))]] = True
    oblique = _some(rng, options.count, options.oblique_fraction, np.flatnonzero(modality != "CTA"))
    framed = np.flatnonzero(np.isin(modality, ("MRA", "MRI T2")))
    multiframe = _some(rng, options.count, options.multiframe_fraction, framed)
    segmented = _some(rng, options.count, options.masks, np.arange(options.count))
    plans = []
    for index in range(options.count):
        plane = str(rng.choice(("coronal", "sagittal"), p=(0.58, 0.42))) if oblique[index] else "axial"
        lesions = 1 + int(rng.choice(4, p=_LESION_COUNTS)) if positive[index] else 0
        female = bool(rng.random() < (0.75 if positive[index] else 0.64))
        age = int(np.clip(rng.normal(58.5, 14), 18, 89))
        plans.append(
            SeriesPlan(
                index,
                str(modality[index]),
                plane,
                lesions,
                bool(multiframe[index]),
                bool(segmented[index]),
                female,
                age,
            )
        )
    return tuple(plans)


def _plan_trees(options: PhantomOptions, folder: Path) -> tuple[SeriesPlan, ...]:
    """Deal the trees in turn, each as itself and then as its twin without aneurysm; later rounds are new poses."""
    files = tree_files(folder)
    plain = _plan_splines(replace(options, oblique_fraction=0))
    return tuple(
        replace(plan, lesions=1 - plan.index % 2, tree=files[plan.index // 2 % len(files)].name) for plan in plain
    )


def _plan_faults(options: PhantomOptions) -> tuple[SeriesPlan, ...]:
    """One small series for each fault, every second with an aneurysm."""
    return tuple(
        SeriesPlan(options.count + number, fault.modality, "axial", number % 2, False, False, True, 60, fault=name)
        for number, (name, fault) in enumerate(FAULTS.items())
    )


def _shares(count: int, weights: NDArray[np.float64]) -> NDArray[np.intp]:
    """Split a count by weights, largest remainders first."""
    exact = count * weights / weights.sum()
    whole = np.floor(exact).astype(np.intp)
    whole[np.argsort(whole - exact, kind="stable")[: count - whole.sum()]] += 1
    return np.asarray(whole)


def _some(
    rng: np.random.Generator, count: int, fraction: float, among: Sequence[int] | NDArray[np.intp]
) -> NDArray[np.bool_]:
    chosen = np.zeros(count, bool)
    chosen[rng.permutation(np.asarray(among, np.intp))[: round(fraction * count)]] = True
    return chosen
