"""Fits a head on a frozen encoder (linear probe): each window is read once, and the head is fitted to its features.

The loss of one linear layer has a single minimum, so L-BFGS finds it in seconds, and learning rate, batch size and seed
do not matter. The inverse regularisation strength `C` is chosen as for logistic regression: by the validation figure,
or, for few labelled texts, by cross-validation, since a handful of validation texts cannot decide.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuner.tasks.head.token_alignment import IGNORED
from tuner.tasks.head.windows import NO_EXAMPLE, Window, WindowBatch, batch_windows, pad_windows

if TYPE_CHECKING:
    import torch

    from tuner.tasks.head.model import TaskModel
    from tuner.tasks.metrics import TaskScores

C_VALUES = (1.0, 10.0, 100.0, 1000.0)
"""Inverse regularisation strengths: the weight of each target's loss against half the squared norm of the weights."""
STEPS = 200
"""L-BFGS iterations of one fit, at most, where the encoder is trained afterwards."""
FOLDS = 5
FOLD_STEPS = 60
"""L-BFGS iterations of one fit in cross-validation, at most."""
ENOUGH_VALIDATION = 200
"""Validation windows from which `C` is chosen by them rather than by cross-validation."""
MAX_CROSS_VALIDATED = 3000
"""Windows for cross-validation, at most: with more there is enough validation, or it takes too long."""
CHUNK = 512
"""Windows of one matrix product."""


