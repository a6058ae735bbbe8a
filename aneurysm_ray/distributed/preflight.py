"""What cannot work, said before Ray starts: labels that cannot be learned or judged, networks, files of weights."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from aneurysm_ray import overrides, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.distributed import first_weights
from aneurysm_ray.errors import ConfigError, RequestError, RunDirError
from aneurysm_ray.labels import LABELS, PRESENT

if TYPE_CHECKING:
    from aneurysm_ray.learning.checkpoint import Transfer

log = logging.getLogger(__name__)

_PLACES = ("init", "feed.cache_dir", "folds.file", "prepare.patient_key_file")
"""Settings that name a file or a folder."""
_OF_NETWORK = ("model.", "patch.", "augment.turn", "stage", "init", "optim.batch_size")
"""How the settings begin that say what network there is, and whether patches fit it."""


def check_labels(table: pd.DataFrame, dealt: pd.DataFrame, folds: Iterable[int]) -> None:
    """Raise RequestError when a fold has no positive series to learn from, or none to be judged by."""
    positive = table[PRESENT].to_numpy() > 0.5
    if not positive.any():
        raise RequestError(
            f"none of {len(table)} labelled series has an aneurysm, so that there is nothing to learn; prepare some "
            "that have one"
        )
    fold_of = dealt["fold"].to_numpy()
    for fold in folds:
        inside = fold_of == fold
        for part, mask in (("judged by", inside), ("trained on", ~inside)):
            if not positive[mask].any():
                raise RequestError(
                    f"fold {fold} would be {part} {mask.sum()} series, none of them with an aneurysm: "
                    f"{positive.sum()} series have one; use a smaller folds.count, or prepare more of them"
                )


def check_masks(table: pd.DataFrame, config: Config) -> None:
    """Say what a grid network does without masks of vessels. Raises RequestError where it would learn nothing else."""
    masked = int(table["has_vessels"].sum())
    if config.model.head == "grid" and masked == 0:
        if config.stage == "vessels":
            raise RequestError(
                "no labelled series has a mask of its vessels, so that there are none to learn; prepare the set with "
                "segmentations/ beside its train.csv and volume.masks on"
            )
        log.info(
            "* no series has a mask of its vessels: lesions are not gated by vessels, and negative patches on vessels "
            "are drawn where something is thin and bright"
        )


def check_metrics(config: Config, table: pd.DataFrame, dealt: pd.DataFrame) -> None:
    """Raise RequestError for a metric of a search that is no number in one of its folds, as one class only occurs."""
    for fold in config.tune.folds:
        lacking = unjudged(table, dealt, [fold])
        numberless = {f"val/auc/{label}" for label in lacking}
        if PRESENT in lacking:
            numberless.add("val/auc_present")
        if len(lacking) == len(LABELS) and config.stage == "lesions":
            numberless.add("val/score")
        if lost := sorted(numberless & {name.strip() for name in config.tune.metric.split(",")}):
            raise RequestError(
                f"tune.metric = {lost[0]} is never a number: the {(dealt['fold'] == fold).sum()} series of fold {fold} "
                "are all positive there, or all negative; choose another tune.metric, or other tune.folds"
            )


def unjudged(table: pd.DataFrame, dealt: pd.DataFrame, folds: Iterable[int]) -> list[str]:
    """Return the labels that no score of these folds holds, since only one class occurs among their series."""
    known = table.loc[dealt["fold"].isin(list(folds)).to_numpy(), list(LABELS)]
    return [label for label in LABELS if known[label].dropna().gt(0.5).nunique() < 2]


def check_network(config: Config, dealt: pd.DataFrame, folds: Sequence[int]) -> None:
    """Raise ConfigError for a network that cannot be, RunDirError for first weights that do not fit it, and
    RequestError for those that know who judges one of the folds."""
    _check_shape(config)
    if config.init:
        first_weights.check(config.init, dealt, folds)
        log.info("* %s: %s", config.init, _fitting(config, folds[0]))


def _check_shape(config: Config) -> None:
    from aneurysm_ray.learning import engine

    engine.check(config)
    if config.optim.batch_size < config.resources.workers:
        raise ConfigError(
            f"optim.batch_size = {config.optim.batch_size} is fewer than one patch for each of resources.workers = "
            f"{config.resources.workers}"
        )


def _fitting(config: Config, fold: int) -> "Transfer":
    from aneurysm_ray.learning import checkpoint, models, starter

    first = checkpoint.read_weights(first_weights.of_fold(config.init, fold))
    others = ConfigError(
        f"init = starter fits the network of --preset starter alone, and not model.name = {config.model.name}; "
        "prepare the set and train with --preset starter"
    )
    try:
        found = checkpoint.transfer(models.build(config.model), first)
    except RunDirError:
        if config.init == starter.NAME:
            raise others from None
        raise
    if config.init == starter.NAME and found.missing:
        raise others
    return found


def check_samples(config: Config, dealt: pd.DataFrame, probes: Iterable[tuple[str, Any]]) -> None:
    """Raise ConfigError for a value of a search's space with which the network cannot be; each is tried alone."""
    folds = config.tune.folds
    for key, value in probes:
        if not key.startswith(_OF_NETWORK):
            continue
        sample = overrides.build({key: value}, base=config)
        try:
            if sample.init != settled(sample).init:
                raise ConfigError("it is relative, and workers run in folders of their own; give an absolute path")
            _check_shape(sample)
            if sample.init:
                first_weights.check(sample.init, dealt, folds)
                _fitting(sample, folds[0])
        except RequestError as error:
            raise ConfigError(f"tune.space: {key} = {value!r}: {error}") from error


def check_states(out: Path, folds: Sequence[int]) -> None:
    """Raise RunDirError when the state that a fold would go on from is damaged."""
    from aneurysm_ray.learning import checkpoint

    for fold in folds:
        last = rundir.fold_dir(out, fold) / rundir.CHECKPOINT_LAST
        if (last / checkpoint.STATE).exists():
            checkpoint.check(last)


def settled(config: Config) -> Config:
    """Return a configuration whose paths do not depend on where they are read: workers run in folders of their own, and
    a run may be resumed from anywhere."""
    from aneurysm_ray.learning import starter

    places = {key: overrides.value(config, key) for key in _PLACES}
    return overrides.build(
        {
            key: str(Path(path).expanduser().absolute())
            for key, path in places.items()
            if path and "://" not in path and path != starter.NAME
        },
        base=config,
    )
