"""Checks feedback and turns it into records.

A corrected step must be one that the model itself could have generated at that point: the same schema and grammar
apply. Secrets and personal data are masked by the run's scrubber before the check, because the model sees placeholders
too; a reviewer's name is not masked. Nothing is stored here; ids and times are arguments.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Literal, get_args

from langchain_core.tools import BaseTool
from pydantic import BaseModel, ValidationError

from agent.errors import FeedbackError
from agent.llm.prompt.render import Frame
from agent.llm.prompt.step_grammar import (
    MAX_PLAN_ITEM,
    MAX_PLAN_ITEMS,
    MAX_THOUGHT,
    ParsedStep,
    step_grammar,
    write_step,
)
from agent.llm.prompt.tool_spec import describe
from agent.privacy.redaction import Scrubber
from agent.records.feedback import Arbitration, Correction, Kind, OutputCorrection, Rating
from agent.records.run import Step, ToolCall, Trajectory
from agent.text.quotes import MAX_QUOTES, Quote, cited_labels, match_quotes


def make_rating(
    trajectory: Trajectory,
    verdict: str,
    *,
    scrubber: Scrubber | None,
    reviewer: str,
    reason: str = "",
    id: str,
    at: str,
) -> Rating:
    """Make the rating of a run. Raises FeedbackError for a verdict other than "up" and "down"."""
    if verdict not in ("up", "down"):
        raise FeedbackError(f"a rating is up or down, found {verdict!r}")
    checked: Literal["up", "down"] = "up" if verdict == "up" else "down"
    return Rating(id, trajectory.id, checked, _reviewer(reviewer), _masked(reason, scrubber), at)


def make_correction(
    trajectory: Trajectory,
    step: int,
    *,
    tools: Sequence[BaseTool],
    frame: Frame,
    scrubber: Scrubber | None,
    tool: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    changes: Mapping[str, str] | None = None,
    answer: str | None = None,
    citations: Sequence[int] | None = None,
    thought: str | None = None,
    plan: Sequence[str] | None = None,
    reviewer: str,
    reason: str = "",
    id: str,
    at: str,
) -> Correction:
    """Make the correction of a step. A tool and arguments that are left out are those of the original step.

    Args:
        tools: the project's, as `frame`.
        scrubber: masks the texts; None masks nothing.
        tool: the tool to call.
        arguments: all arguments of the call.
        changes: single arguments of the call, as text.
        answer: the text of an answer, which is a call of the tool that answers.
        citations: labels of the passages that the answer cites.
        thought: left out, it stays empty and is not trained.
        plan: left out, it stays empty and is not trained.

    Raises:
        FeedbackError: the step could not have been generated there; the message says what was expected.
    """
    was, before = _step_of(trajectory, step), trajectory.steps[:step]
    arguments, changes, answer = (_masked(one, scrubber) for one in (arguments, changes, answer))
    thought, plan, reason = (_masked(one, scrubber) for one in (thought, plan, reason))
    known = {one.name: one for one in tools if _had(trajectory, one.name)}
    shape = frame.only(list(known)).shape(trajectory.task, before)
    if answer is not None or citations is not None:
        if tool is not None or arguments is not None or changes:
            raise FeedbackError("an answer is a call of its own; give it without --tool, --args and --arg")
        tool, arguments = _answer(was, known, answer, citations, shape.quotes)
    name = tool if tool is not None else was.call.name if was.call is not None else None
    if name is None:
        raise FeedbackError(f"step {step} could not be read and has no call; name the tool it should have called")
    selected = known.get(name)
    if selected is None:
        raise FeedbackError(f"there is no tool {name!r} in this run; tools: {', '.join(known)}")
    call = ToolCall(name, _checked(selected, _arguments(selected, was, arguments, changes or {})))
    _check_citations(selected, call, shape.labels)
    # What the step is not to hold at all is left out without a word; what it is to hold must fit if it is given.
    shape = replace(shape, plan=shape.plan and plan is not None, thought=shape.thought and thought is not None)
    parsed = ParsedStep(
        call,
        (thought or "").strip() if shape.thought else "",
        tuple(item.strip() for item in plan or ()) if shape.plan else (),
    )
    _check_words(parsed, plan=shape.plan, thought=shape.thought)
    _check_grammar(parsed, step_grammar(shape), selected)
    return Correction(
        id, trajectory.id, step, call, parsed.thought, parsed.plan, _reviewer(reviewer), reason, at, only_given=True
    )


def make_output_correction(
    trajectory: Trajectory,
    step: int,
    output: str,
    *,
    right_output: Callable[[str, Mapping[str, Any], str], Mapping[str, Any]],
    scrubber: Scrubber | None,
    reviewer: str,
    reason: str = "",
    id: str,
    at: str,
) -> OutputCorrection:
    """Make the correction of the output of a trained task that a step called.

    `right_output` (see `agent.runtime.TrainedTasks`) converts `output` into the form of the tool's result. Raises
    FeedbackError for a step without a result and for an output that the task cannot give.
    """
    was = _step_of(trajectory, step)
    call = was.call
    if call is None or was.error is not None:
        raise FeedbackError(f"step {step} of run {trajectory.id} gave nothing, so there is no output to correct")
    result = _masked(right_output(call.name, call.arguments, _masked(output, scrubber)), scrubber)
    reason = _masked(reason, scrubber)
    return OutputCorrection(id, trajectory.id, step, call.name, result, _reviewer(reviewer), reason, at)


def make_arbitration(
    correction: Correction,
    kind: str,
    *,
    scrubber: Scrubber | None,
    reviewer: str,
    reason: str = "",
    id: str,
    at: str,
) -> Arbitration:
    """Make the record that gives a correction its kind. Raises FeedbackError for an unknown kind."""
    for valid in get_args(Kind):
        if kind == valid:
            reviewer, reason = _reviewer(reviewer), _masked(reason, scrubber)
            return Arbitration(id, correction.run, correction.id, valid, "reviewer", reviewer, reason, at)
    raise FeedbackError(f"a correction is a fact, a habit or an exception, found {kind!r}")


def expected_arguments(tool: BaseTool) -> str:
    """Return the arguments of a tool in one line, for a person."""
    spec = describe(tool)
    parameters = spec.parameters
    required = set(parameters.get("required", ()))
    names = []
    for name, schema in parameters.get("properties", {}).items():
        kind = " | ".join(map(str, schema["enum"])) if "enum" in schema else schema.get("type", "any")
        limits = [
            f"{key} {schema[key]}"
            for key in ("minLength", "maxLength", "minimum", "maximum", "pattern")
            if key in schema
        ]
        limits += ["copied from the task or an observation"] * (name in spec.copied)
        limits += [f"one or {MAX_QUOTES} whole sentences of observations"] * (name == spec.quoted)
        note = ", ".join([*limits, *(["optional"] if name not in required else [])])
        names.append(f"{name}: {kind}" + (f" ({note})" if note else ""))
    return f"{tool.name} takes {'; '.join(names) or 'no arguments'}"


def _step_of(trajectory: Trajectory, step: int) -> Step:
    if not 0 <= step < len(trajectory.steps):
        has = f"steps 0 to {len(trajectory.steps) - 1}" if trajectory.steps else "no steps"
        raise FeedbackError(f"run {trajectory.id} has no step {step}; it has {has}")
    return trajectory.steps[step]


def _masked(value: Any, scrubber: Scrubber | None) -> Any:
    return value if scrubber is None else scrubber.mask_values(value)


def _reviewer(name: str) -> str:
    if not name.strip():
        raise FeedbackError("feedback needs the name of who gives it; give --reviewer")
    return name.strip()


def _had(trajectory: Trajectory, name: str) -> bool:
    """Whether the run had this tool; a record that names no tools had all."""
    return not trajectory.provenance.tools or name in trajectory.provenance.tools


def _answer(
    was: Step,
    known: Mapping[str, BaseTool],
    text: str | None,
    citations: Sequence[int] | None,
    quotes: Sequence[Quote],
) -> tuple[str, dict[str, Any]]:
    """The call that answers. Text or citations that are left out are those of the original answer.

    Where answers quote, a new text without citations cites the passages that it quotes.
    """
    name = next((one.name for one in known.values() if (one.metadata or {}).get("ends") == "answered"), None)
    if name is None:
        raise FeedbackError("this run had no tool that answers; name a tool of its own")
    old = was.call.arguments if was.call is not None and was.call.name == name else {}
    if text is None and "text" not in old:
        raise FeedbackError("citations belong to an answer, which this step was not; give --answer as well")
    if citations is not None:
        cited = list(citations)
    elif text is not None and (known[name].metadata or {}).get("quoted") == "text":
        cited = cited_labels(match_quotes(text, quotes) or ())
    else:
        cited = old.get("citations", [])
    return name, {"text": old.get("text") if text is None else text, "citations": cited}


def _arguments(
    tool: BaseTool, was: Step, arguments: Mapping[str, Any] | None, changes: Mapping[str, str]
) -> dict[str, Any]:
    properties = describe(tool).parameters.get("properties", {})
    if arguments is not None:
        base = dict(arguments)
    else:
        old = {} if was.call is None else dict(was.call.arguments)
        same = was.call is not None and was.call.name == tool.name
        base = old if same else {name: value for name, value in old.items() if name in properties}
    for name, text in changes.items():
        base[name] = _value(text, properties.get(name, {}))
    return base


def _value(text: str, schema: Mapping[str, Any]) -> Any:
    """Read a value given as text: as it is for a text argument, as JSON for another."""
    kinds = {schema.get("type"), *(one.get("type") for one in schema.get("anyOf", ()))}
    if "string" in kinds and (text != "null" or "null" not in kinds):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _checked(tool: BaseTool, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments in the order and the types of the tool's schema."""
    parameters = describe(tool).parameters
    properties = parameters.get("properties", {})
    unknown = [name for name in arguments if name not in properties]
    absent = [name for name in parameters.get("required", ()) if name not in arguments]
    if unknown:
        raise FeedbackError(f"{tool.name} has no argument {unknown[0]!r}; {expected_arguments(tool)}")
    if absent:
        raise FeedbackError(f"{tool.name} lacks {', '.join(absent)}; {expected_arguments(tool)}")
    schema: Any = tool.args_schema
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        try:
            made = schema.model_validate(dict(arguments))
        except ValidationError as fault:
            faults = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in fault.errors())
            raise FeedbackError(f"wrong arguments ({faults}); {expected_arguments(tool)}") from fault
        return made.model_dump(mode="json", exclude_unset=True, by_alias=True)
    return {name: arguments[name] for name in properties if name in arguments}


