"""A small picture of a prepared volume: three views side by side, its points circled."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from aneurysm_ray.config import VolumeConfig
from aneurysm_ray.data.store import PreparedVolume

HEIGHT = 96
"""Pixels of the picture's height; each view is as wide as its own shape asks."""

_SIDES = (("R", "L"), ("A", "P"), ("F", "H"))
"""Letters of the low and the high end of each patient axis (LPS, PS3.3 C.7.6.1.1.1): right and left, front and back,
feet and head."""
_LETTERS = (190, 200, 212)
_WORDS = {"R": "right", "L": "left", "A": "front", "P": "back", "F": "feet", "H": "head"}


def sides(affine: NDArray[np.float64], axis: int) -> tuple[str, str]:
    """Return the letters of the patient's sides at which a voxel axis (z, y, x) begins and ends."""
    direction = affine[:3, axis]
    along = int(np.argmax(np.abs(direction)))
    low, high = _SIDES[along]
    return (low, high) if direction[along] > 0 else (high, low)


def seen_from(affine: NDArray[np.float64], across: int, down: int, *, head_up: bool) -> str:
    """Return the side of the patient that a picture is seen from, whose columns run along one voxel axis and its rows
    along another, upwards if `head_up`."""
    # Right times down points into the picture, away from who looks at it.
    into = np.cross(affine[:3, across], affine[:3, down] * (-1 if head_up else 1))
    along = int(np.argmax(np.abs(into)))
    low, high = _SIDES[along]
    return _WORDS[low if into[along] > 0 else high]


def draw(prepared: PreparedVolume, config: VolumeConfig) -> bytes:
    """Return a JPEG of three views: from the feet, from the front and from the left, head up, with the sides' letters.

    MRA is shown as maximum-intensity projections, where vessels are brightest; all else as the slices through the first
    point, or the middle. Equal volumes give equal bytes.
    """
    voxels = prepared.voxels
    shape = np.array(voxels.shape)
    centre = (shape - 1) / 2
    if prepared.points:
        first = prepared.points[0]
        centre = np.clip([first.z, first.y, first.x], 0, shape - 1)
    views = []
    for axis in range(3):
        shown = voxels.max(axis) if prepared.modality == "MRA" else voxels.take(round(float(centre[axis])), axis)
        views.append(_view(np.asarray(shown), prepared, axis, config))
    strip = Image.new("RGB", (sum(view.width for view in views) + 2 * (len(views) - 1), HEIGHT))
    left = 0
    for view in views:
        strip.paste(view, (left, 0))
        left += view.width + 2
    buffer = io.BytesIO()
    strip.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


def _view(plane: NDArray[Any], prepared: PreparedVolume, axis: int, config: VolumeConfig) -> Image.Image:
    down, across = (a for a in range(3) if a != axis)
    if plane.dtype != np.uint8:
        low, high = config.window_hu if prepared.modality in ("CT", "CTA") else np.percentile(plane, [1, 99.7])
        plane = np.clip((plane.astype(np.float32) - low) * (255 / max(high - low, 1)), 0, 255).astype(np.uint8)
    spacing = prepared.spacing_mm
    pixels_per_mm = HEIGHT / (plane.shape[0] * spacing[down])
    width = min(4 * HEIGHT, max(8, round(plane.shape[1] * spacing[across] * pixels_per_mm)))
    # z grows to the head, which belongs up; rows of an image grow downwards.
    upright = plane[::-1] if down == 0 else plane
    image = Image.fromarray(np.ascontiguousarray(upright)).resize((width, HEIGHT), Image.Resampling.BOX).convert("RGB")
    pencil = ImageDraw.Draw(image)
    for point in prepared.points:
        place = (point.z, point.y, point.x)
        y = (place[down] + 0.5) / plane.shape[0] * HEIGHT
        x = (place[across] + 0.5) / plane.shape[1] * width
        y = HEIGHT - y if down == 0 else y
        pencil.ellipse((x - 5, y - 5, x + 5, y + 5), outline=(255, 80, 0))
    first, last = sides(prepared.affine, across)
    font = ImageFont.load_default(size=11)
    pencil.text((2, HEIGHT - 14), first, fill=_LETTERS, font=font)
    pencil.text((width - 2, HEIGHT - 14), last, fill=_LETTERS, font=font, anchor="ra")
    return image
