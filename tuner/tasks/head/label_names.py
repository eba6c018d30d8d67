"""What labels are called, as examples of them: "card arrival" is the first message about a card's arrival.

With few texts a class the names tell more than the texts do; with many they do no harm. Names that say nothing, such as
numbers, are left out, and so are all of them where they do not tell the training texts apart.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tuner.tasks.data.records import Classified
from tuner.tasks.head.classify import ClassifyTask
from tuner.tasks.head.frozen import Kept
from tuner.tasks.head.windows import NO_EXAMPLE, Window

if TYPE_CHECKING:
    from tuner.tasks.head.model import TaskModel

TOLD_APART = 0.1
"""How far names must be on the way from chance, 0, to always right, 1."""
ASKED = 500
"""Training texts that names are tried on, at most."""


def words_of(label: str) -> str:
    """A label as words, "cancel order" of "cancelOrder" or "cancel_order"; empty where there is no word in it."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label)
    words = re.findall(r"[^\W_]+", apart)
    return " ".join(words).lower() if any(len(word) > 1 and word.isalpha() for word in words) else ""


def named_windows(model: TaskModel, examples: Sequence[Classified]) -> tuple[list[Window], float]:
    """A window of each label's name, and the mean share over the labels that names alone are right of.

    None where a text has several labels, or is a pair, or where names do not tell texts apart.
    """
    task = model.task
    if not isinstance(task, ClassifyTask) or task.multi or any(one.pair is not None for one in examples):
        return [], 0.0
    named = {label: words for label in task.labels if (words := words_of(label))}
    asked = [one for one in examples if one.labels[0] in named]
    if len(named) < 2 or not asked:
        return [], 0.0
    asked = random.Random(model.settings.seed).sample(asked, min(ASKED, len(asked)))
    limit = model.settings.max_tokens
    names = task.windows([Classified(words, (label,)) for label, words in named.items()], model.tokenizer, limit)
    right = _right(model, names, task.windows(asked, model.tokenizer, limit))
    chance = 1 / len(names)
    if (right - chance) / (1 - chance) < TOLD_APART:
        return [], right
    return [replace(one, example=NO_EXAMPLE) for one in names], right


def _right(model: TaskModel, names: Sequence[Window], texts: Sequence[Window]) -> float:
    """The share of texts that lie nearest to their label's name, as a mean over the labels."""
    likeness = Kept(model, texts).directions() @ Kept(model, names).directions().T
    # A name that is near to everything says nothing.
    nearest = (likeness - likeness.mean(axis=0)).argmax(axis=1)
    said = np.array([one.targets[0] for one in names])[nearest]
    gold = np.array([one.targets[0] for one in texts])
    return float(np.mean([(said[gold == one] == one).mean() for one in np.unique(gold)]))
