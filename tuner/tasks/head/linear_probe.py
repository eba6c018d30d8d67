"""A head alone, on an encoder that stays as it is: each window is read once, and the head fitted to what came of it.

The loss of one linear layer has a single minimum, so L-BFGS finds it in seconds and neither rate nor batch nor seed
matter. How much large weights cost is chosen as for logistic regression: by the validation figure, or, of few labelled
texts, by cross-validation, as a handful of validation texts cannot tell.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuner.tasks.head.token_alignment import IGNORED
from tuner.tasks.head.windows import NO_EXAMPLE, Batch, Window, batch, batches

if TYPE_CHECKING:
    import torch

    from tuner.tasks.head.model import TaskModel
    from tuner.tasks.metrics import Scores

LOOSENESS = (1.0, 10.0, 100.0, 1000.0)
"""What logistic regression calls C: each target weighs this much against half the square of the weights."""
STEPS = 200
"""Of one fit, at most, where the encoder is trained afterwards."""
FOLDS = 5
FOLD_STEPS = 60
"""Of a fit to all folds but one, at most."""
TELLING = 200
"""Validation windows that can tell how much large weights should cost."""
MOST_CROSSED = 3000
"""Windows that are fitted in folds, at most: more of them bring a validation that can tell, or cost too much."""
CHUNK = 512
"""Windows of one product."""


class Kept:
    """What a frozen encoder made of windows, in half precision."""

    def __init__(self, model: TaskModel, windows: Sequence[Window]) -> None:
        import torch

        self._model = model
        self._windows = windows
        self._made: list[torch.Tensor] = [torch.empty(0)] * len(windows)
        model.eval()
        with torch.no_grad():
            for one in batches(windows, 64, model.padding, device=model.device):
                read = model.represent(one).half()
                for row, number in enumerate(one.numbers):
                    kept = read[row, : len(one.windows[row].ids)] if read.ndim == 3 else read[row]
                    self._made[number] = kept.clone()

    def chunks(self, numbers: Iterable[int] | None = None) -> list[tuple[Batch, torch.Tensor, int]]:
        """Windows, by default all, in batches, what was made of them, and how many targets they have."""
        numbers = range(len(self._windows)) if numbers is None else numbers
        order = sorted(numbers, key=lambda at: len(self._windows[at].ids))
        made = []
        for start in range(0, len(order), CHUNK):
            chosen = [self._windows[at] for at in order[start : start + CHUNK]]
            read = self._padded([self._made[at] for at in order[start : start + CHUNK]])
            targets = sum(1 for one in chosen for target in one.targets if target != IGNORED)
            made.append((batch(chosen, self._model.padding, device=self._model.device), read, targets))
        return made

    def scores(self, numbers: Iterable[int] | None = None) -> list[Any]:
        """The head's scores of windows, by default of all."""
        import torch

        made = self._made if numbers is None else [self._made[at] for at in numbers]
        with torch.no_grad():
            return [self._model.head(one.float()).cpu().numpy() for one in made]

    def directions(self) -> Any:
        """The vectors of length 1 where there is one a window, numpy float32 [windows, hidden]."""
        import torch

        return torch.nn.functional.normalize(torch.stack(self._made).float(), dim=-1).cpu().numpy()

    def size(self) -> float:
        """Mean length of the vectors."""
        total = sum(float(one.float().norm(dim=-1).sum()) for one in self._made)
        return total / sum(one.numel() // one.shape[-1] for one in self._made)

    @staticmethod
    def _padded(made: Sequence[torch.Tensor]) -> torch.Tensor:
        import torch

        return torch.nn.utils.rnn.pad_sequence(list(made), batch_first=True)


@dataclass(frozen=True)
class FittedHead:
    """What a fit did."""

    losses: list[tuple[int, float]]
    """Steps so far and mean loss, of each looseness that was tried."""
    figures: list[tuple[int, float]]
    """Steps so far and validation figure: before any fit, then of each."""
    best: int
    """Which of the fits was kept."""

    @property
    def validation(self) -> float:
        """The figure of the fit that was kept."""
        return self.figures[self.best + 1][1]


def fit_head(
    model: TaskModel,
    windows: Sequence[Window],
    check: Callable[[list[Any]], Scores],
    validation: Sequence[Window],
    *,
    class_weights: torch.Tensor | None = None,
    looseness: Sequence[float] = LOOSENESS,
    told: Callable[[int, int, float, Scores], None] = lambda number, steps, loss, found: None,
) -> FittedHead:
    """Fit the head in place. `told` is given a fit's number, the steps so far, its loss and its validation scores."""
    import torch

    kept, watched = Kept(model, windows), Kept(model, validation)
    size, found = kept.size(), check(watched.scores())
    crossed: list[float] = []
    if len(looseness) > 1 and _is_crossed(model, windows, validation):
        crossed = _crossed(model, kept, windows, looseness, class_weights)
    best, best_fit, state = -math.inf, -1, model.state()
    losses: list[tuple[int, float]] = []
    figures: list[tuple[int, float]] = [(0, found.value)]
    steps = 0
    with torch.no_grad():
        model.head.weight.zero_()
    chunks = kept.chunks()
    for number, one in enumerate(looseness):
        count, loss = _minimise(model, chunks, size, one, class_weights, _steps(model))
        steps += count
        found = check(watched.scores())
        losses.append((steps, loss))
        figures.append((steps, found.value))
        told(number, steps, loss, found)
        value = crossed[number] if crossed else found.value
        # Where folds are level the looser one is right more often: a tight head of few texts has hardly learnt them.
        if value > best or (crossed and value == best):
            best, best_fit, state = value, number, model.state()
        elif number - best_fit >= 2:
            break
    model.load_state(state)
    return FittedHead(losses, figures, best_fit)


def best_of_folds(model: TaskModel, windows: Sequence[Window]) -> float:
    """The share of windows of one label each that heads fitted without them are right of, by the best looseness."""
    return max(_crossed(model, Kept(model, windows), windows, LOOSENESS, None))


def _steps(model: TaskModel) -> int:
    return model.settings.epochs if model.settings.method == "head" else STEPS


def _is_crossed(model: TaskModel, windows: Sequence[Window], validation: Sequence[Window]) -> bool:
    """Whether these are few, of one label each."""
    few = len(validation) < TELLING and len(windows) <= MOST_CROSSED
    return few and model.task.outputs > 1 and all(len(one.targets) == 1 for one in windows)


def _crossed(
    model: TaskModel,
    kept: Kept,
    windows: Sequence[Window],
    looseness: Sequence[float],
    class_weights: torch.Tensor | None,
) -> list[float]:
    """For each looseness the share of the windows that heads fitted without them are right of.

    An example's windows are in one fold; what is of no example is in all that are learnt. The head is left as it was.
    """
    import torch

    before = {name: one.detach().clone() for name, one in model.head.state_dict().items()}
    examples = sorted({one.example for one in windows} - {NO_EXAMPLE})
    random.Random(model.settings.seed).shuffle(examples)
    fold_of = {example: place % FOLDS for place, example in enumerate(examples)}
    right, size = [0] * len(looseness), kept.size()
    for fold in range(min(FOLDS, len(examples))):
        folds = [fold_of.get(one.example) for one in windows]
        apart = [number for number, one in enumerate(folds) if one == fold]
        chunks = kept.chunks(number for number, one in enumerate(folds) if one != fold)
        with torch.no_grad():
            model.head.weight.zero_()
            model.head.bias.zero_()
        for place, one in enumerate(looseness):
            _minimise(model, chunks, size, one, class_weights, FOLD_STEPS)
            for number, scores in zip(apart, kept.scores(apart), strict=True):
                right[place] += int(scores.argmax()) == windows[number].targets[0]
    model.head.load_state_dict(before)
    return [count / max(1, sum(one.example != NO_EXAMPLE for one in windows)) for count in right]


def _minimise(
    model: TaskModel,
    chunks: Sequence[tuple[Batch, torch.Tensor, int]],
    size: float,
    looseness: float,
    class_weights: torch.Tensor | None,
    most: int,
) -> tuple[int, float]:
    """The least penalised loss, from where the head stands, in `most` steps at most. Returns steps and mean loss."""
    import torch

    total = sum(targets for _, _, targets in chunks)
    cost = size**2 / (2 * looseness * total)
    head: torch.nn.Linear = model.head
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=most, history_size=10, line_search_fn="strong_wolfe")
    mean = math.nan

    def closure() -> torch.Tensor:
        nonlocal mean
        optimizer.zero_grad()
        mean = 0.0
        for one, read, targets in chunks:
            loss = model.task.loss(head(read.float()), one, class_weights) * (targets / total)
            loss.backward()  # type: ignore[no-untyped-call]
            mean += float(loss.detach())
        penalty = cost * head.weight.square().sum()
        penalty.backward()  # type: ignore[no-untyped-call]
        return penalty.detach() + mean

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return int(optimizer.state[head.weight].get("n_iter", 0)), mean
