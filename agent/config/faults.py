"""Words for what is wrong with a setting: what was found, and what was expected."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic.fields import FieldInfo

_TEXTS = 'a list of texts, such as ["a", "b"]'
_NAMED_TEXTS = 'names with texts, such as { name = "text" }'
_EXPECTED = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "finite_number": "a number",
    "tuple_type": _TEXTS,
    "dict_type": _NAMED_TEXTS,
    "too_short": "at least one text that is not empty",
}
_BOUNDS = ("ge", "gt", "le", "lt")


def fields_of(section: object) -> dict[str, FieldInfo]:
    """Return the declared fields of a pydantic dataclass by name."""
    fields: dict[str, FieldInfo] = getattr(section, "__pydantic_fields__")  # noqa: B009 - no stub declares it
    return fields


def expected(error: Mapping[str, Any], field: FieldInfo) -> str:
    """Say what pydantic expected, in the words of this project.

    Args:
        error: One entry of `ValidationError.errors()`.
        field: The field that the error belongs to; its whole range is named, not only the bound that was crossed.
    """
    kind = str(error["type"])
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "literal_error":
        choices = re.findall("'([^']*)'", error["ctx"]["expected"])
        return "one of " + ", ".join(f'"{choice}"' for choice in choices)
    if kind == "string_type":
        if len(error["loc"]) <= 2:
            return "a text in quotes"
        return _TEXTS if isinstance(error["loc"][2], int) else _NAMED_TEXTS
    if kind.startswith(("greater", "less")):
        return range_text(field)
    return _EXPECTED.get(kind, str(error["msg"]))


def range_text(field: FieldInfo) -> str:
    """Return the numbers that a field accepts, such as "0 to 5"."""
    bounds = {name: getattr(rule, name) for rule in field.metadata for name in _BOUNDS if hasattr(rule, name)}
    low, high = bounds.get("ge"), bounds.get("le")
    if "gt" in bounds:
        return f"a number above {bounds['gt']:g}"
    if "lt" in bounds:
        return f"{low} or more and below {bounds['lt']}"
    return f"{low} or more" if high is None else f"{low} to {high}"


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return "; did you mean X?" for the name that is most alike, or an empty text."""
    close = difflib.get_close_matches(name.lower(), list(names), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def format_value(value: object) -> str:
    """Return a value as JSON, cut to 60 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
