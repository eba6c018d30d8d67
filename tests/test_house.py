"""The source is laid out as CONTRIBUTING asks: names are unique, files are short, private names stay at home."""

from __future__ import annotations

import ast
from textwrap import dedent

from tests.bench.house import (
    duplicate_class_names,
    forbidden_public_names,
    long_files,
    patched_lines,
    private_imports,
    quickstart_lines,
)

MAX_LINES = 450

MAY_BE_LONG = frozenset(
    {
        "agent/knowledge/document_store.py",
        "agent/knowledge/knowledge.py",
        "agent/llm/engine/scheduler.py",
        "agent/runtime.py",
        "tuner/training/trainer.py",
    }
)
"""Files of one idea that reads better whole."""


def test_a_class_name_is_used_once_in_the_whole_project() -> None:
    assert duplicate_class_names() == {}


def test_no_file_is_over_450_lines_but_a_named_few() -> None:
    assert [row for row in long_files(MAX_LINES) if row["name"] not in MAY_BE_LONG] == []


def test_no_private_name_is_imported_from_another_module() -> None:
    assert private_imports() == []


def test_no_public_name_is_a_word_that_is_not_to_be_used() -> None:
    assert forbidden_public_names() == []


def test_patches_of_our_own_code_are_counted_and_those_of_libraries_are_not() -> None:
    source = """
        import os
        from agent import runtime
        def test(monkeypatch, store):
            monkeypatch.setattr(runtime, "load", None)
            monkeypatch.setattr(store, "add", None)
            monkeypatch.setattr("tuner.settings.read", None)
            monkeypatch.setattr(os, "replace", None)
            monkeypatch.setattr("os.replace", None)
            monkeypatch.setenv("HOME", "x")
    """
    assert patched_lines(ast.parse(dedent(source))) == [5, 6, 7]


def test_the_quickstart_is_the_first_python_block_that_imports_the_agent() -> None:
    readme = "```python\nx = 1\n```\n\n```python\nfrom agent import Agent\n\n# a comment\nagent = Agent()\n```\n"
    assert quickstart_lines(readme) == 2
    assert quickstart_lines("no code") is None
