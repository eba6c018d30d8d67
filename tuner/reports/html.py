"""Self-contained HTML pages, rendered by Jinja2 from `templates/` with everything escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True)
class Table:
    """A table with a title."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def report_page(title: str, tables: Sequence[Table], *, subtitle: str = "", charts: Sequence[object] = ()) -> str:
    """Return a page with charts (each a `tuner.reports.plots.LineChart`) and tables, in light and dark."""
    return render("report.html", title=title, subtitle=subtitle, charts=charts, tables=tables)


def render(template: str, **values: Any) -> str:
    """Render a file of `templates/`; every value is escaped."""
    return _environment().get_template(template).render({"is_file": False, **values})


def short(text: str, limit: int = 160) -> str:
    """Return a text on one line, cut to `limit` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
