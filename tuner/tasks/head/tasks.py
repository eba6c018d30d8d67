"""What all tasks with a head on an encoder have in common, and the table of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from agent.errors import DatasetError
from tuner.tasks.data.records import TaskName
from tuner.tasks.head.answer import AnswerTask
from tuner.tasks.head.classify import ClassifyTask
from tuner.tasks.head.embed import EmbedTask
from tuner.tasks.head.relate import RelateTask
from tuner.tasks.head.tag import TagTask
from tuner.tasks.head.windows import Batch, Window
from tuner.tasks.metrics import RESAMPLES, Scores

if TYPE_CHECKING:
    import torch


class Task(Protocol):
    """One kind of task: its windows, what the head reads of them, its loss, its predictions and its metrics.

    B windows of T tokens, H dimensions. Examples are all of the task's own kind of record.
    """

    @property
    def name(self) -> TaskName: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def outputs(self) -> int:
        """Scores that the head gives; 0 where there is none, and the scores are what it would read."""
        ...

    @property
    def together(self) -> int:
        """Windows, one behind the other, that are learnt from in one step."""
        ...

    @property
    def width(self) -> int:
        """How many hidden states of H numbers the head reads at once."""
        ...

    def windows(self, examples: Sequence[Any], tokenizer: Any, max_tokens: int) -> list[Window]:
        """All windows of all examples, in order; with targets where the examples have labels."""
        ...

    def represent(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Of hidden states [B, T, H] what the head reads, [B, ..., width * H]."""
        ...

    def loss(self, scores: torch.Tensor, batch: Batch, weights: torch.Tensor | None) -> torch.Tensor:
        """Mean cross-entropy of the head's scores [B, ..., outputs], classes weighted by `weights` [outputs]."""
        ...

    def predict(self, examples: Sequence[Any], windows: Sequence[Window], scores: Sequence[Any]) -> list[Any]:
        """A prediction for each example, of numpy scores [..., outputs] for each window."""
        ...

    def measure(self, examples: Sequence[Any], predictions: Sequence[Any], *, resamples: int = RESAMPLES) -> Scores:
        """Predictions held against the labels of the examples; without intervals where `resamples` is 0."""
        ...

    def class_weights(self, windows: Sequence[Window]) -> torch.Tensor:
        """Weights [outputs] by which rare classes count as much as common ones. Raises DatasetError without classes."""
        ...

    def options(self) -> dict[str, Any]:
        """What `make_task` needs beside the labels, as JSON."""
        ...


KINDS: Mapping[str, Any] = {
    "classify": ClassifyTask,
    "tag": TagTask,
    "relate": RelateTask,
    "answer": AnswerTask,
    "embed": EmbedTask,
}


def make_task(name: str, labels: Sequence[str], options: Mapping[str, Any]) -> Task:
    """A task by name, as it was saved. Raises DatasetError for one that is not known."""
    if name not in KINDS:
        raise DatasetError(f"there is no task {name!r}; expected {', '.join(KINDS)}")
    made: Task = KINDS[name](tuple(labels), **options)
    return made


def task_of(name: TaskName, examples: Sequence[Any], **options: Any) -> Task:
    """A task with the labels that the examples have. Raises DatasetError where there is nothing to tell apart."""
    if name not in KINDS:
        raise DatasetError(f"there is no task {name!r}; expected {', '.join(KINDS)}")
    labels, found = KINDS[name].learn(examples)
    return make_task(name, labels, {**found, **options})
