"""When two texts say the same, and which of the words of one are not in another.

Numbers of three digits and more are hidden where wordings are compared: which order was meant says nothing of what was
asked. Words are cut at English endings and small English words are passed over; other languages are compared
by their words as they are, those without spaces by pairs of characters. Nothing here knows what a text means.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from agent.text.tokens import segmented

MAX_TEXT = 160
"""Characters of a task's text that are shown."""

SAME_SCORE = 0.95
"""Cosine from which two texts are the same wording."""


def wording(text: str) -> str:
    """A text in one line, its numbers hidden."""
    return " ".join(re.sub(r"\d{3,}", "#", text).split())


def plain(text: str) -> str:
    """A task's wording, cut to what is shown."""
    line = wording(text)
    return line if len(line) <= MAX_TEXT else f"{line[: MAX_TEXT - 1]}…"


def masked(text: str) -> str:
    """A text in one line, every number in it hidden."""
    return " ".join(re.sub(r"\d+", "#", text).split())


def terms(text: str) -> list[str]:
    """The words and numbers of a text, in its order, small words among them."""
    joined = re.sub(r"(?<=\d),(?=\d{3}\b)", "", segmented(text)).casefold()
    return [_NUMBERS.get(word) or _stem(word) for word in _WORD.findall(joined)]


def all_terms(texts: Iterable[str]) -> frozenset[str]:
    """The words and numbers of several texts."""
    return frozenset(term for text in texts for term in terms(text))


def content(text: str) -> list[str]:
    """The words and numbers that say something, each once."""
    said = (term for term in terms(text) if is_number(term) or (len(term) > 1 and term not in _SMALL))
    return list(dict.fromkeys(said))


def is_number(term: str) -> bool:
    return term[:1].isdigit()


_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+")


def _stem(word: str) -> str:
    cut = re.sub(r"(ing|ed|es|s|e)$", "", word) if word.isascii() else word
    return cut if len(cut) > 2 else word


# Without "one", which seldom counts.
_NUMBERS = {
    word: str(number)
    for words, numbers in (
        (
            "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
            "eighteen nineteen",
            range(2, 20),
        ),
        ("twenty thirty forty fifty sixty seventy eighty ninety hundred", range(20, 101, 10)),
    )
    for word, number in zip(words.split(), numbers, strict=True)
}

_SMALL_WORDS = (
    "a about after again all also always am an and any anything are as at be because been before being but by can "
    "cannot could did do does doing done for from further gladly had happy has have having he hello help here hi "
    "him his how i if in into is it its just kindly may me might more most must my need no none not nothing now of "
    "off ok okay on once one only or other our out over please right same say see she should so some sorry such "
    "sure tell than thank thanks that the their them then there these they thing this those through to too under "
    "until up us very want was we welcome well were what when where which while who why will with would yes yet "
    "you your yours"
)
_SMALL = frozenset(map(_stem, _SMALL_WORDS.split()))
