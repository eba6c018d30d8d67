"""The tools of a run: the built-in ones and those of the user's Python files or modules.

A file runs once for each version of it and process, then its `load_tools(context)` (or its list `TOOLS`) is
asked for every run. Its modules get names of their own, so two projects may both have a `shop.py`. The user's
code is trusted as the user is: nothing here confines it. What others could have written is not run (`tools.trust`).
"""

from __future__ import annotations

import hashlib
import importlib
import sys
import threading
import traceback
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from langchain_core.tools import BaseTool

from tools.basics import answer, calculator, hand_over
from tools.context import ToolContext
from tools.knowledge import search_knowledge
from tools.trust import find_tools_fault

EFFECTS = ("read", "workspace", "world")


class ToolsLoadError(Exception):
    """The user's tools cannot be loaded; says the file, the line and what happened."""

    def __init__(self, file: str, line: int | None, cause: str) -> None:
        self.file = file
        self.line = line
        self.cause = cause
        super().__init__(f"tools of {file}{f', line {line}' if line else ''}: {cause}")


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
    trusted: Sequence[Path] = (),
) -> list[BaseTool]:
    """Built-ins, then the user's tools in the order named, then those that are given ready-made.

    `names_or_files` are `.py` files (relative ones inside `context.project`) or dotted modules. `enabled`, when
    given, leaves only the tools it names, and the built-in ones that end a run unless a named one does.
    Files, and the folders that modules are imported from, must be the user's own or lie in a folder of `trusted`.
    The rest is for `search_knowledge` and `answer`. Raises ToolsLoadError.
    """
    search = search_knowledge(
        context, passages, min_score=min_score, copied_queries=copied_queries, task_in_queries=task_in_queries
    )
    sources = [("the built-in tools", [search, calculator(), answer(quoted=quoted_answers), hand_over()])]
    sources += [(str(name), _users(name, context, trusted)) for name in names_or_files]
    sources += [("tasks in ratchet.toml", list(given))]
    owners: dict[str, str] = {}
    tools: list[BaseTool] = []
    for source, own in sources:
        for tool in own:
            if tool.name in owners:
                raise ToolsLoadError(source, None, f"{tool.name!r} is taken by {owners[tool.name]}; rename the tool")
            owners[tool.name] = source
            tools.append(tool)
    unknown = [name for name in enabled if name not in owners]
    if unknown:
        raise ToolsLoadError("this run", None, f"no tool is named {unknown[0]!r}; there are {', '.join(owners)}")
    if not enabled:
        return tools
    own_end = any(tool.name in enabled and _ends(tool) for tool in tools)
    return [tool for tool in tools if tool.name in enabled or (_ends(tool) and not own_end)]


def _ends(tool: BaseTool) -> bool:
    return "ends" in (tool.metadata or {})


def _users(name: str | Path, context: ToolContext, trusted: Sequence[Path]) -> list[BaseTool]:
    text = str(name)
    is_file = isinstance(name, Path) or text.endswith(".py") or "/" in text
    path = (context.project / text).resolve() if is_file else None
    untrusted = find_tools_fault(context.project / text if is_file else context.project, trusted)
    if untrusted is not None:
        raise ToolsLoadError(text, None, untrusted)
    with _one_at_a_time, _importable(path.parent if path else context.project.resolve(), keep=path is None):
        try:
            module = _module_of_file(path) if path else importlib.import_module(text)
            found = _found(module, context, text)
        except ToolsLoadError:
            raise
        # Whatever the user's code raises, a sys.exit included, is told with its place.
        except (Exception, SystemExit) as fault:
            file, line = _place(fault, path, text)
            raise ToolsLoadError(file, line, f"{type(fault).__name__}: {fault}; correct it and try again") from fault
    return [_checked(tool, text) for tool in found]


