"""What memory expects is weighed with the model's odds, where something is chosen and nowhere else."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from agent.llm.engine.scheduler import Engine
from agent.llm.engine.session import Request
from agent.llm.prompt.first_call_prior import MIN_MODEL_SHARE, MODEL_EXPONENT, FirstCallPrior, make_prior
from agent.llm.prompt.step_grammar import StepShape, parse_step, step_grammar
from agent.llm.prompt.tool_spec import ToolSpec
from agent.records.run import Recalled

DESKS = ("cards", "cash", "fees", "loans", "transfers")
ROUTE = ToolSpec("route", "Route.", {"type": "object", "properties": {"desk": {"enum": DESKS}}, "required": ["desk"]})
TELL = ToolSpec("tell", "Tell.", {"type": "object", "properties": {"text": {"type": "string", "maxLength": 4}}})


def to_desk(desk: str, share: float) -> Recalled:
    return Recalled("text", "route", choices=(("desk", desk),), share=share)


def test_it_waits_for_its_mark_and_for_as_long_as_what_is_expected_may_follow() -> None:
    prior = FirstCallPrior(b'"tool":"', ((b'route","args":{"desk":"cash"', 0.6), (b'tell"', 0.3)))
    assert prior.begun_call(b'{"thought":"the \\"tool\\":\\"route') is None
    assert prior.begun_call(b'{"tool":"') == b""
    assert prior.begun_call(b'{"tool":"ro') == b"ro"
    assert prior.begun_call(b'{"tool":"tell"') is None
    assert prior.begun_call(b'{"tool":"route","args":{"desk":"ca') == b'route","args":{"desk":"ca'
    assert prior.begun_call(b'{"tool":"route","args":{"desk":"fe') is None


def test_what_may_still_follow_has_its_shares_and_what_they_leave_over_is_the_models() -> None:
    prior = FirstCallPrior(b":", ((b"cards", 0.5), (b"cash", 0.2), (b"fees", 0.2)))
    even = np.zeros(4)
    odds = np.exp(prior.combine(b"", [b"ca", b"fe", b"lo", b"tr"], even))
    assert odds == pytest.approx([0.9 * 0.7 / 0.9 + 0.025, 0.9 * 0.2 / 0.9 + 0.025, 0.025, 0.025])
    # Behind what was begun only two of them are left; a piece may go on beyond what is expected.
    odds = np.exp(prior.combine(b"ca", [b"r", b'rds"}', b"sh"], np.zeros(3)))
    whole = 0.9 / 1.2
    assert odds == pytest.approx([whole * 0.5 + 0.1 / 3, whole * 0.5 + 0.1 / 3, whole * 0.2 + 0.1 / 3])
    sure = FirstCallPrior(b":", ((b"cash", 1.0),))
    assert math.exp(sure.combine(b"", [b"lo", b"ca"], np.zeros(2))[0]) == pytest.approx(MIN_MODEL_SHARE / 2)


def test_the_model_counts_less_than_memory_where_memory_knows_and_alone_where_it_does_not() -> None:
    pieces, sure = [b"ca", b"fe", b"lo"], np.log([0.01, 0.04, 0.95])
    knows = FirstCallPrior(b":", ((b"cash", 0.5), (b"fees", 0.48)))
    cash, fees, _ = np.exp(knows.combine(b"", pieces, sure))
    ratio = (0.5 * 0.01**MODEL_EXPONENT) / (0.48 * 0.04**MODEL_EXPONENT)
    assert cash == pytest.approx(0.98 * ratio / (1 + ratio) + 0.02 * 0.01)
    assert fees == pytest.approx(0.98 / (1 + ratio) + 0.02 * 0.04)
    guesses = FirstCallPrior(b":", ((b"cash", 0.1),))
    assert guesses.combine(b"", pieces, sure).argmax() == 2, "where memory hardly knows, the model goes its own way"
    # Nothing admitted is expected: the model's odds stay as they are.
    assert np.exp(knows.combine(b"", [b"lo", b"tr"], np.log([0.7, 0.3]))) == pytest.approx([0.7, 0.3])


def test_beginnings_that_differ_in_their_plan_alone_are_one_and_without_shares_there_is_none() -> None:
    assert make_prior([Recalled("text", "route", choices=(("desk", "cash"),))]) is None
    made = make_prior([to_desk("cash", 0.25), to_desk("cash", 0.5), Recalled("text", "tell", share=0.125)])
    assert made is not None
    assert made.expected == ((b'route","args":{"desk":"cash"', 0.75), (b'tell"', 0.125))
    quoted = make_prior([to_desk('the "big" desk', 0.5)])
    assert quoted is not None
    assert quoted.expected[0][0] == b'route","args":{"desk":"the \\"big\\" desk"'


def test_a_step_is_drawn_to_what_is_expected_and_guesses_change_nothing(tokenizer: Any, parts: Any) -> None:
    grammar = step_grammar(StepShape((ROUTE, TELL), plan=False, thought=False))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    prior = make_prior([to_desk("cash", 0.9)])
    engine = Engine(parts.model(tokenizer), tokenizer, cache_tokens=2000)
    try:
        chance, without, expected = random.Random(0), [], []
        for _ in range(20):
            ids = tuple(chance.randrange(10, 390) for _ in range(20))
            made = [
                engine.generate(Request(ids, end, max_new=60, grammar=grammar, prior=one, speculate=speculate))
                for one, speculate in ((None, True), (prior, True), (prior, False))
            ]
            assert made[1].ids == made[2].ids
            calls = [parse_step(tokenizer.decode(one.ids[:-1])).call for one in made if one.finish_reason == "stop"]
            without.append(calls[0].arguments.get("desk"))
            expected.append(calls[1].arguments.get("desk"))
        assert expected.count("cash") >= without.count("cash") + 5
    finally:
        engine.close()
