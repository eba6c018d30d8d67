"""The grammar of one step, made from the tools at hand, and the canonical text it admits.

A step is one JSON object: `{"plan":[...],"thought":"...","tool":"...","args":{...}}`. The grammar (Lark, for
llguidance) admits exactly one spelling of every step, so that parsing a step and writing it again gives the
same bytes. Tool arguments follow the JSON schema of the tool: objects, arrays, strings (length, pattern,
enum), integers with bounds, numbers, booleans, null, references and unions. Bounds of numbers that are not
integers are left to the tool. Anything else is refused when the grammar is made, not when it is used.

A text that a tool says is copied comes from what the run was shown: with a `pattern` it is one of the identifiers
there, else a run of words. So none is made up, and a tool that needs one cannot be called before there is one.
Likewise a text that is quoted is made of whole sentences that tools said; an answer then cites where they stand.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from agent.errors import GrammarError, PromptError
from agent.llm.prompt.json_grammar import _WORDS, MAX_STRING, _quote, _Rules, _sizes, canonical, copyable
from agent.records.run import Part, Step, ToolCall
from agent.text.quotes import MAX_QUOTES, Quote, cited_by

MAX_THOUGHT = 80
MAX_PLAN_ITEM = 32
MAX_PLAN_ITEMS = 4
MAX_COPIES = 64
"""Identifiers to choose from: the last that were shown."""


@dataclass(frozen=True)
class ToolSpec:
    """What the model is told of a tool, and what its calls must look like."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON schema of the arguments: an object with `properties`."""
    ends: Literal["answered", "refused"] | None = None
    """Set on the tools whose call ends a run."""
    copied: tuple[str, ...] = ()
    """Names of the arguments, texts all, that come from what the run was shown."""
    quoted: str | None = None
    """Name of the argument, a text, that is made of whole sentences that tools said."""

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """The texts to choose from, of each argument that is a choice among texts."""
        named = {name: schema.get("enum", ()) for name, schema in self.parameters.get("properties", {}).items()}
        return {
            name: tuple(values)
            for name, values in named.items()
            if values and all(isinstance(value, str) for value in values)
        }


def chosen(call: ToolCall, tools: Sequence[ToolSpec]) -> tuple[tuple[str, str], ...]:
    """What a call chose: name and value of each argument that is a choice among texts, in the schema's order.

    Empty where the tool is none of these. A value that is no longer among the choices is left out.
    """
    choices = next((tool.choices for tool in tools if tool.name == call.name), {})
    return tuple((name, call.arguments[name]) for name, values in choices.items() if call.arguments.get(name) in values)


@dataclass(frozen=True)
class StepShape:
    """What a step must hold at one point of a run."""

    tools: tuple[ToolSpec, ...]
    plan: bool = True
    thought: bool = True
    labels: tuple[int, ...] = ()
    """Labels of the passages shown so far: the only ones that an answer may cite."""
    shown: str = ""
    """What the run was shown so far: the only place that copied arguments come from."""
    quotes: tuple[Quote, ...] = ()
    """The sentences that tools said so far: the only ones that a quoted argument may be made of."""


@dataclass(frozen=True)
class ParsedStep:
    """What a step's text says."""

    call: ToolCall
    thought: str = ""
    plan: tuple[str, ...] = ()


def write_step(step: Step | ParsedStep) -> str:
    """The canonical text of a step."""
    if step.call is None:
        raise PromptError("a step without a call has no canonical text; use what was said")
    parts: dict[str, Any] = {}
    if step.plan:
        parts["plan"] = list(step.plan)
    if step.thought:
        parts["thought"] = step.thought
    parts["tool"] = step.call.name
    parts["args"] = step.call.arguments
    return canonical(parts)


def part_spans(step: Step | ParsedStep) -> dict[Part, tuple[int, int]]:
    """Find the plan and the thought in a step's canonical text, each with its key and the comma after it.

    Returns the first character and the one after the last, for each of the two that the step holds.
    """
    parts: list[tuple[Part, Any]] = [("plan", list(step.plan)), ("thought", step.thought)]
    spans: dict[Part, tuple[int, int]] = {}
    start = len("{")
    for name, value in parts:
        if value:
            end = start + len(f"{canonical(name)}:{canonical(value)},")
            spans[name], start = (start, end), end
    return spans


def parse_step(text: str) -> ParsedStep:
    """Read a step's text. Raises ValueError that says what is wrong, for the model to read."""
    try:
        data = json.loads(text)
    except ValueError as fault:
        raise ValueError(f"not one JSON object ({fault})") from fault
    if not isinstance(data, dict) or not isinstance(data.get("tool"), str) or not isinstance(data.get("args"), dict):
        raise ValueError('a step is {"thought": "...", "tool": "name", "args": {...}}')
    plan, thought = data.get("plan", []), data.get("thought", "")
    if not isinstance(plan, list) or not all(isinstance(item, str) for item in plan) or not isinstance(thought, str):
        raise ValueError("plan is a list of strings and thought a string")
    return ParsedStep(ToolCall(data["tool"], data["args"]), thought, tuple(plan))


def step_grammar(shape: StepShape) -> str:
    """The Lark grammar of one step. Raises GrammarError on a schema outside the supported part."""
    if not shape.tools:
        raise GrammarError("a step needs at least one tool; none is enabled")
    rules = _Rules()
    parts = [_quote("{")]
    if shape.plan:
        item = rules.string(1, MAX_PLAN_ITEM)
        parts += [_quote('"plan":['), item, f"({_quote(',')} {item}){{0,{MAX_PLAN_ITEMS - 1}}}", _quote("],")]
    if shape.thought:
        parts += [_quote('"thought":'), rules.string(1, MAX_THOUGHT), _quote(",")]
    calls = []
    for tool, parameters in _callable(shape):
        arguments = rules.value(parameters, f"tool {tool.name!r}")
        calls.append(f"{_quote(canonical(tool.name) + ',' + canonical('args') + ':')} {arguments}")
    parts += [_quote('"tool":'), rules.rule(" | ".join(calls)), _quote("}")]
    return rules.text(" ".join(parts))


