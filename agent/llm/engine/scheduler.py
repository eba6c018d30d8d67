"""Decoding: one worker thread, many sessions in one forward pass.

Each pass takes the new tokens of the sessions that run: pieces of prompts, the token just sampled, behind it whatever
the grammar forces, and what probably follows. Prompts are read once (see `prefix`), forced tokens are never sampled,
and what was guessed (see `guess`) is chosen like any other token, but costs no pass. In the lean pass sessions on
different adapters go together; those that need another pass take turns. Results do not depend on who else is in a
batch, but for the rounding of float arithmetic.
"""

from __future__ import annotations

import atexit
import itertools
import queue
import sys
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agent.errors import BusyError, ModelError, PromptError
from agent.llm.engine.attention import CachedLayout, use_ragged_attention
from agent.llm.engine.batch import GUESS_TOKENS, share_pass
from agent.llm.engine.cuda_graphs import runner_on
from agent.llm.engine.fused_forward import Lora, lean_pass, lora_of
from agent.llm.engine.kv_cache import Slots
from agent.llm.engine.loaded_adapters import AdapterBank
from agent.llm.engine.prefix_cache import Entry, PrefixCache, common_prefix
from agent.llm.engine.sampling import Chooser
from agent.llm.engine.session import End, Generation, Request, Session
from agent.llm.engine.speculation import KEYS, Said, guess
from agent.llm.engine.static_forward import StaticPasses
from agent.llm.weights.load import context_of
from agent.util.threads import in_own_team, in_turn

if TYPE_CHECKING:
    import torch


MAX_WAITING = 256
"""Requests that may wait for a place; further ones are refused."""

SWITCH_INTERVAL = 5e-5
"""Seconds a thread may keep the interpreter while others wait; the engine sets it for the whole process."""

IDLE_SECONDS = 2.0
"""After so long without work the worker ends; see `agent.util.threads`."""


