"""From dotted overrides to a `Config`: presets, TOML files, `key=value` words and a search's samples, and back.

Order of precedence: defaults < preset < `--config FILE.toml` < `key=value` on the command line < a search's sample.
A dotted key such as `optim.lr` names a field everywhere. Unknown keys are refused with the nearest known one.
"""

import json
import logging
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ValidationError

from aneurysm_ray import location
from aneurysm_ray.config import VOLUME_FORMAT, Config, VolumeConfig
from aneurysm_ray.errors import ConfigError, RunDirError, did_you_mean

log = logging.getLogger(__name__)

RETIRED_SECRET = "prepare.patient_key"
"""A setting of earlier versions that their runs and models hold."""

EARLIER = (
    "another version of aneurysm_ray wrote it, or a hand changed it: train anew and export again, or go on with the "
    "version that wrote it"
)
"""What is to be done about a run or a model that this version cannot use."""

PRESETS: dict[str, dict[str, Any]] = {
    # The first try: a plain network on patches as they come. Positives are rare, so their weight must make up for it.
    "v1": {
        "model.name": "resnet3d18",
        "loss.name": "bce",
        "loss.class_weights": True,
        "sampler.oversample": False,
    },
    # + oversampling: half of the patches hold an aneurysm, the others look like it.
    "v2": {
        "model.name": "resnet3d18",
        "loss.name": "bce",
    },
    # + a deeper network, which needs a smaller rate, and focal loss, which goes on about the hard negatives.
    "v3": {
        "model.name": "resnet3d34",
        "optim.lr": 4e-4,
        "loss.name": "focal",
    },
    # + an ensemble of patches: each place is seen in more windows and mirrored, and more windows must agree.
    "v4": {
        "model.name": "resnet3d34",
        "optim.lr": 4e-4,
        "loss.name": "focal",
        "inference.overlap": 0.625,
        "inference.flip": True,
        "inference.top_k": 3,
    },
    # Where the lesion is, on which vessel: cells as large as a dome in place of one answer per patch.
    "v5": {
        "model.name": "resnet3d18",
        "model.head": "grid",
        "loss.name": "bce",
        "loss.positive_weight": 5.0,
        "inference.overlap": 0.25,
        "inference.flip": True,
    },
    # The networks of the starter weights, small enough for a core to teach in hours. Voxels of 0.8 mm, since most
    # scans have no finer ones along all axes; patches are cubes, so that they may be turned into any orientation. Most
    # negatives are mined: of the rest of a head the networks know soon that it is no aneurysm. Intensities vary more
    # than one scanner's do, for the sake of other scanners.
    "starter": {
        "volume.spacing_mm": (0.8, 0.8, 0.8),
        "model.name": "small3d",
        "model.head": "grid",
        "model.width": 16,
        "patch.size": (48, 48, 48),
        "loss.name": "bce",
        "loss.positive_weight": 5.0,
        "loss.series_weight": 0.3,
        "loss.vessel_weight": 0.3,
        "augment.turn": 0.5,
        "augment.affine_probability": 0.0,
        "augment.gamma": 0.3,
        "augment.contrast": 0.25,
        "augment.curve": 0.12,
        "augment.blur": 0.3,
        "augment.noise": 0.05,
        "sampler.patches_per_volume": 30,
        "sampler.hard_negative_fraction": 0.6,
        "sampler.hard_negative_every": 1,
        "sampler.hard_negative_series": 128,
        "optim.lr": 1.5e-3,
        "optim.ema_decay": 0.995,
        "inference.window": 2,
        "inference.overlap": 0.25,
    },
}
"""The ladder of experiments this project grew from, and the starter's networks, as dotted overrides of the defaults."""


