"""Draft tokens change how many passes a generation takes, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.llm.engine.scheduler import Engine
from agent.llm.engine.session import Request
from agent.llm.engine.speculation import MAX_DRAFT_TOKENS, NgramIndex, RecentTexts, find_draft
from agent.llm.prompt.render import Renderer
from agent.llm.prompt.step_grammar import StepShape, step_grammar
from tests.agent.llm.engine.test_scheduler import TOOLS, prompt, reference, together

MakeEngine = Callable[..., Engine]
NO_END = -1
"""No token at all, so that a generation has its full length."""


def index_of(*texts: Sequence[int]) -> NgramIndex:
    index = NgramIndex()
    for text in texts:
        index.add(text)
    return index


def test_the_draft_is_what_followed_the_last_occurrence_of_the_same_ids() -> None:
    own = index_of([1, 2, 3, 4, 5, 1, 2, 3, 9])
    assert list(find_draft([7, 1, 2, 3], own, RecentTexts())) == [9]
    assert list(find_draft([7, 4, 5], own, RecentTexts())) == [1, 2, 3, 9]
    assert list(find_draft([7, 8], own, RecentTexts())) == []


def test_a_longer_ngram_goes_before_a_recent_text() -> None:
    recent = RecentTexts()
    recent.add((2, 3, 50))
    assert list(find_draft([1, 2, 3], index_of([1, 2, 3, 60]), recent)) == [60]
    assert list(find_draft([9, 2, 3], index_of([1, 2, 3, 60]), recent)) == [50]


def test_a_draft_has_a_maximum_length() -> None:
    assert len(find_draft([0, 1], index_of(range(100)), RecentTexts())) == MAX_DRAFT_TOKENS


def test_the_oldest_texts_are_dropped_first() -> None:
    recent = RecentTexts(max_texts=3)
    for number in range(8):
        recent.add((100 + number, 200 + number, 300 + number))
    assert list(find_draft([107, 207], NgramIndex(), recent)) == [307]
    assert list(find_draft([100, 200], NgramIndex(), recent)) == []


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6))
def test_greedy_ids_are_those_of_transformers_whatever_is_guessed(drafting: Any, seed: int) -> None:
    chance = random.Random(seed)
    asked = []
    for _ in range(chance.randrange(1, 5)):
        pattern = prompt(chance.randrange(10**6), chance.randrange(2, 9))
        asked.append((pattern * 9)[: chance.randrange(1, 40)])
    requests = [Request(ids, NO_END, max_new=24) for ids in asked]
    for made, ids in zip(together(drafting.engine, requests), asked, strict=True):
        assert made.ids == reference(drafting.twin, ids, 24)
        drafting.accepted += made.drafted
    # Rejected draft tokens leave nothing in the cache: what follows is computed after the right ids.
    longer = [(*ids, *made.ids, 77) for made, ids in zip(together(drafting.engine, requests), asked, strict=True)]
    for made, ids in zip(
        together(drafting.engine, [Request(ids, NO_END, max_new=6) for ids in longer]), longer, strict=True
    ):
        assert made.ids == reference(drafting.twin, ids, 6)


def test_some_of_those_drafts_were_accepted(drafting: Any) -> None:
    assert drafting.accepted > 0


@pytest.fixture(scope="module")
def drafting(tokenizer: Any, parts: Any) -> Any:
    from types import SimpleNamespace

    engine = Engine(parts.model(tokenizer), tokenizer, cache_tokens=2000)
    yield SimpleNamespace(engine=engine, twin=parts.model(tokenizer), accepted=0)
    engine.close()


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_a_seed_says_the_same_with_guesses_and_without(
    make_engine: MakeEngine, renderer: Renderer, temperature: float
) -> None:
    grammar = step_grammar(StepShape(TOOLS))
    requests = [
        Request(
            prompt(seed % 3, 20), renderer.end_of_turn, max_new=900, grammar=grammar, temperature=temperature, seed=seed
        )
        for seed in range(6)
    ]
    plain = make_engine()
    expected = [plain.generate(replace(one, speculate=False)) for one in requests]
    assert not any(one.drafted for one in expected)
    engine = make_engine()
    for made, one in zip([engine.generate(one) for one in requests], expected, strict=True):
        assert made.ids == one.ids
        assert (made.forced, made.sampled) == (one.forced, one.sampled)
    again = [engine.generate(one) for one in requests]
    assert [one.ids for one in again] == [one.ids for one in expected]
    # A text that was generated once is drafted the second time.
    assert sum(one.drafted for one in again) > 0.5 * sum(len(one.ids) for one in again)


def test_accepted_draft_tokens_are_reported_and_count_towards_the_length(
    make_engine: MakeEngine, renderer: Renderer
) -> None:
    engine = make_engine()
    grammar = step_grammar(StepShape(TOOLS))
    whole = Request(prompt(1, 20), renderer.end_of_turn, max_new=900, grammar=grammar, temperature=1.0, seed=4)
    first = engine.generate(whole)
    for most in (1, 2, 7, len(first.ids) - 1):
        received: list[int] = []

        def on_tokens(ids: Sequence[int], received: list[int] = received) -> bool:
            received += ids
            return True

        made = engine.generate(
            Request(
                whole.ids,
                whole.end_of_turn,
                max_new=most,
                grammar=grammar,
                temperature=1.0,
                seed=4,
                on_tokens=on_tokens,
            )
        )
        assert made.finish_reason == "length"
        assert tuple(received) == made.ids == first.ids[:most]
        assert made.forced + made.sampled == most


def test_generations_under_one_adapter_are_no_draft_for_another(
    make_engine: MakeEngine, parts: Any, tokenizer: Any, tmp_path: Any
) -> None:
    engine = make_engine()
    parts.adapter(tmp_path / "a", tokenizer, seed=5)
    engine.load_adapter("a", tmp_path / "a")
    grammar = "start: /[a-z]{20}/\n"
    request = Request(prompt(1, 20), 6, grammar=grammar, temperature=1.0)
    said = engine.generate(request)
    assert said.finish_reason == "stop"
    assert engine.generate(Request(prompt(2, 20), 6, grammar=grammar, temperature=1.0, adapter="a")).drafted == 0


def test_added_texts_are_drafted_at_once_and_do_not_change_the_output(make_engine: MakeEngine) -> None:
    request = Request(prompt(5, 40), NO_END, max_new=24)
    said = make_engine().generate(request)
    engine = make_engine()
    engine.add_draft_texts(None, [(*request.ids[-6:], *said.ids)])
    made = engine.generate(request)
    assert made.ids == said.ids
    assert made.drafted > said.drafted
