"""The heat map as NIfTI, in the coordinates the format asks for."""

from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray


def write_heatmap(path: Path, grid: NDArray[np.floating], affine: NDArray[np.float64]) -> None:
    """Write a heat map (Z, Y, X) of probabilities as float32 NIfTI.

    `affine` maps (z, y, x, 1) to patient LPS in mm; NIfTI wants (x, y, z, 1) to RAS, so the axes are reversed and the
    first two coordinates change sign.
    """
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine[:, [2, 1, 0, 3]]
    image = nib.Nifti1Image(np.ascontiguousarray(grid.T, dtype=np.float32), ras)
    image.set_qform(ras, code=1)
    image.set_sform(ras, code=1)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
