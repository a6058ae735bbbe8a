"""What scans of the head show that is not the head: neck and chest, raised arms, the cradle it lies in.

A CT angiogram often runs from the aortic arch to the vertex. Head coordinates in mm, as in `grid`.
"""

import numpy as np

from aneurysm_ray.phantom.shapes import F32, capsule, ellipsoid, nearest


def trunk(x: F32, y: F32, z: F32) -> F32:
    """Return the distance to neck, shoulders and chest."""
    lower_neck = capsule(x, y, z, (0, 34, -150), (0, 40, -260), (56, 62))
    shoulders = ellipsoid(x, y, z, (0, 44, -275), (215, 85, 60))
    chest = ellipsoid(x, y, z, (0, 40, -420), (180, 115, 190))
    return nearest([lower_neck, shoulders, chest])


def spinal_canal(x: F32, y: F32, z: F32) -> F32:
    """Return the distance to the canal, around which the spine's bone is laid as the skull is around the brain."""
    return capsule(x, y, z, (0, 38, -105), (0, 80, -460), (10, 9))


def lungs_and_airway(x: F32, y: F32, z: F32) -> F32:
    """Return the distance to the air of the lungs, the trachea and the throat."""
    lungs = ellipsoid(np.abs(x), y, z, (88, 45, -410), (70, 85, 115))
    trachea = capsule(x, y, z, (0, 4, -85), (0, 22, -340), (7, 9))
    return nearest([lungs, trachea])


def arms(x: F32, y: F32, z: F32) -> F32:
    """Return the distance to both upper arms, raised beside the head; its bone lies 28 mm deep."""
    return capsule(np.abs(x), y, z, (165, 45, -250), (122, 20, 160), (44, 40))


def holder(x: F32, y: F32, z: F32) -> F32:
    """Return the distance to the shell of a head holder: the back half of a cylinder along the body."""
    radius = np.sqrt(x**2 + (y - 15) ** 2)
    shell = np.abs(radius - 112) - 3
    return np.asarray(np.maximum(np.maximum(shell, 45 - y), np.abs(z - 20) - 110), np.float32)
