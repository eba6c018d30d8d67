"""How right predictions are: the field's metrics, each with a 95 % bootstrap interval over the examples.

Accuracy, macro and micro F1 and the report by class (scikit-learn); F1 of whole entities, counted as conlleval does;
SQuAD's exact match and F1, characters standing for words in scripts without spaces; the official macro F1 of
SemEval-2010 task 8, in which a relation the wrong way round is wrong.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tuner.evaluation.statistics import Interval, bootstrap_mean
from tuner.tasks.data.schemes import OUTSIDE, find_chunks
from tuner.tasks.data.words import is_unspaced

RESAMPLES = 1000
"""Of an interval. With 0 there are no intervals and no reports by tag, for a look between epochs."""
Counts = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ClassRow:
    """One line of a report by class."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class TaskScores:
    """What came of predictions that were held against labels."""

    main: str
    """The figure that decides, a key of `figures`."""
    figures: Mapping[str, Interval]
    classes: tuple[ClassRow, ...] = ()
    tokens: tuple[ClassRow, ...] = ()
    """Of a tagging: the report over the tags of single words."""
    confusion: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Right label to predicted label to number of examples."""
    right: tuple[float, ...] = ()
    """For each example how right it is, 0 to 1."""

    @property
    def value(self) -> float:
        return self.figures[self.main].mean


def single_label(
    gold: Sequence[str], said: Sequence[str], labels: Sequence[str], *, resamples: int = RESAMPLES
) -> TaskScores:
    """One label a text: accuracy decides."""
    right = tuple(float(one == other) for one, other in zip(gold, said, strict=True))
    rows = _report(gold, said, labels) if resamples else ()
    figures = {
        "accuracy": _mean(right, resamples),
        "macro_f1": bootstrap_counts(_class_counts(gold, said, labels), _macro, resamples),
    }
    return TaskScores("accuracy", figures, rows, confusion=_confusion(gold, said), right=right)


def multi_label(
    gold: Sequence[Sequence[str]], said: Sequence[Sequence[str]], labels: Sequence[str], *, resamples: int = RESAMPLES
) -> TaskScores:
    """Any number of labels a text: micro F1 decides; `exact` is the share of texts with all labels right."""
    counts = _set_counts(gold, said, labels)
    right = tuple(float(set(one) == set(other)) for one, other in zip(gold, said, strict=True))
    figures = {
        "micro_f1": bootstrap_counts(counts, _micro, resamples),
        "macro_f1": bootstrap_counts(counts, _macro, resamples),
        "exact": _mean(right, resamples),
    }
    return TaskScores("micro_f1", figures, _rows_of(counts, labels), right=right)


def entities(gold: Sequence[Sequence[str]], said: Sequence[Sequence[str]], *, resamples: int = RESAMPLES) -> TaskScores:
    """IOB2 tags of sentences: F1 of whole entities decides, right only with both ends and the type."""
    wanted, found = ([set(find_chunks(tags)) for tags in one] for one in (gold, said))
    kinds = sorted({kind for sets in (wanted, found) for one in sets for kind, _, _ in one})
    counts = np.zeros((len(gold), len(kinds), 3))
    for row, (right, told) in enumerate(zip(wanted, found, strict=True)):
        for place, chosen in enumerate((right & told, told - right, right - told)):
            for kind, _, _ in chosen:
                counts[row, kinds.index(kind), place] += 1
    tags = [tag for one in gold for tag in one]
    said_tags = [tag for one in said for tag in one]
    whole = tuple(float(one == other) for one, other in zip(wanted, found, strict=True))
    by_tag = [*sorted({*tags, *said_tags} - {OUTSIDE}, key=lambda tag: (tag[2:], tag)), OUTSIDE]
    figures = {
        "entity_f1": bootstrap_counts(counts, _micro, resamples),
        "entity_precision": bootstrap_counts(
            counts, lambda sums: _share(sums[..., 0].sum(-1), sums[..., 1].sum(-1)), resamples
        ),
        "entity_recall": bootstrap_counts(
            counts, lambda sums: _share(sums[..., 0].sum(-1), sums[..., 2].sum(-1)), resamples
        ),
        "macro_f1": bootstrap_counts(counts, _macro, resamples),
        "token_accuracy": _mean([float(a == b) for a, b in zip(tags, said_tags, strict=True)], resamples),
        "sentences": _mean(whole, resamples),
    }
    confusion = _confusion([_kind(tag) for tag in tags], [_kind(tag) for tag in said_tags])
    by_word = _report(tags, said_tags, by_tag) if resamples else ()
    return TaskScores("entity_f1", figures, _rows_of(counts, kinds), by_word, confusion, whole)


def relations(
    gold: Sequence[str], said: Sequence[str], labels: Sequence[str], *, resamples: int = RESAMPLES
) -> TaskScores:
    """Relations of entity pairs: the official macro F1 of SemEval-2010 task 8 decides.

    Both directions of a relation are one class, of which only those the right way round are right; the label that
    stands for no relation counts as a mistake and not as a class.
    """
    none = no_relation(labels)
    kinds = sorted({relation(one) for one in labels if one != none})
    counts = np.zeros((len(gold), len(kinds), 3))
    for row, (one, other) in enumerate(zip(gold, said, strict=True)):
        if one == other:
            if one != none:
                counts[row, kinds.index(relation(one)), 0] += 1
            continue
        if other != none:
            counts[row, kinds.index(relation(other)), 1] += 1
        if one != none:
            counts[row, kinds.index(relation(one)), 2] += 1
    right = tuple(float(one == other) for one, other in zip(gold, said, strict=True))
    figures = {
        "macro_f1": bootstrap_counts(counts, _macro, resamples),
        "micro_f1": bootstrap_counts(counts, _micro, resamples),
        "accuracy": _mean(right, resamples),
    }
    return TaskScores("macro_f1", figures, _rows_of(counts, kinds), confusion=_confusion(gold, said), right=right)


def answers(gold: Sequence[Sequence[str]], said: Sequence[str], *, resamples: int = RESAMPLES) -> TaskScores:
    """Answers as texts, "" for none: SQuAD's F1 decides, the best over those that count as right."""
    exact = [
        max(float(_plain(other) == _plain(one)) for one in wanted or ("",))
        for wanted, other in zip(gold, said, strict=True)
    ]
    f1 = [max(overlap(one, other) for one in wanted or ("",)) for wanted, other in zip(gold, said, strict=True)]
    figures = {"f1": _mean(f1, resamples), "exact_match": _mean(exact, resamples)}
    parts = {"answered": [bool(wanted) for wanted in gold], "no_answer": [not wanted for wanted in gold]}
    if any(parts["no_answer"]) and any(parts["answered"]):
        for name, chosen in parts.items():
            kept = [value for value, keep in zip(f1, chosen, strict=True) if keep]
            figures[f"f1_{name}"] = _mean(kept, resamples)
    return TaskScores("f1", figures, right=tuple(f1))


