"""Which layout a data set has: one table, nnU-Net raw, BIDS, the challenge's, or just folders and files."""

from pathlib import Path

from aneurysm_ray.config import FrameBase
from aneurysm_ray.data import bids, dataset, nnunet, series_table
from aneurysm_ray.data.dataset import Dataset


def open_dataset(root: Path, frame_base: FrameBase = "auto") -> Dataset:
    """Return the series of a data set of whichever layout it has; the first note says which.

    A table counts before all else: whoever writes one means it. Raises DatasetError.
    """
    if series_table.is_table(root):
        return series_table.open_table(root)
    if nnunet.is_nnunet(root):
        return nnunet.open_nnunet(root)
    if root.is_dir() and bids.is_bids(root):
        return bids.open_bids(root)
    return dataset.open_dataset(root, frame_base)
