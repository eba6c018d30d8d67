"""The page and the model card of a trained task: figures before and after, by class, the confused and the worst."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tuner.evaluation.statistics import Interval
from tuner.reports.gate_report import markdown_table, with_interval
from tuner.reports.html import Table, report_page, short
from tuner.reports.plots import line_chart
from tuner.tasks.data.records import (
    AnswerExample,
    ClassifyExample,
    ConverseExample,
    EmbedExample,
    RelateExample,
    TagExample,
    TaskExample,
    WriteExample,
    display_text,
)
from tuner.tasks.data.words import spans_from_tags
from tuner.tasks.head.training import TrainedTask
from tuner.tasks.metrics import ClassRow, TaskScores
from tuner.tasks.predictions import (
    AnswerPrediction,
    EntityPrediction,
    LabelPrediction,
    Prediction,
    SimilarityPrediction,
    TextPrediction,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

WORST = 40
CONFUSED = 25
"""Classes of a confusion matrix that are shown; beyond that the commonest mix-ups are listed."""


@dataclass(frozen=True)
class TaskOutcome:
    """What a training came to, for page and card."""

    task: str
    base: str
    counts: Mapping[str, int]
    """Examples by part."""
    notes: Sequence[str]
    settings: DataclassInstance
    """`TaskSettings`, or those of a language model."""
    trained: TrainedTask
    before: TaskScores
    """On the test, with the head as it was made."""
    after: TaskScores
    examples: Sequence[TaskExample]
    """Of the test."""
    predictions: Sequence[Prediction]
    what: str = "A head for the task"
    watched: str = ""
    """The validation figure that chose the epoch; empty for the one that decides on the test."""

    @property
    def method(self) -> str:
        return str(asdict(self.settings)["method"])


def format_interval(interval: Interval) -> str:
    """A share with its interval."""
    return with_interval(interval.mean, interval.low, interval.high)


def write_page(outcome: TaskOutcome) -> str:
    """`report.html`: one page that needs nothing else."""
    before, after = outcome.before, outcome.after
    rows = [
        (name, format_interval(before.figures[name]), format_interval(one))
        for name, one in after.figures.items()
        if name in before.figures
    ]
    tables = [
        Table("Figures on the test set", ("", "before training", "after"), tuple(rows)),
        Table("Noticed", ("",), tuple((note,) for note in outcome.notes)),
        _class_table("By class", after.classes),
        *([_class_table("By tag of a word", after.tokens)] if after.tokens else []),
        *([_confusion_table(after)] if after.confusion else []),
        _worst_table(outcome),
        Table(
            "Settings", ("setting", "value"), tuple((name, str(one)) for name, one in asdict(outcome.settings).items())
        ),
        Table("Training", ("", ""), tuple(_facts(outcome).items())),
    ]
    curves = [
        {"loss": outcome.trained.curve},
        {f"validation {outcome.watched or after.main}": outcome.trained.validation_curve},
    ]
    return report_page(f"Task {outcome.task} on {outcome.base}", tables, charts=[line_chart(one) for one in curves])


def write_figures(outcome: TaskOutcome) -> str:
    """`metrics.json`: all figures with their intervals."""
    trained = asdict(outcome.trained)
    data = {
        "before": as_data(outcome.before),
        "after": as_data(outcome.after),
        "examples": dict(outcome.counts),
        "notes": list(outcome.notes),
        "training": trained,
    }
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def as_data(scores: TaskScores) -> dict[str, Any]:
    """Scores as JSON, without those of single examples."""
    return {
        "main": scores.main,
        "figures": {name: asdict(one) for name, one in scores.figures.items()},
        "classes": [asdict(one) for one in scores.classes],
        "tokens": [asdict(one) for one in scores.tokens],
        "confusion": {name: dict(row) for name, row in scores.confusion.items()},
    }


def text_report(scores: TaskScores) -> str:
    """Figures, and reports by class and tag in scikit-learn's form, for a terminal."""
    parts = [
        markdown_table(("figure", "value"), [(name, format_interval(one)) for name, one in scores.figures.items()])
    ]
    parts += [classification_text(rows) for rows in (scores.classes, scores.tokens) if rows]
    return "\n\n".join(parts)


def classification_text(rows: Sequence[ClassRow]) -> str:
    """Precision, recall, F1 and support of each class, in columns as scikit-learn prints them."""
    width = max(12, *(len(one.name) for one in rows))
    lines = [f"{'':>{width}} {'precision':>9} {'recall':>9} {'f1-score':>9} {'support':>9}", ""]
    for one in rows:
        lines.append(f"{one.name:>{width}} {one.precision:>9.4f} {one.recall:>9.4f} {one.f1:>9.4f} {one.support:>9}")
    return "\n".join(lines)


