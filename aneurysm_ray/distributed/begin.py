"""Begin a run over a prepared set, or go on with one: its directory, its folds, and what must be as it was.

`folds.csv` is the record of what a run learns from: each labelled series with its patient, its fold and a digest of
what the set says of it. A run that is resumed keeps these folds. Dealt anew from a set that has changed meanwhile,
patients whom a fold was trained on would become its judges.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from aneurysm_ray import provenance, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.data import doubts, identity, store, urls
from aneurysm_ray.data import folds as fold_tables
from aneurysm_ray.distributed import first_weights
from aneurysm_ray.errors import RequestError, RunDirError
from aneurysm_ray.labels import LABELS

log = logging.getLogger(__name__)

CONTENT = "content"
"""Column of folds.csv: digest of a series' row in the set's table, and of the settings its volume was made with."""
_PLACES = ("path", "bytes", "scan")
"""Columns of a set's table that say how a volume is kept, and nothing of what it holds that others do not."""
_NAMED = 3
"""Series of a kind that a sentence names."""


def labelled(volumes: Path) -> pd.DataFrame:
    """Return the rows of a prepared set's table that can be learned from. Raises RequestError when there are none."""
    table = store.volumes_table(volumes)
    kept = table[table[LABELS[-1]].notna()]
    if kept.empty:
        raise RequestError(
            f"{volumes}: no volume has labels to train on; prepare a data set that has a train.csv, series.csv or masks"
        )
    if len(kept) < len(table):
        log.info("* %d of %d volumes have no labels and are left out", len(table) - len(kept), len(table))
    if unseen := int(unseen_positives(kept).sum()):
        log.info(
            "* %d of %d positive volumes have every point outside: no patch shows their aneurysm, and the score counts "
            "them as misses; a larger volume.extent_mm may hold it",
            *(unseen, int((kept[LABELS[-1]] > 0.5).sum())),
        )
    return kept.reset_index(drop=True)


def unseen_positives(table: pd.DataFrame) -> "pd.Series[bool]":
    """Say of each row of a prepared set's table whether its series is positive by points that are all outside."""
    return pd.Series(
        [
            bool(row[LABELS[-1]] > 0.5 and len(row["points"]))
            and not any(doubts.is_inside([p[axis] for axis in "zyx"], row["shape"]) for p in row["points"])
            for row in table.to_dict("records")
        ],
        index=table.index,
        dtype=bool,
    )


def deal(volumes: Path, table: pd.DataFrame, config: Config) -> pd.DataFrame:
    """Return folds.csv of a set's labelled rows, dealt out or as `folds.file` says.

    Patients who share a scan, voxel for voxel, are dealt as one: a fold would be judged by what it was trained on, and
    no name would tell. Raises RequestError when there are fewer patients than folds, the file is wrong, or what is not
    dealt by chance gives one scan to two folds.
    """
    hashed = identity.hash_of_patients(str(volumes), config.prepare.patient_key_file) if config.folds.file else None
    by_chance = not config.folds.file and config.folds.by != "site"
    named = table["patient"].to_numpy()
    dealt = fold_tables.assign(_as_one(table) if by_chance else table, config.folds, hashed).assign(patient=named)
    scans = pd.Series(table["scan"].to_numpy(), index=dealt.index)
    for _, same in dealt[scans.ne("") & scans.duplicated(keep=False)].groupby(scans):
        if same["fold"].nunique() > 1:
            first, other = same.drop_duplicates("fold")["series_uid"].iloc[:2]
            raise RequestError(
                f"{volumes}: series {first} and {other} are one scan, voxel for voxel, of two patients by name, and a "
                "fold would be judged by what it was trained on; leave one out of the data set, or call the patient by "
                "one name there, and prepare it again"
            )
    return dealt.assign(**{CONTENT: _contents(volumes, table)})


def _as_one(table: pd.DataFrame) -> pd.DataFrame:
    """Return a set's table in which all patients who share a scan, or share one with one who does, have one name."""
    shared = table[table["scan"].ne("")].groupby("scan")["patient"].agg(lambda names: sorted(set(names)))
    name = {patient: patient for patient in table["patient"]}
    for names in shared[shared.map(len) > 1]:
        alike = {name[patient] for patient in names}
        name.update({patient: min(alike) for patient, now in name.items() if now in alike})
    if together := sum(patient != now for patient, now in name.items()):
        log.info(
            "* %d patient(s) have a scan, voxel for voxel, that another has by name, and are dealt to its fold; "
            "the set's page lists them first (scan_repeated)",
            together,
        )
    return table.assign(patient=table["patient"].map(name))


