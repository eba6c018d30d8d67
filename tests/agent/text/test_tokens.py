"""Text is split into words, and scripts without spaces into pairs of characters."""

from __future__ import annotations

from agent.text.tokens import tokenize


def test_scripts_without_spaces_are_split_into_pairs() -> None:
    assert tokenize("退货政策 in 30 Days") == ["退货", "货政", "政策", "in", "30", "days"]
    assert tokenize("退") == ["退"]


def test_full_width_characters_become_plain_ones() -> None:
    assert tokenize("\uff21\uff11") == ["a1"]
