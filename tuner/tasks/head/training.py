"""One loop that trains any task: AdamW, warm-up and decay, early stopping on the validation figure.

The same seed, data, precision and machine give the same tensors. A head alone is fitted by `tuner.tasks.head.linear_probe`.
Training against changed embeddings follows `tuner.tree.adversarial`: FGM (Miyato et al., 2017), FreeLB (Zhu et al., 2020);
training on typing mistakes `tuner.tasks.data.typos`.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from agent.errors import LivenessError
from tuner.tasks.head.linear_probe import LOOSENESS, fit_head
from tuner.tasks.head.model import TaskModel, score
from tuner.tasks.head.windows import Batch, Window, batches
from tuner.tasks.metrics import Scores
from tuner.training.memory_budget import peak_bytes
from tuner.tree.adversarial import CLIMBS, climb, random_change

UNDECAYED = ("bias", "norm")


@dataclass(frozen=True)
class TaskProgress:
    """Told behind every step."""

    step: int
    steps: int
    epoch: int
    loss: float
    validation: Scores | None
    """At the end of an epoch."""


@dataclass(frozen=True)
class TrainedTask:
    """What a training did."""

    steps: int
    epochs: int
    """Of a head alone, how many fits, from tight to loose."""
    best_epoch: int
    """From 0; -1 where none was as good as the head that was fitted first. Of a head alone, which of the fits."""
    loss: float
    """Mean over the last epoch."""
    validation: float
    """The main figure of the epoch that was kept."""
    parameters: int
    """Trained ones."""
    seconds: float
    peak_bytes: int
    """Of the whole process, until its end."""
    curve: tuple[tuple[int, float], ...] = field(default=(), repr=False)
    """Step and mean training loss."""
    validation_curve: tuple[tuple[int, float], ...] = field(default=(), repr=False)
    """Step and main validation figure."""


Tell = Callable[[TaskProgress], None]
Check = Callable[[list[Any]], Scores]
"""Scores the head's outputs on the validation windows."""
Mistyped = Callable[[int], Sequence[Window]]
"""All training windows with typing mistakes, drawn by the number."""
COPIES = 3
"""Mistyped ones of each example that a head alone is fitted to, beside the example itself."""
FITTED = 20_000
"""Windows that a head is fitted to before and behind the training of its encoder, at most."""
FITTED_ANSWERS = 500
"""Windows of questions, the same: each is as long as a hundred words and more."""
NAMED = 3
"""How often each label's name is among what a head alone is fitted to: one name stands for more than one text."""


def train_model(
    model: TaskModel,
    windows: Sequence[Window],
    check: Check,
    validation: Sequence[Window],
    *,
    class_weights: torch.Tensor | None = None,
    mistyped: Mistyped | None = None,
    names: Sequence[Window] = (),
    on_progress: Tell = lambda progress: None,
) -> TrainedTask:
    """Train a model in place; it is left with the epoch whose validation figure is best.

    With `mistyped` each epoch sees those windows beside the others, and `names` of labels as well. To be called in a
    team of threads of its own, see `agent.util.threads`. Raises LivenessError.
    """
    started = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(model.settings.seed)
        fit = _fit_head if model.settings.method == "head" else _fit_all
        made = fit(model, _Learnt(windows, mistyped, list(names), model), check, validation, class_weights, on_progress)
    model.eval()
    return TrainedTask(
        steps=made.curve[-1][0],
        epochs=len(made.curve),
        best_epoch=made.best_epoch,
        loss=made.curve[-1][1],
        validation=made.validation,
        parameters=sum(one.numel() for one in model.trained().values()),
        seconds=time.monotonic() - started,
        peak_bytes=peak_bytes(),
        curve=tuple(made.curve),
        validation_curve=tuple(made.checked),
    )


@dataclass(frozen=True)
class _Learnt:
    """The windows that are learnt from."""

    windows: Sequence[Window]
    mistyped: Mistyped | None
    names: list[Window]
    model: TaskModel

    def epoch(self, number: int) -> Sequence[Window]:
        """Those of one pass: all, as many mistyped ones, and the names."""
        more = self._chosen(self.mistyped(number), number) if self.mistyped else ()
        return [*self._chosen(self.windows, number), *more, *self.names]

    def once(self) -> Sequence[Window]:
        """Those that a head alone is fitted to."""
        copies = (
            (self._chosen(self.mistyped(-number), number) for number in range(1, COPIES + 1)) if self.mistyped else ()
        )
        chosen = [*self._chosen(self.windows, 0), *(window for one in copies for window in one)]
        most = FITTED_ANSWERS if self.model.task.name == "answer" else FITTED
        if self.model.settings.method != "head" and len(chosen) > most:
            chosen = random.Random(self.model.settings.seed).sample(chosen, most)
        return [*chosen, *self.names * NAMED]

    def _chosen(self, windows: Sequence[Window], number: int) -> Sequence[Window]:
        if self.model.task.name == "answer":
            settings = self.model.settings
            return some_without_answer(windows, settings.negatives, f"{settings.seed} negatives {number}")
        return windows


