"""A person's word on a run, checked before it is kept: what would not be a step is no correction.

A corrected step must be one the model itself could have said at that point, so the same schema and the same
grammar hold for it as for the model. Whether it is the better step is the reviewer's to know. Secrets and personal
data are masked here as in the run, by the scrubber that `Runtime.scrubber_of` gives: before the check, for the model
was shown placeholders. A reviewer's name is kept as it is given. Nothing is written here; ids and times are arguments.
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
from agent.text.quotes import MAX_QUOTES, Quote, cited_by, quoted


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
    """A verdict on a whole run. Raises FeedbackError on anything but up and down."""
    if verdict not in ("up", "down"):
        raise FeedbackError(f"a rating is up or down, found {verdict!r}")
    said: Literal["up", "down"] = "up" if verdict == "up" else "down"
    return Rating(id, trajectory.id, said, _reviewer(reviewer), _masked(reason, scrubber), at)


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
    """What a step should have been. Tool and arguments that are left out are those of the step as it was.

    A plan or thought that is left out stays empty, and is not trained. `arguments` replaces all arguments of the call,
    `changes` (as text) single ones; `answer` with `citations` stands for a call of the tool that answers. `tools` and
    `frame` are those of the project. Raises FeedbackError, which names what was expected.
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
    chosen = known.get(name)
    if chosen is None:
        raise FeedbackError(f"there is no tool {name!r} in this run; tools: {', '.join(known)}")
    call = ToolCall(name, _checked(chosen, _arguments(chosen, was, arguments, changes or {})))
    _check_citations(chosen, call, shape.labels)
    # What the step is not to hold at all is left out without a word; what it is to hold must fit if it is given.
    shape = replace(shape, plan=shape.plan and plan is not None, thought=shape.thought and thought is not None)
    said = ParsedStep(
        call,
        (thought or "").strip() if shape.thought else "",
        tuple(item.strip() for item in plan or ()) if shape.plan else (),
    )
    _check_words(said, plan=shape.plan, thought=shape.thought)
    _check_grammar(said, step_grammar(shape), chosen)
    return Correction(
        id, trajectory.id, step, call, said.thought, said.plan, _reviewer(reviewer), reason, at, only_given=True
    )


def make_output_correction(
    trajectory: Trajectory,
    step: int,
    said: str,
    *,
    right_output: Callable[[str, Mapping[str, Any], str], Mapping[str, Any]],
    scrubber: Scrubber | None,
    reviewer: str,
    reason: str = "",
    id: str,
    at: str,
) -> OutputCorrection:
    """What the trained task that a step asked should have given.

    `right_output` (see `agent.runtime.TrainedTasks`) says how the tool would have given it. Raises FeedbackError.
    """
    was = _step_of(trajectory, step)
    call = was.call
    if call is None or was.error is not None:
        raise FeedbackError(f"step {step} of run {trajectory.id} gave nothing, so there is no output to correct")
    output = _masked(right_output(call.name, call.arguments, _masked(said, scrubber)), scrubber)
    reason = _masked(reason, scrubber)
    return OutputCorrection(id, trajectory.id, step, call.name, output, _reviewer(reviewer), reason, at)


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
    """A reviewer's word on where a correction belongs. Raises FeedbackError on anything but the three kinds."""
    for known in get_args(Kind):
        if kind == known:
            reviewer, reason = _reviewer(reviewer), _masked(reason, scrubber)
            return Arbitration(id, correction.run, correction.id, known, "reviewer", reviewer, reason, at)
    raise FeedbackError(f"a correction is a fact, a habit or an exception, found {kind!r}")


def expected_arguments(tool: BaseTool) -> str:
    """The arguments of a tool in one line, for a person."""
    told = describe(tool)
    parameters = told.parameters
    required = set(parameters.get("required", ()))
    names = []
    for name, schema in parameters.get("properties", {}).items():
        kind = " | ".join(map(str, schema["enum"])) if "enum" in schema else schema.get("type", "any")
        limits = [
            f"{key} {schema[key]}"
            for key in ("minLength", "maxLength", "minimum", "maximum", "pattern")
            if key in schema
        ]
        limits += ["copied from what the run was shown"] * (name in told.copied)
        limits += [f"one or {MAX_QUOTES} whole sentences that tools said"] * (name == told.quoted)
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
    """Whether the run had this tool; a record that names none is taken to have had all."""
    return not trajectory.provenance.tools or name in trajectory.provenance.tools


def _answer(
    was: Step,
    known: Mapping[str, BaseTool],
    text: str | None,
    citations: Sequence[int] | None,
    quotes: Sequence[Quote],
) -> tuple[str, dict[str, Any]]:
    """The call that answers. Text or citations that are left out are those of the answer as it was.

    Where answers quote, a new text without citations cites the passages it stands in.
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
        cited = cited_by(quoted(text, quotes) or ())
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
    """A value given as text: a text where the tool wants one, JSON where it wants something else."""
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


def _check_words(said: ParsedStep, *, plan: bool, thought: bool) -> None:
    if thought and not 0 < len(said.thought) <= MAX_THOUGHT:
        raise FeedbackError(
            f"the thought has {len(said.thought)} characters, expected 1 to {MAX_THOUGHT}; shorten it, or leave it out"
        )
    fits = 0 < len(said.plan) <= MAX_PLAN_ITEMS and all(0 < len(item) <= MAX_PLAN_ITEM for item in said.plan)
    if plan and not fits:
        raise FeedbackError(
            f"a plan has 1 to {MAX_PLAN_ITEMS} parts, each of 1 to {MAX_PLAN_ITEM} characters, found "
            f'{list(said.plan)}; give --plan "first; second", or leave it out'
        )


def _check_grammar(said: ParsedStep, grammar: str, tool: BaseTool) -> None:
    from llguidance import LLMatcher

    text = write_step(said)
    tokenizer = _bytes_tokenizer()
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar))
    tokens = tokenizer.tokenize_str(text)
    taken = matcher.try_consume_tokens(tokens)
    if matcher.get_error():
        raise FeedbackError(f"the grammar of this step does not hold ({matcher.get_error().splitlines()[0]})")
    if taken < len(tokens) or not matcher.is_accepting():
        at = len(text.encode()[:taken].decode(errors="ignore"))
        raise FeedbackError(
            f"the model could not say this step: it breaks off before {text[at : at + 30]!r} "
            f"(behind {text[max(0, at - 30) : at]!r}); {expected_arguments(tool)}"
        )


@cache
def _bytes_tokenizer() -> Any:
    """One token a byte: what a grammar admits does not depend on the model's own tokens."""
    from llguidance import LLTokenizer

    return LLTokenizer("byte")
