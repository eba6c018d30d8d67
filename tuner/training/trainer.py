"""Trains an adapter on packs of examples: one loop for every method, without a trainer framework.

The loss is the mean cross-entropy over the target tokens of an optimizer step, weighted as the settings say. Early
stopping keeps the adapter of the best held-out loss. Deterministic on a CPU for a seed and a number of threads: a
training that was killed and resumed ends with exactly the tensors of an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.config.settings import TuningSettings
from agent.errors import DatasetError, ModelError, NotBetterError, TuningError
from agent.llm.engine.attention import use_ragged_attention
from agent.llm.weights.precision import faster_precision
from tuner.methods.base import tuned_layers
from tuner.methods.methods import make_tunable
from tuner.settings import with_learning_rate
from tuner.training import distributed
from tuner.training.activation_cache import FrozenLayers
from tuner.training.checkpoints import Checkpoint, Checkpoints
from tuner.training.memory_budget import peak_bytes, tokens_that_fit
from tuner.training.metrics_log import MetricsLog
from tuner.training.optimizer_step import OptimizerStep, StepResult
from tuner.training.results import Progress, Say, Trained
from tuner.training.schedule import plan_epochs, rate_share, whole_batch
from tuner.tree.loss import mean_loss, misses
from tuner.tree.packing import Example, make_batches

if TYPE_CHECKING:
    import torch


MAX_INSPECTED = 200
"""Examples that are inspected after the training for target tokens that the model still gets wrong."""


def train(
    model: Any,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    settings: TuningSettings,
    *,
    folder: Path | None,
    start_from: Path | None = None,
    metrics: Path | None = None,
    checkpoints: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    say: Say = lambda text: None,
) -> Trained:
    """Train an adapter on a transformers decoder and save it as a PEFT folder.

    Processes of `tuner.training.distributed.join_processes` share the work; the first of them writes.

    Args:
        model: The base, with weights of its own; left as it was, but for its precision.
        examples: To train on.
        held_out: For early stopping; may be empty.
        settings: Of the training.
        folder: Where the adapter goes; None saves none.
        start_from: The folder of an adapter to continue from, of the same method and shape.
        metrics: A file of JSON lines: the settings, then each optimizer step and each evaluation.
        checkpoints: A folder. Training continues from a checkpoint of the same training in it, and leaves one there
            from time to time, when interrupted and at the end.
        on_progress: Called after each step and each epoch.
        say: Receives messages for the user.

    Raises:
        DatasetError: There are no examples, no targets, or an example is longer than a pack.
        LivenessError: The gradient is zero.
        NotBetterError: No epoch improved the held-out loss.
        TuningError: The loss is not a number or explodes, or the settings do not fit the model.
    """
    settings = with_learning_rate(settings)
    training = _Training(model, examples, held_out, settings, start_from, say)
    leads = distributed.rank() == 0
    saved = None if checkpoints is None else Checkpoints(checkpoints)
    log = MetricsLog(metrics if leads else None, settings, training.steps)
    checkpoint = None if saved is None else saved.newest()
    if checkpoint is not None:
        training.resume(checkpoint)
    training.cache_frozen_layers(examples)
    if checkpoint is None:
        training.evaluate_first()
        log.begin()
    else:
        log.rewind(training.state.step, training.state.epoch)
        say(f"continuing after step {training.state.step} of {training.steps}")

    def save_checkpoint() -> None:
        if leads and saved is not None:
            saved.save(training.state.step, *training.checkpoint())

    _run(training, log, save_checkpoint, on_progress)
    return training.finish(folder if leads else None)


def _run(
    training: _Training,
    log: MetricsLog,
    save_checkpoint: Callable[[], None],
    on_progress: Callable[[Progress], None] | None,
) -> None:
    """Take steps until the training is finished or interrupted."""
    saved_at = time.perf_counter()
    try:
        while not training.is_finished():
            if training.epoch_is_over():
                training.end_epoch()
                log.epoch(training.state.step, training.state.epoch - 1, training.state.held_out)
            else:
                log.step(training.take_step())
            if on_progress is not None:
                on_progress(training.progress())
            if time.perf_counter() - saved_at >= training.settings.checkpoint_seconds:
                save_checkpoint()
                saved_at = time.perf_counter()
    except KeyboardInterrupt:
        if training.is_consistent:
            save_checkpoint()
        raise
    save_checkpoint()


@dataclass
class _TrainingState:
    """The counters of a training; saved in each checkpoint."""

    epoch: int = 0
    done: int = 0
    """Optimizer steps of this epoch."""
    step: int = 0
    loss: float = math.nan
    held_out: float | None = None
    first_held_out: float | None = None
    first_loss: float = math.nan
    best_loss: float = math.inf
    best_epoch: int = -1
    packed: int = 0
    """Tokens in packs."""
    rowed: int = 0
    """Tokens of the same examples without packing."""
    targets: int = 0
    examples: int = 0
    seconds: float = 0.0
    """Of the processes before this one."""
    max_tokens: int = 0
    """Of a pack."""


class _Training:
    """A model, the plan of its training, and the state."""

    def __init__(
        self,
        model: Any,
        examples: Sequence[Example],
        held_out: Sequence[Example],
        settings: TuningSettings,
        start_from: Path | None,
        say: Say,
    ) -> None:
        import torch

        _check_examples(examples)
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.state = _TrainingState()
        self.is_consistent = True
        """False in the middle of a step, where no checkpoint can be taken."""
        self._say = say
        self._started = time.perf_counter()
        self._packs_trees = _packs_trees(model, say)
        self._precision = faster_precision(str(model.device)) if settings.precision == "auto" else settings.precision
        self._tunable = make_tunable(model, settings, self._precision, examples[0].ids)
        self._model = self._tunable.model
        _check_adversarial(settings, self._tunable.has_prefix)
        longest = max(len(example.ids) for example in [*examples, *held_out])
        if start_from is not None:
            self._tunable.start_from(start_from)
        self._stepper = OptimizerStep(
            self._tunable,
            settings,
            precision=self._precision,
            packs_trees=self._packs_trees,
            max_tokens=settings.max_tokens_per_pack or tokens_that_fit(self._model, longest),
            longest=max(len(example.ids) for example in examples),
            keeps_start=start_from is not None,
            say=say,
        )
        self._plan = plan_epochs(examples, settings)
        self._held_out = whole_batch(held_out, settings)
        self._inspected = whole_batch([*held_out, *examples][:MAX_INSPECTED], settings)
        for batch in [*self._plan[0], *([self._held_out] if self._held_out else [])]:
            if self._packs_trees:
                batch.check_fits(self._stepper.max_tokens)  # Before anything is computed.
        self._best = self._tunable.state()
        self._identity = _identity(examples, held_out, settings, start_from)

    @property
    def steps(self) -> int:
        """Optimizer steps without early stopping."""
        return sum(map(len, self._plan))

    def is_finished(self) -> bool:
        state, patience = self.state, self.settings.patience
        stops = bool(patience) and self._held_out is not None and state.epoch - 1 - state.best_epoch >= patience
        return state.epoch >= len(self._plan) or (stops and state.done == 0)

    def epoch_is_over(self) -> bool:
        return self.state.done == len(self._plan[self.state.epoch])

    def cache_frozen_layers(self, examples: Sequence[Example]) -> None:
        """Compute the layers below the tuned ones once, if that is possible."""
        settings, lowest = self.settings, tuned_layers(self._model, self.settings).start
        input_changes = settings.neftune > 0 or settings.adversarial != "none" or self._tunable.has_prefix
        if not lowest or input_changes or not settings.cache_gigabytes or not self._packs_trees:
            return
        # In an order that does not depend on the state, so that a resumed training reads the same.
        batches = make_batches(examples, batch_targets=settings.batch_targets, weighting=settings.weighting)
        batches += [self._held_out] if self._held_out else []
        packs = [pack for batch in batches for pack in self._stepper.packs(batch)]
        self._model.eval()
        frozen = FrozenLayers(self._model, lowest)
        frozen.fill(packs, self._precision, int(settings.cache_gigabytes * 2**30), self._say)
        self._stepper.reader = frozen

    def evaluate_first(self) -> None:
        """Measure the held-out loss before the first step."""
        self.state.held_out = self.state.first_held_out = self._evaluate()
        if self.state.held_out is not None:
            self.state.best_loss = self.state.held_out

    def take_step(self) -> dict[str, Any]:
        """Take an optimizer step and return its line of the metrics log."""
        state, batch = self.state, self._plan[self.state.epoch][self.state.done]
        rate = self.settings.learning_rate * rate_share(state.step, self.steps, self.settings)
        self.is_consistent = False
        result = self._stepper.take(batch, rate, number=state.step + 1, first_loss=state.first_loss)
        state.step += 1
        state.done += 1
        state.loss = result.loss
        state.first_loss = result.loss if math.isnan(state.first_loss) else state.first_loss
        state.packed += result.tokens
        state.rowed += batch.row_tokens
        state.targets += batch.targets
        state.examples += len(batch.rows)
        self.is_consistent = True
        return self._log_line(result)

    def _log_line(self, result: StepResult) -> dict[str, Any]:
        return {
            "step": self.state.step,
            "epoch": self.state.epoch,
            "loss": result.loss,
            "gradient_norm": result.gradient_norm,
            "rate": result.rate,
            "tokens": self.state.packed,
            "seconds": self.seconds(),
        }

    def end_epoch(self) -> None:
        """Evaluate, keep the adapter if it is the best so far, and begin the next epoch."""
        state = self.state
        state.held_out = self._evaluate()
        if state.held_out is None or state.held_out < state.best_loss:
            state.best_loss = state.loss if state.held_out is None else state.held_out
            state.best_epoch = state.epoch
            self._best = self._tunable.state()
        state.epoch += 1
        state.done = 0

    def progress(self) -> Progress:
        seconds = self.seconds()
        state, steps = self.state, self.steps
        left = seconds / state.step * (steps - state.step) if state.step else math.nan
        epoch = state.epoch if state.done else max(0, state.epoch - 1)
        speed = state.packed / seconds
        return Progress(epoch, state.step, steps, state.examples, state.loss, state.held_out, speed, seconds, left)

    def seconds(self) -> float:
        """Return the seconds of training so far, those before a checkpoint included."""
        return self.state.seconds + time.perf_counter() - self._started

    def checkpoint(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the tensors and counters that a new training with the same arguments needs to continue."""
        import torch

        tensors = {f"best/{name}": tensor for name, tensor in self._best.items()}
        tensors["random"] = torch.get_rng_state()
        for place, parameter in enumerate(self._stepper.parameters):
            tensors[f"parameter/{place}"] = parameter.detach()
            for name, tensor in self._stepper.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{place}/{name}"] = tensor
        self.state.max_tokens = self._stepper.max_tokens
        return tensors, {**asdict(self.state), "seconds": self.seconds(), "identity": self._identity}

    def resume(self, checkpoint: Checkpoint) -> None:
        """Restore the state of a checkpoint. Raises TuningError for a checkpoint of another training."""
        import torch

        counters = dict(checkpoint.counters)
        if counters.pop("identity") != self._identity:
            raise TuningError(
                "the checkpoint is of other examples or settings; start a new tuning, or restore the old settings"
            )
        tensors = checkpoint.tensors
        self.state = _TrainingState(**counters)
        self._stepper.max_tokens = self.state.max_tokens
        with torch.no_grad():
            for place, parameter in enumerate(self._stepper.parameters):
                parameter.copy_(tensors[f"parameter/{place}"])
                prefix = f"optimizer/{place}/"
                state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
                if state:
                    self._stepper.optimizer.state[parameter] = state
        self._best = {name.removeprefix("best/"): value for name, value in tensors.items() if name.startswith("best")}
        torch.set_rng_state(tensors["random"])

    def finish(self, folder: Path | None) -> Trained:
        """Save the best adapter, if there is a folder for it, remove it from the model, and return the figures."""
        state = self.state
        if state.best_epoch < 0:
            raise NotBetterError(
                f"no epoch brought the held-out loss below the {state.best_loss:.3f} it began with; lower the "
                "learning rate"
            )
        missed: dict[str, list[tuple[int, int]]] = {}
        if folder is not None:
            self._tunable.save(self._best, folder)
            self._model.eval()
            packs = self._stepper.packs(self._inspected) if self._inspected else []
            missed = misses(self._stepper.reader, packs, self._precision, before=self._stepper.prefix())
        self._tunable.remove()
        return Trained(
            steps=state.step,
            epochs=state.epoch,
            loss=state.loss,
            held_out_loss=state.best_loss if self._held_out is not None else None,
            first_held_out_loss=state.first_held_out,
            best_epoch=state.best_epoch,
            seconds=self.seconds(),
            precision=self._precision,
            packed_tokens=state.packed,
            row_tokens=state.rowed,
            target_tokens=state.targets,
            parameters=sum(parameter.numel() for parameter in self._stepper.parameters),
            peak_bytes=peak_bytes(),
            missed=missed,
            looked_at=len(self._inspected.rows) if self._inspected else 0,
        )

    def _evaluate(self) -> float | None:
        if self._held_out is None:
            return None
        self._model.eval()
        packs = self._stepper.packs(self._held_out)
        return mean_loss(self._stepper.reader, packs, self._precision, before=self._stepper.prefix())


