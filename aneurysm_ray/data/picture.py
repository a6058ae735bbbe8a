"""A small picture of a prepared volume: where its box lies in the scan, and three views of it with points and vessels.

Every view has the letters of its sides: R and L, A and P (front and back), H and F (head and feet).
"""

import functools
import io
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from aneurysm_ray.data.masks import SIDES, UNKNOWN
from aneurysm_ray.data.region import patient_axes
from aneurysm_ray.data.resample import frame_of
from aneurysm_ray.data.store import PreparedVolume
from aneurysm_ray.data.volume import Volume
from aneurysm_ray.data.window import to_uint8

HEIGHT = 104
"""Pixels of the picture's height; each view is as wide as its own shape asks."""
WIDEST = 3 * HEIGHT
QUALITY = 72
"""Of the JPEG; a page holds the pictures of thousands of series."""
SLAB_MM = 10.0
"""Vessels within this distance of a slice are drawn on it."""
LETTERS = (("R", "L", "A", "P"), ("R", "L", "H", "F"), ("A", "P", "H", "F"))
"""Letters at the left, right, upper and lower side of views along z, y and x."""
SEEN_FROM = ("from the feet", "from the front", "from the left")
"""From where views along z, y and x show the patient."""

Rgb = tuple[int, int, int]

_POINT, _BOX, _LETTER = (255, 80, 0), (255, 220, 60), (235, 240, 245)
VESSEL_COLOURS: tuple[tuple[list[int], Rgb], ...] = (
    (SIDES[0], (90, 170, 255)),
    (SIDES[1], (80, 230, 160)),
    ([value for value in range(1, UNKNOWN) if value not in (*SIDES[0], *SIDES[1])], (250, 150, 230)),
)
"""Classes of vessels and their colour: right, left, and those of the middle."""


def draw(prepared: PreparedVolume, scan: Volume | None = None) -> bytes:
    """Return a JPEG of the scan from the front and from the left with the box of what is stored, then of the stored
    volume from the feet, from the front and from the left, head up.

    MRA is shown as maximum-intensity projections, where vessels are brightest; all else as the slices through the first
    point, or the middle. Points are circled, vessels of a mask outlined. Equal volumes give equal bytes.
    """
    shape = np.array(prepared.voxels.shape)
    centre = (shape - 1) / 2
    if prepared.points:
        first = prepared.points[0]
        centre = np.clip([first.z, first.y, first.x], 0, shape - 1)
    views = [_overview(scan, prepared, axis) for axis in (1, 2)] if scan else []
    vessels = _places(prepared.vessels)
    views += [_view(prepared, vessels, axis, float(centre[axis])) for axis in range(3)]
    strip = Image.new("RGB", (sum(view.width for view in views) + 2 * (len(views) - 1), HEIGHT))
    left = 0
    for view in views:
        strip.paste(view, (left, 0))
        left += view.width + 2
    buffer = io.BytesIO()
    strip.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def letter(image: Image.Image, axis: int, size: int = 10) -> None:
    """Write the letters of its sides on a view along an axis (0 z, 1 y, 2 x), the head up, the right on the left."""
    pencil, font = ImageDraw.Draw(image), _font(size)
    width, height = image.size
    places = ((1, height / 2, "lm"), (width - 1, height / 2, "rm"), (width / 2, 1, "ma"), (width / 2, height - 1, "md"))
    for text, (x, y, anchor) in zip(LETTERS[axis], places, strict=True):
        pencil.text((x, y), text, fill=_LETTER, font=font, anchor=anchor, stroke_width=1, stroke_fill=(0, 0, 0))


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _places(vessels: NDArray[np.uint8] | None) -> NDArray[np.int64]:
    """Return (N, 4): voxel (z, y, x) and class of each that a mask labels."""
    if vessels is None:
        return np.zeros((0, 4), np.int64)
    found = np.flatnonzero((vessels != 0) & (vessels != UNKNOWN))
    return np.stack([*np.unravel_index(found, vessels.shape), vessels.ravel()[found]], axis=1)


