"""Extracts what a sentence claims by rules: its words, names, figures and negations.

English words are stemmed; scripts without spaces become pairs of characters. Figures are numbers (in digits or words),
months, weekdays and identifiers. Not recognised: synonyms, who did what to whom, hundreds and thousands in words, and
references to the sentence before.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from agent.text.tokens import normal, tokenize
from agent.text.words import STOP_CHARACTERS, STOP_WORDS, stem


@dataclass(frozen=True)
class Claim:
    """A sentence and the heading above it, if any."""

    text: str
    heading: str = ""

    @cached_property
    def words(self) -> frozenset[str]:
        """Stems and pairs of characters that carry meaning."""
        return frozenset(_content_words(self.text))

    @cached_property
    def all_words(self) -> frozenset[str]:
        """The words of sentence and heading."""
        return self.words | frozenset(_content_words(self.heading))

    @cached_property
    def names(self) -> frozenset[str]:
        """Capitalised words, except one that only begins the sentence; in Chinese, words in Latin letters."""
        words = list(_WORD.finditer(normal(self.text)))
        chinese = is_chinese(self.text)
        names: set[str] = set()
        for place, word in enumerate(words):
            following = words[place + 1][0] if place + 1 < len(words) else "x"
            only_begins = place == 0 and not chinese and not following[0].isupper()
            if (chinese or word[0][0].isupper()) and not only_begins:
                names.update(_content_words(word[0]))
        return frozenset(names)

    @cached_property
    def figures(self) -> Counter[str]:
        """Numbers, dates and identifiers that the sentence certainly states; its support must state them too."""
        return _figures(self.text, is_strict=True)

    @cached_property
    def possible_figures(self) -> Counter[str]:
        """Every figure that sentence or heading may state."""
        return _figures(self.text, is_strict=False) + _figures(self.heading, is_strict=False)

    @cached_property
    def negated(self) -> tuple[frozenset[str], ...]:
        """For each negation, the words right after it."""
        return tuple(_negated_words(self.text))

    @cached_property
    def clauses(self) -> tuple[Claim, ...]:
        """The parts between commas and conjunctions that have words of their own."""
        parts = [Claim(part) for part in _CLAUSE.split(self.text) if part]
        return tuple(part for part in parts if part.words)


def is_chinese(text: str) -> bool:
    """Return whether a text is Chinese, possibly with some Latin words."""
    return len(_HAN.findall(text)) > len(_WORD.findall(text))


def word_weights(claims: Sequence[Claim]) -> Mapping[str, float]:
    """Return a weight per word, higher for words of fewer sentences (inverse document frequency)."""
    counts = Counter(word for claim in claims for word in claim.all_words)
    return {word: 1.0 + math.log((len(claims) + 1) / (count + 1)) for word, count in counts.items()}


def weighted_share(words: frozenset[str], others: frozenset[str], weights: Mapping[str, float], unseen: float) -> float:
    """Return the share of `words` that are in `others`, by weight; 0 without words.

    Args:
        unseen: Weight of a word that has none.
    """
    total = sum(weights.get(word, unseen) for word in words)
    return sum(weights.get(word, unseen) for word in words & others) / total if total else 0.0


def contradicts(first: Claim, second: Claim) -> bool:
    """Return whether either of them negates what the other states."""
    return _negates(first, second) or _negates(second, first)


_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
_WORD = re.compile(r"[A-Za-z\u00c0-\u024f]+")
_CLAUSE = re.compile(r"[,;:](?=\s)|[\uff0c\uff1b\uff1a\u3001]|\s(?:and|but|while|whereas)\s|而且|但是")
_NOT = re.compile(r"(?<=[A-Za-z])n['\u2019]t\b|\bcannot\b", re.IGNORECASE)
_NEGATIONS = frozenset(("not", "no", "never", "none", "nor", "neither", "without", "nobody", "nothing"))
_NEGATION_ZH = re.compile(
    # Except in words such as "not only", "however", "all the same", "future", "no matter".
    "不(?![仅但过少同断久管论只])|没|未(?!来)|无(?![论线锡])|勿|并非|禁止"
)
_SCOPE = 3
"""Words after a negation that it applies to."""
_SCOPE_ZH = 5
"""Characters."""


def _content_words(text: str) -> Iterator[str]:
    for term in tokenize(_NOT.sub(" not", text)):
        if _HAN.match(term):
            if not STOP_CHARACTERS & set(term):
                yield term
        elif term in _NUMBER_WORDS:
            yield str(_NUMBER_WORDS[term])
        elif term not in STOP_WORDS:
            yield stem(term)


def _negated_words(text: str) -> Iterator[frozenset[str]]:
    plain = _NOT.sub(" not", normal(text))
    for negation in _NEGATION_ZH.finditer(plain):
        yield frozenset(_content_words(plain[negation.end() : negation.end() + _SCOPE_ZH]))
    tokens = tokenize(plain)
    for place, token in enumerate(tokens):
        if token in _NEGATIONS:
            yield frozenset(list(_content_words(" ".join(tokens[place + 1 : place + 8])))[:_SCOPE])


def _negates(claim: Claim, other: Claim) -> bool:
    for scope in claim.negated:
        affected = scope & other.words if scope else other.words
        if affected and not any(not negated or negated & affected for negated in other.negated):
            return True
    return False


# -- figures -------------------------------------------------------------------------------------------------

_IDENTIFIER = re.compile(
    r"https?://\S+|[\w.+-]+@[\w.-]+\w|\b[A-Z]+[-_/]?\d[\w/-]*\b|\b[A-Za-z]+\d\w*\b",
    re.ASCII,
)
_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?:\.\d+)*")
_DATE_WORD = re.compile(
    r"\b(?:January|February|April|June|July|August|September|October|November|December|Monday|Tuesday|Wednesday"
    r"|Thursday|Friday|Saturday|Sunday|(?:March|May)(?=\s+\d)|(?<=\d\s)(?:March|May))\b"
)
_SPELT_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_SPELT_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_ONES, _TENS = _SPELT_ONES.split(), _SPELT_TENS.split()
_NUMBER_WORDS = {word: number for number, word in enumerate(_ONES)} | {
    word: 10 * number for number, word in enumerate(_TENS, 2)
}
_SPELT = re.compile(rf"\b(?:(?:{'|'.join(_TENS)})(?:[-\s](?:{'|'.join(_ONES[1:10])}))?|{'|'.join(_ONES)})\b", re.I)
_DIGITS_ZH = {sign: number for number, sign in enumerate("零一二三四五六七八九")}
_DIGITS_ZH |= {"\u3007": 0, "两": 2}
_UNITS_ZH = {"十": 10, "百": 100, "千": 1000, "万": 10_000, "亿": 100_000_000}
_SPELT_ZH = re.compile(f"[{''.join(_DIGITS_ZH)}{''.join(_UNITS_ZH)}]+")
_LARGE_ZH = re.compile("\\s*([百千万亿]+)")
_COUNTED_ZH = frozenset("天日月年人元次名岁时分秒周位届号米块倍个件种项场所条张本台份部座家级层楼度折")
"""Measure words and units; before anything else a single numeral may be part of a word."""


def _figures(text: str, *, is_strict: bool) -> Counter[str]:
    """Return the figures that the text certainly states, or (not `is_strict`) all that it may state."""
    plain = normal(text)
    figures: Counter[str] = Counter()

    def identifier(match: re.Match[str]) -> str:
        figures[re.sub(r"[-_]", "", match[0]).lower().rstrip(".,;")] += 1
        return " "

    plain = _IDENTIFIER.sub(identifier, plain)
    for match in _NUMBER.finditer(plain):
        large = _LARGE_ZH.match(plain, match.end())
        figures[_plain_number(match[0], large[1] if large else "")] += 1
    figures.update(word.lower() for word in _DATE_WORD.findall(plain))
    for match in _SPELT.finditer(plain):
        value = sum(_NUMBER_WORDS[word] for word in re.split(r"[-\s]", match[0].lower()))
        if value != 1 or not is_strict:
            figures[str(value)] += 1
    for match in _SPELT_ZH.finditer(plain):
        if plain[: match.start()].rstrip()[-1:].isdigit():
            continue  # Read together with the digits before it.
        has_unit = plain[match.end() : match.end() + 1] in _COUNTED_ZH
        is_clear = len(match[0]) > 1 or _DIGITS_ZH.get(match[0], 0) > 1
        value_zh = _chinese_number(match[0])
        if value_zh is not None and (not is_strict or (has_unit and is_clear)):
            figures[str(value_zh)] += 1
    return figures


def _plain_number(digits: str, large: str) -> str:
    """Drop separators and redundant zeros, and multiply by the Chinese units in `large`, which follow the digits."""
    if digits.count(".") > 1:
        return digits
    whole, _, rest = digits.replace(",", "").partition(".")
    for unit in large:
        places = len(str(_UNITS_ZH[unit])) - 1
        whole, rest = whole + rest[:places].ljust(places, "0"), rest[places:]
    rest = rest.rstrip("0")
    whole = whole.lstrip("0") or "0"
    return f"{whole}.{rest}" if rest else whole


def _chinese_number(text: str) -> int | None:
    if not set(text) & set(_UNITS_ZH):
        return int("".join(str(_DIGITS_ZH[sign]) for sign in text))
    total, part, digit = 0, 0, None
    for sign in text:
        if sign in _DIGITS_ZH:
            digit = _DIGITS_ZH[sign]
            continue
        unit = _UNITS_ZH[sign]
        if unit < 10_000:
            part += (1 if digit is None else digit) * unit
        else:
            before = part + (digit or 0)
            if not before:
                return None
            total, part = (total + before) * unit, 0
        digit = None
    return total + part + (digit or 0)
