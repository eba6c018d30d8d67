"""Who is measured on the classic tasks: our methods, and what others would take for them.

Each side is run alone in its process, so that its peak of memory is its own.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from agent.config.project import Project
from tests.bench.tasks_plan import Plan, Row, plan
from tests.bench.tasks_sets import SETS, noisy
from tests.bench.tasks_trainer import misaligned, trainer
from tests.bench.tasks_ways import NAMES, NEIGHBOURS, SHOTS, TENTHS, Trained, asked, fitted, note, tell, tenth
from tests.bench.tasks_written import sides_of, written
from tuner.tasks.data.records import WRITTEN
from tuner.tasks.data.splits import Splits
from tuner.tasks.settings import ADVERSARIAL, METHODS
from tuner.training.memory_budget import peak_bytes

OURS = (*METHODS, *(f"{method}+{kind}" for method in METHODS for kind in ADVERSARIAL[1:]))
"""A method, and how it is made to bear noise."""
WAYS = (NAMES, *SHOTS, *TENTHS)
USUAL = ("head", "lora", "full", "full+typos", "lora+fgm", "lora+freelb")
"""Our methods on a head, unless others are named."""
RATE, BATCH = 2e-5, 16
"""SetFit's own."""


def run(name: str, method: str, splits: Splits, seed: int, settings: Row, project: Project, data: Path) -> Row:
    """Train one side on a set and measure it. Raises ValueError for a side that does not do the set's task."""
    task = SETS[name].task
    if task in WRITTEN:
        made = written(name, method, splits, seed, settings, project)
    elif method in OURS:
        made = _ours(name, method, splits, seed, settings, project)
    elif method in WAYS:
        made = _by_way(name, method, splits, seed, settings, project, data)
    elif task not in PEERS[method]:
        raise ValueError(f"{method} does not do {task}; expected one of {', '.join(peers_of(name))}")
    else:
        made = _PEERS[method](splits, plan(name, splits, seed, settings, project), project)
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
        **made.more,
    }


def peers_of(name: str) -> list[str]:
    """Who is compared with on a set."""
    return [peer for peer, tasks in PEERS.items() if SETS[name].task in tasks]


def usual_of(name: str) -> list[str]:
    """What is measured on a set where no method is named."""
    return sides_of(name) if SETS[name].task in WRITTEN else [*USUAL, *peers_of(name)]


def _ours(name: str, method: str, splits: Splits, seed: int, settings: Row, project: Project) -> Trained:
    from tuner.tasks.fit.head import train_head
    from tuner.tasks.fit.request import FitRequest

    way, _, adversarial = method.partition("+")
    planned = plan(name, splits, seed, settings, project)
    given = {"method": way, "adversarial": adversarial or "none", "seed": seed, **({} if way == "head" else settings)}
    return fitted(
        planned.task,
        method == planned.default,
        lambda out: train_head(
            FitRequest(SETS[name].task, splits, out, project, "bench", settings=given, say=note, on_progress=tell)
        ),
    )


def _by_way(name: str, method: str, splits: Splits, seed: int, settings: Row, project: Project, data: Path) -> Trained:
    task = plan(name, splits, seed, settings, project).task
    if method in (NAMES, *SHOTS):
        return asked(task, method, splits, seed, project)
    if name in NEIGHBOURS:
        return tenth(name, task, method, splits, seed, settings, project, data)
    raise ValueError(f"{name} has no neighbour; expected one of {', '.join(NEIGHBOURS)}")


def _logistic_vectors(splits: Splits, plan: Plan, project: Project) -> Trained:
    from agent.encoders.encoder import SentenceEncoder

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


def _labelled(labels: Sequence[Any]) -> list[Any]:
    from tuner.tasks.predictions import LabelPrediction

    return [LabelPrediction((str(label),), 1.0, {}) for label in labels]


def _rounded(one: Any) -> list[float]:
    return [round(value, 4) for value in (one.mean, one.low, one.high)]


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
    "trainer": trainer,
    "misaligned": misaligned,
}