def _found(module: types.ModuleType, context: ToolContext, source: str) -> Sequence[Any]:
    loader = getattr(module, "load_tools", None)
    found = loader(context) if callable(loader) else getattr(module, "TOOLS", None)
    if not isinstance(found, list | tuple):
        what = (
            f"load_tools gave {type(found).__name__}" if callable(loader) else "neither load_tools nor TOOLS is there"
        )
        raise ToolsLoadError(source, None, f"{what}; define load_tools(context) -> list[BaseTool]")
    return found


def _checked(tool: Any, source: str) -> BaseTool:
    if not isinstance(tool, BaseTool):
        raise ToolsLoadError(source, None, f"found {tool!r:.80}, expected a langchain-core tool; put @tool above it")
    effect = (tool.metadata or {}).get("effect", "world")
    if effect not in EFFECTS:
        raise ToolsLoadError(source, None, f"{tool.name} has effect {effect!r}, expected one of {', '.join(EFFECTS)}")
    marks = tool.metadata or {}
    held = [(name, "copied") for name in marks.get("copied", ())]
    held += [(marks["quoted"], "quoted")] if "quoted" in marks else []
    for name, how in held:
        if tool.args.get(name, {}).get("type") != "string":
            has = ", ".join(tool.args) or "none"
            why = f"{tool.name} says that {name!r} is {how}, but has no such argument that is a text; it has {has}"
            raise ToolsLoadError(source, None, why)
    return tool


_one_at_a_time = threading.RLock()
_OURS = ("agent", "tools", "tuner")


def _module_of_file(path: Path) -> types.ModuleType:
    """The file as a module inside a package of its own, so that `from . import helper` works as well."""
    if not path.is_file():
        raise ToolsLoadError(str(path), None, "the file does not exist; correct its path in ratchet.toml")
    package_name = f"ratchet_tools_{hashlib.sha256(str(path.parent).encode()).hexdigest()[:12]}"
    status = path.stat()
    version = (status.st_mtime_ns, status.st_size)
    name = f"{package_name}.{path.stem}"
    cached = sys.modules.get(name)
    if cached is not None and getattr(cached, "__ratchet_version__", None) == version:
        return cached
    if package_name not in sys.modules:
        package = types.ModuleType(package_name)
        package.__path__ = [str(path.parent)]
        sys.modules[package_name] = package
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ToolsLoadError(str(path), None, "the file is not Python; name a .py file")
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    vars(module)["__ratchet_version__"] = version
    return module


@contextmanager
def _importable(folder: Path, *, keep: bool) -> Iterator[None]:
    """`import helper` finds the helper beside the file; unless `keep`, it is forgotten afterwards.

    Imports that a tool does later, inside a function, must be relative (`from .helper import x`).
    """
    hidden = {} if keep else _hide(folder)
    known = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
        if not keep:
            # A list first: other threads import while this one looks.
            fresh = [(name, module) for name, module in list(sys.modules.items()) if name not in known]
            for name in [name for name, module in fresh if _is_beside(name, module, folder)]:
                del sys.modules[name]
            sys.modules.update(hidden)


def _hide(folder: Path) -> dict[str, types.ModuleType]:
    """Take out modules of other places that have the name of one beside the file."""
    beside = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    beside -= {*sys.stdlib_module_names, *_OURS}
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in beside}


def _is_beside(name: str, module: types.ModuleType, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    top = name.partition(".")[0]
    if not file or name.startswith("ratchet_tools_") or top in _OURS or top == "__main__":
        return False
    depth = name.count(".") + (2 if Path(file).name == "__init__.py" else 1)
    parents = Path(file).parents
    return len(parents) >= depth and parents[depth - 1] == folder


def _place(fault: BaseException, path: Path | None, source: str) -> tuple[str, int | None]:
    """The innermost line of the user's own code."""
    if isinstance(fault, SyntaxError) and fault.filename:
        return fault.filename, fault.lineno
    library = (str(Path(__file__).parent), sys.prefix, sys.base_prefix, "<frozen")
    frames = traceback.extract_tb(fault.__traceback__)
    for frame in reversed(frames):
        if frame.filename == str(path) or not frame.filename.startswith(library):
            return frame.filename, frame.lineno
    return str(path) if path else source, None
