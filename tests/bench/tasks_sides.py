"""Who is measured on the classic tasks: our methods, and what others would take for them.

Each side is run alone in its process, so that its peak of memory is its own.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from agent.settings import Project
from tests.bench.tasks_sets import SETS, Predict, noisy
from tests.bench.tasks_ways import NEIGHBOURS, SHOTS, TENTHS, Trained, asked, tenth
from tests.bench.tasks_written import sides_of, written
from tuner.memory import peak_bytes
from tuner.tasks.data.records import WRITTEN
from tuner.tasks.data.splits import Splits
from tuner.tasks.head.kinds import Task
from tuner.tasks.settings import ADVERSARIAL, METHODS, TaskSettings

Row = dict[str, Any]
OURS = (*METHODS, *(f"{method}+{kind}" for method in METHODS for kind in ADVERSARIAL[1:]))
"""A method, and how it is made to bear noise."""
WAYS = (*SHOTS, *TENTHS)
USUAL = ("head", "lora", "full", "full+typos", "lora+fgm", "lora+freelb")
"""Our methods on a head, unless others are named."""
RATE, BATCH = 2e-5, 16
"""SetFit's own."""


def run(name: str, method: str, splits: Splits, seed: int, settings: Row, project: Project, data: Path) -> Row:
    """Train one side on a set and measure it. Raises ValueError for a side that does not do the set's task."""
    task = SETS[name].task
    if task in WRITTEN:
        made, more = written(name, method, splits, seed, settings, project)
    elif method in OURS:
        made, more = _ours(name, method, splits, seed, settings, project)
    elif method in WAYS:
        made, more = _by_way(name, method, splits, seed, settings, project, data), {}
    elif task not in PEERS[method]:
        raise ValueError(f"{method} does not do {task}; expected one of {', '.join(peers_of(name))}")
    else:
        made = _PEERS[method](splits, plan(name, splits, seed, settings, project), project)
        more = made.more
    peak = peak_bytes()
    started = time.monotonic()
    scores = made.task.measure(splits.test, made.predict(splits.test))
    seconds = time.monotonic() - started
    found = (
        {} if task in ("answer", *WRITTEN) else {kind: made.predict(some) for kind, some in noisy(splits.test).items()}
    )
    return {
        "main": scores.main,
        "figures": {figure: _rounded(one) for figure, one in scores.figures.items()},
        "noisy": {
            kind: _rounded(made.task.measure(noisy(splits.test)[kind], said).figures[scores.main])
            for kind, said in found.items()
        },
        "train": len(splits.train),
        "test": len(splits.test),
        "seconds": round(made.seconds, 1),
        "test_seconds": round(seconds, 1),
        "peak_gib": round(peak / 2**30, 2),
        "parameters": made.parameters,
        "checkpoint_bytes": made.checkpoint_bytes,
        **more,
    }


def peers_of(name: str) -> list[str]:
    """Who is compared with on a set."""
    return [peer for peer, tasks in PEERS.items() if SETS[name].task in tasks]


def usual_of(name: str) -> list[str]:
    """What is measured on a set where no method is named."""
    return sides_of(name) if SETS[name].task in WRITTEN else [*USUAL, *peers_of(name)]


@dataclass(frozen=True)
class Plan:
    """What all sides of a set share: the encoder's folder, the task, and our settings for tuning all weights."""

    folder: Path
    encoder: Any
    task: Task
    settings: TaskSettings
    default: str
    """The method that is chosen where none is named."""


def plan(name: str, splits: Splits, seed: int, settings: Row, project: Project) -> Plan:
    from agent.llm.weights import encoder_weights
    from tuner.tasks.data.columns import Columns
    from tuner.tasks.head.fitting import planned
    from tuner.tasks.head.model import load_encoder

    base = encoder_weights(project.named(project.settings.model.encoder), project.home.models)
    encoder = load_encoder(base)
    given = SETS[name].task, splits, encoder, Columns()
    _, default = planned(*given, {})
    task, chosen = planned(*given, {**settings, "method": "full", "seed": seed})
    return Plan(base.folder, encoder, task, chosen, default.method)


