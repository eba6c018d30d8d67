"""The gate of the sentence encoder: whether search or recall finds more with a new one, and nothing is lost elsewhere.

`measure` ranks all passages for the held-out queries, by the vectors alone and by the whole search, and for sentences
taken from the passages themselves, which stand for what nobody gave feedback on. For the held-out tasks it ranks the
beginnings of the others, as recall does. What there is nothing of is left out. `decide` is pure. It is not promised
that what reviewers cited is all that fits: a passage that nobody cited counts as wrong, before and after alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from agent.encoders.encoder import Encoder
from agent.errors import TuningError
from agent.feedback.label_regression import LabelRegression
from agent.feedback.recall import MOST
from agent.knowledge.chunking import Chunk
from tuner.encoder.beginnings import with_names
from tuner.encoder.dataset import Judged, LabelledTask
from tuner.encoder.ranking import DEEP, ndcg, nearest, pseudo_queries, whole_search, word_index
from tuner.evaluation.statistics import gain_cells, paired, points, told_gain
from tuner.reports.gate_report import markdown_table

TASKS = "beginnings of tasks"


@dataclass(frozen=True)
class Score:
    """nDCG@10 of one query, or how well a task's beginning was told; 0 to 1, before and after."""

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
    tasks: tuple[Score, ...] = ()
    """Of the held-out tasks, by the regression that recall ranks beginnings with."""


@dataclass(frozen=True)
class EncoderPolicy:
    """What is asked of a new encoder. Shares are 0 to 1."""

    min_queries: int = 20
    """Of held-out queries, or tasks, that a gain of theirs is believed from."""
    margin: float = 0.01
    """What the pseudo-queries may lose; the tasks, where search gains; the whole search, where the tasks gain."""
    resamples: int = 10_000
    seed: int = 0


@dataclass(frozen=True)
class Figure:
    """A mean before and after, and the gain with its paired 95 % bootstrap interval."""

    name: str
    queries: int
    """Queries or tasks; with 0 nothing was measured, and the others are 0."""
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
    tasks: Figure
    reasons: tuple[str, ...]
    """A sentence each; those against shipping come first."""
    policy: EncoderPolicy

    @property
    def measured(self) -> tuple[Figure, ...]:
        return tuple(one for one in (self.whole, self.dense, self.general, self.tasks) if one.queries)


def decide(report: EncoderReport, policy: EncoderPolicy | None = None) -> EncoderDecision:
    """Ship where the whole search or the tasks gain for sure, and nothing that was measured loses.

    The vectors alone may lose nothing, the others no more than the margin.
    """
    policy = policy or EncoderPolicy()
    whole, dense, general, tasks = (
        _figure(name, scores, policy)
        for name, scores in (
            ("the whole search", report.whole),
            ("the vectors alone", report.dense),
            ("sentences of the documents", report.general),
            (TASKS, report.tasks),
        )
    )
    doubts = [(one, _doubt(one, policy)) for one in (whole, tasks) if one.queries]
    against = [] if any(not doubt for _, doubt in doubts) else [doubt for _, doubt in doubts if doubt]
    if not doubts:
        against.append("No query and no task was held out, so nothing was measured.")
    # A loss of just the margin is allowed, whatever floating point makes of it.
    most = policy.margin + 1e-9
    if not against and -whole.gain > most:
        against.append(f"The whole search lost more than {points(policy.margin, sign=False)}: {_told(whole)}.")
    if not against and -tasks.gain > most:
        against.append(f"Tasks are told apart worse by more than {points(policy.margin, sign=False)}: {_told(tasks)}.")
    if dense.gain < 0:
        against.append(f"The vectors alone rank worse: {_told(dense)}.")
    if whole.queries and not general.queries:
        against.append("No passage is long enough to take a sentence of, so general similarity was not looked at.")
    elif -general.gain > most:
        against.append(f"General similarity lost more than {points(policy.margin, sign=False)}: {_told(general)}.")
    notes = [
        f"{'Shares' if one is tasks else f'nDCG@{DEEP}'} of {one.name}: {_told(one)}."
        for one in (whole, dense, general, tasks)
        if one.queries
    ]
    return EncoderDecision(not against, whole, dense, general, tasks, (*against, *notes), policy)


