"""The next tokens of a session: one chosen by logits from those the grammar admits, and all that it then forces."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.errors import GrammarError

if TYPE_CHECKING:
    import torch

    from agent.llm.engine.fused_forward import LeanPass
    from agent.llm.engine.session import Session
    from agent.llm.prompt.first_call_prior import Prior

_GRAMMARS = 256
"""Grammars that are kept ready."""


class Chooser:
    """Chooses for the sessions of one engine. Grammars can be made ready from many threads."""

    def __init__(self, tokenizer: Any, vocabulary: int, lean: LeanPass | None) -> None:
        """`vocabulary` is the number of ids of the model, which may be more than the tokenizer's."""
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._lean = lean
        self._tokenizers: dict[int, Any] = {}
        self._ready: dict[tuple[str, int], Any] = {}
        self._making = threading.Lock()

    def matcher(self, grammar: str, end: int) -> Any:
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

    def choose(self, session: Session, logits: torch.Tensor, made_of: torch.Tensor | None) -> tuple[list[int], bool]:
        """The token chosen by logits [V], what the grammar forces behind it, and whether that ends the turn.

        Logits of the lean pass come with what they are made of, [hidden].
        """
        request, matcher = session.request, session.matcher
        token = self._sample(session, logits, made_of)
        if request.on_logits is not None:
            request.on_logits(logits)
        if request.logprobs:
            session.logprobs.append(float(logits[token] - logits.logsumexp(-1)))
        if matcher is None or token == request.end:
            return [token], token == request.end
        if not matcher.consume_token(token):
            raise GrammarError(f"the grammar refused token {token}: {_reason(matcher)}")
        forced = matcher.compute_ff_tokens()
        if not matcher.consume_tokens(forced):
            # The tokenizer has no token for a byte that must come, and left it out.
            raise GrammarError(f"the grammar refused the tokens it forced: {_reason(matcher)}")
        ended = matcher.is_stopped()
        if ended:
            forced = [*forced, request.end]
        if request.logprobs:
            session.logprobs += [None] * len(forced)
        return [token, *forced], ended

    def _sample(self, session: Session, logits: torch.Tensor, made_of: torch.Tensor | None) -> int:
        """One id, from the admitted ones, by the request's temperature and seed."""
        import torch

        request = session.request
        allowed = self._allowed(session, logits.shape[-1])
        choices = None if allowed is None else torch.from_numpy(allowed).to(logits.device)
        scores = logits if choices is None else logits[choices]
        if self._lean is not None and made_of is not None:
            with torch.inference_mode():
                scores = self._lean.refine(scores, choices, made_of)
        if request.prior is not None and allowed is not None and len(allowed) > 1:
            scores = self._expecting(session, request.prior, allowed, scores)
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

    def _expecting(self, session: Session, prior: Prior, allowed: np.ndarray, scores: torch.Tensor) -> torch.Tensor:
        """The scores of the admitted ids as memory and the model weigh them together."""
        import torch

        tokenizer = self._tokenizers[session.request.end]
        begun = prior.ahead(tokenizer.decode_bytes(session.said))
        if begun is None:
            return scores
        pieces = [tokenizer.decode_bytes([id]) for id in allowed.tolist()]
        weighed = prior.weighed(begun, pieces, scores.double().cpu().numpy())
        return torch.from_numpy(weighed).to(scores)

    def _allowed(self, session: Session, size: int) -> np.ndarray | None:
        """The ids the grammar admits next, of `size` in all; None for all."""
        matcher = session.matcher
        if matcher is None:
            return None
        bits = np.zeros((1, (size + 31) // 32), dtype=np.int32)
        matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.size * bits.itemsize)
        allowed = np.nonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")[:size])[0]
        if matcher.is_error() or not len(allowed):
            why = _reason(matcher) or "no token is admitted and it is not finished"
            raise GrammarError(
                f"the grammar leaves no way out behind {self._tokenizer.decode(session.said)!r} ({why}); let the "
                "pattern and the length of what is to follow admit something"
            )
        return allowed


def _reason(matcher: Any) -> str:
    """What llguidance has against it, without the state that it prints behind."""
    return str(matcher.get_error()).partition("\n")[0].partition("<state>")[0].strip()
