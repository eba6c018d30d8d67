"""The gate of the sentence encoder: whether search finds more with a new one, and loses nothing elsewhere.

`measure` ranks all passages for the held-out queries, by the vectors alone and by the whole search, and for sentences
taken from the passages themselves, which stand for what nobody gave feedback on. `decide` is pure. It is not promised
that what reviewers cited is all that fits: a passage that nobody cited counts as wrong, before and after alike.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from agent.database import open_engine
from agent.errors import TuningError
from agent.memory.encoder import Encoder, Vectors
from agent.memory.fusion import fuse
from agent.memory.search import CANDIDATES
from agent.memory.shelf import Shelf, StoredDocument, Vector
from agent.memory.splitting import Chunk
from tuner.encoder_pairs import Judged
from tuner.evaluate import bootstrap_mean
from tuner.report import markdown_table

DEEP = 10
"""Places of a ranking that count."""
SENTENCES = 200
"""Pseudo-queries, at most."""


@dataclass(frozen=True)
class Score:
    """nDCG@10 of one query, 0 to 1, before and after."""

    query: str
    before: float
    after: float


@dataclass(frozen=True)
class EncoderReport:
    """What was measured."""

    before: str
    """Name of the encoder that is served."""
    after: str
    passages: int
    """How many were ranked."""
    dense: tuple[Score, ...]
    """Of the held-out queries, by the vectors alone."""
    whole: tuple[Score, ...]
    """Of the same queries, by vectors and words."""
    general: tuple[Score, ...]
    """Of sentences of the passages, by the vectors alone."""


@dataclass(frozen=True)
class EncoderPolicy:
    """What is asked of a new encoder. Shares are 0 to 1."""

    min_queries: int = 20
    margin: float = 0.01
    """What the pseudo-queries may lose."""
    resamples: int = 10_000
    seed: int = 0


@dataclass(frozen=True)
class Figure:
    """A mean before and after, and the gain with its paired 95 % bootstrap interval."""

    name: str
    queries: int
    before: float
    after: float
    gain: float
    low: float
    high: float


@dataclass(frozen=True)
class EncoderDecision:
    """Ship or not, and the figures behind it."""

    ship: bool
    whole: Figure
    dense: Figure
    general: Figure
    reasons: tuple[str, ...]
    """A sentence each; those against shipping come first."""
    policy: EncoderPolicy


def decide(report: EncoderReport, policy: EncoderPolicy | None = None) -> EncoderDecision:
    """Ship where the whole search gains for sure, the vectors alone do not lose, nor the pseudo-queries too much."""
    policy = policy or EncoderPolicy()
    whole, dense, general = (
        _figure(name, scores, policy)
        for name, scores in (
            ("the whole search", report.whole),
            ("the vectors alone", report.dense),
            ("sentences of the documents", report.general),
        )
    )
    against = []
    if whole.queries < policy.min_queries:
        against.append(
            f"Only {whole.queries} queries were held out; at least {policy.min_queries} are needed to decide."
        )
    if whole.low <= 0:
        against.append(f"The gain is not sure: {_told(whole)}, not above zero.")
    if dense.gain < 0:
        against.append(f"The vectors alone rank worse: {_told(dense)}.")
    if not general.queries:
        against.append("No passage is long enough to take a sentence of, so general similarity was not looked at.")
    # A loss of just the margin is allowed, whatever floating point makes of it.
    elif -general.gain > policy.margin + 1e-9:
        against.append(f"General similarity lost more than {_points(policy.margin, sign=False)}: {_told(general)}.")
    notes = [f"nDCG@{DEEP} of {one.name}: {_told(one)}." for one in (whole, dense, general) if one.queries]
    return EncoderDecision(not against, whole, dense, general, (*against, *notes), policy)


def measure(
    before: Encoder,
    after: Encoder,
    held_out: Sequence[Judged],
    passages: Mapping[str, Chunk],
) -> EncoderReport:
    """Rank all passages for the held-out queries and for pseudo-queries with both encoders."""
    if not held_out:
        raise TuningError("no query is held out, so nothing can be measured; accept or correct more answers")
    ids = sorted(passages)
    texts = [passages[id].embedded_text for id in ids]
    matrices = {encoder.name: encoder.encode(texts) for encoder in (before, after)}
    taken = pseudo_queries(passages)
    scores: dict[str, tuple[list[float], list[float], list[float]]] = {}
    with word_index(passages, matrices[before.name], before.name) as words:
        for encoder in (before, after):
            matrix = matrices[encoder.name]
            vectors = encoder.encode_queries([one.query for one in held_out])
            dense, whole = [], []
            for one, vector in zip(held_out, vectors, strict=True):
                dense.append(ndcg(nearest(ids, matrix, vector, DEEP), one.positives))
                ranked = whole_search(ids, matrix, vector, words, one.query, read=encoder.reads(one.query))
                whole.append(ndcg(ranked, one.positives))
            general = [
                ndcg(nearest(ids, matrix, vector, DEEP), [id])
                for id, vector in zip(taken, encoder.encode(list(taken.values())), strict=True)
            ]
            scores[encoder.name] = dense, whole, general
    queries = [one.query for one in held_out]
    pairs = list(zip(scores[before.name], scores[after.name], strict=True))
    dense_scores, whole_scores, general_scores = (
        tuple(Score(*row) for row in zip(asked, *pair, strict=True))
        for asked, pair in zip((queries, queries, list(taken.values())), pairs, strict=True)
    )
    return EncoderReport(before.name, after.name, len(ids), dense_scores, whole_scores, general_scores)


def ndcg(ranked: Sequence[str], relevant: Collection[str], k: int = DEEP) -> float:
    """Normalised discounted cumulative gain, 0 to 1, every relevant one counting the same."""
    wanted = set(relevant)
    gained = sum(1 / math.log2(place + 2) for place, id in enumerate(ranked[:k]) if id in wanted)
    best = sum(1 / math.log2(place + 2) for place in range(min(k, len(wanted))))
    return gained / best if best else 0.0


def nearest(ids: Sequence[str], matrix: Vectors, vector: Vectors, k: int) -> list[str]:
    """The k ids whose vectors are nearest, nearest first."""
    return [ids[place] for place in np.argsort(-(matrix @ vector), kind="stable")[:k]]


def whole_search(
    ids: Sequence[str], matrix: Vectors, vector: Vectors, words: Shelf, query: str, *, read: float
) -> list[str]:
    """The ids in the order in which `Memory.search` finds them, by their vectors and by their words."""
    cosines = dict(zip(ids, (matrix @ vector).tolist(), strict=True))
    near = nearest(ids, matrix, vector, CANDIDATES)
    by_words = dict(words.word_hits(query, CANDIDATES, also=near))
    found = {*near, *by_words}
    return fuse({id: cosines[id] for id in found}, by_words, read=read)


@contextmanager
def word_index(passages: Mapping[str, Chunk], matrix: Vectors, encoder: str) -> Iterator[Shelf]:
    """A shelf of these passages alone, to be searched by words. `matrix` are their vectors in the order of the ids."""
    documents: dict[str, list[Chunk]] = {}
    for id in sorted(passages):
        documents.setdefault(passages[id].document, []).append(passages[id])
    entries = [(StoredDocument(name, "", "", "", len(chunks), "", ""), chunks) for name, chunks in documents.items()]
    vectors = {
        id: Vector(row.astype("<f4").tobytes(), encoder) for id, row in zip(sorted(passages), matrix, strict=True)
    }
    with tempfile.TemporaryDirectory(prefix="ratchet-") as scratch:
        engine = open_engine(Path(scratch) / "words.db")
        try:
            shelf = Shelf(engine)
            shelf.put(entries, vectors)
            yield shelf
        finally:
            engine.dispose()


def pseudo_queries(passages: Mapping[str, Chunk], most: int = SENTENCES) -> dict[str, str]:
    """By passage id, a sentence of it, or the end of one that is a single long sentence.

    The same for the same passages, which are chosen by the hash of their id; two with the same sentence have none.
    """
    order = sorted(passages, key=lambda id: hashlib.sha256(id.encode()).hexdigest())
    found: dict[str, str] = {}
    for id in order:
        sentence = pseudo_query(passages[id].text)
        if sentence is not None and sentence not in found.values():
            found[id] = sentence
        if len(found) == most:
            break
    return found


def write_report(report: EncoderReport, decision: EncoderDecision) -> dict[str, bytes]:
    """The files of the report, by name."""
    figures = (decision.whole, decision.dense, decision.general)
    table = markdown_table(
        ("nDCG@10", "queries", "before", "after", "gain"),
        [
            (
                one.name,
                one.queries,
                f"{one.before:.3f}",
                f"{one.after:.3f}",
                f"{_points(one.gain)} ({_points(one.low)} to {_points(one.high)})",
            )
            for one in figures
        ],
    )
    verdict = "Ship" if decision.ship else "Do not ship"
    reasons = "\n".join(f"- {reason}" for reason in decision.reasons)
    page = f"# {verdict}: {report.after}\n\nAgainst {report.before}, among {report.passages} passages.\n\n"
    data = {"version": 1, "decision": asdict(decision), "report": asdict(report)}
    return {
        "report/gate.json": (json.dumps(data, ensure_ascii=False, indent=1) + "\n").encode(),
        "report/gate.md": f"{page}{reasons}\n\n{table}\n".encode(),
    }


_SENTENCE = re.compile(r"(?<=[.!?\u3002\uff01\uff1f])\s+|\n+")
_LEAST_WORDS, _MOST_WORDS = 5, 30


def sentences(text: str) -> list[str]:
    """The sentences of a text that are neither very short nor very long."""
    parts = [part.strip() for part in _SENTENCE.split(text)]
    return [part for part in parts if _LEAST_WORDS <= len(part.split()) <= _MOST_WORDS]


def pseudo_query(text: str) -> str | None:
    """The sentence that the gate asks for a passage with; None where it is too short for one."""
    fit = sentences(text)
    if len(fit) > 1:
        return fit[len(fit) // 2]
    words = text.split()
    return " ".join(words[len(words) // 2 :][:_MOST_WORDS]) if len(words) >= 2 * _LEAST_WORDS else None


def _figure(name: str, scores: Sequence[Score], policy: EncoderPolicy) -> Figure:
    gain = bootstrap_mean([one.after - one.before for one in scores], resamples=policy.resamples, seed=policy.seed)
    count = max(1, len(scores))
    before, after = (sum(values) / count for values in ([s.before for s in scores], [s.after for s in scores]))
    return Figure(name, len(scores), before, after, gain.mean, gain.low, gain.high)


def _told(one: Figure) -> str:
    return (
        f"{one.before:.3f} before, {one.after:.3f} after, {_points(one.gain)} with a 95 % interval of "
        f"{_points(one.low)} to {_points(one.high)} over {one.queries} queries"
    )


def _points(share: float, *, sign: bool = True) -> str:
    return f"{share * 100:+.1f} points" if sign else f"{share * 100:.1f} points"
