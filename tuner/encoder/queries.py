"""Relevance judgements from feedback on answers: queries with the passages that fit them and those that do not.

In a run with an approved answer, the passages it cites fit the task and the queries searched for; the other passages
of the run's context do not, above all those that a corrected answer had cited. The hash of the task decides a query's
part. A passage that nobody looked at is not known to be wrong: it becomes a negative only where the search ranks it
below the right ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.errors import DatasetError
from agent.feedback.approved import ReviewedRun, reviewed_runs
from agent.knowledge.chunking import Chunk, chunk_id
from agent.knowledge.fusion import is_near_duplicate
from agent.llm.prompt.tool_spec import ToolSpec
from agent.records.run import Outcome, Trajectory
from agent.storage.store import Store
from agent.text.normalise import normalise_task
from tools.context import Passage
from tuner.encoder.dataset import (
    PARTS,
    EncoderDataset,
    FirstCallTask,
    Part,
    RelevanceJudgement,
    fold_text,
    make_dataset,
    part_of_group,
)
from tuner.encoder.first_calls import explain_too_few, read_first_call_tasks

HELD_OUT = 0.3
"""Share of the tasks whose queries only the gate sees."""
VALIDATION = 0.2
"""Share of the other tasks whose queries give the validation loss."""
MAX_MINED = 8
"""Mined negatives of a query: passages that the search ranks below the right ones."""
MIN_NEGATIVE_RANK = 10
"""Where the search finds none of the right passages, only what it ranks from here on is mined."""
SEARCH_DEPTH = 40
"""Passages searched for when mining."""
MIN_TRAINED = 8
"""Training queries below which nothing is trained on queries."""

_PAIRS = "pairs"
"""The document name of passages that only a file of pairs has."""

Chunks = Callable[[Sequence[str]], Mapping[str, Chunk]]
"""Returns the chunks with these ids, as far as the documents have them."""
Search = Callable[[str, int], Sequence[Passage]]
"""Returns the best passages for a query, at most as many as given."""


def gather_dataset(
    store: Store,
    chunks: Chunks,
    *,
    tools: Sequence[ToolSpec] = (),
    pairs: Path | None = None,
    known: Iterable[Chunk] = (),
    search: Search | None = None,
) -> EncoderDataset:
    """Gather the dataset from the feedback in the store and from a file of labelled pairs.

    Queries, or tasks, of which there are too few are left out where there are enough of the other kind.

    Args:
        store: runs and feedback.
        chunks: looks chunks up by id.
        tools: the tools whose calls label tasks.
        pairs: a file of JSON lines {"query", "positive", "negatives"}.
        known: chunks of the documents; a passage of `pairs` with the text of one becomes that chunk.
        search: where given, further negatives are mined from its results.

    Raises:
        DatasetError: there is too little of both kinds, or too few queries although `pairs` was given.
    """
    collector = _JudgementCollector(chunks)
    for run in reviewed_runs(store):
        for index, labels in _approved_answers(run):
            collector.add_answer(run.trajectory, index, labels)
    if pairs is not None:
        collector.add_pairs(pairs, known)
    judgements, tasks = _hold_out_together(tuple(collector.judgements()), read_first_call_tasks(store, tools))
    few_queries, few_tasks = _explain_too_few_queries(judgements), explain_too_few(tasks)
    if few_queries and (few_tasks or pairs is not None):
        reasons = "; ".join(reason for reason in (few_queries, few_tasks) if reason)
        raise DatasetError(reasons if judgements or tasks else _NOTHING)
    judgements, tasks = () if few_queries else judgements, () if few_tasks else tasks
    if search is not None:
        judgements = tuple(_mine_negatives(judgement, collector.passages, search) for judgement in judgements)
    named = {id for judgement in judgements for id in (*judgement.positives, *judgement.negatives)}
    return make_dataset(judgements, {id: collector.passages[id] for id in sorted(named)}, tasks)


_NOTHING = (
    "there is no feedback to tune the encoder with: no answer that cites passages was accepted or corrected, nor were "
    "two runs with different first calls; accept or correct more (`ratchet rate`, `ratchet correct --cite`), or give "
    "--pairs FILE"
)


def _explain_too_few_queries(judgements: Sequence[RelevanceJudgement]) -> str | None:
    """Return why these queries are too few to train on, or None where they are enough."""
    counts = {part: sum(judgement.part == part for judgement in judgements) for part in PARTS}
    if counts["train"] >= MIN_TRAINED and counts["validation"] and counts["held_out"]:
        return None
    return (
        f"{len(judgements)} queries with right passages are too few to tune the encoder: {counts['train']} for "
        f"training, {counts['validation']} for validation and {counts['held_out']} held out; expected at least "
        f"{MIN_TRAINED}, 1 and 1: accept or correct more answers that cite passages"
    )


def _hold_out_together(
    judgements: Sequence[RelevanceJudgement], tasks: Sequence[FirstCallTask]
) -> tuple[tuple[RelevanceJudgement, ...], tuple[FirstCallTask, ...]]:
    """Hold a text out as query and as task where it is held out as either."""
    texts = [(judgement.part, normalise_task(judgement.query)) for judgement in judgements]
    texts += [(task.part, task.text) for task in tasks]
    held_out = {fold_text(text) for part, text in texts if part == "held_out"}
    return (
        tuple(
            replace(judgement, part="held_out") if fold_text(normalise_task(judgement.query)) in held_out else judgement
            for judgement in judgements
        ),
        tuple(replace(task, part="held_out") if fold_text(task.text) in held_out else task for task in tasks),
    )


class _JudgementCollector:
    """Collects judgements by query; queries that differ in case and spaces alone are one."""

    def __init__(self, chunks: Chunks) -> None:
        self.passages: dict[str, Chunk] = {}
        self._chunks = chunks
        self._queries: dict[str, str] = {}
        self._positives: dict[str, dict[str, None]] = {}
        self._negatives: dict[str, dict[str, None]] = {}
        self._parts: dict[str, set[Part]] = {}

    def add_answer(self, trajectory: Trajectory, index: int, labels: Sequence[int]) -> None:
        """Add what the approved answer at a step tells of the passages before it; `labels` are those it cites."""
        steps = trajectory.steps[:index]
        context = {passage.label: passage for step in steps for passage in step.passages}
        cited = [context[label] for label in labels if label in context]
        if not cited:
            return
        call = trajectory.steps[index].call
        withdrawn = (call.arguments.get("citations") or ()) if call is not None else ()
        others = [context[label] for label in withdrawn if label in context] + list(context.values())
        positives = [id for passage in cited for id in self._chunk_ids(passage)]
        negatives = [id for passage in others for id in self._chunk_ids(passage)]
        searches = [
            str(step.call.arguments.get("query", ""))
            for step in steps
            if step.call is not None and step.call.name == "search_knowledge"
        ]
        for query in (trajectory.task.text, *searches):
            self._add(query, positives, negatives, _part(trajectory.task.text))

    def add_pairs(self, path: Path, known: Iterable[Chunk]) -> None:
        """Add a file of labelled pairs, one JSON object a line."""
        by_text: dict[str, Chunk] = {}
        for chunk in known:
            by_text.setdefault(fold_text(chunk.text), chunk)
            by_text.setdefault(fold_text(chunk.embedded_text), chunk)
        for query, positive, negatives in _read_pairs(path):
            ids = []
            for text in (positive, *negatives):
                chunk = by_text.get(fold_text(text)) or Chunk(chunk_id(_PAIRS, "", text), _PAIRS, "", 0, text)
                self.passages[chunk.id] = chunk
                ids.append(chunk.id)
            self._add(query, ids[:1], ids[1:], _part(query))

    def judgements(self) -> Iterator[RelevanceJudgement]:
        for key, query in self._queries.items():
            positives = tuple(self._positives[key])
            negatives = tuple(
                id
                for id in self._negatives[key]
                if id not in self._positives[key] and not _is_like(self.passages[id], positives, self.passages)
            )
            part = next(part for part in PARTS if part in self._parts[key])
            yield RelevanceJudgement(query, positives, negatives, part)

    def _add(self, query: str, positives: Sequence[str], negatives: Sequence[str], part: Part) -> None:
        key = fold_text(query)
        if not key:
            return
        self._queries.setdefault(key, query.strip())
        self._positives.setdefault(key, {}).update(dict.fromkeys(positives))
        self._negatives.setdefault(key, {}).update(dict.fromkeys(negatives))
        self._parts.setdefault(key, set()).add(part)

    def _chunk_ids(self, passage: Passage) -> Sequence[str]:
        """Return the chunks that a passage joins, or itself where the documents have none of them any more."""
        ids = passage.id.split("+")
        self.passages.update({id: chunk for id, chunk in self._chunks(ids).items() if id not in self.passages})
        known = [id for id in ids if id in self.passages]
        if known:
            return known
        chunk = Chunk(passage.id, passage.document, passage.heading, 0, passage.text)
        self.passages.setdefault(passage.id, chunk)
        return [passage.id]


def _approved_answers(run: ReviewedRun) -> Iterator[tuple[int, Sequence[int]]]:
    """Yield the index of each approved answer with the labels it cites."""
    trajectory, corrections = run.trajectory, run.corrections
    for index, correction in sorted(corrections.items()):
        labels = correction.call.arguments.get("citations")
        if labels and index < len(trajectory.steps):
            yield index, labels
    # What came after a corrected step is stale.
    if run.is_accepted and not corrections and trajectory.outcome is Outcome.ANSWERED and trajectory.steps:
        last = trajectory.steps[-1].call
        if last is not None and last.arguments.get("citations"):
            yield len(trajectory.steps) - 1, last.arguments["citations"]


def _mine_negatives(judgement: RelevanceJudgement, passages: dict[str, Chunk], search: Search) -> RelevanceJudgement:
    """Add what the search ranks below the right passages as negatives."""
    results = search(judgement.query, SEARCH_DEPTH)
    ranks = [rank for rank, passage in enumerate(results) if passage.id in judgement.positives]
    start = ranks[-1] + 1 if ranks else MIN_NEGATIVE_RANK
    mined = []
    for passage in results[start:]:
        chunk = Chunk(passage.id, passage.document, passage.heading, 0, passage.text)
        if passage.id not in judgement.negatives and not _is_like(chunk, judgement.positives, passages):
            passages.setdefault(passage.id, chunk)
            mined.append(passage.id)
    return replace(judgement, negatives=(*judgement.negatives, *mined[:MAX_MINED]))


def _part(text: str) -> Part:
    return part_of_group(fold_text(text), held_out=HELD_OUT, validation=(1 - HELD_OUT) * VALIDATION)


def _is_like(chunk: Chunk, positives: Iterable[str], passages: Mapping[str, Chunk]) -> bool:
    return any(
        is_near_duplicate(text, other)
        for id in positives
        for text, other in ((chunk.text, passages[id].text), (chunk.embedded_text, passages[id].embedded_text))
    )


def _read_pairs(path: Path) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Yield query, positive and negatives of each line. Raises DatasetError, which names the line."""
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
    """Return query, positive and negatives as one list; None where one is missing, empty or unexpected."""
    if not isinstance(row, dict) or not {"query", "positive"} <= row.keys() <= {"query", "positive", "negatives"}:
        return None
    negatives = row.get("negatives", [])
    texts = [row["query"], row["positive"], *(negatives if isinstance(negatives, list) else [None])]
    return texts if all(isinstance(text, str) and text.strip() for text in texts) else None
