"""One forward pass over several sessions: which sessions, which of their tokens, which draft tokens.

A pass takes the pending tokens of its sessions (a piece of the prompt, or the last sampled token and those that the
grammar forced after it), followed by draft tokens. Sessions under different LoRA adapters share a fused forward; in
other forwards all sessions of a pass are under the same adapter. Not thread-safe: the engine's worker is the only user.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.llm.engine.attention import CachedLayout
from agent.llm.engine.fused_forward import FusedForward, LoraDeltas, fuse_lora
from agent.llm.engine.kv_cache import Slots
from agent.llm.engine.loaded_adapters import LoadedAdapters
from agent.llm.engine.session import DecodingSession
from agent.llm.engine.speculation import RecentTexts, find_draft
from agent.llm.engine.static_forward import StaticPasses
from agent.util.threads import compute_lock

if TYPE_CHECKING:
    import torch

MAX_PASS_TOKENS = 512
"""The most prompt tokens that one pass reads, so that no session waits long for another's long prompt."""

DRAFTING_PASS_TOKENS = 128
"""A pass is filled up with draft tokens to this size: so many cost hardly more than one."""


@dataclass(frozen=True)
class SessionPass:
    """What a pass took of one session, and the logits it gave."""

    session: DecodingSession
    taken: int
    """Pending ids that were read."""
    draft: list[int]
    """Draft tokens that were read after them."""
    logits: torch.Tensor
    """Float32 [1 + len(draft), V]: after the last pending id, and after each draft token."""
    hidden: torch.Tensor | None
    """[1 + len(draft), hidden]: the final hidden states of a fused forward."""


