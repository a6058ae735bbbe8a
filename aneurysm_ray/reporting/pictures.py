"""Slices of a prepared volume as pictures: plain, and with heat map, labelled points and candidates on top.

Three planes through one voxel, side by side at one scale, the patient's right on the picture's left, head up.
"""

import base64
import io
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion, map_coordinates

from aneurysm_ray.data.picture import SEEN_FROM, VESSEL_COLOURS, Rgb, letter
from aneurysm_ray.data.store import Point, PreparedVolume
from aneurysm_ray.data.window import to_uint8
from aneurysm_ray.errors import RunDirError

PIXELS_PER_MM = 1.4
GAP = 4
CAPTION = 18
"""Pixels above the planes, where each says from where it is seen; in the picture that would hide its letters."""
_FAINT = 0.05  # a heat map that varies by less than this is not blown up to full brightness
_TRUTH, _GUESS, _LEFT_OUT, _DOME = (66, 230, 149), (255, 92, 120), (160, 168, 178), (255, 220, 60)
_NEAR_MM = 6.0
"""Marks this far from a plane are drawn on it."""
_RING = 10.0
"""Pixels from a point to its ring, unless the aneurysm's own radius is drawn."""
_WORDS = (190, 200, 212)
_CAPTIONS = tuple(f"{plane}, {side}" for plane, side in zip(("axial", "coronal", "sagittal"), SEEN_FROM, strict=True))
"""Of the planes along z, y and x."""
LETTERS_MEAN = "R, L, A, P, H, F: the patient's right, left, front, back, head and feet."


@dataclass(frozen=True, eq=False)
class HeatMap:
    """A grid of probabilities in patient space."""

    grid: NDArray[np.float32]
    """(z, y, x): the highest probability of any label."""
    affine: NDArray[np.float64]
    """(4, 4): grid index (z, y, x, 1) to patient (x, y, z, 1) in mm."""


@dataclass(frozen=True, eq=False)
class Ring:
    """A circle around a voxel."""

    voxel: NDArray[np.float64]
    """(z, y, x)."""
    pixels: float = _RING
    """Radius."""
    colour: Rgb = _TRUTH


def read_heatmap(path: Path) -> HeatMap:
    """Read a heat map file. Raises RunDirError when it is missing or damaged."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return HeatMap(file["grid"].astype(np.float32), file["affine"].astype(np.float64).reshape(4, 4))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RunDirError(f"{path}: no heat map can be read from it ({error})") from error


def to_voxel(prepared: PreparedVolume, patient_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the voxel coordinates (..., z, y, x) of patient positions (..., x, y, z) in mm."""
    inverse = np.linalg.inv(prepared.affine)
    return np.asarray(patient_mm @ inverse[:3, :3].T + inverse[:3, 3])


def hottest(heatmap: HeatMap) -> NDArray[np.float64]:
    """Return the patient position (x, y, z) in mm of the centre of the hottest cell."""
    index = np.unravel_index(int(np.argmax(heatmap.grid)), heatmap.grid.shape)
    return heatmap.affine[:3, :3] @ np.array(index, np.float64) + heatmap.affine[:3, 3]


def slices(
    prepared: PreparedVolume,
    focus: NDArray[np.float64],
    heatmap: HeatMap | None = None,
    points: NDArray[np.float64] | None = None,
    candidates: NDArray[np.float64] | None = None,
    *,
    marked: bool = False,
    pixels_per_mm: float = PIXELS_PER_MM,
) -> Image.Image:
    """Draw the three planes through voxel `focus` (z, y, x).

    If marked, the heat map glows on top, from its median to its maximum, `points` (n, 3) get a green ring and
    `candidates` (n, 3) a red cross where they lie within 6 mm of the plane; both are voxel coordinates.
    """
    panels = []
    for axis in range(3):
        index = int(np.clip(round(float(focus[axis])), 0, prepared.voxels.shape[axis] - 1))
        image = _grey(np.take(prepared.voxels, index, axis), prepared)
        if marked and heatmap is not None:
            image = _glow(image, _heat_slice(prepared, heatmap, axis, index))
        depth = prepared.spacing_mm[axis]
        near = [_near(marks, axis, index, depth) if marked else None for marks in (points, candidates)]
        rings = [Ring(voxel) for voxel in near[0]] if near[0] is not None else []
        panels.append(_panel(image, prepared, axis, rings, near[1], pixels_per_mm))
    return _side_by_side(panels)


