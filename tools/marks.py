"""Marks for the functions that become tools: `@tool(effect=...)`, and `Copied` and `Quoted` for their arguments.

    @tool(effect="read")
    def find_book(title: Annotated[str, Copied(), "title as the reader wrote it"]) -> str:
        "Look a book up in the catalogue."

A marked function stays a function. `tools.functions` turns it into a langchain-core tool for each run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, overload

Effect = Literal["read", "workspace", "world"]
"""What a call changes: nothing, only the run's own workspace, or the world outside of it (the default)."""

EFFECTS: tuple[str, ...] = get_args(Effect)

Function = TypeVar("Function", bound=Callable[..., Any])

_ATTRIBUTE = "__ratchet_tool__"


@dataclass(frozen=True)
class Copied:
    """Mark a text argument whose value is copied from the task or from an observation, never made up."""


@dataclass(frozen=True)
class Quoted:
    """Mark a text argument that is made of whole sentences of the observations. A tool has one at most."""


@dataclass(frozen=True)
class ToolMarks:
    """What `@tool` says about a function."""

    effect: Effect = "world"
    name: str | None = None
    """Left out: the function's own name."""
    description: str | None = None
    """Left out: the docstring above its sections."""


@overload
def tool(function: Function, /) -> Function: ...
@overload
def tool(
    *, effect: Effect = "world", name: str | None = None, description: str | None = None
) -> Callable[[Function], Function]: ...
def tool(
    function: Function | None = None,
    /,
    *,
    effect: Effect = "world",
    name: str | None = None,
    description: str | None = None,
) -> Function | Callable[[Function], Function]:
    """Mark a function, sync or async, as a tool and return it unchanged.

    Args:
        effect: What a call changes. A call with an effect on the world is never repeated when a run is resumed.
        name: Name that the model sees.
        description: Description that the model sees.

    Raises:
        ValueError: The effect is unknown.
    """
    if effect not in EFFECTS:
        raise ValueError(f"effect is {effect!r}, expected one of {', '.join(EFFECTS)}")
    marks = ToolMarks(effect, name, description)

    def mark(marked: Function) -> Function:
        setattr(marked, _ATTRIBUTE, marks)
        return marked

    return mark if function is None else mark(function)


def read_marks(function: Callable[..., Any]) -> ToolMarks:
    """Return what `@tool` says about a function; the defaults where it is not marked."""
    marks = getattr(function, _ATTRIBUTE, None)
    return marks if isinstance(marks, ToolMarks) else ToolMarks()
