"""How the commands speak: results on stdout, progress and notes on stderr, colour only on a terminal.

What models, tools and documents wrote is shown without control characters, so that no text can steer a
terminal. Nothing is wrapped or coloured when the output is not a terminal.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from agent.records.run import Grounding, Step, Trajectory
from tools.context import Passage

if TYPE_CHECKING:
    from agent.run.state import Event

Say = Callable[[str, str], None]
"""Takes a line and the name of its style, "" for none."""

_UNPRINTABLE = {code: "�" for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (0x09, 0x0A)}
_SHOWN = 600


def note(text: str) -> None:
    """Say something that is not the result."""
    print(clean(text), file=sys.stderr, flush=True)


def result(text: str) -> None:
    """Say what was asked for."""
    print(clean(text), flush=True)


def result_json(value: Any) -> None:
    """The result as one line of JSON."""
    print(json.dumps(value, ensure_ascii=False, default=str), flush=True)


def clean(text: str) -> str:
    """The text without control characters, and with what cannot be encoded replaced."""
    return text.translate(_UNPRINTABLE).encode("utf-8", "replace").decode("utf-8")


def speaker(stream: TextIO) -> Say:
    """Says lines on a stream: with rich's colours on a terminal, plainly elsewhere."""
    if not stream.isatty():
        return lambda text, style: print(clean(text), file=stream, flush=True)
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, highlight=False)
    return lambda text, style: console.print(Text(clean(text), style=style))


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """Columns as wide as what they hold; the last one is not padded."""
    every = [list(header), *[[clean(cell).replace("\n", " ") for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in every) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in every]
    return "\n".join(lines)


class Watcher:
    """Tells a run as it goes: plan, thought, call, result, and at its end the answer with its citations."""

    def __init__(self, say: Say, *, answer: bool) -> None:
        """Without `answer`, the end is left to whoever shows the result."""
        self._say = say
        self._answer = answer

    def __call__(self, event: Event) -> None:
        if event.step is not None:
            # What ends the run is said once, at its end.
            last = event.step.call is not None and event.step.call.name in ("answer", "hand_over")
            if event.kind == "proposed":
                lines = proposed_lines(event.step, call=not last)
            else:
                lines = observed_lines(event.step) if not last or event.step.error is not None else iter(())
            for text, style in lines:
                self._say(text, style)
        elif event.kind == "ended" and self._answer:
            self.ending(event.trajectory)

    def ending(self, trajectory: Trajectory) -> None:
        for text, style in ending_lines(trajectory):
            self._say(text, style)


def proposed_lines(step: Step, *, call: bool = True) -> Iterator[tuple[str, str]]:
    """What the model is about to do."""
    if step.plan:
        yield f"  plan: {'; '.join(step.plan)}", "cyan"
    if step.thought:
        yield f"  thought: {step.thought}", "dim"
    if call and step.call is not None:
        yield f"  call: {call_text(step.call.name, step.call.arguments)}", "bold"


def observed_lines(step: Step, *, whole: bool = False) -> Iterator[tuple[str, str]]:
    """What came of it."""
    if step.call is None:
        yield f"  said: {_short(step.said, whole)}", "dim"
    if step.error is not None:
        yield f"  error: {_short(step.error, whole)}", "red"
    elif step.observation:
        yield f"  result: {_short(step.observation, whole)}", "green"
    if step.notice is not None:
        yield f"  notice: {step.notice}", "yellow"


def checked_lines(grounding: Grounding) -> Iterator[tuple[str, str]]:
    """Each sentence of an answer with what it rests on, and those that rest on nothing."""
    unsupported = "withheld" if grounding.mode == "withhold" else "unsupported"
    for one in grounding.sentences:
        name, style = ("supported", "green") if one.supported else (unsupported, "yellow")
        yield f"  {name} ({one.score:.2f}): {one.text}", style
        for shown in one.evidence:
            place = " > ".join(part for part in (shown.document, shown.heading) if part) or "a tool"
            label = "" if shown.label is None else f"[{shown.label}] "
            yield f"    {label}{place}: {shown.text}", "cyan"
    yield f"  reply: {grounding.reply}", "green"


def ending_lines(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    """How the run came out."""
    from agent.run.views import last_words

    words = last_words(trajectory)
    if words is not None:
        yield ("Handed over: " if trajectory.outcome == "refused" else "") + words, "bold green"
        for passage in trajectory.citations:
            yield f"  {citation_text(passage)}", "cyan"
        withheld = trajectory.steps[-1].withheld
        if withheld:
            count = "1 sentence" if len(withheld) == 1 else f"{len(withheld)} sentences"
            yield f"  withheld: {count} that nothing shown supports", "yellow"
    elif trajectory.outcome is not None:
        yield f"No answer: {trajectory.outcome} ({trajectory.outcome.meaning})", "bold red"
        if trajectory.error is not None:
            yield f"  {trajectory.error.strip().rpartition(chr(10))[2]}", "red"


def call_text(name: str, arguments: Mapping[str, Any]) -> str:
    return f"{name} {json.dumps(arguments, ensure_ascii=False)}"


def citation_text(passage: Passage) -> str:
    place = f"{passage.document} > {passage.heading}" if passage.heading else passage.document
    return f"[{passage.label}] {place}"


def _short(text: str, whole: bool) -> str:
    text = text if whole or len(text) <= _SHOWN else f"{text[:_SHOWN]} ... ({len(text) - _SHOWN} more)"
    return text.replace("\n", "\n    ")


@contextmanager
def interruptible(cancelled: threading.Event) -> Iterator[None]:
    """Ctrl-C cancels what is going on; a second one breaks it off. Only the main thread can listen for it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        if cancelled.is_set():
            raise KeyboardInterrupt
        cancelled.set()
        note("\nCancelling; Ctrl-C again breaks it off.")

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