def labelled(
    prepared: PreparedVolume, focus: NDArray[np.float64], *, marked: bool = True, pixels_per_mm: float = PIXELS_PER_MM
) -> Image.Image:
    """Draw the three planes through voxel `focus` (z, y, x) with all that is known of the volume, if marked.

    Points get a ring as wide as their aneurysm is in the plane, or of fixed width where no radius is known, green, or
    grey where they are ignored; masks are outlined: right vessels blue, left green, middle pink, domes yellow.
    """
    panels = []
    for axis in range(3):
        index = int(np.clip(round(float(focus[axis])), 0, prepared.voxels.shape[axis] - 1))
        image = _grey(np.take(prepared.voxels, index, axis), prepared)
        rings, outlines = [], []
        if marked:
            spacing, scale = prepared.spacing_mm[axis], pixels_per_mm
            rings = _rings(prepared.points, axis, index, spacing, scale, _TRUTH)
            rings += _rings(prepared.ignored, axis, index, spacing, scale, _LEFT_OUT)
            outlines = _outlines(prepared, axis, index)
        panels.append(_panel(image, prepared, axis, rings, None, pixels_per_mm, outlines=outlines))
    return _side_by_side(panels)


def projections(
    prepared: PreparedVolume, focus: NDArray[np.float64], slab_mm: float, candidates: NDArray[np.float64]
) -> Image.Image:
    """Draw the maximum along each axis over a slab of `slab_mm` around voxel `focus`, and all candidates, numbered."""
    panels = []
    for axis in range(3):
        half = slab_mm / 2 / prepared.spacing_mm[axis]
        size = prepared.voxels.shape[axis]
        first = int(np.clip(focus[axis] - half, 0, size - 1))
        last = int(np.clip(focus[axis] + half, first, size - 1)) + 1
        slab = prepared.voxels[(slice(None),) * axis + (slice(first, last),)]
        panels.append(
            _panel(_grey(slab.max(axis), prepared), prepared, axis, [], candidates, PIXELS_PER_MM, numbered=True)
        )
    return _side_by_side(panels)


def cropped(
    prepared: PreparedVolume, focus: NDArray[np.float64], radius_mm: float
) -> tuple[PreparedVolume, NDArray[np.float64]]:
    """Return the volume's part within a cube around voxel `focus`, and where the part's first voxel was."""
    reach = radius_mm / np.array(prepared.spacing_mm)
    first = np.clip(np.floor(focus - reach), 0, np.array(prepared.voxels.shape) - 2).astype(int)
    last = np.maximum(np.ceil(focus + reach).astype(int), first + 1) + 1
    affine = prepared.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ first
    part = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    there = replace(
        prepared,
        voxels=prepared.voxels[part],
        affine=affine,
        vessels=None if prepared.vessels is None else prepared.vessels[part],
        domes=None if prepared.domes is None else prepared.domes[part],
        points=tuple(_moved(point, first) for point in prepared.points),
        ignored=tuple(_moved(point, first) for point in prepared.ignored),
    )
    return there, first.astype(np.float64)


def _moved(point: Point, first: NDArray[np.int_]) -> Point:
    z, y, x = (float(at) for at in first)
    return replace(point, z=point.z - z, y=point.y - y, x=point.x - x)


