"""Trains any task with a head: AdamW, warm-up and linear decay, early stopping on the validation figure.

The same seed, data, precision and machine give the same tensors. Method "head" trains no encoder and is fitted by
`tuner.tasks.head.linear_probe`. Adversarial training of embeddings follows `tuner.tree.adversarial`: FGM (Miyato et
al., 2017) and FreeLB (Zhu et al., 2020); training on typing mistakes follows `tuner.tasks.data.typos`.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from agent.errors import LivenessError
from tuner.tasks.head.linear_probe import C_VALUES, HeadFit, fit_head
from tuner.tasks.head.model import TaskModel, score_windows
from tuner.tasks.head.windows import Window, WindowBatch, batch_windows
from tuner.tasks.metrics import TaskScores
from tuner.training.memory_budget import peak_bytes
from tuner.tree.adversarial import CLIMBS, climb, random_change

NOT_DECAYED = ("bias", "norm")
"""Parts of names of parameters without weight decay."""
COPIES = 3
"""Mistyped copies of each example that a head alone is fitted to, beside the example itself."""
MAX_FITTED = 20_000
"""Windows that a head is fitted to before and after its encoder is trained, at most."""
MAX_FITTED_ANSWERS = 500
"""The same for questions, whose windows are a hundred words and longer."""
NAME_COPIES = 3
"""Copies of each label's name that a head alone is fitted to, since one name stands for more than one text."""


@dataclass(frozen=True)
class TaskProgress:
    """The state of a training after a step."""

    step: int
    steps: int
    epoch: int
    loss: float
    validation: TaskScores | None
    """At the end of an epoch."""


@dataclass(frozen=True)
class TrainedTask:
    """The outcome of a training."""

    steps: int
    epochs: int
    """Of a head alone, the number of fits, from strong to weak regularisation."""
    best_epoch: int
    """From 0; -1 where no epoch was as good as the head that was fitted first. Of a head alone, the best fit."""
    loss: float
    """Mean over the last epoch."""
    validation: float
    """The main figure of the epoch that was kept."""
    parameters: int
    """Number of trained parameters."""
    seconds: float
    peak_bytes: int
    """Peak memory of the whole process, until the end."""
    curve: tuple[tuple[int, float], ...] = field(default=(), repr=False)
    """Step and mean training loss."""
    validation_curve: tuple[tuple[int, float], ...] = field(default=(), repr=False)
    """Step and main validation figure."""


OnProgress = Callable[[TaskProgress], None]
Check = Callable[[list[Any]], TaskScores]
"""Measures the head's scores of the validation windows."""
MakeMistyped = Callable[[int], Sequence[Window]]
"""Returns all training windows with typing mistakes, drawn by the number."""


def train_model(
    model: TaskModel,
    windows: Sequence[Window],
    check: Check,
    validation: Sequence[Window],
    *,
    class_weights: torch.Tensor | None = None,
    mistyped: MakeMistyped | None = None,
    names: Sequence[Window] = (),
    on_progress: OnProgress = lambda progress: None,
) -> TrainedTask:
    """Train a model in place; it ends with the tensors of the epoch with the best validation figure.

    Call it within `agent.util.threads.run_in_thread`.

    Args:
        class_weights: [outputs].
        mistyped: Makes windows that each epoch sees beside the others.
        names: Windows of labels' names, learnt as texts.

    Raises:
        LivenessError: The first step has no gradient, or the loss is not finite.
    """
    started = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(model.settings.seed)
        inputs = _TrainingWindows(model, windows, mistyped, list(names))
        training = _HeadTraining(model, inputs, check, validation, class_weights, on_progress)
        result = training.fit_head_alone() if model.settings.method == "head" else training.fit_all()
    model.eval()
    return TrainedTask(
        steps=result.curve[-1][0],
        epochs=len(result.curve),
        best_epoch=result.best_epoch,
        loss=result.curve[-1][1],
        validation=result.validation,
        parameters=sum(parameter.numel() for parameter in model.trainable().values()),
        seconds=time.monotonic() - started,
        peak_bytes=peak_bytes(),
        curve=tuple(result.curve),
        validation_curve=tuple(result.validation_curve),
    )


def sample_unanswerable(windows: Sequence[Window], most: int, seed: str) -> list[Window]:
    """Return all windows with an answer, and at most `most` of the others of each question, drawn by the seed."""
    chance = random.Random(seed)
    without: dict[int, list[Window]] = {}
    for window in windows:
        if window.targets[0] == 0:
            without.setdefault(window.example, []).append(window)
    sampled = [window for window in windows if window.targets[0] > 0]
    for others in without.values():
        sampled += chance.sample(others, min(most, len(others)))
    return sampled


