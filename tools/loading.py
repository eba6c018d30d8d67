"""Load the tools of a run: the built-in ones, those of the user's files and modules, and those given as objects.

A file runs once per process and version, then its `load_tools(context)` (or its list `TOOLS`) is asked for each run.
Files that other users of the machine could have written are refused (`tools.trust`).
"""

from __future__ import annotations

import sys
import traceback
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_core.tools import BaseTool

from tools.basics import answer, calculator, hand_over
from tools.context import ToolContext
from tools.errors import ToolsLoadError
from tools.functions import Tool, make_tool
from tools.knowledge import search_knowledge
from tools.modules import PACKAGES, explain_hidden, load_file, load_module, loading
from tools.trust import find_tools_fault


def load_tools(
    names_or_files: Sequence[str | Path],
    context: ToolContext,
    *,
    enabled: Sequence[str] = (),
    passages: int = 4,
    min_score: float = -1.0,
    copied_queries: bool = False,
    task_in_queries: bool = False,
    quoted_answers: bool = False,
    given: Sequence[BaseTool] = (),
    functions: Sequence[Tool] = (),
    trusted: Sequence[Path] = (),
) -> list[BaseTool]:
    """Return the built-in tools, then the user's in the order named, then those given as objects.

    Args:
        names_or_files: `.py` files, relative to `context.project`, or dotted modules.
        context: The run's context.
        enabled: Names of the tools to keep; the built-in tools that end a run stay unless a named one ends it. Empty
            keeps all.
        passages: Passages that `search_knowledge` shows.
        min_score: Lowest score of a passage that `search_knowledge` shows, -1 to 1.
        copied_queries: Whether `search_knowledge` takes only words of the task and the observations.
        task_in_queries: Whether `search_knowledge` searches for the words of the task as well.
        quoted_answers: Whether an answer is made of whole sentences of the observations.
        given: Tools of the trained tasks.
        functions: Functions and tools that the program passed, as to `agent.Agent`.
        trusted: Folders whose files are trusted whoever owns them.

    Raises:
        ToolsLoadError: A file or tool cannot be loaded, or two tools have one name.
    """
    search = search_knowledge(
        context, passages, min_score=min_score, copied_queries=copied_queries, task_in_queries=task_in_queries
    )
    sources = [("the built-in tools", [search, calculator(), answer(quoted=quoted_answers), hand_over()])]
    sources += [(str(name), _load_source(name, context, trusted)) for name in names_or_files]
    sources += [("tasks in ratchet.toml", list(given))]
    sources += [("Agent(tools=...)", [make_tool(one, context, "Agent(tools=...)") for one in functions])]
    owners: dict[str, str] = {}
    for source, own in sources:
        for tool in own:
            if tool.name in owners:
                raise ToolsLoadError(source, None, f"{tool.name!r} is taken by {owners[tool.name]}; rename the tool")
            owners[tool.name] = source
    return _select([tool for _, own in sources for tool in own], enabled)


def _select(tools: Sequence[BaseTool], enabled: Sequence[str]) -> list[BaseTool]:
    names = [tool.name for tool in tools]
    unknown = [name for name in enabled if name not in names]
    if unknown:
        raise ToolsLoadError("this run", None, f"no tool is named {unknown[0]!r}; there are {', '.join(names)}")
    if not enabled:
        return list(tools)
    has_own_end = any(tool.name in enabled and _ends_run(tool) for tool in tools)
    return [tool for tool in tools if tool.name in enabled or (_ends_run(tool) and not has_own_end)]


def _ends_run(tool: BaseTool) -> bool:
    return "ends" in (tool.metadata or {})


def _load_source(name: str | Path, context: ToolContext, trusted: Sequence[Path]) -> list[BaseTool]:
    """Return the tools of one file or module."""
    text = str(name)
    is_file = isinstance(name, Path) or text.endswith(".py") or "/" in text
    path = (context.project / text).resolve() if is_file else None
    fault = find_tools_fault(context.project / text if is_file else context.project, trusted)
    if fault is not None:
        raise ToolsLoadError(text, None, fault)
    if path is not None and not path.is_file():
        raise ToolsLoadError(str(path), None, "the file does not exist; correct its path in ratchet.toml")
    folder = path.parent if path else context.project.resolve()
    # The user's load_tools, too, is called by one thread at a time.
    with loading:
        try:
            module = load_file(path) if path else load_module(text, folder)
            candidates = _candidates(module, context, text)
        except ToolsLoadError:
            raise
        # Whatever the user's code raises, sys.exit included, is reported with its place.
        except (Exception, SystemExit) as error:
            file, line = _place(error, path, text)
            cause = explain_hidden(error, folder) or "correct it and try again"
            raise ToolsLoadError(file, line, f"{type(error).__name__}: {error}; {cause}") from error
    return [make_tool(candidate, context, text) for candidate in candidates]


def _candidates(module: types.ModuleType, context: ToolContext, source: str) -> Sequence[Any]:
    if source in PACKAGES:
        raise ToolsLoadError(
            source, None, f"{source!r} is a package of Ratchet; for a file of yours write {source + '.py'!r}"
        )
    loader = getattr(module, "load_tools", None)
    tools = loader(context) if callable(loader) else getattr(module, "TOOLS", None)
    if not isinstance(tools, list | tuple):
        what = (
            f"load_tools returned {type(tools).__name__}"
            if callable(loader)
            else "neither load_tools nor TOOLS is there"
        )
        raise ToolsLoadError(source, None, f"{what}; define load_tools(context), which returns a list of tools")
    return tools


def _place(fault: BaseException, path: Path | None, source: str) -> tuple[str, int | None]:
    """Return file and line of the innermost frame of the user's own code."""
    if isinstance(fault, SyntaxError) and fault.filename:
        return fault.filename, fault.lineno
    library = (str(Path(__file__).parent), sys.prefix, sys.base_prefix, "<frozen")
    frames = traceback.extract_tb(fault.__traceback__)
    for frame in reversed(frames):
        if frame.filename == str(path) or not frame.filename.startswith(library):
            return frame.filename, frame.lineno
    return str(path) if path else source, None
