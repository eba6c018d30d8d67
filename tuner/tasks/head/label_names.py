"""Uses the names of labels as examples of them: "card arrival" is a first message about the arrival of a card.

With few texts per class the names help more than the texts; with many they do no harm. Names without words, such as
numbers, are left out, and all names where they do not tell the training texts apart. Without any example a text gets
the label with the nearest name.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tuner.tasks.data.records import ClassifyExample
from tuner.tasks.head.classify import ClassifyTask
from tuner.tasks.head.linear_probe import FrozenFeatures
from tuner.tasks.head.model import LoadedEncoder, TaskModel
from tuner.tasks.head.token_alignment import text_ids
from tuner.tasks.head.windows import NO_EXAMPLE, Window
from tuner.tasks.settings import choose

MIN_SKILL = 0.1
"""Accuracy that names must have, from 0, chance, to 1, always right."""
SHARPNESS = 20.0
"""Factor of the cosine of text and name, by which the scores of labels become probabilities."""
MAX_TEXTS = 500
"""Training texts that names are tried on."""


def label_words(label: str) -> str:
    """Return a label as words, "cancel order" for "cancelOrder" or "cancel_order"; "" for a label without words."""
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label)
    words = re.findall(r"[^\W_]+", split)
    return " ".join(words).lower() if any(len(word) > 1 and word.isalpha() for word in words) else ""


def label_name_windows(model: TaskModel, examples: Sequence[ClassifyExample]) -> tuple[list[Window], float]:
    """Return a window for the name of each label, and the accuracy of the names alone, the mean over the labels.

    There are no windows for multi-label tasks and pairs, and where the names do not tell the texts apart.
    """
    task = model.task
    if not isinstance(task, ClassifyTask) or task.multi or any(example.pair is not None for example in examples):
        return [], 0.0
    named = {label: words for label in task.labels if (words := label_words(label))}
    texts = [example for example in examples if example.labels[0] in named]
    if len(named) < 2 or not texts:
        return [], 0.0
    texts = random.Random(model.settings.seed).sample(texts, min(MAX_TEXTS, len(texts)))
    limit = model.settings.max_tokens
    names = task.windows(_as_examples(named), model.tokenizer, limit)
    accuracy = _nearest_name_accuracy(model, names, task.windows(texts, model.tokenizer, limit))
    chance = 1 / len(names)
    if (accuracy - chance) / (1 - chance) < MIN_SKILL:
        return [], accuracy
    return [replace(name, example=NO_EXAMPLE) for name in names], accuracy


def label_name_model(encoder: LoadedEncoder, labels: Sequence[str]) -> TaskModel:
    """Return an untrained classifier that gives each text the label with the nearest name; all must have words."""
    import torch

    limit = min(256, encoder.sizes["positions"])
    settings = choose("classify", 0, limit, encoder.sizes, {"method": "head", "max_tokens": limit})
    task = ClassifyTask(tuple(labels), pooling=encoder.pooling)
    model = TaskModel(encoder, task, settings)
    names = task.windows(_as_examples({label: label_words(label) for label in labels}), model.tokenizer, limit)
    features = FrozenFeatures(model, names)
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(features.unit_vectors()) * (SHARPNESS / features.mean_norm()))
    return model


def unreadable_labels(encoder: LoadedEncoder, labels: Sequence[str]) -> list[str]:
    """Return the labels without words, or with words that the encoder mostly does not know."""
    unknown = encoder.tokenizer.unk_token_id
    tokens = {label: text_ids(encoder.tokenizer, label_words(label))[0] for label in labels}
    return [label for label, ids in tokens.items() if not ids or 2 * ids.count(unknown) >= len(ids)]


def _as_examples(named: Mapping[str, str]) -> list[ClassifyExample]:
    return [ClassifyExample(words, (label,)) for label, words in named.items()]


def _nearest_name_accuracy(model: TaskModel, names: Sequence[Window], texts: Sequence[Window]) -> float:
    """The share of texts nearest to the name of their label, as a mean over the labels."""
    cosines = FrozenFeatures(model, texts).unit_vectors() @ FrozenFeatures(model, names).unit_vectors().T
    # A name that is near to every text does not tell them apart.
    nearest = (cosines - cosines.mean(axis=0)).argmax(axis=1)
    predicted = np.array([name.targets[0] for name in names])[nearest]
    gold = np.array([text.targets[0] for text in texts])
    return float(np.mean([(predicted[gold == label] == label).mean() for label in np.unique(gold)]))
