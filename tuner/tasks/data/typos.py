"""Adds typing mistakes to training examples: letters swapped, dropped, doubled, or in the other case.

Labels stay, and offsets into the text move along. Only words of four letters and more are changed, so numbers, product
names with digits and scripts without spaces stay. Of a question about a context only the question is changed, and of
two texts that are compared only the first. Source: Belinkov & Bisk, "Synthetic and
Natural Noise Both Break Neural Machine Translation" (2018), where training on such noise helps.
"""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

from tuner.tasks.data.records import AnswerExample, ClassifyExample, EmbedExample, RelateExample, TagExample
from tuner.tasks.data.words import split_words

SHORTEST = 4
"""Letters of a word that may be changed, at least."""
KINDS = ("swap", "drop", "double", "case")


def add_typos(example: Any, chance: random.Random, share: float) -> Any:
    """Return an example with about `share` (0 to 1) of its longer words mistyped, once each."""
    match example:
        case ClassifyExample(text=text, pair=pair):
            second = None if pair is None else _changed(pair, split_words(pair), chance, share)[0]
            return replace(example, text=_changed(text, split_words(text), chance, share)[0], pair=second)
        case TagExample(text=text, offsets=offsets):
            text, offsets = _changed(text, offsets, chance, share)
            return replace(example, text=text, offsets=offsets)
        case RelateExample():
            return _related(example, chance, share)
        case EmbedExample(text=text):
            return replace(example, text=_changed(text, split_words(text), chance, share)[0])
        case AnswerExample(question=question):
            return replace(example, question=_changed(question, split_words(question), chance, share)[0])
        case _:
            raise TypeError(f"a {type(example).__name__} is not a task example that can be mistyped")


def mistype_word(word: str, chance: random.Random) -> str:
    """Return a word of three letters or more with one mistake; its first letter stays in place."""
    kind = chance.choice(KINDS)
    at = chance.randrange(1, len(word) - 1)
    if kind == "swap":
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == "drop":
        return word[:at] + word[at + 1 :]
    if kind == "double":
        return word[:at] + word[at] + word[at:]
    return word.swapcase()


def _related(example: RelateExample, chance: random.Random, share: float) -> RelateExample:
    edges = sorted({0, len(example.text), *example.first, *example.second})
    # No word may cross an edge, or the edge would have no place in the changed text.
    words = tuple(
        (start + left, start + right)
        for start, end in pairwise(edges)
        for left, right in split_words(example.text[start:end])
    )
    text, moved = _changed(example.text, words, chance, share)

    def place(old: int) -> int:
        """Every word in front of an edge moves it by the letters it gained."""
        return old + sum(
            (right - left) - (end - start)
            for (start, end), (left, right) in zip(words, moved, strict=True)
            if end <= old
        )

    (first, first_end), (second, second_end) = example.first, example.second
    return replace(
        example, text=text, first=(place(first), place(first_end)), second=(place(second), place(second_end))
    )


def _changed(
    text: str, words: tuple[tuple[int, int], ...], chance: random.Random, share: float
) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The changed text, and the offsets of its words."""
    parts: list[str] = []
    places = []
    length = done = 0
    for start, end in words:
        word = text[start:end]
        if len(word) >= SHORTEST and word.isalpha() and chance.random() < share:
            word = mistype_word(word, chance)
        parts += [text[done:start], word]
        length += start - done
        places.append((length, length + len(word)))
        length += len(word)
        done = end
    return "".join((*parts, text[done:])), tuple(places)
