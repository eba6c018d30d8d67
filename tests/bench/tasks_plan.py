"""What all sides of a set share when they are measured on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.config.project import Project
from tests.bench.tasks_sets import SETS
from tuner.tasks.data.splits import Splits
from tuner.tasks.head.tasks import HeadTask
from tuner.tasks.settings import TaskSettings

Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What all sides of a set share: the encoder's folder, the task, and our settings for tuning all weights."""

    folder: Path
    encoder: Any
    task: HeadTask
    settings: TaskSettings
    default: str
    """The method that is chosen where none is named."""


def plan(name: str, splits: Splits, seed: int, settings: Row, project: Project) -> Plan:
    from agent.llm.weights.load import encoder_weights
    from tuner.tasks.data.columns import Columns
    from tuner.tasks.fit.head import measure_tokens, plan_training
    from tuner.tasks.head.model import load_encoder

    base = encoder_weights(project.named(project.settings.model.encoder), project.home.models)
    encoder = load_encoder(base)
    given = SETS[name].task, splits, encoder, measure_tokens(encoder, splits), Columns()
    _, default = plan_training(*given, {})
    task, chosen = plan_training(*given, {**settings, "method": "full", "seed": seed})
    return Plan(base.folder, encoder, task, chosen, default.method)
