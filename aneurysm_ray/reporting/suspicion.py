"""Which prepared series to look at first, and why."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from aneurysm_ray.labels import PRESENT
from aneurysm_ray.reporting import figures_set

GRAVE = frozenset(
    {
        *("position_assumed", "orientation_assumed", "geometry_assumed", "orientation_repaired", "hu_doubtful"),
        *("rescale_assumed", "missing_slices", "other_stacks", "point_lost", "frames_assumed"),
    }
)
"""Quality codes that may mean a wrong volume, and not only an untidy folder."""

RULE = (
    "Most suspicious first. A series gets 3 for each grave remark of the reader (assumed or repaired geometry, missing "
    "slices, doubtful Hounsfield units, a lost point), 1 for any other remark, 3 for an aneurysm that no point marks, "
    "3 for a point outside the volume, and 2 each for a height or a brightness far from the others of its modality "
    "(more than 5 robust standard deviations from the median)."
)

_FAR = 5.0


def flags(table: pd.DataFrame, brightness: Mapping[str, float]) -> list[list[tuple[str, int]]]:
    """Return the remarks on each row of a volumes table, each with its weight, by RULE.

    `brightness` is the mean grey value of each series' picture, by series_uid.
    """
    sizes = figures_set.sizes(table)
    sizes["brightness"] = [brightness.get(uid, np.nan) for uid in table["series_uid"]]
    far = {column: _far(sizes[column], sizes["modality"]) for column in ("height_mm", "brightness")}
    result = []
    for index, row in enumerate(table.to_dict("records")):
        remarks = [(code.replace("_", " "), 3 if code in GRAVE else 1) for code in row["quality"]]
        if row[PRESENT] > 0.5 and not len(row["points"]):
            remarks.append(("no point marks the aneurysm", 3))
        if any(not _inside(point, row["shape"]) for point in row["points"]):
            remarks.append(("a point lies outside", 3))
        remarks += [(far[column][index], 2) for column in far if far[column][index]]
        result.append(remarks)
    return result


def _inside(point: Mapping[str, float], shape: Sequence[int]) -> bool:
    return all(-0.5 <= point[axis] <= size - 0.5 for axis, size in zip("zyx", shape, strict=True))


def _far(values: pd.Series, groups: pd.Series) -> list[str]:
    """Return a remark for each value that lies far from the median of its group, else an empty string."""
    names = {"height_mm": ("unusually low", "unusually high"), "brightness": ("unusually dark", "unusually bright")}
    low, high = names[str(values.name)]
    by_group = values.groupby(groups)
    centre = by_group.transform("median")
    # 1.4826 makes the median deviation a standard deviation where values are normal; the floor spares equal ones.
    spread = (values - centre).abs().groupby(groups).transform("median") * 1.4826
    scale = np.maximum(spread.to_numpy(np.float64), np.abs(centre.to_numpy(np.float64)) * 0.02 + 1e-9)
    distance = (values - centre).to_numpy(np.float64) / scale
    return [high if away > _FAR else low if away < -_FAR else "" for away in distance.tolist()]
