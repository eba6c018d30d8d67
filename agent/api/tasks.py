"""Trained classic tasks of an agent's project, `agent.tasks`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.api.progress import show_progress

if TYPE_CHECKING:
    from agent.config.project import Project
    from agent.registry.registry import Adapter
    from tuner.tasks.data.records import TaskName
    from tuner.tasks.feedback.retrain import TaskTuning
    from tuner.tasks.head.training import TaskProgress
    from tuner.tasks.metrics import TaskScores
    from tuner.tasks.predictions import Prediction
    from tuner.tasks.predictor import TaskPredictor, TaskResult


class Tasks:
    """Models that classify, tag, answer, summarise or translate, trained from a file."""

    def __init__(self, project: Project) -> None:
        self._project = project

    def list(self) -> tuple[Path, ...]:
        """Return the folders of the trained tasks."""
        from agent.registry.task_models import project_tasks

        return tuple(project_tasks(self._project))

    def train(
        self,
        task: TaskName,
        data: str | Path,
        *,
        on_progress: Callable[[TaskProgress], None] | None = None,
        **options: Any,
    ) -> TaskResult:
        """Train a task from a file, or from a folder with a file for each split.

        Args:
            task: Its kind, such as "classify".
            data: The file or folder.
            on_progress: Receives the progress; left out, a bar is shown in a terminal and lines in a notebook.
            **options: Those of `tuner.train`.
        """
        from tuner.tasks.api import train

        with show_progress() as show:
            return train(
                task,
                data,
                project=self._project,
                on_progress=on_progress or (lambda one: show("training", one.step, one.steps, f"loss {one.loss:.3f}")),
                **options,
            )

    def load(self, task: str | Path) -> TaskPredictor:
        """Load the served version of a trained task, named by its folder, its name in the home, or its tool."""
        from tuner.tasks.api import load

        return load(task, project=self._project)

    def predict(self, task: str | Path, texts: Sequence[str | tuple[str, str]]) -> Sequence[Prediction]:
        """Return what a trained task gives for each text, or for each pair of texts. `load` once to predict often."""
        return self.load(task).predict(list(texts))

    def evaluate(self, task: str | Path, data: str | Path) -> TaskScores:
        """Measure a trained task on a file."""
        return self.load(task).evaluate_file(Path(data))

    def tune(self, task: str | Path, *, data: str | Path | None = None) -> TaskTuning:
        """Train a task anew with the corrections of its output, and serve the new version if it is better.

        Args:
            task: As for `load`.
            data: Taken in place of the file it was trained on.
        """
        from agent.registry.task_models import find_task
        from tuner.tasks.feedback.retrain import tune_task

        folder = find_task(self._project, str(task))
        return tune_task(self._project, folder, data=None if data is None else Path(data))

    def rollback(self, task: str | Path, reason: str = "rolled back by hand") -> Adapter | None:
        """Serve the version of a task that was served before, and return it; None is the first."""
        from agent.registry.task_models import find_task, versions
        from agent.util.ids import timestamp

        return versions(find_task(self._project, str(task))).rollback(reason, timestamp())
