"""Opens tasks without training: a language model with or without few-shot examples, or the encoder by label names.

Without examples the encoder classifies better, and in milliseconds: a text gets the label with the nearest name.

from tuner.tasks.fit.zero_shot import open_untrained

predictor = open_untrained("classify", labels=["delivery", "refund"])
print(predictor.predict(["Where is my parcel?"]))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from agent.config.project import Project, find_project
from agent.errors import DatasetError
from agent.llm.weights.load import kind_of
from tuner.tasks.data.records import TASKS, WRITTEN, ClassifyExample, TaskName
from tuner.tasks.data.splits import Splits
from tuner.tasks.head.tasks import HEAD_TASKS
from tuner.tasks.language.few_shot import CoverageExamples, FewShotSelector, SimilarExamples
from tuner.tasks.metrics import TaskScores
from tuner.tasks.predictor import Say, TaskPredictor, draw_examples, ignore
from tuner.tasks.settings import CHOICES, Choice

ModelKind = Literal["head", "generation"]
"""A head on an encoder, or a language model; the values of `way` in `task.json`."""


def choose_model_kind(task: TaskName, model: str | None, project: Project, *, say: Say = ignore) -> ModelKind:
    """Choose a head or a language model: by the named model, else by the task.

    Raises:
        DatasetError: The model cannot do the task.
        WeightsError: There is no such model.
    """
    if model is None:
        return "generation" if task in WRITTEN else "head"
    if kind_of(project.named(model), progress=say) == "model":
        return "generation"
    if task not in HEAD_TASKS:
        raise DatasetError(
            f"{model} is an encoder, and task {task} writes text; name a language model with --model, or leave it out "
            f"for {project.settings.model.base}"
        )
    return "head"


def open_untrained(
    task: TaskName,
    splits: Splits | None = None,
    *,
    model: str | None = None,
    few_shot: int = 0,
    selection: Choice = "similar",
    labels: Sequence[str] = (),
    into: str = "",
    seed: int = 0,
    project: Project | None = None,
    say: Say = ignore,
) -> TaskPredictor:
    """Open a language model for a task without training.

    Without few-shot examples and a named language model, the encoder classifies by the names of the labels, if it knows
    their words and a text has one label.

    Args:
        splits: Training examples for the few-shot examples, the labels and the language.
        model: Name of a language model or encoder; by default that of the project.
        few_shot: Number of training examples in front of each text.
        selection: Which ones: the most similar, or some of each label.
        labels: Needed where no examples show them.
        into: Language to translate into; needed where no examples show it.

    Raises:
        DatasetError: The task lacks labels or a language, or the encoder cannot do it.
        WeightsError: The model cannot be loaded.
    """
    from agent.llm.weights.load import resolve_model
    from tuner.tasks.fit.language_folder import load_served
    from tuner.tasks.language.generation import Generator, choose_budget
    from tuner.tasks.language.prompts import learn_prompt

    project = project or find_project(Path.cwd())
    examples = splits.train if splits is not None else []
    if task == "classify" and not few_shot and (model is None or kind_of(project.named(model)) == "encoder"):
        by_names = _classifier_by_names(examples, labels, model, project, say)
        if by_names is not None:
            return by_names
    _check(task, model, selection, project)
    prompt = learn_prompt(task, examples, labels=labels, into=into)
    if task == "translate" and not prompt.options()["into"]:
        raise DatasetError(
            "the language to translate into is unknown; name the language with --into, such as --into German"
        )
    base = resolve_model(project.named(model or project.settings.model.base), project.home.models, progress=say)
    selector = _make_selector(examples, few_shot, selection, seed, project)
    served = load_served(base, project)
    budget = choose_budget(prompt, examples, served.renderer, served.engine.context)
    return TaskPredictor(Generator(served, prompt, budget, few_shot=selector, say=say), None)


def measure(predictor: TaskPredictor, splits: Splits, *, most: int | None = None, seed: int = 0) -> TaskScores:
    """Measure a predictor on the test examples, or on `most` of them, drawn by seed."""
    return predictor.evaluate(draw_examples(splits.test, most, seed))


def _classifier_by_names(
    examples: Sequence[ClassifyExample], labels: Sequence[str], encoder: str | None, project: Project, say: Say
) -> TaskPredictor | None:
    """The encoder with the labels' names as its head; None where a language model is needed.

    Raises DatasetError where the user named the encoder and it cannot classify.
    """
    from agent.llm.weights.load import encoder_weights
    from tuner.tasks.head.label_names import label_name_model, unreadable_labels
    from tuner.tasks.head.model import load_encoder

    names = tuple(labels) or tuple(sorted({label for example in examples for label in example.labels}))
    is_single_label = all(len(example.labels) == 1 and example.pair is None for example in examples)
    if len(names) < 2 or (encoder is None and not is_single_label):
        return None
    base = encoder_weights(project.named(encoder or project.settings.model.encoder), project.home.models, progress=say)
    loaded = load_encoder(base)
    unreadable = unreadable_labels(loaded, names)
    if is_single_label and not unreadable:
        say(
            f"untrained: a text gets the label of {len(names)} whose name is nearest by {base.name}; give --shots or a "
            "language model as --model to ask that one"
        )
        return TaskPredictor(label_name_model(loaded, names), None)
    if encoder is None:
        return None
    fault = (
        f"the label {unreadable[0]!r} is no word that {base.name} knows"
        if unreadable
        else "texts are pairs, or have several labels"
    )
    raise DatasetError(
        f"{fault}, so they cannot be classified by the names of labels; train a head (ratchet task train classify), or "
        f"name a language model, such as {project.settings.model.base}"
    )


def _check(task: TaskName, model: str | None, selection: str, project: Project) -> None:
    if task not in TASKS:
        raise DatasetError(f"there is no task {task!r}; expected one of {', '.join(TASKS)}")
    if selection not in CHOICES:
        raise DatasetError(f"few-shot examples are selected by {selection!r}; expected {' or '.join(CHOICES)}")
    if model is not None and kind_of(project.named(model)) != "model":
        raise DatasetError(
            f"{model} is an encoder, and its head for {task} is yet to be trained: ratchet task train {task}; or name "
            f"a language model, such as {project.settings.model.base}"
        )


def _make_selector(
    examples: Sequence[Any], count: int, selection: Choice, seed: int, project: Project
) -> FewShotSelector | None:
    if not count:
        return None
    if selection == "coverage":
        return CoverageExamples(examples, count, seed)
    from agent.encoders.encoder import SentenceEncoder
    from agent.llm.weights.load import resolve_encoder

    name = project.settings.model.encoder
    folder = resolve_encoder(project.named(name), project.home.models)
    return SimilarExamples(examples, count, SentenceEncoder(folder, name=name))