def call_grammar(tools: Sequence[ToolSpec], *, text: bool) -> str:
    """One tool call `{"tool":...,"args":...}`, or free text where `text` allows it."""
    rules = _Rules()
    calls = [
        f"{_quote('{' + canonical('tool') + ':' + canonical(tool.name) + ',' + canonical('args') + ':')} "
        f"{rules.value(tool.parameters, f'tool {tool.name!r}')} {_quote('}')}"
        for tool in tools
    ]
    if text:
        calls.append(rules.terminal(r"/[^{\s](.|\n)*/"))
    return rules.text(rules.rule(" | ".join(calls)))


def _callable(shape: StepShape) -> list[tuple[ToolSpec, Mapping[str, Any]]]:
    """The tools that can be called at this point, each with what its arguments may be here."""
    known = [(tool, _cited(tool, shape.labels)) for tool in shape.tools]
    words = copyable(shape.shown)
    bound = []
    for tool, parameters in known:
        copied = _copied(parameters, tool.copied, shape.shown, words)
        limited = copied and _quoted(tool, copied, shape.quotes)
        if limited is not None:
            bound.append((tool, limited))
    # With nothing to copy for any tool the step must still be one: then the tools have to refuse.
    return bound or known


def _cited(tool: ToolSpec, labels: Sequence[int]) -> Mapping[str, Any]:
    """An answer may cite only what was shown."""
    if tool.ends != "answered" or "citations" not in tool.parameters.get("properties", {}):
        return tool.parameters
    cited: dict[str, Any] = {"type": "array", "maxItems": 0}
    if labels:
        cited = {"type": "array", "items": {"enum": list(labels)}, "maxItems": min(3, len(labels))}
    return {**tool.parameters, "properties": {**tool.parameters["properties"], "citations": cited}}


def _copied(parameters: Mapping[str, Any], names: Sequence[str], shown: str, words: str) -> Mapping[str, Any] | None:
    """Copied arguments become a choice among what was shown; None where one is needed and nothing was.

    `words` is what was shown, as far as it can stand in a text without being escaped.
    """
    properties = dict(parameters.get("properties", {}))
    for name in names:
        schema = properties[name]
        choices = identifiers(schema["pattern"], shown) if "pattern" in schema else None
        if choices:
            properties[name] = {"enum": choices}
        elif choices is None and _has_run(words, *_sizes(schema, "Length", MAX_STRING, name)):
            properties[name] = {**schema, "words_of": words}
        elif name in parameters.get("required", ()):
            return None
        else:
            del properties[name]
    return {**parameters, "properties": properties}


def _quoted(tool: ToolSpec, parameters: Mapping[str, Any], quotes: Sequence[Quote]) -> Mapping[str, Any] | None:
    """A quoted argument becomes a choice among sentences; None where there is none. An answer cites their passages."""
    if tool.quoted is None:
        return parameters
    schema = parameters["properties"][tool.quoted]
    shortest, longest = _sizes(schema, "Length", MAX_STRING, tool.quoted)
    fitting = [quote for quote in quotes if shortest <= len(quote.text) <= longest][-MAX_COPIES:]
    cites = tool.ends == "answered" and "citations" in parameters["properties"]
    homes: dict[int | None, list[Quote]] = {}
    for quote in fitting:
        homes.setdefault(quote.label if cites else None, []).append(quote)
    choices = []
    for count in range(1, MAX_QUOTES + 1):
        for places in itertools.product(homes.values(), repeat=count):
            texts = [[quote.text for quote in home] for home in places]
            limited: dict[str, Any] = {tool.quoted: {**schema, "quotes_of": texts}}
            if cites:
                limited["citations"] = {"const": cited_by([home[0] for home in places])}
            choices.append({**parameters, "properties": {**parameters["properties"], **limited}})
    return {"anyOf": choices} if choices else None


def identifiers(pattern: str, shown: str) -> list[str]:
    """The whole words of a text that a schema's pattern admits, each once, in the order they were last shown."""
    body = pattern.removeprefix("^").removesuffix("$")
    found = [match.group() for match in re.finditer(f"{_BEGINS}(?:{body}){_ENDS}", shown)]
    return list(dict.fromkeys(reversed(found)))[:MAX_COPIES][::-1]


def _has_run(words: str, shortest: int, longest: int) -> bool:
    """Whether some run of whole words is so long."""
    sizes = [(len(word), word == " ") for word in _WORDS.findall(words)]
    for start, (_, is_space) in enumerate(sizes):
        ends = itertools.accumulate(size for size, _ in sizes[start : start + longest])
        if not is_space and any(shortest <= end <= longest for end in ends):
            return True
    return False


_JOINED = "[\\u0e00-\\u0eff\\u3040-\\u30ff\\u3400-\\u9fff\\uac00-\\ud7af\\uf900-\\ufaff]"
"""Letters that stand beside a number or a name in other letters without a space."""
_BEGINS = rf"(?:(?<![\w-])|(?<={_JOINED})(?!{_JOINED}))"
_ENDS = rf"(?:(?![\w-])|(?<!{_JOINED})(?={_JOINED}))"
