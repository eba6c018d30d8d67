"""Trains a LoRA adapter on packs: one loop, no trainer behind it.

The base weights are frozen; the loss is the mean cross-entropy over the target tokens of an optimizer step,
every target token counting the same. Logits are computed at target tokens alone. Early stopping keeps the
adapter of the best held-out loss. Deterministic on a CPU for a seed and a number of threads.
"""

from __future__ import annotations

import json
import math
import random
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import DatasetError, LivenessError, NotBetterError, TuningError
from agent.llm.attention import use_ragged_attention
from agent.llm.precision import faster_precision, use_bfloat16_products
from tuner.packing import Example, Pack, TreeLayout, pack_examples

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TrainSettings:
    """How an adapter is trained; `ratchet.toml`'s [tuning] has the same keys."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = ("all-linear",)
    learning_rate: float = 1e-3
    epochs: int = 4
    min_steps: int = 48
    """Optimizer steps that a training has at least; with little data they take more epochs than `epochs`."""
    batch_targets: int = 100
    """Target tokens that an optimizer step gathers at least, from as many packs as that takes."""
    max_tokens_per_pack: int = 1536
    patience: int = 2
    """Epochs without a better held-out loss before training stops; 0 never stops early."""
    warmup_share: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: str = "auto"
    """Of matrix products: "float32", "mixed" (see `agent.llm.precision`), or "auto", whichever is faster here."""
    start: str = "base"
    """Either "base", or "active" to go on from the adapter that is served."""
    seed: int = 0


@dataclass(frozen=True)
class Progress:
    """How far a training is."""

    epoch: int
    step: int
    steps: int
    loss: float
    held_out_loss: float | None
    tokens_per_second: float
    """Packed tokens."""
    seconds: float
    seconds_left: float


@dataclass(frozen=True)
class Trained:
    """What came of a training."""

    steps: int
    epochs: int
    loss: float
    held_out_loss: float | None
    first_held_out_loss: float | None
    best_epoch: int
    seconds: float
    precision: str
    packed_tokens: int
    row_tokens: int
    """What the same examples would have had as rows."""
    target_tokens: int
    parameters: int


def train(
    model: Any,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    settings: TrainSettings,
    *,
    folder: Path,
    start_from: Path | None = None,
    metrics: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Trained:
    """Train an adapter on a transformers decoder and save it, as a PEFT folder, in `folder`.

    `start_from` is an adapter's folder to go on from, of the same rank and targets. Writes a line of metrics for
    each optimizer step and epoch. Raises DatasetError for examples without targets, LivenessError for a zero
    gradient, TuningError when the loss is not a number.
    """
    import torch

    _check(examples)
    torch.manual_seed(settings.seed)
    precision = faster_precision(str(model.device)) if settings.precision == "auto" else settings.precision
    if precision == "mixed":
        use_bfloat16_products(model)
    peft_model, parameters = _with_lora(model, settings)
    if start_from is not None:
        _load_state(peft_model, start_from)
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    valid = pack_examples(held_out, max_tokens=settings.max_tokens_per_pack) if held_out else []
    plan = _plan(examples, settings)
    total = sum(len(batches) for batches in plan)
    run = _Run(settings, total, metrics, on_progress)
    first = _held_out_loss(peft_model, valid, precision)
    best = (math.inf if first is None else first, -1, _state(peft_model))
    run.held_out = first
    for epoch, batches in enumerate(plan):
        peft_model.train()
        for batch in batches:
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _rate(run.step, total, settings.warmup_share)
            loss, norm = _optimize(peft_model, batch, parameters, optimizer, settings.max_grad_norm, precision)
            run.after_step(epoch, batch, loss, norm)
        run.held_out = _held_out_loss(peft_model, valid, precision)
        run.after_epoch(epoch)
        if run.held_out is None or run.held_out < best[0]:
            best = (run.held_out if run.held_out is not None else run.loss, epoch, _state(peft_model))
        elif settings.patience and epoch - best[1] >= settings.patience:
            break
    if best[1] < 0:
        raise NotBetterError(
            f"no epoch brought the held-out loss below the {best[0]:.3f} it began with; lower the learning rate"
        )
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(peft_model, best[2])
    peft_model.save_pretrained(str(folder), safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)
    peft_model.unload()
    return Trained(
        steps=run.step,
        epochs=epoch + 1,
        loss=run.loss,
        held_out_loss=best[0] if valid else None,
        first_held_out_loss=first,
        best_epoch=best[1],
        seconds=time.perf_counter() - run.started,
        precision=precision,
        packed_tokens=run.packed,
        row_tokens=run.rowed,
        target_tokens=run.targets,
        parameters=sum(one.numel() for one in parameters),
    )


def loss_of(model: Any, pack: Pack) -> tuple[torch.Tensor, int]:
    """Summed cross-entropy over a pack's targets, and how many there are. Source: the usual next-token loss."""
    import torch
    from torch.nn.functional import cross_entropy

    device = model.device
    logits = model(
        input_ids=torch.from_numpy(pack.ids)[None].to(device),
        position_ids=torch.from_numpy(pack.positions)[None].to(device),
        logits_to_keep=torch.from_numpy(pack.sources).to(device),
        use_cache=False,
        layout=TreeLayout(pack, device),
    ).logits[0]
    labels = torch.from_numpy(pack.labels).to(device)
    return cross_entropy(logits.float(), labels, reduction="sum"), len(labels)


def _products_in(precision: str, device: str) -> Any:
    import torch

    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "mixed")


