"""English stems and stop words, and the Chinese characters that carry little meaning."""

from __future__ import annotations

_STOP_WORDS = (
    "a an the and or but if of to in on at by for from with as is are was were be been being am do does did done "
    "has have had having will would shall should can could may might must it its this that these those they them "
    "their there here he she his her him we us our you your i me my so than then too very just also into over "
    "about which who whom whose what when where why how not no never none nor neither ca wo don s t re ve ll d "
    "while whereas please yes"
)
STOP_WORDS = frozenset(_STOP_WORDS.split())
"""Function words, and the parts that contractions are split into."""

STOP_CHARACTERS = frozenset("的了吗呢吧着是在和与及也都就将被把对为之其该此这那你我您他她它们")
"""Chinese function words of one character."""


def stem(word: str) -> str:
    """Remove the most common English endings. Two forms of a word mostly get the same stem."""
    for ending in ("ing", "ies", "ied", "ed", "es", "s", "ly", "e"):
        if len(word) - len(ending) >= 3 and word.endswith(ending) and not word.endswith("ss"):
            rest = word.removesuffix(ending)
            if ending in ("ies", "ied"):
                return f"{rest}y"
            if ending in ("ing", "ed") and len(rest) > 3 and rest[-1] == rest[-2]:
                return rest[:-1]
            return rest.removesuffix("e") if len(rest) > 3 else rest
    return word
