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
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from agent.errors import GrammarError, PromptError
from agent.llm.quotes import MAX_QUOTES, Quote, cited_by
from agent.trajectory import Part, Step, ToolCall

MAX_STRING = 240
"""Characters of a string whose schema names no length."""
MAX_THOUGHT = 80
MAX_PLAN_ITEM = 32
MAX_PLAN_ITEMS = 4
MAX_COPIES = 64
"""Identifiers to choose from: the last that were shown."""
MAX_ITEMS = 8
"""Elements of an array whose schema names no length."""


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


def canonical(value: Any) -> str:
    """The one spelling of a JSON value."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


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


def value_grammar(schema: Mapping[str, Any], where: str = "schema") -> str:
    """The Lark grammar of one JSON value, for structured output."""
    rules = _Rules()
    return rules.text(rules.value(schema, where))


def choice_grammar(choices: Sequence[str]) -> str:
    """The Lark grammar of one of these texts, as they are. Raises GrammarError where there is none."""
    if not choices:
        raise GrammarError("a choice among no texts admits nothing; name at least one")
    return f"start: {' | '.join(map(_quote, choices))}\n"


def copyable(text: str) -> str:
    """A text as its words can be copied into JSON without being escaped: what `words_of` in a schema is made of."""
    return " ".join(_ESCAPED.sub(" ", text).split())


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


def _quote(literal: str) -> str:
    return json.dumps(literal, ensure_ascii=False)


_CHARACTER = r'([^"\\\x00-\x1f\x7f]|\\["\\n])'
_ESCAPED = re.compile(r'["\\\x00-\x1f\x7f]')
_WORDS = re.compile(r"[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+|.")
"""Words, and alone every other character and those of scripts that put no spaces between words."""
_JOINED = "[\\u0e00-\\u0eff\\u3040-\\u30ff\\u3400-\\u9fff\\uac00-\\ud7af\\uf900-\\ufaff]"
"""Letters that stand beside a number or a name in other letters without a space."""
_BEGINS = rf"(?:(?<![\w-])|(?<={_JOINED})(?!{_JOINED}))"
_ENDS = rf"(?:(?![\w-])|(?<!{_JOINED})(?={_JOINED}))"
_NUMBER = r"/0|-?[1-9][0-9]{0,8}(\.[0-9]{0,5}[1-9])?|-?0\.([0-9]{0,3}[1-9])/"


class _Rules:
    """Collects rules and terminals under fresh names; equal bodies share one."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._lines: list[str] = []
        self._open: list[str] = []
        """References being followed, from the outermost in."""

    def text(self, start: str) -> str:
        return "\n".join([f"start: {start}", *self._lines]) + "\n"

    def rule(self, body: str) -> str:
        return self._named("r", body)

    def terminal(self, body: str) -> str:
        return self._named("T", body)

    def _named(self, kind: str, body: str) -> str:
        if body not in self._names:
            self._names[body] = f"{kind}{len(self._names)}"
            self._lines.append(f"{self._names[body]}: {body}")
        return self._names[body]

    def string(self, shortest: int, longest: int) -> str:
        return self.terminal(f'/"{_CHARACTER}{{{shortest},{longest}}}"/')

    def value(self, schema: Mapping[str, Any], where: str, root: Mapping[str, Any] | None = None) -> str:
        root = schema if root is None else root
        if "$ref" in schema:
            return self._reference(str(schema["$ref"]), where, root)
        if "const" in schema:
            return _quote(canonical(schema["const"]))
        if "enum" in schema:
            if not schema["enum"]:
                raise GrammarError(f"{where}: an empty enum admits nothing; name at least one value")
            return self.rule(" | ".join(_quote(canonical(choice)) for choice in schema["enum"]))
        if isinstance(schema.get("allOf"), list) and len(schema["allOf"]) == 1:
            return self.value(schema["allOf"][0], where, root)
        for union in ("anyOf", "oneOf"):
            if union in schema:
                return self.rule(" | ".join(self.value(choice, where, root) for choice in schema[union]))
        kind = schema.get("type")
        if isinstance(kind, list):
            return self.rule(" | ".join(self.value({**schema, "type": one}, where, root) for one in kind))
        if kind is None and "properties" in schema:
            kind = "object"
        make = {
            "object": self._object,
            "array": self._array,
            "string": self._string,
            "integer": self._integer,
            "number": lambda *_: self.terminal(_NUMBER),
            "boolean": lambda *_: self.rule('"true" | "false"'),
            "null": lambda *_: '"null"',
        }.get(str(kind))
        if make is None:
            raise GrammarError(
                f"{where}: cannot make a grammar of {canonical(dict(schema))[:120]}; expected a type among "
                "object, array, string, integer, number, boolean, null, or enum, const, anyOf, $ref; give "
                "the argument such a type"
            )
        return make(schema, where, root)

    def _reference(self, reference: str, where: str, root: Mapping[str, Any]) -> str:
        if reference in self._open:
            raise GrammarError(
                f"{where}: {reference!r} holds itself; a call cannot be nested without end, so flatten the "
                "argument or give each level a type of its own"
            )
        self._open.append(reference)
        try:
            return self.value(_resolve(reference, root, where), where, root)
        finally:
            self._open.pop()

    def _object(self, schema: Mapping[str, Any], where: str, root: Mapping[str, Any]) -> str:
        properties = schema.get("properties", {})
        if not properties and schema.get("additionalProperties"):
            raise GrammarError(f"{where}: an object with free keys; name its properties")
        required = set(schema.get("required", ()))
        if unknown := required - set(properties):
            raise GrammarError(f"{where}: {min(unknown)!r} is required and not among the properties; add it")
        members = [
            (
                f"{_quote(canonical(name) + ':')} {self.value(inner, f'{where}, argument {name!r}', root)}",
                name in required,
            )
            for name, inner in properties.items()
        ]
        return self.rule(f"{_quote('{')} {self._members(members, first=True)} {_quote('}')}")

    def _members(self, members: Sequence[tuple[str, bool]], *, first: bool) -> str:
        """Members in the order of the schema; an optional one may be left out."""
        if not members:
            return '""'
        (text, needed), rest = members[0], members[1:]
        behind = self._members(rest, first=False)
        taken = f"{'' if first else _quote(',') + ' '}{text} {behind}"
        if needed:
            return self.rule(taken)
        return self.rule(f"{taken} | {self._members(rest, first=True) if first else behind}")

    def _array(self, schema: Mapping[str, Any], where: str, root: Mapping[str, Any]) -> str:
        if "prefixItems" in schema:
            items = [self.value(one, f"{where}, items", root) for one in schema["prefixItems"]]
            comma = f" {_quote(',')} "
            return self.rule(f"{_quote('[')} {comma.join(items)} {_quote(']')}")
        shortest, longest = _sizes(schema, "Items", MAX_ITEMS, where)
        if longest == 0:
            return _quote("[]")
        item = self.value(schema.get("items", {"type": "string"}), f"{where}, items", root)
        more = item
        if longest > 1:
            more += f" ({_quote(',')} {item}){{{max(shortest - 1, 0)},{longest - 1}}}"
        return self.rule(f"{_quote('[')} {more} {_quote(']')}" + ("" if shortest else f" | {_quote('[]')}"))

    def _string(self, schema: Mapping[str, Any], where: str, root: Mapping[str, Any]) -> str:
        shortest, longest = _sizes(schema, "Length", MAX_STRING, where)
        pattern = schema.get("pattern")
        if "quotes_of" in schema:
            homes = [
                self.terminal(" | ".join(_quote(canonical(sentence)[1:-1]) for sentence in home))
                for home in schema["quotes_of"]
            ]
            between = f" {_quote(' ')} "
            return self.terminal(f"{_quote(chr(34))} {between.join(homes)} {_quote(chr(34))}")
        if "words_of" in schema:
            chunks = json.dumps({"substring_chunks": _WORDS.findall(schema["words_of"])}, ensure_ascii=False)
            source = self.terminal(f"%regex {chunks}")
            plain = rf'/"[^ "\\\x00-\x1f\x7f][^"\\\x00-\x1f\x7f]{{{max(shortest - 1, 0)},{max(longest - 1, 0)}}}"/'
            return self.terminal(f'(/"/ {source} /"/) & {plain}')
        if pattern is None:
            return self.string(shortest, longest)
        if re.fullmatch(r"\^(?:[^\\/]|\\[^/])*\$", pattern) is None:
            raise GrammarError(
                f"{where}: pattern {pattern!r} must begin with ^, end with $ and hold no slash; spell it so"
            )
        plain = rf'/"[^"\\\x00-\x1f\x7f]{{{shortest},{longest}}}"/'
        return self.terminal(f'/"({pattern[1:-1]})"/ & {plain}')

    def _integer(self, schema: Mapping[str, Any], where: str, root: Mapping[str, Any]) -> str:
        low, high = schema.get("minimum"), schema.get("maximum")
        if "exclusiveMinimum" in schema:
            low = math.floor(schema["exclusiveMinimum"]) + 1
        if "exclusiveMaximum" in schema:
            high = math.ceil(schema["exclusiveMaximum"]) - 1
        if low is None and high is None:
            return self.terminal("/0|-?[1-9][0-9]{0,14}/")
        low = -(10**15) + 1 if low is None else math.ceil(low)
        high = 10**15 - 1 if high is None else math.floor(high)
        if low > high:
            raise GrammarError(f"{where}: no integer lies between {low} and {high}")
        return self.terminal(f"/{integer_pattern(low, high)}/")


