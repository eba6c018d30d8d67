"""transformers' `Trainer` as a side of the benchmark: with labels at the first token of a word, and word by word."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.config.project import Project
from tests.bench.tasks_plan import Plan, Row
from tests.bench.tasks_sets import Predict
from tests.bench.tasks_ways import Trained
from tuner.tasks.data.splits import Splits


def trainer(splits: Splits, plan: Plan, project: Project) -> Trained:
    """transformers' `Trainer` with its own heads, and our epochs, batch, rate and seed; the last epoch is taken.

    Tokens are cut as ours are, labels at the first token of a word as its documentation has it; of a relation the
    marked sentence is read by the head for sequences.
    """
    model, seconds, size = _by_trainer(_features(splits.train, plan), plan)
    return _theirs(model, lambda examples: _their_predictions(model, examples, plan), plan, seconds, size)


def misaligned(splits: Splits, plan: Plan, project: Project) -> Trained:
    """The same with labels as they are often laid out: the tag of word n at token n, and O behind the last word.

    Nothing is ignored in the loss, neither what pads nor what was meant for another token.
    """
    tokens = plan.encoder.tokenizer
    known, outside = {name: at for at, name in enumerate(plan.task.labels)}, plan.task.labels.index("O")
    limit = plan.settings.max_tokens

    def inputs(one: Any) -> Row:
        return dict(tokens(one.text, truncation=True, padding="max_length", max_length=limit))

    def labels(one: Any) -> list[int]:
        return ([known.get(tag, outside) for tag in one.tags] + [outside] * limit)[:limit]

    model, seconds, size = _by_trainer([inputs(one) | {"labels": labels(one)} for one in splits.train], plan)

    def predict(examples: Sequence[Any]) -> list[Any]:
        return [
            _entities(one, [plan.task.labels[at] for at in _argmax(model, inputs(one))[: len(one.offsets)]])
            for one in examples
        ]

    def padded_accuracy(examples: Sequence[Any]) -> float:
        """What such a script reports: the share of all positions that are right, padding too."""
        right = sum(
            said == label
            for one in examples
            for said, label in zip(_argmax(model, inputs(one)), labels(one), strict=True)
        )
        return right / (limit * len(examples))

    made = _theirs(model, predict, plan, seconds, size)
    return replace(made, more={"padded_accuracy": round(padded_accuracy(splits.test), 4)})


def _argmax(model: Any, inputs: Row) -> list[int]:
    import torch

    with torch.inference_mode():
        given = model(**{name: torch.tensor([values]) for name, values in inputs.items()}).logits[0]
    return [int(at) for at in given.argmax(-1)]


def _by_trainer(features: Sequence[Row], plan: Plan) -> tuple[Any, float, int]:
    """The trained model, the seconds, and the bytes of its checkpoint."""
    from transformers import Trainer, TrainingArguments

    model: Any = _their_model(plan)
    settings = plan.settings
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            warmup_steps=settings.warmup,
            seed=settings.seed,
            use_cpu=True,
            bf16=settings.precision == "mixed",
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=features, data_collator=_Collator(plan))  # type: ignore[arg-type]
        started = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - started
        model.save_pretrained(folder)
        size = sum(one.stat().st_size for one in Path(folder).glob("*.safetensors"))
    model.eval()
    return model, seconds, size


def _theirs(model: Any, predict: Predict, plan: Plan, seconds: float, size: int) -> Trained:
    count = sum(one.numel() for one in model.parameters() if one.requires_grad)
    return Trained(predict, plan.task, seconds, count, size)


def _their_model(plan: Plan) -> Any:
    import torch
    from transformers import (
        AutoModelForQuestionAnswering,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )

    kinds: dict[str, Any] = {"tag": AutoModelForTokenClassification, "answer": AutoModelForQuestionAnswering}
    torch.manual_seed(plan.settings.seed)
    return kinds.get(plan.task.name, AutoModelForSequenceClassification).from_pretrained(
        str(plan.folder), num_labels=plan.task.outputs, local_files_only=True
    )


class _Collator:
    """Features padded to the longest; labels of tokens with what the loss ignores."""

    def __init__(self, plan: Plan) -> None:
        self._padding = {"input_ids": int(plan.encoder.tokenizer.pad_token_id), "labels": -100}

    def __call__(self, features: Sequence[Row]) -> Row:
        import torch

        made = {}
        for name, first in features[0].items():
            values = [one[name] for one in features]
            if isinstance(first, list):
                longest = max(map(len, values))
                values = [[*one, *[self._padding.get(name, 0)] * (longest - len(one))] for one in values]
            made[name] = torch.tensor(values)
        return made


def _features(examples: Sequence[Any], plan: Plan) -> list[Row]:
    task, limit = plan.task, plan.settings.max_tokens
    made = []
    for one in task.windows(examples, plan.encoder.tokenizer, limit):
        row: Row = _inputs(one)
        targets = [int(value) for value in one.targets]
        if task.name == "answer":
            row |= {"start_positions": targets[0], "end_positions": targets[1]}
        elif targets:
            row["labels"] = targets if task.name == "tag" else targets[0]
        made.append(row)
    return made


def _inputs(window: Any) -> Row:
    return {
        "input_ids": list(window.ids),
        "attention_mask": [1] * len(window.ids),
        "token_type_ids": [int(at >= window.second) for at in range(len(window.ids))],
    }


def _their_predictions(model: Any, examples: Sequence[Any], plan: Plan) -> list[Any]:
    """Read out as ours are, but for tags, of which each word gets its likeliest."""
    import torch

    task = plan.task
    windows = task.windows(examples, plan.encoder.tokenizer, plan.settings.max_tokens)
    collate = _Collator(plan)
    scores = []
    with torch.inference_mode():
        for start in range(0, len(windows), 64):
            chosen = windows[start : start + 64]
            given = model(**collate([_inputs(one) for one in chosen]))
            made = torch.stack((given.start_logits, given.end_logits), -1) if task.name == "answer" else given.logits
            scores += [
                row[: len(one.ids)] if row.ndim == 2 else row for row, one in zip(made.numpy(), chosen, strict=True)
            ]
    return (
        _likeliest(examples, windows, scores, plan) if task.name == "tag" else task.predict(examples, windows, scores)
    )


def _likeliest(examples: Sequence[Any], windows: Sequence[Any], scores: Sequence[Any], plan: Plan) -> list[Any]:
    tags = [["O"] * len(one.offsets) for one in examples]
    for window, given in zip(windows, scores, strict=True):
        for at, word in enumerate(window.words):
            if word >= 0:
                tags[window.example][word] = plan.task.labels[int(given[at].argmax())]
    return [_entities(one, told) for one, told in zip(examples, tags, strict=True)]


def _entities(one: Any, tags: Sequence[str]) -> Any:
    """A sentence with these tags; words behind the last have none."""
    from tuner.tasks.data.words import spans_from_tags
    from tuner.tasks.predictions import EntityPrediction

    told = [*tags, *["O"] * (len(one.offsets) - len(tags))]
    return EntityPrediction(one.text, tuple(spans_from_tags(one.offsets, told)), tuple(told), 1.0)
