"""One optimizer step: loss and gradient of a batch, gradient clipping, checks, and the update of the parameters.

Where memory runs out, packs are halved and the step is repeated. Several processes share the examples of a step.
Does not know epochs, evaluation or checkpoints; those are in `tuner.training.trainer`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.config.settings import TuningSettings
from agent.errors import LivenessError, TuningError
from tuner.methods.base import TunableModel
from tuner.training import distributed
from tuner.training.memory_budget import is_out_of_memory
from tuner.training.results import Say
from tuner.tree.adversarial import freelb_backward
from tuner.tree.attention import KeysAndValues
from tuner.tree.loss import Noise, backward_with_prefix, log_probabilities
from tuner.tree.packing import Batch, Pack, tokens_in

if TYPE_CHECKING:
    import torch

MAX_LOSS_RATIO = 1.2
"""Of the loss over that of a uniform guess, or over the first loss if that was higher; above it training has failed."""


@dataclass(frozen=True)
class StepResult:
    """Figures of one optimizer step."""

    loss: float
    """Mean over the target tokens."""
    gradient_norm: float
    """Before clipping."""
    rate: float
    """Learning rate."""
    tokens: int
    """Packed tokens of all processes."""


class OptimizerStep:
    """Updates the trained parameters from one batch at a time, with AdamW."""

    def __init__(
        self,
        tunable: TunableModel,
        settings: TuningSettings,
        *,
        precision: str,
        packs_trees: bool,
        max_tokens: int,
        longest: int,
        keeps_start: bool,
        say: Say,
    ) -> None:
        """Set up the optimizer.

        Args:
            tunable: The model, prepared by a method.
            settings: Of the training.
            precision: Of matrix products, "float32" or "mixed".
            packs_trees: False for a model that reads rows only.
            max_tokens: Of a pack.
            longest: Tokens of the longest training example, which a pack must hold.
            keeps_start: Whether the current values are those of an adapter that `anchor` and `anchor_kl` keep close to.
            say: Receives messages for the user.
        """
        import torch

        self._settings = settings
        self._tunable = tunable
        self._precision = precision
        self._packs_trees = packs_trees
        self._longest = longest
        self._say = say
        self.max_tokens = max_tokens
        self.reader: Any = tunable.model
        """Computes logits: the model, or `FrozenLayers` in front of it."""
        anchored = keeps_start and (settings.anchor > 0 or settings.anchor_kl > 0)
        self._anchors = [parameter.detach().clone() for parameter in self.parameters] if anchored else []
        self.optimizer = torch.optim.AdamW(
            [{"params": group.parameters, "scale": group.rate} for group in tunable.groups],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Everything that is trained."""
        return [parameter for group in self._tunable.groups for parameter in group.parameters]

    def take(self, batch: Batch, rate: float, *, number: int, first_loss: float) -> StepResult:
        """Take a step.

        Args:
            batch: The examples of all processes.
            rate: The learning rate.
            number: Of the step, from 1; for error messages.
            first_loss: Of the first step; NaN in that step itself.

        Raises:
            LivenessError: The gradient is zero.
            TuningError: The loss is not finite or has exploded, or memory does not hold the longest example.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self._tunable.model.train()
        loss, tokens = self._gradient(batch)
        result = StepResult(loss, self._clip(), rate, tokens)
        self._check(result, batch, number, first_loss)
        self.optimizer.step()
        return result

    def packs(self, batch: Batch) -> list[Pack]:
        """The examples of a batch as packs of at most `max_tokens`, or each as a row."""
        return batch.packs(self.max_tokens) if self._packs_trees else batch.one_by_one()

    def prefix(self) -> KeysAndValues:
        """Keys and values of the method's prefix, without gradients."""
        import torch

        with torch.no_grad():
            return self._tunable.prefix(self._precision)

    def _gradient(self, batch: Batch) -> tuple[float, int]:
        """Compute the mean loss of a batch and its gradient; returns the loss and the number of packed tokens."""
        own = distributed.own_share(batch)
        while True:
            packs = self.packs(own) if own.rows else []
            self.optimizer.zero_grad(set_to_none=True)
            try:
                loss = self._backward(packs, batch.weight)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(error)
        loss, tokens = distributed.sum_gradients(self.parameters, loss, tokens_in(packs))
        self._pull_to_anchors()
        return loss / batch.weight, int(tokens)

    def _backward(self, packs: Sequence[Pack], weight: float) -> float:
        settings = self._settings
        references = self._references(packs)
        noise = Noise(settings.label_smoothing, settings.neftune, hold=settings.anchor_kl, references=references)
        if settings.adversarial == "none":
            prefix = self._tunable.prefix(self._precision)
            return backward_with_prefix(self.reader, packs, weight, self._precision, noise=noise, before=prefix)
        model = self._tunable.model
        return freelb_backward(model, packs, weight, self._precision, size=settings.adversarial_size, noise=noise)

    def _references(self, packs: Sequence[Pack]) -> dict[int, torch.Tensor]:
        """Log-probabilities of the adapter that training started from; empty unless `anchor_kl` is set."""
        import torch

        if not self._anchors or not self._settings.anchor_kl:
            return {}
        current = [parameter.detach().clone() for parameter in self.parameters]
        self._tunable.model.eval()
        with torch.no_grad():
            for parameter, anchor in zip(self.parameters, self._anchors, strict=True):
                parameter.copy_(anchor)
            references = log_probabilities(self.reader, packs, self._precision, before=self.prefix())
            for parameter, value in zip(self.parameters, current, strict=True):
                parameter.copy_(value)
        self._tunable.model.train()
        return references

    def _pull_to_anchors(self) -> None:
        """Add the gradient of half the squared distance to the anchors, times `anchor`."""
        import torch

        if self._anchors and self._settings.anchor:
            with torch.no_grad():
                for parameter, anchor in zip(self.parameters, self._anchors, strict=True):
                    if parameter.grad is not None:
                        parameter.grad.add_(parameter - anchor, alpha=self._settings.anchor)

    def _halve(self, error: BaseException) -> None:
        if self.max_tokens <= self._longest:
            raise TuningError(
                f"memory does not hold the longest example, {self._longest} tokens ({error}); leave it out, tune "
                "fewer layers (tuning.top_layers), or free memory"
            ) from error
        self.max_tokens = max(self._longest, self.max_tokens // 2)
        self._say(f"out of memory; packs have at most {self.max_tokens} tokens from here on")

    def _clip(self) -> float:
        import torch

        return float(torch.nn.utils.clip_grad_norm_(self.parameters, self._settings.max_grad_norm))

    def _check(self, result: StepResult, batch: Batch, number: int, first_loss: float) -> None:
        uniform = math.log(self._tunable.model.config.get_text_config().vocab_size)
        first = result.loss if math.isnan(first_loss) else first_loss
        exploded = result.loss > MAX_LOSS_RATIO * max(uniform, first)
        if exploded or not math.isfinite(result.loss) or not math.isfinite(result.gradient_norm):
            raise TuningError(
                f"step {number}: the loss is {result.loss} and the gradient norm {result.gradient_norm} at learning "
                f"rate {result.rate:.2e}, with the examples of {', '.join(batch.groups)}; lower tuning.learning_rate"
            )
        if result.gradient_norm == 0.0:
            raise LivenessError("the gradient is zero: nothing reaches the adapter; check tuning.targets")
