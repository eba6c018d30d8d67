"""Cached prefixes are found again, used by one session at a time, and dropped when there is no room."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import ModelError
from agent.llm.engine.kv_cache import SHARED_UNIT, Slots
from agent.llm.engine.prefix_cache import MIN_COPIED_TOKENS, CacheEntry, PrefixCache

LAYERS = 2
SLOTS = 3


def ids(size: int, start: int = 0) -> list[int]:
    return list(range(start, start + size))


def new_cache(max_tokens: int = 1000) -> PrefixCache:
    return PrefixCache(Slots(LAYERS, SLOTS), max_tokens=max_tokens)


def read(entry: CacheEntry, new: list[int]) -> None:
    """As the engine does: keys and values that tell which id they are of."""
    values = entry.values
    marks = torch.tensor(new, dtype=torch.float32).reshape(1, -1, 1).expand(1, -1, 4)
    assert values.slot is not None
    rows = torch.full((len(new),), values.slot)
    columns = torch.arange(values.own_length, values.own_length + len(new))
    values._slots.reserve(values.own_length + len(new))
    for layer in range(LAYERS):
        values._slots.write(layer, rows, columns, marks, -marks)
    values.length += len(new)
    entry.ids += new


def held(entry: CacheEntry) -> list[int]:
    """The ids whose keys are in the entry's first layer."""
    keys, values = entry.values.whole(0)
    assert torch.equal(keys, -values)
    return [int(one) for one in keys[0, :, 0]]


def filled(cache: PrefixCache, wanted: list[int], adapter: str | None = None) -> CacheEntry:
    """Read a prompt and give it back."""
    entry = cache.acquire(adapter, wanted)
    read(entry, wanted[entry.values.length :])
    cache.release(entry)
    return entry


def test_a_prompt_is_cached_without_its_last_id() -> None:
    cache = new_cache()
    filled(cache, ids(40))
    assert cache.cached_length(None, ids(40)) == 39
    assert cache.cached_length(None, ids(60)) == 40
    assert cache.cached_length(None, [*ids(25), 99, 98]) == 25
    assert cache.cached_length(None, ids(40, start=7)) == 0


def test_a_prompt_that_goes_on_takes_the_entry_over() -> None:
    cache = new_cache()
    first = filled(cache, ids(40))
    again = cache.acquire(None, ids(60))
    assert again is first
    read(again, ids(20, start=40))
    cache.release(again)
    assert (held(again), cache.tokens) == (ids(60), 60)


def test_a_prompt_that_diverges_gets_a_copy_of_the_common_prefix() -> None:
    cache = new_cache()
    first = filled(cache, ids(40))
    other = cache.acquire(None, [*ids(25), 99, 98])
    assert other is not first
    assert held(other) == ids(25)
    read(other, [99, 98])
    cache.release(other)
    assert held(first) == ids(40)
    assert cache.cached_length(None, [*ids(25), 99, 98, 97]) == 27


def test_a_busy_entry_is_copied() -> None:
    cache = new_cache()
    filled(cache, ids(40))
    busy = cache.acquire(None, ids(60))
    copy = cache.acquire(None, ids(50))
    assert copy is not busy
    read(busy, [77])
    read(copy, ids(10, start=40))
    assert (held(busy), held(copy)) == ([*ids(40), 77], ids(50))


@settings(max_examples=60, deadline=None)
@given(
    acts=st.lists(
        st.tuples(
            st.sampled_from(["take", "take", "read", "read on a guess", "give back"]),
            st.integers(0, 2),
            st.integers(1, 300),
            st.integers(1, 40),
        ),
        min_size=10,
        max_size=60,
    ),
    max_tokens=st.sampled_from([0, 200, 600, 2000]),
)
def test_whoever_takes_and_gives_back_what_is_kept_is_what_was_read_and_counts_as_what_it_fills(
    acts: list[tuple[str, int, int, int]], max_tokens: int
) -> None:
    cache = new_cache(max_tokens)
    busy: list[CacheEntry] = []
    fresh = 10_000
    for act, which, size, more in acts:
        if act == "take" and len(busy) < SLOTS:
            wanted = [*ids(size, start=1000 * which), *ids(more, start=fresh)]
            busy.append(cache.acquire(None, wanted))
            assert busy[-1].ids == wanted[: busy[-1].values.length]
            read(busy[-1], wanted[busy[-1].values.length :])
        elif act != "take" and busy:
            entry = busy[which % len(busy)]
            if act == "give back":
                busy.remove(entry)
                cache.release(entry)
                assert cache.tokens <= max_tokens + in_memory(busy)
            else:
                read(entry, ids(more, start=fresh))
            if act == "read on a guess":
                entry.shorten(more)
        fresh += more
        assert all(held(one) == one.ids for one in cache._entries)
        assert cache.tokens == in_memory(cache._entries)