def _check_citations(tool: BaseTool, call: ToolCall, labels: Sequence[int]) -> None:
    if (tool.metadata or {}).get("ends") != "answered":
        return
    wrong = [label for label in call.arguments.get("citations") or () if label not in labels]
    if wrong:
        shown = f"shown were {', '.join(map(str, labels))}" if labels else "none was shown"
        raise FeedbackError(f"passage {wrong[0]} was not shown before this step; {shown}")


def _check_words(parsed: ParsedStep, *, plan: bool, thought: bool) -> None:
    if thought and not 0 < len(parsed.thought) <= MAX_THOUGHT:
        raise FeedbackError(
            f"the thought has {len(parsed.thought)} characters, expected 1 to {MAX_THOUGHT}; "
            "shorten it, or leave it out"
        )
    fits = 0 < len(parsed.plan) <= MAX_PLAN_ITEMS and all(0 < len(item) <= MAX_PLAN_ITEM for item in parsed.plan)
    if plan and not fits:
        raise FeedbackError(
            f"a plan has 1 to {MAX_PLAN_ITEMS} parts, each of 1 to {MAX_PLAN_ITEM} characters, found "
            f'{list(parsed.plan)}; give --plan "first; second", or leave it out'
        )


def _check_grammar(parsed: ParsedStep, grammar: str, tool: BaseTool) -> None:
    from llguidance import LLMatcher

    text = write_step(parsed)
    tokenizer = _bytes_tokenizer()
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar))
    tokens = tokenizer.tokenize_str(text)
    taken = matcher.try_consume_tokens(tokens)
    if matcher.get_error():
        raise FeedbackError(f"the grammar of this step is invalid ({matcher.get_error().splitlines()[0]})")
    if taken < len(tokens) or not matcher.is_accepting():
        at = len(text.encode()[:taken].decode(errors="ignore"))
        raise FeedbackError(
            f"the model could not generate this step: it ends before {text[at : at + 30]!r} "
            f"(after {text[max(0, at - 30) : at]!r}); {expected_arguments(tool)}"
        )


@cache
def _bytes_tokenizer() -> Any:
    """A token for each byte: what a grammar admits does not depend on the model's tokens."""
    from llguidance import LLTokenizer

    return LLTokenizer("byte")
