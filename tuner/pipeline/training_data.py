"""The first stage of a tuning: feedback becomes a dataset, and a dataset becomes training examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent.config.settings import TuningSettings
from agent.encoders.encoder import Encoder
from agent.errors import AdapterError, DatasetError
from agent.llm.prompt.render import Frame, Renderer
from agent.llm.weights.load import ModelFolder, read_context
from agent.records.run import Recalled, Task
from agent.registry.artifact import verify
from agent.registry.registry import Adapter, Registry
from agent.storage.store import Store
from tuner.data.curate import Curated, TrainingRow, curate
from tuner.data.dataset import Dataset, describe_held_back, read_dataset, write_dataset
from tuner.data.examples import prepare_examples
from tuner.data.replay import select_replay
from tuner.tree.packing import Example


@dataclass(frozen=True)
class DataSources:
    """Where the data of a tuning comes from."""

    store: Store
    """Runs and feedback."""
    registry: Registry
    datasets: Path
    """The folder of all datasets."""
    recall: Callable[[Task], tuple[Recalled, ...]]
    """Returns the solved tasks that a run of this task is given now."""
    encoder: Callable[[], Encoder]
    """Loads the sentence encoder."""


@dataclass(frozen=True)
class TrainingExamples:
    """A dataset as token ids and targets."""

    train: Sequence[Example]
    held_out: Sequence[Example]


def make_dataset(
    sources: DataSources,
    settings: TuningSettings,
    *,
    base: str,
    prompt_version: str,
    parent: Adapter | None,
    created_at: str,
) -> Dataset:
    """Write the dataset of all feedback.

    Args:
        sources: Where it comes from.
        settings: Of the tuning.
        base: The name of the base, for the manifest.
        prompt_version: For the manifest.
        parent: The adapter that training starts from; what it was trained on is not held out.
        created_at: For the manifest.

    Raises:
        DatasetError: There is nothing to train.
    """
    curated = curate(sources.store)
    trained = trained_tasks(sources.registry, sources.datasets, parent, curated)
    rows = curated.rows
    if parent is not None and settings.replay < 1:
        rows = select_replay(rows, trained, settings.replay, sources.encoder())
    return write_dataset(
        replace(curated, rows=tuple(_with_recall(row, sources.recall) for row in rows)),
        sources.datasets,
        validation_share=settings.validation_share,
        created_at=created_at,
        provenance={"prompt_version": prompt_version, "base": base},
        trained_on=trained,
    )


def make_examples(
    dataset: Dataset, frame: Frame, base: ModelFolder, renderer: Renderer, *, max_tokens: int
) -> TrainingExamples:
    """Render both parts of a dataset as they are served.

    Args:
        dataset: The rows.
        frame: Instructions and tools of the project.
        base: Its context window limits a prompt.
        renderer: Of the base.
        max_tokens: Of an example; 0 for the longest input of the tokenizer.
    """
    context = read_context(base)
    limit = max_tokens or int(renderer.tokenizer.model_max_length)
    train, held_out = (
        prepare_examples(rows, frame, renderer, context=context, max_tokens=limit)
        for rows in (dataset.train, dataset.held_out)
    )
    return TrainingExamples(train, held_out)


def describe_dataset(dataset: Dataset) -> str:
    """Return one line about a dataset, for the user."""
    manifest = dataset.manifest
    counts = f"{manifest['corrections']} corrections, {manifest['accepted_runs']} accepted runs"
    held_back = describe_held_back(manifest.get("held_back_kinds", {}))
    suffix = f"; not trained: {held_back} (`ratchet corrections`)" if held_back else ""
    return f"dataset {dataset.hash[:12]}: {counts}{suffix}"


def trained_tasks(registry: Registry, datasets: Path, adapter: Adapter | None, curated: Curated) -> set[str]:
    """Return the ids of all tasks that an adapter, its ancestors or the parts of a merge were trained on.

    Where one of these or its dataset is missing, all tasks of `curated` are returned.
    """
    tasks: set[str] = set()
    visited: set[str] = set()
    pending = [] if adapter is None else [adapter.id]
    while pending:
        id = pending.pop()
        if id in visited:
            continue
        visited.add(id)
        try:
            ancestor = registry.get(id)
            if ancestor.merged:
                pending += ancestor.merged
                continue
            dataset = read_dataset(datasets / verify(ancestor.folder).dataset_hash[:16])
        except (AdapterError, DatasetError):
            return {row.task for row in curated.rows}
        tasks |= {row.task for row in dataset.train}
        pending += [] if ancestor.parent is None else [ancestor.parent]
    return tasks


def _with_recall(row: TrainingRow, recall: Callable[[Task], tuple[Recalled, ...]]) -> TrainingRow:
    """Replace the recalled tasks of a row by those its task would be given today: early runs had few to recall."""
    trajectory = row.trajectory
    provenance = replace(trajectory.provenance, recalled=recall(trajectory.task))
    return replace(row, trajectory=replace(trajectory, provenance=provenance))
