"""What this machine makes of a model: how fast prompts are read, tokens decoded, and how near memory's limit that is.

Prompts are random ids, so that nothing of one is known from another; nothing is written but what was measured.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

from agent.errors import ModelError
from agent.llm.engine.scheduler import Engine
from agent.llm.engine.session import Request
from agent.util.threads import in_own_team

PROMPT = 1500
"""Tokens of a prompt, or three quarters of the context where that is less."""
KNOWN = 0.8
"""Share of a prompt that was read before, where one of which the beginning is known is timed."""
SESSIONS = 8
DECODED = 32
"""Tokens that each session decodes."""
BUFFER = 2**30
"""Bytes that are read to measure the memory; more than caches hold."""
_NEVER = -1
"""An end of turn that no token is, so that a generation has the length it was asked for."""


@dataclass(frozen=True)
class Speed:
    """Medians of a few runs; each of these on whatever else the machine was doing."""

    lean: bool
    """Whether the model runs in the lean pass, or in that of transformers."""
    prompt_tokens: int
    first_token_seconds: float
    """Of a prompt that nothing is known of."""
    known_first_token_seconds: float
    """Of a prompt whose first four fifths were read before."""
    prompt_tokens_per_second: float
    decode_tokens_per_second: float
    sessions: int
    decode_tokens_per_second_together: float
    """Of all those sessions."""
    weights_bytes: int
    """What has to be read of the model for each pass."""
    memory_bytes_per_second: float
    """Read from memory by all threads; the fastest of a few times."""

    @property
    def known_first_token_share(self) -> float:
        return self.known_first_token_seconds / self.first_token_seconds

    @property
    def share_of_memory_limit(self) -> float:
        """Of the tokens a second that one session could decode if a pass did nothing but read the weights once."""
        return self.decode_tokens_per_second * self.weights_bytes / self.memory_bytes_per_second


def measure_speed(engine: Engine, *, repeats: int = 3, say: Callable[[str], None] = lambda text: None) -> Speed:
    """Measure the base of an engine, in about a minute. Raises ModelError for a context that is too short."""
    size = min(PROMPT, engine.context * 3 // 4)
    if size < 2 * DECODED:
        raise ModelError(f"the model reads {engine.context} tokens, and its speed is measured with 86 at least")
    chance = random.Random(0)
    vocabulary = int(engine.model.config.vocab_size)

    def unknown(count: int) -> tuple[int, ...]:
        return tuple(chance.randrange(vocabulary) for _ in range(count))

    engine.generate(Request(unknown(DECODED), _NEVER, max_new=2))
    say("reading prompts")
    first, known_first = [], []
    for _ in range(repeats):
        prompt = unknown(size)
        first.append(_first_token(engine, prompt))
        known = round(KNOWN * size)
        known_first.append(_first_token(engine, (*prompt[:known], *unknown(size - known))))
    say("decoding")
    alone = [_decoded(engine, [unknown(DECODED)]) for _ in range(repeats)]
    together = [_decoded(engine, [unknown(DECODED) for _ in range(SESSIONS)]) for _ in range(repeats)]
    say("reading memory")
    return Speed(
        lean=engine.is_lean,
        prompt_tokens=size,
        first_token_seconds=median(first),
        known_first_token_seconds=median(known_first),
        prompt_tokens_per_second=size / median(first),
        decode_tokens_per_second=median(alone),
        sessions=SESSIONS,
        decode_tokens_per_second_together=median(together),
        weights_bytes=sum(one.numel() * one.element_size() for one in engine.model.parameters()),
        memory_bytes_per_second=in_own_team(lambda: _memory_speed(str(engine.model.device))),
    )


def _first_token(engine: Engine, ids: tuple[int, ...]) -> float:
    return engine.generate(Request(ids, _NEVER, max_new=1)).seconds


def _decoded(engine: Engine, prompts: Sequence[tuple[int, ...]]) -> float:
    """Tokens a second of all sessions from when each of them has its first, so that no prompt is read meanwhile."""
    lock = threading.Lock()
    heard: list[list[float]] = [[] for _ in prompts]

    def go(number: int) -> None:
        def hear(ids: Sequence[int]) -> bool:
            with lock:
                heard[number] += [time.perf_counter()] * len(ids)
            return True

        # Without guesses: what they save depends on the text, and this one is random.
        engine.generate(Request(prompts[number], _NEVER, max_new=DECODED, on_tokens=hear, guess=False))

    with ThreadPoolExecutor(len(prompts)) as pool:
        list(pool.map(go, range(len(prompts))))
    start = max(times[0] for times in heard)
    after = [at for times in heard for at in times if at > start]
    return len(after) / (max(after) - start)


def _memory_speed(device: str) -> float:
    import torch

    held = torch.ones(BUFFER // 4, device=device)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        float(held.sum())
        best = min(best, time.perf_counter() - started)
    return BUFFER / best
