"""Masks secrets and personal data in the log, while tools still get the values.

The `Scrubber` of a run replaces an address with `<email_1>`, and puts the address back when a tool is called. It finds
keys and tokens, passwords with a label, card numbers, IBANs, e-mail addresses and phone numbers by their form, and in
doubt leaves text as it is. It does not find names and street addresses, nor a secret that a model writes in pieces.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

_PLACEHOLDER = re.compile(r"<(?:key|card|iban|email|phone)_[1-9][0-9]{0,5}>")
_Span = tuple[int, int, str]


def has_placeholder(text: str) -> bool:
    """Return whether a text has a placeholder."""
    return _PLACEHOLDER.search(text) is not None


def placeholders(text: str) -> tuple[str, ...]:
    """Return the distinct placeholders of a text, in its order."""
    return tuple(dict.fromkeys(_PLACEHOLDER.findall(text)))


class Scrubber:
    """Masks the texts of a run and of the feedback on it; a value has the same placeholder in all of them.

    Safe to use from several threads: feedback may come while the run is in progress.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._placeholders: dict[str, str] = {}
        self._values: dict[str, str] = {}
        self._taken: set[str] = set()

    @property
    def values(self) -> dict[str, str]:
        """Placeholders with their values. Not for the log."""
        with self._lock:
            return dict(self._values)

    def reserve(self, text: str) -> None:
        """Reserve the placeholders of a text, so that no value is given one of them."""
        with self._lock:
            self._taken.update(_PLACEHOLDER.findall(text))

    def mask(self, text: str) -> str:
        """Return the text with placeholders. Masking is idempotent; `unmask` reverses it."""
        with self._lock:
            # A placeholder that the text has already stands for no value of ours.
            self.reserve(text)
            while True:
                masked = self._mask_once(text)
                if masked == text:
                    return text
                text = masked

    def mask_values(self, value: Any) -> Any:
        """Return a JSON value with its texts masked; keys and numbers stay. `unmask` reverses it.

        A text that is a masked value of this run gets its placeholder also without the words around it.
        """
        if isinstance(value, str):
            with self._lock:
                return self._placeholders.get(value) or self.mask(value)
        if isinstance(value, list | tuple):
            return [self.mask_values(item) for item in value]
        if isinstance(value, dict):
            return {key: self.mask_values(item) for key, item in value.items()}
        return value

    def unmask(self, value: Any) -> Any:
        """Return a JSON value with the values put back; unknown placeholders stay."""
        if isinstance(value, str):
            values = self.values
            return _PLACEHOLDER.sub(lambda found: values.get(found.group(), found.group()), value)
        if isinstance(value, list | tuple):
            return [self.unmask(item) for item in value]
        if isinstance(value, dict):
            return {key: self.unmask(item) for key, item in value.items()}
        return value

    def _mask_once(self, text: str) -> str:
        pieces = []
        end = 0
        for placeholder in _PLACEHOLDER.finditer(text):
            pieces += [self._mask_piece(text[end : placeholder.start()]), placeholder.group()]
            end = placeholder.end()
        return "".join([*pieces, self._mask_piece(text[end:])])

    def _mask_piece(self, text: str) -> str:
        pieces = []
        end = 0
        for start, stop, kind in self._spans(text):
            pieces += [text[end:start], self._placeholder(text[start:stop], kind)]
            end = stop
        return "".join([*pieces, text[end:]])

    def _spans(self, text: str) -> list[_Span]:
        """The spans to mask, in the order of the text; of two that overlap, that of the earlier finder."""
        spans: list[_Span] = []
        for finder in (*_FINDERS, self._find_known):
            for start, stop, kind in finder(text):
                if all(stop <= other[0] or start >= other[1] for other in spans):
                    spans.append((start, stop, kind))
        return sorted(spans)

    def _find_known(self, text: str) -> Iterator[_Span]:
        """Passwords and some phone numbers are found by their label, and again without it where they are long."""
        for value, placeholder in self._placeholders.items():
            kind = placeholder[1:].partition("_")[0]
            if len(value) >= _KNOWN_LENGTH and kind in ("key", "phone"):
                for found in re.finditer(rf"(?<!\w){re.escape(value)}(?!\w)", text):
                    yield found.start(), found.end(), kind

    def _placeholder(self, value: str, kind: str) -> str:
        known = self._placeholders.get(value)
        if known is not None:
            return known
        number = 1
        while f"<{kind}_{number}>" in self._taken:
            number += 1
        placeholder = f"<{kind}_{number}>"
        self._taken.add(placeholder)
        self._placeholders[value] = placeholder
        self._values[placeholder] = value
        return placeholder


_KNOWN_LENGTH = 8

