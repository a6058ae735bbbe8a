"""Does dcm2niix see in the phantom's files what our reader sees: the same voxels at the same places?

    python benchmarks/phantom_peers.py [--count 12] [--spacing-mm 2]

Needs dcm2niix on the path. Both volumes are turned to the nearest RAS axes and compared voxel by voxel; the places are
compared at the eight corners. dcm2niix decodes no RLE of several frames; it gets those files as pydicom decompresses
them.
"""

import argparse
import itertools
import subprocess
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import pydicom

from aneurysm_ray.data.dataset import SeriesEntry, open_dataset
from aneurysm_ray.data.dicom import read_series
from aneurysm_ray.phantom import PhantomOptions, write_dataset


def ours(path: Path) -> nibabel.Nifti1Image:
    """Read a series with our reader, as NIfTI."""
    volume = read_series(path)
    swap = np.eye(4)[:, [2, 1, 0, 3]]
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine @ swap
    return nibabel.Nifti1Image(volume.voxels.transpose(2, 1, 0), affine)


def theirs(path: Path, folder: Path) -> nibabel.Nifti1Image:
    """Convert a series with dcm2niix; more than one output file is a failure."""
    folder.mkdir()
    if sum(1 for _ in path.iterdir()) == 1:
        path = decompressed(next(path.iterdir()), folder / "plain")
    command = ["dcm2niix", "-b", "n", "-z", "n", "-f", "out", "-o", str(folder), str(path)]
    subprocess.run(command, check=True, capture_output=True)
    (file,) = folder.glob("*.nii")
    return nibabel.load(file)


def decompressed(file: Path, folder: Path) -> Path:
    """Write an uncompressed copy of a file into a new folder, and return that."""
    folder.mkdir()
    dataset = pydicom.dcmread(file)
    dataset.decompress(generate_instance_uid=False)
    dataset.save_as(folder / file.name)
    return folder


def compare(entry: SeriesEntry, folder: Path) -> str:
    """Return a row of the table."""
    mine = nibabel.as_closest_canonical(ours(entry.path))
    other = nibabel.as_closest_canonical(theirs(entry.path, folder))
    same_shape = mine.shape == other.shape
    equal = same_shape and np.array_equal(np.asarray(mine.dataobj), np.asarray(other.dataobj))
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, n - 1) for n in mine.shape))])
    apart = np.abs((corners @ mine.affine.T - corners @ other.affine.T)[:, :3]).max() if same_shape else np.nan
    files = sum(1 for _ in entry.path.iterdir())
    plane = "".join(nibabel.aff2axcodes(ours(entry.path).affine))
    return f"| {entry.modality} | {plane} | {files} | {mine.shape} | {'yes' if equal else 'NO'} | {apart:.5f} |"


def main() -> None:
    """Print one row a series."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--spacing-mm", type=float, default=2.0)
    words = parser.parse_args()
    options = PhantomOptions(
        count=words.count, spacing_mm=words.spacing_mm, oblique_fraction=0.25, multiframe_fraction=0.25
    )
    with tempfile.TemporaryDirectory() as folder:
        data = open_dataset(write_dataset(Path(folder) / "data", options))
        print("| modality | columns, rows, slices run to | files | shape | voxels equal | corners apart, mm |")
        print("|---|---|---|---|---|---|")
        for number, entry in enumerate(data.series):
            print(compare(entry, Path(folder) / f"nifti_{number}"), flush=True)


if __name__ == "__main__":
    main()
