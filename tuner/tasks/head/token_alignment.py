"""Aligns tokens with the words and characters of a text, and splits long texts into overlapping chunks.

A word's label goes to its first token; its other tokens, special tokens and padding are `IGNORED` in loss and metrics
alike. Of overlapping chunks each word belongs to the one with most context on both sides, so it is learnt and
predicted once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

IGNORED = -100
"""The target of a token without a label; the default `ignore_index` of torch's cross-entropy."""


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens that a tokenizer puts around one text, or around and between two texts."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    """In front of a second text; not used with one."""
    after: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)

    def wrap(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return the tokens of one text with its special tokens."""
        return (*self.before, *ids, *self.after)


@dataclass(frozen=True)
class TokenChunk:
    """The tokens of a text from `start` up to `end`; those from `own` up to `own_end` belong to no other chunk."""

    start: int
    end: int
    own: int
    own_end: int


def special_tokens(tokenizer: Any, *, pair: bool = False) -> SpecialTokens:
    """Find the special tokens by tokenizing a letter, or a pair of letters."""
    letter = _bare(tokenizer, "a")
    whole = [*(tokenizer("a", "a") if pair else tokenizer("a"))["input_ids"]]
    first = _find(whole, letter, 0)
    last = _find(whole, letter, first + len(letter)) if pair else first
    between = whole[first + len(letter) : last] if pair else []
    return SpecialTokens(tuple(whole[:first]), tuple(between), tuple(whole[last + len(letter) :]))


def word_ids(tokenizer: Any, words: Sequence[str]) -> tuple[list[int], list[int]]:
    """Return the token ids of words without special tokens, and the word of each token; a word may have no token."""
    coded = tokenizer(list(words), is_split_into_words=True, add_special_tokens=False, verbose=False)
    places = coded.word_ids()
    if any(place is None for place in places):
        raise ValueError("the tokenizer returns tokens that belong to no word; use another encoder")
    return list(coded["input_ids"]), list(places)


def text_ids(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the token ids of a text without special tokens, and the characters that each token covers."""
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return list(coded["input_ids"]), [(int(start), int(end)) for start, end in coded["offset_mapping"]]


def overlapping_chunks(count: int, room: int, overlap: int) -> list[TokenChunk]:
    """Split `count` tokens into chunks of at most `room`; neighbours share `overlap`, and each token is owned once.

    The first half of what two chunks share belongs to the left one.
    """
    if not 0 <= overlap < room:
        raise ValueError(f"an overlap of {overlap} tokens in chunks of {room}; expected less than a chunk")
    starts = [0]
    while starts[-1] + room < count:
        starts.append(min(starts[-1] + room - overlap, count - room))
    ends = [min(start + room, count) for start in starts]
    edges = [0, *((end + start) // 2 for end, start in zip(ends, starts[1:], strict=False)), count]
    return [TokenChunk(*bounds) for bounds in zip(starts, ends, edges, edges[1:], strict=False)]


def word_targets(places: Sequence[int], labels: Sequence[int], chunk: TokenChunk) -> list[int]:
    """Return the target of each token of a chunk: the label of an owned word at its first token, else IGNORED.

    Args:
        places: The word of each token of the whole text.
        labels: The label of each word.
    """
    return [
        labels[places[at]] if chunk.own <= at < chunk.own_end and is_first_of_word(places, at) else IGNORED
        for at in range(chunk.start, chunk.end)
    ]


def is_first_of_word(places: Sequence[int], at: int) -> bool:
    """Whether a token is the first of its word, by the words of all tokens."""
    return at == 0 or places[at] != places[at - 1]


def _bare(tokenizer: Any, text: str) -> list[int]:
    return [*tokenizer(text, add_special_tokens=False)["input_ids"]]


def _find(whole: Sequence[int], part: Sequence[int], start: int) -> int:
    for at in range(start, len(whole) - len(part) + 1):
        if list(whole[at : at + len(part)]) == list(part):
            return at
    raise ValueError("the tokenizer changes a text when it adds special tokens; use another encoder")
