"""What every command works on: its project, and the runtime or the store, opened when it needs them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cli.console import note
from agent.errors import RatchetError, SettingsError, StoreError

if TYPE_CHECKING:
    from agent.config.project import Project
    from agent.runtime import Runtime
    from agent.storage.store import Store

OpenRuntime = Callable[["Project", Callable[[str], None]], "Runtime"]
"""Opens the runtime of a project; the second argument receives progress messages."""


class UsageError(RatchetError):
    """Arguments that do not fit together; the command exits with the code of wrong usage."""


class Session:
    """One command's project."""

    def __init__(
        self, arguments: Namespace, open_runtime: OpenRuntime, *, run_command: Callable[[Sequence[str]], int]
    ) -> None:
        self.run_command = run_command
        """Runs another command, as the demo does."""
        self._folder = None if arguments.project is None else Path(arguments.project)
        self._open_runtime = open_runtime
        self._quiet: bool = arguments.quiet

    def note(self, text: str) -> None:
        """Print progress on standard error, unless --quiet was given."""
        if not self._quiet:
            note(text)

    @property
    def folder(self) -> Path:
        """The folder in which, and above which, the project is searched."""
        folder = (self._folder or Path.cwd()).expanduser()
        if not folder.is_dir():
            raise SettingsError("--project", [f"{folder} is not a folder; name the folder of your project"])
        return folder.resolve()

    @cached_property
    def project(self) -> Project:
        from agent.config.project import find_project

        return find_project(self.folder)

    def runtime(self) -> Runtime:
        """Open the runtime; use it as a context manager."""
        return self._open_runtime(self.project, self.note)

    @contextmanager
    def store(self) -> Iterator[Store]:
        """Open the store of the project without a model. Raises StoreError when there is none yet."""
        from agent.storage.store import Store

        path = self.project.home.database
        if not path.is_file():
            raise StoreError(f"there are no runs yet in {path.parent}; start one with `ratchet run`")
        with Store(path) as store:
            yield store