def measure(
    before: Encoder,
    after: Encoder,
    held_out: Sequence[Judged],
    passages: Mapping[str, Chunk],
    tasks: Sequence[LabelledTask] = (),
) -> EncoderReport:
    """Rank all passages for the held-out queries and for pseudo-queries, and beginnings for the held-out tasks.

    `tasks` are those of all parts. Raises TuningError where neither query nor task is held out.
    """
    asked = [one.text for one in tasks if one.part == "held_out"]
    if not held_out and not asked:
        raise TuningError("no query is held out and no task, so nothing can be measured; accept or correct more runs")
    queries, taken = [one.query for one in held_out], pseudo_queries(passages)
    old, new = (_rankings(one, held_out, passages, taken, tasks) for one in (before, after))
    dense, whole, general, beginnings = (
        tuple(Score(text, one, other) for text, one, other in zip(texts, worth, worth_now, strict=True))
        for texts, worth, worth_now in zip((queries, queries, taken.values(), asked), old, new, strict=True)
    )
    return EncoderReport(before.name, after.name, len(passages), dense, whole, general, beginnings)


def told_beginnings(encoder: Encoder, tasks: Sequence[LabelledTask]) -> list[float]:
    """For each held-out task how well the shares of the beginnings fit its own: Brier's score, turned to 0 to 1.

    As recall tells them, from the newest of the other tasks and the names of their labels. A share weighs in where it
    is not the largest, too; and whether the largest is right, a few tasks cannot tell.
    """
    held_out = [one for one in tasks if one.part == "held_out"]
    if not held_out:
        return []
    known = [one for one in tasks if one.part != "held_out"][-MOST:]
    texts, labels = zip(*with_names(known), strict=True)
    matrix = encoder.encode(texts)
    regression = LabelRegression(matrix, labels, texts=len(known))
    scores = []
    for one, vector in zip(held_out, encoder.encode([one.text for one in held_out]), strict=True):
        shares = regression.shares(regression.scores(vector), float((matrix[: len(known)] @ vector).max()))
        right = np.array([name == one.label for name in regression.names], dtype=float)
        lacking = 0.0 if right.any() else 1.0
        scores.append(1.0 - 0.5 * (float(((right - shares) ** 2).sum()) + lacking))
    return scores


def _rankings(
    encoder: Encoder,
    held_out: Sequence[Judged],
    passages: Mapping[str, Chunk],
    taken: Mapping[str, str],
    tasks: Sequence[LabelledTask],
) -> tuple[list[float], list[float], list[float], list[float]]:
    """The scores of one encoder: vectors alone, whole search, pseudo-queries, tasks."""
    ids = sorted(passages)
    matrix = encoder.encode([passages[id].embedded_text for id in ids])
    dense, whole = [], []
    if held_out:
        vectors = encoder.encode_queries([one.query for one in held_out])
        with word_index(passages, matrix, encoder.name) as words:
            for one, vector in zip(held_out, vectors, strict=True):
                dense.append(ndcg(nearest(ids, matrix, vector, DEEP), one.positives))
                ranked = whole_search(ids, matrix, vector, words, one.query, read=encoder.reads(one.query))
                whole.append(ndcg(ranked, one.positives))
    general = [
        ndcg(nearest(ids, matrix, vector, DEEP), [id])
        for id, vector in zip(taken, encoder.encode(list(taken.values())), strict=True)
    ]
    return dense, whole, general, told_beginnings(encoder, tasks)


def write_report(report: EncoderReport, decision: EncoderDecision) -> dict[str, bytes]:
    """The files of the report, by name."""
    table = markdown_table(
        (f"nDCG@{DEEP}; how well the {TASKS} were told", "of", "before", "after", "gain"),
        [(one.name, one.queries, *gain_cells(one)) for one in decision.measured],
    )
    verdict = "Ship" if decision.ship else "Do not ship"
    reasons = "\n".join(f"- {reason}" for reason in decision.reasons)
    among = f", among {report.passages} passages" if report.passages else ""
    page = f"# {verdict}: {report.after}\n\nAgainst {report.before}{among}.\n\n"
    data = {"version": 2, "decision": asdict(decision), "report": asdict(report)}
    return {
        "report/gate.json": (json.dumps(data, ensure_ascii=False, indent=1) + "\n").encode(),
        "report/gate.md": f"{page}{reasons}\n\n{table}\n".encode(),
    }


def _figure(name: str, scores: Sequence[Score], policy: EncoderPolicy) -> Figure:
    before, after, gain = paired(
        [one.before for one in scores],
        [one.after for one in scores],
        resamples=policy.resamples,
        seed=policy.seed,
    )
    return Figure(name, len(scores), before, after, gain.mean, gain.low, gain.high)


def _doubt(one: Figure, policy: EncoderPolicy) -> str:
    """Why a gain is not sure; empty where it is."""
    kind = "tasks" if one.name == TASKS else "queries"
    if one.queries < policy.min_queries:
        return f"Only {one.queries} {kind} were held out; at least {policy.min_queries} are needed to decide."
    return f"The gain is not sure for {one.name}: {_told(one)}, not above zero." if one.low <= 0 else ""


def _told(one: Figure) -> str:
    return told_gain(one, f"{one.queries} {'tasks' if one.name == TASKS else 'queries'}")