def dotted_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, type[BaseModel], str]]:
    """Yield every leaf of the tree as (dotted key, the class that holds it, its field name)."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from dotted_keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", section, name


def parse_override(text: str) -> tuple[str, Any]:
    """Split `key=value`; the value is read as TOML where it is TOML (numbers, true, lists), else as a word.

    Raises ConfigError when there is no `=` or no key.
    """
    key, equals, raw = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"{text!r} is not of the form key=value, such as optim.lr=1e-4")
    try:
        return key.strip(), tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), raw


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten nested TOML tables into dotted keys; a key that is a leaf of the tree keeps its table."""
    leaves = {key for key, _, _ in dotted_keys()}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and key not in leaves:
            yield from _flat(value, f"{key}.")
        else:
            yield key, value


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file into dotted keys. Raises ConfigError when it cannot be read."""
    try:
        text = location.read_bytes(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        raise ConfigError(f"{path}: cannot be read ({why}); give a TOML file such as a run's config.toml") from error
    return parse_toml(text, path)


def parse_toml(text: str, source: Path) -> dict[str, Any]:
    """Return TOML as dotted keys. Raises ConfigError, naming its source, when it is not valid."""
    try:
        found = dict(_flat(tomllib.loads(text)))
        if found.pop(RETIRED_SECRET, ""):
            log.warning(
                "%s: %s was left out; put the key into a file, see prepare.patient_key_file", source, RETIRED_SECRET
            )
        return found
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from error


def build(*layers: Mapping[str, Any], base: Config | None = None) -> Config:
    """Lay dotted overrides over a base configuration, later layers winning, and check every value.

    Raises ConfigError for an unknown key (naming what may have been meant) or a value out of range.
    """
    known = {key for key, _, _ in dotted_keys()}
    tree = (base or Config()).model_dump()
    for layer in layers:
        for key, value in layer.items():
            if key not in known:
                raise ConfigError(f"unknown key {key!r}{_nearest(key)}   (aneurysm-ray config lists the keys)")
            *parents, leaf = key.split(".")
            branch = tree
            for parent in parents:
                branch = branch[parent]
            branch[leaf] = value
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{key} = {first['input']!r} is not valid: {first['msg']}") from error


def _nearest(key: str) -> str:
    """Return what may have been meant by an unknown key: its like in its section, its name in another, or else
    all that its section has."""
    keys = [known for known, _, _ in dotted_keys()]
    section, dot, leaf = key.rpartition(".")
    leaves = [known.removeprefix(section + dot) for known in keys if dot and known.startswith(section + dot)]
    if near := did_you_mean(leaf, leaves, section + dot):
        return near
    if same := [known for known in keys if known.endswith(f".{leaf}")]:
        return f"; did you mean {' or '.join(same)}?"
    return f"; {section} has {', '.join(leaves)}" if leaves else did_you_mean(key, keys)


def preset(name: str) -> dict[str, Any]:
    """Return a preset's overrides, its own name among them. Raises ConfigError for an unknown name."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}{did_you_mean(name, PRESETS)}; there are {', '.join(PRESETS)}")
    return {**PRESETS[name], "preset": name}


def load(
    preset_name: str | None = None,
    path: Path | None = None,
    overrides: Iterable[str] = (),
    *,
    base: Config | None = None,
    **flags: Any,
) -> Config:
    """Build a configuration from a preset, a file, `key=value` words and flags (`optim__lr=1e-4`).

    A flag that is None is unset.
    """
    named = {key.replace("__", "."): value for key, value in flags.items() if value is not None}
    return build(
        preset(preset_name) if preset_name else {},
        read_toml(path) if path else {},
        dict(parse_override(text) for text in overrides),
        named,
        base=base,
    )


def of_run(tree: Mapping[str, Any], source: Path) -> Config:
    """Return the configuration that a run or a model keeps, nested or as dotted keys.

    Raises RunDirError when it learnt from volumes that meant something else, or with settings that are gone.
    """
    keys = dict(_flat(tree))
    if keys.get("volume.format") != VOLUME_FORMAT:
        raise RunDirError(
            f"{source}: made by another version of aneurysm_ray, whose volumes hold other intensities than this one's; "
            "prepare the data anew and train on that"
        )
    try:
        return build(keys)
    except ConfigError as error:
        raise RunDirError(f"{source}: its settings do not fit this version: {error}; {EARLIER}") from error


def refuse_contradiction(config: Config, volumes: Path, stored: VolumeConfig) -> None:
    """Raise ConfigError when a configuration's volume settings are not those that a prepared set was stored with."""
    for name in VolumeConfig.model_fields:
        asked, there = getattr(config.volume, name), getattr(stored, name)
        if asked != there:
            raise ConfigError(
                f"volume.{name}={json.dumps(asked)} contradicts {volumes}, which was prepared with "
                f"{json.dumps(there)}; leave volume.* out, or prepare a set with it"
            )


def to_toml(config: Config) -> str:
    """Write a configuration as TOML; `build(read_toml(...))` gives it back."""
    return tomli_w.dumps(config.model_dump(mode="json"))


def volume_identity(config: Config) -> str:
    """Return the volume settings as canonical JSON: what two prepared sets must share to be mixed."""
    return json.dumps(config.volume.model_dump(mode="json"), sort_keys=True)


def value(config: Config, key: str) -> Any:
    """Return the value at a dotted key, which must be one."""
    found: Any = config
    for part in key.split("."):
        found = getattr(found, part)
    return found


def describe(prefix: str = "", config: Config | None = None) -> list[dict[str, str]]:
    """Return every key under a prefix with its value, default and meaning. Raises ConfigError when there is none."""
    config = config or Config()
    rows = []
    for key, section, name in dotted_keys():
        if key == prefix or key.startswith(f"{prefix}.") or not prefix:
            field = section.model_fields[name]
            rows.append(
                {
                    "key": key,
                    "value": json.dumps(value(config, key)),
                    "default": json.dumps(field.get_default(call_default_factory=True)),
                    "meaning": " ".join((field.description or "").split()),
                }
            )
    if not rows:
        names = [*Config.model_fields, *(key for key, _, _ in dotted_keys())]
        raise ConfigError(f"no key {prefix!r}{did_you_mean(prefix, names)}")
    return rows
