"""What columns are called in the files that people have, in lower case, the likeliest first."""

from __future__ import annotations

from collections.abc import Mapping

NAMES: Mapping[str, tuple[str, ...]] = {
    "text": (
        *("text", "message", "utterance", "sentence", "premise", "sentence1", "sentence_1", "text1", "question1"),
        *("question_1", "query", "instruction", "review", "content", "tweet", "comment", "document", "question"),
        *("body", "title", "input"),
    ),
    "pair": ("pair", "hypothesis", "sentence2", "sentence_2", "text2", "question2", "question_2"),
    "label": (
        *("label", "labels", "intent", "category", "class", "target", "relation", "topic", "sentiment", "polarity"),
        *("emotion", "tag", "gold_label", "is_duplicate", "similar", "output"),
    ),
    "question": ("question", "query"),
    "context": ("context", "passage", "paragraph", "document", "text"),
    "answer": ("answers", "answer", "answer_text"),
    "words": ("words", "tokens"),
    "tags": ("tags", "ner_tags", "labels", "ner"),
    "spans": ("spans", "entities", "label", "labels"),
}

KNOWN = frozenset(name for names in NAMES.values() for name in names) | {"id", "idx", "index", "answer_start"}
"""Names by which a first row is known for a header."""
