"""The full-text index: one FTS5 table per tenant, in the database of the chunks and changed in the same transactions.

Scripts without spaces between words (Chinese, Japanese, Korean, Thai and their neighbours) are indexed as overlapping
pairs of characters and as single characters, like Lucene's CJK analyzer: no dictionary is needed. All other text is
left to FTS5's tokenizer, which removes accents and stems English words.

Terms that a query repeats weigh more, as in BM25 for long queries. Of a long query only the most informative terms are
looked up: those with the highest product of repetitions and rarity. Sources: Robertson and Walker, "Okapi/Keenbow at
TREC-8" (1999), for k3; Lucene's MoreLikeThis for the selection.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

import sqlalchemy as sa

from agent.knowledge.schema import StoreState, chunks_table, tenants_table
from agent.text.tokens import UNSPACED, WORD, bigrams, normal

VERSION = 2
"""Version of `segment`'s output; an index of another version is rebuilt."""

TOKENIZER = "porter unicode61 remove_diacritics 2"

MOST_TERMS = 64
"""Terms of a query that are looked up, the most informative ones."""

MOST_COUNTED = 512
"""Terms of a query, those it repeats most, from which the most informative are selected."""

MOST_POSTINGS = 20_000
"""Index entries read for a query, rarest terms first. Bounds the time of a search."""

SCORED = 1_000
"""Best chunks by words that are scored, so that results of the vector search get a word score too."""

REPEATED = 8.0
"""BM25's k3: how fast further repetitions of a term in the query stop to matter."""

HEADING_WEIGHT = 1.0
"""Weight of a word in a heading; a word in the text weighs 1."""

Row = tuple[int, str, str]
"""A chunk's key, heading and text."""


def segment(text: str) -> str:
    """Return the text as it is indexed: runs of characters without spaces become pairs and single characters."""
    return UNSPACED.sub(lambda run: f" {' '.join(_grams(run[0]))} ", normal(text))


def match_terms(query: str) -> Counter[str]:
    """Return the terms of a query as FTS5 expressions, in order, with the number of repetitions."""
    terms: Counter[str] = Counter()
    for word in WORD.findall(normal(query)):
        grams = _grams(word) if UNSPACED.fullmatch(word) else (word.lower(),)
        terms.update(f'"{gram}"' for gram in grams)
    return terms


class WordIndex:
    """One tenant's full-text index. Every method works within a transaction of the caller's."""

    def __init__(self, tenant: int) -> None:
        self._tenant = tenant
        self._table = f"memory_words_{tenant}"
        self._counted: tuple[int, dict[str, int]] = (-1, {})
        """The generation, and the number of chunks per term in it."""

    def prepare(self, connection: sa.Connection) -> None:
        """Build the index if it is missing or of another version."""
        version = connection.scalar(sa.select(tenants_table.c.words).where(tenants_table.c.key == self._tenant))
        if version != VERSION or not sa.inspect(connection).has_table(self._table):
            self.rebuild(connection)

    def rebuild(self, connection: sa.Connection) -> None:
        """Rebuild the index from the chunks."""
        connection.exec_driver_sql(f"DROP TABLE IF EXISTS {self._table}")
        # Contentless: the text of a chunk is stored once, in its own table.
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
                f"INSERT INTO {self._table} (rowid, heading, text) VALUES (?, ?, ?)", list(map(_segment_row, rows))
            )

    def remove(self, connection: sa.Connection, rows: Sequence[Row]) -> None:
        """Remove rows; heading and text must be as they were added."""
        if rows:
            connection.exec_driver_sql(
                f"INSERT INTO {self._table} ({self._table}, rowid, heading, text) VALUES ('delete', ?, ?, ?)",
                list(map(_segment_row, rows)),
            )

    def purge(self, connection: sa.Connection) -> None:
        """Merge the index's segments: the older ones keep the words of removed rows until then."""
        connection.exec_driver_sql(f"INSERT INTO {self._table} ({self._table}) VALUES ('optimize')")

    def search(
        self,
        connection: sa.Connection,
        query: str,
        k: int,
        state: StoreState,
        documents: sa.Select[tuple[int]] | None,
        also: Callable[[], Collection[str]] | None = None,
    ) -> list[tuple[str, float]]:
        """Search the index.

        Args:
            documents: Selects the keys of the documents to search.
            also: Returns ids of chunks to add to the results if they are among the best `SCORED`. Called after scoring.

        Returns:
            Ids and BM25 scores (higher is better) of the k best chunks and of those of `also`, best first.
        """
        terms = match_terms(query)
        if len(terms) > MOST_TERMS:
            terms = _merge_by_stem(connection, terms)
        expression = self._expression(connection, terms, state)
        if not expression:
            return []
        scores = self._scores(connection, expression, max(k, SCORED) if also else k, documents)
        columns = chunks_table.c
        select_ids = sa.select(columns.key, columns.id)
        # No condition on the tenant, whose index these keys are from: with one, SQLite reads all of its chunks.
        statements = [select_ids.where(columns.key.in_(list(scores)[:k]))]
        if also is not None:
            statements.append(select_ids.where(columns.tenant == self._tenant, columns.id.in_(also())))
        ids = {row.key: row.id for statement in statements for row in connection.execute(statement)}
        results = [(id, scores[key]) for key, id in ids.items() if key in scores]
        return sorted(results, key=lambda result: (-result[1], result[0]))

    def _scores(
        self, connection: sa.Connection, expression: str, limit: int, documents: sa.Select[tuple[int]] | None
    ) -> dict[int, float]:
        """Return the BM25 of the best chunks by key, best first."""
        table = sa.table(self._table, sa.column("rowid", sa.Integer))
        score = sa.literal_column(f"-bm25({self._table}, {HEADING_WEIGHT}, 1.0)", sa.Float).label("score")
        statement = (
            sa.select(table.c.rowid, score)
            .where(sa.text(f"{self._table} MATCH :expression"))
            .order_by(sa.text("score DESC"))
            .limit(limit)
        )
        if documents is not None:
            keys = sa.select(chunks_table.c.key).where(chunks_table.c.document.in_(documents))
            statement = statement.where(table.c.rowid.in_(keys))
        return {int(key): float(score) for key, score in connection.execute(statement, {"expression": expression})}

    def _expression(self, connection: sa.Connection, terms: Counter[str], state: StoreState) -> str:
        """Return the FTS5 query, in which a term is repeated by its weight; empty if nothing can match."""
        repeats = {
            term: round((REPEATED + 1) * times / (REPEATED + times)) for term, times in terms.most_common(MOST_COUNTED)
        }
        if len(repeats) > MOST_TERMS or state.chunks > MOST_POSTINGS:
            counts = self._counts(connection, repeats, state.generation)
            repeats = _limit_postings(select_terms(repeats, counts, state.chunks), counts)
        return " OR ".join(term for term, times in repeats.items() for _ in range(times))

    def _counts(self, connection: sa.Connection, terms: Collection[str], generation: int) -> Mapping[str, int]:
        """Return the number of chunks per term, counted once per generation."""
        if self._counted[0] != generation:
            self._counted = generation, {}
        counts = self._counted[1]
        for term in terms:
            if term not in counts:
                counts[term] = self._count(connection, term)
        return counts

    def _count(self, connection: sa.Connection, term: str) -> int:
        """Count the chunks that contain a term, at most `MOST_POSTINGS` and one more."""
        count = connection.exec_driver_sql(
            f"SELECT count(*) FROM (SELECT 1 FROM {self._table} WHERE {self._table} MATCH ? LIMIT ?)",
            (term, MOST_POSTINGS + 1),
        ).scalar()
        return int(count or 0)


