"""What `ratchet bench` measures, with a tiny model in place of a real one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agent.errors import ModelError
from agent.llm import benchmark as measuring
from agent.llm.benchmark import Speed, measure_speed
from agent.llm.engine.scheduler import Engine
from agent.llm.engine.session import Generation, Request

MakeEngine = Callable[..., Engine]


class Listening:
    """An engine that remembers what came of each request."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.received: list[tuple[Request, Generation]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def generate(self, request: Request) -> Generation:
        made = self.engine.generate(request)
        self.received.append((request, made))
        return made


def test_the_figures_are_those_of_the_timed_requests(make_engine: MakeEngine) -> None:
    engine: Any = Listening(make_engine())
    received: list[str] = []
    speed = measure_speed(engine, repeats=2, memory_bytes=2**22, say=received.append)
    size = speed.prompt_tokens
    assert size == min(1500, engine.context * 3 // 4)
    long = [made for request, made in engine.received if len(request.ids) == size]
    known = round(0.8 * size)
    assert [made.cached for made in long] == [0, known, 0, known]
    decoded = [made for request, made in engine.received if request.max_new == measuring.DECODED]
    assert len(decoded) == 2 * (1 + speed.sessions)
    assert {(made.finish_reason, made.sampled, made.cached) for made in decoded} == {("length", measuring.DECODED, 0)}
    assert speed.first_token_seconds > 0 < speed.known_first_token_seconds
    assert speed.prompt_tokens_per_second == pytest.approx(size / speed.first_token_seconds)
    assert min(speed.decode_tokens_per_second, speed.decode_tokens_per_second_together) > 0
    assert speed.weights_bytes == sum(4 * one.numel() for one in engine.model.parameters())
    assert received == ["reading prompts", "decoding", "reading memory"]


def test_shares_are_computed_from_the_measured_speeds() -> None:
    speed = Speed(True, 1500, 2.0, 0.5, 750.0, 20.0, 8, 60.0, 500_000_000, 20e9)
    assert speed.known_first_token_share == 0.25
    assert speed.share_of_memory_limit == 0.5


def test_a_context_that_is_too_short_is_refused(make_engine: MakeEngine) -> None:
    engine = make_engine(changes={"max_position_embeddings": 64})
    with pytest.raises(ModelError, match="the model reads 64 tokens"):
        measure_speed(engine)
