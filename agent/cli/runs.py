"""`run`, `chat`, `resume`, `log` and `show`: doing tasks, and looking at what was done."""

from __future__ import annotations

import json
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from agent.cli.console import (
    Watcher,
    call_text,
    checked_lines,
    citation_text,
    ending_lines,
    interruptible,
    note,
    observed_lines,
    proposed_lines,
    result,
    result_json,
    speaker,
    table,
)
from agent.cli.session import Session, UsageError
from agent.errors import StoreError
from agent.records.feedback import OutputCorrection, Rating
from agent.records.run import Outcome, Step, Trajectory

if TYPE_CHECKING:
    from agent.feedback.approved import Ruling
    from agent.run.state import Event
    from agent.runtime import Runtime

NO_ANSWER = 3
INTERRUPTED = 130


def run(arguments: Namespace, session: Session) -> int:
    """One task: its steps go to stderr as they come, its answer to stdout."""
    from agent.records.run import Task
    from agent.runtime import ACTIVE
    from agent.util.ids import new_id

    facts = pairs(arguments.fact, "--fact")
    adapter = {None: ACTIVE, "base": None}.get(arguments.adapter, arguments.adapter)
    if not arguments.task.strip():
        raise UsageError("the task is empty; say what is to be done")
    run_id = new_id()
    with session.runtime() as runtime:
        runtime.stepper(adapter)  # what takes long is loaded before Ctrl-C means the task
        watcher = None if arguments.json or arguments.quiet else Watcher(speaker(sys.stderr), answer=False)
        cancelled = threading.Event()
        with interruptible(cancelled):
            session.note(f"run {run_id}")
            done = runtime.run(
                Task(run_id, arguments.task, facts),
                adapter=adapter,
                run_id=run_id,
                cancelled=cancelled,
                on_event=watcher,
            )
        return _report(runtime, done, as_json=arguments.json)


def resume(arguments: Namespace, session: Session) -> int:
    """Go on with a run that was cut off, or take one up behind its first corrected step."""
    with session.runtime() as runtime:
        watcher = None if arguments.json or arguments.quiet else Watcher(speaker(sys.stderr), answer=False)
        cancelled = threading.Event()
        with interruptible(cancelled):
            done = runtime.resume(arguments.run, cancelled=cancelled, on_event=watcher)
        session.note(f"run {done.id}")
        return _report(runtime, done, as_json=arguments.json)


def _report(runtime: Runtime, done: Trajectory, *, as_json: bool) -> int:
    from agent.run.views import result_view

    shown = runtime.reveal(done)
    if as_json:
        result_json(result_view(shown))
    elif done.outcome in (Outcome.ANSWERED, Outcome.REFUSED):
        say = speaker(sys.stdout)
        for text, style in ending_lines(shown):
            say(text, style)
    else:
        for text, _ in ending_lines(shown):
            note(text)
    if done.outcome is Outcome.CANCELLED:
        return INTERRUPTED
    return 0 if done.outcome in (Outcome.ANSWERED, Outcome.REFUSED) else NO_ANSWER


# -- chat ----------------------------------------------------------------------------------------------------


def chat(arguments: Namespace, session: Session) -> int:
    """One task a line. Ctrl-C cancels the task; at the prompt it leaves, as the end of input does."""
    from agent.records.run import Task
    from agent.runtime import ACTIVE
    from agent.util.ids import new_id

    facts = pairs(arguments.fact, "--fact")
    adapter = {None: ACTIVE, "base": None}.get(arguments.adapter, arguments.adapter)
    with session.runtime() as runtime:
        runtime.stepper(adapter)
        if sys.stdin.isatty():
            note("One task a line. Ctrl-C cancels a task and keeps it; Ctrl-D leaves.")
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
                    on_event=_teller(runtime, as_json=arguments.json),
                )
            if not arguments.json:
                session.note(f"run {run_id}")
    return 0


def _teller(runtime: Runtime, *, as_json: bool) -> Callable[[Event], None]:
    """Tells the events on stdout, with what was scrubbed put back into the answer."""
    watcher = Watcher(speaker(sys.stdout), answer=False)

    def tell(event: Event) -> None:
        from dataclasses import replace

        from agent.run.views import event_view

        if event.kind == "ended":
            event = replace(event, trajectory=runtime.reveal(event.trajectory))
        if as_json:
            result_json(event_view(event))
        elif event.kind == "ended":
            watcher.ending(event.trajectory)
        else:
            watcher(event)

    return tell


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
    """The newest runs, one a line."""
    from agent.run.views import summary_view

    try:
        with session.store() as store:
            found = store.runs(arguments.limit, unfinished=arguments.unfinished)
    except StoreError:
        if session.project.home.database.is_file():
            raise
        found = ()
    if arguments.json:
        result_json([summary_view(one) for one in found])
        return 0
    if not found:
        note("There are no unfinished runs." if arguments.unfinished else "There are no runs yet.")
        return 0
    rows = [
        [
            one.id,
            one.outcome or "unfinished",
            str(one.steps),
            str(one.tokens),
            f"{one.seconds:.1f}",
            one.adapter or "base",
            f"{one.ratings}/{one.corrections}",
            one.task if len(one.task) <= 60 else one.task[:57] + "...",
        ]
        for one in found
    ]
    result(table(rows, ["run", "outcome", "steps", "tokens", "seconds", "adapter", "rated/corrected", "task"]))
    return 0


