"""Whether a corrected answer says what nothing shown before it says: then the documents lack it.

Judged by words and numbers alone, sentence by sentence. A sentence that turns the meaning of shown words around is
not found out, and an answer in other words than those shown may be taken for a fact; a reviewer can say otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from agent.feedback.cases import Case
from agent.records.run import Step
from agent.text.normalise import all_terms, content, is_number
from tools.context import Passage

Search = Callable[[str], Sequence[Passage]]
"""Passages of the documents as they are now."""

_END = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])|\n")


@dataclass(frozen=True)
class Lacking:
    """What an answer says that was not shown."""

    sentences: tuple[str, ...]
    terms: tuple[str, ...]
    """The words and numbers that are new, as they are compared."""


@dataclass(frozen=True)
class Addition:
    """What a document could say, so that the next run finds it."""

    document: str
    """Empty where none of those shown is about it."""
    heading: str
    text: str


def lacking(case: Case, manner: Collection[str] = ()) -> Lacking | None:
    """What the documents lack, if the step is an answer that says it; `manner` are words that say nothing.

    A sentence counts when it has a number that was not shown, or when most of what it says was not.
    """
    sentences, new = [], dict[str, None]()
    for sentence in filter(None, _END.split(case.text)):
        said = content(sentence)
        fresh = [term for term in said if term not in case.known and (is_number(term) or term not in manner)]
        if sentence.rstrip().endswith(("?", "\uff1f")) or not fresh:
            continue
        if any(map(is_number, fresh)) or len(fresh) * 2 > len(said):
            sentences.append(sentence.strip())
            new.update(dict.fromkeys(fresh))
    return Lacking(tuple(sentences), tuple(new)) if sentences else None


def held_by(lack: Lacking, search: Search) -> str | None:
    """The document that says it all now, if one does."""
    for passage in search(" ".join(lack.sentences)):
        if all_terms((passage.heading, passage.text)).issuperset(lack.terms):
            return passage.document
    return None


def addition(case: Case, lack: Lacking, before: Sequence[Step]) -> Addition:
    """What to add where: to the passage shown that shares most words with task and answer."""
    about = set(content(f"{case.wording} {case.text}"))
    best, most = Addition("", "", " ".join(lack.sentences)), 0
    for passage in (passage for step in before for passage in step.passages):
        shared = len(about & all_terms((passage.heading, passage.text)))
        if shared > most:
            best, most = Addition(passage.document, passage.heading, best.text), shared
    return best
