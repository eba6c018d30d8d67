"""The commands `run`, `chat`, `resume`, `log` and `show`."""

from __future__ import annotations

import json
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from agent.cli.console import (
    RunPrinter,
    call_text,
    citation_text,
    ending_lines,
    grounding_lines,
    interruptible,
    line_printer,
    note,
    observed_lines,
    proposed_lines,
    result,
    result_json,
    table,
)
from agent.cli.session import Session, UsageError
from agent.errors import StoreError
from agent.records.feedback import OutputCorrection, Rating
from agent.records.run import Outcome, Step, Trajectory

if TYPE_CHECKING:
    from agent.feedback.approved import CorrectionStatus
    from agent.run.state import Event
    from agent.runtime import Runtime

NO_ANSWER = 3
INTERRUPTED = 130


def run(arguments: Namespace, session: Session) -> int:
    """Run one task: steps are printed on stderr as they come, the answer on stdout."""
    from agent.llm.served import ACTIVE
    from agent.records.run import Task
    from agent.util.ids import new_id

    facts = pairs(arguments.fact, "--fact")
    adapter = {None: ACTIVE, "base": None}.get(arguments.adapter, arguments.adapter)
    if not arguments.task.strip():
        raise UsageError("the task is empty; expected a text")
    run_id = new_id()
    with session.runtime() as runtime:
        runtime.stepper(adapter)  # loaded here, because from now on Ctrl-C cancels the task only
        printer = None if arguments.json or arguments.quiet else RunPrinter(line_printer(sys.stderr), answer=False)
        cancelled = threading.Event()
        with interruptible(cancelled):
            session.note(f"run {run_id}")
            trajectory = runtime.run(
                Task(run_id, arguments.task, facts),
                adapter=adapter,
                run_id=run_id,
                cancelled=cancelled,
                on_event=printer,
            )
        return _report(runtime, trajectory, as_json=arguments.json)


def resume(arguments: Namespace, session: Session) -> int:
    """Continue a run that was interrupted, or a corrected run after its first correction."""
    with session.runtime() as runtime:
        printer = None if arguments.json or arguments.quiet else RunPrinter(line_printer(sys.stderr), answer=False)
        cancelled = threading.Event()
        with interruptible(cancelled):
            trajectory = runtime.resume(arguments.run, cancelled=cancelled, on_event=printer)
        session.note(f"run {trajectory.id}")
        return _report(runtime, trajectory, as_json=arguments.json)


def _report(runtime: Runtime, trajectory: Trajectory, *, as_json: bool) -> int:
    """Print how a run ended, and return the exit code."""
    from agent.run.views import result_view

    shown = runtime.reveal(trajectory)
    if as_json:
        result_json(result_view(shown))
    elif trajectory.outcome in (Outcome.ANSWERED, Outcome.REFUSED):
        say = line_printer(sys.stdout)
        for text, style in ending_lines(shown):
            say(text, style)
    else:
        for text, _ in ending_lines(shown):
            note(text)
    if trajectory.outcome is Outcome.CANCELLED:
        return INTERRUPTED
    return 0 if trajectory.outcome in (Outcome.ANSWERED, Outcome.REFUSED) else NO_ANSWER


# -- chat ----------------------------------------------------------------------------------------------------


def chat(arguments: Namespace, session: Session) -> int:
    """Run one task per line. Ctrl-C cancels the task; at the prompt it ends the command, as the end of input does."""
    from agent.llm.served import ACTIVE
    from agent.records.run import Task
    from agent.util.ids import new_id

    facts = pairs(arguments.fact, "--fact")
    adapter = {None: ACTIVE, "base": None}.get(arguments.adapter, arguments.adapter)
    with session.runtime() as runtime:
        runtime.stepper(adapter)
        if sys.stdin.isatty():
            note("Type one task per line. Ctrl-C cancels a task, and its run is kept; Ctrl-D ends the command.")
        for line in _lines():
            if not line.strip():
                continue
            run_id = new_id()
            cancelled = threading.Event()
            with interruptible(cancelled):
                runtime.run(
                    Task(run_id, line.strip(), facts),
                    adapter=adapter,
                    run_id=run_id,
                    cancelled=cancelled,
                    on_event=_event_printer(runtime, as_json=arguments.json),
                )
            if not arguments.json:
                session.note(f"run {run_id}")
    return 0


def _event_printer(runtime: Runtime, *, as_json: bool) -> Callable[[Event], None]:
    """Return a function that prints events on stdout, with masked values put back into the answer."""
    printer = RunPrinter(line_printer(sys.stdout), answer=False)

    def print_event(event: Event) -> None:
        from dataclasses import replace

        from agent.run.views import event_view

        if event.kind == "ended":
            event = replace(event, trajectory=runtime.reveal(event.trajectory))
        if as_json:
            result_json(event_view(event))
        elif event.kind == "ended":
            printer.print_end(event.trajectory)
        else:
            printer(event)

    return print_event


def _lines() -> Iterator[str]:
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    with suppress(ImportError):
        import readline  # noqa: F401 - makes `input` edit lines and remember them
    while True:
        try:
            yield input("> ")
        except EOFError:
            return


# -- log and show --------------------------------------------------------------------------------------------


def log(arguments: Namespace, session: Session) -> int:
    """List the newest runs, one per line."""
    from agent.run.views import summary_view

    try:
        with session.store() as store:
            summaries = store.runs(arguments.limit, unfinished=arguments.unfinished)
    except StoreError:
        if session.project.home.database.is_file():
            raise
        summaries = ()
    if arguments.json:
        result_json([summary_view(summary) for summary in summaries])
        return 0
    if not summaries:
        note("There are no unfinished runs." if arguments.unfinished else "There are no runs yet.")
        return 0
    rows = [
        [
            summary.id,
            summary.outcome or "unfinished",
            str(summary.steps),
            str(summary.tokens),
            f"{summary.seconds:.1f}",
            summary.adapter or "base",
            f"{summary.ratings}/{summary.corrections}",
            summary.task if len(summary.task) <= 60 else summary.task[:57] + "...",
        ]
        for summary in summaries
    ]
    result(table(rows, ["run", "outcome", "steps", "tokens", "seconds", "adapter", "rated/corrected", "task"]))
    return 0


