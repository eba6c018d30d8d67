"""Turn functions and langchain-core tools into the tools of one run, and refuse what cannot work as one.

A function gives its name, its docstring and its annotations. The docstring may describe the arguments in Google
style; `Annotated[str, "text"]` does the same. An argument of type `ToolContext` gets the run's context, and the model
does not see it.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import pairwise
from typing import Annotated, Any, get_args, get_origin

from langchain_core.tools import BaseTool, StructuredTool
from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.errors import PydanticUserError

from tools.context import ToolContext
from tools.errors import ToolsLoadError
from tools.marks import EFFECTS, Copied, Quoted, ToolMarks, read_marks

Tool = BaseTool | Callable[..., Any]
"""What may be given as a tool: a function, sync or async, or a langchain-core tool."""

RESERVED = frozenset({"callbacks", "config", "run_manager", "self"})
"""Names of arguments that langchain-core takes for itself."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_SECTION = re.compile(r"\s*(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?|Notes?):\s*")
_ARGUMENT = re.compile(r"(\w+)(?:\s*\([^)]*\))?:\s*(.*)")


@dataclass(frozen=True)
class _Place:
    """Where a tool comes from, for errors."""

    file: str
    line: int | None = None
    tool: str = ""

    def error(self, cause: str) -> ToolsLoadError:
        return ToolsLoadError(self.file, self.line, f"{self.tool}: {cause}" if self.tool else cause)


def make_tool(candidate: Tool, context: ToolContext, source: str) -> BaseTool:
    """Return the langchain-core tool of one run for a function or tool.

    Args:
        candidate: A function, sync or async, or a langchain-core tool.
        context: The run's context, for a function that takes one.
        source: Name of the file or argument that the candidate comes from.

    Raises:
        ToolsLoadError: The candidate cannot work as a tool; names it, its argument and what to do.
    """
    if isinstance(candidate, BaseTool):
        return _check_marks(_with_annotated_marks(candidate, source), _Place(source))
    if not isinstance(candidate, types.FunctionType | types.MethodType):
        raise ToolsLoadError(
            source, None, f"found {candidate!r:.80}, expected a function with a docstring, or a langchain-core tool"
        )
    marks = read_marks(candidate)
    place = _place_of(candidate, marks)
    return _check_marks(_function_tool(candidate, marks, context, place), place)


def source_of(candidate: Tool) -> str:
    """Return the source of a function or of a langchain-core tool's function, so that a change of it can be seen."""
    function: Any = getattr(candidate, "func", None) or getattr(candidate, "coroutine", None) or candidate
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return repr(getattr(function, "__qualname__", type(function).__qualname__))


def _function_tool(
    function: types.FunctionType | types.MethodType, marks: ToolMarks, context: ToolContext, place: _Place
) -> BaseTool:
    if not _NAME.fullmatch(place.tool):
        raise place.error('the name cannot be written in a call; give another with @tool(name="...")')
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise place.error("it yields; return one text instead")
    description, documented = read_docstring(inspect.getdoc(function) or "")
    description = marks.description or description
    if not description:
        raise place.error("it has no docstring; the model reads there what the tool does")
    arguments = _read_arguments(function, documented, place)
    injected = [one.name for one in arguments if one.is_context]
    visible = [one for one in arguments if not one.is_context]
    bound = _bind(function, injected, context)
    copied = [one.name for one in visible if one.is_copied]
    quoted = [one.name for one in visible if one.is_quoted]
    if len(quoted) > 1:
        raise place.error(f"arguments {' and '.join(quoted)} are both Quoted; mark one")
    metadata: dict[str, Any] = {"effect": marks.effect}
    metadata |= {"copied": copied} if copied else {}
    metadata |= {"quoted": quoted[0]} if quoted else {}
    is_async = inspect.iscoroutinefunction(function)
    return StructuredTool(
        name=place.tool,
        description=description,
        args_schema=_schema(visible, place),
        func=None if is_async else bound,
        coroutine=bound if is_async else None,
        metadata=metadata,
    )