@dataclass(frozen=True)
class _TrainingWindows:
    """The windows to learn from."""

    model: TaskModel
    windows: Sequence[Window]
    mistyped: MakeMistyped | None
    names: list[Window]

    def for_epoch(self, number: int) -> Sequence[Window]:
        """The windows of one epoch: all, as many mistyped ones, and the names."""
        more = self._sampled(self.mistyped(number), number) if self.mistyped else ()
        return [*self._sampled(self.windows, number), *more, *self.names]

    def for_head(self) -> Sequence[Window]:
        """The windows that a head alone is fitted to."""
        copies = (
            (self._sampled(self.mistyped(-number), number) for number in range(1, COPIES + 1)) if self.mistyped else ()
        )
        windows = [*self._sampled(self.windows, 0), *(window for copy in copies for window in copy)]
        most = MAX_FITTED_ANSWERS if self.model.task.name == "answer" else MAX_FITTED
        if self.model.settings.method != "head" and len(windows) > most:
            windows = random.Random(self.model.settings.seed).sample(windows, most)
        return [*windows, *self.names * NAME_COPIES]

    def _sampled(self, windows: Sequence[Window], number: int) -> Sequence[Window]:
        if self.model.task.name == "answer":
            settings = self.model.settings
            return sample_unanswerable(windows, settings.negatives, f"{settings.seed} negatives {number}")
        return windows


@dataclass(frozen=True)
class _FitResult:
    """Curves over the steps, the epoch that was kept, and its validation figure."""

    curve: list[tuple[int, float]]
    validation_curve: list[tuple[int, float]]
    best_epoch: int
    validation: float


@dataclass(frozen=True)
class _HeadTraining:
    """One training: a head alone, or an encoder with its head."""

    model: TaskModel
    inputs: _TrainingWindows
    check: Check
    validation: Sequence[Window]
    class_weights: torch.Tensor | None
    on_progress: OnProgress

    def fit_head_alone(self) -> _FitResult:
        most = len(C_VALUES) * self.model.settings.epochs

        def report(number: int, steps: int, loss: float, scores: TaskScores) -> None:
            self.on_progress(TaskProgress(steps, most, number, loss, scores))

        fit = self._fit_head(C_VALUES, report)
        return _FitResult(fit.losses, fit.figures, fit.best, fit.validation)

    def fit_all(self) -> _FitResult:
        """Train the encoder and its head, with a head fitted before and after where the settings ask for it."""
        settings, model = self.model.settings, self.model
        best, best_state = -math.inf, model.state()
        if settings.head_first or settings.head_last:
            best, best_state = self._fit_first_head()
        # A head that was fitted first gets worse before it gets better.
        certain = settings.epochs // 2 if settings.head_first else 0
        loop = _EncoderLoop(self)
        best_epoch = improved_epoch = -1
        curve: list[tuple[int, float]] = []
        checks: list[tuple[int, float]] = [(0, loop.validate().value if best == -math.inf else best)]
        for epoch in range(settings.epochs):
            loss, scores = loop.run_epoch(epoch)
            curve.append((loop.step, loss))
            checks.append((loop.step, scores.value))
            if scores.value > best:
                improved_epoch = epoch
            if scores.value >= best:
                best, best_epoch, best_state = scores.value, epoch, model.state()
            if epoch - improved_epoch >= settings.patience and epoch + 1 >= certain:
                break
        if best_epoch >= 0:
            model.load_state(best_state)
        if settings.head_last:
            # The head that was trained with the encoder is not the best one for the encoder as it became.
            last = self._fit_head(C_VALUES).validation
            checks.append((loop.step, last))
            if last >= best:
                return _FitResult(curve, checks, best_epoch if best_epoch >= 0 else len(curve) - 1, last)
        model.load_state(best_state)
        return _FitResult(curve, checks, best_epoch, best)

    def _fit_head(
        self,
        c_values: Sequence[float],
        on_fit: Callable[[int, int, float, TaskScores], None] = lambda number, steps, loss, scores: None,
    ) -> HeadFit:
        return fit_head(
            self.model,
            self.inputs.for_head(),
            self.check,
            self.validation,
            class_weights=self.class_weights,
            c_values=c_values,
            on_fit=on_fit,
        )

    def _fit_first_head(self) -> tuple[float, dict[str, torch.Tensor]]:
        """The figure and the state of the best head on the untrained encoder; the model keeps the head to start from.

        That is the head with the strongest regularisation: one with weak regularisation is right about nearly all it
        learnt from, which leaves nothing for the encoder to learn. Others are fitted only if the head is fitted last.
        """
        settings, head = self.model.settings, self.model.head
        start = _copy_state(head)

        def keep_first(number: int, steps: int, loss: float, scores: TaskScores) -> None:
            if number == 0 and settings.head_first:
                start.update(_copy_state(head))

        fit = self._fit_head(C_VALUES if settings.head_last else C_VALUES[:1], keep_first)
        best_state = self.model.state()
        head.load_state_dict(start)
        return fit.validation, best_state


