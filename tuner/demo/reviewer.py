"""A scripted reviewer: works through training tickets as a person would, knowing how each should go.

It watches a run, stops it at the first step that is not right, corrects that step, has the run taken up from
there, and rates up what ended well. It acts only through the commands that people use. It knows tickets with a
`solution`; held-out tickets have none.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import TuningError
from agent.privacy.redaction import Scrubber, has_placeholder
from agent.records.run import Step, ToolCall, Trajectory
from agent.run.state import Event
from agent.runtime import Runtime
from agent.text.quotes import collect_quotes, match_quotes
from agent.util.ids import new_id
from tuner.evaluation.checks import same_value, score
from tuner.evaluation.suite import SolutionStep, SuiteTask

Command = Callable[[Sequence[str]], int]
"""The command line: arguments in, exit code out."""

REVIEWER = "scripted reviewer"


@dataclass(frozen=True)
class Review:
    """What a reviewer did."""

    tickets: int
    corrections: int
    rated_up: int
    right_at_once: int
    """Tickets that needed no correction."""


class Reviewer:
    """Reviews tickets until the corrections it may make are used up."""

    def __init__(
        self, runtime: Runtime, command: Command, *, corrections: int, progress: Callable[[int, int], None]
    ) -> None:
        self._runtime = runtime
        self._command = command
        self._left = self._allowed = corrections
        self._progress = progress
        # The command line prints and parses; one at a time, as a person would.
        self._hand = threading.Lock()
        self._done: list[tuple[int, bool]] = []
        self._quoted = {tool.name: tool.quoted for tool in runtime.frame().tools}
        """Tool to its argument that quotes, if it has one."""

    def review(self, tickets: Sequence[SuiteTask], *, at_once: int) -> Review:
        """Take the tickets in order, several at once, until they or the corrections run out."""
        pending = iter(tickets)

        def work() -> None:
            while True:
                with self._hand:
                    ticket = next(pending, None) if self._left > 0 else None
                if ticket is None:
                    return
                self._done.append(self._review(ticket))

        with ThreadPoolExecutor(at_once) as pool:
            for worker in [pool.submit(work) for _ in range(at_once)]:
                worker.result()
        made = self._allowed - self._left
        return Review(
            len(self._done),
            made,
            sum(good for _, good in self._done),
            sum(good and count == 0 for count, good in self._done),
        )

    def _review(self, ticket: SuiteTask) -> tuple[int, bool]:
        """How many corrections a ticket took, and whether it ended well."""
        count = 0
        trajectory = self._watch(ticket, None)
        while (wrong := first_wrong(ticket, trajectory)) is not None:
            right = as_shown(ticket.solution[wrong], ticket, trajectory)
            if not self._could_say(right, trajectory.steps[:wrong]):
                break
            with self._hand:
                if self._left <= 0:
                    self._runtime.clear_workspace(trajectory.id)
                    return count, False
                self._left -= 1
                self._correct(trajectory, wrong, right)
                self._progress(self._allowed - self._left, self._allowed)
            count += 1
            trajectory = self._watch(ticket, trajectory.id)
        workspace = self._runtime.home.workspaces / trajectory.id
        shown = self._runtime.reveal(trajectory)
        verdict = score(ticket, shown, workspace, pristine=self._runtime.project.folder)
        self._runtime.clear_workspace(trajectory.id)
        with self._hand:
            reason = "; ".join(verdict.reasons) or "solved"
            self._run(["rate", trajectory.id, "up" if verdict.success else "down", "--reason", reason])
        return count, verdict.success

    def _watch(self, ticket: SuiteTask, resumed: str | None) -> Trajectory:
        """Run a ticket, or take a corrected run up again, and stop it as soon as a step is not right."""
        stop = threading.Event()

        def look(event: Event) -> None:
            if event.kind == "observed" and first_wrong(ticket, event.trajectory) is not None:
                stop.set()

        if resumed is None:
            return self._runtime.run(ticket.task, tools=ticket.tools, run_id=new_id(), cancelled=stop, on_event=look)
        done = self._runtime.resume(resumed, cancelled=stop, on_event=look)
        self._runtime.clear_workspace(resumed)
        return done

    def _could_say(self, right: SolutionStep, before: Sequence[Step]) -> bool:
        """Whether what it is to quote was found; if not, the search was at fault and no correction helps."""
        argument = self._quoted.get(right.call.name)
        return argument is None or match_quotes(str(right.call.arguments[argument]), collect_quotes(before)) is not None

    def _correct(self, trajectory: Trajectory, index: int, right: SolutionStep) -> None:
        """`right` is the solution's step `as_shown` in this run."""
        arguments = resolve_citations(right.call.arguments, trajectory, index)
        command = [
            "correct",
            trajectory.id,
            str(index),
            "--tool",
            right.call.name,
            "--args",
            json.dumps(arguments),
        ]
        command += ["--thought", right.thought, "--reason", "not how this ticket is solved"]
        if right.plan:
            command += ["--plan", "; ".join(right.plan)]
        self._run(command)

    def _run(self, command: list[str]) -> None:
        code = self._command([*command, "--reviewer", REVIEWER])
        if code != 0:
            raise TuningError(f"`ratchet {' '.join(command)}` ended with {code}; run it by hand to see why")


