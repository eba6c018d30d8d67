"""A project's runtime with its trained classic tasks, for whoever starts one."""

from __future__ import annotations

from collections.abc import Callable

from agent.config.project import Project
from agent.runtime import Runtime


def open_runtime(project: Project, progress: Callable[[str], None]) -> Runtime:
    """A runtime of a project, to be used as a context manager."""
    from tuner.tasks.feedback.agent_tools import TaskTools

    return Runtime(project, tasks=TaskTools(project, say=progress), progress=progress)