_OPEN: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Python kills threads that are in torch when it ends, and torch then ends the process as one that crashed."""
    for engine in list(_OPEN):
        engine.close()


class Engine:
    """Runs requests on one model. Safe to call from many threads; `close` ends the worker."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_sessions: int = 16,
        max_waiting: int = MAX_WAITING,
        cache_tokens: int = 32768,
        static: bool | None = None,
    ) -> None:
        """Takes over a transformers causal language model: its attention becomes the ragged one.

        `static` says whether passes of few tokens are of few shapes (see `static`); None means on CUDA alone.
        """
        use_ragged_attention(model)
        self.model = model
        static = model.device.type == "cuda" if static is None else static
        # Prepared passes are those of transformers, which run one adapter at a time.
        self._lean = None if static else in_own_team(lambda: lean_pass(model))
        self._loras: dict[str | None, Lora | None] = {None: None}
        """Of the adapters that the lean pass can run."""
        self.adapters = AdapterBank(model)
        self.context = context_of(model.config)
        self._chooser = Chooser(tokenizer, max(int(model.config.vocab_size), len(tokenizer)), self._lean)
        self._known_ids = int(model.get_input_embeddings().weight.shape[0])
        self._max_sessions = max_sessions
        self._max_waiting = max_waiting
        self.unfinished = 0
        """Requests that run or wait."""
        self._slots = Slots(model.config.num_hidden_layers, max_sessions, static=static, dtype=self._cached_dtype())
        self._static = StaticPasses(model, self.adapters, self._slots, runner_on(model.device)) if static else None
        self._cache = PrefixCache(self._slots, max_tokens=cache_tokens)
        self._inbox: queue.SimpleQueue[Session | Callable[[], None] | None] = queue.SimpleQueue()
        self._starts: dict[str | None, tuple[int, ...]] = {}
        """Ids of the virtual tokens of adapters that have some."""
        self._said: defaultdict[str | None, Said] = defaultdict(Said)
        self._count = itertools.count()
        self._worker: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closed = False
        _OPEN.add(self)

    def _cached_dtype(self) -> torch.dtype | None:
        """Where products are made in bfloat16, keys and values are kept so too; attention is then faster as well."""
        return self._lean.dtype if self._lean is not None and self.model.device.type == "cpu" else None

    @property
    def is_lean(self) -> bool:
        """Whether the base runs in the lean pass, or in that of transformers, which any decoder has."""
        return self._lean is not None

    def generate(self, request: Request, cancelled: threading.Event | None = None) -> Generation:
        """Continue the request's ids. Blocks; setting `cancelled` ends it within a pass.

        Raises PromptError for a prompt that is empty, has ids that the model has not or leaves no room in the context,
        GrammarError for a bad grammar, BusyError where too many wait already.
        """
        # Here and not in the pass, where it would be an error of all who share it.
        if not request.ids:
            raise PromptError("the prompt is empty, and there is nothing to continue; pass one id at least")
        strange = next((id for id in request.ids if not 0 <= id < self._known_ids), None)
        if strange is not None:
            raise PromptError(
                f"the prompt has id {strange}, and the model knows 0 to {self._known_ids - 1}; use its own tokenizer"
            )
        start = self._starts.get(request.adapter, ())
        if len(start) + len(request.ids) + 1 >= self.context:
            raise PromptError(
                f"the prompt has {len(request.ids)} tokens and the model reads {self.context - len(start)}; shorten "
                "the task or the conversation, offer fewer tools or use a model that reads more"
            )
        request = replace(request, ids=(*start, *request.ids))
        session = Session(request, cancelled or threading.Event(), next(self._count))
        if request.grammar is not None:
            session.matcher = self._chooser.matcher(request.grammar, request.end)
        with self._counted():
            self._send(session)
            session.done.wait()
        return session.result()

    def load_adapter(self, key: str, folder: Any, *, tensors_sha256: str | None = None) -> None:
        """Load a PEFT folder under `key` while requests go on. See `AdapterBank.load`."""

        def load() -> None:
            self.adapters.load(key, folder, tensors_sha256=tensors_sha256)
            pairs = self.adapters.virtual(key)
            if self._lean is not None and self.adapters.is_lora(key) and key not in self._loras:
                lora = lora_of(self.model, self.adapters.name(key))
                if lora is not None:
                    self._loras[key] = lora
            if pairs:
                self._loras[key] = None
                # Virtual tokens go by ids that no token has.
                self._starts[key] = tuple(range(-pairs[0][0].shape[1], 0))
                self._cache.begin_with(key, self._starts[key], [pairs[layer] for layer in sorted(pairs)])

        self._call(load)

    def remember(self, adapter: str | None, texts: Iterable[Sequence[int]]) -> None:
        """Guess from these as from what was said under an adapter; what is said last counts most."""

        def add() -> None:
            for text in texts:
                self._said[adapter].add(tuple(text))

        self._call(add)

    def unload_adapter(self, key: str) -> None:
        """Drop an adapter and all that was read under it. Sessions still on it must have ended."""

        def drop() -> None:
            self.adapters.unload(key)
            self._cache.forget(key)
            self._starts.pop(key, None)
            self._loras.pop(key, None)
            self._said.pop(key, None)

        self._call(drop)

    def close(self) -> None:
        """End the worker; waiting requests end as cancelled."""
        with self._starting:
            self._closed = True
            worker = self._worker
            if worker is not None:
                self._inbox.put(None)
        if worker is not None:
            worker.join()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Holds one of the places among those that run or wait."""
        with self._starting:
            if self.unfinished >= self._max_sessions + self._max_waiting:
                raise BusyError(
                    f"{self.unfinished} requests run or wait, and no more than {self._max_waiting} may wait for the "
                    f"{self._max_sessions} that run; try again later"
                )
            self.unfinished += 1
        try:
            yield
        finally:
            with self._starting:
                self.unfinished -= 1

    def _send(self, item: Session | Callable[[], None]) -> None:
        with self._starting:
            if self._closed:
                raise ModelError("the model is closed; open a new one")
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="ratchet-engine", daemon=True)
                self._worker.start()
            # Inside the lock: what came behind the None of `close` would never be answered.
            self._inbox.put(item)

    def _call(self, action: Callable[[], None]) -> None:
        """Run an action between two passes, in the worker, and wait for it."""
        done = threading.Event()
        faults: list[BaseException] = []

        def run() -> None:
            try:
                action()
            except BaseException as fault:
                faults.append(fault)
            finally:
                done.set()

        self._send(run)
        done.wait()
        if faults:
            raise faults[0]

    def _work(self) -> None:
        # Each of the thousands of products of a pass gives the interpreter away. By default another thread that
        # computes may keep it 5 ms each time: a pass was seen to take 8 s instead of 0.3 s.
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL))
        waiting: list[Session] = []
        active: list[Session] = []
        while True:
            idle = not waiting and not active
            try:
                while True:
                    item = self._inbox.get(block=idle, timeout=IDLE_SECONDS)
                    idle = False
                    if item is None:
                        for session in (*waiting, *active):
                            self._finish(session, "cancelled")
                        return
                    if isinstance(item, Session):
                        waiting.append(item)
                    else:
                        item()
            except queue.Empty:
                if idle and self._rest():
                    return
            self._admit(waiting, active)
            self._pass(active)
            active[:] = [session for session in active if session.ended is None and session.fault is None]

    def _rest(self) -> bool:
        """End the worker, whose team of threads would slow down others'; the next request starts another."""
        with self._starting:
            if not self._inbox.empty():
                return False
            self._worker = None
            return True

    def _admit(self, waiting: list[Session], active: list[Session]) -> None:
        import torch

        for session in list(waiting):
            if session.due is not None:
                self._finish(session, session.due)
                waiting.remove(session)
            elif len(active) < self._max_sessions and not self._read_by_another(session, active):
                waiting.remove(session)
                try:
                    with torch.inference_mode():
                        session.entry = self._cache.take(session.request.adapter, session.request.ids)
                except BaseException as fault:
                    self._fail(session, fault)
                    continue
                session.cached = session.entry.values.length
                session.pending = list(session.request.ids[session.cached :])
                active.append(session)

    def _read_by_another(self, session: Session, active: Sequence[Session]) -> bool:
        """Whether an active session is just reading a prefix that this one could then copy."""
        ids = session.request.ids
        known = self._cache.known(session.request.adapter, ids)
        return any(
            other.request.adapter == session.request.adapter
            and not other.said
            and len(other.pending) > 1
            and common_prefix(ids, other.request.ids) > known + 64
            for other in active
        )

    def _pass(self, active: Sequence[Session]) -> None:
        for session in active:
            if session.due is not None:
                self._finish(session, session.due)
        ready = [session for session in active if session.ended is None]
        if not ready:
            return
        batch = self._batch(ready)
        for session in batch:
            session.order = next(self._count)
        try:
            room = (GUESS_TOKENS - sum(len(session.pending) for session in batch)) // len(batch)
            guesses = [self._guess(session, room) for session in batch]
            takes = share_pass([len(one.pending) for one in batch], [one.started for one in batch])
            with in_turn:
                logits, made_of = self._forward(batch, takes, guesses)
        except BaseException as fault:
            for session in batch:
                self._fail(session, fault)
            return
        first = 0
        for session, take, guessed in zip(batch, takes, guesses, strict=True):
            del session.pending[:take]
            rows = slice(first, first + 1 + len(guessed))
            first = rows.stop
            if not session.pending:
                self._choose(session, logits[rows], made_of[rows] if made_of is not None else None, guessed)

    def _batch(self, ready: Sequence[Session]) -> list[Session]:
        """Those that go together, of the same adapter side by side. The one that has waited longest is among them."""
        first = min(ready, key=lambda session: session.order)
        if self._runs_lean(first):
            return sorted((one for one in ready if self._runs_lean(one)), key=lambda one: one.request.adapter or "")
        return [one for one in ready if one.request.adapter == first.request.adapter]

    def _runs_lean(self, session: Session) -> bool:
        return self._lean is not None and session.request.adapter in self._loras

    def _guess(self, session: Session, room: int) -> list[int]:
        """What probably follows what this session brings to the pass, of at most `room` tokens."""
        # The last token of what may be said is not worth a guess: none follows it.
        room = min(room, session.left(self.context) - 1)
        if room <= 0 or not session.request.guess:
            return []
        text = session.heard()
        found = guess(text.ids, text.phrases, self._said[session.request.adapter])
        likely = list(found[:room])
        if session.matcher is not None and likely:
            del likely[session.matcher.validate_tokens(likely) :]
        return likely

    def _forward(
        self, batch: Sequence[Session], takes: Sequence[int], guesses: Sequence[Sequence[int]]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One forward pass over the first `takes` pending ids of each session, and its guesses.

        Returns the logits behind the last of these and behind each guess, of all sessions [B, V]; and, of the lean
        pass, what they are made of [B, hidden].
        """
        import torch

        ids: list[int] = []
        positions: list[int] = []
        keep: list[int] = []
        entries: list[Entry] = []
        counts = [take + len(guessed) for take, guessed in zip(takes, guesses, strict=True)]
        for session, take, guessed in zip(batch, takes, guesses, strict=True):
            assert session.entry is not None
            start = session.entry.values.length
            keep += range(len(ids) + take - 1, len(ids) + take + len(guessed))
            ids += [*session.pending[:take], *guessed]
            positions += range(start, start + take + len(guessed))
            entries.append(session.entry)
        for session, entry, take, guessed in zip(batch, entries, takes, guesses, strict=True):
            entry.ids += [*session.pending[:take], *guessed]
        adapter = batch[0].request.adapter
        if self._static is not None:
            found = self._static.run(adapter, [entry.values for entry in entries], counts, ids, keep)
            if found is not None:
                return found, None
        device = self.model.device
        layout = CachedLayout(self._slots, [entry.values for entry in entries], counts, device)
        tokens, places, last = (torch.tensor(one, device=device) for one in (ids, positions, keep))
        made_of: torch.Tensor | None = None
        with torch.inference_mode():
            if self._lean is not None and self._runs_lean(batch[0]):
                self.adapters.activate(None)
                logits, made_of = self._lean(tokens, places, last, layout, self._beside(batch, counts))
            else:
                self.adapters.activate(adapter)
                logits = self.model(
                    input_ids=tokens[None],
                    position_ids=places[None],
                    logits_to_keep=last,
                    use_cache=False,
                    layout=layout,
                ).logits[0]
        layout.commit()
        return logits.float(), made_of

    def _beside(self, batch: Sequence[Session], counts: Sequence[int]) -> list[tuple[slice, Lora]]:
        """Which tokens of a lean pass go through which LoRA."""
        found: list[tuple[slice, Lora]] = []
        start = 0
        sized = zip(batch, counts, strict=True)
        for adapter, members in itertools.groupby(sized, key=lambda one: one[0].request.adapter):
            end = start + sum(count for _, count in members)
            lora = self._loras[adapter]
            if lora is not None:
                found.append((slice(start, end), lora))
            start = end
        return found

    def _choose(
        self, session: Session, logits: torch.Tensor, made_of: torch.Tensor | None, guessed: Sequence[int]
    ) -> None:
        """Take the next token with all that the grammar then forces, and go on as long as that was guessed.

        Logits are [1 + len(guessed), V]: behind what was pending, and behind each guess.
        """
        known = 0
        try:
            request = session.request
            while session.ended is None and not session.pending:
                fresh, ended = self._chooser.choose(session, logits[known], None if made_of is None else made_of[known])
                room = session.left(self.context)
                cut = len(fresh) > room or (len(fresh) == room and not ended)
                fresh = fresh[:room]
                session.said += fresh
                session.sampled += len(fresh[:1])
                session.forced += len(fresh[1:])
                right = common_prefix(fresh, guessed[known:])
                known += right
                session.guessed += right
                session.pending = fresh[right:]
                going = request.on_tokens(fresh) if request.on_tokens is not None else True
                if (ended and not cut) or not going:
                    session.ended = "stop"
                elif cut:
                    session.ended = "length"
            assert session.entry is not None
            session.entry.shorten(len(guessed) - known)
            if session.ended is not None:
                self._finish(session, session.ended)
        except BaseException as fault:
            self._fail(session, fault)

    def _finish(self, session: Session, end: End) -> None:
        session.ended = end
        if end == "stop":
            before = session.request.ids[-max(KEYS) :]
            self._said[session.request.adapter].add((*before, *session.said))
        self._release(session)

    def _fail(self, session: Session, fault: BaseException) -> None:
        session.fault = fault
        self._release(session)

    def _release(self, session: Session) -> None:
        if session.entry is not None:
            self._cache.give_back(session.entry)
            session.entry = None
        session.done.set()
