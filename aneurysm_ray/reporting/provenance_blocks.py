"""Where a result came from, as tables: configuration, versions, hardware, command."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from aneurysm_ray import overrides
from aneurysm_ray.config import Config
from aneurysm_ray.reporting.page import Column, Section, Table

_SECRETS = re.compile(r"(?<=patient_key=)\S+|(?<=://)[^/@\s]+(?=@)")
"""A key or a password inside a command line or a URL: a page is sent around."""


def section(config: Config | None, provenance: Mapping[str, Any]) -> Section:
    """Return the section of a page that says how to repeat its run."""
    blocks = [
        Table(
            "provenance",
            "Provenance",
            "What ran, on what, from what.",
            (Column("what", None), Column("value", None)),
            tuple(_flat(provenance)),
            missing="The directory holds no provenance.json.",
        )
    ]
    if config is not None:
        rows = tuple(_settings(config))
        blocks.insert(
            0,
            Table(
                "config",
                "Configuration",
                "Every setting; config.toml in the run's directory goes straight back in as --config. "
                "Sort by “changed” to see what differs from the defaults.",
                (Column("key", None), Column("value", None), Column("default", None), Column("changed", None)),
                tuple(sorted(rows, key=lambda row: row[3] != "changed")),
            ),
        )
    return Section("how", "How it was made", "Enough to repeat it, and to know what it ran on.", tuple(blocks))


def _settings(config: Config) -> Iterator[tuple[str, str, str, str]]:
    defaults = Config()
    for key, _, _ in overrides.dotted_keys():
        changed = "changed" if _at(config, key) != _at(defaults, key) else ""
        yield key, setting(config, key), setting(defaults, key), changed


def setting(config: Config, key: str) -> str:
    """Return a setting as text, without what must not be sent around."""
    value = _at(config, key)
    return _text(value)


def _at(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return ", ".join(_text(part) for part in value) or "–"
    if isinstance(value, Mapping):
        return "; ".join(f"{key} = {_text(part)}" for key, part in value.items()) or "–"
    if isinstance(value, float):
        return f"{value:g}"
    return _SECRETS.sub("(secret)", str(value)) if value != "" else "–"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key} · ")
        else:
            yield f"{prefix}{key}", _text(value)
