"""The model card of an adapter: its data, its training and its limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from agent.config.settings import TuningSettings
from tuner.data.dataset import Dataset
from tuner.training.results import Trained

_CAUTION = """Whether it is better than the adapter that was served before is decided by the gate: see `report/`. It was
trained for this project's tools and instructions, and was not tested with others."""


def model_card(name: str, base: str, dataset: Dataset, trained: Trained, settings: TuningSettings) -> str:
    """Return Markdown with the front matter of a PEFT folder."""
    counts = dataset.manifest
    held = (
        f"{trained.first_held_out_loss:.3f} before, {trained.held_out_loss:.3f} after"
        if trained.first_held_out_loss is not None and trained.held_out_loss is not None
        else "not measured: too few tasks to hold any out"
    )
    table = "\n".join(f"| {key} | {value} |" for key, value in asdict(settings).items())
    return f"""{_front(name, base, settings.method)}

An adapter of {base} (method {settings.method}), trained by Ratchet from feedback on the agent's own runs.

- Trained on dataset `{dataset.hash[:16]}`: {counts["corrections"]} corrections and {counts["accepted_runs"]} accepted
  runs over {counts["tasks"]} tasks, by {", ".join(counts["reviewers"])}.
- {trained.target_tokens} target tokens in {trained.steps} optimizer steps, {trained.seconds / 60:.1f} minutes;
  {trained.packed_tokens} tokens packed as trees, {trained.row_tokens} without packing.
- Loss on held-out rows: {held}. Best epoch {trained.best_epoch + 1} of {trained.epochs}.
- Trained parameters: {trained.parameters}. Peak memory: {trained.peak_bytes / 2**30:.1f} GiB.
- Examples with an error left: {len(trained.missed)} of {trained.looked_at} that were inspected.

{_CAUTION}

| setting | value |
|---|---|
{table}
"""


def merge_card(name: str, base: str, weights: Mapping[str, float], rank: int) -> str:
    """Return the card of a weighted sum of adapters, whose weights are given by id."""
    table = "\n".join(f"| {id} | {weight:g} |" for id, weight in weights.items())
    return f"""{_front(name, base, "lora")}

A LoRA adapter of {base}, made by Ratchet without training: the weighted sum of the weight changes of other
adapters. The sum is exact: their factors are concatenated, in rank {rank}.

| adapter | weight |
|---|---|
{table}

{_CAUTION}
"""


def _front(name: str, base: str, method: str) -> str:
    return f"""---
base_model: {base}
library_name: peft
tags: [{method}, ratchet]
---

# {name}"""
