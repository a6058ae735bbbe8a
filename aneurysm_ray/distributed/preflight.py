"""What cannot work, said before Ray starts: labels that cannot be learned or judged, networks, files of weights."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from aneurysm_ray import location, overrides, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.errors import ConfigError, RequestError
from aneurysm_ray.labels import LABELS, PRESENT

log = logging.getLogger(__name__)

_PLACES = ("init", "feed.cache_dir", "folds.file", "prepare.patient_key_file")
"""Settings that name a file or a folder."""


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


def unjudged(table: pd.DataFrame, dealt: pd.DataFrame, folds: Iterable[int]) -> list[str]:
    """Return the labels that no score of these folds holds, since only one class occurs among their series."""
    known = table.loc[dealt["fold"].isin(list(folds)).to_numpy(), list(LABELS)]
    return [label for label in LABELS if known[label].dropna().gt(0.5).nunique() < 2]


def check_network(config: Config) -> None:
    """Raise ConfigError for a network that cannot be, RunDirError for first weights that do not fit it."""
    from aneurysm_ray.learning import checkpoint, engine, models, starter

    engine.check(config)
    if config.optim.batch_size < config.resources.workers:
        raise ConfigError(
            f"optim.batch_size = {config.optim.batch_size} is fewer than one patch for each of resources.workers = "
            f"{config.resources.workers}"
        )
    if config.init:
        found = checkpoint.transfer(models.build(config.model), checkpoint.read_weights(location.place(config.init)))
        log.info("* %s: %s", config.init, found)
        if config.init == starter.NAME and found.missing:
            raise ConfigError(
                f"init = starter fits the network of --preset starter alone, and not model.name = {config.model.name}; "
                "prepare the set and train with --preset starter"
            )


def check_samples(config: Config, probes: Iterable[tuple[str, Any]]) -> None:
    """Raise ConfigError for a value of a search's space with which the network cannot be; each is tried alone."""
    from aneurysm_ray.learning import engine

    for key, value in probes:
        if key.startswith(("model.", "patch.")):
            try:
                engine.check(overrides.build({key: value}, base=config))
            except ConfigError as error:
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
