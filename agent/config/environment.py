"""The environment variables of this project. No other module reads them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from agent.config.faults import expected, fields_of, format_value
from agent.errors import SettingsError

LogLevel = Literal["debug", "info", "warning", "error"]


def _split_folders(text: object) -> list[Path]:
    """Return the folders of a list separated as in PATH."""
    folders = [Path(part).expanduser() for part in str(text).split(os.pathsep) if part.strip()]
    if not all(folder.is_absolute() for folder in folders):
        raise ValueError("an absolute folder")
    return [folder.resolve() for folder in folders]


@dataclass(frozen=True)
class Environment:
    """The environment variables, each named RATCHET_ and the field in capitals."""

    home: str = Field(default="", description="The home folder, in place of the one that belongs to the project.")
    threads: int | None = Field(default=None, ge=0, le=1024, description="Overrides [model] threads.")
    trust: Annotated[tuple[Path, ...], BeforeValidator(_split_folders)] = Field(
        default=(),
        description="Folders whose settings and tools are used although another user could have written them.",
    )
    log: LogLevel | None = Field(
        default=None, description="Lowest level of the log messages written to standard error."
    )


def read_environment(environ: Mapping[str, str] | None = None) -> tuple[Environment, list[str]]:
    """Return the environment variables and what is wrong with them.

    Args:
        environ: Variables by name; by default those of the process. An empty variable counts as unset.
    """
    environ = os.environ if environ is None else environ
    fields = fields_of(Environment)
    texts = {name: environ.get(variable_name(name), "").strip() for name in fields}
    values = {name: text.lower() if name == "log" else text for name, text in texts.items() if text}
    try:
        return TypeAdapter(Environment).validate_python(values), []
    except ValidationError as error:
        faults = {
            str(one["loc"][0]): expected(dict(one), fields[str(one["loc"][0])])
            for one in error.errors(include_url=False)
        }
        valid = {name: value for name, value in values.items() if name not in faults}
        messages = [
            f"{variable_name(name)} = {format_value(texts[name])}: expected {what}" for name, what in faults.items()
        ]
        return TypeAdapter(Environment).validate_python(valid), messages


def read_log_level(environ: Mapping[str, str] | None = None) -> LogLevel | None:
    """Return the level of RATCHET_LOG, or None.

    Raises:
        SettingsError: RATCHET_LOG names no level.
    """
    environment, faults = read_environment(environ)
    wrong = [fault for fault in faults if fault.startswith(variable_name("log"))]
    if wrong:
        raise SettingsError("the environment", wrong)
    return environment.log


def variable_name(field: str) -> str:
    """Return the environment variable of a field of `Environment`."""
    return f"RATCHET_{field.upper()}"
