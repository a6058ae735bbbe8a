"""The reference and the citation say what the code says."""

from pathlib import Path

import pytest
import typer
import yaml

from aneurysm_ray import __version__, cli, overrides, reference

ROOT = Path(__file__).resolve().parents[1]


def test_the_reference_is_up_to_date() -> None:
    kept = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert kept == reference.text(), "run: python -m aneurysm_ray.reference > docs/reference.md"


def test_the_reference_has_every_command_option_and_setting() -> None:
    text = reference.text()
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    assert len(commands) >= 13
    for name, command in commands.items():
        section = text.split(f"### aneurysm-ray {name}", 1)[1].split("###", 1)[0]
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert all(f"`{word}`" in section for word in parameter.opts if word != "--help")
    for key, _, _ in overrides.dotted_keys():
        assert f"| `{key}` | `" in text


def test_a_bar_in_a_text_does_not_end_its_cell() -> None:
    assert reference._cell("a|b") == "a\\|b"


@pytest.mark.parametrize("key", ["cff-version", "message", "title", "authors", "license"])
def test_the_citation_can_be_read_and_is_of_this_version(key: str) -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited[key]
    assert str(cited["version"]) == __version__