def _contents(volumes: Path, table: pd.DataFrame) -> list[str]:
    described = urls.read_bytes(urls.join(str(volumes), rundir.PREPARE))
    settings = json.dumps(json.loads(described).get("volume") if described else None, sort_keys=True)
    # A set that knows no sites is what it was before there were any.
    left_out = [*_PLACES, *(["site"] if "site" in table and not table["site"].any() else [])]
    rows = table.drop(columns=[name for name in left_out if name in table]).to_dict("records")
    for row in rows:  # what other series of the set are like changes nothing of this one
        row["quality"] = [code for code in row["quality"] if code != store.REPEATED]
    texts = (json.dumps(row, sort_keys=True, default=_plain) + settings for row in rows)
    return [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts]


def _plain(value: Any) -> Any:
    return value.tolist()  # numpy's arrays and numbers


@dataclass(frozen=True, eq=False)
class Run:
    """A run that is about to begin or to go on."""

    kind: str
    volumes: Path
    dealt: pd.DataFrame
    """folds.csv of the set as it is now, of `deal`."""
    out: Path
    config: Config
    freed: tuple[str, ...] = ()
    """Settings that a run which is resumed may have anew."""

    def check(self, *, resume: bool) -> None:
        """Look whether the directory can be made, or resumed, and write nothing.

        Raises RunDirError when it is taken, or when the run to be resumed was begun with other settings, other data,
        other folds or another file of first weights. A set that has only moved is accepted.
        """
        rundir.check(self.out, self.config, resume=resume, freed=self.freed)
        if not (self.out / rundir.FOLDS).exists():
            return
        if difference := _difference(rundir.read_csv(self.out / rundir.FOLDS), self.dealt):
            raise RunDirError(
                f"{self.volumes} is not what {self.out} was begun with: {difference}. Resume it with "
                + ("the set and folds.file as they were" if self.config.folds.file else "the set as it was")
                + ", or begin another run with another --out"
            )
        if rundir.read_json(self.out / rundir.PROVENANCE).get("init_digest") != self._facts().get("init_digest"):
            raise RunDirError(
                f"{self.config.init} is not the file of first weights that {self.out} was begun with; put that one "
                "back, or begin another run with another --out"
            )

    def open(self) -> None:
        """Make the directory, or note where the set of a run that goes on lies now."""
        rundir.create(self.out, self.config, provenance.describe(self.kind, **self._facts()))
        rundir.write_csv(self.out / rundir.FOLDS, self.dealt)
        there = rundir.read_json(self.out / rundir.PROVENANCE)
        if there.get("volumes") != str(self.volumes):
            log.info("* the volumes lie in %s now; they were in %s", self.volumes, there.get("volumes"))
            rundir.write_json(self.out / rundir.PROVENANCE, {**there, "volumes": str(self.volumes)})

    def _facts(self) -> dict[str, str]:
        facts = {"volumes": str(self.volumes)}
        if self.config.init:
            facts["init_digest"] = first_weights.digest(self.config.init)
        return facts


def _difference(kept: pd.DataFrame, now: pd.DataFrame) -> str:
    """Say how the labelled series of a set, or their folds, differ from those of a run; empty where they do not."""
    before, after = (_by_series(table) for table in (kept, now))
    both = before.keys() & after.keys()
    kinds = {
        "new": after.keys() - before.keys(),
        "gone": before.keys() - after.keys(),
        "of another patient": {uid for uid in both if before[uid]["patient"] != after[uid]["patient"]},
        "other in label, point or volume": {uid for uid in both if before[uid].get(CONTENT) != after[uid].get(CONTENT)},
    }
    if not any(kinds.values()):  # else others are dealt anew as well
        kinds = {"in another fold": {uid for uid in both if before[uid]["fold"] != after[uid]["fold"]}}
    return ", ".join(f"{len(uids)} series {_named(uids)} {kind}" for kind, uids in kinds.items() if uids)


def _by_series(table: pd.DataFrame) -> Mapping[str, dict[str, Any]]:
    return {str(row["series_uid"]): row for row in table.astype(object).to_dict("records")}  # type: ignore[misc]


def _named(uids: set[str]) -> str:
    shown = sorted(uids)[:_NAMED]
    return f"({', '.join(shown)}{', ...' if len(uids) > _NAMED else ''}) {'is' if len(uids) == 1 else 'are'}"
