"""A run's models as one file: the weights of all folds as safetensors, and in its metadata all that inference needs.

A fold's model is that of its last epoch, whose predictions are the ones that the run's score is computed from.

The file is data only: reading it runs no code from it, and needs no Ray. Metadata, all text: `format`, `config` (TOML),
`folds` (JSON list), `prevalence` (JSON, each label's share of positive training series), `calibration` (JSON, each
label's Platt slope and intercept from the out-of-fold predictions, or null), `operating` (JSON, each label's curve of
`operating`, out of fold; absent in files of earlier versions), and `note` where the model has something to say of
itself. Tensors are named `fold_<k>/<name>`.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from aneurysm_ray import location, overrides, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.errors import RunDirError
from aneurysm_ray.labels import LABELS
from aneurysm_ray.learning import calibration, checkpoint, metrics, models, operating, starter

log = logging.getLogger(__name__)

FORMAT = "aneurysm_ray 1"
_KEYS = ("format", "config", "folds", "prevalence", "calibration")
_UNCALIBRATED: tuple[None, ...] = (None,) * len(LABELS)
_OPERATING = "operating"
_OF_A_MACHINE = ("init", "folds.file", "prepare.patient_key_file", "feed.cache_dir", "tune.storage")
"""Settings that are places on somebody's machine: no business of whom a model is given to."""
_NO_MATTER = {"batch_size", "candidates", "candidate_distance_mm", "operating"}
"""Settings of `inference` that change no probability."""


