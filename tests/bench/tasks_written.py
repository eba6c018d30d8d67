"""The tasks that write, measured: the language model trained, as it is, shown examples, and what needs no model.

What needs none: of a text its first sentences, as many as summaries have; of a chat the answer to the training
question most like the last one, by the same encoder.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from agent.config.project import Project
from agent.text.sentences import split_sentences_by_line
from tests.bench.tasks_sets import SETS, Predict
from tests.bench.tasks_ways import SHOTS, Trained, asked, fitted, note, tell
from tuner.tasks.data.splits import Splits
from tuner.tasks.language.prompts import learn_prompt

TRAINED = ("lora", "full")
WITHOUT = {"lead": "summarise", "nearest": "converse"}
"""Sides without a model, and the task each does."""
METHODS = (*TRAINED, *SHOTS, *WITHOUT)


def sides_of(name: str) -> list[str]:
    """The methods that are measured on a set, the trained one that is the default first."""
    return [one for one in ("lora", *SHOTS, *WITHOUT) if WITHOUT.get(one, SETS[name].task) == SETS[name].task]


def written(
    name: str, method: str, splits: Splits, seed: int, settings: Mapping[str, Any], project: Project
) -> Trained:
    """Train or ask one side. Raises ValueError for a side that does not do the set's task."""
    task = SETS[name].task
    if WITHOUT.get(method, task) != task or method not in METHODS:
        raise ValueError(f"{method} does not do {task}; expected one of {', '.join(sides_of(name))}")
    asking = learn_prompt(task, splits.train)
    if method in SHOTS:
        return asked(asking, method, splits, seed, project)
    if method in WITHOUT:
        predict = lead(splits.train) if method == "lead" else _nearest(splits.train, project)
        return Trained(predict, asking, 0.0, 0, 0)
    from tuner.tasks.fit.language import train_language_model
    from tuner.tasks.fit.request import FitRequest

    given = {**settings, "method": method, "seed": seed}
    return fitted(
        asking,
        method == "lora",
        lambda out: train_language_model(
            FitRequest(task, splits, out, project, "bench", settings=given, say=note, on_progress=tell)
        ),
    )


def lead(examples: Sequence[Any]) -> Predict:
    """The first sentences of a text, as many as the summaries of these examples have in the middle."""
    from tuner.tasks.predictions import TextPrediction

    count = round(statistics.median(len(list(split_sentences_by_line(one.target))) for one in examples))
    return lambda asked: [
        TextPrediction(" ".join(islice(split_sentences_by_line(one.text), count)), 1.0) for one in asked
    ]


def _nearest(examples: Sequence[Any], project: Project) -> Predict:
    from agent.encoders.encoder import SentenceEncoder
    from agent.llm.weights.load import resolve_encoder
    from tuner.tasks.predictions import TextPrediction

    name = project.settings.model.encoder
    encoder = SentenceEncoder(resolve_encoder(project.named(name), project.home.models), name=name)
    known = encoder.encode([one.turns[-1].text for one in examples])

    def predict(asked: Sequence[Any]) -> list[Any]:
        found = np.argmax(encoder.encode([one.turns[-1].text for one in asked]) @ known.T, axis=1)
        return [TextPrediction(examples[at].answer, 1.0) for at in found]

    return predict
