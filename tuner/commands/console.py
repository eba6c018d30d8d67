"""What all commands of the tuner print with: results on stdout, notes and progress on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TextIO

from agent.errors import DatasetError
from tuner.tasks.data.columns import ColumnGuess

if TYPE_CHECKING:
    from tuner.tasks.head.training import TaskProgress
    from tuner.training.results import Progress

NOT_SHIPPED = 4
"""Exit code of a promotion or a tuning that the gate rejected."""
QUIET_SECONDS = 30.0
"""Seconds without a line after which a step is reported."""


def print_note(text: str) -> None:
    """Print what is not the result, on stderr."""
    print(text, file=sys.stderr, flush=True)


def print_result(data: Any) -> None:
    """Print a text as it is, anything else as JSON, on stdout."""
    print(data if isinstance(data, str) else json.dumps(data, indent=1, ensure_ascii=False))


def format_verdict(verdict: str, reasons: Iterable[str], *places: str) -> str:
    """Return a gate's verdict, its reasons as a list, and lines that say where to read on."""
    return "\n".join([verdict, *(f"- {reason}" for reason in reasons), *places])


def exit_code(ships: bool) -> int:
    return 0 if ships else NOT_SHIPPED


class ConfirmGuesses:
    """Prints notes, and asks at the terminal whether a guess about a file is right: once for equal guesses."""

    def __init__(self, terminal: TextIO) -> None:
        """Lines are read from `terminal`; questions go to stderr, because stdout is for results."""
        self._terminal = terminal
        self._confirmed: set[str] = set()

    def __call__(self, text: str) -> None:
        """Print a note, or ask about a guess. Raises DatasetError where the answer is no."""
        print_note(text)
        if not isinstance(text, ColumnGuess) or text.what in self._confirmed:
            return
        print("Is that right? [Y/n] ", end="", file=sys.stderr, flush=True)
        line = self._terminal.readline()
        # No line at all, after Ctrl-D, is a no.
        if not line or line.strip().lower() not in ("", "y", "yes"):
            remedy = (
                f"say it with {text.options}"
                if text.options
                else "docs/reference/classic-tasks.md says how files are read"
            )
            raise DatasetError(f"{text.file} is not as guessed; {remedy}. Nothing was trained")
        self._confirmed.add(text.what)


class ProgressLines:
    """Prints each epoch, and of its steps every fiftieth or one after half a minute, with the time left."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start: tuple[float, int] | None = None
        """Time and step of the first call."""
        self._last_line = 0.0

    def __call__(self, progress: TaskProgress) -> None:
        now = self._clock()
        if self._start is None:
            self._start, self._last_line = (now, progress.step), now
        text = f"step {progress.step}/{progress.steps}: loss {progress.loss:.3f}"
        if progress.validation is not None:
            figure = f"validation {progress.validation.main} {progress.validation.value:.4f}"
            self._print(f"epoch {progress.epoch + 1}, {text}, {figure}", progress, now)
        elif progress.step % 50 == 0 or now - self._last_line >= QUIET_SECONDS:
            self._print(text, progress, now)

    def _print(self, text: str, progress: TaskProgress, now: float) -> None:
        assert self._start is not None
        started, first = self._start
        self._last_line = now
        left = progress.steps - progress.step
        if progress.step > first and left > 0:
            text += f", {_duration((now - started) / (progress.step - first) * left)} left at most"
        print_note(text)


class ProgressBars:
    """Progress bars on stderr with the time left; plain lines where stderr is no terminal."""

    def __enter__(self) -> ProgressBars:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._plain = not console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=self._plain,
        )
        self._ids: dict[str, Any] = {}
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def training(self, progress: Progress) -> None:
        note = f"{progress.examples} examples, {_losses(progress)}, {progress.tokens_per_second:.0f} tok/s"
        self._show("training", progress.step, progress.steps, note, left=progress.seconds_left)

    def trial(self, number: int, progress: Progress) -> None:
        """Show one bar for all trials. Without a terminal it prints nothing: each trial has a line when it ends."""
        if not self._plain:
            self._show("trial", progress.step, progress.steps, f"{number}: {_losses(progress)}")

    def tasks(self, name: str, done: int, of: int) -> None:
        self._show(name, done, of, "")

    def _show(self, name: str, done: int, of: int, note: str, *, left: float | None = None) -> None:
        if self._plain:
            if done == of or done % 10 == 0:
                rest = "" if left is None else f", {left:.0f} s left"
                print_note(f"{name} {done}/{of} {note}{rest}".strip())
            return
        if name not in self._ids:
            self._ids[name] = self._bars.add_task(name, total=of, note="")
        self._bars.update(self._ids[name], completed=done, total=of, note=note)


def _losses(progress: Progress) -> str:
    held_out = "" if progress.held_out_loss is None else f" held-out {progress.held_out_loss:.3f}"
    return f"loss {progress.loss:.3f}{held_out}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
