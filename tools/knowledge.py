"""`search_knowledge`: passages of the user's documents, with labels the answer cites them by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from langchain_core.tools import BaseTool, StructuredTool
from pydantic import BaseModel, Field

from tools.context import Passage, ToolContext

NOTHING = "Nothing found."

MAX_TASK = 300
"""Characters; a longer task would drown the query."""


class SearchArguments(BaseModel):
    """What the model fills in."""

    query: str = Field(min_length=1, max_length=80)


def search_knowledge(
    context: ToolContext,
    k: int = 4,
    *,
    min_score: float = -1.0,
    copied_queries: bool = False,
    task_in_queries: bool = False,
) -> BaseTool:
    """The tool for one run. Its artifact is the list of passages this call showed for the first time.

    Passages that score below `min_score` are not shown. One shown before is shown again under its old label;
    new ones are added to `context.seen`. With `copied_queries` the model may search only for words it was shown.
    With `task_in_queries` the task's own words are searched for as well, if they are few: what was asked makes up for
    what a small model asks.
    """
    asked = f". {context.task}" if task_in_queries and 0 < len(context.task) <= MAX_TASK else ""

    def search(query: str) -> tuple[str, list[Passage]]:
        found = context.retriever.search(query + asked, k) if context.retriever else ()
        found = [passage for passage in found if passage.score >= min_score]
        shown, new = _labelled(found, context.seen)
        context.seen.extend(new)
        return "\n\n".join(map(_written, shown)) or NOTHING, new

    return StructuredTool.from_function(
        func=search,
        name="search_knowledge",
        description="Search the help documents.",
        args_schema=SearchArguments,
        response_format="content_and_artifact",
        metadata={"effect": "read", "copied": ["query"] if copied_queries else []},
    )


def _labelled(found: Sequence[Passage], seen: Sequence[Passage]) -> tuple[list[Passage], list[Passage]]:
    labels = {passage.id: passage.label for passage in seen}
    following = max(labels.values(), default=0) + 1
    shown: list[Passage] = []
    new: list[Passage] = []
    for passage in found:
        known = passage.id in labels
        label = labels.setdefault(passage.id, following)
        shown.append(replace(passage, label=label))
        if not known:
            new.append(shown[-1])
            following += 1
    return shown, new


def _written(passage: Passage) -> str:
    place = f"{passage.document} > {passage.heading}" if passage.heading else passage.document
    return f"[{passage.label}] {place}\n{passage.text}"
