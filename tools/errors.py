"""The error of tools that cannot be loaded."""

from __future__ import annotations


class ToolsLoadError(Exception):
    """The user's tools cannot be loaded; names the file, the line and the cause."""

    def __init__(self, file: str, line: int | None, cause: str) -> None:
        self.file = file
        self.line = line
        self.cause = cause
        super().__init__(f"tools of {file}{f', line {line}' if line else ''}: {cause}")