def first_wrong(ticket: SuiteTask, trajectory: Trajectory) -> int | None:
    """Index of the first step that is not as the solution has it; None when all so far are right."""
    masked = _is_masked(ticket, trajectory)
    for index, step in enumerate(trajectory.steps):
        if index >= len(ticket.solution):
            return len(ticket.solution) - 1
        if not _is_right(as_shown(ticket.solution[index], ticket, trajectory), step, trajectory, index, masked):
            return index
    # A run that used up its budget behind right steps has no step that a correction would better.
    return None


def as_shown(right: SolutionStep, ticket: SuiteTask, trajectory: Trajectory) -> SolutionStep:
    """The solution's step in the words of a scrubbed run: the model can only say what it was shown."""
    if not _is_masked(ticket, trajectory):
        return right
    scrubber = Scrubber()
    # In the order in which the run masked them, for placeholders are numbered as they are met.
    for text in (*ticket.task.facts.values(), ticket.task.text):
        scrubber.mask(text)
    call = ToolCall(right.call.name, _mask(dict(right.call.arguments), scrubber))
    return SolutionStep(call, scrubber.mask(right.thought), tuple(map(scrubber.mask, right.plan)))


def resolve_citations(arguments: Any, trajectory: Trajectory, index: int) -> dict[str, Any]:
    """The arguments of a solution's step, `{cite:DOCUMENT}` replaced by the label it has in this run."""
    shown = [passage for step in trajectory.steps[:index] for passage in step.passages]
    resolved = dict(arguments)
    for name, value in resolved.items():
        found = re.fullmatch(r"\{cite:(.+)\}", value) if isinstance(value, str) else None
        if found is not None:
            resolved[name] = [passage.label for passage in shown if passage.document == found.group(1)][:1]
    return resolved


def _is_masked(ticket: SuiteTask, trajectory: Trajectory) -> bool:
    was_told = any(has_placeholder(step.observation) for step in trajectory.steps)
    return was_told or (trajectory.task.text, dict(trajectory.task.facts)) != (
        ticket.task.text,
        dict(ticket.task.facts),
    )


def _mask(value: Any, scrubber: Scrubber) -> Any:
    if isinstance(value, str):
        return scrubber.mask(value)
    if isinstance(value, list | tuple):
        return [_mask(item, scrubber) for item in value]
    if isinstance(value, dict):
        return {key: _mask(item, scrubber) for key, item in value.items()}
    return value


def _is_right(right: SolutionStep, step: Step, trajectory: Trajectory, index: int, masked: bool) -> bool:
    if step.call is None or step.call.name != right.call.name:
        return False
    if not _alike(right.thought, step.thought) or (
        right.plan and not _alike(" ".join(right.plan), " ".join(step.plan))
    ):
        return False
    wanted = resolve_citations(right.call.arguments, trajectory, index)
    if set(wanted) != set(step.call.arguments):
        return False
    return all(
        same_value(value, step.call.arguments[name]) or (masked and "<" in str(step.call.arguments[name]))
        for name, value in wanted.items()
    )


def _alike(right: str, said: str) -> bool:
    """Whether a thought or plan says about the same: half of its words are the reference's."""
    words, reference = set(re.findall(r"\w+", said.lower())), set(re.findall(r"\w+", right.lower()))
    return len(words & reference) * 2 >= max(len(words), len(reference))


def load_tickets(path: Path) -> list[SuiteTask]:
    """Training tickets, each with its solution."""
    from tuner.evaluation.suite import load_suite

    return [ticket for ticket in load_suite(path).tasks if ticket.solution]
