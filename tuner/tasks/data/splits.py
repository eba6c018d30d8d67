"""Examples are parted into those to train on, to watch the training with, and to measure with; nothing is in two.

The same text in two parts would make the figures better than they are, so it is refused unless the user says what to
do with it.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from agent.errors import DatasetError
from tuner.tasks.data.records import Asked, Classified, Conversed, Tagged, Written, group, key, label_of

Leakage = Literal["refuse", "drop", "keep"]
Say = Callable[[str], None]

VALIDATION = 0.1
TEST = 0.1
RARE = 5
"""Training examples below which a class is called rare."""
RECURRING = 6
"""Words below which a sentence of a tagging may turn up again anywhere: datelines, headings, scores."""
SHOWN = 3


@dataclass(frozen=True)
class Splits:
    """The three parts, and what was noticed."""

    train: list[Any]
    validation: list[Any]
    test: list[Any]
    notes: tuple[str, ...]
    """For the report and the person who trains."""


def part(
    train: Sequence[Any],
    validation: Sequence[Any],
    test: Sequence[Any],
    *,
    seed: int = 0,
    leakage: Leakage = "refuse",
) -> Splits:
    """Three parts; those that are empty are taken from the training examples, each class in its share.

    Raises DatasetError where a text is in two parts and `leakage` is "refuse"; "drop" takes it out of training (and
    out of validation, if it is in the test), "keep" leaves it.
    """
    notes: list[str] = []
    kept = _once(train, notes)
    for name, others in (("validation", validation), ("test", test)):
        kept = _apart(kept, others, "training", name, leakage, notes)
    watched = _apart(validation, test, "validation", "test", leakage, notes)
    if not test:
        kept, test = stratified(kept, TEST, seed)
        notes.append(f"no test file: {len(test)} of the examples, drawn by class, are kept apart to measure with")
    if not watched:
        kept, watched = stratified(kept, VALIDATION, seed + 1)
    for name, some in (("train on", kept), ("watch the training with", watched), ("measure with", test)):
        if not some:
            raise DatasetError(f"of {len(train)} examples none is left to {name}; more are needed")
    notes += _noticed(kept, test)
    return Splits(list(kept), list(watched), list(test), tuple(notes))


def stratified(examples: Sequence[Any], share: float, seed: int) -> tuple[list[Any], list[Any]]:
    """The examples without a share, and that share: of each class as much, whole groups (see `records.group`) alone.

    A class with a single group stays whole.
    """
    groups: dict[str, list[Any]] = defaultdict(list)
    for one in examples:
        groups[group(one)].append(one)
    classes: dict[str, list[str]] = defaultdict(list)
    for name, members in groups.items():
        classes[Counter(map(label_of, members)).most_common(1)[0][0]].append(name)
    chance = random.Random(seed)
    taken: set[str] = set()
    owed = 0.0
    for label in sorted(classes):
        names = sorted(classes[label])
        chance.shuffle(names)
        owed += len(names) * share
        count = min(round(owed), len(names) - 1)
        owed -= count
        taken.update(names[:count])
    left = [one for one in examples if group(one) not in taken]
    return left, [one for one in examples if group(one) in taken]


def dataset_hash(splits: Splits) -> str:
    """SHA-256 over all examples by part."""
    digest = hashlib.sha256()
    for name in ("train", "validation", "test"):
        digest.update(f"{name}\n".encode())
        for one in getattr(splits, name):
            digest.update(f"{key(one)}\x1e{replace(one, source='')}\n".encode())
    return digest.hexdigest()


def _once(examples: Sequence[Any], notes: list[str]) -> list[Any]:
    """Without those that are there twice with the same labels; those with other labels are told."""
    seen: dict[str, set[str]] = defaultdict(set)
    kept = []
    for one in examples:
        said = _labels(one)
        if said not in seen[key(one)]:
            seen[key(one)].add(said)
            kept.append(one)
    if len(kept) < len(examples):
        notes.append(f"{len(examples) - len(kept)} training examples are there twice and count once")
    torn = sum(1 for labels in seen.values() if len(labels) > 1)
    if torn and not isinstance(kept[0], Written | Conversed):
        notes.append(f"{torn} training texts are there with different labels; look whether they can be told apart")
    return kept


def _apart(
    examples: Sequence[Any], others: Sequence[Any], name: str, other: str, leakage: Leakage, notes: list[str]
) -> list[Any]:
    known = {key(one) for one in others if not _recurs(one)}
    leaked = [one for one in examples if key(one) in known]
    if not leaked or leakage == "keep":
        if leaked:
            notes.append(f"{len(leaked)} {name} examples are in the {other} set as well, and were kept as asked")
        return list(examples)
    if leakage == "drop":
        notes.append(f"{len(leaked)} {name} examples were dropped, being in the {other} set as well")
        return [one for one in examples if key(one) not in known]
    places = ", ".join(one.source for one in leaked[:SHOWN])
    raise DatasetError(
        f"{len(leaked)} of {len(examples)} {name} examples have the text of one in the {other} set ({places}"
        f"{', …' if len(leaked) > SHOWN else ''}), so its figures would be better than they are; drop them from the "
        f"{name} set with --leakage drop, or keep them with --leakage keep"
    )


def _recurs(one: Any) -> bool:
    return isinstance(one, Tagged) and len(one.offsets) < RECURRING


def _labels(one: Any) -> str:
    match one:
        case Classified(labels=labels):
            return "|".join(labels)
        case Tagged(tags=tags):
            return " ".join(tags)
        case Asked(answers=answers):
            return str(answers)
        case Written(target=text) | Conversed(answer=text):
            return text
        case _:
            return str(one.label)


def _noticed(train: Sequence[Any], test: Sequence[Any]) -> list[str]:
    """Imbalance, labels that only the test has, contexts that both have."""
    notes = []
    counts = Counter(label for one in train for label in label_of(one).split("|") if label)
    if counts and not isinstance(train[0], Asked):
        most, least = counts.most_common(1)[0], counts.most_common()[-1]
        if most[1] >= 10 * least[1]:
            notes.append(
                f"classes are uneven: {most[0]} has {most[1]} training examples, {least[0]} has {least[1]}; look at "
                "macro F1, and try --class-weights"
            )
        rare = sorted(label for label, count in counts.items() if count < RARE)
        if rare:
            notes.append(f"{len(rare)} classes have fewer than {RARE} training examples: {', '.join(rare[:8])}")
    unknown = sorted({label for one in test for label in label_of(one).split("|") if label} - counts.keys())
    if unknown and not isinstance(train[0], Asked):
        notes.append(f"{len(unknown)} labels are in the test alone and will be wrong: {', '.join(unknown[:8])}")
    if isinstance(train[0], Asked):
        shared = {group(one) for one in train} & {group(one) for one in test}
        if shared:
            notes.append(f"{len(shared)} contexts are both in training and test, with other questions")
    return notes