@dataclass(frozen=True)
class _Argument:
    """An argument of a function, as its signature and docstring describe it."""

    name: str
    annotation: Any
    default: Any
    description: str
    is_context: bool = False
    is_copied: bool = False
    is_quoted: bool = False


def _read_arguments(function: Callable[..., Any], documented: Mapping[str, str], place: _Place) -> list[_Argument]:
    parameters = inspect.signature(function).parameters
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception as fault:
        raise place.error(f"an annotation cannot be read ({type(fault).__name__}: {fault}); correct it") from fault
    return [_read_argument(one, hints, documented, place) for one in parameters.values()]


def _read_argument(
    parameter: inspect.Parameter, hints: Mapping[str, Any], documented: Mapping[str, str], place: _Place
) -> _Argument:
    name = parameter.name
    if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
        raise place.error(f"argument {name!r} is {parameter.kind.description}; tools take arguments by name")
    if name not in hints:
        raise place.error(f"argument {name!r} has no annotation; write for example {name}: str")
    if hints[name] is ToolContext:
        return _Argument(name, ToolContext, parameter.default, "", is_context=True)
    if name in RESERVED or name.startswith("_"):
        raise place.error(f"argument {name!r} has a name that tools cannot have; rename it")
    annotation, extras = _split(hints[name])
    text = next((one for one in extras if isinstance(one, str)), documented.get(name, ""))
    rest = [one for one in extras if not isinstance(one, str) and not _is_mark(one)]
    return _Argument(
        name,
        Annotated[(annotation, *rest)] if rest else annotation,
        parameter.default,
        text,
        is_copied=any(one is Copied or isinstance(one, Copied) for one in extras),
        is_quoted=any(one is Quoted or isinstance(one, Quoted) for one in extras),
    )


def _split(annotation: Any) -> tuple[Any, Sequence[Any]]:
    """Return the type of an annotation and what `Annotated` adds to it."""
    if get_origin(annotation) is not Annotated:
        return annotation, ()
    inner, *extras = get_args(annotation)
    return inner, extras


def _is_mark(extra: Any) -> bool:
    return extra in (Copied, Quoted) if isinstance(extra, type) else isinstance(extra, Copied | Quoted)


def _schema(arguments: Sequence[_Argument], place: _Place) -> type[BaseModel]:
    """Return the arguments as a pydantic model. Each is tried alone first, so that the error names it."""
    fields: dict[str, Any] = {}
    for argument in arguments:
        default = ... if argument.default is inspect.Parameter.empty else argument.default
        fields[argument.name] = (argument.annotation, Field(default, description=argument.description or None))
        try:
            _model(place.tool, {argument.name: fields[argument.name]}).model_json_schema()
        except (PydanticUserError, TypeError, NameError) as fault:
            cause = str(fault).partition("\n")[0]
            raise place.error(
                f"argument {argument.name!r} has the type {argument.annotation!r}, which has no JSON form ({cause}); "
                "use str, int, float, bool, a list, Literal, an Enum or a pydantic model"
            ) from fault
    return _model(place.tool, fields)


def _model(name: str, fields: Mapping[str, Any]) -> type[BaseModel]:
    with warnings.catch_warnings():
        # An argument may be called `copy` or `json`, as methods of pydantic's models are.
        warnings.filterwarnings("ignore", message=".*shadows an attribute in parent.*", category=UserWarning)
        made: type[BaseModel] = create_model(
            f"{name}_arguments", __config__=ConfigDict(protected_namespaces=()), **fields
        )
    return made


