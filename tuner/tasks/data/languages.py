"""What language a text is in: by the name of its column or file, else by its letters and commonest words.

Enough to tell a model what to translate into and a metric how to cut words. Not promised: to tell languages apart
that are not in the tables.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

LANGUAGES: Mapping[str, str] = {
    **{"en": "English", "eng": "English", "zh": "Chinese", "cmn": "Chinese", "zho": "Chinese", "cn": "Chinese"},
    **{"de": "German", "deu": "German", "ger": "German", "fr": "French", "fra": "French", "es": "Spanish"},
    **{"spa": "Spanish", "it": "Italian", "ita": "Italian", "pt": "Portuguese", "por": "Portuguese", "nl": "Dutch"},
    **{"nld": "Dutch", "ja": "Japanese", "jp": "Japanese", "jpn": "Japanese", "ko": "Korean", "kor": "Korean"},
    **{"ru": "Russian", "rus": "Russian", "uk": "Ukrainian", "ar": "Arabic", "ara": "Arabic", "hi": "Hindi"},
    **{"tr": "Turkish", "pl": "Polish", "cs": "Czech", "sv": "Swedish", "vi": "Vietnamese", "th": "Thai"},
    **{"el": "Greek", "he": "Hebrew"},
}
"""Codes, as columns and files are called by them, and names."""

_SCRIPTS: tuple[tuple[str, str], ...] = (
    ("Japanese", "\u3040-\u30ff"),
    ("Korean", "\uac00-\ud7af"),
    ("Chinese", "\u3400-\u9fff\U00020000-\U0003ffff"),
    ("Russian", "\u0400-\u04ff"),
    ("Arabic", "\u0600-\u06ff"),
    ("Hindi", "\u0900-\u097f"),
    ("Thai", "\u0e00-\u0e7f"),
    ("Greek", "\u0370-\u03ff"),
    ("Hebrew", "\u0590-\u05ff"),
)
_WORDS: Mapping[str, str] = {
    "English": "the is are you to of and it was have my this that he she what not do your",
    "German": "der die das ist und ich nicht ein eine sie zu den mit er wir es auf haben",
    "French": "le la les est et je ne pas un une vous des que il elle nous du avec",
    "Spanish": "el la los es y no un una que de en por con mi su yo está las",
    "Italian": "il lo la è e non un una che di per con mi sono gli ho del",
    "Portuguese": "o a os é e não um uma que de em por com eu você está do",
    "Dutch": "de het een is en ik niet van je dat zijn hij we met op te",
}
LEAST_SHARE = 0.2
"""Of all letters, from which a script counts."""
LOOKED_AT = 500


def language_named(name: str) -> str:
    """The language that a column or a file's ending is called after; empty where it is called after none."""
    told = name.strip().lower().lstrip(".")
    by_code = LANGUAGES.get(told) or LANGUAGES.get(re.split(r"[-_]", told)[0])
    return by_code or next((one for one in LANGUAGES.values() if one.lower() == told), "")


def language_of(texts: Iterable[str]) -> str:
    """The likeliest language of texts; empty where letters and common words do not tell it."""
    text = " ".join(one for one, _ in zip(texts, range(LOOKED_AT), strict=False)).lower()
    letters = max(1, sum(map(str.isalpha, text)))
    for name, characters in _SCRIPTS:
        if len(re.findall(f"[{characters}]", text)) >= LEAST_SHARE * letters:
            return name
    counts = Counter(re.findall(r"[^\W\d_]+", text))
    votes = {name: sum(counts[word] for word in words.split()) for name, words in _WORDS.items()}
    best = max(votes, key=lambda name: votes[name])
    return best if votes[best] >= 0.02 * max(50, counts.total()) else ""
