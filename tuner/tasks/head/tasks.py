"""The interface of all tasks with a head on an encoder, and the table of them."""

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
from tuner.tasks.head.windows import Window, WindowBatch
from tuner.tasks.metrics import RESAMPLES, TaskScores

if TYPE_CHECKING:
    import torch


class HeadTask(Protocol):
    """One kind of task: its windows, the input of its head, its loss, its predictions and its metrics.

    In shapes, B is windows, T tokens and H hidden dimensions. Examples are all of the task's own kind of record.
    """

    @property
    def name(self) -> TaskName: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def outputs(self) -> int:
        """Scores of the head; 0 for a task without a head, whose scores are its represented hidden states."""
        ...

    @property
    def group_size(self) -> int:
        """Consecutive windows that stay in one batch."""
        ...

    @property
    def width(self) -> int:
        """Hidden states of H numbers that the head reads at once."""
        ...

    def windows(self, examples: Sequence[Any], tokenizer: Any, max_tokens: int) -> list[Window]:
        """Return all windows of all examples, in order, with targets where the examples have labels."""
        ...

    def represent(self, hidden: torch.Tensor, batch: WindowBatch) -> torch.Tensor:
        """Return the input of the head, [B, ..., width * H], from hidden states [B, T, H]."""
        ...

    def loss(self, scores: torch.Tensor, batch: WindowBatch, weights: torch.Tensor | None) -> torch.Tensor:
        """Return the mean loss of the head's scores [B, ..., outputs], classes weighted by `weights` [outputs]."""
        ...

    def predict(self, examples: Sequence[Any], windows: Sequence[Window], scores: Sequence[Any]) -> list[Any]:
        """Return a prediction for each example, from numpy scores [..., outputs] of each window."""
        ...

    def measure(self, examples: Sequence[Any], predictions: Sequence[Any], *, resamples: int = RESAMPLES) -> TaskScores:
        """Measure predictions against the labels of the examples; without intervals where `resamples` is 0."""
        ...

    def class_weights(self, windows: Sequence[Window]) -> torch.Tensor:
        """Return weights [outputs] by which all classes count the same. Raises DatasetError without classes."""
        ...

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of `make_task`, as JSON."""
        ...


HEAD_TASKS: Mapping[str, Any] = {
    "classify": ClassifyTask,
    "tag": TagTask,
    "relate": RelateTask,
    "answer": AnswerTask,
    "embed": EmbedTask,
}


def make_task(name: str, labels: Sequence[str], options: Mapping[str, Any]) -> HeadTask:
    """Make a task from its name, labels and options, as saved. Raises DatasetError for an unknown name."""
    if name not in HEAD_TASKS:
        raise DatasetError(f"there is no task {name!r}; expected {', '.join(HEAD_TASKS)}")
    task: HeadTask = HEAD_TASKS[name](tuple(labels), **options)
    return task


def learn_task(name: TaskName, examples: Sequence[Any], **options: Any) -> HeadTask:
    """Make a task with the labels and options of examples. Raises DatasetError where there is nothing to tell apart.

    Args:
        options: Take precedence over those learnt from the examples.
    """
    if name not in HEAD_TASKS:
        raise DatasetError(f"there is no task {name!r}; expected {', '.join(HEAD_TASKS)}")
    labels, learnt = HEAD_TASKS[name].learn(examples)
    return make_task(name, labels, {**learnt, **options})
