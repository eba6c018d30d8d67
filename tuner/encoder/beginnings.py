"""How people would have runs begin, as texts with labels: tasks that began alike are alike, others are not.

A beginning is the first call that people stand behind, by its tool and by what it chose among the texts that the
tool's schema lists. What else it says differs from run to run and makes no label. Corrections that the weights are not
to learn give none. A task's part is said by the hash of its text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from agent.feedback.approved import Judged, Ruling, judged_runs, rulings, source
from agent.feedback.recall import choice_name
from agent.llm.prompt.step_grammar import ToolSpec, chosen
from agent.records.run import ToolCall
from agent.storage.store import Store
from agent.text.normalise import plain
from tuner.encoder.dataset import LabelledTask, Lessons, Part, folded, part_of

HELD_OUT = 0.15
"""Share of the tasks that only the gate sees. Each label has few, so what is held out costs more than with queries."""
VALIDATION = 0.05
"""Share that the training is watched with."""
LEAST = 8
"""Tasks to train on."""


def labelled_tasks(store: Store, tools: Sequence[ToolSpec]) -> tuple[LabelledTask, ...]:
    """Every task whose beginning people stand behind, in the order of the runs; none where all began alike.

    Of runs whose tasks say the same the newest counts. A call of a tool that is none of `tools` is left out.
    """
    ruled, names = rulings(store), {tool.name for tool in tools}
    found: dict[str, LabelledTask] = {}
    for judged in judged_runs(store):
        step = judged.backed().get(0)
        if step is None or step.call is None or step.call.name not in names or _is_held_back(store, judged, ruled):
            continue
        text = plain(judged.trajectory.task.text)
        if folded(text):
            found[folded(text)] = _labelled(text, step.call, tools)
    tasks = tuple(found.values())
    return tasks if len({one.label for one in tasks}) > 1 else ()


def with_names(tasks: Sequence[LabelledTask]) -> list[tuple[str, str]]:
    """Text and label of each task, and behind them each label's name once, but for names that several labels share."""
    named = dict.fromkeys((one.name, one.label) for one in tasks if one.name)
    shared = Counter(folded(name) for name, _ in named)
    return [(one.text, one.label) for one in tasks] + [pair for pair in named if shared[folded(pair[0])] == 1]


def told_apart(lessons: Lessons, part: Part) -> tuple[LabelledTask, ...]:
    """The tasks of a part that are to be learnt from: not those that are queries; none where one label is left.

    Tasks that all begin by searching would be brought together, and the search has to tell them apart.
    """
    asked = {folded(plain(one.query)) for one in lessons.judged}
    kept = tuple(one for one in lessons.tasks_of(part) if folded(one.text) not in asked)
    labels = {one.label for one in lessons.tasks_of("train") if folded(one.text) not in asked}
    return kept if len(labels) > 1 else ()


def too_few(tasks: Sequence[LabelledTask]) -> str | None:
    """What there is and what would be needed, where these are too few to learn from; None where they are enough."""
    train = [one for one in tasks if one.part == "train"]
    labels = {one.label for one in train}
    # What begins as nothing that is trained on tells nothing of the training.
    parts = Counter(one.part for one in tasks if one.label in labels)
    alike = Counter(label for _, label in with_names(train))
    enough = parts["train"] >= LEAST and parts["validation"] and parts["held_out"] and len(labels) > 1
    if enough and max(alike.values()) > 1:
        return None
    return (
        f"{len(tasks)} tasks with {len({one.label for one in tasks})} beginnings to tell apart are too few: "
        f"{parts['train']} to train on, {parts['validation']} to watch it with and {parts['held_out']} held out; "
        f"expected at least {LEAST} that began in two ways or more, 1 and 1: accept or correct more first steps"
    )


def _is_held_back(store: Store, judged: Judged, ruled: Mapping[str, Ruling]) -> bool:
    """Whether the first step comes from a correction that is not trained."""
    correction = source(store, judged, 0)
    return correction is not None and correction in ruled and not ruled[correction].is_trained


def _labelled(text: str, call: ToolCall, tools: Sequence[ToolSpec]) -> LabelledTask:
    choices = chosen(call, tools)
    label = f"{call.name}({', '.join(f'{name}={value}' for name, value in choices)})"
    return LabelledTask(
        text, label, choice_name(choices), part_of(folded(text), held_out=HELD_OUT, validation=VALIDATION)
    )