def integer_pattern(low: int, high: int) -> str:
    """A regular expression of the integers from `low` to `high`, without leading zeros or `-0`."""
    parts = []
    if low < 0:
        parts += [f"-({_positive(max(1, -high), -low)})"]
    if low <= 0 <= high:
        parts.append("0")
    if high > 0:
        parts.append(_positive(max(1, low), high))
    return "|".join(parts)


def _positive(low: int, high: int) -> str:
    """The integers from `low` to `high`, both above 0: an alternative for each run of leading digits."""
    parts = []
    while low <= high:
        block = 1
        while low % (block * 10) == 0 and low + block * 10 - 1 <= high:
            block *= 10
        digit = low // block % 10
        last = min(9, digit + (high - low + 1) // block - 1)
        head, zeros = str(low // block)[:-1], len(str(block)) - 1
        parts.append(f"{head}[{digit}-{last}]" + (f"[0-9]{{{zeros}}}" if zeros else ""))
        low += (last - digit + 1) * block
    return "|".join(parts)


def _sizes(schema: Mapping[str, Any], of: str, most: int, where: str) -> tuple[int, int]:
    """Least and most of a string's characters or an array's elements; `most` where there is no limit."""
    shortest = int(schema.get(f"min{of}", 0))
    longest = int(schema.get(f"max{of}", max(most, shortest)))
    if longest < shortest:
        raise GrammarError(f"{where}: min{of} {shortest} is above max{of} {longest}; nothing fits")
    return shortest, longest


def _resolve(reference: str, root: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    place: Any = root
    for key in reference.removeprefix("#/").split("/"):
        if not isinstance(place, Mapping) or key not in place:
            raise GrammarError(f"{where}: reference {reference!r} leads nowhere; define it under $defs")
        place = place[key]
    result: Mapping[str, Any] = place
    return result
