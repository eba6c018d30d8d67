"""Prompts of the classic tasks for a language model: the instruction, the grammar of the output, and its parsing.

The prompts with a grammar are in `structured_prompts`, those for free text in `text_prompts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from agent.errors import DatasetError
from agent.llm.prompt.render import Message
from tuner.tasks.data.languages import detect_language
from tuner.tasks.data.records import ClassifyExample, RelateExample, TagExample, TaskName
from tuner.tasks.data.schemes import find_chunks
from tuner.tasks.language.structured_prompts import AnswerPrompt, ClassifyPrompt, RelatePrompt, TagPrompt
from tuner.tasks.language.text_prompts import ConversePrompt, SummarisePrompt, TranslatePrompt
from tuner.tasks.metrics import RESAMPLES, TaskScores
from tuner.tasks.predictions import Prediction


class TaskPrompt(Protocol):
    """One task as a prompt. Examples are all of the task's own kind of record."""

    @property
    def name(self) -> TaskName: ...

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels, relations or entity types; empty for other tasks."""
        ...

    @property
    def system(self) -> str:
        """The system message, the same for all texts."""
        ...

    def messages(self, example: Any) -> list[Message]:
        """Return the messages after the system message; the last is a user's."""
        ...

    def target(self, example: Any) -> str:
        """Return the right output for an example with labels."""
        ...

    def grammar(self, example: Any) -> str | None:
        """Return the outputs that are allowed, as a Lark grammar; None allows any text."""
        ...

    def parse(self, example: Any, output: str, score: float) -> Prediction:
        """Return the prediction of an output that is whole or cut off.

        Args:
            score: Mean probability of the output's tokens.
        """
        ...

    def measure(self, examples: Sequence[Any], predictions: Sequence[Any], *, resamples: int = RESAMPLES) -> TaskScores:
        """As `tuner.tasks.head.tasks.HeadTask.measure`."""
        ...

    def options(self) -> dict[str, Any]:
        """Return the options for `make_prompt`, as JSON."""
        ...


PROMPTS: Mapping[str, Any] = {
    "classify": ClassifyPrompt,
    "tag": TagPrompt,
    "relate": RelatePrompt,
    "answer": AnswerPrompt,
    "translate": TranslatePrompt,
    "summarise": SummarisePrompt,
    "converse": ConversePrompt,
}


def make_prompt(name: str, labels: Sequence[str], options: Mapping[str, Any]) -> TaskPrompt:
    """Make a prompt from a task's name, labels and options, as saved. Raises DatasetError for an unknown task."""
    if name not in PROMPTS:
        raise DatasetError(f"a language model has no task {name!r}; expected {', '.join(PROMPTS)}")
    prompt: TaskPrompt = PROMPTS[name](tuple(labels), **options)
    return prompt


def learn_prompt(name: TaskName, examples: Sequence[Any], *, labels: Sequence[str] = (), into: str = "") -> TaskPrompt:
    """Make a prompt with the labels and options of examples.

    Args:
        labels: Take the place of the examples' labels.
        into: Language to translate into; by default that of the examples.

    Raises:
        DatasetError: There are no labels to choose from.
    """
    options: dict[str, Any] = {}
    if name == "classify" and any(len(example.labels) != 1 for example in examples):
        options["multi"] = True
    if name == "answer" and examples:
        options["none"] = any(not example.answers for example in examples)
    if name == "translate":
        by_file = next((example.language for example in examples if example.language), "")
        options["into"] = into or by_file or detect_language(example.target for example in examples)
    if name not in ("classify", "tag", "relate"):
        return make_prompt(name, (), options)
    choices = tuple(labels) or _labels_of(examples)
    if len(choices) < (1 if name == "tag" else 2):
        raise DatasetError(
            f"task {name} has the labels {list(choices)}; name them with --labels one,other, or give examples with "
            "--data"
        )
    return make_prompt(name, choices, options)


def _labels_of(examples: Sequence[Any]) -> tuple[str, ...]:
    labels: set[str] = set()
    for example in examples:
        match example:
            case ClassifyExample():
                labels.update(example.labels)
            case TagExample():
                labels.update(kind for kind, _, _ in find_chunks(example.tags))
            case RelateExample():
                labels.add(example.label)
    return tuple(sorted(labels))
