"""The grammar of one step, built from the tools of a run, and the canonical text of a step.

A step is one JSON object: `{"plan":[...],"thought":"...","tool":"...","args":{...}}`. The grammar (Lark, for
llguidance) admits exactly one spelling of every step, so parsing a step and writing it again gives the same bytes. Tool
arguments follow the tool's JSON schema; `json_grammar` says which part of JSON schema is supported.

A copied argument comes from the run's context: with a `pattern` it is one of the identifiers there, else a run of
words. So the model cannot invent one, and a tool that needs one cannot be called before there is one. A quoted argument
consists of whole sentences from observations; an answer then cites the passages they come from.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.errors import GrammarError, PromptError
from agent.llm.prompt.json_grammar import (
    MAX_STRING,
    WORD_PATTERN,
    GrammarRules,
    canonical,
    copyable,
    quote_literal,
    size_limits,
)
from agent.llm.prompt.tool_spec import ToolSpec
from agent.records.run import Part, Step, ToolCall
from agent.text.quotes import MAX_QUOTES, Quote, cited_labels

MAX_THOUGHT = 80
MAX_PLAN_ITEM = 32
MAX_PLAN_ITEMS = 4
MAX_COPIES = 64
"""Identifiers, or sentences, that an argument may be chosen from: the latest in the context."""


@dataclass(frozen=True)
class StepShape:
    """What the next step of a run must contain."""

    tools: tuple[ToolSpec, ...]
    plan: bool = True
    thought: bool = True
    labels: tuple[int, ...] = ()
    """Labels of the passages in the context: the only ones that an answer may cite."""
    context: str = ""
    """Task and observations so far: the only text that copied arguments come from."""
    quotes: tuple[Quote, ...] = ()
    """Sentences of the observations so far: the only ones that a quoted argument may consist of."""


@dataclass(frozen=True)
class ParsedStep:
    """The content of a step's text."""

    call: ToolCall
    thought: str = ""
    plan: tuple[str, ...] = ()


def write_step(step: Step | ParsedStep) -> str:
    """Return the canonical text of a step. Raises PromptError for a step without a call."""
    if step.call is None:
        raise PromptError("a step without a call has no canonical text; use the text that was generated")
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

    Returns: Start and end, in characters, of each of the two that the step has.
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
    """Parse a step's text. Raises ValueError with a message for the model."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not one JSON object ({error})") from error
    if not isinstance(data, dict) or not isinstance(data.get("tool"), str) or not isinstance(data.get("args"), dict):
        raise ValueError('a step is {"thought": "...", "tool": "name", "args": {...}}')
    plan, thought = data.get("plan", []), data.get("thought", "")
    if not isinstance(plan, list) or not all(isinstance(item, str) for item in plan) or not isinstance(thought, str):
        raise ValueError("plan is a list of strings and thought a string")
    return ParsedStep(ToolCall(data["tool"], data["args"]), thought, tuple(plan))


def step_grammar(shape: StepShape) -> str:
    """Return the Lark grammar of one step. Raises GrammarError for an unsupported schema."""
    if not shape.tools:
        raise GrammarError("a step needs at least one tool; none is enabled")
    rules = GrammarRules()
    parts = [quote_literal("{")]
    if shape.plan:
        item = rules.string(1, MAX_PLAN_ITEM)
        parts += [
            quote_literal('"plan":['),
            item,
            f"({quote_literal(',')} {item}){{0,{MAX_PLAN_ITEMS - 1}}}",
            quote_literal("],"),
        ]
    if shape.thought:
        parts += [quote_literal('"thought":'), rules.string(1, MAX_THOUGHT), quote_literal(",")]
    calls = []
    for tool, parameters in _callable_tools(shape):
        arguments = rules.value(parameters, f"tool {tool.name!r}")
        calls.append(f"{quote_literal(canonical(tool.name) + ',' + canonical('args') + ':')} {arguments}")
    parts += [quote_literal('"tool":'), rules.rule(" | ".join(calls)), quote_literal("}")]
    return rules.text(" ".join(parts))


def call_grammar(tools: Sequence[ToolSpec], *, text: bool) -> str:
    """Return the Lark grammar of one tool call `{"tool":...,"args":...}`, or of free text if `text` is set."""
    rules = GrammarRules()
    calls = [
        f"{quote_literal('{' + canonical('tool') + ':' + canonical(tool.name) + ',' + canonical('args') + ':')} "
        f"{rules.value(tool.parameters, f'tool {tool.name!r}')} {quote_literal('}')}"
        for tool in tools
    ]
    if text:
        calls.append(rules.terminal(r"/[^{\s](.|\n)*/"))
    return rules.text(rules.rule(" | ".join(calls)))


def _callable_tools(shape: StepShape) -> list[tuple[ToolSpec, Mapping[str, Any]]]:
    """Return the tools that can be called at this point, each with the schema of its arguments here."""
    tools = [(tool, _limit_citations(tool, shape.labels)) for tool in shape.tools]
    words = copyable(shape.context)
    limited = []
    for tool, parameters in tools:
        copied = _limit_copied(parameters, tool.copied, shape.context, words)
        quoted = copied and _limit_quoted(tool, copied, shape.quotes)
        if quoted is not None:
            limited.append((tool, quoted))
    # A step needs a call even where no tool has anything to copy: the tool then returns the error.
    return limited or tools


def _limit_citations(tool: ToolSpec, labels: Sequence[int]) -> Mapping[str, Any]:
    """Limit an answer's citations to the passages in the context."""
    if tool.ends != "answered" or "citations" not in tool.parameters.get("properties", {}):
        return tool.parameters
    cited: dict[str, Any] = {"type": "array", "maxItems": 0}
    if labels:
        cited = {"type": "array", "items": {"enum": list(labels)}, "maxItems": min(3, len(labels))}
    return {**tool.parameters, "properties": {**tool.parameters["properties"], "citations": cited}}