def _outline(image: Image.Image, vessels: NDArray[np.int64], shape: tuple[int, int], axes: tuple[int, int]) -> None:
    """Draw the outlines of vessels, labelled voxels of `_places`, on a view of (down, across) axes."""
    pixels: NDArray[Any] = np.array(image)
    for classes, colour in VESSEL_COLOURS:
        seen = np.zeros(shape, bool)
        these = vessels[np.isin(vessels[:, 3], classes)]
        seen[these[:, axes[0]], these[:, axes[1]]] = True
        upright = seen[::-1] if axes[0] == 0 else seen
        large = np.asarray(Image.fromarray(upright).resize(image.size, Image.Resampling.NEAREST), bool)
        pixels[large & ~scipy.ndimage.binary_erosion(large)] = colour
    image.paste(Image.fromarray(pixels))


def _view(prepared: PreparedVolume, vessels: NDArray[np.int64], axis: int, place: float) -> Image.Image:
    whole = prepared.modality == "MRA"
    voxels = prepared.voxels
    plane = to_uint8(np.asarray(voxels.max(axis) if whole else voxels.take(round(place), axis)), prepared.window)
    down, across = (a for a in range(3) if a != axis)
    spacing = prepared.spacing_mm
    width = _width(plane.shape[0] * spacing[down], plane.shape[1] * spacing[across])
    # z grows to the head, which belongs up; rows of an image grow downwards.
    upright = plane[::-1] if down == 0 else plane
    image = Image.fromarray(np.ascontiguousarray(upright)).resize((width, HEIGHT), Image.Resampling.BOX).convert("RGB")
    if len(vessels):
        near = np.abs(vessels[:, axis] - place) * spacing[axis] <= (np.inf if whole else SLAB_MM)
        _outline(image, vessels[near], (plane.shape[0], plane.shape[1]), (down, across))
    pencil = ImageDraw.Draw(image)
    for point in prepared.points:
        at = (point.z, point.y, point.x)
        y = (at[down] + 0.5) / plane.shape[0] * HEIGHT
        x = (at[across] + 0.5) / plane.shape[1] * width
        y = HEIGHT - y if down == 0 else y
        pencil.ellipse((x - 5, y - 5, x + 5, y + 5), outline=_POINT)
    letter(image, axis)
    return image


def _overview(scan: Volume, prepared: PreparedVolume, axis: int) -> Image.Image:
    """Draw a slice of the whole scan through the middle of what is stored, along standard axis y or x, and its box."""
    frame = frame_of(scan)
    axes, signs = patient_axes(frame)
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(prepared.voxels.shape) - 1)
    along = (corners @ prepared.affine[:3, :3].T + prepared.affine[:3, 3]) @ frame.directions.T
    slices = np.interp(along[:, 0], frame.slices_mm, np.arange(len(frame.slices_mm)))
    nearest = np.rint(slices).astype(int)
    firsts = frame.rows_mm[nearest], frame.columns_mm[nearest]
    places = [slices, *((along[:, k] - firsts[k - 1]) / frame.pitch_mm[k - 1] for k in (1, 2))]
    down, across = axes[0], axes[3 - axis]
    middle = int(np.clip(round(float(places[axes[axis]].mean())), 0, scan.shape[axes[axis]] - 1))
    plane = np.take(scan.voxels, middle, axes[axis])
    plane = plane if down < across else plane.T
    low, high = (-200.0, 500.0) if scan.modality == "CT" else np.percentile(plane, [2, 99.5]).tolist()
    spacing = scan.spacing_mm
    width = _width(plane.shape[0] * spacing[down], plane.shape[1] * spacing[across])
    upright = plane[:: -signs[0], :: signs[3 - axis]]
    grey = np.clip((upright.astype(np.float32) - low) * (255 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)
    image = Image.fromarray(grey).resize((width, HEIGHT), Image.Resampling.BOX).convert("RGB")
    box = []
    for k, pixels, length, sign in (
        (across, width, plane.shape[1], signs[3 - axis]),
        (down, HEIGHT, plane.shape[0], -signs[0]),
    ):
        ends = (np.array([places[k].min(), places[k].max() + 1]) / length).clip(0, 1)
        box.append(np.sort(ends if sign > 0 else 1 - ends) * (pixels - 1))
    ImageDraw.Draw(image).rectangle((box[0][0], box[1][0], box[0][1], box[1][1]), outline=_BOX)
    letter(image, axis)
    return image


def _width(height_mm: float, width_mm: float) -> int:
    return int(min(WIDEST, max(8, round(width_mm * HEIGHT / max(height_mm, 1e-6)))))
