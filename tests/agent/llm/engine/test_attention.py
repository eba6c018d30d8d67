"""Batched attention gives each sequence what it gets alone, in any precision."""

from __future__ import annotations

import pytest
import torch

from agent.llm.engine.attention import CachedLayout, causal_attention
from agent.llm.engine.kv_cache import SHARED_UNIT, Slots
from agent.llm.engine.prefix_cache import CacheEntry, PrefixCache

HEADS, KV_HEADS, SIZE = 4, 2, 8
SCALE = SIZE**-0.5


def read(slots: Slots, entry: CacheEntry, wanted: list[int], chance: torch.Generator) -> None:
    """Keys and values by chance for what is not known yet."""
    values, new = entry.values, wanted[entry.values.length :]
    assert values.slot is not None
    columns = torch.arange(values.own_length, values.own_length + len(new))
    slots.reserve(values.own_length + len(new))
    pair = torch.randn(2, KV_HEADS, len(new), SIZE, generator=chance)
    slots.write(0, torch.full((len(new),), values.slot), columns, *pair)
    values.length += len(new)
    entry.ids += new


@pytest.mark.parametrize(("dtype", "off"), [(None, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("begins", [(0, 0, 0, 0), (0, 1, 0, 1), (0, 0, 1, 2)])
def test_each_sequence_sees_its_own_shared_prefix(
    dtype: torch.dtype | None, off: float, begins: tuple[int, ...]
) -> None:
    chance = torch.Generator().manual_seed(0)
    slots = Slots(1, len(begins), dtype=dtype)
    cache = PrefixCache(slots, max_tokens=4000)
    entries = []
    for number, begin in enumerate(begins):
        wanted = [*range(1000 * begin, 1000 * begin + 2 * SHARED_UNIT), 9000 + number, 9100]
        entries.append(cache.acquire(None, wanted))
        read(slots, entries[-1], wanted, chance)
    sequences, counts = [one.values for one in entries], [1, 2, 1, 3]
    assert len({id(one.shared) for one in sequences if one.shared is not None}) == len(
        [begin for begin in set(begins) if begins.count(begin) > 1]
    )

    layout = CachedLayout(slots, sequences, counts, torch.device("cpu"))
    query = torch.randn(HEADS, sum(counts), SIZE, generator=chance)
    key, value = torch.randn(2, KV_HEADS, sum(counts), SIZE, generator=chance)
    found = layout.attend(0, query, key, value, SCALE, None).float()
    start = 0
    for sequence, count in zip(sequences, counts, strict=True):
        keys, values = (one.float() for one in sequence.whole(0, sequence.own_length + count))
        alone = causal_attention(query[:, start : start + count], keys, values, SCALE, None).transpose(0, 1)
        assert torch.allclose(found[start : start + count], alone, atol=off)
        start += count