def in_memory(entries: list[CacheEntry]) -> int:
    """Positions for which there is memory: of each one's own part, and of what the shared prefixes lie in."""
    kept = [one.values.shared.pairs[0][0].untyped_storage() for one in entries if one.values.shared]
    sizes = {one.data_ptr(): one.nbytes() // (4 * 4) for one in kept}
    return sum(one.values.own_length for one in entries) + sum(sizes.values())


def test_a_short_prefix_is_not_copied() -> None:
    cache = new_cache()
    filled(cache, ids(40))
    assert cache.acquire(None, [*ids(MIN_COPIED_TOKENS - 1), 99, 98]).values.length == 0
    assert cache.acquire(None, [*ids(MIN_COPIED_TOKENS), 99, 98]).values.length == MIN_COPIED_TOKENS


def test_the_least_recently_used_idle_entry_is_dropped_first() -> None:
    cache = new_cache(100)
    filled(cache, ids(40, start=1000))
    filled(cache, ids(40, start=2000))
    filled(cache, ids(41, start=1000))  # used again, so now the younger one
    busy = cache.acquire(None, ids(50, start=3000))
    read(busy, ids(50, start=3000))
    filled(cache, ids(30, start=4000))
    assert cache.cached_length(None, ids(60, start=2000)) == 0
    assert cache.cached_length(None, ids(60, start=1000)) == 0
    assert cache.cached_length(None, ids(60, start=3000)) == 50
    assert cache.cached_length(None, ids(60, start=4000)) == 30
    assert cache.tokens <= 100


def test_without_room_nothing_is_kept() -> None:
    cache = new_cache(0)
    filled(cache, ids(40))
    assert (cache.tokens, cache.cached_length(None, ids(50))) == (0, 0)


def test_ids_that_were_not_run_are_not_cached() -> None:
    cache = new_cache()
    entry = cache.acquire(None, ids(40))
    read(entry, ids(40))
    entry.ids += [41, 42]
    cache.release(entry)
    assert entry.ids == ids(40)


def test_adapters_are_kept_apart_and_forgotten_apart() -> None:
    cache = new_cache()
    filled(cache, ids(40), "red")
    assert [cache.cached_length(one, ids(50)) for one in (None, "red", "blue")] == [0, 40, 0]
    filled(cache, ids(40), "blue")
    filled(cache, ids(40))
    cache.drop_adapter("red")
    assert [cache.cached_length(one, ids(50)) for one in (None, "red", "blue")] == [40, 0, 40]


def test_a_busy_entry_of_a_dropped_adapter_is_not_kept() -> None:
    cache = new_cache()
    entry = cache.acquire("red", ids(40))
    read(entry, ids(40))
    cache.drop_adapter("red")
    cache.release(entry)
    assert (cache.cached_length("red", ids(50)), cache.tokens) == (0, 0)


def test_buffers_grow_without_touching_what_is_before() -> None:
    cache = new_cache()
    entry = cache.acquire(None, ids(501))
    for start in range(0, 500, 50):
        read(entry, ids(50, start=start))
    assert held(entry) == ids(500)
    assert entry.common_length(np.asarray(ids(200))) == 200


def test_a_prefix_is_shared_and_stored_once() -> None:
    cache = new_cache()
    prompts = [[*ids(2 * SHARED_UNIT + 5), 700 + number, 800] for number in range(SLOTS)]
    first = cache.acquire(None, prompts[0])
    read(first, prompts[0])
    others = [cache.acquire(None, prompt) for prompt in prompts[1:]]
    for other, prompt in zip(others, prompts[1:], strict=True):
        read(other, prompt[other.values.length :])
    shared = {id(entry.values.shared) for entry in (first, *others)}
    assert len(shared) == 1
    assert [held(entry) for entry in (first, *others)] == prompts
    assert cache.tokens == 2 * SHARED_UNIT + SLOTS * 7


def test_a_shorter_prefix_of_a_shared_one_is_one_object() -> None:
    cache = new_cache()
    first = cache.acquire(None, ids(300))
    read(first, ids(300))
    read(cache.acquire(None, [*ids(200), 900]), [900])
    short = [cache.acquire(None, [*ids(100), 901])]
    cache.release(first)
    short.append(cache.acquire(None, [*ids(100), 950]))
    assert [one.values.length for one in short] == [100, 100]
    assert short[0].values.shared is short[1].values.shared
    assert [held(one) for one in short] == [ids(100), ids(100)]


def test_an_idle_sequence_gives_up_its_slot_and_is_restored_whole() -> None:
    cache = new_cache()
    first = filled(cache, ids(90))
    for number in range(1, SLOTS + 2):
        filled(cache, ids(90, start=1000 * number))
    assert first.values.slot is None
    assert held(first) == ids(90)
    again = cache.acquire(None, ids(95))
    read(again, ids(5, start=90))
    assert (again is first, held(again)) == (True, ids(95))


def test_no_more_run_at_once_than_there_are_slots() -> None:
    cache = new_cache()
    for number in range(SLOTS):
        read(cache.acquire(None, ids(20, start=1000 * number)), ids(20, start=1000 * number))
    with pytest.raises(ModelError, match=f"{SLOTS} sequences run already"):
        cache.acquire(None, ids(20, start=9000))


def test_a_sequence_that_is_all_shared_prefix_can_be_put_aside_and_copied() -> None:
    cache = new_cache()
    whole = filled(cache, ids(SHARED_UNIT))
    cache.release(cache.acquire(None, [*ids(SHARED_UNIT - 1), 900, 901]))
    busy = cache.acquire(None, [*ids(SHARED_UNIT), 902])
    copy = cache.acquire(None, [*ids(SHARED_UNIT), 903])
    for entry in (busy, copy):
        cache.release(entry)
    for number in range(1, SLOTS + 1):
        filled(cache, ids(20, start=1000 * number))
    assert (whole.values.slot, whole.values.own_length) == (None, 0)
    assert held(cache.acquire(None, [*ids(SHARED_UNIT), 904])) == ids(SHARED_UNIT)
    assert held(whole) == ids(SHARED_UNIT)