def _limit_copied(
    parameters: Mapping[str, Any], names: Sequence[str], context: str, words: str
) -> Mapping[str, Any] | None:
    """Limit copied arguments to texts in the context; return None where a required one has nothing to copy.

    `words` is the context without the characters that JSON escapes.
    """
    properties = dict(parameters.get("properties", {}))
    for name in names:
        schema = properties[name]
        choices = find_identifiers(schema["pattern"], context) if "pattern" in schema else None
        if choices:
            properties[name] = {"enum": choices}
        elif choices is None and _has_run(words, *size_limits(schema, "Length", MAX_STRING, name)):
            properties[name] = {**schema, "words_of": words}
        elif name in parameters.get("required", ()):
            return None
        else:
            del properties[name]
    return {**parameters, "properties": properties}


def _limit_quoted(tool: ToolSpec, parameters: Mapping[str, Any], quotes: Sequence[Quote]) -> Mapping[str, Any] | None:
    """Limit a quoted argument to sentences of observations; return None where there is none.

    The citations of an answer are fixed to the passages of its sentences.
    """
    if tool.quoted is None:
        return parameters
    schema = parameters["properties"][tool.quoted]
    shortest, longest = size_limits(schema, "Length", MAX_STRING, tool.quoted)
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
                limited["citations"] = {"const": cited_labels([home[0] for home in places])}
            choices.append({**parameters, "properties": {**parameters["properties"], **limited}})
    return {"anyOf": choices} if choices else None


def find_identifiers(pattern: str, context: str) -> list[str]:
    """Return the whole words of a context that a schema's pattern admits, each once, by their last occurrence."""
    body = pattern.removeprefix("^").removesuffix("$")
    words = [match.group() for match in re.finditer(f"{_WORD_START}(?:{body}){_WORD_END}", context)]
    return list(dict.fromkeys(reversed(words)))[:MAX_COPIES][::-1]


def _has_run(words: str, shortest: int, longest: int) -> bool:
    """Whether some run of whole words has between `shortest` and `longest` characters."""
    sizes = [(len(word), word == " ") for word in WORD_PATTERN.findall(words)]
    for start, (_, is_space) in enumerate(sizes):
        ends = itertools.accumulate(size for size, _ in sizes[start : start + longest])
        if not is_space and any(shortest <= end <= longest for end in ends):
            return True
    return False


_SPACELESS = "[\\u0e00-\\u0eff\\u3040-\\u30ff\\u3400-\\u9fff\\uac00-\\ud7af\\uf900-\\ufaff]"
"""Letters of scripts that put no space between words and a number or a name in other letters."""
_WORD_START = rf"(?:(?<![\w-])|(?<={_SPACELESS})(?!{_SPACELESS}))"
_WORD_END = rf"(?:(?![\w-])|(?<!{_SPACELESS})(?={_SPACELESS}))"
