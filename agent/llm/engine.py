"""Decoding: one worker thread, many sessions in one forward pass.

Each pass takes the new tokens of every session that runs on the same adapter: pieces of prompts, the token just
sampled, behind it whatever the grammar forces, and what probably follows. Prompts are read once (see `prefix`), forced
tokens are never sampled, and what was guessed (see `guess`) is chosen like any other token, but costs no pass. Sessions
on different adapters take turns. Results do not depend on who else is in a batch, but for the rounding of float
arithmetic.
"""

from __future__ import annotations

import itertools
import queue
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from agent.errors import GrammarError, ModelError, PromptError
from agent.llm.attention import CachedLayout, use_ragged_attention
from agent.llm.bank import AdapterBank
from agent.llm.cache import Slots
from agent.llm.graphs import runner_on
from agent.llm.guess import KEYS, Phrases, Said, guess
from agent.llm.lean import Lora, lean_pass, lora_of
from agent.llm.prefix import Entry, PrefixCache, common_prefix
from agent.llm.static import StaticPasses
from agent.teams import in_own_team

if TYPE_CHECKING:
    import torch

PASS_TOKENS = 512
"""The most prompt tokens one pass reads, so that nobody waits long behind a long prompt."""


GUESS_TOKENS = 128
"""Guesses are made while a pass has fewer tokens than this: so many cost hardly more than one."""

SWITCH_INTERVAL = 5e-5
"""Seconds a thread may keep the interpreter while others wait; the engine sets it for the whole process."""

IDLE_SECONDS = 2.0
"""After so long without work the worker ends; see `agent.teams`."""


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


@dataclass(frozen=True)
class Generation:
    """What came of a request."""

    ids: tuple[int, ...]
    end: Literal["stop", "length", "cancelled"]
    prompt: int
    cached: int
    forced: int
    sampled: int
    seconds: float
    guessed: int = 0
    """Of those forced and sampled, how many were guessed beforehand and asked for no pass of their own."""


@dataclass
class _Job:
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
    phrases: Phrases = field(default_factory=Phrases)
    """Of the prompt and what was said."""
    text: list[int] = field(default_factory=list)
    """What `phrases` has taken in."""
    cached: int = 0
    forced: int = 0
    sampled: int = 0
    guessed: int = 0
    started: float = 0.0
    ended: Literal["stop", "length", "cancelled"] | None = None
    fault: BaseException | None = None

    def read(self) -> Sequence[int]:
        """The prompt and what was said, which `phrases` then knows."""
        start = len(self.text)
        self.text += self.said[start - len(self.request.ids) :] if start else [*self.request.ids, *self.said]
        self.phrases.add(self.text, start)
        return self.text

    def result(self) -> Generation:
        if self.fault is not None:
            raise self.fault
        seconds = time.perf_counter() - self.started
        end = self.ended or "cancelled"
        size = len(self.request.ids)
        return Generation(tuple(self.said), end, size, self.cached, self.forced, self.sampled, seconds, self.guessed)


