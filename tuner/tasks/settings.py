"""What a training of a task is told, and what is chosen where nothing was said: by task, amount of data and encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from agent.config.methods import TUNING_METHODS
from agent.errors import DatasetError
from tuner.tasks.data.records import TaskName

Method = Literal["full", "lora", "rslora", "dora", "lora+", "head", "ngrams"]
METHODS: tuple[Method, ...] = ("full", "lora", "rslora", "dora", "lora+", "head", "ngrams")
ADAPTERS = ("lora", "rslora", "dora", "lora+")
"""Methods by which two matrices are trained beside each linear layer; see `tuner.methods.methods`."""
RATES = {"full": 2e-4, "lora": 1e-3, "rslora": 3e-4, "dora": 1e-3, "lora+": 2e-4, "head": 0.0, "ngrams": 0.0}
"""Learning rates for encoders of up to `SMALL` dimensions."""
LOWER_RATES = {"full": 3e-5, "lora": 3e-4, "rslora": 1e-4, "dora": 3e-4, "lora+": 6e-5, "head": 0.0, "ngrams": 0.0}
"""For larger ones."""
SMALL = 512
ADVERSARIAL = ("none", "fgm", "freelb", "typos")
PRECISIONS = ("auto", "float32", "mixed")
Choice = Literal["similar", "coverage"]
CHOICES: tuple[Choice, ...] = ("similar", "coverage")
"""How the examples are chosen that a language model is shown; see `tuner.tasks.language.few_shot`."""


@dataclass(frozen=True)
class TaskSettings:
    """How a head, and the encoder below it, are trained."""

    method: Method
    """All weights, an adapter beside the linear layers (`ADAPTERS`), the head alone on a frozen encoder, or no encoder
    at all, see `tuner.tasks.head.ngrams`."""
    epochs: int
    """Passes over the data, at most; of a head alone, steps of each fit."""
    learning_rate: float
    """Of the encoder's weights or adapter."""
    head_rate: float
    """Of the head, unless it is trained alone."""
    batch: int
    """Windows of a step."""
    max_tokens: int
    """Of a window."""
    patience: int = 3
    """Epochs without a better validation figure, behind which it stops."""
    weight_decay: float = 0.01
    """Not of biases and norms."""
    warmup: float = 0.1
    """Share of the steps in which the rate rises; behind them it falls to nothing."""
    dropout: float = 0.1
    clip: float = 1.0
    """Length that a step's gradient is cut to."""
    frozen_layers: int = 0
    """Layers from the bottom, with the embeddings, that are left as they are."""
    head_first: bool = False
    """Fit the head, tightly, to the encoder as it is, and begin from there.
    Source: Kumar et al., "Fine-Tuning can Distort Pretrained Features" (2022)."""
    head_last: bool = False
    """Fit it anew to what the encoder became, and end no worse than the best fit before, on the validation."""
    label_names: bool = True
    """Learn what labels are called as well, where that tells texts apart; see `tuner.tasks.head.label_names`."""
    class_weights: bool = False
    """Let rare classes weigh as much as common ones."""
    adversarial: str = "none"
    """"fgm" or "freelb": train against the worst small change of the embeddings as well; "typos": on mistyped texts as
    well, see `tuner.tasks.data.typos`."""
    adversarial_size: float = 0.2
    """The length of the change, as a share of each embedding's; of "typos", the share of words that are mistyped."""
    negatives: int = 2
    """Windows without the answer that each question brings, at most."""
    precision: str = "auto"
    """Of training: "float32", "mixed" (see `agent.llm.weights.precision`), or "auto", the faster on this machine."""
    r: int = 16
    alpha: int = 32
    rate_ratio: float = 16.0
    """With the method "lora+": the rate of the second matrix (B) over that of the first."""
    seed: int = 0


