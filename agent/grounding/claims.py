"""What a sentence claims, as far as rules can see it: its words, names, figures and what it denies.

English words are taken without their commonest endings; scripts without spaces in pairs of characters, as in the
full-text index. Figures are numbers, also in words, months, weekdays and identifiers. Not seen are synonyms, who did
what to whom, hundreds and thousands in words, and what a sentence leaves to the one before it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from agent.text.tokens import normal, terms


@dataclass(frozen=True)
class Claim:
    """One sentence, with the heading it stands under where it has one."""

    text: str
    heading: str = ""

    @cached_property
    def words(self) -> frozenset[str]:
        """What carries meaning."""
        return frozenset(_content(self.text))

    @cached_property
    def held(self) -> frozenset[str]:
        """The words, and those of the heading."""
        return self.words | frozenset(_content(self.heading))

    @cached_property
    def names(self) -> frozenset[str]:
        """Words in capitals, but for one that only begins the sentence; in Chinese, what is in Latin letters."""
        found = list(_WORD.finditer(normal(self.text)))
        chinese = is_chinese(self.text)
        names: set[str] = set()
        for place, word in enumerate(found):
            following = found[place + 1][0] if place + 1 < len(found) else "x"
            begins = place == 0 and not chinese and not following[0].isupper()
            if (chinese or word[0][0].isupper()) and not begins:
                names.update(_content(word[0]))
        return frozenset(names)

    @cached_property
    def figures(self) -> Counter[str]:
        """What it gives of numbers, dates and identifiers, and must therefore stand where it comes from."""
        return _figures(self.text, sure=True)

    @cached_property
    def known_figures(self) -> Counter[str]:
        """Every figure that sentence or heading could be read as giving."""
        return _figures(self.text, sure=False) + _figures(self.heading, sure=False)

    @cached_property
    def denied(self) -> tuple[frozenset[str], ...]:
        """For each negation, the words right behind it."""
        return tuple(_denied(self.text))

    @cached_property
    def clauses(self) -> tuple[Claim, ...]:
        """Its parts between commas and the like that have words of their own."""
        parts = [Claim(part) for part in _CLAUSE.split(self.text) if part]
        return tuple(part for part in parts if part.words)


def is_chinese(text: str) -> bool:
    """Whether a text is Chinese with perhaps some Latin words in it."""
    return len(_HAN.findall(text)) > len(_WORD.findall(text))


def rarity(claims: Sequence[Claim]) -> Mapping[str, float]:
    """What each word counts: the more, the fewer of the sentences hold it."""
    counts = Counter(word for claim in claims for word in claim.held)
    return {word: 1.0 + math.log((len(claims) + 1) / (count + 1)) for word, count in counts.items()}


def share(words: frozenset[str], held: frozenset[str], weights: Mapping[str, float], unseen: float) -> float:
    """The share of the words that are held, by weight; 0 without words. `unseen` is the weight of a new word."""
    total = sum(weights.get(word, unseen) for word in words)
    return sum(weights.get(word, unseen) for word in words & held) / total if total else 0.0


def contradicts(one: Claim, other: Claim) -> bool:
    """Whether one of them denies what the other says."""
    return _denies(one, other) or _denies(other, one)


_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
_WORD = re.compile(r"[A-Za-z\u00c0-\u024f]+")
_CLAUSE = re.compile(r"[,;:](?=\s)|[\uff0c\uff1b\uff1a\u3001]|\s(?:and|but|while|whereas)\s|而且|但是")
_NOT = re.compile(r"(?<=[A-Za-z])n['\u2019]t\b|\bcannot\b", re.IGNORECASE)
_NEGATIONS = frozenset(("not", "no", "never", "none", "nor", "neither", "without", "nobody", "nothing"))
_NEGATION_ZH = re.compile(
    # Not in words such as "not only", "however", "all the same", "future", "no matter".
    "不(?![仅但过少同断久管论只])|没|未(?!来)|无(?![论线锡])|勿|并非|禁止"
)
_SCOPE = 3
"""Words behind a negation that it denies."""
_SCOPE_ZH = 5
"""Characters."""

_STOP_WORDS = (
    "a an the and or but if of to in on at by for from with as is are was were be been being am do does did done has "
    "have had having will would shall should can could may might must it its this that these those they them their "
    "there here he she his her him we us our you your i me my so than then too very just also into over about which "
    "who whom whose what when where why how not no never none nor neither ca wo don s t re ve ll d while whereas "
    "please yes"
)
_STOP = frozenset(_STOP_WORDS.split())
_STOP_ZH = frozenset("的了吗呢吧着是在和与及也都就将被把对为之其该此这那你我您他她它们")
"""Characters that join; a pair with one of them says little."""


def _content(text: str) -> Iterator[str]:
    for term in terms(_NOT.sub(" not", text)):
        if _HAN.match(term):
            if not _STOP_ZH & set(term):
                yield term
        elif term in _IN_WORDS:
            yield str(_IN_WORDS[term])
        elif term not in _STOP:
            yield _stem(term)


def _stem(word: str) -> str:
    """Without the commonest English endings; the same word in two forms mostly becomes the same."""
    for ending in ("ing", "ies", "ied", "ed", "es", "s", "ly", "e"):
        if len(word) - len(ending) >= 3 and word.endswith(ending) and not word.endswith("ss"):
            stem = word.removesuffix(ending)
            if ending in ("ies", "ied"):
                return f"{stem}y"
            return stem[:-1] if len(stem) > 3 and stem[-1] == stem[-2] and ending in ("ing", "ed") else _stem_e(stem)
    return word


def _stem_e(stem: str) -> str:
    return stem.removesuffix("e") if len(stem) > 3 else stem


def _denied(text: str) -> Iterator[frozenset[str]]:
    plain = _NOT.sub(" not", normal(text))
    for found in _NEGATION_ZH.finditer(plain):
        yield frozenset(_content(plain[found.end() : found.end() + _SCOPE_ZH]))
    spoken = terms(plain)
    for place, term in enumerate(spoken):
        if term in _NEGATIONS:
            yield frozenset(list(_content(" ".join(spoken[place + 1 : place + 8])))[:_SCOPE])


def _denies(one: Claim, other: Claim) -> bool:
    for scope in one.denied:
        touched = scope & other.words if scope else other.words
        if touched and not any(not behind or behind & touched for behind in other.denied):
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
_IN_WORDS = {word: number for number, word in enumerate(_ONES)} | {
    word: 10 * number for number, word in enumerate(_TENS, 2)
}
_SPELT = re.compile(rf"\b(?:(?:{'|'.join(_TENS)})(?:[-\s](?:{'|'.join(_ONES[1:10])}))?|{'|'.join(_ONES)})\b", re.I)
_DIGITS_ZH = {sign: number for number, sign in enumerate("零一二三四五六七八九")}
_DIGITS_ZH |= {"\u3007": 0, "两": 2}
_UNITS_ZH = {"十": 10, "百": 100, "千": 1000, "万": 10_000, "亿": 100_000_000}
_SPELT_ZH = re.compile(f"[{''.join(_DIGITS_ZH)}{''.join(_UNITS_ZH)}]+")
_LARGE_ZH = re.compile("\\s*([百千万亿]+)")
_COUNTED_ZH = frozenset("天日月年人元次名岁时分秒周位届号米块倍个件种项场所条张本台份部座家级层楼度折")
"""What is counted with; behind anything else a single numeral may be part of a word."""


def _figures(text: str, *, sure: bool) -> Counter[str]:
    """Those that the text must mean, or (not `sure`) all that it may mean."""
    plain = normal(text)
    found: Counter[str] = Counter()

    def identifier(match: re.Match[str]) -> str:
        found[re.sub(r"[-_]", "", match[0]).lower().rstrip(".,;")] += 1
        return " "

    plain = _IDENTIFIER.sub(identifier, plain)
    for match in _NUMBER.finditer(plain):
        large = _LARGE_ZH.match(plain, match.end())
        found[_plain_number(match[0], large[1] if large else "")] += 1
    found.update(word.lower() for word in _DATE_WORD.findall(plain))
    for match in _SPELT.finditer(plain):
        value = sum(_IN_WORDS[word] for word in re.split(r"[-\s]", match[0].lower()))
        if value != 1 or not sure:
            found[str(value)] += 1
    for match in _SPELT_ZH.finditer(plain):
        if plain[: match.start()].rstrip()[-1:].isdigit():
            continue  # read with the digits in front
        counted = plain[match.end() : match.end() + 1] in _COUNTED_ZH
        clear = len(match[0]) > 1 or _DIGITS_ZH.get(match[0], 0) > 1
        value_zh = _chinese_number(match[0])
        if value_zh is not None and (not sure or (counted and clear)):
            found[str(value_zh)] += 1
    return found


def _plain_number(digits: str, large: str) -> str:
    """Without separators and idle zeros; `large` are the Chinese units behind it."""
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
