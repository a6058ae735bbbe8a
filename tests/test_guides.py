"""Every command that README and the guides name can be typed: it, its flags and settings exist, as do linked files."""

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from aneurysm_ray import cli, overrides
from aneurysm_ray.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "reference.md"),
]
BLOCK = re.compile(r"^```(?:bash|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def commands_of(text: str) -> list[list[str]]:
    """Return the words of each command of aneurysm-ray in a page's blocks; `$ ` marks them where output follows."""
    found = []
    for block in BLOCK.findall(text):
        lines = block.replace("\\\n", " ").splitlines()
        typed = [line[2:] for line in lines if line.startswith("$ ")] or lines
        for line in typed:
            words: list[str] = []
            for word in [*shlex.split(line, comments=True), "&&"]:
                if word not in ("&&", ";", "|"):
                    words.append(word)
                    continue
                if (own := ours(words)) is not None:
                    found.append(own)
                words = []
    return found


def ours(words: list[str]) -> list[str] | None:
    """Return the words after `aneurysm-ray`, however it is started; None for another program's command."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    match words:
        case ["aneurysm-ray", *rest]:
            return rest
        case ["sbatch", "deploy/slurm.sh", *rest]:
            return rest
        case ["python", script, *rest] if script.startswith("jobs/") and "kaggle" not in script:
            return [Path(script).stem, *rest]
        case ["ray", "job", "submit", *rest] if "--" in rest:
            return ours(rest[rest.index("--") + 1 :])
    return None


def check(words: list[str]) -> None:
    """Parse a command as the command line does, with the settings that it names. Raises TyperException, ConfigError."""
    commands: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    name, *rest = words
    if name.startswith("-"):
        return
    assert name in commands, f"there is no command {name}"
    context = commands[name].make_context(name, list(rest))
    if name == "submit":
        check([context.params["job"], *context.args])
    settings = [*(context.params.get("words") or []), *(w for w in context.params.get("paths") or [] if "=" in w)]
    overrides.build(
        overrides.preset(context.params["preset"]) if context.params.get("preset") else {},
        dict(map(overrides.parse_override, settings)),
    )
    for key in context.params.get("keys") or []:
        assert overrides.describe(key)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_can_be_typed(page: Path) -> None:
    for words in commands_of(page.read_text(encoding="utf-8")):
        try:
            check(words)
        except (typer.TyperException, ConfigError) as error:
            pytest.fail(f"{page.name}: aneurysm-ray {shlex.join(words)}: {error}")


def test_the_pages_hold_commands() -> None:
    found = [words for page in PAGES for words in commands_of(page.read_text(encoding="utf-8"))]
    assert {"prepare", "train", "tune", "predict", "submit", "export"} <= {words[0] for words in found}


@pytest.mark.parametrize(
    "line",
    [
        "aneurysm-ray train volumes --flod all",
        "aneurysm-ray train volumes optim.lrr=1e-4",
        "aneurysm-ray train volumes --preset v9",
        "aneurysm-ray submit train volumes --flod all",
        "TOKEN=x sbatch deploy/slurm.sh train volumes --flod all",
        "true && python jobs/train.py volumes --flod all",
    ],
)
def test_a_wrong_command_is_found(line: str) -> None:
    (words,) = commands_of(f"```bash\n{line}  # a remark\n```\n")
    with pytest.raises((typer.TyperException, ConfigError)):
        check(words)


def test_output_is_not_taken_for_commands() -> None:
    text = "```console\n$ aneurysm-ray doctor\naneurysm-ray is not here\n```\n"
    assert commands_of(text) == [["doctor"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_links_is_there(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), f"{page.name} links {link}"


NAMED = re.compile(r"`(test_\w+\.py)::(test_\w+)`( \*slow\*)?")


def test_the_tests_that_are_told_to_guard_something_are_there_and_as_slow_as_told() -> None:
    named = NAMED.findall((ROOT / "tests" / "README.md").read_text(encoding="utf-8"))
    assert len(named) > 30
    for file, name, slow in named:
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        marks = [ast.unparse(node.value) for node in tree.body if isinstance(node, ast.Assign)]
        found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
        assert found, f"{file} has no test {name}"
        marks += [ast.unparse(decorator) for decorator in found[0].decorator_list]
        assert ("pytest.mark.slow" in marks) == bool(slow), f"{file}::{name}"