def _load_state(model: Any, folder: Path) -> None:
    from peft import LoraConfig, set_peft_model_state_dict
    from safetensors.torch import load_file

    theirs, ours = LoraConfig.from_pretrained(str(folder)), model.peft_config["default"]
    for name in ("r", "lora_alpha", "target_modules"):
        if getattr(theirs, name) != getattr(ours, name):
            raise TuningError(
                f"the adapter in {folder} has {name} {getattr(theirs, name)}, the settings give "
                f'{getattr(ours, name)}; set them alike, or set tuning.start to "base"'
            )
    set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))


def _check(examples: Sequence[Example]) -> None:
    if not examples:
        raise DatasetError("there is nothing to train on; accept or correct some runs first")
    if not any(any(example.targets) for example in examples):
        raise DatasetError("the dataset has no target token; nothing could be learnt from it")


def _with_lora(model: Any, settings: TrainSettings) -> tuple[Any, list[torch.nn.Parameter]]:
    from peft import LoraConfig, get_peft_model

    use_ragged_attention(model)
    names = settings.targets
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=names[0] if names == ("all-linear",) else list(names),
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            # peft 0.21 asks transformers by a name that is going away.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            peft_model = get_peft_model(model, config)
    except ValueError as fault:
        raise TuningError(
            f"tuning.targets {list(names)} do not fit this model ({fault}); "
            'set tuning.targets to names of its linear layers, or to ["all-linear"]'
        ) from fault
    return peft_model, [one for one in peft_model.parameters() if one.requires_grad]


def _plan(examples: Sequence[Example], settings: TrainSettings) -> list[list[list[Pack]]]:
    """Every epoch's optimizer steps: as many epochs as set, or as it takes to have enough steps."""
    plan: list[list[list[Pack]]] = []
    while len(plan) < settings.epochs or sum(map(len, plan)) < settings.min_steps:
        plan.append(_batches(examples, settings, len(plan)))
    return plan


def _batches(examples: Sequence[Example], settings: TrainSettings, epoch: int) -> list[list[Pack]]:
    """The optimizer steps of an epoch."""
    seed = settings.seed * 1000 + epoch
    packs = pack_examples(examples, max_tokens=settings.max_tokens_per_pack, seed=seed)
    random.Random(seed).shuffle(packs)
    batches: list[list[Pack]] = [[]]
    for pack in packs:
        if sum(len(one.labels) for one in batches[-1]) >= settings.batch_targets:
            batches.append([])
        batches[-1].append(pack)
    return batches


def _optimize(
    model: Any,
    batch: Sequence[Pack],
    parameters: Sequence[torch.nn.Parameter],
    optimizer: Any,
    max_norm: float,
    precision: str,
) -> tuple[float, float]:
    """One optimizer step. Returns the mean loss and the gradient's norm before clipping."""
    import torch

    count = sum(len(pack.labels) for pack in batch)
    total = 0.0
    optimizer.zero_grad(set_to_none=True)
    for pack in batch:
        with _products_in(precision, model.device.type):
            loss, _ = loss_of(model, pack)
        torch.autograd.backward(loss / count)
        total += float(loss.detach())
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))
    if not math.isfinite(total) or not math.isfinite(norm):
        raise TuningError(
            f"the loss is {total / count} and the gradient's norm {norm} at rate "
            f"{optimizer.param_groups[0]['lr']:.2e}; lower tuning.learning_rate"
        )
    if norm == 0.0:
        raise LivenessError("the gradient is zero: nothing reaches the adapter; check tuning.targets")
    optimizer.step()
    return total / count, norm


def _held_out_loss(model: Any, packs: Sequence[Pack], precision: str) -> float | None:
    import torch

    if not packs:
        return None
    model.eval()
    with torch.inference_mode(), _products_in(precision, model.device.type):
        sums = [loss_of(model, pack) for pack in packs]
    return sum(float(loss) for loss, _ in sums) / sum(count for _, count in sums)


def _state(model: Any) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    return {name: tensor.detach().clone() for name, tensor in get_peft_model_state_dict(model).items()}


def _rate(step: int, total: int, warmup_share: float) -> float:
    """Share of the learning rate: linear warm-up, then a cosine down to a tenth."""
    warmup = max(1, round(total * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    along = (step - warmup) / max(1, total - warmup)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * along))


class _Run:
    """Counts, clock and log of one training."""

    def __init__(
        self,
        settings: TrainSettings,
        total: int,
        metrics: Path | None,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.step = self.packed = self.rowed = self.targets = 0
        self.loss = math.nan
        self.held_out: float | None = None
        self.started = time.perf_counter()
        self._total = total
        self._metrics = metrics
        self._on_progress = on_progress
        self._write({"settings": asdict(settings), "steps": total})

    def after_step(self, epoch: int, batch: Sequence[Pack], loss: float, norm: float) -> None:
        self.step += 1
        self.loss = loss
        self.packed += sum(len(pack) for pack in batch)
        self.rowed += sum(pack.row_tokens for pack in batch)
        self.targets += sum(len(pack.labels) for pack in batch)
        seconds = time.perf_counter() - self.started
        self._write({"step": self.step, "epoch": epoch, "loss": loss, "gradient_norm": norm, "seconds": seconds})
        self._tell(epoch, seconds)

    def after_epoch(self, epoch: int) -> None:
        if self.held_out is not None:
            self._write({"step": self.step, "epoch": epoch, "held_out_loss": self.held_out})
            self._tell(epoch, time.perf_counter() - self.started)

    def _tell(self, epoch: int, seconds: float) -> None:
        if self._on_progress is not None:
            left = seconds / self.step * (self._total - self.step)
            self._on_progress(
                Progress(
                    epoch,
                    self.step,
                    self._total,
                    self.loss,
                    self.held_out,
                    self.packed / seconds,
                    seconds,
                    left,
                )
            )

    def _write(self, row: dict[str, Any]) -> None:
        if self._metrics is not None:
            with self._metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
