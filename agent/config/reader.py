"""Reads and writes `ratchet.toml`. Every fault of a file is reported at once, with its line."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from agent.config.faults import did_you_mean, expected, fields_of, format_value
from agent.config.settings import Settings
from agent.errors import SettingsError
from agent.util.logs import get_logger

RETIRED: Mapping[tuple[str, str], tuple[object, ...]] = {
    ("tuning", "contexts"): (),
    ("tuning", "abstain"): (),
    ("tuning", "adversarial"): ("fgm", "pgd"),
    ("memory", "recall_as"): ("both",),
}
"""Keys of earlier versions that are ignored with a warning; with values, only these values of the key are."""

_log = get_logger("config")


def load_settings(path: Path) -> Settings:
    """Read a `ratchet.toml`.

    Raises:
        SettingsError: The file cannot be read, or has faults; it lists all of them.
    """
    settings, faults = read_settings(path)
    if faults:
        raise SettingsError(str(path), faults)
    return settings


def read_settings(path: Path) -> tuple[Settings, list[str]]:
    """Return the settings of a file and its faults; with faults, the settings are the defaults."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        data = tomllib.loads(text)
    except OSError as fault:
        return Settings(), [f"cannot be read ({fault.strerror}); run `ratchet init` to write one"]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        return Settings(), [f"not TOML: {fault}"]
    _drop_retired(data, path)
    try:
        # As JSON, because strict validation of Python objects takes neither a dictionary for a section nor a list.
        return TypeAdapter(Settings).validate_json(json.dumps(data, default=str)), []
    except ValidationError as error:
        return Settings(), list(_faults(error, data, text))


def settings_template() -> str:
    """Return a `ratchet.toml` with every section, key, description and default."""
    lines = ["# Settings of Ratchet. Every key is shown with its default; a key that is left out keeps it."]
    for name, section in _sections().items():
        lines += ["", f"# {(type(section).__doc__ or '').splitlines()[0]}", f"[{name}]"]
        for key, field in fields_of(section).items():
            lines += [f"# {field.description}", f"{key} = {_toml(getattr(section, key))}"]
    return "\n".join(lines) + "\n"


def _sections() -> dict[str, Any]:
    defaults = Settings()
    return {section.name: getattr(defaults, section.name) for section in fields(defaults)}


def _drop_retired(data: dict[str, Any], path: Path) -> None:
    for (section, key), values in RETIRED.items():
        keys = data.get(section)
        if not isinstance(keys, dict) or key not in keys or (values and keys[key] not in values):
            continue
        value = keys.pop(key)
        _log.warning(
            "%s: [%s] %s = %s is no longer used and was ignored; remove it", path, section, key, format_value(value)
        )


def _faults(error: ValidationError, data: Mapping[str, Any], text: str) -> Iterator[str]:
    """Yield one fault for each key, in pydantic's order."""
    sections = _sections()
    reported: set[tuple[object, ...]] = set()
    for one in error.errors(include_url=False):
        place = one["loc"][:2]
        if place in reported:
            continue
        reported.add(place)
        name = str(place[0])
        key = str(place[1]) if len(place) > 1 else None
        line = _line_of(text, name, key)
        yield ("" if line is None else f"line {line}: ") + _fault(one, name, key, data, sections)


def _fault(error: Any, name: str, key: str | None, data: Mapping[str, Any], sections: Mapping[str, Any]) -> str:
    if name not in sections:
        return _unknown(name, data[name], sections)
    if key is None:
        if error["type"] == "value_error":  # from a check of the section as a whole
            return f"[{name}] {error['ctx']['error']}"
        return f"{name} = {format_value(data[name])}: expected a section, written as [{name}]"
    keys = fields_of(sections[name])
    if key not in keys:
        return f"[{name}] unknown key {key}{did_you_mean(key, keys) or '; keys are ' + ', '.join(keys)}"
    return f"[{name}] {key} = {format_value(data[name][key])}: expected {expected(error, keys[key])}"


def _unknown(name: str, value: object, sections: Mapping[str, Any]) -> str:
    if isinstance(value, dict):
        return f"unknown section [{name}]{did_you_mean(name, sections) or '; sections are ' + ', '.join(sections)}"
    homes = [f"[{section}]" for section, default in sections.items() if name in fields_of(default)]
    hint = f"it belongs in {' or '.join(homes)}" if homes else "every key belongs in a section"
    return f"unknown key {name} outside a section; {hint}"


def _line_of(text: str, section: str, key: str | None) -> int | None:
    """Return the number of the line that sets a key, or opens a section; None where it is written in another form."""
    current = None
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line)
        if header:
            current = header[1].strip("\"'")
            if key is None and current == section:
                return number
        written = re.match(r"\s*([\w-]+)\s*=", line)
        if written and (current, written[1]) == ((None, section) if key is None else (section, key)):
            return number
    return None


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, Mapping):
        items = ", ".join(f"{_toml(name)} = {_toml(item)}" for name, item in value.items())
        return f"{{ {items} }}" if items else "{}"
    # TOML writes basic strings, booleans and numbers as JSON does.
    return json.dumps(value)
