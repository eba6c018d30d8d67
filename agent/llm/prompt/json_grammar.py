"""Lark grammars of JSON values, from the part of JSON schema that is supported.

Supported are objects, arrays, strings (length, pattern, enum), integers with bounds, numbers, booleans, null,
references and unions, and two keywords of our own: `words_of` and `quotes_of`, texts that a string is copied from.
Everything else raises GrammarError when the grammar is built. Bounds of numbers that are not integers are not enforced.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agent.errors import GrammarError

MAX_STRING = 240
"""Characters of a string whose schema has no `maxLength`."""

MAX_ITEMS = 8
"""Elements of an array whose schema has no `maxItems`."""


def canonical(value: Any) -> str:
    """Return the canonical JSON text of a value: no spaces, no escaped letters."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def value_grammar(schema: Mapping[str, Any], where: str = "schema") -> str:
    """Return the Lark grammar of one JSON value. Raises GrammarError for an unsupported schema.

    `where` names the schema in errors.
    """
    rules = GrammarRules()
    return rules.text(rules.value(schema, where))


def choice_grammar(choices: Sequence[str]) -> str:
    """Return the Lark grammar that admits exactly these texts. Raises GrammarError for an empty list."""
    if not choices:
        raise GrammarError("an empty list of choices admits nothing; pass at least one")
    return f"start: {' | '.join(map(quote_literal, choices))}\n"


def copyable(text: str) -> str:
    """Return a text without the characters that JSON escapes, for `words_of` in a schema."""
    return " ".join(_ESCAPED.sub(" ", text).split())


def quote_literal(literal: str) -> str:
    """Return a text as a literal of a Lark grammar."""
    return json.dumps(literal, ensure_ascii=False)


_CHARACTER = r'([^"\\\x00-\x1f\x7f]|\\["\\n])'
_ESCAPED = re.compile(r'["\\\x00-\x1f\x7f]')

WORD_PATTERN = re.compile(r"[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+|.")
"""Words, and single characters: spaces, punctuation, and letters of scripts without spaces between words."""

_NUMBER = r"/0|-?[1-9][0-9]{0,8}(\.[0-9]{0,5}[1-9])?|-?0\.([0-9]{0,3}[1-9])/"


