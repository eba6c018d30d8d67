"""Adversarial training on the embeddings: what it does for inputs with typos or in other words, and what it costs.

The default model learns the intents of bitext's clean messages, once plainly and once with each kind of adversarial
training, and is tested on messages of three sorts, none of which it has seen: clean ones, those with the flag Z
(errors and typos), and those with the flag Q (colloquial wording) and not Z. Flags are those of Bitext's datasets for
customer support. Noisy messages exist for some of the intents only, so that the sorts are to be compared between
kinds of training and not with each other. One seed. Part of `make bench-tuning`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.llm.prompt.render import Renderer
from agent.llm.weights import load as weights
from agent.llm.weights.catalog import DEFAULT_MODEL
from agent.llm.weights.precision import faster_precision
from tests.bench import tuning_sets
from tests.bench.continual import SETTINGS, accuracy_of, load_base
from tuner.training.trainer import train

KINDS = ("none", "freelb")
SORTS = ("clean", "typos", "colloquial")
TRAINED_ON, TESTED_ON = 8, 135
"""Messages of each intent, and of each sort."""


def measure(
    data: Path, home: Path, *, trained_on: int = TRAINED_ON, tested_on: int = TESTED_ON
) -> tuple[dict[str, float | None], list[dict[str, Any]]]:
    """Metrics and a row for each kind: the accuracy on each sort of input, and the seconds of the training."""
    base = weights.resolve_model(DEFAULT_MODEL, home / "models", progress=lambda text: None)
    renderer = Renderer(weights.load_tokenizer(base))
    rows = tuning_sets.bitext(data)
    labels = sorted({intent for _, _, intent in rows})
    examples = {
        name: tuning_sets.labelled(renderer, "intent", "Say what the customer wants.", labels, chosen)
        for name, chosen in choose(rows, labels, trained_on, tested_on).items()
    }
    settings = replace(SETTINGS, precision=faster_precision("cpu"))
    # A training that is not counted, so that none of the others pays for what is imported and made once.
    train(load_base(base), examples["train"][:2], [], replace(settings, epochs=1), folder=home / "noise" / "first")
    metrics: dict[str, float | None] = {}
    found: list[dict[str, Any]] = []
    for kind in KINDS:
        folder = home / "noise" / kind
        trained = train(load_base(base), examples["train"], [], replace(settings, adversarial=kind), folder=folder)
        accuracy = {sort: accuracy_of(base, folder, examples[sort]) for sort in SORTS}
        tested = {sort: len(examples[sort]) for sort in SORTS}
        found.append(
            {
                "adversarial": kind,
                "accuracy": accuracy,
                "tested": tested,
                "examples": len(examples["train"]),
                "seconds": trained.seconds,
                "cost_ratio": trained.seconds / found[0]["seconds"] if found else 1.0,
            }
        )
        noisy = [sort for sort in SORTS if sort != "clean"]
        right = sum(accuracy[sort] * tested[sort] for sort in noisy)
        metrics[f"clean_accuracy_{kind}"] = accuracy["clean"]
        metrics[f"noisy_accuracy_{kind}"] = right / sum(tested[sort] for sort in noisy)
        if kind != "none":
            metrics[f"cost_ratio_{kind}"] = found[-1]["cost_ratio"]
        print(found[-1], file=sys.stderr, flush=True)
    return metrics, found


def choose(
    rows: Sequence[tuple[str, str, str]], labels: Sequence[str], trained_on: int, tested_on: int
) -> dict[str, list[tuple[str, str]]]:
    """Messages with their intents: "train", `trained_on` of each intent, and each of `SORTS`, `tested_on` in all."""
    sorts: dict[str, list[tuple[str, str]]] = {sort: [] for sort in SORTS}
    for flags, text, intent in rows:
        sorts["typos" if "Z" in flags else "colloquial" if "Q" in flags else "clean"].append((text, intent))
    even = {sort: tuning_sets.evenly(messages, labels) for sort, messages in sorts.items()}
    train = even["clean"][: trained_on * len(labels)]
    known = {text.casefold() for text, _ in train}
    return {
        "train": train,
        **{
            sort: [one for one in messages if one[0].casefold() not in known][:tested_on]
            for sort, messages in even.items()
        },
    }
