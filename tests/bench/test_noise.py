"""Messages that the noise is measured on are of their sort, and unseen."""

from __future__ import annotations

from tests.bench.noise import choose


def test_messages_are_of_their_sort_spread_over_the_intents_and_never_trained_on() -> None:
    rows = [("B", f"{intent} {number}", intent) for intent in "abc" for number in range(4)]
    rows += [("BQ", "A 1", "a"), ("BQ", "yo a", "a"), ("BQZ", "yo aa", "a"), ("BZ", "bb", "b"), ("BZ", "bbb", "b")]
    chosen = choose(rows, "abc", 3, 2)
    assert sorted(intent for _, intent in chosen["train"]) == list("aaabbbccc")
    assert len(chosen["clean"]) == 2
    assert not set(chosen["clean"]) & set(chosen["train"])
    assert {intent for _, intent in chosen["typos"]} == {"a", "b"}
    every = choose(rows, "abc", 4, 2)
    assert every["clean"] == []
    assert every["colloquial"] == [("yo a", "a")], "but for its case, A 1 was trained on"
