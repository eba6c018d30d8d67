"""The full-text index: one FTS5 table for each tenant, beside the chunks and changed in the same transactions.

Scripts that put no spaces between words (Chinese, Japanese, Korean, Thai and their neighbours) are cut into
overlapping pairs of characters and the characters themselves, as Lucene's CJK analyzer does on demand: no dictionary,
and no word is missed because it is not in one. All else is left to FTS5's tokenizer, which knows Unicode, drops accents
and reduces English words to stems.

A term that a query repeats counts more, as BM25 has it for long queries, and of a long query the most telling terms are
looked up: those whose repetition times rarity is highest, wherever they stand and however they are inflected. Source:
Robertson and Walker, "Okapi/Keenbow at TREC-8" (1999), for k3; the selection is that of Lucene's MoreLikeThis.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

import sqlalchemy as sa

from agent.knowledge.schema import ShelfState, chunks_table, tenants_table
from agent.text.tokens import _RUN, _TERM, _grams, normal

VERSION = 2
"""Of what `indexed` makes of a text: an index of another version is made anew."""

TOKENIZER = "porter unicode61 remove_diacritics 2"

MOST_TERMS = 64
"""Of one query, the most telling ones."""

MOST_COUNTED = 512
"""Terms of one query, those it repeats most, that are looked at to find the most telling."""

MOST_POSTINGS = 20_000
"""Chunks that one query's words are looked up in, the rarest words first: what bounds the time of a search."""

SCORED = 1_000
"""Chunks, the best by words, whose score is known for what was found by meaning."""

REPEATED = 8.0
"""BM25's k3: how soon it stops to matter that a query says a term once more."""

HEADING_WEIGHT = 1.0
"""Of a word in a heading, where one in the text weighs 1."""

Row = tuple[int, str, str]
"""A chunk's key, heading and text."""


def indexed(text: str) -> str:
    """The text as it is indexed: runs of characters without spaces as pairs and as single characters."""
    return _RUN.sub(lambda run: f" {' '.join(_grams(run[0]))} ", normal(text))


def match_terms(query: str) -> Counter[str]:
    """What to look for, each an FTS5 expression, and how often the query says it, in its order."""
    found: Counter[str] = Counter()
    for part in _TERM.findall(normal(query)):
        grams = _grams(part) if _RUN.fullmatch(part) else (part.lower(),)
        found.update(f'"{gram}"' for gram in grams)
    return found


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
        self,
        connection: sa.Connection,
        query: str,
        k: int,
        state: ShelfState,
        documents: sa.Select[tuple[int]] | None,
        also: Callable[[], Collection[str]] | None = None,
    ) -> list[tuple[str, float]]:
        """Ids of the k chunks that the query's words fit best, and how well (BM25, higher is better).

        With them those of `also` that are among the best `SCORED`; it is asked when all are scored. `documents` selects
        the keys of those that are searched.
        """
        asked = match_terms(query)
        if len(asked) > MOST_TERMS:
            asked = _by_stem(connection, asked)
        expression = self._expression(connection, asked, state)
        if not expression:
            return []
        scores = self._scores(connection, expression, max(k, SCORED) if also else k, documents)
        columns = chunks_table.c
        named = sa.select(columns.key, columns.id)
        # These are the tenant's own; with a condition on the tenant SQLite reads all of its chunks.
        parts = [named.where(columns.key.in_(list(scores)[:k]))]
        if also is not None:
            parts.append(named.where(columns.tenant == self._tenant, columns.id.in_(also())))
        names = {row.key: row.id for part in parts for row in connection.execute(part)}
        found = [(name, scores[key]) for key, name in names.items() if key in scores]
        return sorted(found, key=lambda hit: (-hit[1], hit[0]))

    def _scores(
        self, connection: sa.Connection, expression: str, most: int, documents: sa.Select[tuple[int]] | None
    ) -> dict[int, float]:
        """By key, the BM25 of the chunks that fit best, best first."""
        table = sa.table(self._table, sa.column("rowid", sa.Integer))
        score = sa.literal_column(f"-bm25({self._table}, {HEADING_WEIGHT}, 1.0)", sa.Float).label("score")
        statement = (
            sa.select(table.c.rowid, score)
            .where(sa.text(f"{self._table} MATCH :expression"))
            .order_by(sa.text("score DESC"))
            .limit(most)
        )
        if documents is not None:
            held = sa.select(chunks_table.c.key).where(chunks_table.c.document.in_(documents))
            statement = statement.where(table.c.rowid.in_(held))
        return {int(key): float(score) for key, score in connection.execute(statement, {"expression": expression})}

    def _expression(self, connection: sa.Connection, asked: Counter[str], state: ShelfState) -> str:
        """The query for FTS5, in which a term stands as often as it counts; empty where nothing can be found."""
        repeats = {
            term: round((REPEATED + 1) * times / (REPEATED + times)) for term, times in asked.most_common(MOST_COUNTED)
        }
        if len(repeats) > MOST_TERMS or state.chunks > MOST_POSTINGS:
            counts = self._counts(connection, repeats, state.generation)
            repeats = _within(most_telling(repeats, counts, state.chunks), counts)
        return " OR ".join(term for term, times in repeats.items() for _ in range(times))

    def _counts(self, connection: sa.Connection, terms: Collection[str], generation: int) -> Mapping[str, int]:
        """In how many chunks terms are; counted once a generation."""
        if self._counted[0] != generation:
            self._counted = generation, {}
        known = self._counted[1]
        for term in terms:
            if term not in known:
                known[term] = self._count(connection, term)
        return known

    def _count(self, connection: sa.Connection, term: str) -> int:
        """In how many chunks a term is, counted no further than the bound."""
        counted = connection.exec_driver_sql(
            f"SELECT count(*) FROM (SELECT 1 FROM {self._table} WHERE {self._table} MATCH ? LIMIT ?)",
            (term, MOST_POSTINGS + 1),
        ).scalar()
        return int(counted or 0)


