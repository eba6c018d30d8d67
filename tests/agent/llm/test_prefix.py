"""What was read is found again, lent to one at a time, and let go of when there is no room."""

from __future__ import annotations

import numpy as np
import torch

from agent.llm.attention import KeyValues
from agent.llm.prefix import WORTH_COPYING, Entry, PrefixCache

LAYERS = 2


def ids(size: int, start: int = 0) -> list[int]:
    return list(range(start, start + size))


def read(entry: Entry, new: list[int]) -> None:
    """As the engine does: keys and values that tell which id they are of."""
    marks = torch.tensor(new, dtype=torch.float32).reshape(1, -1, 1).expand(1, -1, 4)
    for layer in range(LAYERS):
        entry.values.append(layer, marks, -marks)
    entry.values.length += len(new)
    entry.ids += new


def held(entry: Entry) -> list[int]:
    """The ids whose keys are in the entry's first layer."""
    empty = torch.empty(1, 0, 4)
    keys, values = entry.values.append(0, empty, empty)
    assert torch.equal(keys, -values)
    return [int(one) for one in keys[0, :, 0]]


def filled(cache: PrefixCache, wanted: list[int], adapter: str | None = None) -> Entry:
    """Read a prompt and give it back."""
    entry = cache.take(adapter, wanted)
    read(entry, wanted[entry.values.length :])
    cache.give_back(entry)
    return entry


def test_what_was_read_is_known_but_for_the_last_id() -> None:
    cache = PrefixCache(LAYERS, max_tokens=1000)
    filled(cache, ids(40))
    assert cache.known(None, ids(40)) == 39
    assert cache.known(None, ids(60)) == 40
    assert cache.known(None, [*ids(25), 99, 98]) == 25
    assert cache.known(None, ids(40, start=7)) == 0


def test_a_prompt_that_goes_on_takes_the_entry_over() -> None:
    cache = PrefixCache(LAYERS, max_tokens=1000)
    first = filled(cache, ids(40))
    again = cache.take(None, ids(60))
    assert again is first
    read(again, ids(20, start=40))
    cache.give_back(again)
    assert (held(again), cache.tokens) == (ids(60), 60)


def test_a_prompt_that_turns_off_gets_a_copy_and_leaves_the_first_alone() -> None:
    cache = PrefixCache(LAYERS, max_tokens=1000)
    first = filled(cache, ids(40))
    other = cache.take(None, [*ids(25), 99, 98])
    assert other is not first
    assert held(other) == ids(25)
    read(other, [99, 98])
    cache.give_back(other)
    assert held(first) == ids(40)
    assert cache.known(None, [*ids(25), 99, 98, 97]) == 27


def test_what_another_extends_is_copied() -> None:
    cache = PrefixCache(LAYERS, max_tokens=1000)
    filled(cache, ids(40))
    busy = cache.take(None, ids(60))
    copy = cache.take(None, ids(50))
    assert copy is not busy
    read(busy, [77])
    read(copy, ids(10, start=40))
    assert (held(busy), held(copy)) == ([*ids(40), 77], ids(50))


def test_a_short_prefix_is_read_again() -> None:
    cache = PrefixCache(LAYERS, max_tokens=1000)
    filled(cache, ids(40))
    assert cache.take(None, [*ids(WORTH_COPYING - 1), 99, 98]).values.length == 0
    assert cache.take(None, [*ids(WORTH_COPYING), 99, 98]).values.length == WORTH_COPYING


def test_the_longest_unused_goes_first_and_what_is_busy_stays() -> None:
    cache = PrefixCache(LAYERS, max_tokens=100)
    filled(cache, ids(40, start=1000))
    filled(cache, ids(40, start=2000))
    filled(cache, ids(41, start=1000))  # used again, so now the younger one
    busy = cache.take(None, ids(50, start=3000))
    read(busy, ids(50, start=3000))
    filled(cache, ids(30, start=4000))
    assert cache.known(None, ids(60, start=2000)) == 0
    assert cache.known(None, ids(60, start=1000)) == 0
    assert cache.known(None, ids(60, start=3000)) == 50
    assert cache.known(None, ids(60, start=4000)) == 30
    assert cache.tokens <= 100


def test_without_room_nothing_is_kept() -> None:
    cache = PrefixCache(LAYERS, max_tokens=0)
    filled(cache, ids(40))
    assert (cache.tokens, cache.known(None, ids(50))) == (0, 0)


def test_ids_that_were_not_run_are_not_taken_for_known() -> None:
    cache = PrefixCache(LAYERS, max_tokens=1000)
    entry = cache.take(None, ids(40))
    read(entry, ids(40))
    entry.ids += [41, 42]
    cache.give_back(entry)
    assert entry.ids == ids(40)


def test_adapters_are_kept_apart_and_forgotten_apart() -> None:
    cache = PrefixCache(LAYERS, max_tokens=1000)
    filled(cache, ids(40), "red")
    assert [cache.known(one, ids(50)) for one in (None, "red", "blue")] == [0, 40, 0]
    filled(cache, ids(40), "blue")
    filled(cache, ids(40))
    cache.forget("red")
    assert [cache.known(one, ids(50)) for one in (None, "red", "blue")] == [40, 0, 40]


def test_what_is_busy_when_its_adapter_goes_is_not_kept_afterwards() -> None:
    cache = PrefixCache(LAYERS, max_tokens=1000)
    entry = cache.take("red", ids(40))
    read(entry, ids(40))
    cache.forget("red")
    cache.give_back(entry)
    assert (cache.known("red", ids(50)), cache.tokens) == (0, 0)


def test_buffers_grow_and_are_cut_without_touching_what_is_before() -> None:
    values = KeyValues(LAYERS)
    entry = Entry(None, [], values)
    for start in range(0, 500, 50):
        read(entry, ids(50, start=start))
    assert held(entry) == ids(500)
    values.truncate(120)
    values.truncate(300)
    assert (values.length, held(entry)) == (120, ids(120))
    assert values.bytes > 0
    assert entry.common(np.asarray(ids(200))) == 120
