"""The classic tasks from Python: `train` makes a model of a file, `load` takes one up again.

from tuner.tasks.api import load, train

made = train("classify", "messages.csv", out="intents")
print(made.scores.figures)
print(load("intents").predict(["Where is my parcel?"]))
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from agent.config.project import Project, find_project
from agent.errors import DatasetError
from agent.registry.artifact import verify
from agent.registry.task_models import find_task, served_folder
from agent.util.threads import give_back_memory, run_in_thread
from tuner.privacy.task_models import before
from tuner.tasks.data.columns import Columns
from tuner.tasks.data.readers import read_examples, read_file
from tuner.tasks.data.records import TASKS, TaskName
from tuner.tasks.data.splits import Leakage, Splits, split_examples
from tuner.tasks.fit.warm_start import REPLAY_SHARE, add_replay, open_warm_start
from tuner.tasks.fit.zero_shot import ModelKind, choose_model_kind
from tuner.tasks.origin import Origin
from tuner.tasks.predictor import Say, TaskPredictor, TaskResult, ignore

if TYPE_CHECKING:
    from tuner.tasks.head.training import TaskProgress


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
    start: str | Path | None = None,
    replay: str | Path | None = None,
    replay_share: float = REPLAY_SHARE,
    into: str = "",
    project: Project | None = None,
    say: Say = ignore,
    on_progress: Callable[[TaskProgress], None] = ignore,
    **settings: Any,
) -> TaskResult:
    """Train a task from a file, or a folder with a file for each split, and save it to a folder with its report.

    `model` names an encoder or a language model as `ratchet.toml` does, else the project's is taken: its language
    model for what is written, its encoder for the other tasks. `settings` are those of `TaskSettings`, or of
    `GenerationSettings`, chosen by the data where they are left out; `into` is the language to translate into, where
    neither file nor texts tell it. `out` must be new or empty; left out, it is a new folder in the project's home.
    `start` is an earlier training to go on from, on its encoder; of the examples of `replay` a share is learnt again.
    Raises DatasetError, AdapterError, WeightsError, LivenessError.
    """
    if task not in TASKS:
        raise DatasetError(f"there is no task {task!r}; expected one of {', '.join(TASKS)}")
    project = project or find_project(Path.cwd())
    earlier = None if start is None else served_folder(find_task(project, str(start)))
    if earlier is not None and model is None:
        model = verify(earlier).base
    way = choose_model_kind(task, model, project, say=say)
    origin = Origin.of(
        project,
        data,
        test=test,
        validation=validation,
        columns=columns,
        leakage=leakage,
        seed=int(settings.get("seed") or 0),
        start=earlier,
        replay=replay,
        replay_share=replay_share,
    )
    splits = read_splits(task, origin, project, say)
    for note in splits.notes:
        say(f"noticed: {note}")
    name = f"{task}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid4().hex[:6]}"
    folder = Path(out) if out is not None else project.home.tasks / name
    _check_free(folder)
    return fit_in_team(
        task, splits, model, folder, name, project, origin, say, on_progress, settings, way=way, into=into
    )


def fit_in_team(
    task: TaskName,
    splits: Splits,
    model: str | None,
    folder: Path,
    name: str,
    project: Project,
    origin: Origin,
    say: Say,
    on_progress: Callable[[TaskProgress], None],
    settings: Mapping[str, Any],
    *,
    kept: Mapping[str, Any] | None = None,
    way: ModelKind = "head",
    into: str = "",
) -> TaskResult:
    """The `fit` of a way in a team of threads of its own, which Ctrl-C ends behind a step.

    `kept` goes into `task.json`.
    """
    from tuner.tasks.fit.request import FitRequest

    start = None if origin.start is None else open_warm_start(project.resolve(origin.start))
    told = {"origin": origin.to_dict(), **({} if start is None else {"before": before(start.metadata)}), **(kept or {})}
    stopped = threading.Event()

    def tell(progress: TaskProgress) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        on_progress(progress)

    request = FitRequest(
        task=task,
        splits=splits,
        folder=folder,
        project=project,
        name=name,
        model=model,
        settings=settings,
        columns=origin.read_columns(),
        into=into,
        metadata=told,
        start=start,
        say=say,
        on_progress=tell,
    )

    def work() -> TaskResult:
        if way == "generation":
            from tuner.tasks.fit.language import train_language_model

            return train_language_model(request)
        from tuner.tasks.fit.head import train_head

        return train_head(request)

    made = run_in_thread(work, on_interrupt=stopped.set)
    give_back_memory()
    return made


def load(
    folder: str | Path, *, beside: TaskPredictor | None = None, project: Project | None = None, say: Say = ignore
) -> TaskPredictor:
    """A trained task from its folder, verified: of what was tuned on from it, the version that is served.

    `folder` may also be its name in the project's home, or that of a tool. `beside` is a task on a language model that
    is open already: the other goes onto the same base, loaded once. Raises AdapterError, WeightsError.
    """
    project = project or find_project(Path.cwd())
    return load_version(served_folder(find_task(project, str(folder))), beside=beside, project=project, say=say)


def load_version(
    folder: Path, *, beside: TaskPredictor | None = None, project: Project, say: Say = ignore
) -> TaskPredictor:
    """The very folder, verified. Raises AdapterError, WeightsError."""
    from tuner.tasks.artifact import open_folder
    from tuner.tasks.fit.language_folder import is_generation, open_generation

    if is_generation(folder):
        other = None if beside is None else beside.generator
        return TaskPredictor(open_generation(folder, project, beside=other, say=say), folder)
    model, _ = open_folder(folder, project.home.models)
    return TaskPredictor(model, folder)


def read_splits(task: TaskName, origin: Origin, project: Project, say: Say = ignore) -> Splits:
    """The examples of a training, in its three parts; the same files give the same parts. Raises DatasetError."""
    columns = origin.read_columns()
    found = dict(read_examples(task, project.resolve(origin.data), columns, say=say).splits)
    for name, path in (("test", origin.test), ("validation", origin.validation)):
        if path is not None:
            found[name] = read_file(task, project.resolve(path), columns, say=say)
    splits = split_examples(
        found.get("train", []),
        found.get("validation", []),
        found.get("test", []),
        seed=origin.seed,
        leakage=origin.leakage,
    )
    if origin.replay is None:
        return splits
    older = read_examples(task, project.resolve(origin.replay), columns, say=say).train
    return add_replay(splits, older, origin.replay_share, origin.seed)


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DatasetError(f"{folder} is there already; name a new folder with --out, or remove it")