def select_terms(repeats: Mapping[str, int], counts: Mapping[str, int], chunks: int) -> dict[str, int]:
    """Return at most `MOST_TERMS` terms that occur, with the highest product of repetitions and BM25's rarity."""

    def weight(term: str) -> float:
        return repeats[term] * math.log1p(max(0.0, chunks - counts[term] + 0.5) / (counts[term] + 0.5))

    ranked = sorted((term for term in repeats if counts[term]), key=weight, reverse=True)
    return {term: repeats[term] for term in ranked[:MOST_TERMS]}


def _limit_postings(repeats: Mapping[str, int], counts: Mapping[str, int]) -> dict[str, int]:
    """Return the rarest terms that together read at most `MOST_POSTINGS` entries, with fewer repetitions if needed."""
    room = MOST_POSTINGS
    limited = {}
    for term in sorted(repeats, key=lambda term: counts[term]):
        times = min(repeats[term], room // counts[term])
        if not times:
            break
        room -= times * counts[term]
        limited[term] = times
    return limited


def _merge_by_stem(connection: sa.Connection, terms: Counter[str]) -> Counter[str]:
    """Merge terms with the same stem under the first of them, in the order of the query.

    The stems come from FTS5's own tokenizer, by way of temporary tables.
    """
    run = connection.exec_driver_sql
    run(f"CREATE VIRTUAL TABLE temp.memory_asked USING fts5(term, tokenize='{TOKENIZER}')")
    run("CREATE VIRTUAL TABLE temp.memory_asked_stems USING fts5vocab('temp', 'memory_asked', 'instance')")
    run("INSERT INTO temp.memory_asked (rowid, term) VALUES (?, ?)", list(enumerate(terms)))
    stems: dict[int, str] = {}
    for place, stem in run("SELECT doc, term FROM temp.memory_asked_stems ORDER BY doc, offset"):
        stems[place] = f"{stems.get(place, '')} {stem}"
    run("DROP TABLE temp.memory_asked_stems")
    run("DROP TABLE temp.memory_asked")
    first: dict[str, str] = {}
    merged: Counter[str] = Counter()
    for place, (term, times) in enumerate(terms.items()):
        if place in stems:
            merged[first.setdefault(stems[place], term)] += times
    return merged


def _grams(run: str) -> list[str]:
    return [*bigrams(run), *run]


def _segment_row(row: Row) -> Row:
    key, heading, text = row
    return key, segment(heading), segment(text)
