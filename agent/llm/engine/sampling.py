"""Sampling of a session's next tokens: one id from the logits, then all ids that the grammar forces after it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.errors import GrammarError
from agent.llm.engine.prefix_cache import common_prefix

if TYPE_CHECKING:
    import torch

    from agent.llm.engine.batch import SessionPass
    from agent.llm.engine.fused_forward import FusedForward
    from agent.llm.engine.session import DecodingSession
    from agent.llm.prompt.first_call_prior import FirstCallPrior

_MAX_GRAMMARS = 256
"""Compiled grammars that are kept."""


class Sampler:
    """Samples for the sessions of one engine. `make_matcher` may be called from many threads."""

    def __init__(self, tokenizer: Any, vocabulary: int, fused: FusedForward | None) -> None:
        """Prepare for a model with `vocabulary` ids, which may be more than the tokenizer has."""
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._fused = fused
        self._tokenizers: dict[int, Any] = {}
        """llguidance's tokenizers by end of turn."""
        self._compiled: dict[tuple[str, int], Any] = {}
        self._compiling = threading.Lock()

    def make_matcher(self, grammar: str, end_of_turn: int) -> Any:
        """Return an llguidance matcher at the start of a Lark grammar. Raises GrammarError for an invalid one."""
        import llguidance
        import llguidance.hf

        with self._compiling:
            if end_of_turn not in self._tokenizers:
                # The end of turn need not be what the tokenizer takes for the end of a text.
                self._tokenizers[end_of_turn] = llguidance.hf.from_tokenizer(
                    self._tokenizer, n_vocab=self._vocabulary, eos_token=end_of_turn
                )
            if (grammar, end_of_turn) not in self._compiled:
                if len(self._compiled) > _MAX_GRAMMARS:
                    self._compiled.clear()
                matcher = llguidance.LLMatcher(self._tokenizers[end_of_turn], grammar)
                if matcher.is_error():
                    raise GrammarError(f"the grammar cannot be used: {_error_text(matcher)}")
                self._compiled[grammar, end_of_turn] = matcher
            return self._compiled[grammar, end_of_turn].deep_copy()

    def extend(self, session_pass: SessionPass, context: int) -> int:
        """Sample a session's next tokens, and go on for as long as they are those of the draft.

        Sets the session's `finish_reason` where it ends. `context` is the model's context size in tokens.

        Returns: How many draft tokens were accepted.
        """
        session, draft = session_pass.session, session_pass.draft
        logits, hidden = session_pass.logits, session_pass.hidden
        request = session.request
        accepted = 0
        while session.finish_reason is None and not session.pending:
            new, is_end = self.sample(session, logits[accepted], None if hidden is None else hidden[accepted])
            room = session.remaining_tokens(context)
            is_cut = len(new) > room or (len(new) == room and not is_end)
            new = new[:room]
            session.generated += new
            session.sampled += len(new[:1])
            session.forced += len(new[1:])
            matching = common_prefix(new, draft[accepted:])
            accepted += matching
            session.drafted += matching
            session.pending = new[matching:]
            goes_on = request.on_tokens(new) if request.on_tokens is not None else True
            if (is_end and not is_cut) or not goes_on:
                session.finish_reason = "stop"
            elif is_cut:
                session.finish_reason = "length"
        return accepted

    def sample(
        self, session: DecodingSession, logits: torch.Tensor, hidden: torch.Tensor | None
    ) -> tuple[list[int], bool]:
        """Sample the next id and advance the session's grammar.

        Args:
            session: whose request, grammar and random generator to use.
            logits: of the next token, [V].
            hidden: the final hidden state that the logits were computed from, [hidden], after a fused forward.

        Returns: The sampled id with the ids that the grammar forces after it, and whether they end the turn.

        Raises GrammarError where the grammar admits no id.
        """
        request, matcher = session.request, session.matcher
        token = self._sample_id(session, logits, hidden)
        if request.on_logits is not None:
            request.on_logits(logits)
        if request.logprobs:
            session.logprobs.append(float(logits[token] - logits.logsumexp(-1)))
        if matcher is None or token == request.end_of_turn:
            return [token], token == request.end_of_turn
        if not matcher.consume_token(token):
            raise GrammarError(f"the grammar rejected token {token}: {_error_text(matcher)}")
        forced = matcher.compute_ff_tokens()
        if not matcher.consume_tokens(forced):
            # The tokenizer has no token for a byte that the grammar requires, and left it out.
            raise GrammarError(f"the grammar rejected the tokens it forced: {_error_text(matcher)}")
        is_end = matcher.is_stopped()
        if is_end:
            forced = [*forced, request.end_of_turn]
        if request.logprobs:
            session.logprobs += [None] * len(forced)
        return [token, *forced], is_end

    def _sample_id(self, session: DecodingSession, logits: torch.Tensor, hidden: torch.Tensor | None) -> int:
        """Sample one of the admitted ids, by the request's temperature and seed."""
        import torch

        request = session.request
        admitted = self._admitted_ids(session, logits.shape[-1])
        ids = None if admitted is None else torch.from_numpy(admitted).to(logits.device)
        scores = logits if ids is None else logits[ids]
        if self._fused is not None and hidden is not None:
            with torch.inference_mode():
                scores = self._fused.refine(scores, ids, hidden)
        if request.prior is not None and admitted is not None and len(admitted) > 1:
            scores = self._apply_prior(session, request.prior, admitted, scores)
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
        return place if ids is None else int(ids[place])

    def _apply_prior(
        self, session: DecodingSession, prior: FirstCallPrior, admitted: np.ndarray, scores: torch.Tensor
    ) -> torch.Tensor:
        """Return the scores of the admitted ids, combined with the prior."""
        import torch

        tokenizer = self._tokenizers[session.request.end_of_turn]
        begun = prior.begun_call(tokenizer.decode_bytes(session.generated))
        if begun is None:
            return scores
        pieces = [tokenizer.decode_bytes([id]) for id in admitted.tolist()]
        combined = prior.combine(begun, pieces, scores.double().cpu().numpy())
        return torch.from_numpy(combined).to(scores)

    def _admitted_ids(self, session: DecodingSession, size: int) -> np.ndarray | None:
        """Return the ids below `size` that the grammar admits next; None without a grammar."""
        matcher = session.matcher
        if matcher is None:
            return None
        bits = np.zeros((1, (size + 31) // 32), dtype=np.int32)
        matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.size * bits.itemsize)
        admitted = np.nonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")[:size])[0]
        if matcher.is_error() or not len(admitted):
            why = _error_text(matcher) or "no token is admitted and it is not finished"
            raise GrammarError(
                f"the grammar admits nothing after {self._tokenizer.decode(session.generated)!r} ({why}); check the "
                "pattern and the length of what should follow"
            )
        return admitted


def _error_text(matcher: Any) -> str:
    """Return llguidance's error, without the parser state that it prints after it."""
    return str(matcher.get_error()).partition("\n")[0].partition("<state>")[0].strip()
