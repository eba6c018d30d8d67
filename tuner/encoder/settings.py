"""Settings, progress and result of a training of the sentence encoder."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EncoderSettings:
    """How the encoder is trained. A query step trains on queries, a task step on labelled tasks."""

    r: int = 16
    alpha: int = 32
    learning_rate: float = 1e-3
    """Of query steps."""
    epochs: int = 10
    """Passes over the queries; where there are none, `task_epochs` is the number of epochs."""
    patience: int = 3
    """Epochs without a lower validation loss after which training stops."""
    batch: int = 16
    """Queries of a step, each with one right passage."""
    negatives: int = 2
    """Hard negatives of a query, at most."""
    positives: int = 3
    """Right passages of a query in an epoch, at most."""
    anchor: float = 4.0
    """Weight of the distance (1 - cosine) of passages and sentences from their vectors before the training."""
    rehearsed: int = 8
    """Sentences of passages that each query step uses as further queries; none that the gate may use."""
    scale: float = 20.0
    """Factor of the cosines in the softmax over passages."""
    max_tokens: int = 192
    """Longer texts are cut in training."""
    task_learning_rate: float = 5e-4
    """Of task steps."""
    task_epochs: int = 6
    """Passes over the tasks, spread over all epochs."""
    task_steps: int = 240
    """Task steps, at most: many tasks get fewer passes."""
    labels: int = 16
    """Labels of a task step."""
    texts: int = 4
    """Texts of each label in it."""
    temperature: float = 0.07
    """Divides the cosines of tasks in the softmax."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises."""
    seed: int = 0


@dataclass(frozen=True)
class EncoderProgress:
    """The state of a training after a step."""

    step: int
    steps: int
    loss: float
    """Of this step."""
    validation_loss: float | None
    """At the end of an epoch."""


@dataclass(frozen=True)
class TrainedEncoder:
    """The figures of a finished training."""

    steps: int
    epochs: int
    best_epoch: int
    loss: float
    """Mean over the last epoch."""
    first_validation_loss: float
    validation_loss: float
    """Of the epoch whose weights were kept."""
    parameters: int
    seconds: float
