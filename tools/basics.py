"""The tools that every agent has: `calculator`, and the two that end a run, `answer` and `hand_over`.

The calculator has a parser of its own and calculates with 34 decimal digits; it evaluates no code. The metadata entry
`ends` names the outcome of a run that a tool ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import (
    ROUND_FLOOR,
    ROUND_HALF_UP,
    Context,
    Decimal,
    DecimalException,
    DivisionByZero,
    InvalidOperation,
    Overflow,
    localcontext,
)

from langchain_core.tools import BaseTool, StructuredTool, ToolException
from pydantic import BaseModel, Field

MAX_EXPRESSION = 60
MAX_DEPTH = 16
MAX_EXPONENT = 1000
MAX_RESULT = Decimal("1e30")


class CalculatorArguments(BaseModel):
    """The arguments of `calculator`."""

    expression: str = Field(max_length=MAX_EXPRESSION)


class AnswerArguments(BaseModel):
    """The arguments of `answer`."""

    text: str = Field(min_length=1, max_length=240)
    citations: list[int] = Field(default_factory=list)


class HandOverArguments(BaseModel):
    """The arguments of `hand_over`."""

    reason: str = Field(min_length=1, max_length=80)


def calculator() -> BaseTool:
    """Return the tool for arithmetic.

    It reads + - * / // % ** and brackets, abs, sqrt, min, max and round(number, digits); 15% is 0.15.
    """
    return StructuredTool.from_function(
        func=calculate,
        name="calculator",
        description="Calculate an arithmetic expression.",
        args_schema=CalculatorArguments,
        metadata={"effect": "read"},
    )


def answer(*, quoted: bool = False) -> BaseTool:
    """Return the tool that ends a run as answered. The loop checks its citations.

    Args:
        quoted: Whether an answer is made of whole sentences of the observations.
    """

    def give(text: str, citations: list[int]) -> str:
        return text

    return StructuredTool.from_function(
        func=give,
        name="answer",
        description="Give the final answer; cite passage labels.",
        args_schema=AnswerArguments,
        metadata={"effect": "read", "ends": "answered", **({"quoted": "text"} if quoted else {})},
    )


def hand_over() -> BaseTool:
    """Return the tool that escalates: it ends the run with the outcome `refused`."""

    def give(reason: str) -> str:
        return reason

    return StructuredTool.from_function(
        func=give,
        name="hand_over",
        description="Decline and hand the task to a person.",
        args_schema=HandOverArguments,
        metadata={"effect": "read", "ends": "refused"},
    )


def calculate(expression: str) -> str:
    """Return the value of an expression in plain digits, at most 12 of them after the point.

    Raises:
        ToolException: The expression has no value; says why.
    """
    if len(expression) > MAX_EXPRESSION:
        raise ToolException(f"the expression has {len(expression)} characters, at most {MAX_EXPRESSION} are read")
    with localcontext(Context(prec=34, Emax=9999, Emin=-9999, traps=[DivisionByZero, InvalidOperation, Overflow])):
        try:
            value = _Parser(expression).value()
            if abs(value) > MAX_RESULT:
                raise ToolException("the result is larger than 1e30")
            return _plain(value)
        except DivisionByZero as fault:
            raise ToolException("division by zero") from fault
        except Overflow as fault:
            raise ToolException("the result is larger than 1e30") from fault
        except DecimalException as fault:
            raise ToolException("the expression has no real value") from fault


_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?)|(?P<name>[A-Za-z_]+)|(?P<sign>\*\*|//|.))"
)
_ALIASES = {"\u00d7": "*", "\u00b7": "*", "\u00f7": "/", "\u2212": "-", "\u2013": "-", "^": "**"}
_PLACES = Decimal("1e-12")


class _Parser:
    """Recursive descent; `**` binds tighter than a sign in front of it, and to the right."""

    def __init__(self, expression: str) -> None:
        self._tokens = [(match.lastgroup, match[match.lastgroup or 0]) for match in _TOKEN.finditer(expression.strip())]
        self._next = 0
        self._depth = 0

    def value(self) -> Decimal:
        if not self._tokens:
            raise ToolException("the expression is empty; give one such as 2 * (3 + 4)")
        value = self._sum()
        if self._next < len(self._tokens):
            raise self._unexpected()
        return value

    def _sum(self) -> Decimal:
        value = self._product()
        while sign := self._take("+", "-"):
            right = self._product()
            value = value + right if sign == "+" else value - right
        return value

    def _product(self) -> Decimal:
        value = self._signed()
        while sign := self._take("*", "/", "//", "%"):
            right = self._signed()
            if sign == "*":
                value *= right
            elif sign == "/":
                value = _divide(value, right)
            else:
                whole = _divide(value, right).to_integral_value(ROUND_FLOOR)
                value = whole if sign == "//" else value - whole * right
        return value

    def _signed(self) -> Decimal:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ToolException(f"the expression is nested deeper than {MAX_DEPTH}")
        try:
            sign = self._take("+", "-")
            if sign:
                value = self._signed()
                return -value if sign == "-" else value
            return self._power()
        finally:
            self._depth -= 1

    def _power(self) -> Decimal:
        base = self._percent()
        if not self._take("**"):
            return base
        exponent = self._signed()
        if abs(exponent) > MAX_EXPONENT:
            raise ToolException(f"the exponent is {exponent:f}, at most {MAX_EXPONENT} is calculated")
        if base == 0 and exponent <= 0:
            return Decimal(1) if exponent == 0 else _divide(Decimal(1), base)
        return Decimal(base**exponent)

    def _percent(self) -> Decimal:
        value = self._atom()
        # After a number, % is a percentage unless another operand follows: 10 % 3 is a remainder.
        while self._peek() == "%" and not self._operand_at(self._next + 1):
            self._next += 1
            value /= 100
        return value

    def _atom(self) -> Decimal:
        if self._next >= len(self._tokens):
            raise ToolException("the expression ends where a number is expected")
        kind, text = self._tokens[self._next]
        if kind == "number":
            self._next += 1
            return Decimal(text)
        if kind == "name" and text.lower() in _FUNCTIONS:
            self._next += 1
            return self._call(text.lower())
        if self._take("("):
            value = self._sum()
            self._expect(")")
            return value
        raise self._unexpected()

    def _call(self, name: str) -> Decimal:
        self._expect("(")
        values = [self._sum()]
        while self._take(","):
            values.append(self._sum())
        self._expect(")")
        function, least, most = _FUNCTIONS[name]
        if not least <= len(values) <= most:
            raise ToolException(f"{name} takes {least} to {most} numbers, found {len(values)}")
        return function(values)

    def _peek(self) -> str:
        return _ALIASES.get(text := self._tokens[self._next][1], text) if self._next < len(self._tokens) else ""

    def _operand_at(self, position: int) -> bool:
        if position >= len(self._tokens):
            return False
        kind, text = self._tokens[position]
        return kind in ("number", "name") or text == "("

    def _take(self, *signs: str) -> str:
        """Read the next sign if it is one of these; otherwise return an empty text."""
        sign = self._peek()
        if sign not in signs:
            return ""
        self._next += 1
        return sign

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            raise self._unexpected(f"expected {sign!r}")

    def _unexpected(self, expected: str = "use numbers, + - * / // % ** and brackets") -> ToolException:
        token = repr(self._tokens[self._next][1]) if self._next < len(self._tokens) else "the end"
        return ToolException(f"found {token} in the expression; {expected}")


def _divide(value: Decimal, by: Decimal) -> Decimal:
    if by == 0:
        raise ToolException("division by zero")
    return value / by


def _round(values: list[Decimal]) -> Decimal:
    digits = values[1] if len(values) > 1 else Decimal(0)
    if digits != digits.to_integral_value() or not 0 <= digits <= 12:
        raise ToolException(f"round takes 0 to 12 digits, found {digits:f}")
    return values[0].quantize(Decimal(1).scaleb(-int(digits)), rounding=ROUND_HALF_UP)


_FUNCTIONS: dict[str, tuple[Callable[[list[Decimal]], Decimal], int, int]] = {
    "abs": (lambda values: abs(values[0]), 1, 1),
    "sqrt": (lambda values: values[0].sqrt(), 1, 1),
    "min": (min, 1, 20),
    "max": (max, 1, 20),
    "round": (_round, 1, 2),
}


def _plain(value: Decimal) -> str:
    if value != value.to_integral_value() and abs(value) < Decimal("1e20"):
        value = value.quantize(_PLACES, rounding=ROUND_HALF_UP)
    text = f"{value:f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text