def show(arguments: Namespace, session: Session) -> int:
    """Everything that is kept of one run."""
    from agent.feedback.approved import rulings
    from agent.run.views import run_view

    with session.store() as store:
        trajectory = store.get(arguments.run)
        corrections = store.corrections(trajectory.id)
        ratings, outputs = store.ratings(trajectory.id), store.output_corrections(trajectory.id)
        ruled = rulings(store)
    if arguments.json:
        result_json(run_view(trajectory, corrections, ratings, outputs))
        return 0
    say = speaker(sys.stdout)
    for text, style in _shown(trajectory, [ruled[one.id] for one in corrections], ratings, outputs):
        say(text, style)
    return 0


def _shown(
    trajectory: Trajectory, ruled: Sequence[Ruling], ratings: Sequence[Rating], outputs: Sequence[OutputCorrection]
) -> Iterator[tuple[str, str]]:
    from agent.llm.prompt.render import beginning_text

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
        yield f"recalled: {solved.text} -> {beginning_text(solved)}{source}", "dim"
    for index, step in enumerate(trajectory.steps):
        yield "", ""
        yield _head(index, step), "bold"
        yield from proposed_lines(step)
        yield from observed_lines(step, whole=True)
        for passage in step.passages:
            yield f"  passage {citation_text(passage)} ({passage.score:.2f})", "cyan"
        if step.grounding is not None:
            yield from checked_lines(step.grounding)
        for one in ruled:
            if one.correction.step == index:
                yield from _correction(one)
        for output in outputs:
            if output.step == index:
                reason = f": {output.reason}" if output.reason else ""
                yield f"  output corrected by {output.reviewer} at {output.at}{reason}", "magenta"
                yield f"    should have given: {json.dumps(output.output, ensure_ascii=False)}", "magenta"
    yield "", ""
    if outcome is None:
        yield "outcome: unfinished; `ratchet resume` goes on with it", "yellow"
    else:
        yield f"outcome: {outcome} ({outcome.meaning})", "bold"
        yield from ending_lines(trajectory) if outcome in (Outcome.ANSWERED, Outcome.REFUSED) else ()
    if trajectory.error is not None:
        yield trajectory.error.rstrip(), "red"
    for rating in ratings:
        reason = f": {rating.reason}" if rating.reason else ""
        yield f"rated {rating.verdict} by {rating.reviewer} at {rating.at}{reason}", "magenta"


def _provenance(trajectory: Trajectory) -> str:
    made = trajectory.provenance
    adapter = f"adapter {made.adapter} ({(made.adapter_hash or '')[:12]})" if made.adapter else "no adapter"
    parts = [
        f"base {made.base or 'unknown'}{f' ({made.base_revision[:12]})' if made.base_revision else ''}",
        adapter,
        f"prompt {made.prompt_version}",
        f"seed {made.seed}, temperature {made.temperature:g}",
        f"tools {', '.join(made.tools)}",
    ]
    return "made by: " + "; ".join(parts)


def _head(index: int, step: Step) -> str:
    used = step.usage
    author = " (correction)" if step.author == "correction" else ""
    seconds = f"{step.model_seconds:.2f} s model, {step.tool_seconds:.2f} s tool"
    kinds = f"{used.cached} cached, {used.forced} forced, {used.guessed} guessed"
    return f"step {index}{author}: {used.total} tokens ({kinds}), {seconds}"


def _correction(ruling: Ruling) -> Iterator[tuple[str, str]]:
    one = ruling.correction
    reason = f": {one.reason}" if one.reason else ""
    yield f"  corrected by {one.reviewer} at {one.at}{reason}", "magenta"
    if one.plan:
        yield f"    plan: {'; '.join(one.plan)}", "magenta"
    if one.thought:
        yield f"    thought: {one.thought}", "magenta"
    yield f"    call: {call_text(one.call.name, one.call.arguments)}", "magenta"
    if ruling.superseded_by is not None:
        yield f"    superseded by {ruling.superseded_by}", "magenta"
    elif ruling.by:
        yield f"    {ruling.kind}, says {ruling.by}" + (f": {ruling.reason}" if ruling.reason else ""), "magenta"


def pairs(texts: list[str], option: str) -> dict[str, str]:
    """`name=value` texts as a mapping."""
    found = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            raise UsageError(f"{option} {text!r}: expected name=value")
        found[name.strip()] = value
    return found
