from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from tools.context import Passage, ToolContext
from tools.knowledge import search_knowledge


class Shelf:
    """Gives back what a query names, in its order."""

    def search(self, query: str, k: int) -> Sequence[Passage]:
        return [Passage(0, key, f"{key}.md", "A > B" if key == "a" else "", f"text {key}") for key in query.split()][:k]


def call(query: str) -> dict[str, object]:
    return {"type": "tool_call", "id": "1", "name": "search_knowledge", "args": {"query": query}}


def test_passages_are_labelled_within_the_run(tmp_path: Path) -> None:
    context = ToolContext(tmp_path, tmp_path, retriever=Shelf())
    tool = search_knowledge(context, 3)
    first = tool.invoke(call("a b"))
    assert first.content == "[1] a.md > A > B\ntext a\n\n[2] b.md\ntext b"
    assert [passage.label for passage in first.artifact] == [1, 2]
    second = tool.invoke(call("c b"))
    assert second.content == "[3] c.md\ntext c\n\n[2] b.md\ntext b"
    assert [passage.id for passage in second.artifact] == ["c"]
    assert [(passage.label, passage.id) for passage in context.seen] == [(1, "a"), (2, "b"), (3, "c")]


def test_nothing_found_is_said(tmp_path: Path) -> None:
    tool = search_knowledge(ToolContext(tmp_path, tmp_path, retriever=Shelf()), 3)
    assert tool.invoke(call(" ")).content == "Nothing found."
    without = search_knowledge(ToolContext(tmp_path, tmp_path), 3)
    assert without.invoke(call("a")).content == "Nothing found."


def test_a_long_query_is_refused_and_the_tool_says_it_reads(tmp_path: Path) -> None:
    tool = search_knowledge(ToolContext(tmp_path, tmp_path, retriever=Shelf()), 3)
    assert tool.metadata == {"effect": "read", "copied": []}
    with pytest.raises(ValidationError):
        tool.invoke({"query": "x" * 121})


def test_a_short_task_is_searched_for_together_with_the_query(tmp_path: Path) -> None:
    def found(task: str, *, wanted: bool) -> list[str]:
        context = ToolContext(tmp_path, tmp_path, task=task, retriever=Shelf())
        tool = search_knowledge(context, 9, task_in_queries=wanted)
        return [passage.id for passage in tool.invoke(call("a")).artifact]

    assert found("b c", wanted=True) == ["a.", "b", "c"]
    assert found("b c", wanted=False) == found("", wanted=True) == found("b " * 200, wanted=True) == ["a"]
