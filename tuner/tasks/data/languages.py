"""Detects the language of a text: by the name of its column or file, else by its letters and commonest words.

Enough to fill a translation prompt and to choose how a metric splits words. Does not distinguish languages that are not
in the tables.
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
"""Language codes, as they occur in names of columns and files, and language names."""

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
MIN_SCRIPT_SHARE = 0.2
"""Share of a script among all letters from which the text is in that script."""
MAX_TEXTS = 500
"""Texts that are looked at."""
MIN_WORD_SHARE = 0.02
"""Share of a language's commonest words among all words from which the text is in that language."""


def language_from_name(name: str) -> str:
    """Return the language that a column or a file's ending is named after, or "" for none."""
    code = name.strip().lower().lstrip(".")
    by_code = LANGUAGES.get(code) or LANGUAGES.get(re.split(r"[-_]", code)[0])
    return by_code or next((language for language in LANGUAGES.values() if language.lower() == code), "")


def detect_language(texts: Iterable[str]) -> str:
    """Return the likeliest language of texts, or "" where letters and common words do not decide."""
    text = " ".join(part for part, _ in zip(texts, range(MAX_TEXTS), strict=False)).lower()
    letters = max(1, sum(map(str.isalpha, text)))
    for language, characters in _SCRIPTS:
        if len(re.findall(f"[{characters}]", text)) >= MIN_SCRIPT_SHARE * letters:
            return language
    counts = Counter(re.findall(r"[^\W\d_]+", text))
    votes = {language: sum(counts[word] for word in words.split()) for language, words in _WORDS.items()}
    best = max(votes, key=lambda language: votes[language])
    return best if votes[best] >= MIN_WORD_SHARE * max(50, counts.total()) else ""
