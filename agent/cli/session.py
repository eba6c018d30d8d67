"""What every command works on: its project, and the runtime or the store, opened when it is first needed."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cli.console import note
from agent.config.project import Project, find_project
from agent.errors import RatchetError, SettingsError, StoreError

if TYPE_CHECKING:
    from agent.runtime import Runtime
    from agent.storage.store import Store

OpenRuntime = Callable[[Project, Callable[[str], None]], "Runtime"]
"""Makes the runtime of a project, given who is told of progress."""


class UsageError(RatchetError):
    """Arguments that do not go together; ends with the exit code of a usage error."""


class Session:
    """One command's project."""

    def __init__(self, arguments: Namespace, open_runtime: OpenRuntime) -> None:
        self._folder = None if arguments.project is None else Path(arguments.project)
        self._open_runtime = open_runtime
        self._quiet: bool = arguments.quiet

    def note(self, text: str) -> None:
        """Tell of progress, unless that is not wanted."""
        if not self._quiet:
            note(text)

    @property
    def folder(self) -> Path:
        """Where the project is looked for, upward."""
        folder = (self._folder or Path.cwd()).expanduser()
        if not folder.is_dir():
            raise SettingsError("--project", [f"{folder} is not a folder; name the folder of your project"])
        return folder.resolve()

    @property
    def project(self) -> Project:
        return find_project(self.folder)

    def runtime(self) -> Runtime:
        """To be used as a context manager."""
        return self._open_runtime(self.project, self.note)

    @contextmanager
    def store(self) -> Iterator[Store]:
        """The log of the project, without anything of the model. Raises StoreError where there is none."""
        from agent.storage.store import Store

        path = self.project.home.database
        if not path.is_file():
            raise StoreError(f"there are no runs yet in {path.parent}; start one with `ratchet run`")
        with Store(path) as store:
            yield store
