"""Trains an adapter on packs: one loop, no trainer behind it.

The base weights are frozen; the loss is the mean cross-entropy over the target tokens of an optimizer step, each
weighted as the settings say. Early stopping keeps the adapter of the best held-out loss. Deterministic on a CPU for
a seed and a number of threads: a training that was killed and resumed ends with the very tensors of one that was not.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import DatasetError, LivenessError, ModelError, NotBetterError, TuningError
from agent.llm.engine.attention import use_ragged_attention
from agent.llm.weights.precision import faster_precision
from tuner.methods.base import tuned_layers
from tuner.methods.methods import make_tunable
from tuner.settings import TrainSettings
from tuner.training import distributed as parallel
from tuner.training.activation_cache import FrozenLayers
from tuner.training.checkpoints import Checkpoint, Checkpoints
from tuner.training.memory_budget import is_out_of_memory, peak_bytes, tokens_that_fit
from tuner.training.metrics_log import MetricsLog
from tuner.training.optimizer_step import _Step
from tuner.training.results import Progress, Say, Trained
from tuner.training.schedule import _as_one, _plan, _rate
from tuner.tree.adversarial import adversarial_backward
from tuner.tree.attention import KeysAndValues
from tuner.tree.loss import Noise, backward_behind, log_probabilities, mean_loss, misses
from tuner.tree.packing import Batch, Example, Pack, make_batches, tokens_in

if TYPE_CHECKING:
    import torch


MOST_LOOKED_AT = 200
"""Examples that are looked at, once the training is over, for what the model still gets wrong."""


def train(
    model: Any,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    settings: TrainSettings,
    *,
    folder: Path | None,
    start_from: Path | None = None,
    metrics: Path | None = None,
    checkpoints: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    say: Say = lambda text: None,
) -> Trained:
    """Train an adapter on a transformers decoder and save it, as a PEFT folder, in `folder`, unless that is None.

    `start_from` is an adapter's folder to go on from, of the same rank and targets. Writes a line of metrics for
    each optimizer step and epoch. Where the folder `checkpoints` holds one of this very training, it goes on from
    there; it leaves one there from time to time, when interrupted and at the end. Raises DatasetError for examples
    without targets or longer than a pack, LivenessError for a zero gradient, TuningError when the loss is not a
    number or explodes. Processes that are `tuner.training.distributed.together` share the work; the first of them writes.
    """
    training = _Training(model, examples, held_out, settings, start_from, say)
    leads = parallel.rank() == 0
    kept = None if checkpoints is None else Checkpoints(checkpoints)
    log = MetricsLog(metrics if leads else None, settings, training.steps)
    found = None if kept is None else kept.newest()
    if found is not None:
        training.resume(found)
    training.read_ahead(examples)
    if found is None:
        training.first_evaluation()
        log.begin()
    else:
        log.rewind(training.at.step, training.at.epoch)
        say(f"going on behind step {training.at.step} of {training.steps}")
    saved_at = time.perf_counter()

    def leave_checkpoint() -> None:
        if leads and kept is not None:
            kept.save(training.at.step, *training.checkpoint())

    try:
        while training.goes_on():
            if training.epoch_is_over():
                training.end_epoch()
                log.epoch(training.at.step, training.at.epoch - 1, training.at.held_out)
            else:
                step = training.take_step()
                log.step(training.row_of(step))
            if on_progress is not None:
                on_progress(training.progress())
            if time.perf_counter() - saved_at >= settings.checkpoint_seconds:
                leave_checkpoint()
                saved_at = time.perf_counter()
    except KeyboardInterrupt:
        if training.settled:
            leave_checkpoint()
        raise
    leave_checkpoint()
    return training.finish(folder if leads else None)


@dataclass
class _Position:
    """Where a training stands; what of a checkpoint is no tensor."""

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
    rowed: int = 0
    targets: int = 0
    examples: int = 0
    seconds: float = 0.0
    """Of the runs before this one."""
    max_tokens: int = 0


class _Training:
    """A model, its plan and where it stands."""

    def __init__(
        self,
        model: Any,
        examples: Sequence[Example],
        held_out: Sequence[Example],
        settings: TrainSettings,
        start_from: Path | None,
        say: Say,
    ) -> None:
        import torch

        if not examples:
            raise DatasetError("there is nothing to train on; accept or correct some runs first")
        if not any(one.target_count for one in examples):
            raise DatasetError("the dataset has no target token; nothing could be learnt from it")
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.at = _Position()
        self.settled = True
        """False in the midst of a step."""
        self._say = say
        self._started = time.perf_counter()
        self._packs_trees = _packs_trees(model, say)
        self._precision = faster_precision(str(model.device)) if settings.precision == "auto" else settings.precision
        self._tuned = make_tunable(model, settings, self._precision, examples[0].ids)
        self._model = self._read_by = self._tuned.model
        if settings.adversarial != "none" and settings.method in ("prompt", "prefix"):
            raise TuningError(
                f'adversarial training changes what the model reads, and method "{settings.method}" changes nothing '
                'else; set tuning.adversarial to "none", or take another method'
            )
        longest = max(len(one.ids) for one in [*examples, *held_out])
        self.at.max_tokens = settings.max_tokens_per_pack or tokens_that_fit(self._model, longest)
        if start_from is not None:
            self._tuned.start_from(start_from)
        pulls = start_from is not None and (settings.anchor > 0 or settings.anchor_kl > 0)
        self._anchors = [one.detach().clone() for one in self._parameters] if pulls else []
        self._optimizer = torch.optim.AdamW(
            [{"params": group.parameters, "scale": group.rate} for group in self._tuned.groups],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        self._plan = _plan(examples, settings)
        self._held_out = _as_one(held_out, settings)
        self._looked_at = _as_one([*held_out, *examples][:MOST_LOOKED_AT], settings)
        for batch in [*self._plan[0], *([self._held_out] if self._held_out else [])]:
            if self._packs_trees:
                batch.check_fits(self.at.max_tokens)  # What is too long is said before anything is computed.
        self._best = self._tuned.state()
        self._identity = _identity(examples, held_out, settings, start_from)

    @property
    def steps(self) -> int:
        """Optimizer steps, if none are saved by stopping early."""
        return sum(map(len, self._plan))

    def goes_on(self) -> bool:
        at, patience = self.at, self.settings.patience
        stops = bool(patience) and self._held_out is not None and at.epoch - 1 - at.best_epoch >= patience
        return at.epoch < len(self._plan) and not (stops and at.done == 0)

    def epoch_is_over(self) -> bool:
        return self.at.done == len(self._plan[self.at.epoch])

    def read_ahead(self, examples: Sequence[Example]) -> None:
        """Where only upper layers are tuned, read everything through those below, once."""
        chosen, lowest = self.settings, tuned_layers(self._model, self.settings).start
        changed = chosen.neftune > 0 or chosen.adversarial != "none" or chosen.method in ("prompt", "prefix")
        if not lowest or changed or not chosen.cache_gigabytes or not self._packs_trees:
            return
        # In an order that does not depend on where the training stands, so that a resumed one reads the same.
        batches = make_batches(examples, batch_targets=chosen.batch_targets, weighting=chosen.weighting)
        batches += [self._held_out] if self._held_out else []
        packs = [pack for batch in batches for pack in self._packs(batch)]
        self._model.eval()
        frozen = FrozenLayers(self._model, lowest)
        frozen.fill(packs, self._precision, int(chosen.cache_gigabytes * 2**30), self._say)
        self._read_by = frozen

    def first_evaluation(self) -> None:
        self.at.held_out = self.at.first_held_out = self._evaluate()
        if self.at.held_out is not None:
            self.at.best_loss = self.at.held_out

    def take_step(self) -> _Step:
        """One optimizer step."""
        at, batch = self.at, self._plan[self.at.epoch][self.at.done]
        rate = self.settings.learning_rate * _rate(at.step, self.steps, self.settings)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.settled = False
        self._model.train()
        loss, tokens = self._gradient(batch)
        step = _Step(loss, self._clip(), rate)
        self._check(step, batch)
        self._optimizer.step()
        at.step += 1
        at.done += 1
        at.loss = loss
        at.first_loss = loss if math.isnan(at.first_loss) else at.first_loss
        at.packed += tokens
        at.rowed += batch.row_tokens
        at.targets += batch.targets
        at.examples += len(batch.rows)
        self.settled = True
        return step

    def row_of(self, step: _Step) -> dict[str, Any]:
        """What the log says of the step that was just taken."""
        return {
            "step": self.at.step,
            "epoch": self.at.epoch,
            "loss": step.loss,
            "gradient_norm": step.norm,
            "rate": step.rate,
            "tokens": self.at.packed,
            "seconds": self.seconds(),
        }

    def end_epoch(self) -> None:
        """Evaluate, keep the adapter if it is the best so far, and turn to the next epoch."""
        at = self.at
        at.held_out = self._evaluate()
        if at.held_out is None or at.held_out < at.best_loss:
            at.best_loss = at.loss if at.held_out is None else at.held_out
            at.best_epoch = at.epoch
            self._best = self._tuned.state()
        at.epoch += 1
        at.done = 0

    def progress(self) -> Progress:
        seconds = self.seconds()
        at, steps = self.at, self.steps
        left = seconds / at.step * (steps - at.step) if at.step else math.nan
        epoch = at.epoch if at.done else max(0, at.epoch - 1)
        speed = at.packed / seconds
        return Progress(epoch, at.step, steps, at.examples, at.loss, at.held_out, speed, seconds, left)

    def seconds(self) -> float:
        """Of training until now, those before a checkpoint included."""
        return self.at.seconds + time.perf_counter() - self._started

    def checkpoint(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Everything that a fresh training with the same arguments needs to go on from here."""
        import torch

        tensors = {f"best/{name}": tensor for name, tensor in self._best.items()}
        tensors["random"] = torch.get_rng_state()
        for place, parameter in enumerate(self._parameters):
            tensors[f"parameter/{place}"] = parameter.detach()
            for name, tensor in self._optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{place}/{name}"] = tensor
        return tensors, {**asdict(self.at), "seconds": self.seconds(), "identity": self._identity}

    def resume(self, found: Checkpoint) -> None:
        """Stand where the checkpoint was taken. Raises TuningError for one of another training."""
        import torch

        counters = dict(found.counters)
        if counters.pop("identity") != self._identity:
            raise TuningError(
                "the checkpoint is of other examples or settings; start a new tuning, or put back what it was made with"
            )
        self.at = _Position(**counters)
        with torch.no_grad():
            for place, parameter in enumerate(self._parameters):
                parameter.copy_(found.tensors[f"parameter/{place}"])
                held = f"optimizer/{place}/"
                state = {name.removeprefix(held): one for name, one in found.tensors.items() if name.startswith(held)}
                if state:
                    self._optimizer.state[parameter] = state
        self._best = {name.removeprefix("best/"): one for name, one in found.tensors.items() if name.startswith("best")}
        torch.set_rng_state(found.tensors["random"])

    def finish(self, folder: Path | None) -> Trained:
        """Save the best adapter, if there is a folder for it, take it off the model again, and sum up."""
        at = self.at
        if at.best_epoch < 0:
            raise NotBetterError(
                f"no epoch brought the held-out loss below the {at.best_loss:.3f} it began with; lower the "
                "learning rate"
            )
        missed: dict[str, list[tuple[int, int]]] = {}
        if folder is not None:
            self._tuned.save(self._best, folder)
            self._model.eval()
            packs = self._packs(self._looked_at) if self._looked_at else []
            missed = misses(self._read_by, packs, self._precision, before=self._before())
        self._tuned.take_off()
        return Trained(
            steps=at.step,
            epochs=at.epoch,
            loss=at.loss,
            held_out_loss=at.best_loss if self._held_out is not None else None,
            first_held_out_loss=at.first_held_out,
            best_epoch=at.best_epoch,
            seconds=self.seconds(),
            precision=self._precision,
            packed_tokens=at.packed,
            row_tokens=at.rowed,
            target_tokens=at.targets,
            parameters=sum(one.numel() for one in self._parameters),
            peak_bytes=peak_bytes(),
            missed=missed,
            looked_at=len(self._looked_at.rows) if self._looked_at else 0,
        )

    @property
    def _parameters(self) -> list[torch.nn.Parameter]:
        return [one for group in self._tuned.groups for one in group.parameters]

    def _packs(self, batch: Batch) -> list[Pack]:
        return batch.packs(self.at.max_tokens) if self._packs_trees else batch.one_by_one()

    def _gradient(self, batch: Batch) -> tuple[float, int]:
        """The mean loss of a batch, its gradient in the parameters, and the tokens that took.

        Where memory runs out the packs are halved, for the rest of the training.
        """
        own = parallel.own_share(batch)
        while True:
            packs = self._packs(own) if own.rows else []
            self._optimizer.zero_grad(set_to_none=True)
            try:
                loss = self._backward(packs, batch.weight)
                break
            except (RuntimeError, MemoryError) as fault:
                if not is_out_of_memory(fault):
                    raise
                self._halve(fault)
        loss, tokens = parallel.add_up(self._parameters, loss, tokens_in(packs))
        self._pull()
        return loss / batch.weight, int(tokens)

    def _backward(self, packs: Sequence[Pack], weight: float) -> float:
        chosen = self.settings
        references = self._references(packs)
        noise = Noise(chosen.label_smoothing, chosen.neftune, hold=chosen.anchor_kl, references=references)
        if chosen.adversarial == "none":
            before = self._tuned.before(self._precision)
            return backward_behind(self._read_by, packs, weight, self._precision, noise=noise, before=before)
        kind, size, parameters = chosen.adversarial, chosen.adversarial_size, self._parameters
        return adversarial_backward(kind, size, self._model, packs, weight, self._precision, noise, parameters)

    def _references(self, packs: Sequence[Pack]) -> dict[int, torch.Tensor]:
        """What the adapter that was started from says at the targets; nothing where it is not to be kept."""
        import torch

        if not self._anchors or not self.settings.anchor_kl:
            return {}
        own = [one.detach().clone() for one in self._parameters]
        self._model.eval()
        with torch.no_grad():
            for parameter, anchor in zip(self._parameters, self._anchors, strict=True):
                parameter.copy_(anchor)
            found = log_probabilities(self._read_by, packs, self._precision, before=self._before())
            for parameter, kept in zip(self._parameters, own, strict=True):
                parameter.copy_(kept)
        self._model.train()
        return found

    def _before(self) -> KeysAndValues:
        """What stands before every sequence, without gradients."""
        import torch

        with torch.no_grad():
            return self._tuned.before(self._precision)

    def _pull(self) -> None:
        """Add the gradient that holds the adapter to where it started."""
        import torch

        if self._anchors and self.settings.anchor:
            with torch.no_grad():
                for parameter, anchor in zip(self._parameters, self._anchors, strict=True):
                    if parameter.grad is not None:
                        parameter.grad.add_(parameter - anchor, alpha=self.settings.anchor)

    def _halve(self, fault: BaseException) -> None:
        longest = max(len(row.ids) for epoch in self._plan for batch in epoch for row in batch.rows)
        if self.at.max_tokens <= longest:
            raise TuningError(
                f"memory does not hold the longest example, {longest} tokens ({fault}); leave it out, tune fewer "
                "layers (tuning.top_layers), or free memory"
            ) from fault
        self.at.max_tokens = max(longest, self.at.max_tokens // 2)
        self._say(f"out of memory; packs have at most {self.at.max_tokens} tokens from here on")

    def _clip(self) -> float:
        import torch

        return float(torch.nn.utils.clip_grad_norm_(self._parameters, self.settings.max_grad_norm))

    def _check(self, step: _Step, batch: Batch) -> None:
        guessing = math.log(self._model.config.get_text_config().vocab_size)
        # Well above what guessing costs, and above what it began with: nothing is being learnt any more.
        exploded = step.loss > 1.2 * max(guessing, self.at.first_loss if self.at.step else step.loss)
        if exploded or not math.isfinite(step.loss) or not math.isfinite(step.norm):
            raise TuningError(
                f"step {self.at.step + 1}: the loss is {step.loss} and the gradient's norm {step.norm} at rate "
                f"{step.rate:.2e}, with the examples of {', '.join(batch.groups)}; lower tuning.learning_rate"
            )
        if step.norm == 0.0:
            raise LivenessError("the gradient is zero: nothing reaches the adapter; check tuning.targets")

    def _evaluate(self) -> float | None:
        if self._held_out is None:
            return None
        self._model.eval()
        return mean_loss(self._read_by, self._packs(self._held_out), self._precision, before=self._before())


def _packs_trees(model: Any, say: Say) -> bool:
    """Make the model read trees; False, having said so, where it cannot."""
    try:
        use_ragged_attention(model)
    except ModelError as fault:
        say(f"training row by row, which is slower: {fault}")
        return False
    return True


def _identity(
    examples: Sequence[Example], held_out: Sequence[Example], settings: TrainSettings, start_from: Path | None
) -> str:
    """Names everything that decides what comes out."""
    digest = hashlib.sha256(repr(settings).encode())
    for example in (*examples, None, *held_out):
        digest.update(repr(example).encode())
    if start_from is not None:
        digest.update((start_from / "adapter_model.safetensors").read_bytes())
    return digest.hexdigest()
