"""The reference of commands and settings, made from the code by `python -m aneurysm_ray.reference`."""

from typing import Any

import typer

from aneurysm_ray import cli, overrides

_HEAD = """# Commands and settings

Made from the code by `python -m aneurysm_ray.reference > docs/reference.md`; a test holds it against the code. The same
is said by `aneurysm-ray COMMAND --help` and by `aneurysm-ray config`.
"""


def text() -> str:
    """Return the whole reference as Markdown."""
    root: Any = typer.main.get_command(cli.app)
    parts = [_HEAD, "## Commands\n", *(_command(name, command) for name, command in root.commands.items())]
    return "\n".join([*parts, "## Settings\n", _settings()])


def _command(name: str, command: Any) -> str:
    words = [name, *(_argument(each) for each in command.params if each.param_type_name == "argument")]
    rows = [_option(each) for each in command.params if each.param_type_name == "option" and each.name != "help"]
    given = [_given(each) for each in command.params if each.param_type_name == "argument" and each.help]
    table = ["| option | meaning |", "|---|---|", *rows, ""] if rows else []
    return "\n".join(
        [f"### aneurysm-ray {' '.join(words)}\n", f"{command.help}\n", *given, *[""][: len(given)], *table]
    )


def _argument(each: Any) -> str:
    name = each.metavar or each.name.upper()
    if each.metavar:
        return str(name)
    name = f"{name}..." if each.nargs == -1 else name
    return name if each.required else f"[{name}]"


def _given(each: Any) -> str:
    return f"- `{_argument(each)}`: {_cell(each.help)}"


def _option(each: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*each.opts, *each.secondary_opts])
    told = _cell(each.help or "")
    default = each.default
    shown = default is not None and not each.is_flag and default != [] and not callable(default)
    return f"| {names} | {told}{f' Default: {default}.' if shown else ''} |"


def _cell(words: str) -> str:
    return words.replace("|", "\\|").replace("\n", " ")


def _settings() -> str:
    rows = [
        f"| `{row['key']}` | `{_cell(str(row['default']))}` | {_cell(row['meaning'])} |" for row in overrides.describe()
    ]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows, ""])


if __name__ == "__main__":
    print(text(), end="")
