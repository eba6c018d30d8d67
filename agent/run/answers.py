"""Answers: the calls that end a run, their citations and quotes, and the check of their sentences."""

from __future__ import annotations

from dataclasses import replace

from agent.grounding.check import check_answer
from agent.records.run import Grounding, Outcome, Step, ToolCall
from agent.run.state import Run
from agent.text.quotes import MAX_QUOTES, collect_quotes, match_quotes


def ending_outcome(state: Run, call: ToolCall) -> str | None:
    """Return the outcome that a call of this tool ends a run with; None for a tool that ends none."""
    tool = state.tools.get(call.name)
    return None if tool is None else (tool.metadata or {}).get("ends")


def citation_fault(state: Run, call: ToolCall) -> str | None:
    """Return the fault of an answer that cites passages the run has not found.

    Our grammar admits no such citation; another model may generate one.
    """
    cited = call.arguments.get("citations")
    shown = [passage.label for passage in state.trajectory.passages]
    if ending_outcome(state, call) is None or not isinstance(cited, list) or all(label in shown for label in cited):
        return None
    wrong = ", ".join(str(label) for label in cited if label not in shown)
    return f"No passage {wrong} was shown; cite {', '.join(map(str, shown)) or 'none'}."


def quote_fault(state: Run, call: ToolCall) -> str | None:
    """Return the fault of a text that should quote observations and does not.

    Our grammar admits no such text; another model may generate one.
    """
    tool = state.tools.get(call.name)
    name = None if tool is None else (tool.metadata or {}).get("quoted")
    said = call.arguments.get(name) if name else None
    if not isinstance(said, str) or match_quotes(said, collect_quotes(state.trajectory.steps)) is not None:
        return None
    return f"{name} must be one or {MAX_QUOTES} whole sentences that tools said, word for word."


def check_grounding(state: Run, step: Step) -> Grounding | None:
    """Check the sentences of an answer; None where it is not checked, as a reviewer's correction is not."""
    words = answer_text(state, step)
    mode = state.options.grounded
    if words is None or mode == "off" or step.author == "correction":
        return None
    assert state.encoder is not None
    return check_answer(state.trajectory.task.text, words, state.trajectory.steps, state.encoder, mode)


def answer_text(state: Run, step: Step) -> str | None:
    """Return the text of a step that ends the run with an answer; None for another step."""
    if step.call is None or ending_outcome(state, step.call) != Outcome.ANSWERED:
        return None
    words = step.call.arguments.get("text")
    return words if isinstance(words, str) else None


def without_answer(state: Run, step: Step) -> Step:
    """Return the step without the text of its answer, where that is hidden until it was checked."""
    if not state.withholds or step.call is None or answer_text(state, step) is None:
        return step
    return replace(step, call=replace(step.call, arguments={**step.call.arguments, "text": ""}), token_ids=())