class BatchRunner:
    """Runs passes of one model, by the fastest forward that fits their sessions."""

    def __init__(
        self,
        model: Any,
        adapters: LoadedAdapters,
        slots: Slots,
        *,
        context: int,
        fused: FusedForward | None,
        static: StaticPasses | None,
    ) -> None:
        self._model = model
        self._adapters = adapters
        self._slots = slots
        self._context = context
        self._fused = fused
        self._static = static
        self._fused_loras: dict[str | None, LoraDeltas | None] = {None: None}
        """By adapter that the fused forward can run; None where nothing is added to its products."""
        self._recent: defaultdict[str | None, RecentTexts] = defaultdict(RecentTexts)

    def add_adapter(self, key: str) -> None:
        """Learn how to run a loaded adapter."""
        if self._adapters.soft_prompt(key):
            self._fused_loras[key] = None
        elif self._fused is not None and self._adapters.is_lora(key) and key not in self._fused_loras:
            lora = fuse_lora(self._model, self._adapters.name(key))
            if lora is not None:
                self._fused_loras[key] = lora

    def drop_adapter(self, key: str) -> None:
        """Forget an adapter and the draft texts generated under it."""
        self._fused_loras.pop(key, None)
        self._recent.pop(key, None)

    def add_draft_text(self, adapter: str | None, ids: Sequence[int]) -> None:
        """Draft from a text under an adapter; the latest text goes first."""
        self._recent[adapter].add(tuple(ids))

    def select(self, ready: Sequence[DecodingSession]) -> list[DecodingSession]:
        """Return the sessions of the next pass, by adapter; the one that has waited longest is among them."""
        first = min(ready, key=lambda session: session.order)
        if self._is_fused(first):
            together = [session for session in ready if self._is_fused(session)]
            return sorted(together, key=lambda session: session.request.adapter or "")
        return [session for session in ready if session.request.adapter == first.request.adapter]

    def run(self, batch: Sequence[DecodingSession]) -> list[SessionPass]:
        """Run one forward pass over sessions that `select` returned; their cache entries grow by what was read."""
        room = (DRAFTING_PASS_TOKENS - sum(len(session.pending) for session in batch)) // len(batch)
        drafts = [self._draft(session, room) for session in batch]
        taken = share_tokens([len(session.pending) for session in batch], [session.started for session in batch])
        with compute_lock:
            logits, hidden = self._forward(batch, taken, drafts)
        passes = []
        start = 0
        for session, count, draft in zip(batch, taken, drafts, strict=True):
            rows = slice(start, start + 1 + len(draft))
            start = rows.stop
            passes.append(SessionPass(session, count, draft, logits[rows], None if hidden is None else hidden[rows]))
        return passes

    def _is_fused(self, session: DecodingSession) -> bool:
        return self._fused is not None and session.request.adapter in self._fused_loras

    def _draft(self, session: DecodingSession, room: int) -> list[int]:
        """Return at most `room` ids that probably follow the pending ones."""
        # No draft for the last token: no pass follows it.
        room = min(room, session.remaining_tokens(self._context) - 1)
        if room <= 0 or not session.request.speculate:
            return []
        text = session.indexed_text()
        draft = list(find_draft(text.ids, text.index, self._recent[session.request.adapter])[:room])
        if session.matcher is not None and draft:
            del draft[session.matcher.validate_tokens(draft) :]
        return draft

    def _forward(
        self, batch: Sequence[DecodingSession], taken: Sequence[int], drafts: Sequence[Sequence[int]]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Read the first `taken` pending ids of each session, and its draft.

        Returns the logits [B, V] after the last of these and after each draft token, of all sessions; and the final
        hidden states [B, hidden] of a fused forward.
        """
        import torch

        ids: list[int] = []
        positions: list[int] = []
        keep: list[int] = []
        sequences = []
        counts = [count + len(draft) for count, draft in zip(taken, drafts, strict=True)]
        for session, count, draft in zip(batch, taken, drafts, strict=True):
            assert session.entry is not None
            new = [*session.pending[:count], *draft]
            start = session.entry.values.length
            keep += range(len(ids) + count - 1, len(ids) + len(new))
            ids += new
            positions += range(start, start + len(new))
            session.entry.ids += new
            sequences.append(session.entry.values)
        adapter = batch[0].request.adapter
        if self._static is not None:
            static_logits = self._static.run(adapter, sequences, counts, ids, keep)
            if static_logits is not None:
                return static_logits, None
        device = self._model.device
        layout = CachedLayout(self._slots, sequences, counts, device)
        tokens, places, last = (torch.tensor(numbers, device=device) for numbers in (ids, positions, keep))
        hidden: torch.Tensor | None = None
        with torch.inference_mode():
            if self._fused is not None and self._is_fused(batch[0]):
                self._adapters.activate(None)
                logits, hidden = self._fused(tokens, places, last, layout, self._lora_rows(batch, counts))
            else:
                self._adapters.activate(adapter)
                logits = self._model(
                    input_ids=tokens[None],
                    position_ids=places[None],
                    logits_to_keep=last,
                    use_cache=False,
                    layout=layout,
                ).logits[0]
        layout.commit()
        return logits.float(), hidden

    def _lora_rows(self, batch: Sequence[DecodingSession], counts: Sequence[int]) -> list[tuple[slice, LoraDeltas]]:
        """Return which tokens of a fused forward go through which LoRA."""
        rows: list[tuple[slice, LoraDeltas]] = []
        start = 0
        sized = zip(batch, counts, strict=True)
        for adapter, members in itertools.groupby(sized, key=lambda member: member[0].request.adapter):
            end = start + sum(count for _, count in members)
            lora = self._fused_loras[adapter]
            if lora is not None:
                rows.append((slice(start, end), lora))
            start = end
        return rows


def share_tokens(pending: Sequence[int], since: Sequence[float]) -> list[int]:
    """Return how many of their pending ids the sessions of a pass bring to it; at least one each.

    Short prompts are read at once, however long another's prompt is. The session that has waited longest may take half
    of the pass, so that many short prompts do not delay a long one either.

    Args:
        pending: the number of pending ids of each session.
        since: when each session was requested.
    """
    taken = [1] * len(pending)
    room = MAX_PASS_TOKENS - len(pending)

    def give(index: int, most: int) -> None:
        nonlocal room
        more = max(0, min(pending[index] - taken[index], most, room))
        taken[index] += more
        room -= more

    reading = [index for index, count in enumerate(pending) if count > 1]
    if reading:
        give(min(reading, key=lambda index: since[index]), MAX_PASS_TOKENS // 2)
    for index in sorted(reading, key=lambda index: pending[index]):
        give(index, room)
    return taken
