"""Training state as files: saved atomically, loaded without unpickling code, turned into a network, or transferred.

A checkpoint is a folder with `state.pt`, the `state` of an `EpochResult`. Loading always uses `weights_only=True`,
which accepts tensors and plain values and nothing that runs.
"""

import pickle
import re
import zipfile
import zlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from aneurysm_ray import location, overrides, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.errors import RunDirError
from aneurysm_ray.learning import models, starter

STATE = "state.pt"

WRAPPERS = re.compile(r"^(module|model|network|net|backbone|encoder|state_dict)\.")
"""Prefixes that trainers put before a network's own names; `module.` is DataParallel's, as in MedicalNet's files."""

FITTING = 0.1
"""Least share of a network's tensors that weights to start from must have. A backbone of the same kind has more."""
WEIGHT_KEYS = ("ema", "model", "state_dict", "model_state_dict", "network_weights", "network")
"""Where files of several trainers keep the weights, the first one found is taken."""


def save(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a training state into a folder, atomically."""
    with rundir.atomic(folder / STATE, "wb") as file:
        torch.save(dict(state), file)


class Saver:
    """Writes the states of a training one after another, while the next epoch is trained.

    A kill in between costs one epoch more than it would otherwise, which is then repeated to the same digits.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self.writing: Future[None] | None = None

    def save(self, state: Mapping[str, Any]) -> None:
        """Begin to write a state. Raises OutputError for the state before."""
        self.wait()
        # The state's tensors change with the next step: what is written in the background is a copy.
        self.writing = self.pool.submit(save, self.folder, _copied(state))

    def wait(self) -> None:
        """Return when all is written. Raises OutputError."""
        if self.writing is not None:
            writing, self.writing = self.writing, None
            writing.result()


def _copied(value: Any) -> Any:
    """Return a state, or a part of one, whose tensors are copies in memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copied(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_copied, value))
    return value


def check(folder: Path) -> None:
    """Look whether a training state is whole. Raises RunDirError when it is missing or damaged.

    torch itself notices what is cut off, and not what has changed.
    """
    path = folder / STATE
    try:
        with location.fetched(path) as here, zipfile.ZipFile(here) as archive:
            damaged = archive.testzip()
    except OSError as error:
        raise RunDirError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (zipfile.BadZipFile, EOFError, ValueError, zlib.error) as error:
        raise RunDirError(f"{path}: damaged or cut short; {_cure(path)}") from error
    if damaged:
        raise RunDirError(f"{path}: damaged; {_cure(path)}")


def load(folder: Path) -> dict[str, Any]:
    """Read a training state onto the CPU. Raises RunDirError when it is missing, damaged or holds code."""
    check(folder)
    state = _read(folder / STATE)
    if "model" not in state or "config" not in state:
        raise RunDirError(f"{folder / STATE} is not a checkpoint of aneurysm_ray; it has no model and config")
    return state


def load_model(folder: Path, device: torch.device | str = "cpu") -> tuple[models.Network, Config]:
    """Read the network that validation used, averaged weights where there are any, in eval mode, and its configuration.

    Raises RunDirError when the checkpoint cannot be used.
    """
    state = load(folder)
    config = overrides.of_run(state["config"], folder)
    network = models.build(config.model)
    restore(network, state["ema"] or state["model"], folder)
    return network.to(device).eval(), config


def restore(network: nn.Module, weights: Mapping[str, Tensor], source: Path, *, assign: bool = False) -> None:
    """Give a network all of its weights; assign: in the place of its own tensors, not copied into them.

    Raises RunDirError, with the cure, when the weights of `source` are not those of such a network.
    """
    found = compared(network, weights)
    if found.missing or found.unused:
        raise RunDirError(f"{source}: its weights do not fit its configuration: {found}; {overrides.EARLIER}")
    network.load_state_dict(weights, assign=assign)


def compared(network: nn.Module, weights: Mapping[str, Tensor]) -> "Transfer":
    """Say which of a network's tensors are among some weights under their very names."""
    mine = network.state_dict()
    misshapen = tuple(name for name in mine if name in weights and weights[name].shape != mine[name].shape)
    missing = tuple(name for name in mine if name not in weights or name in misshapen)
    matched = tuple(name for name in mine if name not in missing)
    return Transfer(matched, missing, misshapen, tuple(name for name in weights if name not in mine))


@dataclass(frozen=True)
class Transfer:
    """What a file's weights can give a network."""

    matched: tuple[str, ...]
    """The network's tensors that the file has."""
    missing: tuple[str, ...]
    """The network's tensors that it has not; they stay fresh."""
    misshapen: tuple[str, ...]
    """Those among the missing that the file has in another shape."""
    unused: tuple[str, ...]
    """The file's tensors that have no place."""

    def __str__(self) -> str:
        sentence = f"{len(self.matched)} of {len(self.matched) + len(self.missing)} tensors fit"
        for words, names in (
            ("of another shape", self.misshapen),
            ("not in the file", [name for name in self.missing if name not in self.misshapen]),
            ("not used", self.unused),
        ):
            if names:
                sentence += f"; {len(names)} {words} ({', '.join(list(names)[:3])}{', ...' if len(names) > 3 else ''})"
        return sentence


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read named tensors from a checkpoint folder, a `.safetensors` file, or a torch file such as MedicalNet's.

    Of an exported model, the starter's among them, the first fold's are read. Raises RunDirError when there are none,
    or the file is damaged or holds code.
    """
    path = starter.resolved(path)
    if path.is_dir():
        path = path / STATE
    if path.suffix == ".safetensors":
        try:
            with location.fetched(path) as here:
                return _of_first_fold(load_file(here))
        except (OSError, SafetensorError) as error:
            raise RunDirError(f"{path}: not a safetensors file ({error})") from error
    found: Any = _read(path)
    for key in WEIGHT_KEYS:
        if isinstance(found.get(key), Mapping) and found[key]:
            found = found[key]
            break
    weights = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not weights:
        raise RunDirError(f"{path} holds no named tensors; give a checkpoint folder or a file of a state dict")
    return weights


def _of_first_fold(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the first fold's tensors of an exported model under their own names; those of any other file as they are.

    See `export`.
    """
    folds = sorted({int(match[1]) for name in tensors if (match := re.match(r"fold_(\d+)/", name))})
    if not folds:
        return dict(tensors)
    first = f"fold_{folds[0]}/"
    return {name.removeprefix(first): tensor for name, tensor in tensors.items() if name.startswith(first)}


def transfer(network: nn.Module, weights: Mapping[str, Tensor]) -> Transfer:
    """Copy the weights whose name, without wrappers' prefixes, and shape fit into a network; say what matched.

    Raises RunDirError when hardly anything fits: the weights are another network's.
    """
    by_name = {_bare(name): (name, value) for name, value in weights.items()}
    matched, missing, misshapen, used = [], [], [], set()
    with torch.no_grad():
        for name, mine in network.state_dict().items():
            source, value = by_name.get(_bare(name), ("", None))
            if value is not None and value.shape == mine.shape:
                mine.copy_(value)
                matched.append(name)
                used.add(source)
            else:
                missing.append(name)
                if value is not None:
                    misshapen.append(name)
                    used.add(source)
    result = Transfer(
        tuple(matched), tuple(missing), tuple(misshapen), tuple(name for name in weights if name not in used)
    )
    if len(matched) < FITTING * (len(matched) + len(missing)):
        raise RunDirError(
            f"hardly any of the file's weights fits the network: {result}; give the settings of the network that they "
            "are of, such as --config RUN/config.toml"
        )
    return result


def _cure(path: Path) -> str:
    if path.name != STATE:
        return "fetch the file again"
    return f"remove {path.parent} and run the same command with --resume: what it is the state of begins anew"


def _bare(name: str) -> str:
    while (shorter := WRAPPERS.sub("", name)) != name:
        name = shorter
    return name


def _read(path: Path) -> dict[str, Any]:
    try:
        with location.fetched(path) as here:
            found = torch.load(here, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RunDirError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, pickle.UnpicklingError) and "truncated" not in first:
            raise RunDirError(
                f"{path}: not a file of tensors and plain values ({first}); files that hold code are never loaded"
            ) from error
        raise RunDirError(f"{path}: damaged or cut short ({first}); {_cure(path)}") from error
    if not isinstance(found, dict):
        raise RunDirError(f"{path} holds a {type(found).__name__}, not named tensors")
    return found
