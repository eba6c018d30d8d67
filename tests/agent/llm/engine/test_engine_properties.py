"""What the engine guarantees for any concurrent requests, compared with a loop that caches and shares nothing."""

from __future__ import annotations

import gc
import random
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from agent.errors import GrammarError
from agent.llm.chat_model import LocalModel
from agent.llm.engine.kv_cache import KeyValues
from agent.llm.engine.prefix_cache import CacheEntry
from agent.llm.engine.sampling import Sampler
from agent.llm.engine.scheduler import Engine
from agent.llm.engine.session import DecodingSession, Generation, Request
from agent.llm.prompt.render import Renderer
from agent.llm.prompt.step_grammar import StepShape, step_grammar
from agent.util.threads import give_back_memory
from tests.agent.llm.engine.test_scheduler import NO_END, TOOLS, prompt

END = 2
NEAR = 1e-4
"""How far a log-probability may be from the plain one; of tokens as near to each other as that either may be said."""
GRAMMARS = (
    None,
    step_grammar(StepShape(TOOLS)),
    'start: "The order was " /[a-z]{1,4}/ " shipped on 9 May"\n',
    "start: /[a-c]{2,30}/\n",
    'start: ("get_order" | "get_orders" | "list") "{" /[0-9]{1,3}/ "}" /[xyü]{2}/\n',
)
ADAPTERS: dict[str, dict[str, dict[str, Any]]] = {
    # All but dora and full go through the fused forward together.
    "llama": {
        "red": {"layers_to_transform": [0]},
        "blue": {
            "layers_to_transform": [1, 2],
            "target_modules": ["k_proj", "o_proj", "down_proj"],
            "r": 8,
            "lora_alpha": 8,
        },
        "dora": {"use_dora": True},
        "prompt": {},
        "full": {},
    },
    # A kind that the fused forward does not support.
    "qwen3": {"red": {"layers_to_transform": [0]}, "blue": {"layers_to_transform": [2]}, "prefix": {}},
    "mistral": {},
}


# -- the plain loop ----------------------------------------------------------------------------------------


