"""A small picture of a prepared volume: three views side by side, its points circled."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from aneurysm_ray.data.store import PreparedVolume
from aneurysm_ray.data.window import to_uint8

HEIGHT = 96
"""Pixels of the picture's height; each view is as wide as its own shape asks."""


def draw(prepared: PreparedVolume) -> bytes:
    """Return a JPEG of three views: from above, from the front and from the right, head up.

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
        views.append(_view(np.asarray(shown), prepared, axis))
    strip = Image.new("RGB", (sum(view.width for view in views) + 2 * (len(views) - 1), HEIGHT))
    left = 0
    for view in views:
        strip.paste(view, (left, 0))
        left += view.width + 2
    buffer = io.BytesIO()
    strip.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


def _view(plane: NDArray[Any], prepared: PreparedVolume, axis: int) -> Image.Image:
    down, across = (a for a in range(3) if a != axis)
    plane = to_uint8(plane, prepared.window)
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
    return image