@dataclass(frozen=True)
class _Fitted:
    """Curves over the steps, which epoch was kept, and its validation figure."""

    curve: list[tuple[int, float]]
    checked: list[tuple[int, float]]
    best_epoch: int
    validation: float


def _fit_head(
    model: TaskModel,
    learnt: _Learnt,
    check: Check,
    validation: Sequence[Window],
    class_weights: torch.Tensor | None,
    tell: Tell,
) -> _Fitted:
    most = len(LOOSENESS) * model.settings.epochs
    made = fit_head(
        model,
        learnt.once(),
        check,
        validation,
        class_weights=class_weights,
        told=lambda number, steps, loss, found: tell(TaskProgress(steps, most, number, loss, found)),
    )
    return _Fitted(made.losses, made.figures, made.best, made.validation)


def _fit_all(
    model: TaskModel,
    learnt: _Learnt,
    check: Check,
    validation: Sequence[Window],
    class_weights: torch.Tensor | None,
    tell: Tell,
) -> _Fitted:
    settings = model.settings
    best, kept = -math.inf, model.state()
    if settings.head_first or settings.head_last:
        best, kept = _begun(model, learnt, check, validation, class_weights)
    # Leaving a head that was fitted first makes it worse before it gets better.
    certain = settings.epochs // 2 if settings.head_first else 0
    run = _Run(model, learnt, check, validation, class_weights)
    best_epoch = better_epoch = -1
    curve: list[tuple[int, float]] = []
    checked: list[tuple[int, float]] = [(0, run.figure().value if best == -math.inf else best)]
    for epoch in range(settings.epochs):
        loss, found = run.epoch(epoch, tell)
        curve.append((run.step, loss))
        checked.append((run.step, found.value))
        if found.value > best:
            better_epoch = epoch
        if found.value >= best:
            best, best_epoch, kept = found.value, epoch, model.state()
        if epoch - better_epoch >= settings.patience and epoch + 1 >= certain:
            break
    if best_epoch >= 0:
        model.load_state(kept)
    if settings.head_last:
        # The head that went along with the encoder is behind the best one for what the encoder became.
        last = fit_head(model, learnt.once(), check, validation, class_weights=class_weights).validation
        checked.append((run.step, last))
        if last >= best:
            return _Fitted(curve, checked, best_epoch if best_epoch >= 0 else len(curve) - 1, last)
    model.load_state(kept)
    return _Fitted(curve, checked, best_epoch, best)


def _begun(
    model: TaskModel,
    learnt: _Learnt,
    check: Check,
    validation: Sequence[Window],
    class_weights: torch.Tensor | None,
) -> tuple[float, dict[str, torch.Tensor]]:
    """The figure and the state of the best head on the encoder as it is; the model is left with what it begins from.

    That is the tightest one: a loose head is right of nearly all it learnt from, so that nothing is left for the
    encoder to learn. Unless the head is fitted anew at the end, no other one is looked for.
    """
    begin = _copied(model.head)

    def told(number: int, steps: int, loss: float, found: Scores) -> None:
        if number == 0 and model.settings.head_first:
            begin.update(_copied(model.head))

    looseness = LOOSENESS if model.settings.head_last else LOOSENESS[:1]
    made = fit_head(
        model, learnt.once(), check, validation, class_weights=class_weights, looseness=looseness, told=told
    )
    floor = model.state()
    model.head.load_state_dict(begin)
    return made.validation, floor


def _copied(head: Any) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in head.state_dict().items()}


