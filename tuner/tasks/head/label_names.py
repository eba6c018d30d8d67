"""What labels are called, as examples of them: "card arrival" is the first message about a card's arrival.

With few texts a class the names tell more than the texts do; with many they do no harm. Names that say nothing, such as
numbers, are left out, and so are all of them where they do not tell the training texts apart. Without any example the
nearest name is the label.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tuner.tasks.data.records import Classified
from tuner.tasks.head.classify import ClassifyTask
from tuner.tasks.head.linear_probe import Kept
from tuner.tasks.head.model import Encoder, TaskModel
from tuner.tasks.head.token_alignment import text_ids
from tuner.tasks.head.windows import NO_EXAMPLE, Window
from tuner.tasks.settings import choose

TOLD_APART = 0.1
"""How far names must be on the way from chance, 0, to always right, 1."""
SHARPNESS = 20.0
"""What the cosine of text and name is multiplied by, so that scores of labels are shares."""
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
    names = task.windows(_as_examples(named), model.tokenizer, limit)
    right = _right(model, names, task.windows(asked, model.tokenizer, limit))
    chance = 1 / len(names)
    if (right - chance) / (1 - chance) < TOLD_APART:
        return [], right
    return [replace(one, example=NO_EXAMPLE) for one in names], right


def named_model(encoder: Encoder, labels: Sequence[str]) -> TaskModel:
    """A classification that has learnt nothing: a text gets the label whose name is nearest. All must have words."""
    import torch

    limit = min(256, encoder.facts["positions"])
    settings = choose("classify", 0, limit, encoder.facts, {"method": "head", "max_tokens": limit})
    task = ClassifyTask(tuple(labels), pooling=encoder.pooling)
    model = TaskModel(encoder, task, settings)
    names = task.windows(_as_examples({label: words_of(label) for label in labels}), model.tokenizer, limit)
    kept = Kept(model, names)
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(kept.directions()) * (SHARPNESS / kept.size()))
    return model


def unreadable(encoder: Encoder, labels: Sequence[str]) -> list[str]:
    """Labels without a word, or with words that are mostly unknown to the encoder."""
    tokens = {label: text_ids(encoder.tokenizer, words_of(label))[0] for label in labels}
    return [
        label for label, ids in tokens.items() if not ids or 2 * ids.count(encoder.tokenizer.unk_token_id) >= len(ids)
    ]


def _as_examples(named: Mapping[str, str]) -> list[Classified]:
    return [Classified(words, (label,)) for label, words in named.items()]


def _right(model: TaskModel, names: Sequence[Window], texts: Sequence[Window]) -> float:
    """The share of texts that lie nearest to their label's name, as a mean over the labels."""
    likeness = Kept(model, texts).directions() @ Kept(model, names).directions().T
    # A name that is near to everything says nothing.
    nearest = (likeness - likeness.mean(axis=0)).argmax(axis=1)
    said = np.array([one.targets[0] for one in names])[nearest]
    gold = np.array([one.targets[0] for one in texts])
    return float(np.mean([(said[gold == one] == one).mean() for one in np.unique(gold)]))