class FrozenFeatures:
    """The features that a frozen encoder computes for windows, in half precision."""

    def __init__(self, model: TaskModel, windows: Sequence[Window]) -> None:
        import torch

        self._model = model
        self._windows = windows
        self._features: list[torch.Tensor] = [torch.empty(0)] * len(windows)
        model.eval()
        with torch.no_grad():
            for batch in batch_windows(windows, 64, model.padding, device=model.device):
                features = model.represent(batch).half()
                for row, number in enumerate(batch.numbers):
                    own = features[row, : len(batch.windows[row].ids)] if features.ndim == 3 else features[row]
                    self._features[number] = own.clone()

    def chunks(self, numbers: Iterable[int] | None = None) -> list[tuple[WindowBatch, torch.Tensor, int]]:
        """Return windows, by default all, in batches with their features [B, ..., width * H] and number of targets."""
        numbers = range(len(self._windows)) if numbers is None else numbers
        order = sorted(numbers, key=lambda at: len(self._windows[at].ids))
        chunks = []
        for start in range(0, len(order), CHUNK):
            windows = [self._windows[at] for at in order[start : start + CHUNK]]
            features = self._padded([self._features[at] for at in order[start : start + CHUNK]])
            targets = sum(1 for window in windows for target in window.targets if target != IGNORED)
            chunks.append((pad_windows(windows, self._model.padding, device=self._model.device), features, targets))
        return chunks

    def scores(self, numbers: Iterable[int] | None = None) -> list[Any]:
        """Return the head's scores of windows, by default of all, numpy [outputs] or [T, outputs] each."""
        import torch

        chosen = self._features if numbers is None else [self._features[at] for at in numbers]
        with torch.no_grad():
            return [self._model.head(features.float()).cpu().numpy() for features in chosen]

    def unit_vectors(self) -> Any:
        """Return the features scaled to length 1, for tasks with one vector per window, numpy float32 [windows, H]."""
        import torch

        return torch.nn.functional.normalize(torch.stack(self._features).float(), dim=-1).cpu().numpy()

    def mean_norm(self) -> float:
        """Return the mean length of the feature vectors."""
        total = sum(float(features.float().norm(dim=-1).sum()) for features in self._features)
        return total / sum(features.numel() // features.shape[-1] for features in self._features)

    @staticmethod
    def _padded(features: Sequence[torch.Tensor]) -> torch.Tensor:
        import torch

        return torch.nn.utils.rnn.pad_sequence(list(features), batch_first=True)


@dataclass(frozen=True)
class HeadFit:
    """The outcome of fitting a head with several `C`."""

    losses: list[tuple[int, float]]
    """Steps so far and mean loss, for each `C` that was tried."""
    figures: list[tuple[int, float]]
    """Steps so far and validation figure: before any fit, then after each."""
    best: int
    """Number of the fit that was kept."""

    @property
    def validation(self) -> float:
        """Return the validation figure of the fit that was kept."""
        return self.figures[self.best + 1][1]


def fit_head(
    model: TaskModel,
    windows: Sequence[Window],
    check: Callable[[list[Any]], TaskScores],
    validation: Sequence[Window],
    *,
    class_weights: torch.Tensor | None = None,
    c_values: Sequence[float] = C_VALUES,
    on_fit: Callable[[int, int, float, TaskScores], None] = lambda number, steps, loss, scores: None,
) -> HeadFit:
    """Fit the head in place with each `C`, and keep the best.

    Args:
        windows: Training windows.
        check: Measures the scores of the validation windows.
        class_weights: [outputs].
        c_values: Inverse regularisation strengths, ascending; two fits in a row without improvement end the search.
        on_fit: Called with the number of a fit, the steps so far, its loss and its validation scores.
    """
    import torch

    features, watched = FrozenFeatures(model, windows), FrozenFeatures(model, validation)
    norm, scores = features.mean_norm(), check(watched.scores())
    accuracies: list[float] = []
    if len(c_values) > 1 and _needs_cross_validation(model, windows, validation):
        accuracies = _cross_validate(model, features, windows, c_values, class_weights)
    best, best_fit, state = -math.inf, -1, model.state()
    losses: list[tuple[int, float]] = []
    figures: list[tuple[int, float]] = [(0, scores.value)]
    steps = 0
    with torch.no_grad():
        model.head.weight.zero_()
    chunks = features.chunks()
    for number, c in enumerate(c_values):
        count, loss = _minimise(model, chunks, norm, c, class_weights, _max_steps(model))
        steps += count
        scores = check(watched.scores())
        losses.append((steps, loss))
        figures.append((steps, scores.value))
        on_fit(number, steps, loss, scores)
        value = accuracies[number] if accuracies else scores.value
        # Of equal accuracies the larger C is better: with few texts, strong regularisation learns hardly anything.
        if value > best or (accuracies and value == best):
            best, best_fit, state = value, number, model.state()
        elif number - best_fit >= 2:
            break
    model.load_state(state)
    return HeadFit(losses, figures, best_fit)


def cross_validated_accuracy(model: TaskModel, windows: Sequence[Window]) -> float:
    """Return the cross-validated accuracy of heads on windows of one label each, with the best `C`."""
    return max(_cross_validate(model, FrozenFeatures(model, windows), windows, C_VALUES, None))


def _max_steps(model: TaskModel) -> int:
    return model.settings.epochs if model.settings.method == "head" else STEPS


def _needs_cross_validation(model: TaskModel, windows: Sequence[Window], validation: Sequence[Window]) -> bool:
    """Whether the windows are few and have one label each."""
    few = len(validation) < ENOUGH_VALIDATION and len(windows) <= MAX_CROSS_VALIDATED
    return few and model.task.outputs > 1 and all(len(window.targets) == 1 for window in windows)


def _cross_validate(
    model: TaskModel,
    features: FrozenFeatures,
    windows: Sequence[Window],
    c_values: Sequence[float],
    class_weights: torch.Tensor | None,
) -> list[float]:
    """For each `C` the share of windows that heads fitted to the other folds predict correctly.

    The windows of an example are in one fold; windows of no example are in every training part. The head is restored.
    """
    import torch

    before = {name: tensor.detach().clone() for name, tensor in model.head.state_dict().items()}
    examples = sorted({window.example for window in windows} - {NO_EXAMPLE})
    random.Random(model.settings.seed).shuffle(examples)
    fold_of = {example: place % FOLDS for place, example in enumerate(examples)}
    right, norm = [0] * len(c_values), features.mean_norm()
    for fold in range(min(FOLDS, len(examples))):
        folds = [fold_of.get(window.example) for window in windows]
        held_out = [number for number, own in enumerate(folds) if own == fold]
        chunks = features.chunks(number for number, own in enumerate(folds) if own != fold)
        with torch.no_grad():
            model.head.weight.zero_()
            model.head.bias.zero_()
        for place, c in enumerate(c_values):
            _minimise(model, chunks, norm, c, class_weights, FOLD_STEPS)
            for number, scores in zip(held_out, features.scores(held_out), strict=True):
                right[place] += int(scores.argmax()) == windows[number].targets[0]
    model.head.load_state_dict(before)
    return [count / max(1, sum(window.example != NO_EXAMPLE for window in windows)) for count in right]


def _minimise(
    model: TaskModel,
    chunks: Sequence[tuple[WindowBatch, torch.Tensor, int]],
    norm: float,
    c: float,
    class_weights: torch.Tensor | None,
    max_steps: int,
) -> tuple[int, float]:
    """Minimise the penalised loss from the head's present weights, in `max_steps` at most. Returns steps and mean loss.

    The penalty is scaled by the mean norm of the features, so that `C` means the same for every encoder.
    """
    import torch

    total = sum(targets for _, _, targets in chunks)
    cost = norm**2 / (2 * c * total)
    head: torch.nn.Linear = model.head
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=max_steps, history_size=10, line_search_fn="strong_wolfe")
    mean = math.nan

    def closure() -> torch.Tensor:
        nonlocal mean
        optimizer.zero_grad()
        mean = 0.0
        for batch, features, targets in chunks:
            loss = model.task.loss(head(features.float()), batch, class_weights) * (targets / total)
            loss.backward()  # type: ignore[no-untyped-call]
            mean += float(loss.detach())
        penalty = cost * head.weight.square().sum()
        penalty.backward()  # type: ignore[no-untyped-call]
        return penalty.detach() + mean

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return int(optimizer.state[head.weight].get("n_iter", 0)), mean
