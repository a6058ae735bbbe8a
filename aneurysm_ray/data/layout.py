"""Which layout a data set has: one table, nnU-Net raw, BIDS, the challenge's, or just folders and files."""

import os
from pathlib import Path

from aneurysm_ray.config import FrameBase
from aneurysm_ray.data import bids, dataset, nnunet, series_table
from aneurysm_ray.data.dataset import Dataset
from aneurysm_ray.errors import DatasetError


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
    if root.is_dir() and not (root / "series").is_dir():
        _check_below(root)
    return dataset.open_dataset(root, frame_base)


def _check_below(root: Path) -> None:
    """Raise DatasetError for a folder that is no data set but holds one: its masks would be taken for images."""
    if (root / nnunet.IMAGES).is_dir() and (root / nnunet.MASKS).is_dir():
        raise DatasetError(
            f"{root} has {nnunet.IMAGES}/ and {nnunet.MASKS}/ but no {nnunet.DESCRIPTION}, which says what the masks' "
            "values mean: write one, such as {'channel_names': {'0': 'CT'}, 'labels': {'background': 0, 'aneurysm': 1}}"
        )
    subjects = [child for child in root.iterdir() if child.name.startswith("sub-")]
    if subjects and (root / "derivatives").is_dir():
        raise DatasetError(
            f"{root} has {subjects[0].name} and derivatives/, as BIDS has, but neither {bids.PARTICIPANTS} nor "
            "dataset_description.json: fetch them, or write a participants.tsv with the column participant_id"
        )
    for child in root.iterdir():
        kinds = {"one table": series_table.is_table, "nnU-Net": nnunet.is_nnunet, "BIDS": bids.is_bids}
        kinds["the challenge's layout"] = dataset.is_laid_out
        open_to_us = child.is_dir() and os.access(child, os.R_OK | os.X_OK)
        found = [kind for kind, is_one in kinds.items() if open_to_us and is_one(child)]
        if found:
            raise DatasetError(
                f"{child} is a data set by itself ({found[0]}); give it instead of {root}: read from there, its tables "
                "would not be seen, and its masks be taken for images"
            )
