"""A head alone, on an encoder that stays as it is: each window is read once, and the head fitted to what came of it.

The loss of one linear layer has a single minimum, so L-BFGS finds it in seconds and neither rate nor batch nor seed
matter. How much large weights cost is chosen by the validation figure, as for logistic regression.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tuner.tasks.head.align import IGNORED
from tuner.tasks.head.windows import Batch, Window, batch, batches

if TYPE_CHECKING:
    import torch

    from tuner.tasks.head.model import TaskModel
    from tuner.tasks.metrics import Scores

LOOSENESS = (1.0, 10.0, 100.0, 1000.0)
"""What logistic regression calls C: each target weighs this much against half the square of the weights."""
STEPS = 200
"""Of one fit, at most, where the encoder is trained afterwards."""
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

    def chunks(self) -> list[tuple[Batch, torch.Tensor, int]]:
        """All windows in batches, what was made of them, and how many targets they have."""
        order = sorted(range(len(self._windows)), key=lambda at: len(self._windows[at].ids))
        made = []
        for start in range(0, len(order), CHUNK):
            chosen = [self._windows[at] for at in order[start : start + CHUNK]]
            read = self._padded([self._made[at] for at in order[start : start + CHUNK]])
            targets = sum(1 for one in chosen for target in one.targets if target != IGNORED)
            made.append((batch(chosen, self._model.padding, device=self._model.device), read, targets))
        return made

    def scores(self) -> list[Any]:
        """The head's scores of each window."""
        import torch

        with torch.no_grad():
            return [self._model.head(one.float()).cpu().numpy() for one in self._made]

    def size(self) -> float:
        """Mean length of the vectors."""
        total = sum(float(one.float().norm(dim=-1).sum()) for one in self._made)
        return total / sum(one.numel() // one.shape[-1] for one in self._made)

    @staticmethod
    def _padded(made: Sequence[torch.Tensor]) -> torch.Tensor:
        import torch

        return torch.nn.utils.rnn.pad_sequence(list(made), batch_first=True)


def fit_head(
    model: TaskModel,
    windows: Sequence[Window],
    check: Callable[[list[Any]], Scores],
    validation: Sequence[Window],
    *,
    class_weights: torch.Tensor | None = None,
    looseness: Sequence[float] = LOOSENESS,
    told: Callable[[int, int, float, Scores], None] = lambda number, steps, loss, found: None,
) -> tuple[list[tuple[int, float]], list[tuple[int, float]], int]:
    """Fit the head in place. Returns loss and validation figure by steps, and which looseness was best (-1: none).

    `told` is given the number of a fit, the steps so far, its loss and its validation scores.
    """
    import torch

    kept, watched = Kept(model, windows), Kept(model, validation)
    chunks, size = kept.chunks(), kept.size()
    found = check(watched.scores())
    best, best_fit, state = -math.inf, -1, model.state()
    losses: list[tuple[int, float]] = []
    figures: list[tuple[int, float]] = [(0, found.value)]
    steps = 0
    with torch.no_grad():
        model.head.weight.zero_()
    for number, one in enumerate(looseness):
        count, loss = _minimise(model, chunks, size, one, class_weights)
        steps += count
        found = check(watched.scores())
        losses.append((steps, loss))
        figures.append((steps, found.value))
        told(number, steps, loss, found)
        if found.value > best:
            best, best_fit, state = found.value, number, model.state()
        elif number - best_fit >= 2:
            break
    model.load_state(state)
    return losses, figures, best_fit


def _minimise(
    model: TaskModel,
    chunks: Sequence[tuple[Batch, torch.Tensor, int]],
    size: float,
    looseness: float,
    class_weights: torch.Tensor | None,
) -> tuple[int, float]:
    """The least penalised loss, from where the head stands. Returns steps and mean loss."""
    import torch

    total = sum(targets for _, _, targets in chunks)
    cost = size**2 / (2 * looseness * total)
    head: torch.nn.Linear = model.head
    steps = model.settings.epochs if model.settings.method == "head" else STEPS
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=steps, history_size=10, line_search_fn="strong_wolfe")
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
