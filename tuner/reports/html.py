"""What reports as HTML pages are made of: one self-contained page, its tables, its style in light and dark.

Whatever comes from tasks and models is escaped.
"""

from __future__ import annotations

import html
from dataclasses import dataclass

STYLE = """
:root{color-scheme:light dark;--text:#1a1a1a;--back:#fff;--line:#d0d0d0;--good:#116329;--bad:#a40e26;
--base:#6b7280;--active:#0b62a4;--candidate:#c2410c}
@media(prefers-color-scheme:dark){:root{--text:#e6e6e6;--back:#16181c;--line:#3c4048;--good:#57d27a;
--bad:#ff7b8a;--base:#a3abb8;--active:#5eb1ff;--candidate:#ff9a5c}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--text);background:var(--back);max-width:64rem;
margin:2rem auto;padding:0 1rem}
.wide{overflow-x:auto}table{border-collapse:collapse}th,td{border-bottom:1px solid var(--line);
padding:.3rem .6rem;text-align:left;vertical-align:top;font-variant-numeric:tabular-nums}
.ship{color:var(--good)}.stay{color:var(--bad)}svg{max-width:100%;height:auto}svg text{fill:var(--text)}
"""


@dataclass(frozen=True)
class Table:
    """A table under its title."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def page(title: str, body: str) -> str:
    """A whole page around a body that is HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>\n{body}</body></html>\n"
    )


def html_table(table: Table) -> str:
    """A table, or the word that there is nothing in it."""
    if not table.rows:
        return f"<h2>{html.escape(table.title)}</h2><p>None.</p>\n"
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in table.headers)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n" for row in table.rows)
    return (
        f'<h2>{html.escape(table.title)}</h2><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def short(text: str, limit: int = 160) -> str:
    """In one line, and cut to `limit` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
