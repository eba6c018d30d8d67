from __future__ import annotations

import time
from contextlib import suppress
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.tools import ToolException

from tools.basics import answer, calculate, calculator, hand_over


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 * (3 + 4)", "14"),
        ("0.1 + 0.2", "0.3"),
        ("10 / 4", "2.5"),
        ("1 / 3", "0.333333333333"),
        ("-2 ** 2", "-4"),
        ("2 ** 3 ** 2", "512"),
        ("2 ** -1", "0.5"),
        ("7 // 2 + -7 // 2", "-1"),
        ("10 % 3", "1"),
        ("-7 % 3", "2"),
        ("15% * 80", "12"),
        ("80 - 10%", "79.9"),
        ("10 % (3)", "1"),
        ("89.90 \u00d7 3 \u00f7 2", "134.85"),
        ("round(2.345, 2)", "2.35"),
        ("max(1, 2, 3) - min(4, 5) + abs(-1) + sqrt(9)", "3"),
        ("1e3", "1000"),
        ("0 ** 0", "1"),
        ("-0", "0"),
        ("1 / 3 * 3", "1"),
    ],
)
def test_arithmetic_is_right(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("", "the expression is empty"),
        ("2 +", "the expression ends where a number is expected"),
        ("(2", "found the end in the expression; expected '\\)'"),
        ("2 3", "found '3'"),
        ("__import__('os')", "found '__import__'"),
        ("1,299 * 2", "found ','"),
        ("1 / 0", "division by zero"),
        ("5 % 0", "division by zero"),
        ("0 ** -1", "division by zero"),
        ("9 ** 9 ** 9", "the exponent is"),
        ("9 ** 999", "the result is larger than 1e30"),
        ("9e999 ** 999", "the result is larger than 1e30"),
        ("(-1) ** 0.5", "no real value"),
        ("sqrt(-1)", "no real value"),
        ("sqrt(1, 2)", "sqrt takes 1 to 1 numbers, found 2"),
        ("round(1, 99)", "round takes 0 to 12 digits"),
        ("(" * 20 + "1" + ")" * 20, "nested deeper than"),
        ("1" * 61, "has 61 characters"),
    ],
)
def test_what_is_no_arithmetic_is_refused_with_a_sentence(expression: str, said: str) -> None:
    with pytest.raises(ToolException, match=said):
        calculate(expression)


@given(st.text(alphabet="0123456789.+-*/%()e, abs", max_size=80))
def test_any_text_gives_a_number_or_a_refusal_at_once(expression: str) -> None:
    started = time.monotonic()
    with suppress(ToolException):
        assert Decimal(calculate(expression)).is_finite()
    assert time.monotonic() - started < 0.2


def test_the_tools_say_what_they_touch_and_end() -> None:
    assert calculator().invoke({"expression": "1 + 1"}) == "2"
    assert answer().invoke({"text": "Yes.", "citations": [1]}) == "Yes."
    assert answer().metadata == {"effect": "read", "ends": "answered"}
    assert answer(quoted=True).metadata == {"effect": "read", "ends": "answered", "quoted": "text"}
    assert hand_over().invoke({"reason": "not yours"}) == "not yours"
    assert hand_over().metadata == {"effect": "read", "ends": "refused"}
    assert all(len(tool.description.split()) <= 10 for tool in (calculator(), answer(), hand_over()))
