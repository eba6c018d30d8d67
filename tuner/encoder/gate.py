"""The gate of the sentence encoder: whether search or recall improves with a candidate, and nothing else gets worse.

`measure` ranks all passages for the held-out queries, by vectors alone and by the whole search, and for
pseudo-queries, which stand for what has no feedback. For the held-out tasks it predicts the first call from the other
tasks, as recall does. `decide` is pure. A passage that no reviewer cited counts as wrong, before and after alike; the
gate does not guarantee that it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from agent.encoders.encoder import Encoder
from agent.errors import TuningError
from agent.feedback.label_regression import LabelRegression
from agent.feedback.recall import MAX_TASKS
from agent.knowledge.chunking import Chunk
from tuner.encoder.dataset import FirstCallTask, RelevanceJudgement
from tuner.encoder.first_calls import with_label_names
from tuner.encoder.ranking import RANKING_DEPTH, ndcg, nearest, pseudo_queries, whole_search, word_index
from tuner.evaluation.comparison import Comparison, compare, is_lost
from tuner.evaluation.statistics import points
from tuner.reports.verdict import verdict_files

FIRST_CALLS = "first calls of tasks"


@dataclass(frozen=True)
class PairedScore:
    """The score of one query or task with the encoder before and after, 0 to 1."""

    query: str
    before: float
    after: float


@dataclass(frozen=True)
class EncoderReport:
    """The scores of two encoders on the same held-out data."""

    before: str
    """Name of the encoder that is served."""
    after: str
    passages: int
    """How many were ranked."""
    dense: tuple[PairedScore, ...]
    """nDCG@10 of the held-out queries, by the vectors alone."""
    whole: tuple[PairedScore, ...]
    """nDCG@10 of the same queries, by vectors and words."""
    general: tuple[PairedScore, ...]
    """nDCG@10 of the pseudo-queries, by the vectors alone."""
    tasks: tuple[PairedScore, ...] = ()
    """Of the held-out tasks, see `first_call_scores`."""


@dataclass(frozen=True)
class EncoderPolicy:
    """What the gate requires of a candidate. Shares are 0 to 1."""

    min_queries: int = 20
    """Held-out queries, or tasks, below which their gain is not counted."""
    margin: float = 0.01
    """The loss allowed to the pseudo-queries; to the tasks, where search gains; to the whole search, where tasks do."""
    resamples: int = 10_000
    seed: int = 0


@dataclass(frozen=True)
class EncoderDecision:
    """Whether to ship, and the figures that decided."""

    ship: bool
    whole: Comparison
    dense: Comparison
    general: Comparison
    tasks: Comparison
    reasons: tuple[str, ...]
    """A sentence each; those against shipping come first."""
    policy: EncoderPolicy

    @property
    def measured(self) -> tuple[Comparison, ...]:
        return tuple(
            comparison for comparison in (self.whole, self.dense, self.general, self.tasks) if comparison.examples
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, in the form of the versions before: the count of a comparison is called `queries`."""
        data = asdict(self)
        for name in ("whole", "dense", "general", "tasks"):
            data[name] = {"queries" if key == "examples" else key: value for key, value in data[name].items()}
        return data


def decide(report: EncoderReport, policy: EncoderPolicy | None = None) -> EncoderDecision:
    """Ship where the gain of the whole search or of the tasks is significant, and nothing that was measured loses.

    The vectors alone may lose nothing, the others no more than the margin.
    """
    policy = policy or EncoderPolicy()
    whole, dense, general, tasks = (
        _compare(name, scores, policy)
        for name, scores in (
            ("the whole search", report.whole),
            ("the vectors alone", report.dense),
            ("sentences of the documents", report.general),
            (FIRST_CALLS, report.tasks),
        )
    )
    doubts = [_doubt(comparison, policy) for comparison in (whole, tasks) if comparison.examples]
    against = doubts if all(doubts) else []
    if not doubts:
        against = ["No query and no task was held out, so nothing was measured."]
    margin = points(policy.margin, sign=False)
    if not against and is_lost(whole.gain, policy.margin):
        against.append(f"The whole search lost more than {margin}: {_describe(whole)}.")
    if not against and is_lost(tasks.gain, policy.margin):
        against.append(f"First calls are predicted worse by more than {margin}: {_describe(tasks)}.")
    if dense.gain < 0:
        against.append(f"The vectors alone rank worse: {_describe(dense)}.")
    if whole.examples and not general.examples:
        against.append("No passage is long enough to take a sentence of, so general similarity was not measured.")
    elif is_lost(general.gain, policy.margin):
        against.append(f"General similarity lost more than {margin}: {_describe(general)}.")
    notes = [
        f"{'Score' if comparison is tasks else f'nDCG@{RANKING_DEPTH}'} of {comparison.name}: {_describe(comparison)}."
        for comparison in (whole, dense, general, tasks)
        if comparison.examples
    ]
    return EncoderDecision(not against, whole, dense, general, tasks, (*against, *notes), policy)