@dataclass(frozen=True, eq=False)
class TrainedModels:
    """The models of a run, ready to score, and what the run knows of its labels."""

    models: tuple[models.Network, ...]
    """One per fold, in evaluation mode, on their device."""
    config: Config
    prevalence: NDArray[np.float64]
    """(14,): share of positive series in training; the fall-back for a series that cannot be read."""
    platt: tuple[tuple[float, float] | None, ...]
    """Slope and intercept of each label's calibration; None where the run has one class only, and for all labels where
    the lines were fitted on something else than what these models answer: see `calibration_holds`."""
    digest: str
    """SHA-256 over configuration and weights: the same for a run and for its exported file."""
    note: str = ""
    """What whoever made the models wants every user of them to know."""
    curves: tuple[operating.Curve, ...] = ((),) * len(LABELS)
    """Of each label, out of fold; empty where one class only is known."""

    @property
    def points(self) -> tuple[operating.Point | None, ...]:
        """Each label's operating point by `inference.operating`; None where out-of-fold predictions hold none.

        They are of single networks; the mean of several spreads less, so that its shares differ somewhat.
        """
        return tuple(operating.choose(steps, self.config.inference.operating) for steps in self.curves)

    def calibrated(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (14,) probabilities as shares of series that would turn out positive; NaN where that is unknown."""
        return np.array(
            [
                float("nan") if line is None else float(calibration.apply_platt(probability, *line))
                for probability, line in zip(probabilities, self.platt, strict=True)
            ]
        )

    def changed(self, changes: Mapping[str, Any]) -> "TrainedModels":
        """Return the same models under other settings, given as dotted overrides. Raises ConfigError."""
        config = overrides.build(changes, base=self.config)
        platt = self.platt if calibration_holds(1, self.config, config) else _UNCALIBRATED
        return replace(self, config=config, platt=platt)


def calibration_holds(models: int, fitted: Config, asked: Config) -> bool:
    """Say whether lines fitted on out-of-fold predictions, made with settings `fitted`, are those of an answer.

    An out-of-fold prediction is one model's. The mean of several spreads otherwise, and every series of the set was
    trained on by some of them, so that nothing is left to fit its own line on.
    """
    there, now = (config.inference.model_dump(exclude=_NO_MATTER) for config in (fitted, asked))
    return models == 1 and there == now


def export_run(run: Path, out: Path, note: str = "") -> None:
    """Write a training run's models as one file, with a note to all who use them.

    Raises RunDirError when the run has no checkpoint.
    """
    tensors, metadata = _collect(run)
    if note:
        metadata["note"] = note
    with rundir.atomic(out, "wb") as file:
        file.write(save(tensors, metadata))


def load(source: Path, device: str | torch.device = "cpu", *, fast: bool = False) -> TrainedModels:
    """Load the models of a training run, of a search that trained its best, of an exported file, or the starter's.

    fast: only the first fold's model, without mirrored passes. Raises RunDirError when the source is none of these or
    is damaged.
    """
    source = starter.resolved(source)
    tensors, metadata = _collect(source) if source.is_dir() else _read(source)
    if missing := [key for key in _KEYS if key not in metadata]:
        raise RunDirError(f"{source} is no exported model: its metadata has no {missing[0]!r}")
    if metadata["format"] != FORMAT:
        raise RunDirError(f"{source} has format {metadata['format']!r}; this version reads {FORMAT!r}")
    digest = _digest(tensors, metadata)
    config, folds, prevalence, platt, curves = _parse(source, metadata)
    folds = folds[:1] if fast else folds
    built = [_restore(source, config, _of_fold(tensors, fold)).to(device) for fold in folds]
    if not calibration_holds(len(folds), config, config):
        platt = _UNCALIBRATED
    trained = TrainedModels(tuple(built), config, prevalence, platt, digest, metadata.get("note", ""), curves)
    return trained.changed({"inference.flip": False}) if fast else trained


def training_run(run: Path) -> Path:
    """Return the training run that a directory is or, for a search, holds: the full-length training of its best."""
    kind = rundir.kind(run)
    if kind == "train":
        return run
    if kind == "tune":
        best = (rundir.read_json(run / rundir.SUMMARY) if (run / rundir.SUMMARY).exists() else {}).get("best")
        if best and rundir.kind(folder := rundir.trained_dir(run, best["trial"])) == "train":
            return folder
        raise RunDirError(
            f"{run} is a search and keeps no weights; run aneurysm-ray train VOLUMES --config {run / rundir.BEST} "
            "--fold all, and predict with that run"
        )
    raise RunDirError(f"{run} is neither a training run nor an exported model")


def _collect(run: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    run = training_run(run)
    tensors, config = {}, None
    folds = _folds(run)
    for fold in folds:
        model, config = checkpoint.load_model(rundir.fold_dir(run, fold) / rundir.CHECKPOINT_LAST, "cpu")
        for name, tensor in model.state_dict().items():
            tensors[f"fold_{fold}/{name}"] = tensor.detach().cpu().contiguous()
    if config is None:
        raise RunDirError(f"{run} has no {rundir.CHECKPOINT_LAST} yet; let its training finish an epoch")
    if config.stage == "vessels":
        raise RunDirError(
            f"{run} was trained with stage = vessels, which learns no aneurysm, so that it can predict none; "
            f"`train VOLUMES --init {run}` carries it into detection"
        )
    prevalence, platt, curves = _label_facts(run, folds)
    return tensors, {
        "format": FORMAT,
        "config": overrides.to_toml(overrides.build(dict.fromkeys(_OF_A_MACHINE, ""), base=config)),
        "folds": json.dumps(folds),
        "prevalence": json.dumps(prevalence),
        "calibration": json.dumps(platt),
        _OPERATING: json.dumps(curves),
    }


def _folds(run: Path) -> list[int]:
    """Return the folds whose models are a run's: the complete ones, which its score is of, or else all there are."""
    names = [path.name.removeprefix("fold_") for path in location.matching(run, "fold_*")]
    there = [
        fold
        for fold in sorted(int(name) for name in names if name.isdigit())
        if (rundir.fold_dir(run, fold) / rundir.CHECKPOINT_LAST / checkpoint.STATE).exists()
    ]
    complete = [fold for fold in there if (rundir.fold_dir(run, fold) / rundir.SUMMARY).exists()]
    if there and not complete:
        log.warning("* no fold of %s is complete; its models are those of the epochs reached so far", run)
    elif len(complete) < len(there):
        log.warning("* %d of %d folds of %s are complete; the others are left out", len(complete), len(there), run)
    return complete or there


def _label_facts(
    run: Path, folds: list[int]
) -> tuple[list[float], list[tuple[float, float] | None], list[operating.Curve]]:
    """Return each label's prevalence, Platt line and operating curve over the given folds' out-of-fold predictions."""
    paths = [rundir.fold_dir(run, fold) / rundir.PREDICTIONS for fold in folds]
    tables = [rundir.read_csv(path) for path in paths if path.exists()]
    if not tables:
        return [0.5] * len(LABELS), [None] * len(LABELS), [()] * len(LABELS)
    targets = np.concatenate([metrics.targets_of(table) for table in tables])
    probabilities = np.concatenate([metrics.probabilities_of(table) for table in tables])
    prevalence: list[float] = []
    platt: list[tuple[float, float] | None] = []
    for column, given in zip(targets.T, probabilities.T, strict=True):
        known = column[~np.isnan(column)]
        prevalence.append(float(known.mean()) if len(known) else 0.5)
        platt.append(calibration.fit_platt(column, given) if len(np.unique(known)) == 2 else None)
    curves = [operating.curve(column, given) for column, given in zip(targets.T, probabilities.T, strict=True)]
    return prevalence, platt, curves


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with location.fetched(path) as here, safe_open(here, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RunDirError(f"{path}: cannot be read as a run directory or an exported model ({error})") from error


def _parse(
    source: Path, metadata: dict[str, str]
) -> tuple[Config, list[int], NDArray[np.float64], tuple[tuple[float, float] | None, ...], tuple[operating.Curve, ...]]:
    config = overrides.of_run(overrides.parse_toml(metadata["config"], source), source)
    try:
        folds = [int(fold) for fold in json.loads(metadata["folds"])]
        prevalence = np.array(json.loads(metadata["prevalence"]), np.float64)
        lines: list[Any] = json.loads(metadata["calibration"])
        steps: list[Any] = json.loads(metadata.get(_OPERATING, json.dumps([()] * len(LABELS))))
        curves = tuple(tuple((float(t), float(s), float(a)) for t, s, a in one) for one in steps)
        platt = tuple(None if line is None else (float(line[0]), float(line[1])) for line in lines)
    except (ValueError, TypeError, IndexError) as error:
        raise RunDirError(f"{source}: its metadata is damaged ({error})") from error
    if not folds or prevalence.shape != (len(LABELS),) or {len(platt), len(curves)} != {len(LABELS)}:
        raise RunDirError(f"{source}: its metadata does not speak of {len(LABELS)} labels and at least one fold")
    return config, folds, prevalence, platt, curves


def _of_fold(tensors: dict[str, Tensor], fold: int) -> dict[str, Tensor]:
    prefix = f"fold_{fold}/"
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _restore(source: Path, config: Config, weights: dict[str, Tensor]) -> models.Network:
    # On the meta device nothing is drawn or filled: the weights that replace them are at hand.
    with torch.device("meta"):
        model = models.build(config.model)
    checkpoint.restore(model, weights, source, assign=True)
    return model.eval().requires_grad_(False)


def _digest(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    sha = hashlib.sha256(json.dumps({key: metadata[key] for key in _KEYS}, sort_keys=True).encode())
    for name in sorted(tensors):
        sha.update(name.encode())
        sha.update(tensors[name].contiguous().numpy().tobytes())
    return sha.hexdigest()
