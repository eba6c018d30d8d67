"""The sentences of a run's observations that a tool's text may quote. An answer made of quotes invents nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.records.run import Step
from agent.text.sentences import split_sentences, split_sentences_by_line

MAX_QUOTES = 2
"""Sentences that one text may consist of."""


@dataclass(frozen=True)
class Quote:
    """A sentence of an observation, whitespace collapsed."""

    text: str
    label: int | None = None
    """Label of the passage that contains it; None for a sentence that is in no document."""


def collect_quotes(steps: Sequence[Step]) -> tuple[Quote, ...]:
    """Return every sentence that may be quoted after these steps, each once, in order of first appearance."""
    labels = {passage.label for step in steps for passage in step.passages}
    quotes: dict[str, Quote] = {}
    for step in steps:
        for passage in step.passages:
            for sentence in split_sentences(passage.text):
                quotes.setdefault(sentence, Quote(sentence, passage.label))
        if step.call is None or _lists_passages(step.observation, labels):
            continue
        for sentence in split_sentences_by_line(step.error or step.observation):
            quotes.setdefault(sentence, Quote(sentence))
    return tuple(quotes.values())


def match_quotes(text: str, quotes: Sequence[Quote]) -> tuple[Quote, ...] | None:
    """Return the quotes that a text consists of, or None if it contains anything else."""
    return _match(text, {quote.text: quote for quote in quotes}, MAX_QUOTES)


def cited_labels(quotes: Sequence[Quote]) -> list[int]:
    """Return the labels of the passages that contain the quotes, in their order."""
    return list(dict.fromkeys(quote.label for quote in quotes if quote.label is not None))


def _match(text: str, quotes: Mapping[str, Quote], limit: int) -> tuple[Quote, ...] | None:
    if text in quotes:
        return (quotes[text],)
    for sentence, quote in quotes.items():
        if limit > 1 and text.startswith(f"{sentence} "):
            rest = _match(text[len(sentence) + 1 :], quotes, limit - 1)
            if rest is not None:
                return (quote, *rest)
    return None


def _lists_passages(observation: str, labels: set[int]) -> bool:
    label = re.match(r"\[(\d+)\] ", observation)
    return label is not None and int(label[1]) in labels