def _side_by_side(panels: list[Image.Image]) -> Image.Image:
    """Return the three planes in one row, each below its caption."""
    font = ImageFont.load_default(size=12)
    columns = [
        max(panel.width, math.ceil(font.getlength(caption)) + 5)
        for panel, caption in zip(panels, _CAPTIONS, strict=True)
    ]
    height = max(panel.height for panel in panels)
    sheet = Image.new("RGB", (sum(columns) + GAP * (len(panels) - 1), CAPTION + height))
    draw, left = ImageDraw.Draw(sheet), 0
    for panel, caption, width in zip(panels, _CAPTIONS, columns, strict=True):
        draw.text((left + 5, 2), caption, fill=_WORDS, font=font)
        sheet.paste(panel, (left, CAPTION + (height - panel.height) // 2))
        left += width + GAP
    return sheet


def stacked(sheets: Sequence[Image.Image]) -> Image.Image:
    """Return pictures one below the other, as wide as the first."""
    width = sheets[0].width
    fitted = [sheet.resize((width, max(1, round(sheet.height * width / sheet.width)))) for sheet in sheets]
    whole = Image.new("RGB", (width, sum(sheet.height for sheet in fitted) + GAP * (len(fitted) - 1)))
    top = 0
    for sheet in fitted:
        whole.paste(sheet, (0, top))
        top += sheet.height + GAP
    return whole


def data_uri(image: Image.Image, quality: int = 80) -> str:
    """Return a picture as a JPEG data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def file_uri(path: Path) -> str:
    """Return a JPEG file as a data URI, or an empty string when it is not there."""
    try:
        return "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError:
        return ""


def _grey(plane: NDArray[Any], prepared: PreparedVolume) -> NDArray[np.float32]:
    """Return a plane of a volume as grey values 0 to 255, three channels."""
    return np.repeat(to_uint8(plane, prepared.window)[..., None], 3, axis=2).astype(np.float32)


def _heat_slice(prepared: PreparedVolume, heatmap: HeatMap, axis: int, index: int) -> NDArray[np.float32]:
    shape = [size for other, size in enumerate(prepared.voxels.shape) if other != axis]
    rows, columns = np.indices(shape, dtype=np.float64)
    voxels = [rows, columns]
    voxels.insert(axis, np.full(shape, float(index)))
    to_cell = np.linalg.inv(heatmap.affine) @ prepared.affine
    cells = np.tensordot(to_cell[:3, :3], np.stack(voxels), axes=1) + to_cell[:3, 3][:, None, None]
    heat = map_coordinates(heatmap.grid, cells, order=1, mode="nearest")
    # From the median: a model that is a little alarmed everywhere shall not glow everywhere.
    dull = float(np.median(heatmap.grid))
    return np.asarray((heat - dull) / max(float(heatmap.grid.max()) - dull, _FAINT), np.float32)


def _glow(image: NDArray[np.float32], heat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Blend a heat map (0 to 1) over an image: transparent at 0, orange to yellow at 1."""
    heat = np.clip(heat, 0, 1)[..., None]
    glow = np.concatenate([np.full_like(heat, 255), 70 + 170 * heat, 20 + 40 * heat], axis=2)
    alpha = 0.6 * heat
    return np.asarray(image * (1 - alpha) + glow * alpha, np.float32)


def _panel(
    image: NDArray[np.float32],
    prepared: PreparedVolume,
    axis: int,
    rings: Sequence[Ring],
    candidates: NDArray[np.float64] | None,
    pixels_per_mm: float,
    *,
    numbered: bool = False,
    outlines: Sequence[tuple[NDArray[np.bool_], Rgb]] = (),
) -> Image.Image:
    spacing = prepared.spacing_mm
    down, right = (other for other in range(3) if other != axis)
    upside_down = down == 0  # z grows to the head, pictures grow downwards
    pixels = np.clip(image, 0, 255).astype(np.uint8)[:: -1 if upside_down else 1]
    scale = pixels_per_mm * spacing[right], pixels_per_mm * spacing[down]
    panel = Image.fromarray(np.ascontiguousarray(pixels)).resize(
        (max(1, round(pixels.shape[1] * scale[0])), max(1, round(pixels.shape[0] * scale[1]))), Image.Resampling.BICUBIC
    )
    for seen, colour in outlines:
        _outline(panel, seen[::-1] if upside_down else seen, colour)
    draw = ImageDraw.Draw(panel)
    letter(panel, axis, size=12)

    def place(voxel: NDArray[np.float64]) -> tuple[float, float]:
        row = pixels.shape[0] - 1 - voxel[down] if upside_down else voxel[down]
        return (float(voxel[right]) + 0.5) * scale[0], (float(row) + 0.5) * scale[1]

    for number, voxel in enumerate(candidates if candidates is not None else (), start=1):
        x, y = place(voxel)
        for slope in (-1, 1):
            draw.line((x - 6, y - 6 * slope, x + 6, y + 6 * slope), fill=_GUESS, width=2)
        if numbered:
            draw.text((x + 8, y - 7), str(number), fill=_GUESS, font=ImageFont.load_default(size=13))
    for ring in rings:
        x, y = place(ring.voxel)
        draw.ellipse((x - ring.pixels, y - ring.pixels, x + ring.pixels, y + ring.pixels), outline=ring.colour, width=2)
    return panel


def _rings(
    points: Sequence[Point], axis: int, index: int, spacing_mm: float, pixels_per_mm: float, colour: Rgb
) -> list[Ring]:
    rings = []
    for point in points:
        voxel = np.array([point.z, point.y, point.x])
        away_mm = abs(float(voxel[axis]) - index) * spacing_mm
        if point.radius_mm is None and away_mm <= _NEAR_MM:
            rings.append(Ring(voxel, _RING, colour))
        elif point.radius_mm is not None and away_mm <= max(point.radius_mm, spacing_mm):
            across_mm = max(point.radius_mm**2 - away_mm**2, 0.0) ** 0.5
            rings.append(Ring(voxel, max(across_mm * pixels_per_mm, 2.0), colour))
    return rings


def _outlines(prepared: PreparedVolume, axis: int, index: int) -> list[tuple[NDArray[np.bool_], Rgb]]:
    found: list[tuple[NDArray[np.bool_], Rgb]] = []
    if prepared.vessels is not None:
        plane = np.take(prepared.vessels, index, axis)
        found += [(np.isin(plane, classes), colour) for classes, colour in VESSEL_COLOURS]
    if prepared.domes is not None:
        found.append((np.take(prepared.domes, index, axis) == 1, _DOME))
    return found


def _outline(panel: Image.Image, seen: NDArray[np.bool_], colour: Rgb) -> None:
    """Draw the outline of what is seen in a plane, head up, on its picture."""
    large = np.asarray(Image.fromarray(seen).resize(panel.size, Image.Resampling.NEAREST), bool)
    pixels: NDArray[Any] = np.array(panel)
    pixels[large & ~binary_erosion(large)] = colour
    panel.paste(Image.fromarray(pixels))


def _near(voxels: NDArray[np.float64] | None, axis: int, index: int, spacing_mm: float) -> NDArray[np.float64]:
    if voxels is None:
        return np.zeros((0, 3))
    return voxels[np.abs(voxels[:, axis] - index) * spacing_mm <= _NEAR_MM]
