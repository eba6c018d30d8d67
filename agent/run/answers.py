"""TODO: agent/run/answers.py"""

from __future__ import annotations

from dataclasses import replace

from agent.grounding.check import check_answer
from agent.records.run import Grounding, Outcome, Step, ToolCall
from agent.run.state import Run
from agent.text.quotes import MAX_QUOTES, quotable, quoted


def _ends(going: Run, call: ToolCall) -> str | None:
    """The outcome that this call's tool ends a run with, if it is one that does."""
    tool = going.tools.get(call.name)
    return None if tool is None else (tool.metadata or {}).get("ends")


def _not_shown(going: Run, call: ToolCall) -> str | None:
    """What is wrong with the passages an answer cites: a model without our grammar may name any."""
    cited = call.arguments.get("citations")
    shown = [passage.label for passage in going.trajectory.passages]
    if _ends(going, call) is None or not isinstance(cited, list) or all(label in shown for label in cited):
        return None
    wrong = ", ".join(str(label) for label in cited if label not in shown)
    return f"No passage {wrong} was shown; cite {', '.join(map(str, shown)) or 'none'}."


def _not_quoted(going: Run, call: ToolCall) -> str | None:
    """What is wrong with a text that is to quote the tools: a model without our grammar may say anything."""
    tool = going.tools.get(call.name)
    name = None if tool is None else (tool.metadata or {}).get("quoted")
    said = call.arguments.get(name) if name else None
    if not isinstance(said, str) or quoted(said, quotable(going.trajectory.steps)) is not None:
        return None
    return f"{name} must be one or {MAX_QUOTES} whole sentences that tools said, word for word."


def _grounding(going: Run, step: Step) -> Grounding | None:
    """What the check of an answer finds. What a person put in its place is not checked: they stand behind it."""
    words = _answer_of(going, step)
    mode = going.options.grounded
    if words is None or mode == "off" or step.author == "correction":
        return None
    assert going.encoder is not None
    return check_answer(going.trajectory.task.text, words, going.trajectory.steps, going.encoder, mode)


def _answer_of(going: Run, step: Step) -> str | None:
    """The text of a call that ends the run with an answer in words."""
    if step.call is None or _ends(going, step.call) != Outcome.ANSWERED:
        return None
    words = step.call.arguments.get("text")
    return words if isinstance(words, str) else None


def _without_words(going: Run, step: Step) -> Step:
    """The step as it may be told before its answer was checked."""
    if not going.withholds or step.call is None or _answer_of(going, step) is None:
        return step
    return replace(step, call=replace(step.call, arguments={**step.call.arguments, "text": ""}), token_ids=())
