"""What a page is made of, and its rendering as one HTML file that works offline.

A page is a summary in words, a row of tiles, and sections of blocks: charts, tables, cases and a gallery. Every text
goes through Jinja's autoescape; data for scripts travels as JSON in which `<` is escaped, so nothing in a run directory
can end a script element.
"""

import dataclasses
import importlib.resources
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jinja2
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from aneurysm_ray import __version__, rundir


@dataclass(frozen=True)
class Tile:
    """One number worth seeing first."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, eq=False)
class Chart:
    """A figure with a title and how to read it, or, without a figure, why there is none."""

    template: ClassVar[str] = "chart"
    key: str
    title: str
    caption: str
    figure: go.Figure | None
    missing: str = "There is nothing to draw."
    choices: tuple[str, ...] = ()
    """Values of `meta` among the traces: one set is shown at a time, picked from a menu."""
    wide: bool = False
    height: int = 380

    @property
    def json(self) -> Markup:
        """The figure for Plotly, without the default template, which the page replaces by its own."""
        assert self.figure is not None
        plot = json.loads(self.figure.to_json())
        plot["layout"].pop("template", None)
        return script_json({"data": plot["data"], "layout": plot["layout"]})


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading and how its numbers are written."""

    name: str
    digits: int | None = 3
    """Digits after the point; None writes the value as it is."""


@dataclass(frozen=True)
class Link:
    """A table cell that leads to another page."""

    text: str
    href: str
    """Relative, quoted for URLs."""


@dataclass(frozen=True, eq=False)
class Table:
    """A table that can be sorted by any column, and filtered when it is long."""

    template: ClassVar[str] = "table"
    key: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]
    missing: str = "There is nothing to list."
    wide: bool = True

    @classmethod
    def of(
        cls,
        key: str,
        title: str,
        caption: str,
        frame: pd.DataFrame,
        names: Mapping[str, str] | None = None,
        digits: int | None = 3,
        missing: str = "There is nothing to list.",
        wide: bool = True,
    ) -> "Table":
        """Make a table of a data frame; `names` picks, orders and titles its columns."""
        names = names or {str(name): str(name) for name in frame.columns}
        columns = tuple(Column(title, digits) for title in names.values())
        rows = tuple(frame.loc[:, list(names)].itertuples(index=False, name=None))
        return cls(key, title, caption, columns, rows, missing, wide)


@dataclass(frozen=True)
class Case:
    """A series in pictures: plain, and with what the model saw."""

    title: str
    facts: tuple[str, ...]
    plain: str
    """Data URI."""
    overlaid: str
    """Data URI of the same picture with heat map and marks."""


@dataclass(frozen=True, eq=False)
class Cases:
    """Pictures of a few series, one beneath the other."""

    template: ClassVar[str] = "cases"
    key: str
    title: str
    caption: str
    cases: tuple[Case, ...]
    missing: str = "There is nothing to show."
    wide: bool = True
    marks: str = "heat map and marks"
    """What the switch shows and hides."""


@dataclass(frozen=True, eq=False)
class Gallery:
    """A picture per series, filtered and turned over page by page; only the page in view is in the document."""

    template: ClassVar[str] = "gallery"
    key: str
    title: str
    caption: str
    items: tuple[dict[str, Any], ...]
    """Each {"id", "image", "lines": [..], "flags": [..], "facets": {facet: value or list}}, in the order to show."""
    facets: tuple[str, ...]
    missing: str = "There is nothing to show."
    wide: bool = True

    @property
    def json(self) -> Markup:
        """The items for the script."""
        return script_json(list(self.items))


Block = Chart | Table | Cases | Gallery


@dataclass(frozen=True, eq=False)
class Section:
    """A titled part of a page."""

    key: str
    title: str
    text: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, eq=False)
class Page:
    """A whole page."""

    title: str
    kind: str
    subtitle: str
    summary: tuple[str, ...]
    """Sentences in plain words."""
    tiles: tuple[Tile, ...]
    sections: tuple[Section, ...]


def script_json(value: Any) -> Markup:
    """Return JSON that is safe inside a script element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # U+2028 and U+2029 end lines in older JavaScript.
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def write(page: Page, path: Path) -> Path:
    """Render a page into a file, atomically, and return its path."""
    rundir.write_text(path, render(page))
    return path


def render(page: Page) -> str:
    """Return a page as one HTML document with its styles, scripts and pictures inside."""
    templates = importlib.resources.files("aneurysm_ray.reporting") / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (templates / name).read_text(encoding="utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["cell"] = cell
    environment.filters["sort_key"] = sort_key
    names = names_something(page)
    has_charts = any(isinstance(b, Chart) and b.figure is not None for s in page.sections for b in s.blocks)
    return environment.get_template("page.html.j2").render(
        page=page,
        names=names,
        version=__version__,
        style=Markup((templates / "page.css").read_text(encoding="utf-8")),
        script=Markup((templates / "page.js").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")) if has_charts else "",
    )


_NAMES = re.compile(
    r"(?<![\w<])/[\w.+-]+/[\w.+-]"  # a path
    r"|\w://"
    r"|\b[0-2](\.\d+){5,}"  # a UID
    r"|\b[A-Za-z][\w.-]*:\d{2,}\b|\b\d+\.\d+\.\d+\.\d+\b"  # a host and its process or port; an address
)


def names_something(page: Page) -> bool:
    """Say whether a page holds a path, a URL, a UID or a machine: what is not to be sent around without a look."""

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, go.Figure):
            yield from (
                str(text) for trace in value.data for name in ("name", "text", "y", "x") for text in _words(trace[name])
            )
        elif dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                # Pictures are long, and hold no letters that could be read here.
                if field.name not in ("plain", "overlaid"):
                    yield from texts(getattr(value, field.name))
        elif isinstance(value, Mapping):
            yield from (text for key, part in value.items() if key != "image" for text in texts(part))
        elif isinstance(value, Sequence):
            yield from (text for part in value for text in texts(part))

    return any(_NAMES.search(text) for text in texts(page))


def _words(values: Any) -> Iterator[Any]:
    return (value for value in (values if isinstance(values, Sequence | np.ndarray) else ()) if isinstance(value, str))


def cell(value: Any, digits: int | None = 3) -> str:
    """Return a table cell's text; a dash where there is no value."""
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and np.isnan(value)):
        return "–"
    if isinstance(value, Link):
        return Markup('<a href="{}">{}</a>').format(value.href, value.text)
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}" if digits is not None else str(value)
    if isinstance(value, float | np.floating):
        number = float(value)
        if digits is None or (number != 0 and not 1e-3 <= abs(number) < 1e6):
            return f"{number:.4g}"
        return f"{number:,.{digits}f}"
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str):
        return ", ".join(cell(part, digits) for part in value) or "–"
    return str(value)


def sort_key(value: Any) -> str:
    """Return what a column is sorted by: the whole number, or the text; empty sorts last."""
    if isinstance(value, bool | int | float | np.number | np.bool_):
        return "" if np.isnan(float(value)) else repr(float(value))
    if isinstance(value, Link):
        return value.text
    return "" if value is None or value is pd.NA else cell(value)
