"""The classic tasks from Python: `train` makes a model of a file, `load` takes one up again.

from tuner.tasks.api import load, train

made = train("classify", "messages.csv", out="intents")
print(made.scores.figures)
print(load("intents").predict(["Where is my parcel?"]))
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from agent.errors import DatasetError
from agent.settings import Project, find_project
from agent.teams import give_back_memory, in_own_team
from tuner.tasks.columns import Columns
from tuner.tasks.predictor import Say, TaskPredictor, TaskResult, silent
from tuner.tasks.prompted import way_of
from tuner.tasks.readers import read, read_file
from tuner.tasks.records import TASKS, TaskName
from tuner.tasks.splits import Leakage, Splits, part

if TYPE_CHECKING:
    from tuner.tasks.training import TaskProgress


def train(
    task: TaskName,
    data: str | Path,
    *,
    test: str | Path | None = None,
    validation: str | Path | None = None,
    model: str | None = None,
    out: str | Path | None = None,
    columns: Columns | None = None,
    leakage: Leakage = "refuse",
    into: str = "",
    project: Project | None = None,
    say: Say = silent,
    on_progress: Callable[[TaskProgress], None] = silent,
    **settings: Any,
) -> TaskResult:
    """Train a task from a file, or a folder with a file for each split, and save it to a folder with its report.

    `model` names an encoder or a language model as `ratchet.toml` does, else the project's is taken: its language
    model for what is written, its encoder for the other tasks. `settings` are those of `TaskSettings`, or of
    `GenerationSettings`, chosen by the data where they are left out; `into` is the language to translate into, where
    neither file nor texts tell it. `out` must be new or empty; left out, it is a new folder in the project's home.
    Raises DatasetError, WeightsError, LivenessError.
    """
    if task not in TASKS:
        raise DatasetError(f"there is no task {task!r}; expected one of {', '.join(TASKS)}")
    project = project or find_project(Path.cwd())
    way = way_of(task, model, project, say=say)
    splits = read_splits(
        task, data, test, validation, columns, leakage=leakage, seed=int(settings.get("seed") or 0), say=say
    )
    for note in splits.notes:
        say(f"noticed: {note}")
    name = f"{task}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid4().hex[:6]}"
    folder = Path(out) if out is not None else project.home.tasks / name
    _check_free(folder)
    stopped = threading.Event()

    def tell(progress: TaskProgress) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        on_progress(progress)

    def work() -> TaskResult:
        if way == "generation":
            from tuner.tasks import generation_training as generation

            return generation.fit(task, splits, model, folder, name, project, into, say, tell, settings)
        from tuner.tasks.fitting import fit

        return fit(task, splits, model, folder, name, project, columns or Columns(), say, tell, settings)

    made = in_own_team(work, on_interrupt=stopped.set)
    give_back_memory()
    return made


def load(
    folder: str | Path, *, beside: TaskPredictor | None = None, project: Project | None = None, say: Say = silent
) -> TaskPredictor:
    """A trained task from its folder, verified. Raises AdapterError, WeightsError.

    `beside` is a task on a language model that is open already: the other goes onto the same base, loaded once.
    """
    from tuner.tasks.folders import open_folder
    from tuner.tasks.generation_training import is_generation, open_generation

    project = project or find_project(Path.cwd())
    if is_generation(Path(folder)):
        other = None if beside is None else beside.generator
        return TaskPredictor(open_generation(Path(folder), project, beside=other, say=say), Path(folder))
    model, _ = in_own_team(lambda: open_folder(Path(folder), project.home.models))
    return TaskPredictor(model, Path(folder))


def read_splits(
    task: TaskName,
    data: str | Path,
    test: str | Path | None = None,
    validation: str | Path | None = None,
    columns: Columns | None = None,
    *,
    leakage: Leakage = "refuse",
    seed: int = 0,
    say: Say = silent,
) -> Splits:
    """The parts of a file, or of a folder with a file for each split; see `splits.part`. Raises DatasetError."""
    found = dict(read(task, Path(data), columns, say=say).splits)
    for name, path in (("test", test), ("validation", validation)):
        if path is not None:
            found[name] = read_file(task, Path(path), columns, say=say)
    return part(
        found.get("train", []),
        found.get("validation", []),
        found.get("test", []),
        seed=seed,
        leakage=leakage,
    )


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DatasetError(f"{folder} is there already; name a new folder with --out, or remove it")