class GrammarRules:
    """Collects rules and terminals under generated names; equal bodies share one."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._lines: list[str] = []
        self._open: list[str] = []
        """References being resolved, outermost first."""

    def text(self, start: str) -> str:
        """Return the grammar whose start rule has this body."""
        return "\n".join([f"start: {start}", *self._lines]) + "\n"

    def rule(self, body: str) -> str:
        """Add a rule; return its name."""
        return self._named("r", body)

    def terminal(self, body: str) -> str:
        """Add a terminal; return its name."""
        return self._named("T", body)

    def _named(self, kind: str, body: str) -> str:
        if body not in self._names:
            self._names[body] = f"{kind}{len(self._names)}"
            self._lines.append(f"{self._names[body]}: {body}")
        return self._names[body]

    def string(self, shortest: int, longest: int) -> str:
        """Add the terminal of a JSON string with this many characters; return its name."""
        return self.terminal(f'/"{_CHARACTER}{{{shortest},{longest}}}"/')

    def value(self, schema: Mapping[str, Any], where: str, root: Mapping[str, Any] | None = None) -> str:
        """Add what a schema needs; return the expression of one value. References are resolved in `root`."""
        root = schema if root is None else root
        if "$ref" in schema:
            return self._reference(str(schema["$ref"]), where, root)
        if "const" in schema:
            return quote_literal(canonical(schema["const"]))
        if "enum" in schema:
            if not schema["enum"]:
                raise GrammarError(f"{where}: an empty enum admits nothing; list at least one value")
            return self.rule(" | ".join(quote_literal(canonical(choice)) for choice in schema["enum"]))
        if isinstance(schema.get("allOf"), list) and len(schema["allOf"]) == 1:
            return self.value(schema["allOf"][0], where, root)
        for union in ("anyOf", "oneOf"):
            if union in schema:
                return self.rule(" | ".join(self.value(choice, where, root) for choice in schema[union]))
        kind = schema.get("type")
        if isinstance(kind, list):
            return self.rule(" | ".join(self.value({**schema, "type": option}, where, root) for option in kind))
        if kind is None and "properties" in schema:
            kind = "object"
        build = {
            "object": self._object,
            "array": self._array,
            "string": self._string,
            "integer": self._integer,
            "number": lambda *_: self.terminal(_NUMBER),
            "boolean": lambda *_: self.rule('"true" | "false"'),
            "null": lambda *_: '"null"',
        }.get(str(kind))
        if build is None:
            raise GrammarError(
                f"{where}: no grammar for {canonical(dict(schema))[:120]}; expected a type among "
                "object, array, string, integer, number, boolean, null, or enum, const, anyOf, $ref; give "
                "the argument such a type"
            )
        return build(schema, where, root)

    def _reference(self, reference: str, where: str, root: Mapping[str, Any]) -> str:
        if reference in self._open:
            raise GrammarError(
                f"{where}: {reference!r} contains itself; arguments cannot be nested without end, so flatten the "
                "argument or give each level its own type"
            )
        self._open.append(reference)
        try:
            return self.value(_resolve(reference, root, where), where, root)
        finally:
            self._open.pop()

    def _object(self, schema: Mapping[str, Any], where: str, root: Mapping[str, Any]) -> str:
        properties = schema.get("properties", {})
        if not properties and schema.get("additionalProperties"):
            raise GrammarError(f"{where}: an object with arbitrary keys is not supported; list its properties")
        required = set(schema.get("required", ()))
        if unknown := required - set(properties):
            raise GrammarError(f"{where}: {min(unknown)!r} is required but not among the properties; add it")
        members = [
            (
                f"{quote_literal(canonical(name) + ':')} {self.value(inner, f'{where}, argument {name!r}', root)}",
                name in required,
            )
            for name, inner in properties.items()
        ]
        return self.rule(f"{quote_literal('{')} {self._members(members, first=True)} {quote_literal('}')}")

    def _members(self, members: Sequence[tuple[str, bool]], *, first: bool) -> str:
        """Return the members in the order of the schema; optional ones may be missing."""
        if not members:
            return '""'
        (text, is_required), rest = members[0], members[1:]
        following = self._members(rest, first=False)
        present = f"{'' if first else quote_literal(',') + ' '}{text} {following}"
        if is_required:
            return self.rule(present)
        return self.rule(f"{present} | {self._members(rest, first=True) if first else following}")

    def _array(self, schema: Mapping[str, Any], where: str, root: Mapping[str, Any]) -> str:
        if "prefixItems" in schema:
            items = [self.value(item, f"{where}, items", root) for item in schema["prefixItems"]]
            comma = f" {quote_literal(',')} "
            return self.rule(f"{quote_literal('[')} {comma.join(items)} {quote_literal(']')}")
        shortest, longest = size_limits(schema, "Items", MAX_ITEMS, where)
        if longest == 0:
            return quote_literal("[]")
        item = self.value(schema.get("items", {"type": "string"}), f"{where}, items", root)
        elements = item
        if longest > 1:
            elements += f" ({quote_literal(',')} {item}){{{max(shortest - 1, 0)},{longest - 1}}}"
        return self.rule(
            f"{quote_literal('[')} {elements} {quote_literal(']')}" + ("" if shortest else f" | {quote_literal('[]')}")
        )

    def _string(self, schema: Mapping[str, Any], where: str, root: Mapping[str, Any]) -> str:
        shortest, longest = size_limits(schema, "Length", MAX_STRING, where)
        pattern = schema.get("pattern")
        if "quotes_of" in schema:
            quotes = [
                self.terminal(" | ".join(quote_literal(canonical(sentence)[1:-1]) for sentence in sentences))
                for sentences in schema["quotes_of"]
            ]
            between = f" {quote_literal(' ')} "
            return self.terminal(f"{quote_literal(chr(34))} {between.join(quotes)} {quote_literal(chr(34))}")
        if "words_of" in schema:
            chunks = json.dumps({"substring_chunks": WORD_PATTERN.findall(schema["words_of"])}, ensure_ascii=False)
            source = self.terminal(f"%regex {chunks}")
            plain = rf'/"[^ "\\\x00-\x1f\x7f][^"\\\x00-\x1f\x7f]{{{max(shortest - 1, 0)},{max(longest - 1, 0)}}}"/'
            return self.terminal(f'(/"/ {source} /"/) & {plain}')
        if pattern is None:
            return self.string(shortest, longest)
        if re.fullmatch(r"\^(?:[^\\/]|\\[^/])*\$", pattern) is None:
            raise GrammarError(
                f"{where}: pattern {pattern!r} must begin with ^, end with $ and have no slash; rewrite it"
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
    """Return a regular expression of the integers from `low` to `high`, without leading zeros or `-0`."""
    parts = []
    if low < 0:
        parts += [f"-({_positive(max(1, -high), -low)})"]
    if low <= 0 <= high:
        parts.append("0")
    if high > 0:
        parts.append(_positive(max(1, low), high))
    return "|".join(parts)


def _positive(low: int, high: int) -> str:
    """Return the pattern of the integers from `low` to `high`, both positive, by ranges of the leading digits."""
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


def size_limits(schema: Mapping[str, Any], of: str, most: int, where: str) -> tuple[int, int]:
    """Return the shortest and longest length that a schema admits. Raises GrammarError where none fits.

    Args:
        schema: of a string or an array.
        of: "Length" or "Items", the end of the schema's keywords.
        most: the longest length where the schema has no limit.
        where: names the schema in errors.
    """
    shortest = int(schema.get(f"min{of}", 0))
    longest = int(schema.get(f"max{of}", max(most, shortest)))
    if longest < shortest:
        raise GrammarError(f"{where}: min{of} {shortest} is above max{of} {longest}; nothing fits")
    return shortest, longest


def _resolve(reference: str, root: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    place: Any = root
    for key in reference.removeprefix("#/").split("/"):
        if not isinstance(place, Mapping) or key not in place:
            raise GrammarError(f"{where}: reference {reference!r} is not defined; define it under $defs")
        place = place[key]
    result: Mapping[str, Any] = place
    return result
