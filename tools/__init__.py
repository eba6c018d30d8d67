"""What an agent can do: langchain-core tools, and how functions and files of the user's become some.

Holds no code that runs an agent: what a tool needs of its run is in the `ToolContext` that it receives. Imports nothing
of `agent` or `tuner`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tools.basics import answer, calculator, hand_over
    from tools.context import Passage, Retriever, ToolContext
    from tools.errors import ToolsLoadError
    from tools.functions import Tool, make_tool
    from tools.knowledge import search_knowledge
    from tools.loading import load_tools
    from tools.marks import Copied, Quoted, tool

__all__ = [
    "Copied",
    "Passage",
    "Quoted",
    "Retriever",
    "Tool",
    "ToolContext",
    "ToolsLoadError",
    "answer",
    "calculator",
    "hand_over",
    "load_tools",
    "make_tool",
    "search_knowledge",
    "tool",
]

_MODULES = {
    "Copied": "tools.marks",
    "Passage": "tools.context",
    "Quoted": "tools.marks",
    "Retriever": "tools.context",
    "Tool": "tools.functions",
    "ToolContext": "tools.context",
    "ToolsLoadError": "tools.errors",
    "answer": "tools.basics",
    "calculator": "tools.basics",
    "hand_over": "tools.basics",
    "load_tools": "tools.loading",
    "make_tool": "tools.functions",
    "search_knowledge": "tools.knowledge",
    "tool": "tools.marks",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
