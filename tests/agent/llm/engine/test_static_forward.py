"""Static passes say what transformers says, leave other sessions alone, and could be captured.

The capture itself needs a GPU, which no test has. Run here are the same passes called again in place of replayed; a
double of CUDA's graphs that does the work at capture and from then on only what was recorded, on the same memory; and
a pass on a device where whatever asks for a value, or takes one from another device, is an error.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from agent.errors import AdapterError
from agent.llm.engine.attention import CachedLayout, use_ragged_attention
from agent.llm.engine.cuda_graphs import PlainCalls
from agent.llm.engine.kv_cache import KeyValues, Slots
from agent.llm.engine.loaded_adapters import LoadedAdapters
from agent.llm.engine.scheduler import Engine
from agent.llm.engine.session import Request
from agent.llm.engine.static_forward import Grid, StaticPasses, grid_for
from agent.llm.prompt.render import Renderer
from agent.llm.prompt.step_grammar import StepShape, step_grammar
from tests.agent.llm.conftest import make_model
from tests.agent.llm.engine.test_scheduler import TOOLS, prompt, reference, together

MakeEngine = Callable[..., Engine]
NO_END = -1
LAYERS = 3


class Recorded:
    """A `PassRunner` that, as a CUDA graph does, repeats the operations of the capture and runs no Python again."""

    def __init__(self) -> None:
        self.prepared = 0
        self.forgotten = 0

    def prepare(self, work: Callable[[], None]) -> Callable[[], None]:
        self.prepared += 1
        tape = _Tape()
        with tape:
            work()
        return tape.replay

    def forget(self) -> None:
        self.forgotten += 1


class _Tape(TorchDispatchMode):
    """Notes each operation with its very tensors; replaying writes results into the tensors of the first time."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        assert name not in HOST, f"{name} asks for values or takes them from the host; a capture would fail"
        made = function(*args, **(kwargs or {}))
        # As a graph does, it keeps to the memory that a parameter had, whatever the parameter is given later.
        self.steps.append((function, *tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs or {}, made))))
        return made

    def replay(self) -> None:
        for function, args, kwargs, made in self.steps:
            again = function(*args, **kwargs)
            for old, new in zip(_tensors(made), _tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


HOST = {"_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "item", "equal", "is_nonzero"}


def _tensors(made: Any) -> list[torch.Tensor]:
    every = made if isinstance(made, tuple | list) else [made]
    return [one for one in every if isinstance(one, torch.Tensor)]


class Failing:
    """A `PassRunner` that cannot capture."""

    def prepare(self, work: Callable[[], None]) -> Callable[[], None]:
        work()
        raise RuntimeError("operation not permitted when stream is capturing")

    def forget(self) -> None:
        return None


@pytest.fixture(params=[PlainCalls, Recorded])
def runner(request: Any) -> Any:
    """How engines of the test repeat static passes."""
    return request.param()


@pytest.fixture
def twin(tokenizer: Any, parts: Any) -> Any:
    return parts.model(tokenizer)


def static_passes(engine: Engine) -> StaticPasses:
    assert engine.static_passes is not None
    return engine.static_passes


# -- which shape ---------------------------------------------------------------------------------------------


def test_shapes_are_rounded_up_to_a_few() -> None:
    assert grid_for([1], 30, rows=16, room=1024) == Grid(1, 1, 256)
    assert grid_for([1, 3, 1], 256, rows=16, room=1024) == Grid(4, 4, 256)
    assert grid_for([13] * 9, 257, rows=16, room=1024) == Grid(16, 16, 512)
    assert grid_for([1] * 3, 30, rows=3, room=256) == Grid(3, 1, 256)


def test_long_pieces_and_very_many_tokens_have_no_grid() -> None:
    assert grid_for([1, 17], 30, rows=16, room=1024) is None
    assert grid_for([1] * 400, 30, rows=512, room=1024) == Grid(512, 1, 256)
    assert grid_for([2] * 400, 30, rows=512, room=1024) is None


@given(
    counts=st.lists(st.integers(1, 16), min_size=1, max_size=16),
    longest=st.integers(16, 1023),
    rows=st.integers(16, 40),
)
def test_a_grid_holds_what_it_is_made_for(counts: list[int], longest: int, rows: int) -> None:
    grid = grid_for(counts, longest, rows=rows, room=1024)
    assert grid is not None
    assert len(counts) <= grid.sessions <= rows
    assert max(counts) <= grid.width
    assert longest <= grid.length <= 1024


# -- what it says ----------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6))
def test_greedy_ids_are_those_of_transformers_whoever_runs_and_whatever_is_guessed(shared: Any, seed: int) -> None:
    chance = random.Random(seed)
    asked = []
    for _ in range(chance.randrange(1, 6)):
        pattern = prompt(chance.randrange(10**6), chance.randrange(2, 9))
        asked.append((pattern * 50)[: chance.choice((5, 40, 250))])
    before = static_passes(shared.engine).passes
    requests = [Request(ids, NO_END, max_new=24) for ids in asked]
    for made, ids in zip(together(shared.engine, requests), asked, strict=True):
        assert made.ids == reference(shared.twin, ids, 24)
        shared.drafted += made.drafted
    assert static_passes(shared.engine).passes > before


def test_some_of_those_drafts_were_accepted_on_wide_grids(shared: Any) -> None:
    assert shared.drafted > 0
    assert {grid.width for _, _, grid in static_passes(shared.engine)._prepared} >= {1, 16}


@pytest.fixture(scope="module")
def shared(tokenizer: Any, parts: Any) -> Any:
    engine = Engine(parts.model(tokenizer), tokenizer, cache_tokens=2000, max_sessions=6, static=PlainCalls())
    yield SimpleNamespace(engine=engine, twin=parts.model(tokenizer), drafted=0)
    engine.close()


def test_sessions_that_begin_alike_and_outgrow_their_slots_say_what_transformers_says(
    make_engine: MakeEngine, twin: Any, runner: Any
) -> None:
    engine = make_engine(static=runner, max_sessions=4)
    start = prompt(1, 200)
    asked = [(*start, *prompt(10 + number, 20 + 9 * number)) for number in range(6)]
    for length in (4, 90):
        made = together(engine, [Request(ids, NO_END, max_new=length) for ids in asked])
        assert [one.ids for one in made] == [reference(twin, ids, length) for ids in asked]
        assert max(one.cached for one in made) >= 200
    assert 512 in {grid.length for _, _, grid in static_passes(engine)._prepared}
    assert all(entry.values.shared is None for entry in engine._cache._entries)


def test_every_kind_of_adapter_gives_what_peft_gives_in_static_passes(
    make_engine: MakeEngine, parts: Any, tokenizer: Any, tmp_path: Path, runner: Any
) -> None:
    twins = {None: parts.model(tokenizer), "red": parts.adapter(tmp_path / "red", tokenizer, seed=1)}
    twins["blue"] = parts.adapter(tmp_path / "blue", tokenizer, seed=2, target_modules="all-linear", use_dora=True)
    for kind in ("prefix", "full"):
        twins[kind] = parts.other(tmp_path / kind, tokenizer, kind)
    engine = make_engine(static=runner)
    for key in twins:
        if key is not None:
            engine.load_adapter(key, tmp_path / key)
    asked = [(key, prompt(1, size)) for size in (60, 10) for key in twins]
    wanted = [reference(twins[key], ids, 12) for key, ids in asked]
    assert len(set(wanted)) == len(wanted)
    for _ in range(2):
        made = together(engine, [Request(ids, NO_END, max_new=12, adapter=key) for key, ids in asked])
        assert [one.ids for one in made] == wanted
    assert {key for key, _, _ in static_passes(engine)._prepared} == set(twins)


def test_another_adapter_under_the_same_key_gets_passes_of_its_own(
    make_engine: MakeEngine, parts: Any, tokenizer: Any, tmp_path: Path, runner: Any
) -> None:
    twins = [parts.adapter(tmp_path / str(seed), tokenizer, seed=seed) for seed in (1, 2)]
    engine = make_engine(static=runner)
    ids = prompt(1, 40)
    for seed in (1, 2):
        engine.load_adapter("red", tmp_path / str(seed))
        made = engine.generate(Request(ids, NO_END, max_new=12, adapter="red"))
        assert made.ids == reference(twins[seed - 1], ids, 12)
        engine.unload_adapter("red")
    with pytest.raises(AdapterError, match="'red' is not loaded"):
        engine.generate(Request(prompt(1, 5), NO_END, adapter="red"))
    engine.generate(Request(prompt(2, 300), NO_END, max_new=4))
    assert {key for key, _, _ in static_passes(engine)._prepared} == {None}


def test_a_seed_generates_the_same_in_static_passes(make_engine: MakeEngine, renderer: Renderer, runner: Any) -> None:
    grammar = step_grammar(StepShape(TOOLS))
    requests = [
        Request(prompt(seed, 20), renderer.end_of_turn, max_new=400, grammar=grammar, temperature=1.0, seed=seed)
        for seed in range(4)
    ]
    plain, engine = make_engine(), make_engine(static=runner)
    assert [one.ids for one in together(engine, requests)] == [plain.generate(one).ids for one in requests]
    assert static_passes(engine).passes > 0


# -- fallbacks -------------------------------------------------------------------------------------------------


def test_past_a_sliding_window_passes_are_plain(make_engine: MakeEngine, parts: Any, tokenizer: Any) -> None:
    changes = {"sliding_window": 48}
    engine, twin = (
        make_engine("mistral", changes=changes, static=PlainCalls()),
        parts.model(tokenizer, "mistral", **changes),
    )
    for size, some in ((20, True), (90, False)):
        before = static_passes(engine).passes
        ids = prompt(size, size)
        assert engine.generate(Request(ids, NO_END, max_new=40)).ids == reference(twin, ids, 40)
        assert (static_passes(engine).passes > before) == some


def test_where_a_pass_cannot_be_captured_plain_ones_go_on_and_it_is_said_once(
    make_engine: MakeEngine, twin: Any, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(static=Failing())
    with caplog.at_level(logging.WARNING):
        for seed in (1, 2):
            ids = prompt(seed, 40)
            assert engine.generate(Request(ids, NO_END, max_new=12)).ids == reference(twin, ids, 12)
    assert [one.getMessage() for one in caplog.records] == [
        "decoding goes on in plain passes, which are slower; a static one failed: "
        "operation not permitted when stream is capturing"
    ]
    assert static_passes(engine).passes == 0


def test_static_passes_are_off_by_default(make_engine: MakeEngine) -> None:
    assert make_engine().static_passes is None


# -- the passes themselves -------------------------------------------------------------------------------------


def bare(model: Any, runner: Any, **options: Any) -> Any:
    """A model with its slots and static passes, without an engine."""
    use_ragged_attention(model)
    slots = Slots(LAYERS, 5, static=True)
    return SimpleNamespace(
        model=model, slots=slots, passes=StaticPasses(model, LoadedAdapters(model), slots, runner, **options)
    )


def read(made: Any, sequence: KeyValues, ids: Sequence[int]) -> torch.Tensor:
    """A plain pass; the logits behind each id."""
    with torch.inference_mode():
        made.slots.assign(sequence)
        layout = CachedLayout(made.slots, [sequence], [len(ids)], made.model.device)
        places = torch.arange(sequence.length, sequence.length + len(ids))[None]
        logits = made.model(
            input_ids=torch.tensor([list(ids)]), position_ids=places, use_cache=False, layout=layout
        ).logits[0]
        layout.commit()
    return logits.log_softmax(-1)


@pytest.mark.parametrize("make_runner", [PlainCalls, Recorded])
@pytest.mark.parametrize("counts", [[1], [1, 1], [3, 1, 16], [5, 4, 3, 2, 1]])
def test_log_probabilities_are_those_of_a_plain_pass(
    tokenizer: Any, make_runner: Callable[[], Any], counts: list[int]
) -> None:
    made = bare(make_model(tokenizer), make_runner())
    pairs = []
    for number in range(5):
        pair = KeyValues(made.slots), KeyValues(made.slots)
        read(made, pair[0], prompt(number, 20 + 60 * number))
        with torch.inference_mode():
            pairs.append((pair[0], pair[0].copy(pair[0].length)))
        made.slots.release(pair[0])
    chosen = random.Random(len(counts)).sample(pairs, len(counts))
    for turn in range(3):
        new = [prompt(100 * turn + place, count) for place, count in enumerate(counts)]
        plain = []
        for (one, _), ids in zip(chosen, new, strict=True):
            plain.append(read(made, one, ids))
            made.slots.release(one)
        for _, twin in chosen:
            with torch.inference_mode():
                made.slots.assign(twin)
        logits = made.passes.run(
            None, [twin for _, twin in chosen], counts, [id for ids in new for id in ids], range(sum(counts))
        )
        for _, twin in chosen:
            made.slots.release(twin)
        torch.testing.assert_close(logits.log_softmax(-1), torch.cat(plain), rtol=0, atol=1e-4)
    assert made.passes.passes == 3


def test_cells_without_a_token_write_where_nobody_reads(tokenizer: Any) -> None:
    made = bare(make_model(tokenizer), PlainCalls())
    sequences = [KeyValues(made.slots) for _ in range(5)]
    for number, one in enumerate(sequences):
        read(made, one, prompt(number, 255 if number == 2 else 30))  # A slot of 256 columns then has one left.
    with torch.inference_mode():
        before = [[pair[0].clone() for pair in map(one.whole, range(LAYERS))] for one in sequences]
        for those in ([0], [4], [0, 1, 3], [0, 1, 3, 4]):
            running = [sequences[place] for place in those]
            assert made.passes.run(None, running, [3] * len(those), list(prompt(9, 3 * len(those))), [0]) is not None
        for one, layers in zip(sequences, before, strict=True):
            for layer, keys in enumerate(layers):
                assert torch.equal(one.whole(layer)[0][:, : keys.shape[1]], keys)


def test_what_was_prepared_is_dropped_when_the_slots_move(tokenizer: Any) -> None:
    runner = Recorded()
    made = bare(make_model(tokenizer), runner)
    first = KeyValues(made.slots)
    read(made, first, prompt(1, 250))

    def step(*sequences: KeyValues) -> int:
        """How many passes were prepared for it."""
        before = runner.prepared
        count = len(sequences)
        assert made.passes.run(None, sequences, [1] * count, list(prompt(count, count)), [0]) is not None
        return runner.prepared - before

    assert [step(first) for _ in range(4)] == [1, 0, 0, 0]
    dropped = runner.forgotten
    assert [step(first) for _ in range(3)] == [0, 1, 1], "256 do not fit beside the scratch column"
    assert runner.forgotten > dropped
    second = KeyValues(made.slots)
    read(made, second, prompt(2, 30))
    assert step(first) == 1
    assert step(first, second) == 1
    assert made.slots.rows == 2


def test_the_passes_kept_are_bounded(tokenizer: Any) -> None:
    runner = Recorded()
    made = bare(make_model(tokenizer), runner, max_prepared=2)
    one = KeyValues(made.slots)
    read(made, one, prompt(1, 30))
    for count in (1, 2, 1, 7, 1, 2):
        assert made.passes.run(None, [one], [count], list(prompt(count, count)), [0]) is not None
    assert runner.prepared == 4
    assert len(made.passes._prepared) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_a_device_without_values_a_pass_asks_for_none_and_stays_there(tokenizer: Any, dtype: Any) -> None:
    runner = _OnMeta()
    made = bare(make_model(tokenizer).to("meta", dtype), runner)
    sequences = [KeyValues(made.slots) for _ in range(3)]
    with torch.inference_mode():
        for number, one in enumerate(sequences):
            made.slots.assign(one)
            for layer in range(LAYERS):
                made.slots.fit(layer, torch.zeros(2, 30, 16, dtype=dtype, device="meta"))
            one.length = 30
            counts = [1 + number] * (number + 1)
            logits = made.passes.run(None, sequences[: number + 1], counts, [1] * sum(counts), range(sum(counts)))
            assert (logits.device.type, logits.dtype, len(logits)) == ("meta", torch.float32, sum(counts))
    assert runner.prepared == 3


class _OnMeta:
    """A `PassRunner` that sees to it that the work stays on torch's device for shapes alone."""

    def __init__(self) -> None:
        self.prepared = 0

    def prepare(self, work: Callable[[], None]) -> Callable[[], None]:
        with _Tape() as tape:
            work()
        assert {one.device.type for *_, made in tape.steps for one in _tensors(made)} == {"meta"}
        self.prepared += 1
        return work

    def forget(self) -> None:
        return None