def overlap(gold: str, said: str) -> float:
    """SQuAD's F1 of two answers: over words, or over characters in scripts without spaces."""
    one, other = _units(gold), _units(said)
    if not one or not other:
        return float(one == other)
    shared = sum((Counter(one) & Counter(other)).values())
    return 2 * shared / (len(one) + len(other))


def relation(label: str) -> str:
    """A relation without its direction."""
    return re.sub(r"\((?:e1,e2|e2,e1)\)$", "", label)


def no_relation(labels: Sequence[str]) -> str | None:
    """The label that stands for no relation, if there is one."""
    names = ("other", "no_relation", "none", "na", "no relation", "no-relation", "unrelated")
    return next((label for label in labels if label.lower() in names), None)


def bootstrap_counts(
    counts: Counts, statistic: Callable[[Counts], Any], resamples: int = RESAMPLES, *, seed: int = 0
) -> Interval:
    """A statistic of summed counts [examples, classes, 3], with its interval over resampled examples; none with 0.

    `statistic` maps sums [..., classes, 3], of right, wrongly said and missed, to [...].
    """
    examples = len(counts)
    mean = float(statistic(counts.sum(axis=0)))
    if not examples or not resamples:
        return Interval(examples, mean, mean, mean)
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(examples, np.full(examples, 1 / examples), size=resamples)
    sums = (draws @ counts.reshape(examples, -1)).reshape(resamples, *counts.shape[1:])
    low, high = np.percentile(statistic(sums), [2.5, 97.5])
    return Interval(examples, mean, float(low), float(high))


