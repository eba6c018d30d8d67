"""The next tokens of a session: one chosen by logits from those the grammar admits, and all that it then forces."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.errors import GrammarError

if TYPE_CHECKING:
    import torch

    from agent.llm.lean import LeanPass
    from agent.llm.session import Session

_GRAMMARS = 256
"""Grammars that are kept ready."""


class Matchers:
    """Makes grammars ready for one tokenizer; each once. Safe to call from many threads."""

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        """`vocabulary` is the number of ids of the model, which may be more than the tokenizer's."""
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._tokenizers: dict[int, Any] = {}
        self._ready: dict[tuple[str, int], Any] = {}
        self._making = threading.Lock()

    def make(self, grammar: str, end: int) -> Any:
        """A matcher at the start of a Lark grammar. Raises GrammarError where it cannot be read."""
        import llguidance
        import llguidance.hf

        with self._making:
            if end not in self._tokenizers:
                # The end of turn need not be what the tokenizer takes for the end of a text.
                self._tokenizers[end] = llguidance.hf.from_tokenizer(
                    self._tokenizer, n_vocab=self._vocabulary, eos_token=end
                )
            if (grammar, end) not in self._ready:
                if len(self._ready) > _GRAMMARS:
                    self._ready.clear()
                matcher = llguidance.LLMatcher(self._tokenizers[end], grammar)
                if matcher.is_error():
                    raise GrammarError(f"the grammar cannot be used: {_reason(matcher)}")
                self._ready[grammar, end] = matcher
            return self._ready[grammar, end].deep_copy()


def choose(
    session: Session, logits: torch.Tensor, made_of: torch.Tensor | None, lean: LeanPass | None
) -> tuple[list[int], bool]:
    """The token chosen by logits [V], what the grammar forces behind it, and whether that ends the turn.

    Logits of the lean pass come with what they are made of, [hidden].
    """
    end = session.request.end
    token = _sample(session, logits, made_of, lean)
    if session.request.logprobs:
        session.logprobs.append(float(logits[token] - logits.logsumexp(-1)))
    if session.matcher is None or token == end:
        return [token], token == end
    if not session.matcher.consume_token(token):
        raise GrammarError(f"the grammar refused token {token}: {_reason(session.matcher)}")
    forced = session.matcher.compute_ff_tokens()
    if not session.matcher.consume_tokens(forced):
        # The tokenizer has no token for a byte that must come, and left it out.
        raise GrammarError(f"the grammar refused the tokens it forced: {_reason(session.matcher)}")
    ended = session.matcher.is_stopped()
    if ended:
        forced = [*forced, end]
    if session.request.logprobs:
        session.logprobs += [None] * len(forced)
    return [token, *forced], ended


def _sample(session: Session, logits: torch.Tensor, made_of: torch.Tensor | None, lean: LeanPass | None) -> int:
    """One id, from the admitted ones, by the request's temperature and seed."""
    import torch

    request = session.request
    allowed = _allowed(session, logits.shape[-1])
    choices = None if allowed is None else torch.from_numpy(allowed).to(logits.device)
    scores = logits if choices is None else logits[choices]
    if lean is not None and made_of is not None:
        with torch.inference_mode():
            scores = lean.refine(scores, choices, made_of)
    if request.temperature <= 0 or len(scores) == 1:
        place = int(scores.argmax())
    else:
        if session.generator is None:
            session.generator = torch.Generator(device=logits.device).manual_seed(request.seed)
        weights = (scores / request.temperature).softmax(-1)
        if request.top_p < 1.0:
            ordered, order = weights.sort(descending=True)
            ordered[ordered.cumsum(-1) - ordered > request.top_p] = 0.0
            weights = torch.zeros_like(weights).scatter(0, order, ordered)
        place = int(torch.multinomial(weights, 1, generator=session.generator))
    return place if choices is None else int(choices[place])


def _allowed(session: Session, size: int) -> np.ndarray | None:
    """The ids the grammar admits next, of `size` in all; None for all."""
    if session.matcher is None:
        return None
    bits = np.zeros((1, (size + 31) // 32), dtype=np.int32)
    session.matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.size * bits.itemsize)
    if session.matcher.is_error():
        raise GrammarError(f"the grammar cannot go on: {_reason(session.matcher)}")
    allowed = np.nonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")[:size])[0]
    if not len(allowed):
        raise GrammarError("the grammar leaves no way out: no token is admitted and it is not finished")
    return allowed


def _reason(matcher: Any) -> str:
    """What llguidance has against it, without the state that it prints behind."""
    return str(matcher.get_error()).partition("<state>")[0].strip()
