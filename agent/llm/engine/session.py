"""What the engine is asked to continue, what came of it, and how far it is in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from agent.llm.engine.prefix_cache import Entry, common_prefix
from agent.llm.engine.speculation import Heard

if TYPE_CHECKING:
    import torch

    from agent.llm.prompt.first_call_prior import Prior

End = Literal["stop", "length", "late", "cancelled"]
"""Why a generation ended: it was whole or its listener had enough; no more tokens were allowed; its time was over; it
was called off."""


@dataclass(frozen=True)
class Request:
    """What to continue, and how."""

    ids: tuple[int, ...]
    end: int
    """The id that ends the turn; it is put behind a finished grammar as well."""
    max_new: int = 512
    grammar: str | None = None
    """A Lark grammar for llguidance; None for free text."""
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    seed: int = 0
    adapter: str | None = None
    """The key of a loaded adapter; None for the base."""
    on_tokens: Callable[[Sequence[int]], bool] | None = None
    """Called from the worker with each run of new ids; returning False stops the generation."""
    max_seconds: float | None = None
    """From when it was asked for, waiting included; what was said by then is given back."""
    guess: bool = True
    """Whether passes may hold guesses of what follows. They change how many passes there are, not what is said."""
    logprobs: bool = False
    """Whether to take down how likely each id was."""
    on_logits: Callable[[torch.Tensor], None] | None = None
    """Called from the worker with the logits [V] behind what was said so far, at each choice."""
    prior: Prior | None = None
    """Multiplies the odds of what a grammar admits, before temperature and `top_p`."""


@dataclass(frozen=True)
class Generation:
    """What came of a request."""

    ids: tuple[int, ...]
    end: End
    prompt: int
    cached: int
    forced: int
    sampled: int
    seconds: float
    guessed: int = 0
    """Of those forced and sampled, how many were guessed beforehand and asked for no pass of their own."""
    logprobs: tuple[float | None, ...] = ()
    """Where asked for, the natural logarithm of the model's own probability of each id, before grammar, temperature and
    `top_p`; None for an id that was forced."""


@dataclass
class Session:
    """A request on its way through the engine."""

    request: Request
    cancelled: threading.Event
    order: int
    done: threading.Event = field(default_factory=threading.Event)
    entry: Entry | None = None
    matcher: Any = None
    generator: Any = None
    pending: list[int] = field(default_factory=list)
    """Ids not yet run through the model: the rest of the prompt, or the last sampled id and those forced."""
    said: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    cached: int = 0
    forced: int = 0
    sampled: int = 0
    guessed: int = 0
    started: float = field(default_factory=time.perf_counter)
    ended: End | None = None
    fault: BaseException | None = None
    _began: bool = False
    """Whether its entry's text is this prompt."""

    @property
    def due(self) -> End | None:
        """Why it must end now, whatever it still had to say."""
        if self.cancelled.is_set():
            return "cancelled"
        limit = self.request.max_seconds
        return "late" if limit is not None and time.perf_counter() - self.started >= limit else None

    def left(self, context: int) -> int:
        """How many tokens may still be said by a model that reads `context`."""
        return min(self.request.max_new, context - len(self.request.ids)) - len(self.said)

    def heard(self) -> Heard:
        """The prompt and what was said, in the text of its entry, which may know most of it from the step before."""
        assert self.entry is not None
        text, prompt = self.entry.heard, self.request.ids
        if not self._began:
            known = common_prefix(text.ids, prompt)
            text.upto(known, prompt[known:])
            self._began = True
        text.upto(len(text.ids), self.said[len(text.ids) - len(prompt) :])
        return text

    def result(self) -> Generation:
        if self.fault is not None:
            raise self.fault
        return Generation(
            tuple(self.said),
            self.ended or "cancelled",
            len(self.request.ids),
            self.cached,
            self.forced,
            self.sampled,
            time.perf_counter() - self.started,
            self.guessed,
            tuple(self.logprobs[: len(self.said)]),
        )
