"""The weights that come with the package, and the name by which `predict` and `init` take them.

They are an exported model like any other, learnt from synthetic heads alone by `benchmarks/starter.py`.
"""

from pathlib import Path

NAME = "starter"

FILE = Path(__file__).parents[1] / "weights" / "starter.safetensors"


def resolved(place: Path) -> Path:
    """Return where a model lies: the package's own file for its name, any other place as it is."""
    return FILE if str(place) == NAME else place
