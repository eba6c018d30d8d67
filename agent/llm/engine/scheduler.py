"""The decoding engine: one worker thread that runs many sessions in common forward passes.

A session waits for a slot, reads its prompt in pieces, then generates. See `batch` for what a pass holds,
`prefix_cache` for what is not read twice, `sampling` for the choice of tokens. The output of a session does not depend
on the others in a pass, except for the rounding of floating-point sums.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import queue
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import BusyError, ModelError, PromptError
from agent.llm.engine.attention import use_ragged_attention
from agent.llm.engine.batch import BatchRunner, SessionPass
from agent.llm.engine.cuda_graphs import PassRunner
from agent.llm.engine.fused_forward import fuse_forward
from agent.llm.engine.kv_cache import Slots
from agent.llm.engine.loaded_adapters import LoadedAdapters
from agent.llm.engine.prefix_cache import PrefixCache, common_prefix
from agent.llm.engine.sampling import Sampler
from agent.llm.engine.session import DecodingSession, FinishReason, Generation, Request
from agent.llm.engine.speculation import NGRAM_SIZES
from agent.llm.engine.static_forward import StaticPasses
from agent.llm.weights.load import context_of

if TYPE_CHECKING:
    import torch


MAX_WAITING = 256
"""Requests that may wait for a slot; further ones raise BusyError."""

SWITCH_INTERVAL = 5e-5
"""Seconds a thread may keep the interpreter while others wait; the engine sets it for the whole process."""

IDLE_SECONDS = 2.0
"""After so long without work the worker thread ends."""

WORTH_WAITING_FOR = 64
"""Tokens; a session waits while another reads a common prefix that is so much longer than what is cached."""

_OPEN: weakref.WeakSet[Engine] = weakref.WeakSet()
_log = logging.getLogger("ratchet.engine")


@atexit.register
def _close_all() -> None:
    """Close all engines: a thread that Python stops inside torch aborts the process."""
    for engine in list(_OPEN):
        engine.close()


class Engine:
    """Runs requests on one model. Safe to call from many threads; `close` ends the worker.

    An unexpected error in the worker is raised in every `generate` whose session it had; the engine stays usable.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_sessions: int = 16,
        max_waiting: int = MAX_WAITING,
        cache_tokens: int = 32768,
        static: PassRunner | None = None,
        on_pass: Callable[[Sequence[DecodingSession]], None] | None = None,
    ) -> None:
        """Take over a transformers causal language model: its attention is replaced by the ragged one.

        Args:
            model: the model; nothing else may use it from now on.
            tokenizer: its fast tokenizer.
            max_sessions: sessions that run at once.
            max_waiting: requests that may wait for a slot; further ones raise BusyError.
            cache_tokens: positions that the prefix cache keeps.
            static: how to repeat decoding passes of fixed shape, for example `CudaGraphs(model.device)`. Off by
                default: CUDA graphs were never tested on a GPU. On, the fused forward is not used.
            on_pass: called in the worker before each pass, with its sessions; an error fails those sessions.
        """
        use_ragged_attention(model)
        self.model = model
        # Static passes run the forward of transformers, which has one adapter active at a time.
        fused = fuse_forward(model) if static is None else None
        self.uses_fused_forward = fused is not None
        """Whether the base runs in the fused forward, not in that of transformers."""
        self.adapters = LoadedAdapters(model)
        self.context = context_of(model.config)
        self.unfinished = 0
        """Requests that run or wait."""
        self._sampler = Sampler(tokenizer, max(int(model.config.vocab_size), len(tokenizer)), fused)
        self._embedded_ids = int(model.get_input_embeddings().weight.shape[0])
        self._max_sessions = max_sessions
        self._max_waiting = max_waiting
        # Where products are computed in bfloat16, keys and values are stored so too, which makes attention faster.
        dtype: torch.dtype | None = fused.dtype if fused is not None and model.device.type == "cpu" else None
        layers = model.config.num_hidden_layers
        self._slots = Slots(layers, max_sessions, static=static is not None, dtype=dtype)
        self._cache = PrefixCache(self._slots, max_tokens=cache_tokens)
        self.static_passes = None if static is None else StaticPasses(model, self.adapters, self._slots, static)
        """The passes of fixed shape; None where they are off."""
        self._batches = BatchRunner(
            model, self.adapters, self._slots, context=self.context, fused=fused, static=self.static_passes
        )
        self._on_pass = on_pass
        self._soft_prompts: dict[str | None, tuple[int, ...]] = {}
        """By adapter with a soft prompt, the ids that stand for its virtual tokens."""
        self._inbox: queue.SimpleQueue[DecodingSession | Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: list[DecodingSession] = []
        self._active: list[DecodingSession] = []
        self._count = itertools.count()
        self._worker: threading.Thread | None = None
        self._lock = threading.Lock()
        self._is_closed = False
        _OPEN.add(self)

    def generate(self, request: Request, cancelled: threading.Event | None = None) -> Generation:
        """Continue the request's ids. Blocks; setting `cancelled` ends it within a pass.

        Raises PromptError for a prompt that is empty, has ids the model does not know or leaves no room in the context,
        GrammarError for an invalid grammar, BusyError where too many requests wait already, ModelError when closed.
        """
        # Checked here and not in the pass, where it would fail all sessions in it.
        if not request.ids:
            raise PromptError("the prompt is empty, and there is nothing to continue; pass one id at least")
        unknown = next((id for id in request.ids if not 0 <= id < self._embedded_ids), None)
        if unknown is not None:
            raise PromptError(
                f"the prompt has id {unknown}, and the model knows 0 to {self._embedded_ids - 1}; use its own tokenizer"
            )
        start = self._soft_prompts.get(request.adapter, ())
        if len(start) + len(request.ids) + 1 >= self.context:
            raise PromptError(
                f"the prompt has {len(request.ids)} tokens and the model reads {self.context - len(start)}; shorten "
                "the task or the conversation, offer fewer tools or use a model that reads more"
            )
        request = replace(request, ids=(*start, *request.ids))
        session = DecodingSession(request, cancelled or threading.Event(), next(self._count))
        if request.grammar is not None:
            session.matcher = self._sampler.make_matcher(request.grammar, request.end_of_turn)
        with self._count_request():
            self._send(session)
            session.done.wait()
        return session.result()

    def load_adapter(self, key: str, folder: Path, *, tensors_sha256: str | None = None) -> None:
        """Load a PEFT folder under `key` while requests go on. See `LoadedAdapters.load`."""

        def load() -> None:
            self.adapters.load(key, folder, tensors_sha256=tensors_sha256)
            self._batches.add_adapter(key)
            pairs = self.adapters.soft_prompt(key)
            if pairs:
                # Virtual tokens get ids that no token has.
                self._soft_prompts[key] = tuple(range(-pairs[0][0].shape[1], 0))
                self._cache.set_start(key, self._soft_prompts[key], [pairs[layer] for layer in sorted(pairs)])

        self._run_in_worker(load)

    def add_draft_texts(self, adapter: str | None, texts: Iterable[Sequence[int]]) -> None:
        """Draft tokens from these texts under an adapter, as from its earlier generations; the latest goes first."""

        def add() -> None:
            for text in texts:
                self._batches.add_draft_text(adapter, text)

        self._run_in_worker(add)

    def unload_adapter(self, key: str) -> None:
        """Unload an adapter and drop its cache. Its sessions must have finished."""

        def drop() -> None:
            self.adapters.unload(key)
            self._cache.drop_adapter(key)
            self._batches.drop_adapter(key)
            self._soft_prompts.pop(key, None)

        self._run_in_worker(drop)

    def close(self) -> None:
        """End the worker; unfinished requests end as cancelled."""
        with self._lock:
            self._is_closed = True
            worker = self._worker
            if worker is not None:
                self._inbox.put(None)
        if worker is not None:
            worker.join()

    @contextmanager
    def _count_request(self) -> Iterator[None]:
        """Count a request among the unfinished ones. Raises BusyError where there are too many."""
        with self._lock:
            if self.unfinished >= self._max_sessions + self._max_waiting:
                raise BusyError(
                    f"{self.unfinished} requests run or wait, and no more than {self._max_waiting} may wait for the "
                    f"{self._max_sessions} that run; try again later"
                )
            self.unfinished += 1
        try:
            yield
        finally:
            with self._lock:
                self.unfinished -= 1

    def _send(self, item: DecodingSession | Callable[[], None]) -> None:
        with self._lock:
            if self._is_closed:
                raise ModelError("the model is closed; open a new one")
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="ratchet-engine", daemon=True)
                self._worker.start()
            # Inside the lock: an item after the None of `close` would never be answered.
            self._inbox.put(item)

    def _run_in_worker(self, action: Callable[[], None]) -> None:
        """Run an action between two passes, and wait for it. Raises what the action raises."""
        done = threading.Event()
        errors: list[BaseException] = []

        def run() -> None:
            try:
                action()
            except BaseException as error:
                errors.append(error)
            finally:
                done.set()

        self._send(run)
        done.wait()
        if errors:
            raise errors[0]

    # -- the worker thread ---------------------------------------------------------------------------------

    def _work(self) -> None:
        # Each of the thousands of products of a pass releases the interpreter. By default another computing thread
        # may keep it for 5 ms each time: a pass was seen to take 8 s instead of 0.3 s.
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL))
        is_open = True
        while is_open:
            try:
                is_open = self._take_turn()
            except BaseException as error:
                self._fail_all(error)

    def _take_turn(self) -> bool:
        """Receive requests, admit sessions and run a pass; return False when the worker is to end."""
        is_idle = not self._waiting and not self._active
        try:
            while True:
                item = self._inbox.get(block=is_idle, timeout=IDLE_SECONDS)
                is_idle = False
                if item is None:
                    for session in (*self._waiting, *self._active):
                        self._finish(session, "cancelled")
                    self._waiting, self._active = [], []
                    return False
                if isinstance(item, DecodingSession):
                    self._waiting.append(item)
                else:
                    item()
        except queue.Empty:
            if is_idle and self._rest():
                return False
        self._admit()
        self._run_pass()
        self._active = [session for session in self._active if session.is_running]
        return True

    def _fail_all(self, error: BaseException) -> None:
        """End all sessions with an error that nothing else handled; the cache may be inconsistent and is emptied."""
        _log.error("the engine's worker failed; its sessions end with the error", exc_info=error)
        sessions, self._waiting, self._active = [*self._waiting, *self._active], [], []
        self._cache.clear()
        for session in sessions:
            session.entry = None
            if not session.done.is_set():
                session.error = error
                session.done.set()

    def _rest(self) -> bool:
        """End the idle worker; the next request starts another. Return False where a request came meanwhile."""
        with self._lock:
            if not self._inbox.empty():
                return False
            self._worker = None
            return True

    def _admit(self) -> None:
        """Give waiting sessions a slot and the longest cached prefix of their prompts."""
        import torch

        for session in list(self._waiting):
            if session.interruption is not None:
                self._finish(session, session.interruption)
                self._waiting.remove(session)
            elif len(self._active) < self._max_sessions and not self._is_being_read(session):
                self._waiting.remove(session)
                self._active.append(session)
                try:
                    with torch.inference_mode():
                        session.entry = self._cache.acquire(session.request.adapter, session.request.ids)
                except BaseException as error:
                    self._fail(session, error)
                    self._active.remove(session)
                    continue
                session.cached = session.entry.values.length
                session.pending = list(session.request.ids[session.cached :])

    def _is_being_read(self, session: DecodingSession) -> bool:
        """Whether an active session is reading a prefix that this session could then copy."""
        ids = session.request.ids
        cached = self._cache.cached_length(session.request.adapter, ids)
        return any(
            other.request.adapter == session.request.adapter
            and not other.generated
            and len(other.pending) > 1
            and common_prefix(ids, other.request.ids) > cached + WORTH_WAITING_FOR
            for other in self._active
        )

    def _run_pass(self) -> None:
        for session in self._active:
            if session.interruption is not None:
                self._finish(session, session.interruption)
        ready = [session for session in self._active if session.is_running]
        if not ready:
            return
        batch = self._batches.select(ready)
        for session in batch:
            session.order = next(self._count)
        try:
            if self._on_pass is not None:
                self._on_pass(batch)
            passes = self._batches.run(batch)
        except BaseException as error:
            for session in batch:
                self._fail(session, error)
            return
        for session_pass in passes:
            session = session_pass.session
            del session.pending[: session_pass.taken]
            if not session.pending:
                self._extend(session_pass)

    def _extend(self, session_pass: SessionPass) -> None:
        """Sample the session's next tokens; finish it, or drop the draft tokens that were rejected."""
        session = session_pass.session
        try:
            accepted = self._sampler.extend(session_pass, self.context)
            assert session.entry is not None
            session.entry.shorten(len(session_pass.draft) - accepted)
            if session.finish_reason is not None:
                self._finish(session, session.finish_reason)
        except BaseException as error:
            self._fail(session, error)

    def _finish(self, session: DecodingSession, reason: FinishReason) -> None:
        session.finish_reason = reason
        if reason == "stop":
            before = session.request.ids[-max(NGRAM_SIZES) :]
            self._batches.add_draft_text(session.request.adapter, (*before, *session.generated))
        self._release(session)

    def _fail(self, session: DecodingSession, error: BaseException) -> None:
        session.error = error
        self._release(session)

    def _release(self, session: DecodingSession) -> None:
        if session.entry is not None:
            self._cache.release(session.entry)
            session.entry = None
        session.done.set()
