"""The full-text index: one FTS5 table for each tenant, beside the chunks and changed in the same transactions.

Scripts that put no spaces between words (Chinese, Japanese, Korean, Thai and their neighbours) are cut into
overlapping pairs of characters, as Lucene's CJK analyzer does: no dictionary, and no word is missed because it is not
in one. All else is left to FTS5's tokenizer, which knows Unicode, drops accents and reduces English words to stems.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

import sqlalchemy as sa

from agent.memory.tables import ShelfState, chunks_table, tenants_table

VERSION = 1
"""Of what `segmented` makes of a text: an index of another version is made anew."""

TOKENIZER = "porter unicode61 remove_diacritics 2"

MOST_TERMS = 64
"""Of one query; more are cut off."""

MOST_POSTINGS = 20_000
"""Chunks that one query's words are looked up in, the rarest words first: what bounds the time of a search."""

HEADING_WEIGHT = 1.0
"""Of a word in a heading, where one in the text weighs 1."""

Row = tuple[int, str, str]
"""A chunk's key, heading and text."""

_DENSE = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_RUN = re.compile(f"[{_DENSE}]+")
_TERM = re.compile(f"[{_DENSE}]+|(?:(?![{_DENSE}])\\w)+")


def segmented(text: str) -> str:
    """The text with runs of characters without spaces cut into pairs; the last character stands alone as well."""
    return _RUN.sub(lambda run: f" {' '.join(_pairs(run[0]))} {run[0][-1]} ", normal(text))


def match_terms(query: str) -> list[str]:
    """What to look for, each an FTS5 expression, without repetition; joined by OR they are the query."""
    found: dict[str, None] = {}
    for part in _TERM.findall(normal(query)):
        if not _RUN.fullmatch(part):
            found[f'"{part.lower()}"'] = None
        elif len(part) == 1:
            found[f'"{part}"*'] = None
        else:
            found.update((f'"{pair}"', None) for pair in _pairs(part))
    return list(found)[:MOST_TERMS]


def terms(text: str) -> list[str]:
    """Its words in lower case and its pairs of characters, in their order and as often as they stand there."""
    found: list[str] = []
    for part in _TERM.findall(normal(text)):
        if _RUN.fullmatch(part) and len(part) > 1:
            found.extend(_pairs(part))
        else:
            found.append(part.lower())
    return found


def normal(text: str) -> str:
    """Full-width letters and digits as the plain ones they mean."""
    return unicodedata.normalize("NFKC", text)


def _pairs(run: str) -> Iterator[str]:
    return (run[start : start + 2] for start in range(len(run) - 1))


class WordIndex:
    """One tenant's words. Every method works within a transaction of the caller's."""

    def __init__(self, tenant: int) -> None:
        self._tenant = tenant
        self._table = f"memory_words_{tenant}"
        self._counted: tuple[int, dict[str, int]] = (-1, {})
        """Of a generation, in how many chunks a term is."""

    def prepare(self, connection: sa.Connection) -> None:
        """Make the index if it is missing or of another version."""
        made = connection.scalar(sa.select(tenants_table.c.words).where(tenants_table.c.key == self._tenant))
        if made != VERSION or not sa.inspect(connection).has_table(self._table):
            self.fill(connection)

    def fill(self, connection: sa.Connection) -> None:
        """Make the index anew."""
        connection.exec_driver_sql(f"DROP TABLE IF EXISTS {self._table}")
        # Without contents of its own: a chunk's text lies on the shelf once.
        connection.exec_driver_sql(
            f"CREATE VIRTUAL TABLE {self._table} USING fts5(heading, text, content='', tokenize='{TOKENIZER}')"
        )
        columns = chunks_table.c
        statement = sa.select(columns.key, columns.heading, columns.text).where(columns.tenant == self._tenant)
        last = 0
        while rows := connection.execute(statement.where(columns.key > last).order_by(columns.key).limit(5000)).all():
            self.add(connection, [(row.key, row.heading, row.text) for row in rows])
            last = rows[-1].key
        connection.execute(sa.update(tenants_table).where(tenants_table.c.key == self._tenant).values(words=VERSION))

    def add(self, connection: sa.Connection, rows: Sequence[Row]) -> None:
        if rows:
            connection.exec_driver_sql(
                f"INSERT INTO {self._table} (rowid, heading, text) VALUES (?, ?, ?)", list(map(_segmented, rows))
            )

    def take_out(self, connection: sa.Connection, rows: Sequence[Row]) -> None:
        """Needs heading and text as they were added."""
        if rows:
            connection.exec_driver_sql(
                f"INSERT INTO {self._table} ({self._table}, rowid, heading, text) VALUES ('delete', ?, ?, ?)",
                list(map(_segmented, rows)),
            )

    def purge(self, connection: sa.Connection) -> None:
        """Merge the index into one piece: words that were taken out stay in the older pieces until then."""
        connection.exec_driver_sql(f"INSERT INTO {self._table} ({self._table}) VALUES ('optimize')")

    def search(
        self, connection: sa.Connection, query: str, k: int, state: ShelfState, documents: sa.Select[tuple[int]] | None
    ) -> list[tuple[str, float]]:
        """Ids of the k chunks that the query's words fit best, and how well (BM25, higher is better).

        `documents` selects the keys of those that are searched.
        """
        terms = match_terms(query)
        if state.chunks > MOST_POSTINGS:
            terms = self._rarest(connection, terms, state.generation)
        if not terms:
            return []
        table = sa.table(self._table, sa.column("rowid", sa.Integer))
        score = sa.literal_column(f"bm25({self._table}, {HEADING_WEIGHT}, 1.0)", sa.Float).label("score")
        inner = (
            sa.select(table.c.rowid.label("key"), score)
            .where(sa.text(f"{self._table} MATCH :expression"))
            .order_by(sa.text("score"))
            .limit(k)
        )
        if documents is not None:
            held = sa.select(chunks_table.c.key).where(chunks_table.c.document.in_(documents))
            inner = inner.where(table.c.rowid.in_(held))
        best = inner.subquery()
        rows = connection.execute(
            sa.select(chunks_table.c.id, best.c.score)
            .join(best, chunks_table.c.key == best.c.key)
            .order_by(best.c.score, chunks_table.c.id),
            {"expression": " OR ".join(terms)},
        )
        return [(row.id, -float(row.score)) for row in rows]

    def _rarest(self, connection: sa.Connection, terms: Sequence[str], generation: int) -> list[str]:
        """The rarest terms, as many as stay within the bound together."""
        if self._counted[0] != generation:
            self._counted = generation, {}
        known = self._counted[1]
        for term in terms:
            if term not in known:
                known[term] = self._count(connection, term)
        room = MOST_POSTINGS
        kept = []
        for term in sorted(terms, key=lambda term: known[term]):
            room -= known[term]
            if room < 0:
                break
            kept.append(term)
        return kept

    def _count(self, connection: sa.Connection, term: str) -> int:
        """In how many chunks a term is, counted no further than the bound."""
        counted = connection.exec_driver_sql(
            f"SELECT count(*) FROM (SELECT 1 FROM {self._table} WHERE {self._table} MATCH ? LIMIT ?)",
            (term, MOST_POSTINGS + 1),
        ).scalar()
        return int(counted or 0)


def _segmented(row: Row) -> Row:
    key, heading, text = row
    return key, segmented(heading), segmented(text)
