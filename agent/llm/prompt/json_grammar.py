"""TODO: agent/llm/prompt/json_grammar.py"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agent.errors import GrammarError

MAX_STRING = 240
"""Characters of a string whose schema names no length."""


MAX_ITEMS = 8
"""Elements of an array whose schema names no length."""


def canonical(value: Any) -> str:
    """The one spelling of a JSON value."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


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


def _quote(literal: str) -> str:
    return json.dumps(literal, ensure_ascii=False)


_CHARACTER = r'([^"\\\x00-\x1f\x7f]|\\["\\n])'


_ESCAPED = re.compile(r'["\\\x00-\x1f\x7f]')


_WORDS = re.compile(r"[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+|.")
"""Words, and alone every other character and those of scripts that put no spaces between words."""


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
