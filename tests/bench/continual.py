"""Three rounds on three skills: what an adapter that goes on forgets, with replay of earlier tasks and without.

Each round adds one skill: desks for the messages of BANKING77, intents of bitext, relations of SemEval 2010 task 8.
It starts from the adapter of the round before and learns the new skill's examples and, with replay, a share of the
earlier ones, chosen to cover them. After every round every skill met so far is tested on messages of its own: right
is what greedy decoding would say whole, told from one pass over the target tokens. Part of `make bench-tuning`.
"""

from __future__ import annotations

import csv
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agent.config.settings import TuningSettings
from agent.encoders.encoder import SentenceEncoder
from agent.llm.prompt.render import Renderer
from agent.llm.weights import load as weights
from agent.llm.weights.catalog import DEFAULT_ENCODER, DEFAULT_MODEL
from tests.bench import tuning_sets
from tuner.data.replay import cover
from tuner.training.trainer import train
from tuner.tree.packing import Example

TRAINED_ON, TESTED_ON, LABELS = 120, 100, 20
REPLAY = 0.5
SETTINGS = TuningSettings(epochs=4, min_steps=1, batch_targets=40, patience=0, learning_rate=1e-3)


@dataclass(frozen=True)
class Skill:
    """What one round teaches."""

    name: str
    texts: list[str]
    train: list[Example]
    test: list[Example]


def measure(data: Path, home: Path) -> tuple[dict[str, float | None], list[dict[str, Any]]]:
    """Metrics and rows: the accuracy of every skill after every round, either way."""
    base = weights.resolve_model(DEFAULT_MODEL, home / "models", progress=lambda text: None)
    encoder = SentenceEncoder(
        weights.resolve_encoder(DEFAULT_ENCODER, home / "models", progress=lambda text: None), name=DEFAULT_ENCODER
    )
    skills = _skills(Renderer(weights.load_tokenizer(base)), data)
    vectors = {skill.name: encoder.encode(skill.texts) for skill in skills}
    rows: list[dict[str, Any]] = []
    metrics: dict[str, float | None] = {}
    for share, name in ((0.0, "without"), (REPLAY, "with")):
        accuracy: dict[tuple[int, str], float] = {}
        parent: Path | None = None
        for number, skill in enumerate(skills):
            examples = list(skill.train)
            for earlier in skills[:number]:
                examples += [earlier.train[place] for place in cover(vectors[earlier.name], round(share * TRAINED_ON))]
            folder = home / "continual" / f"{name}-{number}"
            started = time.perf_counter()
            train(load_base(base), examples, [], SETTINGS, folder=folder, start_from=parent)
            seconds = time.perf_counter() - started
            for met in skills[: number + 1]:
                accuracy[number, met.name] = accuracy_of(base, folder, met.test)
                rows.append(
                    {
                        "replay": share,
                        "round": number + 1,
                        "taught": skill.name,
                        "tested": met.name,
                        "accuracy": accuracy[number, met.name],
                        "examples": len(examples),
                        "seconds": seconds,
                    }
                )
                print(rows[-1], file=sys.stderr, flush=True)
            parent = folder
        last = len(skills) - 1
        lost = [accuracy[number, skill.name] - accuracy[last, skill.name] for number, skill in enumerate(skills[:-1])]
        metrics[f"retention_loss_points_{name}_replay"] = 100 * float(np.mean(lost))
        metrics[f"retention_worst_loss_points_{name}_replay"] = 100 * max(lost)
    return metrics, rows


def _skills(renderer: Renderer, data: Path) -> list[Skill]:
    with (data / "banking77" / "train.csv").open(encoding="utf-8", newline="") as file:
        banking = [(row["text"], row["category"]) for row in csv.DictReader(file)]
    bitext = [(text, intent) for _, text, intent in tuning_sets.bitext(data)]
    text = (data / "semeval2010t8" / "TRAIN_FILE.TXT").read_text(encoding="utf-8")
    found = re.findall(r'^\d+\t"(.*)"\r?\n(\w[\w-]*)', text, re.MULTILINE)
    relations = [(sentence, label.split("(")[0]) for sentence, label in found]
    return [
        _skill(renderer, "desk", "Send the message to the desk that handles it.", banking),
        _skill(renderer, "intent", "Say what the customer wants.", bitext),
        _skill(renderer, "relation", "Say how the two marked things are related.", relations),
    ]


def _skill(renderer: Renderer, name: str, instruction: str, labelled: Sequence[tuple[str, str]]) -> Skill:
    """The first labels by name; the same number of examples for each, as far as there are."""
    labels = sorted({label for _, label in labelled})[:LABELS]
    chosen = tuning_sets.evenly(labelled, labels)[: TRAINED_ON + TESTED_ON]
    examples = tuning_sets.labelled(renderer, name, instruction, labels, chosen)
    texts = [text for text, _ in chosen[:TRAINED_ON]]
    return Skill(name, texts, examples[:TRAINED_ON], examples[TRAINED_ON:])


def load_base(base: weights.ModelFolder) -> Any:
    """Fresh weights, in float32."""
    return weights.load_model(base, device="cpu", dtype="float32", threads=0)


def accuracy_of(base: weights.ModelFolder, adapter: Path, examples: Sequence[Example]) -> float:
    """The share of examples all of whose targets are the likeliest token."""
    import torch
    from peft import PeftModel

    model = PeftModel.from_pretrained(load_base(base), str(adapter)).eval()
    right = 0
    with torch.inference_mode():
        for one in examples:
            ids = torch.tensor([one.ids])
            places = torch.tensor([place for place, said in enumerate(one.targets) if said and place])
            logits = model(input_ids=ids, logits_to_keep=places - 1, use_cache=False).logits[0]
            right += bool((logits.argmax(-1) == ids[0, places]).all())
    return right / len(examples)