def choose(
    task: TaskName, examples: int, longest: int, encoder: Mapping[str, int], given: Mapping[str, Any]
) -> TaskSettings:
    """Settings for so many training examples of so many tokens; `given` goes before what is chosen.

    `encoder` has its `hidden` size and its `positions`. Raises DatasetError for what cannot be.
    """
    unknown = sorted(given.keys() - {one.name for one in fields(TaskSettings)})
    if unknown:
        raise DatasetError(f"there is no setting {unknown[0]!r}; see TaskSettings for those there are")
    method = given.get("method") or _method(task, examples)
    if method in TUNING_METHODS and method not in METHODS:
        raise DatasetError(
            f"method {method} is for a language model, and this is an encoder; name one with --model, or take "
            f"{', '.join(METHODS[:-1])} or {METHODS[-1]}"
        )
    if method not in METHODS:
        raise DatasetError(f"there is no method {method!r}; expected one of {', '.join(METHODS)}")
    rates = RATES if encoder["hidden"] <= SMALL else LOWER_RATES
    deep = method in ("full", *ADAPTERS)
    head_last = task == "classify" and deep
    settings = TaskSettings(
        method=method,
        epochs=_epochs(method, examples, 6 if head_last else 20),
        learning_rate=rates[method],
        head_rate=1e-3,
        # The other pairs of a step are what a pair is told apart from.
        batch=64 if task == "embed" else _batch(examples),
        head_first=(task in ("classify", "answer") and deep) or (task == "tag" and method in ADAPTERS),
        head_last=head_last,
        max_tokens=_max_tokens(task, longest, encoder["positions"]),
    )
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    if task == "embed" and (method == "head" or settings.head_first or settings.head_last):
        raise DatasetError("task embed has no head, it trains the encoder; take method lora or full")
    if method == "ngrams" and task != "classify":
        raise DatasetError(f"method ngrams is for task classify; take another for {task}")
    _check(settings, encoder)
    return settings


def _method(task: TaskName, examples: int) -> Method:
    if task == "embed":
        return "lora"
    return "head" if task == "classify" and examples < 100 else "full"


def _epochs(method: Method, examples: int, most: int) -> int:
    """More passes over fewer examples, so that a training has some hundred steps at least, and ends within the day."""
    if method in ("head", "ngrams"):
        return 200
    least = max(1, min(4, 60_000 // max(1, examples)))
    return max(least, min(most, 40_000 // max(1, examples)))


def _batch(examples: int) -> int:
    return 32 if examples > 4000 else 16 if examples > 500 else 8


def _max_tokens(task: TaskName, longest: int, positions: int) -> int:
    most = {"classify": 256, "tag": 256, "relate": 192, "answer": 384, "embed": 256}[task]
    # Never short: what is asked later may be longer than what was learnt from, and windows cost only what is in them.
    return min(most, positions, max(128, -(-longest // 16) * 16))


def _check(settings: TaskSettings, encoder: Mapping[str, int]) -> None:
    if settings.precision not in PRECISIONS:
        raise DatasetError(f"precision is {settings.precision!r}; expected one of {', '.join(PRECISIONS)}")
    if settings.adversarial not in ADVERSARIAL:
        raise DatasetError(f"adversarial is {settings.adversarial!r}; expected one of {', '.join(ADVERSARIAL)}")
    if settings.adversarial in ("fgm", "freelb") and settings.method == "head":
        raise DatasetError(
            f"adversarial {settings.adversarial} needs the encoder in each step, and method head reads once; "
            "take method lora or full, or adversarial typos"
        )
    if settings.adversarial != "none" and settings.method == "ngrams":
        raise DatasetError(f"adversarial {settings.adversarial} is not for method ngrams; take another method")
    if not 0 < settings.adversarial_size <= 1:
        raise DatasetError(f"adversarial_size is {settings.adversarial_size}; expected a share above 0, up to 1")
    if not 16 <= settings.max_tokens <= encoder["positions"]:
        raise DatasetError(f"max_tokens is {settings.max_tokens}; this encoder reads 16 to {encoder['positions']}")
    for name in ("epochs", "batch", "patience"):
        if getattr(settings, name) < 1:
            raise DatasetError(f"{name} is {getattr(settings, name)}; expected 1 or more")
    for name in ("learning_rate", "head_rate"):
        if not 0 <= getattr(settings, name) < 1:
            raise DatasetError(f"{name} is {getattr(settings, name)}; expected a number from 0 to 1")
