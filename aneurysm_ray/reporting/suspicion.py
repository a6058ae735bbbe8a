"""Which prepared series to look at first, and why: what was told of each, and what sets it apart from the others."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from aneurysm_ray.data import doubts
from aneurysm_ray.reporting import figures_set

RULE = (
    "Most suspicious first. A series gets 5 for each remark on its points or masks (a point outside the volume, on "
    "dark voxels, on the wrong side or lost; a mask that misses its volume or contradicts its points) and for a scan "
    "that another patient has too, 3 for each "
    "other grave remark (no head found, assumed or repaired geometry, missing slices, doubtful Hounsfield units) and "
    "for an aneurysm that no point marks, 1 for any other remark, and 2 each for a height or a brightness far from the "
    "others of its modality (more than 5 robust standard deviations from the median)."
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
        remarks = doubts.remarks({str(key): value for key, value in row.items()})
        remarks += [(far[column][index], 2) for column in far if far[column][index]]
        result.append(remarks)
    return result


def _far(values: pd.Series, groups: pd.Series) -> list[str]:
    """Return a remark for each value that lies far from the median of its group, else an empty string."""
    names = {"height_mm": ("unusually short", "unusually tall"), "brightness": ("unusually dark", "unusually bright")}
    low, high = names[str(values.name)]
    by_group = values.groupby(groups)
    centre = by_group.transform("median")
    # 1.4826 makes the median deviation a standard deviation where values are normal; the floor spares equal ones.
    spread = (values - centre).abs().groupby(groups).transform("median") * 1.4826
    scale = np.maximum(spread.to_numpy(np.float64), np.abs(centre.to_numpy(np.float64)) * 0.02 + 1e-9)
    distance = (values - centre).to_numpy(np.float64) / scale
    return [high if away > _FAR else low if away < -_FAR else "" for away in distance.tolist()]
