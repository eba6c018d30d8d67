"""Settings of a language model's training for a task, and how they are chosen and passed to the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from agent.config.methods import TUNING_METHODS
from agent.config.settings import TuningSettings
from agent.errors import DatasetError
from tuner.settings import RATES

MAX_TOKENS = 2048
"""Tokens of an example, prompt and output, where nothing else is set."""


@dataclass(frozen=True)
class GenerationSettings:
    """How a language model's adapter is trained; defaults depend on the method and the amount of data."""

    method: str = "lora"
    """One of `agent.config.methods.TUNING_METHODS`; see `tuner.methods.methods`."""
    epochs: int = 4
    min_steps: int = 48
    """With little data more epochs than `epochs` are trained, up to so many steps; 1 where epochs are given."""
    learning_rate: float = RATES["lora"]
    batch: int = 150
    """Target tokens of a step, at least."""
    max_tokens: int = MAX_TOKENS
    """Of an example; longer ones are left out."""
    patience: int = 2
    frozen_layers: int = 0
    """Layers from the bottom that are not trained."""
    adversarial: str = "none"
    precision: str = "auto"
    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    virtual_tokens: int = 20
    """With the methods "prompt" and "prefix": virtual tokens in front of every text."""
    rate_ratio: float = 16.0
    """With the method "lora+": the learning rate of the second matrix (B) over that of the first."""
    seed: int = 0


def choose(given: Mapping[str, Any], layers: int, context: int) -> GenerationSettings:
    """Choose the settings that are not given.

    Args:
        given: Settings that the user gave; None and False count as not given.
        layers: Of the model.
        context: Tokens that the model reads at most.

    Raises:
        DatasetError: A setting is unknown for a language model, or out of range.
    """
    known = {one.name for one in fields(GenerationSettings)}
    explicit = {name: value for name, value in given.items() if value is not None and value is not False}
    unknown = sorted(explicit.keys() - known)
    if unknown:
        raise DatasetError(
            f"a language model is not trained with {unknown[0]!r}; leave it out, or name an encoder with --model"
        )
    method = explicit.get("method", "lora")
    if method not in TUNING_METHODS:
        raise DatasetError(
            f"a language model is not trained with method {method!r}; expected one of {', '.join(TUNING_METHODS)}"
        )
    defaults = GenerationSettings(learning_rate=RATES[method], max_tokens=min(MAX_TOKENS, context))
    settings = replace(defaults, **explicit)
    if "epochs" in explicit and "min_steps" not in explicit:
        settings = replace(settings, min_steps=1)
    _check(settings, layers, context)
    return settings


def trainer_settings(settings: GenerationSettings, layers: int) -> TuningSettings:
    """Return the settings as the tuner's trainer takes them, for a model of so many layers."""
    choices: dict[str, Any] = {name: getattr(settings, name) for name in ("method", "adversarial", "precision")}
    return TuningSettings(
        r=settings.r,
        alpha=settings.alpha,
        dropout=settings.dropout,
        virtual_tokens=settings.virtual_tokens,
        rate_ratio=settings.rate_ratio,
        top_layers=layers - settings.frozen_layers if settings.frozen_layers else 0,
        learning_rate=settings.learning_rate,
        epochs=settings.epochs,
        min_steps=settings.min_steps,
        batch_targets=settings.batch,
        patience=settings.patience,
        seed=settings.seed,
        **choices,
    )


def _check(settings: GenerationSettings, layers: int, context: int) -> None:
    if not 0 <= settings.frozen_layers < layers:
        raise DatasetError(
            f"{settings.frozen_layers} layers are to be frozen and the model has {layers}; leave one at least"
        )
    if settings.frozen_layers and settings.method in ("prompt", "prefix"):
        raise DatasetError(f"method {settings.method} leaves all layers as they are; leave out --freeze")
    if settings.adversarial not in ("none", "freelb"):
        raise DatasetError(f"a language model cannot be trained with adversarial {settings.adversarial!r}")
    for name in ("epochs", "batch", "patience", "r", "virtual_tokens"):
        if getattr(settings, name) < 1:
            raise DatasetError(f"{name} is {getattr(settings, name)}; expected 1 or more")
    if not 16 <= settings.max_tokens <= context:
        raise DatasetError(f"max_tokens is {settings.max_tokens}; this model reads 16 to {context}")
