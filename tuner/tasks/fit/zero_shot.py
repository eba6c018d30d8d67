"""Tasks by models that were not trained for them: a language model asked as it is, or shown a few examples first.

To classify without examples the encoder does better, and needs milliseconds: a text gets the label whose name is
nearest to it.

from tuner.tasks.fit.zero_shot import prompted

asked = prompted("classify", labels=["delivery", "refund"])
print(asked.predict(["Where is my parcel?"]))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from agent.config.project import Project, find_project
from agent.errors import DatasetError
from agent.llm.weights.load import kind_of
from tuner.tasks.data.records import TASKS, WRITTEN, Classified, TaskName
from tuner.tasks.data.splits import Splits
from tuner.tasks.head.tasks import KINDS
from tuner.tasks.language.few_shot import Coverage, Shots, Similar
from tuner.tasks.metrics import Scores
from tuner.tasks.predictor import Say, TaskPredictor, drawn, silent
from tuner.tasks.settings import CHOICES, Choice

Way = Literal["head", "generation"]


def way_of(task: TaskName, model: str | None, project: Project, *, say: Say = silent) -> Way:
    """A head on an encoder, or a language model: by the model that was named, else by the task.

    Raises DatasetError where the model cannot do the task, WeightsError where there is no such model.
    """
    if model is None:
        return "generation" if task in WRITTEN else "head"
    if kind_of(project.named(model), progress=say) == "model":
        return "generation"
    if task not in KINDS:
        raise DatasetError(
            f"{model} is an encoder, and task {task} writes text; name a language model with --model, or leave it out "
            f"for {project.settings.model.base}"
        )
    return "head"


def prompted(
    task: TaskName,
    splits: Splits | None = None,
    *,
    model: str | None = None,
    shots: int = 0,
    choose: Choice = "similar",
    labels: Sequence[str] = (),
    into: str = "",
    seed: int = 0,
    project: Project | None = None,
    say: Say = silent,
) -> TaskPredictor:
    """A language model that is asked for a task, shown `shots` of the training examples before each text.

    Without shots, and where no language model is named, the encoder classifies by the names of the labels, if those are
    words that it knows and a text has one. `labels` and `into`, what to translate into, are needed where no examples
    tell them. Raises DatasetError, WeightsError.
    """
    from agent.llm.weights.load import resolve_model
    from tuner.tasks.fit.language import load_served
    from tuner.tasks.language.generation import Generator, budget_of
    from tuner.tasks.language.prompts import asking_of

    project = project or find_project(Path.cwd())
    examples = splits.train if splits is not None else []
    if task == "classify" and not shots and (model is None or kind_of(project.named(model)) == "encoder"):
        named = _by_names(examples, labels, model, project, say)
        if named is not None:
            return named
    _check(task, model, choose, project)
    asked = asking_of(task, examples, labels=labels, into=into)
    if task == "translate" and not asked.options()["into"]:
        raise DatasetError("nobody says what to translate into; name the language with --into, such as --into German")
    base = resolve_model(project.named(model or project.settings.model.base), project.home.models, progress=say)
    shown = _shots(examples, shots, choose, seed, project)
    served = load_served(base, project)
    budget = budget_of(asked, examples, served.renderer, served.engine.context)
    return TaskPredictor(Generator(served, asked, budget, shots=shown, say=say), None)


def measure(predictor: TaskPredictor, splits: Splits, *, most: int | None = None, seed: int = 0) -> Scores:
    """The figures on the test part, or on `most` of its examples, drawn by seed."""
    return predictor.evaluate(drawn(splits.test, most, seed))


def _by_names(
    examples: Sequence[Classified], labels: Sequence[str], encoder: str | None, project: Project, say: Say
) -> TaskPredictor | None:
    """The encoder with the labels' names for a head; None where a language model has to be asked.

    Raises DatasetError where the encoder was named and cannot.
    """
    from agent.llm.weights.load import encoder_weights
    from tuner.tasks.head.label_names import named_model, unreadable
    from tuner.tasks.head.model import load_encoder

    named = tuple(labels) or tuple(sorted({label for one in examples for label in one.labels}))
    single = all(len(one.labels) == 1 and one.pair is None for one in examples)
    if len(named) < 2 or (encoder is None and not single):
        return None
    base = encoder_weights(project.named(encoder or project.settings.model.encoder), project.home.models, progress=say)
    loaded = load_encoder(base)
    lost = unreadable(loaded, named)
    if single and not lost:
        say(
            f"untrained: a text gets the label of {len(named)} whose name is nearest by {base.name}; give --shots or a "
            "language model as --model to ask that one"
        )
        return TaskPredictor(named_model(loaded, named), None)
    if encoder is None:
        return None
    fault = (
        f"the label {lost[0]!r} is no word that {base.name} knows"
        if lost
        else "texts are pairs, or have several labels"
    )
    raise DatasetError(
        f"{fault}, so they cannot be classified by the names of labels; train a head (ratchet task train classify), or "
        f"name a language model, such as {project.settings.model.base}"
    )


def _check(task: TaskName, model: str | None, choose: str, project: Project) -> None:
    if task not in TASKS:
        raise DatasetError(f"there is no task {task!r}; expected one of {', '.join(TASKS)}")
    if choose not in CHOICES:
        raise DatasetError(f"shots are chosen by {choose!r}; expected {' or '.join(CHOICES)}")
    if model is not None and kind_of(project.named(model)) != "model":
        raise DatasetError(
            f"{model} is an encoder, and its head for {task} is yet to be trained: ratchet task train {task}; or name "
            f"a language model, such as {project.settings.model.base}"
        )


def _shots(examples: Sequence[Any], count: int, choose: Choice, seed: int, project: Project) -> Shots | None:
    if not count:
        return None
    if choose == "coverage":
        return Coverage(examples, count, seed)
    from agent.encoders.encoder import SentenceEncoder
    from agent.llm.weights.load import resolve_encoder

    name = project.settings.model.encoder
    folder = resolve_encoder(project.named(name), project.home.models)
    return Similar(examples, count, SentenceEncoder(folder, name=name))