class Engine:
    """Runs requests on one model. Safe to call from many threads; `close` ends the worker."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_sessions: int = 16,
        cache_tokens: int = 32768,
        static: bool | None = None,
    ) -> None:
        """Takes over a transformers causal language model: its attention becomes the ragged one.

        `static` says whether passes of few tokens are of few shapes (see `static`); None means on CUDA alone.
        """
        use_ragged_attention(model)
        self.model = model
        self._lean = in_own_team(lambda: lean_pass(model))
        self._loras: dict[str | None, Lora | None] = {None: None}
        """Of the adapters that the lean pass can run."""
        self.adapters = AdapterBank(model)
        self.context: int = int(getattr(model.config, "max_position_embeddings", 2048))
        self._tokenizer = tokenizer
        self._vocabulary = max(int(model.config.vocab_size), len(tokenizer))
        self._grammar_tokenizers: dict[int, Any] = {}
        self._grammars: dict[tuple[str, int], Any] = {}
        self._making_grammar = threading.Lock()
        self._max_sessions = max_sessions
        static = model.device.type == "cuda" if static is None else static
        self._slots = Slots(model.config.num_hidden_layers, max_sessions, static=static)
        self._static = StaticPasses(model, self.adapters, self._slots, runner_on(model.device)) if static else None
        self._cache = PrefixCache(self._slots, max_tokens=cache_tokens)
        self._inbox: queue.SimpleQueue[_Job | Callable[[], None] | None] = queue.SimpleQueue()
        self._starts: dict[str | None, tuple[int, ...]] = {}
        """Ids of the virtual tokens of adapters that have some."""
        self._said: defaultdict[str | None, Said] = defaultdict(Said)
        self._count = itertools.count()
        self._worker: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closed = False

    @property
    def is_lean(self) -> bool:
        """Whether the base runs in the lean pass, or in that of transformers, which any decoder has."""
        return self._lean is not None

    def generate(self, request: Request, cancelled: threading.Event | None = None) -> Generation:
        """Continue the request's ids. Blocks; setting `cancelled` ends it within a pass.

        Raises PromptError for a prompt that leaves no room in the context, GrammarError for a bad grammar.
        """
        start = self._starts.get(request.adapter, ())
        if len(start) + len(request.ids) + 1 >= self.context:
            raise PromptError(
                f"the prompt has {len(request.ids)} tokens and the model reads {self.context - len(start)}; shorten "
                "the task, show fewer passages or allow fewer steps"
            )
        request = replace(request, ids=(*start, *request.ids))
        job = _Job(request, cancelled or threading.Event(), next(self._count), started=time.perf_counter())
        if request.grammar is not None:
            job.matcher = self._matcher(request.grammar, request.end)
        self._send(job)
        job.done.wait()
        return job.result()

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

    def _matcher(self, grammar: str, end: int) -> Any:
        import llguidance
        import llguidance.hf

        with self._making_grammar:
            if end not in self._grammar_tokenizers:
                # The ids of the model, which may be more than the tokenizer's, and its end of turn, which
                # need not be what the tokenizer takes for the end of a text.
                self._grammar_tokenizers[end] = llguidance.hf.from_tokenizer(
                    self._tokenizer, n_vocab=self._vocabulary, eos_token=end
                )
            if (grammar, end) not in self._grammars:
                if len(self._grammars) > 256:
                    self._grammars.clear()
                matcher = llguidance.LLMatcher(self._grammar_tokenizers[end], grammar)
                if matcher.is_error():
                    raise GrammarError(f"the grammar cannot be used: {matcher.get_error()}")
                self._grammars[grammar, end] = matcher
            return self._grammars[grammar, end].deep_copy()

    def _send(self, item: _Job | Callable[[], None]) -> None:
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
        waiting: list[_Job] = []
        active: list[_Job] = []
        while True:
            idle = not waiting and not active
            try:
                while True:
                    item = self._inbox.get(block=idle, timeout=IDLE_SECONDS)
                    idle = False
                    if item is None:
                        for job in (*waiting, *active):
                            self._finish(job, "cancelled")
                        return
                    if isinstance(item, _Job):
                        waiting.append(item)
                    else:
                        item()
            except queue.Empty:
                if idle and self._rest():
                    return
            self._admit(waiting, active)
            self._pass(active)
            active[:] = [job for job in active if job.ended is None and job.fault is None]

    def _rest(self) -> bool:
        """End the worker, whose team of threads would slow down others'; the next request starts another."""
        with self._starting:
            if not self._inbox.empty():
                return False
            self._worker = None
            return True

    def _admit(self, waiting: list[_Job], active: list[_Job]) -> None:
        import torch

        for job in list(waiting):
            if job.cancelled.is_set():
                self._finish(job, "cancelled")
                waiting.remove(job)
            elif len(active) < self._max_sessions and not self._read_by_another(job, active):
                waiting.remove(job)
                try:
                    with torch.inference_mode():
                        job.entry = self._cache.take(job.request.adapter, job.request.ids)
                except BaseException as fault:
                    self._fail(job, fault)
                    continue
                job.cached = job.entry.values.length
                job.pending = list(job.request.ids[job.cached :])
                active.append(job)

    def _read_by_another(self, job: _Job, active: Sequence[_Job]) -> bool:
        """Whether an active session is just reading a prefix that this one could then copy."""
        ids = job.request.ids
        known = self._cache.known(job.request.adapter, ids)
        return any(
            other.request.adapter == job.request.adapter
            and not other.said
            and len(other.pending) > 1
            and common_prefix(ids, other.request.ids) > known + 64
            for other in active
        )

    def _pass(self, active: list[_Job]) -> None:
        for job in active:
            if job.cancelled.is_set():
                self._finish(job, "cancelled")
        ready = [job for job in active if job.ended is None]
        if not ready:
            return
        # The adapter that has waited longest goes first; its sessions then move to the end of the line.
        adapter = min(ready, key=lambda job: job.order).request.adapter
        batch = [job for job in ready if job.request.adapter == adapter]
        for job in batch:
            job.order = next(self._count)
        try:
            room = (GUESS_TOKENS - sum(len(job.pending) for job in batch)) // len(batch)
            guesses = [self._guess(job, room) for job in batch]
            takes, logits, last = self._forward(adapter, batch, guesses)
        except BaseException as fault:
            for job in batch:
                self._fail(job, fault)
            return
        first = 0
        for job, take, guessed in zip(batch, takes, guesses, strict=True):
            del job.pending[:take]
            rows = slice(first, first + 1 + len(guessed))
            first = rows.stop
            if not job.pending:
                self._choose(job, logits[rows], last[rows] if last is not None else None, guessed)

    def _guess(self, job: _Job, room: int) -> list[int]:
        """What probably follows what this session brings to the pass, of at most `room` tokens."""
        # The last token of what may be said is not worth a guess: none follows it.
        room = min(room, self._left(job) - 1)
        if room <= 0:
            return []
        found = guess(job.read(), job.phrases, self._said[job.request.adapter])
        likely = list(found[:room])
        if job.matcher is not None and likely:
            del likely[job.matcher.validate_tokens(likely) :]
        return likely

    def _forward(
        self, adapter: str | None, batch: Sequence[_Job], guesses: Sequence[Sequence[int]]
    ) -> tuple[list[int], torch.Tensor, torch.Tensor | None]:
        """One forward pass.

        Returns how many pending ids it took of each job; the logits behind the last of these and behind each guess,
        of all jobs [B, V]; and, of the lean pass, what they are made of [B, hidden].
        """
        import torch

        room = PASS_TOKENS
        takes = []
        for job in batch:
            takes.append(max(1, min(len(job.pending), room)))
            room -= takes[-1]
        ids: list[int] = []
        positions: list[int] = []
        keep: list[int] = []
        entries: list[Entry] = []
        counts = [take + len(guessed) for take, guessed in zip(takes, guesses, strict=True)]
        for job, take, guessed in zip(batch, takes, guesses, strict=True):
            assert job.entry is not None
            start = job.entry.values.length
            keep += range(len(ids) + take - 1, len(ids) + take + len(guessed))
            ids += [*job.pending[:take], *guessed]
            positions += range(start, start + take + len(guessed))
            entries.append(job.entry)
        for job, entry, take, guessed in zip(batch, entries, takes, guesses, strict=True):
            entry.ids += [*job.pending[:take], *guessed]
        if self._static is not None:
            found = self._static.run(adapter, [entry.values for entry in entries], counts, ids, keep)
            if found is not None:
                return takes, found, None
        device = self.model.device
        layout = CachedLayout(self._slots, [entry.values for entry in entries], counts, device)
        tokens, places, last = (torch.tensor(one, device=device) for one in (ids, positions, keep))
        with torch.inference_mode():
            lean = self._lean if adapter in self._loras else None
            self.adapters.activate(None if lean is not None else adapter)
            if lean is not None:
                logits, made_of = lean(tokens, places, last, layout, self._loras[adapter])
            else:
                made_of = None
                logits = self.model(
                    input_ids=tokens[None],
                    position_ids=places[None],
                    logits_to_keep=last,
                    use_cache=False,
                    layout=layout,
                ).logits[0]
        layout.commit()
        return takes, logits.float(), made_of

    def _choose(self, job: _Job, logits: torch.Tensor, made_of: torch.Tensor | None, guessed: Sequence[int]) -> None:
        """Take the next token with all that the grammar then forces, and go on as long as that was guessed.

        Logits are [1 + len(guessed), V]: behind what was pending, and behind each guess.
        """
        known = 0
        try:
            request = job.request
            while job.ended is None and not job.pending:
                fresh, ended = self._next(job, logits[known], None if made_of is None else made_of[known])
                room = self._left(job)
                cut = len(fresh) > room or (len(fresh) == room and not ended)
                fresh = fresh[:room]
                job.said += fresh
                right = common_prefix(fresh, guessed[known:])
                known += right
                job.guessed += right
                job.pending = fresh[right:]
                going = request.on_tokens(fresh) if request.on_tokens is not None else True
                if (ended and not cut) or not going:
                    job.ended = "stop"
                elif cut:
                    job.ended = "length"
            assert job.entry is not None
            job.entry.shorten(len(guessed) - known)
            if job.ended is not None:
                self._finish(job, job.ended)
        except BaseException as fault:
            self._fail(job, fault)

    def _left(self, job: _Job) -> int:
        """How many tokens may still be said."""
        return min(job.request.max_new, self.context - len(job.request.ids)) - len(job.said)

    def _next(self, job: _Job, logits: torch.Tensor, made_of: torch.Tensor | None) -> tuple[list[int], bool]:
        """The token chosen by logits [V], what the grammar forces behind it, and whether that ends the turn."""
        end = job.request.end
        token = self._sample(job, logits, made_of)
        job.sampled += 1
        if job.matcher is None or token == end:
            return [token], token == end
        if not job.matcher.consume_token(token):
            raise GrammarError(f"the grammar refused token {token}: {job.matcher.get_error()}")
        forced = job.matcher.compute_ff_tokens()
        job.matcher.consume_tokens(forced)
        ended = job.matcher.is_stopped()
        if ended:
            forced = [*forced, end]
        job.forced += len(forced)
        return [token, *forced], ended

    def _allowed(self, job: _Job, logits: torch.Tensor) -> np.ndarray | None:
        """The ids the grammar admits next; None for all."""
        if job.matcher is None:
            return None
        bits = np.zeros((1, (logits.shape[-1] + 31) // 32), dtype=np.int32)
        job.matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.size * bits.itemsize)
        if job.matcher.is_error():
            raise GrammarError(f"the grammar cannot go on: {job.matcher.get_error()}")
        allowed = np.nonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")[: logits.shape[-1]])[0]
        if not len(allowed):
            raise GrammarError("the grammar leaves no way out: no token is admitted and it is not finished")
        return allowed

    def _sample(self, job: _Job, logits: torch.Tensor, made_of: torch.Tensor | None) -> int:
        """One id, from the admitted ones, by the request's temperature and seed."""
        import torch

        request = job.request
        allowed = self._allowed(job, logits)
        choices = None if allowed is None else torch.from_numpy(allowed).to(logits.device)
        scores = logits if choices is None else logits[choices]
        if self._lean is not None and made_of is not None:
            with torch.inference_mode():
                scores = self._lean.refine(scores, choices, made_of)
        if request.temperature <= 0 or len(scores) == 1:
            place = int(scores.argmax())
        else:
            if job.generator is None:
                job.generator = torch.Generator(device=logits.device).manual_seed(request.seed)
            weights = (scores / request.temperature).softmax(-1)
            if request.top_p < 1.0:
                ordered, order = weights.sort(descending=True)
                ordered[ordered.cumsum(-1) - ordered > request.top_p] = 0.0
                weights = torch.zeros_like(weights).scatter(0, order, ordered)
            place = int(torch.multinomial(weights, 1, generator=job.generator))
        return place if choices is None else int(choices[place])

    def _finish(self, job: _Job, end: Literal["stop", "length", "cancelled"]) -> None:
        job.ended = end
        if end == "stop":
            before = job.request.ids[-max(KEYS) :]
            self._said[job.request.adapter].add((*before, *job.said))
        self._release(job)

    def _fail(self, job: _Job, fault: BaseException) -> None:
        job.fault = fault
        self._release(job)

    def _release(self, job: _Job) -> None:
        if job.entry is not None:
            self._cache.give_back(job.entry)
            job.entry = None
        job.done.set()
