"""Phantoms on disk together with what was drawn, which takes as long to draw again."""

import copy
from pathlib import Path

import pytest

from aneurysm_ray import phantom
from aneurysm_ray.phantom import PhantomOptions, SeriesPlan, tables
from aneurysm_ray.phantom.series import Rendered, make_series


def write_and_keep(folder: Path, options: PhantomOptions) -> tuple[Path, dict[str, Rendered]]:
    """Write a data set in this process; return its folder and its series before they were written, by patient."""
    kept: dict[str, Rendered] = {}

    def keep(options: PhantomOptions, plan: SeriesPlan) -> Rendered:
        rendered = make_series(options, plan)
        kept[rendered.patient] = copy.deepcopy(rendered)
        return rendered

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "make_series", keep)
        phantom.write_dataset(folder, options)
    return folder, kept