def show(arguments: Namespace, session: Session) -> int:
    """Print the whole record of a run."""
    from agent.feedback.approved import correction_statuses
    from agent.run.views import run_view

    with session.store() as store:
        trajectory = store.get(arguments.run)
        corrections = store.feedback.corrections(trajectory.id)
        ratings, outputs = store.feedback.ratings(trajectory.id), store.feedback.output_corrections(trajectory.id)
        statuses = correction_statuses(store)
    if arguments.json:
        result_json(run_view(trajectory, corrections, ratings, outputs))
        return 0
    say = line_printer(sys.stdout)
    for text, style in _shown(trajectory, [statuses[one.id] for one in corrections], ratings, outputs):
        say(text, style)
    return 0


def _shown(
    trajectory: Trajectory,
    statuses: Sequence[CorrectionStatus],
    ratings: Sequence[Rating],
    outputs: Sequence[OutputCorrection],
) -> Iterator[tuple[str, str]]:
    from agent.llm.prompt.render import first_call_text

    outcome = trajectory.outcome
    yield f"run {trajectory.id}", "bold"
    yield f"task: {trajectory.task.text}", ""
    for name, value in trajectory.task.facts.items():
        yield f"  {name}: {value}", ""
    yield (
        f"started: {trajectory.started_at}{f', ended: {trajectory.ended_at}' if trajectory.ended_at else ''}",
        "dim",
    )
    if trajectory.branch is not None:
        yield f"branch of {trajectory.branch.run} from step {trajectory.branch.step}", "dim"
    yield _provenance(trajectory), "dim"
    for solved in trajectory.provenance.recalled:
        source = f" (run {solved.run})" if solved.run else ""
        yield f"recalled: {solved.text} -> {first_call_text(solved)}{source}", "dim"
    for index, step in enumerate(trajectory.steps):
        yield "", ""
        yield _head(index, step), "bold"
        yield from proposed_lines(step)
        yield from observed_lines(step, whole=True)
        for passage in step.passages:
            yield f"  passage {citation_text(passage)} ({passage.score:.2f})", "cyan"
        if step.grounding is not None:
            yield from grounding_lines(step.grounding)
        for status in statuses:
            if status.correction.step == index:
                yield from _correction(status)
        for output in outputs:
            if output.step == index:
                reason = f": {output.reason}" if output.reason else ""
                yield f"  output corrected by {output.reviewer} at {output.at}{reason}", "magenta"
                yield f"    correct output: {json.dumps(output.output, ensure_ascii=False)}", "magenta"
    yield "", ""
    if outcome is None:
        yield "outcome: unfinished; `ratchet resume` continues it", "yellow"
    else:
        yield f"outcome: {outcome} ({outcome.meaning})", "bold"
        yield from ending_lines(trajectory) if outcome in (Outcome.ANSWERED, Outcome.REFUSED) else ()
    if trajectory.error is not None:
        yield trajectory.error.rstrip(), "red"
    for rating in ratings:
        reason = f": {rating.reason}" if rating.reason else ""
        yield f"rated {rating.verdict} by {rating.reviewer} at {rating.at}{reason}", "magenta"


def _provenance(trajectory: Trajectory) -> str:
    provenance = trajectory.provenance
    adapter, revision = "no adapter", ""
    if provenance.adapter:
        adapter = f"adapter {provenance.adapter} ({(provenance.adapter_hash or '')[:12]})"
    if provenance.base_revision:
        revision = f" ({provenance.base_revision[:12]})"
    parts = [
        f"base {provenance.base or 'unknown'}{revision}",
        adapter,
        f"prompt {provenance.prompt_version}",
        f"seed {provenance.seed}, temperature {provenance.temperature:g}",
        f"tools {', '.join(provenance.tools)}",
    ]
    return "made by: " + "; ".join(parts)


def _head(index: int, step: Step) -> str:
    used = step.usage
    author = " (correction)" if step.author == "correction" else ""
    seconds = f"{step.model_seconds:.2f} s model, {step.tool_seconds:.2f} s tool"
    kinds = f"{used.cached} cached, {used.forced} forced, {used.guessed} guessed"
    return f"step {index}{author}: {used.total} tokens ({kinds}), {seconds}"


def _correction(status: CorrectionStatus) -> Iterator[tuple[str, str]]:
    correction = status.correction
    reason = f": {correction.reason}" if correction.reason else ""
    yield f"  corrected by {correction.reviewer} at {correction.at}{reason}", "magenta"
    if correction.plan:
        yield f"    plan: {'; '.join(correction.plan)}", "magenta"
    if correction.thought:
        yield f"    thought: {correction.thought}", "magenta"
    yield f"    call: {call_text(correction.call.name, correction.call.arguments)}", "magenta"
    if status.superseded_by is not None:
        yield f"    superseded by {status.superseded_by}", "magenta"
    elif status.reviewer:
        yield f"    {status.kind}, says {status.reviewer}" + (f": {status.reason}" if status.reason else ""), "magenta"


def pairs(texts: list[str], option: str) -> dict[str, str]:
    """Return texts of the form name=value as a mapping."""
    values = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            raise UsageError(f"{option} {text!r}: expected name=value")
        values[name.strip()] = value
    return values
