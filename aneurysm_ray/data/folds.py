"""Patient-wise folds, stratified by presence, location and modality.

Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011): the rarest trait is dealt out first, each of its
patients to the fold that lacks it most, so that even a label with a dozen positives occurs in every fold.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aneurysm_ray.config import FoldsConfig
from aneurysm_ray.data import own_folds
from aneurysm_ray.errors import RequestError
from aneurysm_ray.labels import LABELS, PRESENT


def assign(table: pd.DataFrame, config: FoldsConfig, hashed: own_folds.Hash | None = None) -> pd.DataFrame:
    """Return series_uid, patient, fold for each row of a volumes table, in its order.

    A patient's series share a fold; folds hold equally many patients, give or take one. The assignment depends on the
    set of series and the seed alone, not on the order of rows; or on `config.file`, whose names of patients `hashed`
    turns into the set's. Raises RequestError when there are fewer patients than folds, or the file is wrong.
    """
    if config.file and config.by == "site":
        raise RequestError(f"folds.file={config.file} and folds.by=site both say who is held out; keep one of them")
    if config.file:
        return own_folds.read(Path(config.file), table, config, hashed)
    if config.by == "site":
        return _by_site(table, config)
    patients, traits = _traits(table)
    if len(patients) < 2:
        raise RequestError(
            f"all {len(table)} labelled series are of one patient, and a fold is judged by patients that it was not "
            "trained on; prepare more patients"
        )
    if len(patients) < config.count:
        raise RequestError(
            f"{len(patients)} patients cannot be split into {config.count} folds; "
            f"use folds.count={len(patients)} or prepare more patients"
        )
    folds = pd.Series(_deal(traits, config.count, config.seed), index=patients)
    result = table[["series_uid", "patient"]].reset_index(drop=True)
    result["fold"] = folds.loc[result["patient"]].to_numpy()
    return result


def _by_site(table: pd.DataFrame, config: FoldsConfig) -> pd.DataFrame:
    """Return series_uid, patient, fold with whole sites held out: sites with the most patients first, each to the fold
    that has the fewest patients yet. Raises RequestError when sites are not known, or too few."""
    known = table["site"].fillna("") != ""
    if not known.all():
        some = table.loc[~known, "series_uid"].iloc[0]
        raise RequestError(
            f"folds.by=site, and {int((~known).sum())} of {len(table)} labelled series have no site, such as {some}; "
            "give them one in the column site of series.csv or participants.tsv and prepare again, or leave folds.by"
        )
    of_patient = table.groupby("patient")["site"].agg(lambda sites: sorted(set(sites)))
    if len(several := of_patient[of_patient.map(len) > 1]):
        raise RequestError(
            f"patient {several.index[0]} was scanned at {' and '.join(several.iloc[0])}: no fold can hold out one site "
            "without judging by somebody it was trained on; give the patient one site"
        )
    sizes = of_patient.map(lambda sites: sites[0]).value_counts()
    if len(sizes) < config.count:
        raise RequestError(
            f"{len(sizes)} sites cannot be held out by {config.count} folds; "
            + (f"use folds.count={len(sizes)}" if len(sizes) > 1 else "folds by site need two sites")
        )
    held = [0] * config.count
    fold_of: dict[str, int] = {}
    for site, patients in sorted(sizes.items(), key=lambda item: (-item[1], str(item[0]))):
        fold_of[str(site)] = held.index(min(held))
        held[fold_of[str(site)]] += int(patients)
    result = table[["series_uid", "patient"]].reset_index(drop=True)
    result["fold"] = [fold_of[str(site)] for site in table["site"]]
    return result


def _traits(table: pd.DataFrame) -> tuple[pd.Index, NDArray[np.bool_]]:
    """Return the sorted patients and (patients, traits): each label, and each modality with and without presence."""
    # int8, because the maximum over a patient's series is what counts, and unknown labels count as absent.
    labels = (table.loc[:, list(LABELS)] > 0.5).astype(np.int8)
    modality = table["modality"].astype("string").fillna("unknown")
    positive = modality.where(labels[PRESENT] > 0, other="").rename("positive")
    columns = [labels, pd.get_dummies(modality, dtype=np.int8), pd.get_dummies(positive, prefix="+", dtype=np.int8)]
    of_series = pd.concat(columns, axis=1).set_axis(table["patient"])
    of_patient = of_series.groupby(level=0, sort=True).max()
    return of_patient.index, of_patient.to_numpy().astype(bool)


def _deal(traits: NDArray[np.bool_], count: int, seed: int) -> NDArray[np.int64]:
    """Return a fold for each patient; traits (patients, traits)."""
    rng = np.random.default_rng(seed)
    # Every patient also has the last trait, being a patient; what is left after all others is dealt out by it.
    traits = np.column_stack([traits, np.ones(len(traits), bool)])
    folds = np.full(len(traits), -1)
    wanted = np.tile(traits.sum(axis=0) / count, (count, 1))
    room = np.full(count, len(traits) // count)
    room[rng.permutation(count)[: len(traits) % count]] += 1
    shuffled = rng.permutation(len(traits))
    while (waiting := shuffled[folds[shuffled] < 0]).size:
        left = traits[waiting].sum(axis=0)
        rarest = int(np.argmin(np.where(left > 0, left, len(traits) + 1)))
        for patient in waiting[traits[waiting, rarest]]:
            need = np.where(room > 0, wanted[:, rarest], -np.inf)
            best = np.flatnonzero(need == need.max())
            # Of folds that lack the trait equally, the one that lacks the patient's other traits most.
            lack = (wanted[best][:, traits[patient]] / traits[:, traits[patient]].sum(axis=0)).sum(axis=1)
            fold = int(best[np.argmax(lack + 1e-12 * rng.random(len(best)))])
            folds[patient] = fold
            wanted[fold, traits[patient]] -= 1
            room[fold] -= 1
    return folds
