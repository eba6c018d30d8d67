"""The engine generates what transformers generates, whatever else runs, and releases what is stopped."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import AdapterError, BusyError, GrammarError, LivenessError, ModelError, PromptError
from agent.llm.engine import scheduler as engine_module
from agent.llm.engine.batch import MAX_PASS_TOKENS, share_tokens
from agent.llm.engine.scheduler import Engine
from agent.llm.engine.session import Generation, Request
from agent.llm.prompt.render import Renderer
from agent.llm.prompt.step_grammar import StepShape, parse_step, step_grammar
from agent.llm.prompt.tool_spec import ToolSpec
from agent.registry.artifact import tensors_hash
from tests.tuner.tiny import save_base

MakeEngine = Callable[..., Engine]
NO_END = -1
"""No token at all, so that a generation has its full length."""


def prompt(seed: int, size: int) -> tuple[int, ...]:
    chance = random.Random(seed)
    return tuple(chance.randrange(10, 390) for _ in range(size))


def reference(model: Any, ids: Sequence[int], count: int) -> tuple[int, ...]:
    """Return the greedy ids of transformers itself."""
    import torch

    with torch.inference_mode():
        made = model.generate(
            torch.tensor([list(ids)]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=count,
            do_sample=False,
        )
    return tuple(made[0, len(ids) :].tolist())


def together(engine: Engine, requests: Sequence[Request]) -> list[Generation]:
    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(engine.generate, requests))


@pytest.fixture(scope="module")
def shared(tokenizer: Any, parts: Any) -> Any:
    """One engine, and its twin in transformers, for the tests that leave nothing behind but cache."""
    from types import SimpleNamespace

    engine = Engine(parts.model(tokenizer), tokenizer, cache_tokens=2000)
    yield SimpleNamespace(engine=engine, twin=parts.model(tokenizer))
    engine.close()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), size=st.integers(1, 60))
def test_greedy_ids_are_those_of_transformers(shared: Any, seed: int, size: int) -> None:
    ids = prompt(seed, size)
    made = shared.engine.generate(Request(ids, NO_END, max_new=12))
    assert made.ids == reference(shared.twin, ids, 12)
    assert (made.finish_reason, made.prompt, made.sampled, made.forced) == ("length", size, 12, 0)


def test_an_idle_worker_ends_and_the_next_request_starts_another(shared: Any) -> None:
    ids = prompt(1, 20)
    before = shared.engine.generate(Request(ids, NO_END, max_new=6))
    deadline = time.monotonic() + engine_module.IDLE_SECONDS + 10
    while any(thread.name == "ratchet-engine" and thread.is_alive() for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "the worker outlives its work"
        time.sleep(0.05)
    after = shared.engine.generate(Request(ids, NO_END, max_new=6))
    assert after.ids == before.ids
    assert after.cached == len(ids) - 1


def test_eight_that_run_together_say_what_each_says_alone(shared: Any) -> None:
    prompts = [prompt(seed, 5 + 17 * seed) for seed in range(8)]
    made = together(shared.engine, [Request(ids, NO_END, max_new=20) for ids in prompts])
    assert [one.ids for one in made] == [reference(shared.twin, ids, 20) for ids in prompts]


def test_a_prompt_longer_than_a_pass_is_read_in_pieces(make_engine: MakeEngine, shared: Any) -> None:
    engine = make_engine()
    ids = prompt(1, MAX_PASS_TOKENS + 200)
    others = [Request(prompt(seed, 30), NO_END, max_new=8) for seed in range(2, 5)]
    made = together(engine, [Request(ids, NO_END, max_new=8), *others])
    assert made[0].ids == reference(shared.twin, ids, 8)
    assert [one.ids for one in made[1:]] == [reference(shared.twin, one.ids, 8) for one in others]


def test_a_known_prefix_is_not_read_again_and_changes_nothing(make_engine: MakeEngine, shared: Any) -> None:
    engine = make_engine()
    first = prompt(1, 100)
    said = engine.generate(Request(first, NO_END, max_new=10)).ids
    grown = (*first, *said, *prompt(2, 20))
    cut = (*first[:60], *prompt(3, 20))
    for ids, cached in ((grown, 109), (cut, 60), (first, 99), (first[:40], 39)):
        made = engine.generate(Request(ids, NO_END, max_new=10))
        assert made.cached == cached
        assert made.ids == reference(shared.twin, ids, 10)


def test_of_equal_prompts_at_once_one_is_read_and_the_others_copy_it(make_engine: MakeEngine, shared: Any) -> None:
    engine = make_engine()
    stem = prompt(1, 700)
    asked = [(*stem, *prompt(seed, 10)) for seed in range(2, 8)]
    made = together(engine, [Request(ids, NO_END, max_new=6) for ids in asked])
    assert [one.ids for one in made] == [reference(shared.twin, ids, 6) for ids in asked]
    assert sum(one.prompt - one.cached for one in made) < 2 * len(stem)


def test_a_sliding_window_hides_what_transformers_hides(make_engine: MakeEngine, parts: Any, tokenizer: Any) -> None:
    changes = {"sliding_window": 24, "head_dim": 16}
    engine = make_engine("mistral", changes=changes)
    twin = parts.model(tokenizer, "mistral", **changes)
    for seed, size in ((1, 10), (2, 23), (3, 40), (4, 90)):
        ids = prompt(seed, size)
        assert engine.generate(Request(ids, NO_END, max_new=30)).ids == reference(twin, ids, 30)
    wide = reference(parts.model(tokenizer, "mistral", sliding_window=None, head_dim=16), prompt(4, 90), 30)
    assert wide != reference(twin, prompt(4, 90), 30), "the window made no difference; this shows nothing"


def test_a_seed_gives_the_same_again_and_another_seed_something_else(shared: Any) -> None:
    def say(seed: int, others: int = 0) -> tuple[int, ...]:
        request = Request(prompt(1, 20), NO_END, max_new=20, temperature=1.0, top_p=0.95, seed=seed)
        rest = [Request(prompt(9 + one, 33), NO_END, max_new=20) for one in range(others)]
        ids: tuple[int, ...] = together(shared.engine, [request, *rest])[0].ids
        return ids

    assert say(1) == say(1) == say(1, others=3)
    assert say(1) != say(2)


def test_a_small_top_p_leaves_only_the_likeliest(shared: Any) -> None:
    ids = prompt(5, 20)
    made = shared.engine.generate(Request(ids, NO_END, max_new=10, temperature=1.0, top_p=1e-6, seed=3))
    assert made.ids == reference(shared.twin, ids, 10)


def test_the_end_of_turn_stops_and_is_said(shared: Any) -> None:
    ids = prompt(6, 20)
    free = reference(shared.twin, ids, 10)
    made = shared.engine.generate(Request(ids, free[4], max_new=50))
    assert made.finish_reason == "stop"
    assert made.ids == free[: free.index(free[4]) + 1]


def test_on_tokens_receives_every_id_and_stops_by_returning_false(shared: Any) -> None:
    received: list[int] = []

    def on_tokens(ids: Sequence[int]) -> bool:
        received.extend(ids)
        return len(received) < 5

    made = shared.engine.generate(Request(prompt(7, 20), NO_END, max_new=50, on_tokens=on_tokens))
    assert made.finish_reason == "stop"
    assert tuple(received) == made.ids == reference(shared.twin, prompt(7, 20), 5)


def test_an_error_in_on_tokens_fails_its_own_request_only(shared: Any) -> None:
    def fall(_: Sequence[int]) -> bool:
        raise RuntimeError("the listener fell")

    with pytest.raises(RuntimeError, match="the listener fell"):
        shared.engine.generate(Request(prompt(8, 20), NO_END, on_tokens=fall))
    assert shared.engine.generate(Request(prompt(8, 20), NO_END, max_new=3)).finish_reason == "length"


def test_cancelling_ends_within_a_pass_and_frees_the_place(make_engine: MakeEngine) -> None:
    engine = make_engine(max_sessions=1)
    cancelled = threading.Event()
    received: list[int] = []

    def on_tokens(ids: Sequence[int]) -> bool:
        received.extend(ids)
        if len(received) == 3:
            cancelled.set()
        return True

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(
            engine.generate, Request(prompt(1, 20), NO_END, max_new=900, on_tokens=on_tokens), cancelled
        )
        second = pool.submit(engine.generate, Request(prompt(2, 20), NO_END, max_new=5))
        assert first.result(60).finish_reason == "cancelled"
        assert second.result(60).finish_reason == "length"
    assert len(first.result().ids) == 3


def test_a_request_cancelled_while_it_waits_never_runs(make_engine: MakeEngine) -> None:
    engine = make_engine(max_sessions=1)
    cancelled = threading.Event()
    cancelled.set()
    made = engine.generate(Request(prompt(1, 20), NO_END), cancelled)
    assert (made.finish_reason, made.ids) == ("cancelled", ())


def test_a_generation_whose_time_is_over_gives_back_what_it_said(shared: Any) -> None:
    ids = prompt(11, 20)

    def dawdle(_: Sequence[int]) -> bool:
        time.sleep(0.05)
        return True

    made = shared.engine.generate(Request(ids, NO_END, max_new=900, on_tokens=dawdle, max_seconds=0.3))
    assert made.finish_reason == "timeout"
    assert 0 < len(made.ids) < 20
    assert made.ids == reference(shared.twin, ids, len(made.ids))


def test_a_request_that_times_out_while_it_waits_never_runs(make_engine: MakeEngine) -> None:
    engine = make_engine(max_sessions=1)
    running, first_may_end = threading.Event(), threading.Event()

    def hold(_: Sequence[int]) -> bool:
        running.set()
        return first_may_end.wait(60)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(engine.generate, Request(prompt(1, 20), NO_END, max_new=2, on_tokens=hold))
        assert running.wait(60)
        second = pool.submit(engine.generate, Request(prompt(2, 20), NO_END, max_seconds=0.05))
        time.sleep(0.1)
        first_may_end.set()
        assert first.result(60).finish_reason == "length"
        assert (second.result(60).finish_reason, second.result().ids) == ("timeout", ())


def test_more_requests_than_may_wait_are_refused_and_the_others_end(make_engine: MakeEngine) -> None:
    engine = make_engine(max_sessions=1, max_waiting=1)
    running, may_end = threading.Event(), threading.Event()

    def hold(_: Sequence[int]) -> bool:
        running.set()
        return may_end.wait(60)

    with ThreadPoolExecutor(2) as pool:
        going = [pool.submit(engine.generate, Request(prompt(1, 20), NO_END, max_new=2, on_tokens=hold))]
        assert running.wait(60)
        going.append(pool.submit(engine.generate, Request(prompt(2, 20), NO_END, max_new=2)))
        while engine.unfinished < 2:
            time.sleep(0.01)
        with pytest.raises(BusyError, match=r"no more than 1 may wait for the 1 that run"):
            engine.generate(Request(prompt(3, 20), NO_END, max_new=1))
        may_end.set()
        assert [one.result(60).finish_reason for one in going] == ["length", "length"]
    assert engine.generate(Request(prompt(3, 20), NO_END, max_new=1)).finish_reason == "length"


@given(sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=40), data=st.data())
def test_a_pass_is_shared_so_that_no_one_waits_for_a_long_prompt(sizes: list[int], data: Any) -> None:
    since = [float(one) for one in data.draw(st.permutations(range(len(sizes))))]
    takes = share_tokens(sizes, since)
    assert all(1 <= take <= size for take, size in zip(takes, sizes, strict=True))
    assert sum(takes) == min(sum(sizes), MAX_PASS_TOKENS)
    reading = [index for index, size in enumerate(sizes) if size > 1]
    if reading:
        oldest = min(reading, key=lambda one: since[one])
        assert takes[oldest] >= min(sizes[oldest], MAX_PASS_TOKENS // 2)
        cut = [sizes[index] for index in reading if takes[index] < sizes[index] and index != oldest]
        whole = [sizes[index] for index in reading if takes[index] == sizes[index] and index != oldest]
        assert not cut or not whole or max(whole) <= min(cut)


def test_a_prompt_that_leaves_no_room_is_refused_with_what_to_do(shared: Any) -> None:
    with pytest.raises(PromptError, match=r"1023 tokens and the model reads 1024; shorten the task"):
        shared.engine.generate(Request(prompt(1, 1023), NO_END))


@pytest.mark.parametrize("ids", [(), (5, -1), (5, 400), (10**30,)])
def test_ids_that_the_model_has_not_are_refused_and_nobody_else_is_disturbed(shared: Any, ids: tuple[int, ...]) -> None:
    def say_no(_: Sequence[int]) -> bool:
        with pytest.raises(PromptError, match=r"the prompt (is empty|has id .*, and the model knows 0 to 399)"):
            shared.engine.generate(Request(ids, NO_END, max_new=2))
        return True

    made = shared.engine.generate(Request(prompt(1, 9), NO_END, max_new=2, on_tokens=say_no))
    assert made.ids == reference(shared.twin, prompt(1, 9), 2)


def test_a_generation_ends_where_the_context_does(make_engine: MakeEngine) -> None:
    made = make_engine().generate(Request(prompt(1, 1000), NO_END, max_new=500))
    assert (made.finish_reason, len(made.ids)) == ("length", 24)


def test_closing_cancels_running_requests_and_later_ones_raise(make_engine: MakeEngine) -> None:
    engine = make_engine()
    started = threading.Event()

    def on_tokens(_: Sequence[int]) -> bool:
        started.set()
        return True

    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(engine.generate, Request(prompt(1, 9), NO_END, max_new=1000, on_tokens=on_tokens))
        started.wait(60)
        engine.close()
        assert going.result(60).finish_reason == "cancelled"
    engine.close()
    with pytest.raises(ModelError, match="closed"):
        engine.generate(Request(prompt(1, 9), NO_END))


class FailingEvent(threading.Event):
    """An event whose caller broke it: asking it raises, outside of all that the engine answers for."""

    def is_set(self) -> bool:
        raise RuntimeError("the event is broken")


def test_an_unexpected_error_in_the_worker_ends_all_callers_with_it_and_the_engine_goes_on(
    make_engine: MakeEngine, shared: Any
) -> None:
    engine = make_engine(max_sessions=1)
    running, may_go_on = threading.Event(), threading.Event()

    def wait(_: Sequence[int]) -> bool:
        running.set()
        return may_go_on.wait(60)

    with ThreadPoolExecutor(3) as pool:
        requests = [pool.submit(engine.generate, Request(prompt(1, 20), NO_END, max_new=900, on_tokens=wait))]
        assert running.wait(60)
        requests.append(pool.submit(engine.generate, Request(prompt(2, 20), NO_END)))
        requests.append(pool.submit(engine.generate, Request(prompt(3, 20), NO_END), FailingEvent()))
        while engine.unfinished < 3:
            time.sleep(0.01)
        may_go_on.set()
        for request in requests:
            with pytest.raises(RuntimeError, match="the event is broken"):
                request.result(60)
    assert engine.unfinished == 0
    made = together(engine, [Request(prompt(seed, 20), NO_END, max_new=8) for seed in (1, 2)])
    assert [one.ids for one in made] == [reference(shared.twin, prompt(seed, 20), 8) for seed in (1, 2)]


# -- grammars ----------------------------------------------------------------------------------------------

TOOLS = (
    ToolSpec(
        "get_order",
        "Look",
        {
            "type": "object",
            "properties": {"order_id": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["order_id"],
        },
    ),
    ToolSpec("list_orders", "List", {"type": "object", "properties": {}}),
)


def test_under_a_grammar_even_random_weights_generate_a_step(shared: Any, renderer: Renderer) -> None:
    grammar = step_grammar(StepShape(TOOLS))
    for seed in range(6):
        request = Request(
            prompt(seed, 20), renderer.end_of_turn, max_new=900, grammar=grammar, temperature=1.5, seed=seed
        )
        made = shared.engine.generate(request)
        assert made.finish_reason == "stop"
        assert made.ids[-1] == renderer.end_of_turn
        assert len(made.ids) == made.forced + made.sampled
        step = parse_step(renderer.decode(made.ids))
        assert step.call.name in ("get_order", "list_orders")
        assert made.forced > 0


def test_what_the_grammar_forces_is_read_like_anything_else(shared: Any, renderer: Renderer) -> None:
    """A choice behind forced ids is the choice transformers makes behind the same ids."""
    import torch

    grammar = 'start: "The order was " /[a-z]/ "shipped on 9 May"\n'
    ids = prompt(3, 20)
    made = shared.engine.generate(Request(ids, renderer.end_of_turn, grammar=grammar))
    text = renderer.decode(made.ids)
    assert (text[:14], text[15:]) == ("The order was ", "shipped on 9 May")
    letters = {one: id for one in "abcdefghijklmnopqrstuvwxyz" for id in renderer.encode(one)}
    place = made.ids.index(letters[text[14]], len(renderer.encode("The order was")) - 1)
    with torch.inference_mode():
        scores = shared.twin(torch.tensor([[*ids, *made.ids[:place]]])).logits[0, -1]
    assert text[14] == max(letters, key=lambda one: float(scores[letters[one]]))


def test_the_end_of_turn_ends_a_grammar_whatever_the_tokenizer_takes_for_the_end(parts: Any) -> None:
    tokenizer = parts.tokenizer(end="<|endoftext|>")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    engine = Engine(parts.model(tokenizer), tokenizer)
    try:
        for seed in range(8):
            request = Request(
                prompt(seed, 9), end, max_new=60, grammar="start: /[ab]{1,6}/\n", temperature=1.0, seed=seed
            )
            made = engine.generate(request)
            assert made.finish_reason == "stop"
            assert made.ids[-1] == end
            assert set(tokenizer.decode(made.ids[:-1])) <= set("ab")
    finally:
        engine.close()


@pytest.mark.parametrize("grammar", ["this is no grammar", "start: /[a-/\n", "start: missing\n"])
def test_a_grammar_that_cannot_be_read_is_an_error_of_its_own(shared: Any, renderer: Renderer, grammar: str) -> None:
    with pytest.raises(GrammarError, match="cannot be used"):
        shared.engine.generate(Request(prompt(1, 9), renderer.end_of_turn, grammar=grammar))


def test_a_grammar_with_no_way_out_is_an_error_and_not_a_hang(shared: Any, renderer: Renderer) -> None:
    grammar = 'start: "The order was " DEAD\nDEAD: /[a-z]/ & /[0-9]/\n'
    with pytest.raises(
        GrammarError, match=r"admits nothing after 'The order was .*'.*check the pattern and the length"
    ):
        shared.engine.generate(Request(prompt(1, 9), renderer.end_of_turn, grammar=grammar))
    assert shared.engine.generate(Request(prompt(1, 9), NO_END, max_new=3)).finish_reason == "length"


@pytest.mark.parametrize("most", range(1, 8))
def test_what_a_grammar_forces_ends_at_the_most_that_may_be_said_in_the_middle_of_a_character_too(
    shared: Any, renderer: Renderer, most: int
) -> None:
    grammar = 'start: "订单🎉"\n'
    whole = renderer.encode("订单🎉")
    assert len(whole) == 10, "three bytes, three bytes and four, a token each"
    made = shared.engine.generate(Request(prompt(1, 9), renderer.end_of_turn, max_new=most, grammar=grammar))
    assert (made.finish_reason, made.ids) == ("length", whole[:most])


# -- adapters ----------------------------------------------------------------------------------------------


@pytest.fixture
def adapters(tmp_path: Path, parts: Any, tokenizer: Any) -> dict[str, Any]:
    """Two random adapters on different layers: key to the peft model that has it."""
    return {
        "red": parts.adapter(tmp_path / "red", tokenizer, seed=1),
        "blue": parts.adapter(tmp_path / "blue", tokenizer, seed=2, r=8, target_modules=["k_proj", "v_proj"]),
    }


def sealed_hash(folder: Path) -> str:
    return tensors_hash(folder / "adapter_model.safetensors")


def test_adapters_beside_each_other_each_give_what_peft_gives_and_the_base_stays_the_base(
    make_engine: MakeEngine, adapters: dict[str, Any], tmp_path: Path, shared: Any
) -> None:
    engine = make_engine()
    ids = prompt(1, 40)
    wanted = {key: reference(model, ids, 16) for key, model in adapters.items()}
    wanted_base = reference(shared.twin, ids, 16)
    assert len({*wanted.values(), wanted_base}) == 3, "the adapters make no difference; this shows nothing"

    def say(key: str | None) -> tuple[int, ...]:
        return engine.generate(Request(ids, NO_END, max_new=16, adapter=key)).ids

    assert say(None) == wanted_base
    for key in adapters:
        engine.load_adapter(key, tmp_path / key, tensors_sha256=sealed_hash(tmp_path / key))
        assert engine.adapters.hash(key) == engine.adapters.live_hash(key) == sealed_hash(tmp_path / key)
        assert say(key) == wanted[key]
        assert say(None) == wanted_base
    mixed = together(engine, [Request(ids, NO_END, max_new=16, adapter=key) for key in ("red", None, "blue", "red")])
    assert [one.ids for one in mixed] == [wanted["red"], wanted_base, wanted["blue"], wanted["red"]]
    engine.unload_adapter("red")
    assert (say("blue"), say(None)) == (wanted["blue"], wanted_base)
    with pytest.raises(AdapterError, match="'red' is not loaded"):
        say("red")
    engine.unload_adapter("blue")
    assert say(None) == wanted_base
    engine.load_adapter("blue", tmp_path / "blue")
    assert say("blue") == wanted["blue"]


def test_what_was_read_under_one_adapter_never_serves_another(
    make_engine: MakeEngine, adapters: dict[str, Any], tmp_path: Path
) -> None:
    engine = make_engine()
    ids = prompt(1, 60)
    for key in adapters:
        engine.load_adapter(key, tmp_path / key)
    keys = (None, "red", "blue")
    assert [engine.generate(Request(ids, NO_END, max_new=4, adapter=key)).cached for key in keys] == [0, 0, 0]
    assert [engine.generate(Request(ids, NO_END, max_new=4, adapter=key)).cached for key in keys] == [59] * 3
    engine.unload_adapter("red")
    engine.load_adapter("red", tmp_path / "red")
    assert engine.generate(Request(ids, NO_END, max_new=4, adapter="red")).cached == 0


def test_a_generation_goes_on_as_it_began_while_another_adapter_is_loaded(
    make_engine: MakeEngine, adapters: dict[str, Any], tmp_path: Path
) -> None:
    engine = make_engine()
    engine.load_adapter("red", tmp_path / "red")
    ids, half, loaded = prompt(1, 40), threading.Event(), threading.Event()

    def on_tokens(_: Sequence[int]) -> bool:
        half.set()
        return True

    with ThreadPoolExecutor(2) as pool:
        request = Request(ids, NO_END, max_new=200, adapter="red", on_tokens=on_tokens)
        going = pool.submit(engine.generate, request)
        half.wait(60)
        pool.submit(engine.load_adapter, "blue", tmp_path / "blue").result(60)
        loaded.set()
        blue = engine.generate(Request(ids, NO_END, max_new=8, adapter="blue"))
        assert going.result(60).ids == reference(adapters["red"], ids, 200)
    assert blue.ids == reference(adapters["blue"], ids, 8)


def test_other_tensors_than_were_trained_are_refused_and_leave_nothing_behind(
    make_engine: MakeEngine, adapters: dict[str, Any], tmp_path: Path, shared: Any
) -> None:
    engine = make_engine()
    with pytest.raises(LivenessError, match=r"in memory, .* expected"):
        engine.load_adapter("red", tmp_path / "red", tensors_sha256=sealed_hash(tmp_path / "blue"))
    assert "red" not in engine.adapters
    assert engine.generate(Request(prompt(1, 9), NO_END, max_new=5)).ids == reference(shared.twin, prompt(1, 9), 5)
    engine.load_adapter("red", tmp_path / "red", tensors_sha256=sealed_hash(tmp_path / "red"))
    with pytest.raises(LivenessError):
        engine.load_adapter("red", tmp_path / "red", tensors_sha256="0" * 64)
    made = engine.generate(Request(prompt(1, 9), NO_END, max_new=5, adapter="red"))
    assert made.ids == reference(adapters["red"], prompt(1, 9), 5)


def test_an_adapter_of_another_base_is_refused(make_engine: MakeEngine, parts: Any, tmp_path: Path) -> None:
    parts.adapter(tmp_path / "red", parts.tokenizer(), seed=1)
    engine = make_engine(changes={"hidden_size": 32})
    with pytest.raises(AdapterError, match="does not fit this base"):
        engine.load_adapter("red", tmp_path / "red")
    with pytest.raises(AdapterError, match="does not fit this base"):
        engine.load_adapter("red", tmp_path / "red")
    assert engine.generate(Request(prompt(1, 9), NO_END, max_new=3)).finish_reason == "length"


def test_an_adapter_that_lacks_tensors_is_refused(
    make_engine: MakeEngine, adapters: dict[str, Any], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "red" / "adapter_model.safetensors")
    tensors.pop(min(tensors))
    save_file(tensors, tmp_path / "red" / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="is only in the file"):
        make_engine().load_adapter("red", tmp_path / "red")


def test_an_adapter_that_reaches_beyond_lora_layers_is_refused(
    make_engine: MakeEngine, parts: Any, tokenizer: Any, tmp_path: Path
) -> None:
    parts.adapter(tmp_path / "head", tokenizer, seed=1, modules_to_save=["lm_head"])
    with pytest.raises(AdapterError, match="modules_to_save"):
        make_engine().load_adapter("head", tmp_path / "head")


# -- soft prompts and fully tuned weights --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["prompt", "prefix", "full"])
def test_adapters_of_other_kinds_give_what_peft_gives(
    make_engine: MakeEngine, adapters: dict[str, Any], parts: Any, tokenizer: Any, tmp_path: Path, kind: str
) -> None:
    twins = {
        None: parts.model(tokenizer),
        "red": adapters["red"],
        kind: parts.other(tmp_path / kind, tokenizer, kind),
    }
    asked = [(key, prompt(1, size)) for size in (90, 50) for key in twins]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PEFT says that virtual tokens place the others anew.
        wanted = [reference(twins[key], ids, 12) for key, ids in asked]
    assert len(set(wanted)) == len(wanted), "the adapters make no difference; this shows nothing"
    engine = make_engine()
    engine.load_adapter("red", tmp_path / "red")
    engine.load_adapter(kind, tmp_path / kind, tensors_sha256=sealed_hash(tmp_path / kind))
    requests = [Request(ids, NO_END, max_new=12, adapter=key) for key, ids in asked]
    for _ in range(2):  # The second time from what was read before.
        assert [one.ids for one in together(engine, requests)] == wanted
    engine.unload_adapter(kind)
    assert engine.generate(requests[0]).ids == wanted[0]
    engine.load_adapter(kind, tmp_path / kind)
    assert [engine.generate(one).ids for one in requests] == wanted


def test_virtual_tokens_of_another_base_are_refused(
    make_engine: MakeEngine, parts: Any, tokenizer: Any, tmp_path: Path
) -> None:
    parts.other(tmp_path / "prefix", tokenizer, "prefix")
    engine = make_engine(changes={"num_hidden_layers": 2})
    with pytest.raises(AdapterError, match=r"prompt_embeddings have shape \(9, 192\); this base needs \[N, 128\]"):
        engine.load_adapter("prefix", tmp_path / "prefix")
    assert "prefix" not in engine.adapters


# -- bfloat16 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 16, 64])
def test_in_bfloat16_cached_attention_rounds_no_worse_than_that_of_transformers(
    parts: Any, tokenizer: Any, piece: int
) -> None:
    import torch

    from agent.llm.engine.attention import CachedLayout, use_ragged_attention
    from agent.llm.engine.kv_cache import KeyValues, Slots

    ids = torch.tensor(prompt(1, 160))
    model, slots = parts.model(tokenizer).to(torch.bfloat16), Slots(3, 2)
    with torch.inference_mode():
        exact = parts.model(tokenizer)(ids[None]).logits[0]
        rounded = model(ids[None]).logits[0].float()
        use_ragged_attention(model)
        first, twin = KeyValues(slots), None
        logits = []
        for start in range(0, len(ids), piece):
            # From the middle on behind a prefix that two share.
            if start >= 80 and twin is None:
                twin, first = first, first.copy(start)
            slots.assign(first)
            layout = CachedLayout(slots, [first], [len(ids[start : start + piece])], ids.device)
            places = torch.arange(start, min(start + piece, len(ids)))
            made = model(input_ids=ids[None, places], position_ids=places[None], use_cache=False, layout=layout)
            logits.append(made.logits[0].float())
            layout.commit()
    assert first.shared is not None
    assert float((torch.cat(logits) - exact).norm()) < 1.1 * float((rounded - exact).norm())


def test_a_base_in_bfloat16_runs_under_adapters_of_every_kind(parts: Any, tokenizer: Any, tmp_path: Path) -> None:
    import torch

    parts.adapter(tmp_path / "lora", tokenizer, seed=1)
    for kind in ("prompt", "prefix", "full"):
        parts.other(tmp_path / kind, tokenizer, kind)
    engine = Engine(parts.model(tokenizer).to(torch.bfloat16), tokenizer)
    try:
        said = [engine.generate(Request(prompt(1, 40), NO_END, max_new=6)).ids]
        for kind in ("lora", "prompt", "prefix", "full"):
            engine.load_adapter(kind, tmp_path / kind, tensors_sha256=sealed_hash(tmp_path / kind))
            said.append(engine.generate(Request(prompt(1, 40), NO_END, max_new=6, adapter=kind)).ids)
        assert len(set(said)) == 5
        assert engine.generate(Request(prompt(1, 40), NO_END, max_new=6)).ids == said[0]
    finally:
        engine.close()


LEFT_OPEN = """
import atexit, sys, threading
from pathlib import Path
# What is registered first is called last.
atexit.register(lambda: print([one.name for one in threading.enumerate()]))
from agent.llm.chat_model import LocalModel
from agent.llm.engine.session import Request
model = LocalModel.load(sys.argv[1], Path(sys.argv[1]).parent)
model.engine.generate(Request((5, 6, 7), -1, max_new=3))
print([one.name for one in threading.enumerate()])
"""


def test_what_was_left_open_is_closed_before_the_process_ends(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", ["some words to make a tokenizer of"])
    done = subprocess.run(
        [sys.executable, "-c", LEFT_OPEN, str(base)],
        cwd=Path(__file__).parents[4],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.splitlines()[-2:]
    assert "ratchet-engine" in before
    assert "ratchet-engine" not in after
