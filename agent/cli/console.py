"""Output of the commands: results on stdout, progress and notes on stderr, colour only on a terminal.

Texts of models, tools and documents are printed without control characters, so that no text can control the
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

PrintLine = Callable[[str, str], None]
"""Takes a line and the name of its style, "" for none."""

_UNPRINTABLE = {code: "�" for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (0x09, 0x0A)}
_SHOWN = 600


def note(text: str) -> None:
    """Print a note, which is not part of the result."""
    print(clean(text), file=sys.stderr, flush=True)


def result(text: str) -> None:
    """Print the result of a command."""
    print(clean(text), flush=True)


def result_json(value: Any) -> None:
    """Print the result as one line of JSON."""
    print(json.dumps(value, ensure_ascii=False, default=str), flush=True)


def clean(text: str) -> str:
    """Return the text without control characters; what cannot be encoded is replaced."""
    return text.translate(_UNPRINTABLE).encode("utf-8", "replace").decode("utf-8")


def line_printer(stream: TextIO) -> PrintLine:
    """Return a function that prints lines on a stream: with colours on a terminal, as plain text elsewhere."""
    if not stream.isatty():
        return lambda text, style: print(clean(text), file=stream, flush=True)
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, highlight=False)
    return lambda text, style: console.print(Text(clean(text), style=style))


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """Return a table; each column is as wide as its longest cell, and the last one is not padded."""
    every = [list(header), *[[clean(cell).replace("\n", " ") for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in every) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in every]
    return "\n".join(lines)


class RunPrinter:
    """Prints the events of a run: plan, thought, call, result, and at its end the answer with its citations."""

    def __init__(self, print_line: PrintLine, *, answer: bool) -> None:
        """Without `answer`, the caller prints the end."""
        self._print_line = print_line
        self._answer = answer

    def __call__(self, event: Event) -> None:
        if event.step is not None:
            # The call that ends the run is printed once, at its end.
            is_last = event.step.call is not None and event.step.call.name in ("answer", "hand_over")
            if event.kind == "proposed":
                lines = proposed_lines(event.step, call=not is_last)
            else:
                lines = observed_lines(event.step) if not is_last or event.step.error is not None else iter(())
            for text, style in lines:
                self._print_line(text, style)
        elif event.kind == "ended" and self._answer:
            self.print_end(event.trajectory)

    def print_end(self, trajectory: Trajectory) -> None:
        """Print the outcome of a run."""
        for text, style in ending_lines(trajectory):
            self._print_line(text, style)


def proposed_lines(step: Step, *, call: bool = True) -> Iterator[tuple[str, str]]:
    """Yield the plan, thought and call of a step, each with its style."""
    if step.plan:
        yield f"  plan: {'; '.join(step.plan)}", "cyan"
    if step.thought:
        yield f"  thought: {step.thought}", "dim"
    if call and step.call is not None:
        yield f"  call: {call_text(step.call.name, step.call.arguments)}", "bold"


def observed_lines(step: Step, *, whole: bool = False) -> Iterator[tuple[str, str]]:
    """Yield the result of a step, each line with its style."""
    if step.call is None:
        yield f"  said: {_short(step.said, whole)}", "dim"
    if step.error is not None:
        yield f"  error: {_short(step.error, whole)}", "red"
    elif step.observation:
        yield f"  result: {_short(step.observation, whole)}", "green"
    if step.notice is not None:
        yield f"  notice: {step.notice}", "yellow"


def grounding_lines(grounding: Grounding) -> Iterator[tuple[str, str]]:
    """Yield each sentence of an answer with its evidence, or the mark that there is none."""
    unsupported = "withheld" if grounding.mode == "withhold" else "unsupported"
    for sentence in grounding.sentences:
        name, style = ("supported", "green") if sentence.supported else (unsupported, "yellow")
        yield f"  {name} ({sentence.score:.2f}): {sentence.text}", style
        for evidence in sentence.evidence:
            place = " > ".join(part for part in (evidence.document, evidence.heading) if part) or "a tool"
            label = "" if evidence.label is None else f"[{evidence.label}] "
            yield f"    {label}{place}: {evidence.text}", "cyan"
    yield f"  reply: {grounding.reply}", "green"


def ending_lines(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    """Yield the outcome of a run: its answer or escalation with citations, or why there is none."""
    from agent.run.views import last_words

    text = last_words(trajectory)
    if text is not None:
        yield ("Escalated: " if trajectory.outcome == "refused" else "") + text, "bold green"
        for passage in trajectory.citations:
            yield f"  {citation_text(passage)}", "cyan"
        withheld = trajectory.steps[-1].withheld
        if withheld:
            count = "1 sentence" if len(withheld) == 1 else f"{len(withheld)} sentences"
            yield f"  withheld: {count} without support in the observations", "yellow"
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
    """Let Ctrl-C set `cancelled`, and a second Ctrl-C interrupt. Only the main thread receives signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        if cancelled.is_set():
            raise KeyboardInterrupt
        cancelled.set()
        note("\nCancelling; press Ctrl-C again to stop at once.")

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
