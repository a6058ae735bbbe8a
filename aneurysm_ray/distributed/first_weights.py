"""First weights (`init`): where a fold's lie, what they are known by, and whether they know who judges it.

Of a training run's folder every fold starts from its own, so that a run in two stages - vessels, then aneurysms - keeps
the patients who judge a fold out of both.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from aneurysm_ray import location, provenance, rundir
from aneurysm_ray.errors import RequestError


def of_fold(init: str, fold: int) -> Path:
    """Return the file or the checkpoint that a fold starts from."""
    place = _place(init)
    return rundir.fold_dir(place, fold) / rundir.CHECKPOINT_LAST if _is_run(place) else place


def digest(init: str) -> str:
    """Return what first weights are known by when a run is resumed: a file's bytes, or how a run was begun."""
    from aneurysm_ray.learning import checkpoint

    place = _place(init)
    if _is_run(place):
        begun = [provenance.file_digest(place / name) for name in (rundir.CONFIG, rundir.FOLDS)]
        return hashlib.sha256(" ".join(begun).encode()).hexdigest()
    return provenance.file_digest(place / checkpoint.STATE if place.is_dir() else place)


def check(init: str, dealt: pd.DataFrame, folds: Iterable[int]) -> None:
    """Raise RequestError when a fold would be judged by patients whom its first weights have learnt from, or when the
    run that they are of has not finished that fold. `dealt` is the folds.csv of the run that starts from them.

    Of a file that lies in no run nobody knows whom it has learnt from.
    """
    place = _place(init)
    of_one = [folder for folder in (place, *place.parents) if re.fullmatch(r"fold_\d+", folder.name)]
    around = (place, *of_one[0].parents) if of_one else (place,)
    run = next((folder for folder in around if _is_run(folder)), None)
    if run is None:
        return
    before = rundir.read_csv(run / rundir.FOLDS)
    for fold in folds:
        if run == place and not (rundir.fold_dir(run, fold) / rundir.SUMMARY).exists():
            raise RequestError(
                f"init = {run}: its fold {fold}, from which this run's fold {fold} would start, is not complete; train "
                f"it to its end first, with --fold {fold} --resume"
            )
        taught_without = fold if run == place else int(of_one[0].name.removeprefix("fold_"))
        learnt_from = set(before.loc[before["fold"] != taught_without, "patient"].astype(str))
        judges = set(dealt.loc[dealt["fold"] == fold, "patient"].astype(str))
        if known := judges & learnt_from:
            cure = (
                "deal the folds as that run's: its set, folds.count, folds.seed and folds.file"
                if run == place
                else f"give init={run}, trained with --fold all, so that every fold starts from its own"
            )
            raise RequestError(
                f"fold {fold} would be judged by {len(known)} patient(s) whom its first weights, {init}, have learnt "
                f"from, and its score would be too good; {cure}"
            )


def _place(init: str) -> Path:
    from aneurysm_ray.learning import starter

    return starter.resolved(location.place(init))


def _is_run(place: Path) -> bool:
    return place.is_dir() and (place / rundir.FOLDS).exists()
