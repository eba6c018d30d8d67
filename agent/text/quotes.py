"""Sentences that tools said, for tools whose text is to quote them: an answer of quotes makes nothing up."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.records.run import Step
from agent.text.sentences import sentences, sentences_by_line

MAX_QUOTES = 2
"""Sentences that one text may hold."""


@dataclass(frozen=True)
class Quote:
    """A sentence that a tool said, its spaces evened out."""

    text: str
    label: int | None = None
    """Of the passage it stands in; None for what no document says."""


def quotable(steps: Sequence[Step]) -> tuple[Quote, ...]:
    """What may be quoted behind these steps, each sentence once and in the order it was first said."""
    labels = {passage.label for step in steps for passage in step.passages}
    said: dict[str, Quote] = {}
    for step in steps:
        for passage in step.passages:
            for sentence in sentences(passage.text):
                said.setdefault(sentence, Quote(sentence, passage.label))
        if step.call is None or _lists_passages(step.observation, labels):
            continue
        for sentence in sentences_by_line(step.error or step.observation):
            said.setdefault(sentence, Quote(sentence))
    return tuple(said.values())


def quoted(text: str, quotes: Sequence[Quote]) -> tuple[Quote, ...] | None:
    """The quotes that a text is made of, or None where it is not made of quotes alone."""
    return _quoted(text, {quote.text: quote for quote in quotes}, MAX_QUOTES)


def cited_by(made_of: Sequence[Quote]) -> list[int]:
    """The passages that quotes stand in, in the order of the quotes."""
    return list(dict.fromkeys(quote.label for quote in made_of if quote.label is not None))


def _quoted(text: str, known: Mapping[str, Quote], most: int) -> tuple[Quote, ...] | None:
    if text in known:
        return (known[text],)
    for sentence, quote in known.items():
        if most > 1 and text.startswith(f"{sentence} "):
            rest = _quoted(text[len(sentence) + 1 :], known, most - 1)
            if rest is not None:
                return (quote, *rest)
    return None


def _lists_passages(observation: str, labels: set[int]) -> bool:
    found = re.match(r"\[(\d+)\] ", observation)
    return found is not None and int(found[1]) in labels
