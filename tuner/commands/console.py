"""What the commands of the classic tasks say: results on stdout, progress on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from agent.errors import DatasetError
from tuner.tasks.data.columns import Guess

if TYPE_CHECKING:
    from tuner.tasks.head.training import TaskProgress

SILENT = 30.0
"""Seconds behind which a step is told."""


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Confirmed:
    """Notes, and at each guess about a file a question to the terminal: once for files whose guesses are the same."""

    def __init__(self, terminal: TextIO) -> None:
        """`terminal` is what lines are read from; questions go to stderr, for stdout is for results."""
        self._terminal = terminal
        self._right: set[str] = set()

    def __call__(self, text: str) -> None:
        """Raises DatasetError where the answer is no."""
        note(text)
        if not isinstance(text, Guess) or text.what in self._right:
            return
        print("Is that right? [Y/n] ", end="", file=sys.stderr, flush=True)
        line = self._terminal.readline()
        # No line at all, behind Ctrl-D, is a no.
        if not line or line.strip().lower() not in ("", "y", "yes"):
            told = f"say it with {text.options}" if text.options else "docs/tasks.md says how files are read"
            raise DatasetError(f"{text.file} is not as guessed; {told}. Nothing was trained")
        self._right.add(text.what)


def result(data: Any) -> None:
    """A text as it is, anything else as JSON."""
    print(data if isinstance(data, str) else json.dumps(data, indent=1, ensure_ascii=False))


class ProgressLines:
    """Lines on stderr: each epoch, and of its steps every fiftieth, or one behind half a minute, with the time left."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun: tuple[float, int] | None = None
        self._told = 0.0

    def __call__(self, progress: TaskProgress) -> None:
        now = self._clock()
        if self._begun is None:
            self._begun, self._told = (now, progress.step), now
        said = f"step {progress.step}/{progress.steps}: loss {progress.loss:.3f}"
        if progress.validation is not None:
            figure = f"validation {progress.validation.main} {progress.validation.value:.4f}"
            self._note(f"epoch {progress.epoch + 1}, {said}, {figure}", progress, now)
        elif progress.step % 50 == 0 or now - self._told >= SILENT:
            self._note(said, progress, now)

    def _note(self, text: str, progress: TaskProgress, now: float) -> None:
        assert self._begun is not None
        began, first = self._begun
        self._told = now
        left = progress.steps - progress.step
        if progress.step > first and left > 0:
            text += f", {_duration((now - began) / (progress.step - first) * left)} left at most"
        note(text)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
