"""Tokens of texts: which word or characters each stands for, and long texts in windows that overlap.

Labels of words go to the first token of each word; its other tokens, special tokens and padding are `IGNORED` in loss
and metrics alike. Of overlapping windows each word belongs to the one that shows most on both sides of it, so it is
learnt and told once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

IGNORED = -100
"""The target of a token that is not to be learnt, as torch's cross-entropy has it."""


@dataclass(frozen=True)
class Frame:
    """The special tokens that a tokenizer puts around one text, or around and between two."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    """In front of a second text; not used with one."""
    behind: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.before) + len(self.between) + len(self.behind)


@dataclass(frozen=True)
class Piece:
    """A stretch of a text's tokens: from `start` up to `end`; those from `own` up to `own_end` belong to no other."""

    start: int
    end: int
    own: int
    own_end: int


def frame(tokenizer: Any, *, pair: bool = False) -> Frame:
    """The special tokens, found out by tokenizing."""
    one = _bare(tokenizer, "a")
    whole = [*(tokenizer("a", "a") if pair else tokenizer("a"))["input_ids"]]
    first = _find(whole, one, 0)
    last = _find(whole, one, first + len(one)) if pair else first
    between = whole[first + len(one) : last] if pair else []
    return Frame(tuple(whole[:first]), tuple(between), tuple(whole[last + len(one) :]))


def word_ids(tokenizer: Any, words: Sequence[str]) -> tuple[list[int], list[int]]:
    """Token ids of words without special tokens, and the word of each token. A word may have no token."""
    coded = tokenizer(list(words), is_split_into_words=True, add_special_tokens=False, verbose=False)
    places = coded.word_ids()
    if any(place is None for place in places):
        raise ValueError("the tokenizer gives tokens that belong to no word")
    return list(coded["input_ids"]), list(places)


def text_ids(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a text without special tokens, and the characters that each token stands for."""
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return list(coded["input_ids"]), [(int(start), int(end)) for start, end in coded["offset_mapping"]]


def pieces(count: int, room: int, overlap: int) -> list[Piece]:
    """`count` tokens in windows of at most `room`, of which neighbours share `overlap`; each token is owned once.

    In what two share, the first half belongs to the window on the left.
    """
    if not 0 <= overlap < room:
        raise ValueError(f"an overlap of {overlap} tokens in windows of {room}; expected less than a window")
    starts = [0]
    while starts[-1] + room < count:
        starts.append(min(starts[-1] + room - overlap, count - room))
    ends = [min(start + room, count) for start in starts]
    edges = [0, *((end + start) // 2 for end, start in zip(ends, starts[1:], strict=False)), count]
    return [Piece(*one) for one in zip(starts, ends, edges, edges[1:], strict=False)]


def word_targets(places: Sequence[int], labels: Sequence[int], piece: Piece) -> list[int]:
    """The target of each token of a window: its word's label at the first token of an owned word, else IGNORED."""
    return [
        labels[places[at]] if piece.own <= at < piece.own_end and is_first(places, at) else IGNORED
        for at in range(piece.start, piece.end)
    ]


def is_first(places: Sequence[int], at: int) -> bool:
    """Whether a token is the first of its word."""
    return at == 0 or places[at] != places[at - 1]


def cut(ids: Sequence[int], room: int) -> list[int]:
    """The beginning of a text that is too long."""
    return list(ids[:room])


def _bare(tokenizer: Any, text: str) -> list[int]:
    return [*tokenizer(text, add_special_tokens=False)["input_ids"]]


def _find(whole: Sequence[int], part: Sequence[int], start: int) -> int:
    for at in range(start, len(whole) - len(part) + 1):
        if list(whole[at : at + len(part)]) == list(part):
            return at
    raise ValueError("the tokenizer changes a text when special tokens are added to it")
