"""Guesses change how many passes a generation takes, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.llm.engine import scheduler as engine_module
from agent.llm.engine import speculation as guess_module
from agent.llm.engine.scheduler import Engine
from agent.llm.engine.session import Request
from agent.llm.engine.speculation import MOST, Phrases, Said, guess
from agent.llm.prompt.render import Renderer
from agent.llm.prompt.step_grammar import StepShape, step_grammar
from tests.agent.llm.engine.test_scheduler import TOOLS, prompt, reference, together

MakeEngine = Callable[..., Engine]
NO_END = -1
"""No token at all: behind repeated words the model says any."""


def phrases(*texts: Sequence[int]) -> Phrases:
    made = Phrases()
    for text in texts:
        made.add(text)
    return made


def test_what_stood_behind_the_same_words_last_is_guessed() -> None:
    own = phrases([1, 2, 3, 4, 5, 1, 2, 3, 9])
    assert list(guess([7, 1, 2, 3], own, Said())) == [9]
    assert list(guess([7, 4, 5], own, Said())) == [1, 2, 3, 9]
    assert list(guess([7, 8], own, Said())) == []


def test_more_words_in_common_count_more_than_who_said_them() -> None:
    said = Said()
    said.add((2, 3, 50))
    assert list(guess([1, 2, 3], phrases([1, 2, 3, 60]), said)) == [60]
    assert list(guess([9, 2, 3], phrases([1, 2, 3, 60]), said)) == [50]


def test_a_guess_has_a_bound() -> None:
    assert len(guess([0, 1], phrases(range(100)), Said())) == MOST


def test_texts_go_by_age(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guess_module, "REMEMBERED", 3)
    said = Said()
    for number in range(8):
        said.add((100 + number, 200 + number, 300 + number))
    assert list(guess([107, 207], Phrases(), said)) == [307]
    assert list(guess([100, 200], Phrases(), said)) == []


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6))
def test_greedy_ids_are_those_of_transformers_whatever_is_guessed(guessing: Any, seed: int) -> None:
    chance = random.Random(seed)
    asked = []
    for _ in range(chance.randrange(1, 5)):
        pattern = prompt(chance.randrange(10**6), chance.randrange(2, 9))
        asked.append((pattern * 9)[: chance.randrange(1, 40)])
    requests = [Request(ids, NO_END, max_new=24) for ids in asked]
    for made, ids in zip(together(guessing.engine, requests), asked, strict=True):
        assert made.ids == reference(guessing.twin, ids, 24)
        guessing.right += made.guessed
    # What was read on a wrong guess is gone: what comes behind is read behind the right ids.
    longer = [(*ids, *made.ids, 77) for made, ids in zip(together(guessing.engine, requests), asked, strict=True)]
    for made, ids in zip(
        together(guessing.engine, [Request(ids, NO_END, max_new=6) for ids in longer]), longer, strict=True
    ):
        assert made.ids == reference(guessing.twin, ids, 6)


def test_some_of_those_guesses_were_right(guessing: Any) -> None:
    assert guessing.right > 0


@pytest.fixture(scope="module")
def guessing(tokenizer: Any, parts: Any) -> Any:
    from types import SimpleNamespace

    engine = Engine(parts.model(tokenizer), tokenizer, cache_tokens=2000)
    yield SimpleNamespace(engine=engine, twin=parts.model(tokenizer), right=0)
    engine.close()


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_a_seed_says_the_same_with_guesses_and_without(
    make_engine: MakeEngine, renderer: Renderer, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammar = step_grammar(StepShape(TOOLS))
    requests = [
        Request(
            prompt(seed % 3, 20), renderer.end_of_turn, max_new=900, grammar=grammar, temperature=temperature, seed=seed
        )
        for seed in range(6)
    ]
    with monkeypatch.context() as patched:
        patched.setattr(engine_module, "GUESS_TOKENS", 0)
        plain = make_engine()
        expected = [plain.generate(one) for one in requests]
        assert not any(one.guessed for one in expected)
    engine = make_engine()
    for made, one in zip([engine.generate(one) for one in requests], expected, strict=True):
        assert made.ids == one.ids
        assert (made.forced, made.sampled) == (one.forced, one.sampled)
    again = [engine.generate(one) for one in requests]
    assert [one.ids for one in again] == [one.ids for one in expected]
    # Once it was said, most of it is known.
    assert sum(one.guessed for one in again) > 0.5 * sum(len(one.ids) for one in again)


def test_the_listener_hears_what_was_guessed_and_the_length_is_kept(
    make_engine: MakeEngine, renderer: Renderer
) -> None:
    engine = make_engine()
    grammar = step_grammar(StepShape(TOOLS))
    whole = Request(prompt(1, 20), renderer.end_of_turn, max_new=900, grammar=grammar, temperature=1.0, seed=4)
    first = engine.generate(whole)
    for most in (1, 2, 7, len(first.ids) - 1):
        heard: list[int] = []

        def hear(ids: Sequence[int], heard: list[int] = heard) -> bool:
            heard += ids
            return True

        made = engine.generate(
            Request(whole.ids, whole.end, max_new=most, grammar=grammar, temperature=1.0, seed=4, on_tokens=hear)
        )
        assert made.end == "length"
        assert tuple(heard) == made.ids == first.ids[:most]
        assert made.forced + made.sampled == most


def test_what_was_said_under_one_adapter_is_no_guess_for_another(
    make_engine: MakeEngine, parts: Any, tokenizer: Any, tmp_path: Any
) -> None:
    engine = make_engine()
    parts.adapter(tmp_path / "a", tokenizer, seed=5)
    engine.load_adapter("a", tmp_path / "a")
    grammar = "start: /[a-z]{20}/\n"
    request = Request(prompt(1, 20), 6, grammar=grammar, temperature=1.0)
    said = engine.generate(request)
    assert said.end == "stop"
    assert engine.generate(Request(prompt(2, 20), 6, grammar=grammar, temperature=1.0, adapter="a")).guessed == 0


def test_what_is_remembered_is_guessed_at_once_and_says_the_same(make_engine: MakeEngine) -> None:
    request = Request(prompt(5, 40), NO_END, max_new=24)
    said = make_engine().generate(request)
    engine = make_engine()
    engine.remember(None, [(*request.ids[-6:], *said.ids)])
    made = engine.generate(request)
    assert made.ids == said.ids
    assert made.guessed > said.guessed