_KEY = re.compile(
    r"""-----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY-----[\s\S]*?-----END[ ][A-Z ]*PRIVATE[ ]KEY-----
    | (?<![\w-])(?:
        sk-[A-Za-z0-9_-]{16,}
      | [sr]k_(?:live|test)_[A-Za-z0-9]{16,}
      | gh[pousr]_[A-Za-z0-9]{20,}
      | github_pat_[A-Za-z0-9_]{20,}
      | glpat-[A-Za-z0-9_-]{16,}
      | hf_[A-Za-z0-9]{20,}
      | xox[abprs]-[A-Za-z0-9-]{10,}
      | AIza[A-Za-z0-9_-]{30,}
      | A(?:KIA|SIA)[A-Z0-9]{16}
      | eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+
    )(?![\w-])
    | (?<=Bearer[ ])[A-Za-z0-9._~+/-]{16,}=*""",
    re.VERBOSE,
)
_LABELLED = re.compile(
    r"""(?<![A-Za-z0-9])(?:password|passwd|passphrase|pwd|secret(?:[_-]?key)?|(?:api|access|private)[_ -]?key
    |(?:access|auth|api|bearer|refresh)[_ -]?token|client[_-]?secret)["']?[ \t]*(?P<sign>[:=])[ \t]*["']?
    (?P<value>[^\s"'<>,;]{4,})(?=(?P<rest>[^\n"'<>,;]{0,40}))""",
    re.VERBOSE | re.IGNORECASE,
)
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9_%+-][A-Za-z0-9._%+-]{0,63}@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])"
)
_CARD = re.compile(
    r"(?<![\w.,-])(?:[0-9]{4}(?P<a>[ -]?)[0-9]{4}(?P=a)[0-9]{4}(?P=a)[0-9]{4}(?:(?P=a)[0-9]{3})?"
    r"|[0-9]{4}(?P<b>[ -]?)[0-9]{6}(?P=b)[0-9]{4,5})(?![\w-])"
)
_ISSUERS = re.compile(
    r"4(?:[0-9]{15}|[0-9]{18})|5[1-5][0-9]{14}|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)[0-9]{12}"
    r"|3[47][0-9]{13}|6(?:011|5[0-9]{2}|4[4-9][0-9])[0-9]{12}|3(?:0[0-5]|[68][0-9])[0-9]{11}|35[0-9]{14}|62[0-9]{14}"
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])(?=(?P<text>[A-Z]{2}[0-9]{2}(?:[ ]?[A-Za-z0-9]){11,30}))")
_IBAN_LENGTHS = {
    country: int(length)
    for length, countries in {
        "15": "NO",
        "16": "BE",
        "18": "DK FI FO GL NL SD",
        "19": "MK SI",
        "20": "AT BA EE KZ LT LU XK",
        "21": "CH HR LI LV",
        "22": "BG BH DE GB GE IE ME RS VA",
        "23": "AE GI IL IQ OM SO TL",
        "24": "AD CZ ES MD PK RO SA SE SK TN VG",
        "25": "LY PT ST",
        "26": "IS TR",
        "27": "BI DJ FR GR IT MC SM",
        "28": "AL AZ BY CY DO GT HU LB NI PL SV",
        "29": "BR EG PS QA UA",
        "30": "JO KW MU YE",
        "31": "MT SC",
        "32": "LC",
        "33": "RU",
    }.items()
    for country in countries.split()
}
_PHONE = re.compile(
    r"""(?<![\w+./-])(?:
        \+[1-9](?:[ ./-]?\(?[0-9]\)?){7,14}                 # +44 20 7946 0018
      | \([2-9][0-9]{2}\)[ ]?[0-9]{3}-[0-9]{4}               # (555) 123-4567
      | [2-9][0-9]{2}-[2-9][0-9]{2}-[0-9]{4}                 # 555-223-4567
      | (?<![\w#])(?:(?<=phone[ ])|(?<=phone:[ ])|(?<=mobile[ ])|(?<=mobile:[ ])|(?<=tel[ ])|(?<=tel:[ ])
        |(?<=tel\.[ ])|(?<=call[ ]me[ ]on[ ])|(?<=call[ ]me[ ]at[ ])|(?<=phone[ ]is[ ])|(?<=number[ ]is[ ]))
        0[1-9](?:[ /-]?[0-9]){6,10}                          # phone: 020 7946 0018
    )(?![\w-])""",
    re.VERBOSE | re.IGNORECASE,
)


def _find_keys(text: str) -> Iterator[_Span]:
    for found in _KEY.finditer(text):
        yield found.start(), found.end(), "key"


def _find_labelled(text: str) -> Iterator[_Span]:
    for found in _LABELLED.finditer(text):
        value = found["value"].rstrip(".!?)]}")
        # "Forgot your password: click here" is prose; "password: horse" is not.
        prose = found["sign"] == ":" and value.isalpha() and found["rest"].strip(" .!?)]}")
        if len(value) >= 4 and not prose:
            start = found.start("value")
            yield start, start + len(value), "key"


def _find_emails(text: str) -> Iterator[_Span]:
    for found in _EMAIL.finditer(text):
        yield found.start(), found.end(), "email"


def _find_ibans(text: str) -> Iterator[_Span]:
    for found in _IBAN.finditer(text):
        compact, stop = "", found.start()
        length = _IBAN_LENGTHS.get(found["text"][:2], 0)
        while len(compact) < length and stop < found.end("text"):
            compact += text[stop].strip()
            stop += 1
        whole = len(compact) == length > 0 and not text[stop : stop + 1].isalnum()
        if whole and int("".join(str(int(char, 36)) for char in compact[4:] + compact[:4])) % 97 == 1:
            yield found.start(), stop, "iban"


def _find_cards(text: str) -> Iterator[_Span]:
    for found in _CARD.finditer(text):
        digits = re.sub("[ -]", "", found.group())
        if _ISSUERS.fullmatch(digits) and _luhn(digits):
            yield found.start(), found.end(), "card"


def _find_phones(text: str) -> Iterator[_Span]:
    for found in _PHONE.finditer(text):
        yield found.start(), found.end(), "phone"


def _luhn(digits: str) -> bool:
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(number - 9 if number > 9 else number for number in doubled) % 10 == 0


_FINDERS: tuple[Callable[[str], Iterator[_Span]], ...] = (
    _find_keys,
    _find_labelled,
    _find_emails,
    _find_ibans,
    _find_cards,
    _find_phones,
)
