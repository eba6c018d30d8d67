"""Tasks labelled with the first call of their run, as training data for recall.

A label is the first approved call: its tool, and the values it chose among those that the tool's schema lists. Other
arguments differ from run to run and make no label. Steps from corrections that are excluded from training are left
out. The hash of a task's text decides its part (train, validation or held out).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from agent.feedback.approved import CorrectionStatus, ReviewedRun, correction_statuses, reviewed_runs, source_correction
from agent.feedback.recall import choice_name
from agent.llm.prompt.tool_spec import ToolSpec, enum_arguments
from agent.records.run import ToolCall
from agent.storage.store import Store
from agent.text.normalise import normalise_task
from tuner.encoder.dataset import EncoderDataset, FirstCallTask, Part, fold_text, part_of_group

HELD_OUT = 0.15
"""Share of the tasks that only the gate sees; lower than for queries, because each label has few tasks."""
VALIDATION = 0.05
"""Share of the tasks for the validation loss."""
MIN_TRAINED = 8
"""Training tasks below which nothing is trained."""


def read_first_call_tasks(store: Store, tools: Sequence[ToolSpec]) -> tuple[FirstCallTask, ...]:
    """Return every task whose first step is approved, in the order of the runs.

    Of tasks with the same text the newest run counts. Calls of a tool that is not in `tools` are left out. The result
    is empty where all tasks have one label.
    """
    statuses, names = correction_statuses(store), {tool.name for tool in tools}
    by_text: dict[str, FirstCallTask] = {}
    for run in reviewed_runs(store):
        step = run.approved_steps().get(0)
        if step is None or step.call is None or step.call.name not in names or _is_excluded(store, run, statuses):
            continue
        text = normalise_task(run.trajectory.task.text)
        if fold_text(text):
            by_text[fold_text(text)] = _label(text, step.call, tools)
    tasks = tuple(by_text.values())
    return tasks if len({task.label for task in tasks}) > 1 else ()


def with_label_names(tasks: Sequence[FirstCallTask]) -> list[tuple[str, str]]:
    """Return text and label of each task, then each label's name as a text of its own.

    A name that several labels share is left out.
    """
    names = dict.fromkeys((task.name, task.label) for task in tasks if task.name)
    labels_of_name = Counter(fold_text(name) for name, _ in names)
    unique = [(name, label) for name, label in names if labels_of_name[fold_text(name)] == 1]
    return [(task.text, task.label) for task in tasks] + unique


def contrastive_tasks(dataset: EncoderDataset, part: Part) -> tuple[FirstCallTask, ...]:
    """Return the tasks of a part for the contrastive loss: those that are not queries as well.

    Tasks that all begin with a search would be pulled together, while the search needs them apart. The result is empty
    where fewer than two labels are left to train on.
    """
    queries = {fold_text(normalise_task(judgement.query)) for judgement in dataset.judgements}
    tasks = tuple(task for task in dataset.tasks_in(part) if fold_text(task.text) not in queries)
    labels = {task.label for task in dataset.tasks_in("train") if fold_text(task.text) not in queries}
    return tasks if len(labels) > 1 else ()


def explain_too_few(tasks: Sequence[FirstCallTask]) -> str | None:
    """Return why these tasks are too few to train on, or None where they are enough."""
    train = [task for task in tasks if task.part == "train"]
    labels = {task.label for task in train}
    # A task whose label is not in the training part cannot measure the training.
    parts = Counter(task.part for task in tasks if task.label in labels)
    per_label = Counter(label for _, label in with_label_names(train))
    enough = parts["train"] >= MIN_TRAINED and parts["validation"] and parts["held_out"] and len(labels) > 1
    if enough and max(per_label.values()) > 1:
        return None
    return (
        f"{len(tasks)} tasks with {len({task.label for task in tasks})} different first calls are too few: "
        f"{parts['train']} for training, {parts['validation']} for validation and {parts['held_out']} held out; "
        f"expected at least {MIN_TRAINED} with two different first calls or more, 1 and 1: accept or correct more "
        "first steps"
    )


def _is_excluded(store: Store, run: ReviewedRun, statuses: Mapping[str, CorrectionStatus]) -> bool:
    """Whether the first step comes from a correction that is excluded from training."""
    correction = source_correction(store, run, 0)
    return correction is not None and correction in statuses and not statuses[correction].is_trained


def _label(text: str, call: ToolCall, tools: Sequence[ToolSpec]) -> FirstCallTask:
    choices = enum_arguments(call, tools)
    label = f"{call.name}({', '.join(f'{name}={value}' for name, value in choices)})"
    part = part_of_group(fold_text(text), held_out=HELD_OUT, validation=VALIDATION)
    return FirstCallTask(text, label, choice_name(choices), part)