def _check_examples(examples: Sequence[Example]) -> None:
    if not examples:
        raise DatasetError("there is nothing to train on; accept or correct some runs first")
    if not any(example.target_count for example in examples):
        raise DatasetError("the dataset has no target token; nothing could be learnt from it")


def _check_adversarial(settings: TuningSettings, has_prefix: bool) -> None:
    if settings.adversarial != "none" and has_prefix:
        raise TuningError(
            f'adversarial training changes the embeddings of the input, and method "{settings.method}" trains nothing '
            'else; set tuning.adversarial to "none", or use another method'
        )


def _packs_trees(model: Any, say: Say) -> bool:
    """Make the model read trees; return False, with a message to the user, where it cannot."""
    try:
        use_ragged_attention(model)
    except ModelError as error:
        say(f"training row by row, which is slower: {error}")
        return False
    return True


def _identity(
    examples: Sequence[Example], held_out: Sequence[Example], settings: TuningSettings, start_from: Path | None
) -> str:
    """Hash everything that decides the result of a training."""
    digest = hashlib.sha256(repr(settings).encode())
    for example in (*examples, None, *held_out):
        digest.update(repr(example).encode())
    if start_from is not None:
        digest.update((start_from / "adapter_model.safetensors").read_bytes())
    return digest.hexdigest()