def _bind(function: Callable[..., Any], injected: Sequence[str], context: ToolContext) -> Callable[..., Any]:
    """Return the function with the run's context in place; langchain-core looks at its signature."""
    given = dict.fromkeys(injected, context)

    @wraps(function)
    def call(*args: Any, **arguments: Any) -> Any:
        return function(*args, **arguments, **given)

    @wraps(function)
    async def call_async(*args: Any, **arguments: Any) -> Any:
        return await function(*args, **arguments, **given)

    bound: Any = call_async if inspect.iscoroutinefunction(function) else call
    signature = inspect.signature(function)
    kept = [one for one in signature.parameters.values() if one.name not in given]
    bound.__signature__ = signature.replace(parameters=kept)
    return typing.cast("Callable[..., Any]", bound)


def read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Return the part of a docstring above its sections, and the descriptions of its arguments (Google style)."""
    lines = text.splitlines()
    sections = [number for number, line in enumerate(lines) if _SECTION.fullmatch(line)]
    description = " ".join(" ".join(lines[: sections[0] if sections else len(lines)]).split())
    arguments: dict[str, str] = {}
    for start, end in pairwise([*sections, len(lines)]):
        if lines[start].strip() in ("Args:", "Arguments:", "Parameters:"):
            arguments |= _read_argument_lines(lines[start + 1 : end])
    return description, arguments


def _read_argument_lines(lines: Sequence[str]) -> dict[str, str]:
    """Read `name: text` lines; a line that is indented deeper goes on with the text above it."""
    arguments: dict[str, str] = {}
    indents = [len(line) - len(line.lstrip()) for line in lines if line.strip()]
    name = ""
    for line in lines:
        match = _ARGUMENT.fullmatch(line.strip())
        if match and len(line) - len(line.lstrip()) == min(indents):
            name = match[1]
            arguments[name] = match[2]
        elif name and line.strip():
            arguments[name] = f"{arguments[name]} {line.strip()}".strip()
    return arguments


def _with_annotated_marks(tool: BaseTool, source: str) -> BaseTool:
    """Return a langchain-core tool with `Copied` and `Quoted` of its function's annotations in its metadata."""
    function = getattr(tool, "func", None) or getattr(tool, "coroutine", None)
    if function is None:
        return tool
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:
        return tool  # langchain-core has read the annotations that it needs
    extras = {name: _split(hint)[1] for name, hint in hints.items() if name in tool.args}
    copied = [name for name, marks in extras.items() if any(one is Copied or isinstance(one, Copied) for one in marks)]
    quoted = [name for name, marks in extras.items() if any(one is Quoted or isinstance(one, Quoted) for one in marks)]
    if len(quoted) > 1:
        raise ToolsLoadError(source, None, f"{tool.name}: arguments {' and '.join(quoted)} are both Quoted; mark one")
    if not copied and not quoted:
        return tool
    metadata = dict(tool.metadata or {})
    metadata["copied"] = list(dict.fromkeys([*metadata.get("copied", ()), *copied]))
    metadata |= {"quoted": quoted[0]} if quoted else {}
    return tool.model_copy(update={"metadata": metadata})


def _check_marks(tool: BaseTool, place: _Place) -> BaseTool:
    """Refuse an unknown effect, and marks on what is not a text argument."""
    metadata = tool.metadata or {}
    effect = metadata.get("effect", "world")
    if effect not in EFFECTS:
        raise ToolsLoadError(
            place.file, place.line, f"{tool.name} has effect {effect!r}, expected one of {', '.join(EFFECTS)}"
        )
    marked = [(name, "copied") for name in metadata.get("copied", ())]
    marked += [(metadata["quoted"], "quoted")] if "quoted" in metadata else []
    for name, mark in marked:
        if tool.args.get(name, {}).get("type") != "string":
            raise ToolsLoadError(
                place.file,
                place.line,
                f"{tool.name} marks argument {name!r} as {mark}, but has no text argument of that name; its arguments "
                f"are {', '.join(tool.args) or 'none'}",
            )
    return tool


def _place_of(function: types.FunctionType | types.MethodType, marks: ToolMarks) -> _Place:
    code = inspect.unwrap(function).__code__
    return _Place(code.co_filename, code.co_firstlineno, marks.name or function.__name__)
