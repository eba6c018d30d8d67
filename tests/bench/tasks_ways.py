"""Two more ways to a classic task: the language model shown some examples, and going on from a neighbouring task.

What is compared is kept together: `shots_8` learns from nothing, as `shots_0` does; `transfer` learns from the same
tenth of the examples as `tenth`, behind a training on the neighbour's, a share of which `transfer+replay` learns again.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agent.config.project import Project
from tests.bench.tasks_sets import SETS, Predict, drawn, splits_of
from tuner.tasks.data.splits import Splits
from tuner.tasks.head.tasks import HeadTask
from tuner.tasks.language.prompts import TaskPrompt
from tuner.tasks.predictor import TaskResult

SHOTS = {"shots_0": 0, "shots_8": 8}
NAMES = "names"
"""The encoder, told what the labels are called."""
TENTHS = ("tenth", "transfer", "transfer+replay")
NEIGHBOURS = {"banking77": "bitext_8k", "bitext_8k": "banking77", "covidqa": "xquad_en"}
"""Whose texts are alike, and whose labels differ where there are labels."""
METHOD = "lora"
"""Of both sides of a transfer."""


@dataclass(frozen=True)
class Trained:
    """What a side came to, before it is measured."""

    predict: Predict
    task: HeadTask | TaskPrompt
    seconds: float
    parameters: int
    checkpoint_bytes: int
    more: Mapping[str, Any] = field(default_factory=dict)
    """Figures of this side alone."""


def fitted(task: HeadTask | TaskPrompt, default: bool, train: Callable[[Path], TaskResult]) -> Trained:
    """What `train` makes in the folder that it is given."""
    with tempfile.TemporaryDirectory() as folder:
        made = train(Path(folder) / "made")
        size = checkpoint_bytes(Path(folder) / "made")
    more = {
        "default": default,
        "best_epoch": made.trained.best_epoch,
        "validation": round(made.trained.validation, 4),
        "epochs": made.trained.epochs,
    }
    return Trained(made.predictor.predict, task, made.trained.seconds, made.trained.parameters, size, more)


def checkpoint_bytes(folder: Path) -> int:
    return (folder / "adapter_model.safetensors").stat().st_size


def asked(task: HeadTask | TaskPrompt, method: str, splits: Splits, seed: int, project: Project) -> Trained:
    """A model as it is: the language model shown the examples most alike, or none, or the encoder told the labels."""
    from tuner.tasks.fit.zero_shot import open_untrained

    model = None if method == NAMES else project.settings.model.base
    found = open_untrained(
        task.name, splits, model=model, few_shot=SHOTS.get(method, 0), seed=seed, project=project, say=note
    )
    return Trained(found.predict, task, 0.0, 0, 0)


def tenth(
    name: str,
    task: HeadTask,
    method: str,
    splits: Splits,
    seed: int,
    settings: Mapping[str, Any],
    project: Project,
    data: Path,
) -> Trained:
    """A tenth of the examples, alone or behind as many of the neighbour's as there are. Seconds are of both."""
    from tuner.tasks.fit.warm_start import REPLAY_SHARE, add_replay, open_warm_start

    few = replace(
        splits,
        train=drawn(splits.train, max(1, len(splits.train) // 10), seed),
        validation=drawn(splits.validation, max(1, len(splits.validation) // 10), seed),
    )
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        start = None
        if method != "tenth":
            near = splits_of(data, NEIGHBOURS[name], seed, len(splits.train), 100)
            _fit(name, near, Path(folder) / "near", project, {**settings, "seed": seed})
            start = open_warm_start(Path(folder) / "near")
        if method == "transfer+replay":
            few = add_replay(few, near.train, REPLAY_SHARE * len(few.train) / len(near.train), seed)
        made = _fit(name, few, Path(folder) / "made", project, {"seed": seed}, start)
        size = checkpoint_bytes(Path(folder) / "made")
    return Trained(made.predictor.predict, task, time.monotonic() - started, made.trained.parameters, size)


def _fit(
    name: str, splits: Splits, out: Path, project: Project, settings: Mapping[str, Any], start: Any = None
) -> TaskResult:
    from tuner.tasks.fit.head import train_head
    from tuner.tasks.fit.request import FitRequest

    given = {**settings, "method": METHOD}
    request = FitRequest(
        SETS[name].task, splits, out, project, "bench", settings=given, start=start, say=note, on_progress=tell
    )
    return train_head(request)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def tell(progress: Any) -> None:
    if progress.validation is not None:
        note(f"epoch {progress.epoch + 1}, loss {progress.loss:.3f}, validation {progress.validation.value:.4f}")