def _ours(name: str, method: str, splits: Splits, seed: int, settings: Row, project: Project) -> tuple[Trained, Row]:
    from tuner.tasks.data.columns import Columns
    from tuner.tasks.head.fitting import fit

    way, _, adversarial = method.partition("+")
    planned = plan(name, splits, seed, settings, project)
    given = {"method": way, "adversarial": adversarial or "none", "seed": seed, **({} if way == "head" else settings)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "made"
        made = fit(SETS[name].task, splits, None, out, "bench", project, Columns(), _note, _tell, given)
        size = (out / "adapter_model.safetensors").stat().st_size
    trained = Trained(made.predictor.predict, planned.task, made.trained.seconds, made.trained.parameters, size)
    told = {
        "default": method == planned.default,
        "best_epoch": made.trained.best_epoch,
        "validation": round(made.trained.validation, 4),
        "epochs": made.trained.epochs,
    }
    return trained, told


def _by_way(name: str, method: str, splits: Splits, seed: int, settings: Row, project: Project, data: Path) -> Trained:
    task = plan(name, splits, seed, settings, project).task
    if method in SHOTS:
        return asked(task, method, splits, seed, project)
    if name in NEIGHBOURS:
        return tenth(name, task, method, splits, seed, settings, project, data)
    raise ValueError(f"{name} has no neighbour; expected one of {', '.join(NEIGHBOURS)}")


def _logistic_vectors(splits: Splits, plan: Plan, project: Project) -> Trained:
    from agent.memory.encoder import SentenceEncoder

    return _logistic(splits, plan, SentenceEncoder(plan.folder, name="bench").encode, lambda texts: None)


def _logistic_words(splits: Splits, plan: Plan, project: Project) -> Trained:
    from sklearn.feature_extraction.text import TfidfVectorizer

    counter = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    return _logistic(splits, plan, counter.transform, counter.fit)


def _logistic(
    splits: Splits, plan: Plan, read: Callable[[list[str]], Any], prepare: Callable[[list[str]], Any]
) -> Trained:
    from sklearn.linear_model import LogisticRegression

    started = time.monotonic()
    texts = [one.text for one in splits.train]
    prepare(texts)
    model = LogisticRegression(C=10, max_iter=1000).fit(read(texts), [one.labels[0] for one in splits.train])
    count = int(model.coef_.size + model.intercept_.size)

    def predict(examples: Sequence[Any]) -> list[Any]:
        return _labelled(model.predict(read([one.text for one in examples])))

    return Trained(predict, plan.task, time.monotonic() - started, count, count * model.coef_.itemsize)


def _setfit(splits: Splits, plan: Plan, project: Project) -> Trained:
    """Its own trainer and defaults, with as many texts through the encoder as our tuning of all weights has."""
    from datasets import Dataset  # type: ignore[import-untyped]
    from datasets.fingerprint import Hasher  # type: ignore[import-untyped]
    from setfit import SetFitModel, Trainer, TrainingArguments  # type: ignore[import-not-found]

    labels = list(plan.task.labels)
    model = SetFitModel.from_pretrained(str(plan.folder), labels=labels, local_files_only=True)
    steps = max(1, len(splits.train) * plan.settings.epochs // (2 * BATCH))
    # A name by which datasets knows a table again; 5.2 fails to pickle tables of pyarrow 26 for one.
    Hasher.hash = classmethod(lambda cls, value: uuid4().hex)
    rows = Dataset.from_dict(
        {"text": [one.text for one in splits.train], "label": [labels.index(one.labels[0]) for one in splits.train]}
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            batch_size=BATCH,
            body_learning_rate=RATE,
            max_steps=steps,
            seed=plan.settings.seed,
            report_to="none",
            save_strategy="no",
        )
        started = time.monotonic()
        Trainer(model=model, args=arguments, train_dataset=rows).train()
        seconds = time.monotonic() - started
        model.save_pretrained(folder)
        size = sum(one.stat().st_size for one in Path(folder).rglob("model*") if one.is_file())
    count = sum(one.numel() for one in model.model_body.parameters()) + int(model.model_head.coef_.size)

    def predict(examples: Sequence[Any]) -> list[Any]:
        return _labelled(model.predict([one.text for one in examples]))

    return Trained(predict, plan.task, seconds, count, size)


def _trainer(splits: Splits, plan: Plan, project: Project) -> Trained:
    """transformers' `Trainer` with its own heads, and our epochs, batch, rate and seed; the last epoch is taken.

    Tokens are cut as ours are, labels at the first token of a word as its documentation has it; of a relation the
    marked sentence is read by the head for sequences.
    """
    model, seconds, size = _by_trainer(_features(splits.train, plan), plan)
    return _theirs(model, lambda examples: _their_predictions(model, examples, plan), plan, seconds, size)


def _misaligned(splits: Splits, plan: Plan, project: Project) -> Trained:
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
    from tuner.tasks.data.words import spans_of
    from tuner.tasks.predictions import Entities

    told = [*tags, *["O"] * (len(one.offsets) - len(tags))]
    return Entities(one.text, tuple(spans_of(one.offsets, told)), tuple(told), 1.0)


def _labelled(labels: Sequence[Any]) -> list[Any]:
    from tuner.tasks.predictions import Labelled

    return [Labelled((str(label),), 1.0, {}) for label in labels]


def _rounded(one: Any) -> list[float]:
    return [round(value, 4) for value in (one.mean, one.low, one.high)]


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _tell(progress: Any) -> None:
    if progress.validation is not None:
        _note(f"epoch {progress.epoch + 1}, loss {progress.loss:.3f}, validation {progress.validation.value:.4f}")


PEERS: dict[str, tuple[str, ...]] = {
    "logistic_vectors": ("classify",),
    "logistic_words": ("classify",),
    "setfit": ("classify",),
    "trainer": ("classify", "tag", "relate", "answer"),
    "misaligned": ("tag",),
    "lead": ("summarise",),
    "nearest": ("converse",),
}
"""Logistic regression on the vectors of the same encoder, and on TF-IDF; SetFit; transformers' Trainer, and with its
labels laid out word by word; the first sentences of a text; the answer to the question most like the last one."""
_PEERS: dict[str, Callable[[Splits, Plan, Project], Trained]] = {
    "logistic_vectors": _logistic_vectors,
    "logistic_words": _logistic_words,
    "setfit": _setfit,
    "trainer": _trainer,
    "misaligned": _misaligned,
}
