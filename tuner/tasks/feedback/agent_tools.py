"""A trained task as a tool of the agent: asked with a text, it says what it makes of it, as a line of JSON.

Which version is served is looked up for each run, and a run stays on it. The model is loaded by the first call.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.tools import BaseTool, StructuredTool, ToolException
from pydantic import BaseModel, Field

from agent.config.project import Project
from agent.errors import AdapterError, DatasetError, FeedbackError
from agent.registry.artifact import MANIFEST, TASK, verify
from agent.registry.task_models import find_task, serving
from tuner.tasks.data.schemes import entity_types

if TYPE_CHECKING:
    from tuner.tasks.predictor import Say, TaskPredictor, Text

MAX_LISTED_LABELS = 12
"""Labels that a description lists."""
MAX_TEXT, MAX_CONTEXT = 1000, 4000
"""Characters of an argument, at most."""


class TextArguments(BaseModel):
    """What the model fills in."""

    text: str = Field(min_length=1, max_length=MAX_TEXT)


class PairArguments(TextArguments):
    """For a task on pairs of texts."""

    other: str = Field(min_length=1, max_length=MAX_TEXT)


class QuestionArguments(BaseModel):
    """For a task that answers from a context."""

    question: str = Field(min_length=1, max_length=MAX_TEXT)
    context: str = Field(min_length=1, max_length=MAX_CONTEXT)


class TaskTools:
    """The tasks of `[tools] tasks`. An `agent.runtime.TrainedTasks`; threads may share it."""

    def __init__(self, project: Project, *, say: Say = lambda text: None) -> None:
        self._project = project
        self._say = say
        self._lock = threading.Lock()
        self._served: dict[str, _ServedTask] = {}

    def tools(self) -> list[BaseTool]:
        return [_tool(name, self._task(name)) for name in self._project.settings.tools.tasks]

    def right_output(self, tool: str, arguments: Mapping[str, Any], said: str) -> dict[str, Any]:
        from tuner.tasks.feedback.corrections import right_output

        if tool not in self._project.settings.tools.tasks:
            named = ", ".join(self._project.settings.tools.tasks) or "none"
            raise FeedbackError(f"{tool} is no trained task, so its output is not corrected; trained tasks: {named}")
        return right_output(self._task(tool).told, arguments, said)

    def _task(self, name: str) -> _ServedTask:
        """What is served under a tool's name now; whoever has an earlier one keeps it."""
        folder = find_task(self._project, name)
        found = serving(folder)
        if found.warning:
            self._say(found.warning)
        chosen = folder if found.adapter is None else found.adapter.folder
        mark = (str(chosen), (chosen / MANIFEST).stat().st_mtime_ns if (chosen / MANIFEST).is_file() else 0)
        with self._lock:
            if name not in self._served or self._served[name].mark != mark:
                self._served[name] = _served(name, chosen, mark, self._project)
            return self._served[name]


@dataclass(frozen=True)
class _ServedTask:
    """One version of a task, loaded when it is first asked."""

    mark: tuple[str, int]
    id: str
    told: Mapping[str, Any]
    """Its `task.json`."""
    predictor: Callable[[], TaskPredictor]


def _served(name: str, folder: Path, mark: tuple[str, int], project: Project) -> _ServedTask:
    try:
        id = verify(folder).id
        told: dict[str, Any] = json.loads((folder / TASK).read_text("utf-8"))
    except (AdapterError, OSError, ValueError) as fault:
        raise AdapterError(f"[tools] tasks, {name}: {fault}") from fault
    lock = threading.Lock()
    loaded: list[TaskPredictor] = []

    def predictor() -> TaskPredictor:
        from tuner.tasks.api import load_version

        with lock:
            if not loaded:
                loaded.append(load_version(folder, project=project))
            return loaded[0]

    return _ServedTask(mark, id, told, predictor)


def _tool(name: str, served: _ServedTask) -> BaseTool:
    schema = arguments_schema(served.told)

    def ask(**arguments: str) -> str:
        try:
            (said,) = served.predictor().predict([to_predictor_input(arguments)])
        except DatasetError as fault:
            raise ToolException(str(fault)) from fault
        return format_prediction(said.to_dict())

    copied = [] if served.told["task"] == "relate" else list(schema.model_fields)
    return StructuredTool.from_function(
        func=ask,
        name=name,
        description=describe_task(served.told),
        args_schema=schema,
        metadata={"effect": "read", "copied": copied, "version": served.id},
    )


def arguments_schema(told: Mapping[str, Any]) -> type[BaseModel]:
    """What a task is asked with."""
    if told["task"] == "answer":
        return QuestionArguments
    return PairArguments if told.get("pairs") or told["task"] == "embed" else TextArguments


def to_predictor_input(arguments: Mapping[str, Any]) -> Text:
    """A call's arguments as the predictor takes them."""
    given = [str(value) for value in arguments.values()]
    return given[0] if len(given) == 1 else (given[0], given[1])


def format_prediction(output: Mapping[str, Any]) -> str:
    """A prediction on one line, without the scores of what was not chosen."""
    kept = {name: value for name, value in output.items() if name != "scores"}
    return json.dumps(kept, ensure_ascii=False, separators=(",", ":"))


def describe_task(told: Mapping[str, Any]) -> str:
    """What the model is told that a task is for."""
    labels = _listed(told["labels"])
    several = "which labels" if told["options"].get("multi") else "which label"
    match told["task"]:
        case "classify" if told.get("pairs"):
            return f"Say {several} two texts have together: {labels}."
        case "classify":
            return f"Say {several} a text has: {labels}."
        case "tag":
            return f"Find the entities in a text: {_listed(entity_types(told['labels']))}."
        case "relate":
            return f"Say what <e1>…</e1> and <e2>…</e2> in a text are to each other: {labels}."
        case "answer":
            return "Find the answer to a question in a context."
        case "embed":
            return "Say how alike two texts are, from -1 to 1."
        case "translate":
            return f"Translate a text into {told['options'].get('into') or 'another language'}."
        case "summarise":
            return "Sum a text up."
        case _:
            return "Answer what a customer says."


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - MAX_LISTED_LABELS} more" if len(labels) > MAX_LISTED_LABELS else ""
    return ", ".join(labels[:MAX_LISTED_LABELS]) + more
