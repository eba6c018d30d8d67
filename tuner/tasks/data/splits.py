"""Splits examples into training, validation and test examples, none of them in two splits.

The same text in two splits would make the figures too good, so it is an error unless the user chooses what to do.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from agent.errors import DatasetError
from tuner.tasks.data.records import (
    AnswerExample,
    ClassifyExample,
    ConverseExample,
    TagExample,
    WriteExample,
    example_key,
    group_key,
    label_key,
)

Leakage = Literal["refuse", "drop", "keep"]

VALIDATION = 0.1
"""Share of the training examples for validation, where there is no file."""
TEST = 0.1
"""Share of the training examples for the test, where there is no file."""
RARE = 5
"""Training examples below which a class is called rare."""
RECURRING = 6
"""Words below which a tagged sentence may recur by chance: datelines, headings, scores."""
IMBALANCE = 10
"""Ratio of the largest to the smallest class from which a note is made."""
MAX_SOURCES = 3
"""Leaked examples that an error names."""


@dataclass(frozen=True)
class Splits:
    """The three splits, and notes about the data."""

    train: list[Any]
    validation: list[Any]
    test: list[Any]
    notes: tuple[str, ...]
    """For the report and the person who trains."""


def split_examples(
    train: Sequence[Any],
    validation: Sequence[Any],
    test: Sequence[Any],
    *,
    seed: int = 0,
    leakage: Leakage = "refuse",
) -> Splits:
    """Make three splits without shared texts; an empty one is drawn from the training examples, by class.

    Args:
        leakage: For a text in two splits: "refuse" raises, "drop" removes it from training (and from validation, if it
            is in the test), "keep" leaves it.

    Raises:
        DatasetError: A text is in two splits, or a split is empty.
    """
    notes: list[str] = []
    learnt = _deduplicate(train, notes)
    for name, others in (("validation", validation), ("test", test)):
        learnt = _check_leakage(learnt, others, "training", name, leakage, notes)
    watched = _check_leakage(validation, test, "validation", "test", leakage, notes)
    if not test:
        learnt, test = stratified_split(learnt, TEST, seed)
        notes.append(f"no test file: {len(test)} of the examples, drawn by class, are kept apart to measure with")
    if not watched:
        learnt, watched = stratified_split(learnt, VALIDATION, seed + 1)
    for purpose, examples in (("train on", learnt), ("watch the training with", watched), ("measure with", test)):
        if not examples:
            raise DatasetError(f"of {len(train)} examples none is left to {purpose}; more are needed")
    notes += _data_notes(learnt, test)
    return Splits(list(learnt), list(watched), list(test), tuple(notes))


def stratified_split(examples: Sequence[Any], share: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Return the examples without a share of each class, and that share; groups (see `group_key`) stay together.

    Args:
        share: From 0 to 1; a class with a single group stays whole.
    """
    groups: dict[str, list[Any]] = defaultdict(list)
    for example in examples:
        groups[group_key(example)].append(example)
    classes: dict[str, list[str]] = defaultdict(list)
    for name, members in groups.items():
        classes[Counter(map(label_key, members)).most_common(1)[0][0]].append(name)
    chance = random.Random(seed)
    drawn: set[str] = set()
    owed = 0.0
    for label in sorted(classes):
        names = sorted(classes[label])
        chance.shuffle(names)
        owed += len(names) * share
        count = min(round(owed), len(names) - 1)
        owed -= count
        drawn.update(names[:count])
    rest = [example for example in examples if group_key(example) not in drawn]
    return rest, [example for example in examples if group_key(example) in drawn]


def dataset_hash(splits: Splits) -> str:
    """Return the SHA-256 over all examples by split, without their sources."""
    digest = hashlib.sha256()
    for name in ("train", "validation", "test"):
        digest.update(f"{name}\n".encode())
        for example in getattr(splits, name):
            fields = json.dumps(asdict(replace(example, source="")), ensure_ascii=False)
            digest.update(f"{example_key(example)}\x1e{fields}\n".encode())
    return digest.hexdigest()


def _deduplicate(examples: Sequence[Any], notes: list[str]) -> list[Any]:
    """The examples without repetitions of a text with the same labels; a note counts texts with different labels."""
    seen: dict[str, set[str]] = defaultdict(set)
    unique = []
    for example in examples:
        target = _target_key(example)
        if target not in seen[example_key(example)]:
            seen[example_key(example)].add(target)
            unique.append(example)
    if len(unique) < len(examples):
        notes.append(f"{len(examples) - len(unique)} training examples are there twice and count once")
    contradicting = sum(1 for labels in seen.values() if len(labels) > 1)
    if contradicting and not isinstance(unique[0], WriteExample | ConverseExample):
        notes.append(f"{contradicting} training texts are there with different labels; check whether these are right")
    return unique


def _check_leakage(
    examples: Sequence[Any], others: Sequence[Any], name: str, other: str, leakage: Leakage, notes: list[str]
) -> list[Any]:
    keys = {example_key(example) for example in others if not _may_recur(example)}
    leaked = [example for example in examples if example_key(example) in keys]
    if not leaked or leakage == "keep":
        if leaked:
            notes.append(f"{len(leaked)} {name} examples are in the {other} set as well, and were kept as asked")
        return list(examples)
    if leakage == "drop":
        notes.append(f"{len(leaked)} {name} examples were dropped, being in the {other} set as well")
        return [example for example in examples if example_key(example) not in keys]
    places = ", ".join(example.source for example in leaked[:MAX_SOURCES])
    raise DatasetError(
        f"{len(leaked)} of {len(examples)} {name} examples have the text of one in the {other} set ({places}"
        f"{', …' if len(leaked) > MAX_SOURCES else ''}), so its figures would be better than they are; drop them from "
        f"the {name} set with --leakage drop, or keep them with --leakage keep"
    )


def _may_recur(example: Any) -> bool:
    return isinstance(example, TagExample) and len(example.offsets) < RECURRING


def _target_key(example: Any) -> str:
    match example:
        case ClassifyExample(labels=labels):
            return "|".join(labels)
        case TagExample(tags=tags):
            return " ".join(tags)
        case AnswerExample(answers=answers):
            return str(answers)
        case WriteExample(target=text) | ConverseExample(answer=text):
            return text
        case _:
            return str(example.label)


def _data_notes(train: Sequence[Any], test: Sequence[Any]) -> list[str]:
    """Notes on class imbalance, on labels that only the test has, and on contexts in both."""
    if isinstance(train[0], AnswerExample):
        shared = {group_key(example) for example in train} & {group_key(example) for example in test}
        return [f"{len(shared)} contexts are both in training and test, with other questions"] if shared else []
    notes = []
    counts = Counter(_labels(train))
    if counts:
        (largest, most), (smallest, least) = counts.most_common(1)[0], counts.most_common()[-1]
        if most >= IMBALANCE * least:
            notes.append(
                f"classes are uneven: {largest} has {most} training examples, {smallest} has {least}; look at "
                "macro F1, and try --class-weights"
            )
        rare = sorted(label for label, count in counts.items() if count < RARE)
        if rare:
            notes.append(f"{len(rare)} classes have fewer than {RARE} training examples: {', '.join(rare[:8])}")
    unknown = sorted(set(_labels(test)) - counts.keys())
    if unknown:
        notes.append(f"{len(unknown)} labels are in the test alone and will be wrong: {', '.join(unknown[:8])}")
    return notes


def _labels(examples: Sequence[Any]) -> list[str]:
    return [label for example in examples for label in label_key(example).split("|") if label]
