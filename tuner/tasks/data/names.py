"""Names that columns have in common files, in lower case, by role, the likeliest first."""

from __future__ import annotations

from collections.abc import Mapping

NAMES: Mapping[str, tuple[str, ...]] = {
    "text": (
        *("text", "message", "utterance", "sentence", "premise", "sentence1", "sentence_1", "text1", "question1"),
        *("question_1", "query", "instruction", "review", "content", "tweet", "comment", "document", "question"),
        *("body", "description", "abstract", "title", "subject", "input"),
    ),
    "body": ("text", "message", "review", "content", "document", "body", "description", "abstract"),
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
    "word": ("word", "token"),
    "tag": ("tag", "ner_tag", "label", "ner", "bio", "iob"),
    "sentence": ("sentence #", "sentence_id", "sentence_idx", "sent_id", "sent_idx", "sentence", "id"),
    "source": (
        *("source", "src", "source_text", "text", "original", "dialogue", "dialog", "article", "document", "content"),
        *("body", "input", "sentence"),
    ),
    "target": (
        *("target", "tgt", "target_text", "translation", "summary", "summary1", "highlights", "abstract", "tldr"),
        *("headline", "reference", "output"),
    ),
    "customer_text": ("question", "query", "prompt", "instruction", "message", "text", "input", "customer", "user"),
    "agent_text": ("best_answer", "answer", "response", "reply", "completion", "output", "agent", "assistant"),
    "rating": ("rating", "stars", "score", "csat", "satisfaction", "feedback"),
    "turns": ("messages", "turns", "conversation", "conversations", "dialogue", "dialog", "chat"),
    "chat": ("chat", "chat_id", "conversation_id", "dialogue_id", "dialog_id", "conversation", "ticket", "session"),
    "speaker": ("speaker", "role", "author", "from", "sender"),
    "spans": ("spans", "entities", "label", "labels"),
}

TITLES = ("title", "subject", "headline")
"""Columns that hold the title of a text and are read in front of it."""

COLUMN_NAMES = frozenset(name for names in NAMES.values() for name in names) | {"id", "idx", "index", "answer_start"}
"""Names that show that a first row is a header."""