class _EncoderLoop:
    """The optimiser steps of one training."""

    def __init__(self, training: _HeadTraining) -> None:
        self.step = 0
        self._training = training
        self._model = training.model
        self._settings = training.model.settings
        self._trainable = list(training.model.trainable().values())
        self._optimizer = torch.optim.AdamW(_parameter_groups(training.model), fused=True)
        self._steps = self._count_batches(training.inputs.for_epoch(0)) * self._settings.epochs

    def run_epoch(self, number: int) -> tuple[float, TaskScores]:
        """Pass over the windows once. Returns the mean loss and the validation scores afterwards."""
        windows = self._training.inputs.for_epoch(number)
        losses: list[float] = []
        self._model.train()
        for batch in self._batches(windows, random.Random(f"{self._settings.seed} {number}")):
            losses.append(self._run_step(batch))
            if len(losses) < self._count_batches(windows):
                self._training.on_progress(TaskProgress(self.step, self._steps, number, losses[-1], None))
        mean = sum(losses) / len(losses)
        scores = self.validate()
        self._training.on_progress(TaskProgress(self.step, self._steps, number, mean, scores))
        return mean, scores

    def validate(self) -> TaskScores:
        """The validation scores of the model as it is."""
        return self._training.check(score_windows(self._model, self._training.validation))

    def _batches(self, windows: Sequence[Window], chance: random.Random) -> Iterator[WindowBatch]:
        return batch_windows(
            windows,
            self._settings.batch,
            self._model.padding,
            chance=chance,
            device=self._model.device,
            group_size=self._model.task.group_size,
        )

    def _run_step(self, batch: WindowBatch) -> float:
        loss = self._backward(batch)
        if not math.isfinite(loss):
            raise LivenessError(
                f"the loss of step {self.step + 1} is {loss}; lower the learning rate of {self._settings.learning_rate}"
            )
        norm = float(torch.nn.utils.clip_grad_norm_(self._trainable, self._settings.clip))
        # A loss of zero rightly has no gradient.
        if norm == 0 and self.step == 0 and loss > 1e-6:
            raise LivenessError("the first step has no gradient: nothing would be trained")
        share = self._rate_share()
        for group in self._optimizer.param_groups:
            group["lr"] = group["base"] * share
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.step += 1
        return loss

    def _backward(self, batch: WindowBatch) -> float:
        """Add the gradient of a batch; returns its loss, with adversarial training that of the first pass."""
        if self._settings.adversarial in ("fgm", "freelb"):
            return self._adversarial_backward(batch)
        loss = self._loss(self._model(batch), batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _adversarial_backward(self, batch: WindowBatch) -> float:
        """FGM: the mean over the clean pass and the worst change; FreeLB: the mean over passes on the way there."""
        table = self._model.encoder.get_input_embeddings()
        with torch.no_grad():
            limit = self._settings.adversarial_size * table(batch.ids).norm(dim=-1, keepdim=True)
        is_fgm = self._settings.adversarial == "fgm"
        passes = 2 if is_fgm else CLIMBS
        shift = torch.zeros_like(limit.expand(*limit.shape[:2], table.weight.shape[1]))
        shift = shift if is_fgm else random_change(shift, limit)
        first = math.nan
        for number in range(passes):
            shift = shift.detach().requires_grad_()
            loss = self._loss(self._model(batch, table(batch.ids) + shift), batch)
            (loss / passes).backward()  # type: ignore[no-untyped-call]
            first = float(loss.detach()) if number == 0 else first
            shift = climb(shift, limit, 1.0 if is_fgm else 1 / CLIMBS)
        return first

    def _loss(self, scores: torch.Tensor, batch: WindowBatch) -> torch.Tensor:
        return self._model.task.loss(scores, batch, self._training.class_weights)

    def _count_batches(self, windows: Sequence[Window]) -> int:
        group_size = self._model.task.group_size
        groups_per_batch = max(1, self._settings.batch // group_size)
        return math.ceil(len(windows) / (group_size * groups_per_batch))

    def _rate_share(self) -> float:
        """The share of the learning rate at this step: rising in the warm-up, then falling linearly to 0."""
        warm = max(1, round(self._steps * self._settings.warmup))
        if self.step < warm:
            return (self.step + 1) / warm
        return max(0.0, (self._steps - self.step) / max(1, self._steps - warm))


def _copy_state(head: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}


def _parameter_groups(model: TaskModel) -> list[dict[str, Any]]:
    """Parameters by learning rate and weight decay."""
    settings = model.settings
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.trainable().items():
        rate = settings.head_rate if name.startswith("head.") else settings.learning_rate
        if settings.method == "lora+" and "lora_B" in name:
            rate *= settings.rate_ratio
        decay = 0.0 if any(part in name.lower() for part in NOT_DECAYED) else settings.weight_decay
        groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "base": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
