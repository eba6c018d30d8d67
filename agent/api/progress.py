"""Progress of what takes minutes: a bar in a terminal, lines in a notebook, nothing elsewhere."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

OnCount = Callable[[str, int, int, str], None]
"""Receives what is worked on, how much of it is done, how much there is, and a note."""


@contextmanager
def show_progress() -> Iterator[OnCount]:
    """Show progress until the block ends."""
    if is_notebook():
        yield _print_line
    elif sys.stderr.isatty():
        with _bar() as on_count:
            yield on_count
    else:
        yield lambda name, done, total, note: None


def is_notebook() -> bool:
    """Return whether the program runs in a Jupyter kernel."""
    get_ipython = getattr(builtins, "get_ipython", None)
    return get_ipython is not None and type(get_ipython()).__name__ == "ZMQInteractiveShell"


def _print_line(name: str, done: int, total: int, note: str) -> None:
    if done in (1, total) or done % max(1, total // 10) == 0:
        print(f"{name} {done}/{total} {note}".rstrip())


@contextmanager
def _bar() -> Iterator[OnCount]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        ids = {}

        def show(name: str, done: int, total: int, note: str) -> None:
            if name not in ids:
                ids[name] = bars.add_task(name, note="")
            bars.update(ids[name], completed=done, total=total, note=note)

        yield show