def card(id: str, outcome: TaskOutcome) -> str:
    """The model card, Markdown with front matter."""
    counts = outcome.counts
    figures = [(name, format_interval(one)) for name, one in outcome.after.figures.items()]
    notes = "\n".join(f"- {note}" for note in outcome.notes) or "- nothing"
    return f"""---
base_model: {outcome.base}
library_name: peft
tags: [{outcome.method}, {outcome.task}, ratchet]
---

# {id}

{outcome.what} `{outcome.task}` on {outcome.base}, trained by Ratchet (method
{outcome.method}) from {counts["train"]} examples, watched with {counts["validation"]}, measured with
{counts["test"]} that it has not seen.

{markdown_table(("figure on the test set", "95 % interval in brackets"), figures)}

{outcome.trained.steps} steps in {outcome.trained.seconds / 60:.1f} minutes, {outcome.trained.parameters} trained
parameters, best epoch {outcome.trained.best_epoch + 1} of {outcome.trained.epochs}.

What was noticed of the data:

{notes}

It does what its examples showed, with texts like theirs. Nothing is known of it for others, and its
probabilities were not calibrated. Look at the worst examples in `report/` before you trust it with people.

{markdown_table(("setting", "value"), list(asdict(outcome.settings).items()))}
"""


def _facts(outcome: TaskOutcome) -> dict[str, str]:
    trained = outcome.trained
    return {
        **{f"examples, {name}": str(count) for name, count in outcome.counts.items()},
        "steps": str(trained.steps),
        "best epoch": f"{trained.best_epoch + 1} of {trained.epochs}",
        "training loss at the end": f"{trained.loss:.4f}",
        f"validation {outcome.watched or outcome.after.main}": f"{trained.validation:.4f}",
        "trained parameters": str(trained.parameters),
        "minutes": f"{trained.seconds / 60:.1f}",
        "peak memory of the process": f"{trained.peak_bytes / 2**30:.1f} GiB",
    }


def _class_table(title: str, rows: Sequence[ClassRow]) -> Table:
    cells = tuple(
        (one.name, f"{one.precision:.3f}", f"{one.recall:.3f}", f"{one.f1:.3f}", str(one.support)) for one in rows
    )
    return Table(title, ("", "precision", "recall", "F1", "examples"), cells)


def _confusion_table(scores: TaskScores) -> Table:
    names = sorted({*scores.confusion, *(other for row in scores.confusion.values() for other in row)})
    if len(names) <= CONFUSED:
        rows = tuple((name, *(str(scores.confusion.get(name, {}).get(other, 0)) for other in names)) for name in names)
        return Table("Confusion: right label down, predicted across", ("", *names), rows)
    pairs = [
        (count, one, other) for one, row in scores.confusion.items() for other, count in row.items() if one != other
    ]
    best = sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:WORST]
    return Table(
        f"Commonest mix-ups of {len(names)} classes",
        ("right label", "predicted", "times"),
        tuple((one, other, str(count)) for count, one, other in best),
    )


def _worst_table(outcome: TaskOutcome) -> Table:
    """The wrong ones it was surest of."""
    wrong = [at for at, right in enumerate(outcome.after.right) if right < 1]
    wrong.sort(key=lambda at: (outcome.after.right[at], -outcome.predictions[at].score))
    rows = tuple(
        (
            short(display_text(outcome.examples[at]), 240),
            short(_wanted(outcome.examples[at])),
            short(_said(outcome.predictions[at])),
            f"{outcome.predictions[at].score:.2f}",
        )
        for at in wrong[:WORST]
    )
    title = f"Worst: {len(rows)} of {len(wrong)} that are not wholly right, those it was surest of first"
    return Table(title, ("text", "right", "predicted", "score"), rows)


def _wanted(example: TaskExample) -> str:
    match example:
        case ClassifyExample(labels=labels):
            return ", ".join(labels)
        case RelateExample(label=label):
            return label
        case TagExample():
            return _spans_text(example.text, spans_from_tags(example.offsets, example.tags))
        case AnswerExample(answers=answers):
            return " / ".join(one.text for one in answers) or "(none)"
        case EmbedExample(score=score):
            return "(together)" if score is None else f"{score:g}"
        case WriteExample(target=text) | ConverseExample(answer=text):
            return text


def _said(prediction: Prediction) -> str:
    match prediction:
        case LabelPrediction(labels=labels):
            return ", ".join(labels)
        case EntityPrediction():
            return _spans_text(prediction.text, prediction.spans)
        case AnswerPrediction(text=text):
            return text or "(none)"
        case SimilarityPrediction(score=score, rank=rank):
            return f"{score:.2f}{f', place {rank}' if rank else ''}"
        case TextPrediction(text=text):
            return text


def _spans_text(text: str, spans: Sequence[Any]) -> str:
    return "; ".join(f"{text[one.start : one.end]} ({one.label})" for one in spans) or "(none)"