def _mean(values: Sequence[float], resamples: int) -> Interval:
    if resamples:
        return bootstrap_mean(values, resamples=resamples)
    mean = sum(values) / max(1, len(values))
    return Interval(len(values), mean, mean, mean)


def _f1(sums: Counts) -> Any:
    right, wrong, missed = sums[..., 0], sums[..., 1], sums[..., 2]
    return 2 * right / np.maximum(2 * right + wrong + missed, 1e-12)


def _macro(sums: Counts) -> Any:
    """Mean F1 over the classes that are there or were said."""
    there = sums.sum(axis=-1) > 0
    return (_f1(sums) * there).sum(axis=-1) / np.maximum(there.sum(axis=-1), 1)


def _micro(sums: Counts) -> Any:
    return _f1(sums.sum(axis=-2))


def _share(right: Any, other: Any) -> Any:
    return right / np.maximum(right + other, 1e-12)


def _class_counts(gold: Sequence[str], said: Sequence[str], labels: Sequence[str]) -> Counts:
    return _set_counts([(one,) for one in gold], [(one,) for one in said], labels)


def _set_counts(gold: Sequence[Sequence[str]], said: Sequence[Sequence[str]], labels: Sequence[str]) -> Counts:
    places = {label: place for place, label in enumerate(labels)}
    counts = np.zeros((len(gold), len(labels), 3))
    for row, (one, other) in enumerate(zip(gold, said, strict=True)):
        wanted, found = set(one), set(other)
        for place, chosen in enumerate((wanted & found, found - wanted, wanted - found)):
            for label in chosen:
                counts[row, places[label], place] += 1
    return counts


def _rows_of(counts: Counts, names: Sequence[str]) -> tuple[ClassRow, ...]:
    sums = counts.sum(axis=0)
    return tuple(
        ClassRow(
            name,
            float(_share(right, wrong)),
            float(_share(right, missed)),
            float(_f1(sums[place])),
            int(right + missed),
        )
        for place, (name, (right, wrong, missed)) in enumerate(zip(names, sums, strict=True))
    )


def _report(gold: Sequence[str], said: Sequence[str], labels: Sequence[str]) -> tuple[ClassRow, ...]:
    """scikit-learn's report by class, its averages at the end."""
    from sklearn.metrics import classification_report  # type: ignore[import-untyped]

    told = classification_report(gold, said, labels=list(labels), output_dict=True, zero_division=0)
    names = [*labels, *(name for name in ("micro avg", "macro avg", "weighted avg") if name in told)]
    rows = [told[name] for name in names]
    return tuple(
        ClassRow(name, float(row["precision"]), float(row["recall"]), float(row["f1-score"]), int(row["support"]))
        for name, row in zip(names, rows, strict=True)
    )


def _confusion(gold: Sequence[str], said: Sequence[str]) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {}
    for (one, other), count in sorted(Counter(zip(gold, said, strict=True)).items()):
        table.setdefault(one, {})[other] = count
    return table


def _kind(tag: str) -> str:
    return tag if tag == OUTSIDE else tag[2:]


_ARTICLES = re.compile(r"\b(a|an|the)\b")


def _plain(text: str) -> str:
    """As SQuAD compares: lower case, without punctuation and English articles."""
    kept = "".join(one for one in text.lower() if one not in string.punctuation and not _is_wide_mark(one))
    return " ".join(_ARTICLES.sub(" ", kept).split())


def _is_wide_mark(character: str) -> bool:
    """Punctuation of scripts without spaces; that of others SQuAD leaves alone."""
    return ord(character) >= 0x3000 and unicodedata.category(character).startswith("P")


def _units(text: str) -> list[str]:
    spaced = "".join(f" {one} " if is_unspaced(one) else one for one in _plain(text))
    return spaced.split()
