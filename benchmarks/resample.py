"""Is the resampler exact, and how fast is it? CPU time on one thread against torch, SciPy, SimpleITK and MONAI.

300 × 512 × 512 int16 at 0.6 × 0.451 × 0.451 mm to 0.8 × 0.5 × 0.5 mm and to 1 mm. The exact result is the float64
separable triangle filter, written out as dense matrices. Run:
OMP_NUM_THREADS=1 python benchmarks/resample.py
"""

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import scipy.ndimage
import SimpleITK
import torch

from aneurysm_ray.data.resample import Axes, resample

SHAPE, SPACING = (300, 512, 512), (0.6, 0.451, 0.451)
GRIDS = {"0.8 × 0.5 × 0.5 mm": (225, 462, 462), "1 mm": (180, 231, 231)}
ROUNDS = 5


def head() -> np.ndarray:
    """A head-like volume: ellipsoids of bone and brain with vessels of a few voxels, and noise."""
    z, y, x = np.ogrid[-1:1:300j, -1:1:512j, -1:1:512j]
    radius = np.sqrt((z / 0.9) ** 2 + (y / 0.85) ** 2 + (x / 0.7) ** 2)
    values = np.where(radius < 0.9, 40.0, np.where(radius < 0.97, 1200.0, -1000.0))
    rng = np.random.default_rng(0)
    for _ in range(60):
        c = rng.uniform(-0.5, 0.5, 3)
        values[(z - c[0]) ** 2 * 0.2 + (y - c[1]) ** 2 + (x - c[2]) ** 2 < rng.uniform(0.005, 0.02) ** 2] = 400
    return np.rint(values + rng.normal(0, 15, SHAPE)).astype(np.int16)


def triangle(count: int, wanted: int) -> np.ndarray:
    """The exact (wanted, count) filter of an axis, float64."""
    scale = count / wanted
    centre = (np.arange(wanted) + 0.5) * scale - 0.5
    weight = np.maximum(1 - np.abs(np.arange(count) - centre[:, None]) / max(scale, 1), 0)
    return weight / weight.sum(1, keepdims=True)


def exact(voxels: np.ndarray, wanted: tuple[int, int, int]) -> np.ndarray:
    filters = [triangle(count, size) for count, size in zip(SHAPE, wanted, strict=True)]
    along = np.tensordot(filters[0], voxels.astype(np.float64), 1)
    return np.stack([filters[1] @ plane @ filters[2].T for plane in along])


def ours(voxels: np.ndarray, wanted: tuple[int, int, int], *, tilt: bool = False, uneven: bool = False) -> np.ndarray:
    slices = np.arange(SHAPE[0]) * SPACING[0]
    if uneven:
        slices = slices + np.random.default_rng(1).uniform(-0.2, 0.2, SHAPE[0])
    frame = Axes(np.eye(3)[::-1], slices, slices * (0.2 if tilt else 0), 0 * slices, SPACING[1:])
    steps = [count * spacing / size for count, spacing, size in zip(SHAPE, SPACING, wanted, strict=True)]
    centres = [(np.arange(n) + 0.5) * step - old / 2 for n, step, old in zip(wanted, steps, SPACING, strict=True)]
    out = np.empty(wanted, np.float32)
    for index, plane in enumerate(resample(voxels, frame, tuple(centres), tuple(steps), background=-1024)):
        out[index] = plane
    return out


def torch_antialiased(voxels: np.ndarray, wanted: tuple[int, int, int]) -> np.ndarray:
    """Torch's antialiased 2D resize of every slice after a dense product along z: its best path that is antialiased."""
    along = torch.from_numpy(triangle(SHAPE[0], wanted[0]).astype(np.float32))
    planes = (along @ torch.from_numpy(voxels).reshape(SHAPE[0], -1).float()).reshape(wanted[0], 1, *SHAPE[1:])
    return torch.nn.functional.interpolate(planes, wanted[1:], mode="bilinear", antialias=True)[:, 0].numpy()


def torch_trilinear(voxels: np.ndarray, wanted: tuple[int, int, int]) -> np.ndarray:
    volume = torch.from_numpy(voxels).float()[None, None]
    return torch.nn.functional.interpolate(volume, wanted, mode="trilinear")[0, 0].numpy()


def scipy_zoom(voxels: np.ndarray, wanted: tuple[int, int, int]) -> np.ndarray:
    factors = [size / count for size, count in zip(wanted, SHAPE, strict=True)]
    return scipy.ndimage.zoom(voxels.astype(np.float32), factors, order=1, grid_mode=True, mode="nearest")


def sitk_linear(voxels: np.ndarray, wanted: tuple[int, int, int]) -> np.ndarray:
    image = SimpleITK.GetImageFromArray(voxels)
    scale = [count / size for count, size in zip(SHAPE, wanted, strict=True)]
    origin = [(s - 1) / 2 for s in scale[::-1]]
    resampler = SimpleITK.ResampleImageFilter()
    resampler.SetNumberOfThreads(1)
    resampler.SetSize(wanted[::-1])
    resampler.SetOutputSpacing(scale[::-1])
    resampler.SetOutputOrigin(origin)
    resampler.SetInterpolator(SimpleITK.sitkLinear)
    resampler.SetOutputPixelType(SimpleITK.sitkFloat32)
    return SimpleITK.GetArrayFromImage(resampler.Execute(image))


def milliseconds(call: Callable[[], np.ndarray]) -> float:
    begun = time.process_time()
    call()
    return 1000 * (time.process_time() - begun)


def main() -> None:
    torch.set_num_threads(1)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    voxels = head()
    print("| to | way | CPU ms | of torch antialiased | mean HU from exact | 99 % |")
    print("|---|---|---|---|---|---|")
    for grid, wanted in GRIDS.items():
        truth = exact(voxels, wanted)
        ways: dict[str, Callable[[], np.ndarray]] = {
            "aneurysm_ray": lambda wanted=wanted: ours(voxels, wanted),
            "aneurysm_ray, gantry tilt": lambda wanted=wanted: ours(voxels, wanted, tilt=True),
            "aneurysm_ray, uneven slices": lambda wanted=wanted: ours(voxels, wanted, uneven=True),
            "aneurysm_ray, both": lambda wanted=wanted: ours(voxels, wanted, tilt=True, uneven=True),
            "torch, antialiased": lambda wanted=wanted: torch_antialiased(voxels, wanted),
            "torch trilinear": lambda wanted=wanted: torch_trilinear(voxels, wanted),
            "SimpleITK linear": lambda wanted=wanted: sitk_linear(voxels, wanted),
            "SciPy zoom, order 1": lambda wanted=wanted: scipy_zoom(voxels, wanted),
        }
        # Rounds are interleaved, so that a busy neighbour slows all alike.
        times = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                times[name].append(milliseconds(way))
        for name, way in ways.items():
            off = "–"
            worst = "–"
            if "tilt" not in name and "uneven" not in name and "both" not in name:
                difference = np.abs(way() - truth)
                off, worst = f"{difference.mean():.3f}", f"{np.percentile(difference, 99):.1f}"
            ratio = median(times[name]) / median(times["torch, antialiased"])
            print(f"| {grid} | {name} | {median(times[name]):.0f} | {ratio:.2f} | {off} | {worst} |")


if __name__ == "__main__":
    main()
