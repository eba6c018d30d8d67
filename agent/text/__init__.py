"""Plain functions on text: tokens, sentences, stems, quotes, and the normal form of a task's text.

Knows no model and no documents; the tokens of a language model are in `agent/llm/`.
"""
