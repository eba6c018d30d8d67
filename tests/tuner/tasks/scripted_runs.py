"""Runs commands in a project whose scripted model calls a trained task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from agent.cli.main import main
from agent.config.project import Project
from agent.encoders.encoder import HashEncoder
from agent.llm.scripted import ScriptedModel, answer, call
from agent.runtime import Runtime
from tuner.tasks.feedback.agent_tools import TaskTools

Ratchet = Callable[..., tuple[int, str]]


def ratchet_with_calls(tool: str, capsys: pytest.CaptureFixture[str]) -> Ratchet:
    """Return a command runner for a project whose model calls the tool with each text of `asks`."""

    def command(folder: Path, *words: str, asks: Sequence[str] = ()) -> tuple[int, str]:
        def opened(project: Project, progress: Callable[[str], None]) -> Runtime:
            said = [call(tool, text=text, thought="Ask.", plan=["ask"]) for text in asks]
            model = ScriptedModel([*said, answer("done", thought="Done.")])
            return Runtime(project, model=model, encoder=HashEncoder(), tasks=TaskTools(project), progress=progress)

        code = main(["--project", str(folder), *words], open_runtime=opened)
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return command
