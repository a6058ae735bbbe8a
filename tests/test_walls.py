"""The rooms' walls: which room may import what, that no imports go in a circle, and that no file holds two ideas."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "aneurysm_ray"
MODULES = sorted(PACKAGE.rglob("*.py"))


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _top_level_imports(path: Path) -> set[str]:
    """Modules of the package that a file imports while it is itself imported."""
    found: set[str] = set()
    names = {_name(module) for module in MODULES}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in names else node.module)
    return {name for name in found if name in names} - {_name(path)}


@pytest.mark.parametrize(
    ("rooms", "forbidden"),
    [
        (("data", "phantom", "learning", "reporting"), "ray"),
        (("data", "phantom", "reporting"), "torch"),
    ],
)
def test_rooms_import_without(rooms: tuple[str, ...], forbidden: str) -> None:
    modules = [_name(path) for path in MODULES for room in rooms if path.is_relative_to(PACKAGE / room)]
    assert len(modules) > 10
    program = (
        f"import sys; sys.modules[{forbidden!r}] = None\n"
        f"import importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_no_step_of_the_system_leans_on_the_phantom() -> None:
    """Synthetic patients are made for the system; only its surface, the command line and the demo, may ask for them."""
    users = {_name(path) for path in MODULES if any(n.startswith("aneurysm_ray.phantom") for n in _all_imports(path))}
    outside = {name for name in users if not name.startswith("aneurysm_ray.phantom")}
    assert outside == {"aneurysm_ray.cli", "aneurysm_ray.demo"}


def _all_imports(path: Path) -> set[str]:
    nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)]
    return {f"{node.module}.{alias.name}" for node in nodes for alias in node.names}


def test_imports_run_in_no_circle() -> None:
    graph = {_name(path): _top_level_imports(path) for path in MODULES}
    assert sum(map(len, graph.values())) > 20
    finished: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " → ".join([*above[above.index(name) :], name])
        if name not in finished:
            for inner in graph[name]:
                visit(inner, (*above, name))
            finished.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_help_imports_neither_torch_nor_ray_nor_pandas() -> None:
    program = (
        "import sys\nfrom aneurysm_ray.cli import main\nassert main(['--help']) == 0\n"
        "heavy = {'torch', 'ray', 'pandas', 'numpy', 'plotly'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "train" in result.stdout