def measure(
    before: Encoder,
    after: Encoder,
    held_out: Sequence[RelevanceJudgement],
    passages: Mapping[str, Chunk],
    tasks: Sequence[FirstCallTask] = (),
) -> EncoderReport:
    """Score two encoders on the held-out queries, on pseudo-queries and on the held-out tasks.

    Args:
        before: the encoder that is served.
        after: the candidate.
        held_out: queries with the passages that fit them.
        passages: all passages to rank, by id.
        tasks: the tasks of all parts.

    Raises:
        TuningError: neither a query nor a task is held out.
    """
    texts = [task.text for task in tasks if task.part == "held_out"]
    if not held_out and not texts:
        raise TuningError("no query is held out and no task, so nothing can be measured; accept or correct more runs")
    queries, pseudo = [judgement.query for judgement in held_out], pseudo_queries(passages)
    old, new = (_scores(encoder, held_out, passages, pseudo, tasks) for encoder in (before, after))
    dense, whole, general, first_calls = (
        tuple(PairedScore(text, *pair) for text, *pair in zip(group, old_scores, new_scores, strict=True))
        for group, old_scores, new_scores in zip((queries, queries, pseudo.values(), texts), old, new, strict=True)
    )
    return EncoderReport(before.name, after.name, len(passages), dense, whole, general, first_calls)


def first_call_scores(encoder: Encoder, tasks: Sequence[FirstCallTask]) -> list[float]:
    """Return for each held-out task how well the predicted shares of the labels fit its own: 1 - Brier score / 2.

    The shares are predicted as recall does it, from the newest of the other tasks and the names of their labels. Shares
    count where the true label is not the likeliest, too, because accuracy over few tasks is too coarse.
    """
    held_out = [task for task in tasks if task.part == "held_out"]
    if not held_out:
        return []
    known = [task for task in tasks if task.part != "held_out"][-MAX_TASKS:]
    texts, labels = zip(*with_label_names(known), strict=True)
    matrix = encoder.encode(texts)
    regression = LabelRegression(matrix, labels, texts=len(known))
    scores = []
    for task, vector in zip(held_out, encoder.encode([task.text for task in held_out]), strict=True):
        shares = regression.shares(regression.scores(vector), float((matrix[: len(known)] @ vector).max()))
        truth = np.array([name == task.label for name in regression.names], dtype=float)
        unknown = 0.0 if truth.any() else 1.0
        scores.append(1.0 - 0.5 * (float(((truth - shares) ** 2).sum()) + unknown))
    return scores


def write_report(report: EncoderReport, decision: EncoderDecision) -> dict[str, bytes]:
    """Return the files of the report, by name."""
    among = f", among {report.passages} passages" if report.passages else ""
    return verdict_files(
        decision,
        candidate=report.after,
        against=f"{report.before}{among}",
        headers=(f"nDCG@{RANKING_DEPTH}; score of the {FIRST_CALLS}", "of", "before", "after", "gain"),
        rows=[(comparison.name, comparison.examples, *comparison.cells()) for comparison in decision.measured],
        data={"version": 2, "decision": decision.to_dict(), "report": asdict(report)},
    )


def _scores(
    encoder: Encoder,
    held_out: Sequence[RelevanceJudgement],
    passages: Mapping[str, Chunk],
    pseudo: Mapping[str, str],
    tasks: Sequence[FirstCallTask],
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Return the scores of one encoder: vectors alone, whole search, pseudo-queries, tasks."""
    ids = sorted(passages)
    matrix = encoder.encode([passages[id].embedded_text for id in ids])
    dense, whole = [], []
    if held_out:
        vectors = encoder.encode_queries([judgement.query for judgement in held_out])
        with word_index(passages, matrix, encoder.name) as words:
            for judgement, vector in zip(held_out, vectors, strict=True):
                query, positives = judgement.query, judgement.positives
                dense.append(ndcg(nearest(ids, matrix, vector, RANKING_DEPTH), positives))
                ranked = whole_search(ids, matrix, vector, words, query, coverage=encoder.coverage(query))
                whole.append(ndcg(ranked, positives))
    general = [
        ndcg(nearest(ids, matrix, vector, RANKING_DEPTH), [id])
        for id, vector in zip(pseudo, encoder.encode(list(pseudo.values())), strict=True)
    ]
    return dense, whole, general, first_call_scores(encoder, tasks)


def _compare(name: str, scores: Sequence[PairedScore], policy: EncoderPolicy) -> Comparison:
    before, after = [score.before for score in scores], [score.after for score in scores]
    return compare(name, before, after, resamples=policy.resamples, seed=policy.seed)


def _doubt(comparison: Comparison, policy: EncoderPolicy) -> str:
    """Return why a gain is not significant; empty where it is."""
    if comparison.examples < policy.min_queries:
        return (
            f"Only {comparison.examples} {_unit(comparison)} were held out; at least {policy.min_queries} are needed "
            "to decide."
        )
    if comparison.low <= 0:
        return f"The gain is not sure for {comparison.name}: {_describe(comparison)}, not above zero."
    return ""


def _describe(comparison: Comparison) -> str:
    return comparison.describe(_unit(comparison))


def _unit(comparison: Comparison) -> str:
    return "tasks" if comparison.name == FIRST_CALLS else "queries"