class _Run:
    """The steps of one training."""

    def __init__(
        self,
        model: TaskModel,
        learnt: _Learnt,
        check: Check,
        validation: Sequence[Window],
        class_weights: torch.Tensor | None,
    ) -> None:
        self.step = 0
        self._model = model
        self._settings = model.settings
        self._learnt = learnt
        self._check = check
        self._validation = validation
        self._weights = class_weights
        self._trained = list(model.trained().values())
        self._optimizer = torch.optim.AdamW(_groups(model), fused=True)
        self._together = model.task.together
        self._steps = self._batches(learnt.epoch(0)) * self._settings.epochs

    def epoch(self, number: int, tell: Tell) -> tuple[float, Scores]:
        """One pass over the windows. Returns its mean loss and the validation scores behind it."""
        chance = random.Random(f"{self._settings.seed} {number}")
        chosen = self._learnt.epoch(number)
        losses: list[float] = []
        self._model.train()
        for one in batches(
            chosen,
            self._settings.batch,
            self._model.padding,
            chance=chance,
            device=self._model.device,
            together=self._together,
        ):
            losses.append(self._one_step(one))
            if len(losses) < self._batches(chosen):
                tell(TaskProgress(self.step, self._steps, number, losses[-1], None))
        mean = sum(losses) / len(losses)
        found = self.figure()
        tell(TaskProgress(self.step, self._steps, number, mean, found))
        return mean, found

    def figure(self) -> Scores:
        """The validation scores as the model is now."""
        return self._check(score(self._model, self._validation))

    def _one_step(self, one: Batch) -> float:
        loss = self._backward(one)
        if not math.isfinite(loss):
            raise LivenessError(
                f"the loss of step {self.step + 1} is no number; lower the rate of {self._settings.learning_rate}"
            )
        norm = float(torch.nn.utils.clip_grad_norm_(self._trained, self._settings.clip))
        # A loss of zero has no gradient and is no fault.
        if norm == 0 and self.step == 0 and loss > 1e-6:
            raise LivenessError("the first step has no gradient: nothing would be trained")
        share = self._rate()
        for group in self._optimizer.param_groups:
            group["lr"] = group["base"] * share
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.step += 1
        return loss

    def _backward(self, one: Batch) -> float:
        """Add the gradient of a batch; returns its loss, the unchanged one where embeddings are changed too."""
        if self._settings.adversarial in ("fgm", "freelb"):
            return self._adversarial(one)
        loss = self._loss(self._model(one), one)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _adversarial(self, one: Batch) -> float:
        """FGM: the mean of the clean pass and the worst change; FreeLB: the mean of passes on the way there."""
        table = self._model.encoder.get_input_embeddings()
        with torch.no_grad():
            most = self._settings.adversarial_size * table(one.ids).norm(dim=-1, keepdim=True)
        fgm = self._settings.adversarial == "fgm"
        passes = 2 if fgm else CLIMBS
        shift = torch.zeros_like(most.expand(*most.shape[:2], table.weight.shape[1]))
        shift = shift if fgm else random_change(shift, most)
        first = math.nan
        for number in range(passes):
            shift = shift.detach().requires_grad_()
            loss = self._loss(self._model(one, table(one.ids) + shift), one)
            (loss / passes).backward()  # type: ignore[no-untyped-call]
            first = float(loss.detach()) if number == 0 else first
            shift = climb(shift, most, 1.0 if fgm else 1 / CLIMBS)
        return first

    def _loss(self, scores: torch.Tensor, one: Batch) -> torch.Tensor:
        return self._model.task.loss(scores, one, self._weights)

    def _batches(self, chosen: Sequence[Window]) -> int:
        """How many steps these windows are."""
        size = max(1, self._settings.batch // self._together)
        return math.ceil(len(chosen) / (self._together * size))

    def _rate(self) -> float:
        """The rate's share at this step: up in the warm-up, then down to nothing."""
        warm = max(1, round(self._steps * self._settings.warmup))
        if self.step < warm:
            return (self.step + 1) / warm
        return max(0.0, (self._steps - self.step) / max(1, self._steps - warm))


def some_without_answer(windows: Sequence[Window], most: int, seed: str) -> list[Window]:
    """All windows with an answer, and of each question's others `most` at most, drawn by the seed."""
    chance = random.Random(seed)
    without: dict[int, list[Window]] = {}
    for one in windows:
        if one.targets[0] == 0:
            without.setdefault(one.example, []).append(one)
    chosen = [one for one in windows if one.targets[0] > 0]
    for found in without.values():
        chosen += chance.sample(found, min(most, len(found)))
    return chosen


def _groups(model: TaskModel) -> list[dict[str, Any]]:
    """Parameters by rate and by whether their weights decay."""
    settings = model.settings
    made: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, one in model.trained().items():
        rate = settings.head_rate if name.startswith("head.") else settings.learning_rate
        if settings.method == "lora+" and "lora_B" in name:
            rate *= settings.rate_ratio
        decay = 0.0 if any(part in name.lower() for part in UNDECAYED) else settings.weight_decay
        made.setdefault((rate, decay), []).append(one)
    return [{"params": found, "lr": rate, "base": rate, "weight_decay": decay} for (rate, decay), found in made.items()]
