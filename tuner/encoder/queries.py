"""What people said of answers, as queries with the passages that fit them and those that do not.

Of a run whose answer people stand behind, the passages it cites fit what was asked and what was searched for; others
that the run was shown do not, above all those that a corrected answer cited. The task decides which part a query is
in, by a hash: what is held out stays held out, however much feedback comes. A passage nobody looked at is not known
to be wrong; it is only taken for wrong where the search ranks it below those that are right.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.errors import DatasetError
from agent.feedback.approved import Judged as JudgedRun
from agent.feedback.approved import judged_runs
from agent.knowledge.chunking import Chunk, chunk_id
from agent.knowledge.fusion import alike
from agent.llm.prompt.step_grammar import ToolSpec
from agent.records.run import Outcome, Trajectory
from agent.storage.store import Store
from agent.text.normalise import plain
from tools.context import Passage
from tuner.encoder.beginnings import labelled_tasks, too_few
from tuner.encoder.dataset import PARTS, Judged, LabelledTask, Lessons, Part, folded, make_lessons, part_of

HELD_OUT = 0.3
"""Share of the tasks whose queries only the gate sees."""
VALIDATION = 0.2
"""Share of the others that the training is watched with."""
MINED = 8
"""Passages that the search found below the right ones, for each query, at most."""
LEAST_RANK = 10
"""Where the search finds none of the right passages, what it ranks above this is not taken for wrong."""
FOUND = 40
"""Passages looked at for that."""
LEAST = 8
"""Queries to train on; with fewer there is nothing to learn but these."""

_PAIRS = "pairs"
"""Stands for the document of passages that only a file of pairs knows."""

Chunks = Callable[[Sequence[str]], Mapping[str, Chunk]]
"""The chunks of these ids that the documents hold."""
Search = Callable[[str, int], Sequence[Passage]]


def gather(
    store: Store,
    chunks: Chunks,
    *,
    tools: Sequence[ToolSpec] = (),
    pairs: Path | None = None,
    known: Iterable[Chunk] = (),
    search: Search | None = None,
) -> Lessons:
    """All that the feedback in the store teaches, and a file of pairs. Raises DatasetError where that is too little.

    Queries or tasks of which there are too few are left out where there are enough of the others; pairs that were
    asked for are not. Tasks are told apart by their first calls of these tools. A passage of the file that says what a
    chunk of `known` says is that chunk. With `search` further negatives are taken from what it finds.
    """
    book = _Book(chunks)
    for run in judged_runs(store):
        for index, cited in _answers(run):
            book.take_run(run.trajectory, index, cited)
    if pairs is not None:
        book.take_pairs(pairs, known)
    judged, tasks = _kept_apart(tuple(book.judged()), labelled_tasks(store, tools))
    few_queries, few_tasks = _too_few_queries(judged), too_few(tasks)
    if few_queries and (few_tasks or pairs is not None):
        raise DatasetError("; ".join(few for few in (few_queries, few_tasks) if few) if judged or tasks else _NOTHING)
    judged, tasks = () if few_queries else judged, () if few_tasks else tasks
    if search is not None:
        judged = tuple(_mined(one, book.passages, search) for one in judged)
    named = {id for one in judged for id in (*one.positives, *one.negatives)}
    return make_lessons(judged, {id: book.passages[id] for id in sorted(named)}, tasks)


_NOTHING = (
    "there is no feedback to tune the encoder with: no answer that cites passages was accepted or corrected, nor were "
    "two runs that began in different ways; accept or correct more (`ratchet rate`, `ratchet correct --cite`), or give "
    "--pairs FILE"
)


def _too_few_queries(judged: Sequence[Judged]) -> str | None:
    """What there is and what would be needed, where these are too few to learn from."""
    counts = {part: sum(one.part == part for one in judged) for part in PARTS}
    if counts["train"] >= LEAST and counts["validation"] and counts["held_out"]:
        return None
    return (
        f"{len(judged)} queries with right passages are too few to tune the encoder: {counts['train']} to train on, "
        f"{counts['validation']} to watch it with and {counts['held_out']} held out; expected at least {LEAST}, 1 "
        "and 1: accept or correct more answers that cite passages"
    )


def _kept_apart(
    judged: Sequence[Judged], tasks: Sequence[LabelledTask]
) -> tuple[tuple[Judged, ...], tuple[LabelledTask, ...]]:
    """A text that is held out as a query or as a task is held out as both."""
    texts = [(one.part, plain(one.query)) for one in judged] + [(one.part, one.text) for one in tasks]
    held = {folded(text) for part, text in texts if part == "held_out"}
    return (
        tuple(replace(one, part="held_out") if folded(plain(one.query)) in held else one for one in judged),
        tuple(replace(one, part="held_out") if folded(one.text) in held else one for one in tasks),
    )


class _Book:
    """Queries as they come; those that are the same but for case and spaces are one."""

    def __init__(self, chunks: Chunks) -> None:
        self.passages: dict[str, Chunk] = {}
        self._chunks = chunks
        self._queries: dict[str, str] = {}
        self._positives: dict[str, dict[str, None]] = {}
        self._negatives: dict[str, dict[str, None]] = {}
        self._parts: dict[str, set[Part]] = {}

    def take_run(self, trajectory: Trajectory, index: int, cited: Sequence[int]) -> None:
        """What the answer at a step says of the passages shown before it."""
        steps = trajectory.steps[:index]
        shown = {passage.label: passage for step in steps for passage in step.passages}
        right = [shown[label] for label in cited if label in shown]
        if not right:
            return
        call = trajectory.steps[index].call
        withdrawn = (call.arguments.get("citations") or ()) if call is not None else ()
        wrong = [shown[label] for label in withdrawn if label in shown] + list(shown.values())
        positives = [id for passage in right for id in self._ids(passage)]
        negatives = [id for passage in wrong for id in self._ids(passage)]
        asked = [
            str(step.call.arguments.get("query", ""))
            for step in steps
            if step.call is not None and step.call.name == "search_knowledge"
        ]
        for query in (trajectory.task.text, *asked):
            self._note(query, positives, negatives, _part(trajectory.task.text))

    def take_pairs(self, path: Path, known: Iterable[Chunk]) -> None:
        """A file of labelled pairs, one JSON object a line."""
        held: dict[str, Chunk] = {}
        for chunk in known:
            held.setdefault(folded(chunk.text), chunk)
            held.setdefault(folded(chunk.embedded_text), chunk)
        for query, positive, negatives in _pairs(path):
            ids = []
            for text in (positive, *negatives):
                chunk = held.get(folded(text)) or Chunk(chunk_id(_PAIRS, "", text), _PAIRS, "", 0, text)
                self.passages[chunk.id] = chunk
                ids.append(chunk.id)
            self._note(query, ids[:1], ids[1:], _part(query))

    def judged(self) -> Iterator[Judged]:
        for key, query in self._queries.items():
            right = tuple(self._positives[key])
            wrong = tuple(
                id
                for id in self._negatives[key]
                if id not in self._positives[key] and not _like(self.passages[id], right, self.passages)
            )
            yield Judged(query, right, wrong, next(part for part in PARTS if part in self._parts[key]))

    def _note(self, query: str, positives: Sequence[str], negatives: Sequence[str], part: Part) -> None:
        key = folded(query)
        if not key:
            return
        self._queries.setdefault(key, query.strip())
        self._positives.setdefault(key, {}).update(dict.fromkeys(positives))
        self._negatives.setdefault(key, {}).update(dict.fromkeys(negatives))
        self._parts.setdefault(key, set()).add(part)

    def _ids(self, passage: Passage) -> Sequence[str]:
        """The chunks that a passage was made of, or itself where the documents hold none of them now."""
        ids = passage.id.split("+")
        found = {id: chunk for id, chunk in self._chunks(ids).items() if id not in self.passages}
        self.passages.update(found)
        there = [id for id in ids if id in self.passages]
        if there:
            return there
        kept = Chunk(passage.id, passage.document, passage.heading, 0, passage.text)
        self.passages.setdefault(passage.id, kept)
        return [passage.id]


def _answers(run: JudgedRun) -> Iterator[tuple[int, Sequence[int]]]:
    """The steps that answer and that people stand behind, each with the labels it cites."""
    trajectory, fixes = run.trajectory, run.corrections
    for index, fix in sorted(fixes.items()):
        cited = fix.call.arguments.get("citations")
        if cited and index < len(trajectory.steps):
            yield index, cited
    # What followed a corrected step is stale.
    if run.accepted and not fixes and trajectory.outcome is Outcome.ANSWERED and trajectory.steps:
        last = trajectory.steps[-1].call
        if last is not None and last.arguments.get("citations"):
            yield len(trajectory.steps) - 1, last.arguments["citations"]


def _mined(one: Judged, passages: dict[str, Chunk], search: Search) -> Judged:
    """With what the search ranks below the right passages as further negatives."""
    found = search(one.query, FOUND)
    places = [place for place, passage in enumerate(found) if passage.id in one.positives]
    begin = places[-1] + 1 if places else LEAST_RANK
    fresh = []
    for passage in found[begin:]:
        chunk = Chunk(passage.id, passage.document, passage.heading, 0, passage.text)
        if passage.id not in one.negatives and not _like(chunk, one.positives, passages):
            passages.setdefault(passage.id, chunk)
            fresh.append(passage.id)
    return replace(one, negatives=(*one.negatives, *fresh[:MINED]))


def _part(text: str) -> Part:
    return part_of(folded(text), held_out=HELD_OUT, validation=(1 - HELD_OUT) * VALIDATION)


def _like(chunk: Chunk, positives: Iterable[str], passages: Mapping[str, Chunk]) -> bool:
    return any(
        alike(text, other)
        for id in positives
        for text, other in ((chunk.text, passages[id].text), (chunk.embedded_text, passages[id].embedded_text))
    )


def _pairs(path: Path) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Query, positive and negatives of each line. Raises DatasetError, which names the line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as fault:
        raise DatasetError(f"the pairs in {path} cannot be read ({fault}); expected a file of JSON lines") from fault
    expected = 'expected {"query": "...", "positive": "...", "negatives": ["..."]}'
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as fault:
            raise DatasetError(f"{path}, line {number} is no JSON ({fault}); {expected}") from fault
        texts = _texts(row)
        if texts is None:
            raise DatasetError(f"{path}, line {number} is {line[:80]!r}; {expected}")
        yield texts[0], texts[1], texts[2:]


def _texts(row: Any) -> list[str] | None:
    """Query, positive and negatives behind each other; None where something is missing, empty or too much."""
    if not isinstance(row, dict) or not {"query", "positive"} <= row.keys() <= {"query", "positive", "negatives"}:
        return None
    negatives = row.get("negatives", [])
    texts = [row["query"], row["positive"], *(negatives if isinstance(negatives, list) else [None])]
    return texts if all(isinstance(text, str) and text.strip() for text in texts) else None
