"""TODO: agent/llm/prompt/tool_spec.py"""

from __future__ import annotations

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from agent.llm.prompt.step_grammar import ToolSpec


def describe(tool: BaseTool) -> ToolSpec:
    """What the model is told of a tool."""
    function = convert_to_openai_tool(tool)["function"]
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    marks = tool.metadata or {}
    return ToolSpec(
        tool.name,
        function.get("description", ""),
        parameters,
        marks.get("ends"),
        tuple(marks.get("copied", ())),
        marks.get("quoted"),
    )
