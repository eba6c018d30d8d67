"""Plain functions as tools: what the model sees of them, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from langchain_core.tools import BaseTool, ToolException
from langchain_core.tools import tool as langchain_tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field

from tools.context import ToolContext
from tools.errors import ToolsLoadError
from tools.functions import make_tool, read_docstring
from tools.marks import Copied, Quoted, tool


def make(candidate: Any) -> BaseTool:
    return make_tool(candidate, ToolContext(Path("work"), Path("project"), facts={"reader": "Ada"}), "here")


def find_book(title: str, shelf: Literal["a", "b"] = "a", copies: Annotated[int, Field(ge=1), "how many"] = 1) -> str:
    """Look a book up
    in the catalogue.

    Args:
        title: The title,
            as printed.
        shelf (str): Where to look.
        copies: Not read, as the annotation says it.

    Returns:
        The shelf.
    """
    return f"{title} {shelf} {copies}"


def test_name_docstring_and_annotations_are_what_the_model_sees() -> None:
    made = make(find_book)
    function = convert_to_openai_tool(made)["function"]
    assert (function["name"], function["description"]) == ("find_book", "Look a book up in the catalogue.")
    properties = function["parameters"]["properties"]
    assert [one["description"] for one in properties.values()] == [
        "The title, as printed.",
        "Where to look.",
        "how many",
    ]
    assert properties["shelf"]["enum"] == ["a", "b"]
    assert properties["copies"]["minimum"] == 1
    assert function["parameters"]["required"] == ["title"]
    assert made.invoke({"title": "Walden"}) == "Walden a 1"
    assert made.metadata == {"effect": "world"}


def test_an_async_function_and_a_method_are_tools() -> None:
    class Catalogue:
        def __init__(self) -> None:
            self.asked: list[str] = []

        async def ask(self, title: str) -> str:
            """Ask."""
            self.asked.append(title)
            return title.upper()

        def count(self) -> int:
            """Count."""
            return len(self.asked)

    catalogue = Catalogue()
    assert asyncio.run(make(catalogue.ask).ainvoke({"title": "Walden"})) == "WALDEN"
    assert make(catalogue.count).invoke({}) == 1


def test_a_marked_function_stays_a_function() -> None:
    @tool(effect="read", name="look_up", description="Look.")
    def find(title: Annotated[str, Copied(), "as written"], quote: Annotated[str, Quoted] = "") -> str:
        return title

    made = make(find)
    assert find("Walden") == "Walden"
    assert (made.name, made.description) == ("look_up", "Look.")
    assert made.metadata == {"effect": "read", "copied": ["title"], "quoted": "quote"}
    assert made.args["title"] == {"description": "as written", "title": "Title", "type": "string"}


def test_the_context_is_passed_to_a_function_and_not_shown_to_the_model() -> None:
    def greet(word: str, context: ToolContext) -> str:
        """Greet."""
        return f"{word} {context.facts['reader']}"

    async def greet_later(context: ToolContext) -> str:
        """Greet."""
        return context.facts["reader"]

    assert list(make(greet).args) == ["word"]
    assert make(greet).invoke({"word": "Hello"}) == "Hello Ada"
    assert asyncio.run(make(greet_later).ainvoke({})) == "Ada"


def test_what_a_function_raises_comes_out_of_the_call() -> None:
    def refuse() -> str:
        """Refuse."""
        raise ToolException("closed")

    with pytest.raises(ToolException, match="closed"):
        make(refuse).invoke({})


def test_a_langchain_tool_keeps_its_metadata_and_its_annotations_are_read_too() -> None:
    @langchain_tool
    def find(title: Annotated[str, Copied()]) -> str:
        """Find."""
        return title

    find.metadata = {"effect": "read"}
    assert make(find).metadata == {"effect": "read", "copied": ["title"]}
    assert find.metadata == {"effect": "read"}
    find.metadata = {"effect": "read", "quoted": "title"}
    assert make(find).metadata == {"effect": "read", "quoted": "title", "copied": ["title"]}


def test_arguments_may_have_the_names_of_pydantic_methods() -> None:
    def write(json: str, copy: int, model_name: str) -> str:
        """Write."""
        return f"{json} {copy} {model_name}"

    assert make(write).invoke({"json": "{}", "copy": 2, "model_name": "m"}) == "{} 2 m"


def no_annotation(title) -> str:  # type: ignore[no-untyped-def]
    """Find."""
    return str(title)


def no_docstring(title: str) -> str:
    return title


def any_arguments(*titles: str) -> str:
    """Find."""
    return "".join(titles)


def unknown_annotation(title: Nowhere) -> str:  # type: ignore[name-defined]  # noqa: F821
    """Find."""
    return str(title)


def no_json(title: Callable[[], str]) -> str:
    """Find."""
    return title()


def taken(config: str) -> str:
    """Find."""
    return config


def copied_number(number: Annotated[int, Copied()]) -> str:
    """Find."""
    return str(number)


def quoted_twice(a: Annotated[str, Quoted()], b: Annotated[str, Quoted()]) -> str:
    """Find."""
    return a + b


def yields() -> Iterator[str]:
    """Find."""
    yield "a"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (no_annotation, "no_annotation: argument 'title' has no annotation; write for example title: str"),
        (no_docstring, "no_docstring: it has no docstring"),
        (any_arguments, "any_arguments: argument 'titles' is variadic positional; tools take arguments by name"),
        (unknown_annotation, r"unknown_annotation: an annotation cannot be read \(NameError: name 'Nowhere'"),
        (no_json, "no_json: argument 'title' has the type .*, which has no JSON form"),
        (taken, "taken: argument 'config' has a name that tools cannot have; rename it"),
        (copied_number, "copied_number marks argument 'number' as copied, but has no text argument of that name"),
        (quoted_twice, "quoted_twice: arguments a and b are both Quoted; mark one"),
        (yields, "yields: it yields; return one text instead"),
        (lambda: "", "<lambda>: the name cannot be written in a call"),
    ],
)
def test_a_function_that_cannot_work_is_refused_with_its_file_and_argument(
    function: Callable[..., Any], message: str
) -> None:
    with pytest.raises(ToolsLoadError, match=rf"test_functions\.py, line \d+: {message}"):
        make(function)


def test_an_object_that_is_no_tool_and_an_unknown_effect_are_refused() -> None:
    with pytest.raises(ToolsLoadError, match="tools of here: found 7, expected a function with a docstring"):
        make(7)
    with pytest.raises(ValueError, match="effect is 'magic', expected one of read, workspace, world"):
        tool(effect="magic")  # type: ignore[call-overload]


def test_a_docstring_without_sections_is_the_description() -> None:
    assert read_docstring("Find a book.\n\nLooks twice: here and there.") == (
        "Find a book. Looks twice: here and there.",
        {},
    )
    assert read_docstring("") == ("", {})
