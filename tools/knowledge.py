"""`search_knowledge`: passages of the user's documents, with the labels that an answer cites."""

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
    """The arguments of `search_knowledge`."""

    query: str = Field(min_length=1, max_length=80)


def search_knowledge(
    context: ToolContext,
    k: int = 4,
    *,
    min_score: float = -1.0,
    copied_queries: bool = False,
    task_in_queries: bool = False,
) -> BaseTool:
    """Return the tool for one run. Its artifact is the list of passages that this call shows for the first time.

    New passages are added to `context.seen`; others keep their labels.

    Args:
        context: The run's context.
        k: Passages to show at most.
        min_score: Lowest score of a passage that is shown, -1 to 1.
        copied_queries: Whether a query may contain only words of the task and the observations.
        task_in_queries: Whether to search for the words of the task as well, if it has at most `MAX_TASK` characters:
            small models write short queries.
    """
    suffix = f". {context.task}" if task_in_queries and 0 < len(context.task) <= MAX_TASK else ""

    def search(query: str) -> tuple[str, list[Passage]]:
        passages = context.retriever.search(query + suffix, k) if context.retriever else ()
        passages = [passage for passage in passages if passage.score >= min_score]
        shown, new = _label(passages, context.seen)
        context.seen.extend(new)
        return "\n\n".join(map(_write, shown)) or NOTHING, new

    return StructuredTool.from_function(
        func=search,
        name="search_knowledge",
        description="Search the help documents.",
        args_schema=SearchArguments,
        response_format="content_and_artifact",
        metadata={"effect": "read", "copied": ["query"] if copied_queries else []},
    )


def _label(passages: Sequence[Passage], seen: Sequence[Passage]) -> tuple[list[Passage], list[Passage]]:
    labels = {passage.id: passage.label for passage in seen}
    following = max(labels.values(), default=0) + 1
    shown: list[Passage] = []
    new: list[Passage] = []
    for passage in passages:
        is_new = passage.id not in labels
        label = labels.setdefault(passage.id, following)
        shown.append(replace(passage, label=label))
        if is_new:
            new.append(shown[-1])
            following += 1
    return shown, new


def _write(passage: Passage) -> str:
    place = f"{passage.document} > {passage.heading}" if passage.heading else passage.document
    return f"[{passage.label}] {place}\n{passage.text}"