def most_telling(repeats: Mapping[str, int], counts: Mapping[str, int], chunks: int) -> dict[str, int]:
    """The terms that say most, `MOST_TERMS` at most: those found at all, by what they count times BM25's rarity."""

    def weight(term: str) -> float:
        return repeats[term] * math.log1p(max(0.0, chunks - counts[term] + 0.5) / (counts[term] + 0.5))

    found = sorted((term for term in repeats if counts[term]), key=weight, reverse=True)
    return {term: repeats[term] for term in found[:MOST_TERMS]}


def _within(repeats: Mapping[str, int], counts: Mapping[str, int]) -> dict[str, int]:
    """The rarest terms, as many as stay within the bound of postings together; of each at least one mention."""
    room = MOST_POSTINGS
    kept = {}
    for term in sorted(repeats, key=lambda term: counts[term]):
        times = min(repeats[term], room // counts[term])
        if not times:
            break
        room -= times * counts[term]
        kept[term] = times
    return kept


def _by_stem(connection: sa.Connection, asked: Counter[str]) -> Counter[str]:
    """The terms that FTS5's tokenizer takes for the same as one, the first of them, in the order of the query.

    Only the tokenizer knows, so that it is asked, in temporary tables.
    """
    run = connection.exec_driver_sql
    run(f"CREATE VIRTUAL TABLE temp.memory_asked USING fts5(term, tokenize='{TOKENIZER}')")
    run("CREATE VIRTUAL TABLE temp.memory_asked_stems USING fts5vocab('temp', 'memory_asked', 'instance')")
    run("INSERT INTO temp.memory_asked (rowid, term) VALUES (?, ?)", list(enumerate(asked)))
    stems: dict[int, str] = {}
    for place, stem in run("SELECT doc, term FROM temp.memory_asked_stems ORDER BY doc, offset"):
        stems[place] = f"{stems.get(place, '')} {stem}"
    run("DROP TABLE temp.memory_asked_stems")
    run("DROP TABLE temp.memory_asked")
    first: dict[str, str] = {}
    found: Counter[str] = Counter()
    for place, (term, times) in enumerate(asked.items()):
        if place in stems:
            found[first.setdefault(stems[place], term)] += times
    return found


def _segmented(row: Row) -> Row:
    key, heading, text = row
    return key, indexed(heading), indexed(text)
