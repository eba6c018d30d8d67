"""Speed of a model on this machine: prompt tokens and decoded tokens a second, and how close that is to memory's limit.

Prompts are random ids, so that none has a cached prefix.
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

PROMPT = 1500
"""Tokens of a prompt, or three quarters of the context where that is less."""
CACHED_SHARE = 0.8
"""Share of the prompt that is cached when the time to the first token is measured with a cached prefix."""
SESSIONS = 8
DECODED = 32
"""Tokens that each session decodes."""
MEMORY_BYTES = 2**30
"""Bytes that are read to measure the memory; more than fits into the processor's caches."""
_NO_END = -1
"""An end of turn that no token has, so that each generation has its full length."""


@dataclass(frozen=True)
class Speed:
    """Medians of a few runs. Other processes on the machine slow them down."""

    lean: bool
    """Whether the model runs in the fused forward, not in that of transformers. The name is that of the JSON key."""
    prompt_tokens: int
    first_token_seconds: float
    """For a prompt without a cached prefix."""
    known_first_token_seconds: float
    """For a prompt whose first four fifths are cached."""
    prompt_tokens_per_second: float
    decode_tokens_per_second: float
    sessions: int
    decode_tokens_per_second_together: float
    """Of all `sessions` together."""
    weights_bytes: int
    """Size of the weights, all of which each pass reads."""
    memory_bytes_per_second: float
    """Memory bandwidth of all threads; the fastest of a few measurements."""

    @property
    def known_first_token_share(self) -> float:
        return self.known_first_token_seconds / self.first_token_seconds

    @property
    def share_of_memory_limit(self) -> float:
        """Measured speed of one session, as a share of the speed if a pass only read the weights once."""
        return self.decode_tokens_per_second * self.weights_bytes / self.memory_bytes_per_second


def measure_speed(
    engine: Engine,
    *,
    repeats: int = 3,
    memory_bytes: int = MEMORY_BYTES,
    say: Callable[[str], None] = lambda text: None,
) -> Speed:
    """Measure the base of an engine, in about a minute.

    Args:
        engine: with nothing else to do.
        repeats: runs of each measurement, of which the median is returned.
        memory_bytes: size of the buffer that measures the memory bandwidth.
        say: receives the name of each stage.

    Raises ModelError for a context that is too short.
    """
    size = min(PROMPT, engine.context * 3 // 4)
    if size < 2 * DECODED:
        raise ModelError(f"the model reads {engine.context} tokens; measuring its speed needs at least 86")
    generator = random.Random(0)
    vocabulary = int(engine.model.config.vocab_size)

    def random_prompt(count: int) -> tuple[int, ...]:
        return tuple(generator.randrange(vocabulary) for _ in range(count))

    engine.generate(Request(random_prompt(DECODED), _NO_END, max_new=2))
    say("reading prompts")
    first, cached_first = [], []
    for _ in range(repeats):
        prompt = random_prompt(size)
        first.append(_first_token(engine, prompt))
        cached = round(CACHED_SHARE * size)
        cached_first.append(_first_token(engine, (*prompt[:cached], *random_prompt(size - cached))))
    say("decoding")
    alone = [_decode_speed(engine, [random_prompt(DECODED)]) for _ in range(repeats)]
    together = [_decode_speed(engine, [random_prompt(DECODED) for _ in range(SESSIONS)]) for _ in range(repeats)]
    say("reading memory")
    return Speed(
        lean=engine.uses_fused_forward,
        prompt_tokens=size,
        first_token_seconds=median(first),
        known_first_token_seconds=median(cached_first),
        prompt_tokens_per_second=size / median(first),
        decode_tokens_per_second=median(alone),
        sessions=SESSIONS,
        decode_tokens_per_second_together=median(together),
        weights_bytes=sum(tensor.numel() * tensor.element_size() for tensor in engine.model.parameters()),
        memory_bytes_per_second=_memory_speed(str(engine.model.device), memory_bytes),
    )


def _first_token(engine: Engine, ids: tuple[int, ...]) -> float:
    """Return the seconds to the first token."""
    return engine.generate(Request(ids, _NO_END, max_new=1)).seconds


def _decode_speed(engine: Engine, prompts: Sequence[tuple[int, ...]]) -> float:
    """Return the tokens a second of all sessions, counted from when each has its first token: after all prompts."""
    lock = threading.Lock()
    arrivals: list[list[float]] = [[] for _ in prompts]

    def decode(number: int) -> None:
        def on_tokens(ids: Sequence[int]) -> bool:
            with lock:
                arrivals[number] += [time.perf_counter()] * len(ids)
            return True

        # Without draft tokens: what they save depends on the text, and this one is random.
        engine.generate(Request(prompts[number], _NO_END, max_new=DECODED, on_tokens=on_tokens, speculate=False))

    with ThreadPoolExecutor(len(prompts)) as pool:
        list(pool.map(decode, range(len(prompts))))
    start = max(times[0] for times in arrivals)
    after = [at for times in arrivals for at in times if at > start]
    return len(after) / (max(after) - start)


def _memory_speed(device: str, size: int) -> float:
    import torch

    buffer = torch.ones(size // 4, device=device)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        float(buffer.sum())
        best = min(best, time.perf_counter() - started)
    return size / best