class World:
    """A base and its adapters: engines of them, and for each the model that PEFT makes, which is asked plainly."""

    def __init__(self, base: str, folder: Path, tokenizer: Any, parts: Any) -> None:
        self.tokenizer = tokenizer
        self.model = lambda: parts.model(tokenizer, base)
        self.folder = folder
        self.twins: dict[str | None, Any] = {None: self.model()}
        for number, (key, options) in enumerate(ADAPTERS[base].items()):
            if key in ("prompt", "prefix", "full"):
                self.twins[key] = parts.other(folder / key, tokenizer, key, base=base)
            else:
                self.twins[key] = parts.adapter(folder / key, tokenizer, seed=number, base=base, **options)
        # In float32 the plain loop would be further from the truth than the engine may be.
        self.twins = {key: twin.double() for key, twin in self.twins.items()}
        self.vocabulary = int(self.twins[None].config.vocab_size)
        self.sampler = Sampler(tokenizer, self.vocabulary, None)

    def engine(self, **options: Any) -> Watched:
        engine = Watched(self.model(), self.tokenizer, **options)
        for key in self.twins:
            if key is not None:
                engine.load_adapter(key, self.folder / key)
        return engine

    def logprobs(self, adapter: str | None, ids: Sequence[int], said: Sequence[int]) -> torch.Tensor:
        """Log-probabilities [len(said), V] at the place of each id that was said, by one forward without any cache.

        A token sees none behind it: this is what computing everything anew for each token gives.
        """
        whole = torch.tensor([[*ids, *said]])
        with torch.inference_mode():
            logits = self.twins[adapter](input_ids=whole, use_cache=False).logits[0]
        return torch.as_tensor(logits[-len(said) - 1 : -1]).log_softmax(-1)

    def admitted(self, matcher: Any) -> np.ndarray:
        if matcher is None:
            return np.arange(self.vocabulary)
        if matcher.is_stopped():
            return np.array([END])
        bits = np.zeros((1, (self.vocabulary + 31) // 32), dtype=np.int32)
        matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        assert not matcher.is_error(), matcher.get_error()
        return np.nonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")[: self.vocabulary])[0]

    def check(self, request: Request, made: Generation) -> None:
        """At each place stands the likeliest of what the grammar admits there. Nothing is forced but by its mask."""
        said = made.ids
        matcher = None if request.grammar is None else self.sampler.make_matcher(request.grammar, END)
        plain = self.logprobs(request.adapter, request.ids, said) if said else ()
        for place, (id, scores) in enumerate(zip(said, plain, strict=True)):
            where = f"place {place} of {said}"
            admitted = self.admitted(matcher)
            assert id in admitted, where
            if request.temperature == 0:
                assert float(scores[id]) >= float(scores[admitted].max()) - NEAR, where
            if request.logprobs:
                received = made.logprobs[place]
                assert len(admitted) == 1 if received is None else abs(received - float(scores[id])) <= NEAR, where
            if matcher is not None and id != END:
                assert matcher.consume_token(id), matcher.get_error()
        assert len(made.logprobs) == (len(said) if request.logprobs else 0)
        assert END not in said[:-1]
        assert made.forced + made.sampled == len(said)
        assert made.finish_reason != "length" or len(said) == request.max_new


class Watched(Engine):
    """An engine that counts its passes, and looks at its cache before each."""

    def __init__(self, *args: Any, cache_tokens: int = 32768, **options: Any) -> None:
        super().__init__(*args, cache_tokens=cache_tokens, on_pass=self.watch, **options)
        self.cache_tokens = cache_tokens
        self.turn = threading.Condition()
        self.passes = 0
        self.mixed = 0
        """Passes that held sessions on different adapters."""
        self.largest = 0
        """The most sessions of a pass."""

    def watch(self, batch: Sequence[DecodingSession]) -> None:
        with self.turn:
            self.passes += 1
            self.largest = max(self.largest, len(batch))
            self.mixed += len({one.request.adapter for one in batch}) > 1
            self.turn.notify_all()
        running = sum(one.values.length for one in self._cache._entries if one.is_busy)
        assert self._cache.tokens <= self.cache_tokens + running

    def check_idle(self) -> None:
        """Nothing is held for anybody."""
        assert self.unfinished == 0
        assert not any(one.is_busy for one in self._cache._entries)
        tenants = [one() for one in self._slots._owners if one is not None]
        assert not any(one.is_running for one in tenants if one is not None)
        assert self._cache.tokens <= self.cache_tokens


@pytest.fixture(scope="module")
def fused(tokenizer: Any, parts: Any, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World("llama", tmp_path_factory.mktemp("llama"), tokenizer, parts)


@pytest.fixture(scope="module")
def other(tokenizer: Any, parts: Any, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World("qwen3", tmp_path_factory.mktemp("qwen3"), tokenizer, parts)


# -- many at once ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A request, the pass at which it comes, and what ends it early."""

    request: Request
    comes: int
    leaves: tuple[str, int] | None
    """After so many "passes", or when it was "told" so many ids, or by saying no then ("enough")."""


def prompts() -> st.SearchStrategy[tuple[int, ...]]:
    """Of 1 to 600 ids; many begin alike, some repeat themselves so that guesses are made."""
    stem = st.builds(lambda seed, size: prompt(seed, 500)[:size], st.integers(0, 1), st.integers(0, 500))
    tail = st.builds(prompt, st.integers(2, 9), st.integers(1, 40))
    again = st.builds(
        lambda seed, size, times: prompt(seed, size) * times, st.integers(2, 5), st.integers(2, 6), st.integers(2, 9)
    )
    return st.one_of(st.builds(lambda one, two: (*one, *two), stem, st.one_of(tail, again)), again)


def scenarios(adapters: Sequence[str | None]) -> st.SearchStrategy[list[Asked]]:
    requests = st.builds(
        Request,
        ids=prompts(),
        end_of_turn=st.just(END),
        max_new=st.integers(1, 40),
        grammar=st.sampled_from(GRAMMARS),
        temperature=st.sampled_from([0.0, 0.0, 0.0, 1.0]),
        seed=st.integers(0, 99),
        adapter=st.sampled_from(adapters),
        speculate=st.sampled_from([True, True, False]),
        logprobs=st.booleans(),
    )
    ways = st.tuples(st.sampled_from(["passes", "told", "enough"]), st.integers(1, 12))
    return st.lists(
        st.builds(Asked, requests, st.integers(0, 30), st.one_of(st.none(), st.none(), ways)), min_size=2, max_size=7
    )


def ask(engine: Watched, scenario: Sequence[Asked]) -> list[Generation]:
    """Ask each from a thread of its own when its pass has come, or when all that came before it are done."""
    done: Counter[int] = Counter()

    def reached(count: int, since: int) -> bool:
        before = sum(one.comes < count for one in scenario)
        return engine.passes - since >= count or sum(done[one] for one in range(count)) >= before

    def go(asked: Asked, since: int) -> Generation:
        cancelled, received = threading.Event(), []
        way, count = asked.leaves or ("never", 0)

        def on_tokens(ids: Sequence[int]) -> bool:
            received.extend(ids)
            if way == "told" and len(received) >= count:
                cancelled.set()
            return way != "enough" or len(received) < count

        def leave() -> None:
            with engine.turn:
                until = engine.passes + count
                engine.turn.wait_for(lambda: engine.passes >= until or over.is_set())
            cancelled.set()

        over = threading.Event()
        with engine.turn:
            while not reached(asked.comes, since):
                engine.turn.wait(0.002)
        leaver = threading.Thread(target=leave)
        if way == "passes":
            leaver.start()
        made = engine.generate(replace(asked.request, on_tokens=on_tokens), cancelled)
        with engine.turn:
            done[asked.comes] += 1
            over.set()
            engine.turn.notify_all()
        if way == "passes":
            leaver.join()
        assert tuple(received) == made.ids
        assert made.finish_reason != "cancelled" or way in ("passes", "told")
        assert made.finish_reason != "stop" or made.ids[-1] == END or way == "enough"
        return made

    since = engine.passes
    with ThreadPoolExecutor(len(scenario)) as pool:
        return list(pool.map(lambda one: go(one, since), scenario))


def hold(world: World, examples: int) -> Counter[str]:
    """Try so many scenarios, each twice: first as it is, then with what was said and more behind each prompt."""
    seen: Counter[str] = Counter()

    # To shrink what depends on how threads run takes minutes and finds little.
    @settings(max_examples=examples, deadline=None, phases=[Phase.reuse, Phase.generate])
    @given(
        first=scenarios(list(world.twins)),
        more=st.lists(st.builds(prompt, st.integers(2, 9), st.integers(1, 20)), min_size=7, max_size=7),
        max_sessions=st.integers(2, 4),
        cache_tokens=st.sampled_from([0, 300, 900, 4000]),
    )
    def check(first: list[Asked], more: list[tuple[int, ...]], max_sessions: int, cache_tokens: int) -> None:
        engine = world.engine(max_sessions=max_sessions, cache_tokens=cache_tokens)
        try:
            scenario = first
            for _ in range(2):
                made = ask(engine, scenario)
                for asked, one in zip(scenario, made, strict=True):
                    world.check(asked.request, one)
                    seen.update(
                        {one.finish_reason: 1, "cached": one.cached, "drafted": one.drafted, "forced": one.forced}
                    )
                engine.check_idle()
                scenario = [
                    replace(asked, request=replace(asked.request, ids=(*asked.request.ids, *one.ids, *end)))
                    for asked, one, end in zip(scenario, made, more, strict=False)
                ]
            seen.update(mixed=engine.mixed, fused=engine.uses_fused_forward)
        finally:
            engine.close()

    check()
    return seen


def test_concurrent_sessions_match_the_plain_loop_in_ids_and_log_probabilities(fused: World) -> None:
    seen = hold(fused, 12)
    assert all(seen[one] for one in ("stop", "length", "cancelled", "cached", "drafted", "forced", "mixed", "fused")), (
        seen
    )


def test_the_forward_of_transformers_matches_the_plain_loop_too(other: World) -> None:
    seen = hold(other, 8)
    assert all(seen[one] for one in ("stop", "length", "cancelled", "cached", "drafted", "forced")), seen
    assert not seen["mixed"] + seen["fused"]


@pytest.mark.slow
@pytest.mark.parametrize("world", ["fused", "other"])
def test_each_says_what_the_plain_loop_says_in_many_more_scenarios(world: str, request: pytest.FixtureRequest) -> None:
    hold(request.getfixturevalue(world), 50)


# -- the law of sampling -----------------------------------------------------------------------------------


def law(world: World, ids: Sequence[int], grammar: str, said: tuple[int, ...] = ()) -> dict[tuple[int, ...], float]:
    """Every whole text of a grammar behind a prompt, and how probable the logits make it."""
    matcher = world.sampler.make_matcher(grammar, END)
    matcher.consume_tokens(list(said))
    if matcher.is_stopped():
        return {(*said, END): 1.0}
    admitted = world.admitted(matcher)
    scores = world.logprobs(None, ids, (*said, END))[-1][admitted].softmax(-1)
    return {
        text: float(chance) * rest
        for id, chance in zip(admitted, scores, strict=True)
        for text, rest in law(world, ids, grammar, (*said, int(id))).items()
    }


def test_with_guesses_each_text_comes_as_often_as_the_logits_say_and_a_seed_says_what_it_says_without(
    fused: World,
) -> None:
    grammar, ids = "start: /[abc]{2}/\n", prompt(1, 12)
    likely = law(fused, ids, grammar)
    assert abs(sum(likely.values()) - 1) < 1e-5
    assert max(likely.values()) < 0.7
    asked = [Request(ids, END, grammar=grammar, temperature=1.0, seed=seed) for seed in range(600)]
    engine = fused.engine()
    try:
        with ThreadPoolExecutor(16) as pool:
            made = list(pool.map(engine.generate, asked))
        for one, request in zip(made[:60], asked, strict=False):
            assert engine.generate(replace(request, speculate=False)).ids == one.ids
    finally:
        engine.close()
    assert sum(one.drafted for one in made) > 60
    count = Counter(one.ids for one in made)
    assert set(count) <= set(likely)
    assert sum(abs(count[text] / len(made) - chance) for text, chance in likely.items()) / 2 < 0.06


# -- a small cache -----------------------------------------------------------------------------------------


@settings(max_examples=6, deadline=None)
@given(
    order=st.lists(st.integers(0, 7), min_size=10, max_size=25),
    sizes=st.lists(st.integers(30, 150), min_size=8, max_size=8),
)
def test_the_longest_unused_goes_first_and_what_is_read_again_says_the_same(
    fused: World, order: list[int], sizes: list[int]
) -> None:
    engine = Watched(fused.model(), fused.tokenizer, max_sessions=2, cache_tokens=400)
    asked = [Request(prompt(100 + number, size), END, max_new=4) for number, size in enumerate(sizes)]
    first: dict[int, Generation] = {}
    try:
        for place, number in enumerate(order):
            made = engine.generate(asked[number])
            fused.check(asked[number], made)
            assert made.ids == first.setdefault(number, made).ids
            engine.check_idle()
            # From the one used last to the one used first.
            used = list(dict.fromkeys(reversed(order[: place + 1])))
            known = [engine._cache.cached_length(None, asked[one].ids) == len(asked[one].ids) - 1 for one in used]
            assert known == sorted(known, reverse=True)
            assert known[0]
    finally:
        engine.close()


# -- who goes away -----------------------------------------------------------------------------------------


class Stepped(Watched):
    """An engine whose passes wait until they may run."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.may = threading.Semaphore(0)
        self.batches: list[list[int]] = []
        """How long the prompts of each pass are."""

    def watch(self, batch: Sequence[DecodingSession]) -> None:
        self.batches.append([len(one.request.ids) for one in batch])
        with self.turn:
            self.turn.notify_all()
        assert self.may.acquire(timeout=60)

    def step(self) -> None:
        """Let one pass run, and wait until the next is about to."""
        count = len(self.batches)
        self.may.release()
        with self.turn:
            assert self.turn.wait_for(lambda: len(self.batches) > count, 60)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def joins(thread: threading.Thread) -> bool:
    """Whether a thread waits for another to end."""
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and any(one.name == "join" for one in traceback.extract_stack(frame))


@pytest.mark.parametrize("way", ["event", "listener", "stream", "stream with an event of its own"])
def test_an_abandoned_request_is_in_no_further_pass(fused: World, renderer: Renderer, way: str) -> None:
    engine = Stepped(fused.model(), fused.tokenizer, max_sessions=1)
    gone, received = threading.Event(), threading.Event()
    model = LocalModel(engine=engine, renderer=renderer, base="tiny", revision="0", temperature=1.0, max_tokens=900)

    def on_tokens(_: Sequence[int]) -> bool:
        received.set()
        return not (way == "listener" and gone.is_set())

    def run() -> None:
        if way in ("event", "listener"):
            engine.generate(
                Request(prompt(1, 30), NO_END, max_new=900, on_tokens=on_tokens), gone if way == "event" else None
            )
            return
        options = {} if way == "stream" else {"cancelled": threading.Event()}
        stream: Any = model.stream("Where is it?", seed=3, **options)
        next(stream)
        received.set()
        gone.wait(60)
        stream.close()

    first = threading.Thread(target=run)
    second = threading.Thread(target=engine.generate, args=[Request(prompt(2, 7), NO_END, max_new=1)])
    first.start()
    wait_until(lambda: bool(engine.batches))
    second.start()
    wait_until(lambda: engine.unfinished == 2)
    while not received.wait(0.05):
        engine.step()
    assert [7] not in engine.batches
    gone.set()
    if way not in ("event", "listener"):
        wait_until(lambda: joins(first))
    engine.step()
    assert engine.batches[-1] == [7]
    engine.may.release(9)
    first.join()
    second.join()
    engine.close()
    engine.check_idle()


def held() -> Counter[str]:
    """How many there are of what a session holds on to."""
    gc.collect()
    return Counter(
        type(one).__name__ for one in gc.get_objects() if type(one) in (DecodingSession, CacheEntry, KeyValues)
    )


def test_a_thousand_that_are_cancelled_leave_nothing_in_memory(fused: World) -> None:
    engine = fused.engine(max_sessions=4, cache_tokens=1000)
    before = held()
    process = psutil.Process()

    def cancel(seed: int) -> Generation:
        chance = random.Random(seed)
        cancelled, count = threading.Event(), chance.randrange(6)
        received: list[int] = []
        if count == 0:
            cancelled.set()

        def on_tokens(ids: Sequence[int]) -> bool:
            received.extend(ids)
            if len(received) >= count:
                cancelled.set()
            return True

        ids = (*prompt(chance.randrange(3), chance.randrange(60)), *prompt(seed, chance.randrange(10, 90)))
        return engine.generate(
            Request(
                ids,
                END,
                max_new=60,
                grammar=chance.choice(GRAMMARS[:3]),
                temperature=1.0,
                seed=seed,
                adapter=chance.choice([None, None, "red", "blue", "prompt"]),
                on_tokens=on_tokens,
            ),
            cancelled,
        )

    def used(seeds: range) -> int:
        with ThreadPoolExecutor(6) as pool:
            ends = Counter(one.finish_reason for one in pool.map(cancel, seeds))
        assert ends["cancelled"] > 0.9 * len(seeds)
        engine.check_idle()
        give_back_memory()
        return int(process.memory_info().rss)

    try:
        warm = used(range(300))
        assert used(range(300, 1300)) < 1.05 * warm
        kept = held() - before
        assert kept["DecodingSession"] <= 1  # The worker's last.
        assert kept["CacheEntry"] == kept["KeyValues"] == len(engine._cache._entries)
    finally:
        engine.close()


# -- a grammar that cannot go on ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short(parts: Any, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Of a tokenizer that has no token for most bytes."""
    return World("mistral", tmp_path_factory.mktemp("mistral"), parts.tokenizer(every_byte=False), parts)


@pytest.mark.parametrize("doom", ["/[üö]/", '"Where is üt?" /[ab]/', '("xü" | "yö")', '"ü" /[ab]/'])
def test_a_grammar_with_no_way_out_in_the_middle_fails_its_own_request_and_no_other(short: World, doom: str) -> None:
    engine = Watched(short.model(), short.tokenizer)
    grammars = [None, "start: /[ab]{30}/\n", 'start: /[ab]{20}/ "Where is it?" /[ab]{9}/\n']
    dooms = [f"start: /[ab]{{{size}}}/ {doom}\n" for size in (1, 3, 9)]
    asked = [
        Request(tuple(10 + id % 150 for id in prompt(seed, 20)), END, max_new=40, grammar=grammar)
        for seed, grammar in enumerate([*grammars, *dooms])
    ]
    together = threading.Barrier(len(asked))

    def ask(request: Request) -> Generation | GrammarError:
        together.wait()
        try:
            return engine.generate(request)
        except GrammarError as fault:
            return fault

    try:
        with ThreadPoolExecutor(len(asked)) as pool:
            for _ in range(2):  # The second time with guesses.
                made = list(pool.map(ask, asked))
                for request, one in zip(asked[:3], made, strict=False):
                    assert isinstance(one, Generation)
                    short.check(request, one)
                for one in made[3:]:
                    assert isinstance(one, GrammarError)
                    assert "<state>" not in str(one)
                engine.check_idle()
    finally:
        engine.close()
    assert engine.largest > 3
