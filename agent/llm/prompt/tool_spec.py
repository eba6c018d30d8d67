"""What the model is shown of a tool, and what the grammar of its calls requires."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from agent.records.run import ToolCall

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool


@dataclass(frozen=True)
class ToolSpec:
    """A tool's description for the prompt, and the constraints on its calls."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON schema of the arguments: an object with `properties`."""
    ends: Literal["answered", "refused"] | None = None
    """The outcome of a run that this tool's call ends; None for tools that end no run."""
    copied: tuple[str, ...] = ()
    """Names of the string arguments that must be copied from the run's context."""
    quoted: str | None = None
    """Name of the string argument that must consist of whole sentences from observations."""

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """The values of each argument that is an enumeration of strings."""
        properties = self.parameters.get("properties", {})
        enums = {name: tuple(schema.get("enum", ())) for name, schema in properties.items()}
        return {
            name: values for name, values in enums.items() if values and all(isinstance(value, str) for value in values)
        }


def describe(tool: BaseTool) -> ToolSpec:
    """Return the specification of a langchain tool, with the constraints in its metadata."""
    from langchain_core.utils.function_calling import convert_to_openai_tool

    function = convert_to_openai_tool(tool)["function"]
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    metadata = tool.metadata or {}
    return ToolSpec(
        tool.name,
        function.get("description", ""),
        parameters,
        metadata.get("ends"),
        tuple(metadata.get("copied", ())),
        metadata.get("quoted"),
    )


def enum_arguments(call: ToolCall, tools: Sequence[ToolSpec]) -> tuple[tuple[str, str], ...]:
    """Return name and value of a call's arguments that are enumerations of strings, in the schema's order.

    Empty where the tool is not among `tools`. A value that the enumeration no longer has is left out.
    """
    choices = next((tool.choices for tool in tools if tool.name == call.name), {})
    return tuple((name, call.arguments[name]) for name, values in choices.items() if call.arguments.get(name) in values)
