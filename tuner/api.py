"""Opens a project for everything that runs or trains its agent."""

from __future__ import annotations

from collections.abc import Callable

from agent.config.project import Project
from agent.runtime import Runtime


def open_runtime(project: Project, progress: Callable[[str], None]) -> Runtime:
    """Return the runtime of a project with its trained classic tasks, a context manager."""
    from tuner.tasks.feedback.agent_tools import TaskTools

    return Runtime(project, tasks=TaskTools(project, say=progress), progress=progress)
