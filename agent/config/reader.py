"""TODO: agent/config/reader.py"""

from __future__ import annotations

import ast
import difflib
import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from agent.config.settings import Settings
from agent.errors import SettingsError
from agent.util.hosts import is_loopback


def load_settings(path: Path) -> Settings:
    """Read one `ratchet.toml`. Raises SettingsError with every fault found."""
    settings, faults = _read(path)
    if faults:
        raise SettingsError(str(path), faults)
    return settings


def settings_template() -> str:
    """A `ratchet.toml` with every section, key, note and default; `load_settings` gives back the defaults."""
    lines = ["# Settings of Ratchet. Every key is shown with its default; a key that is left out keeps it."]
    notes = _notes()
    for name, section in _sections(Settings()):
        lines += ["", f"# {notes[type(section).__name__]}", f"[{name}]"]
        for key in fields(section):
            lines.append(f"# {notes[f'{type(section).__name__}.{key.name}']}")
            lines.append(f"{key.name} = {_toml(getattr(section, key.name))}")
    return "\n".join(lines) + "\n"


def _sections(settings: Settings) -> Iterator[tuple[str, Any]]:
    for section in fields(settings):
        yield section.name, getattr(settings, section.name)


def _read(path: Path) -> tuple[Settings, list[str]]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as fault:
        return Settings(), [f"cannot be read ({fault.strerror}); run `ratchet init` to write one"]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        return Settings(), [f"not TOML: {fault}"]
    known = dict(_sections(Settings()))
    faults: list[str] = []
    read: dict[str, Any] = {}
    for name, values in data.items():
        if name not in known:
            faults.append(_unknown(name, values, known))
        elif not isinstance(values, dict):
            faults.append(f"{name} = {_shown(values)}: expected a section, written as [{name}]")
        else:
            read[name], more = _section(name, known[name], values)
            faults += more
    settings = Settings(**read)
    if not faults and not settings.serve.key_file and not is_loopback(settings.serve.host):
        faults.append(
            f"[serve] host = {_shown(settings.serve.host)} is open to other machines; "
            "set key_file, or host to 127.0.0.1"
        )
    return settings, faults


def _unknown(name: str, values: object, known: Mapping[str, Any]) -> str:
    if isinstance(values, dict):
        return f"unknown section [{name}]{_meant(name, known) or '; sections are ' + ', '.join(known)}"
    homes = [section for section, default in known.items() if name in {key.name for key in fields(default)}]
    hint = f"; it belongs in {' or '.join(f'[{home}]' for home in homes)}" if homes else "; keys stand in a section"
    return f"unknown key {name} outside a section{hint}"


def _section(name: str, default: Any, values: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The section with what could be read, and what could not."""
    keys = {key.name: key for key in fields(default)}
    types = get_type_hints(type(default))
    faults: list[str] = []
    read: dict[str, Any] = {}
    for key, value in values.items():
        if key not in keys:
            faults.append(f"[{name}] unknown key {key}{_meant(key, keys) or '; keys are ' + ', '.join(keys)}")
            continue
        cast, wanted = _cast(value, types[key])
        rule = keys[key].metadata
        if wanted is None and rule and not rule["fits"](cast):
            wanted = rule["expected"]
        if wanted is None:
            read[key] = cast
        else:
            faults.append(f"[{name}] {key} = {_shown(value)}: expected {wanted}")
    return replace(default, **read), faults


def _cast(value: Any, wanted: Any) -> tuple[Any, str | None]:
    """The value as its field holds it, or what was expected instead."""
    if wanted is bool:
        return value, None if isinstance(value, bool) else "true or false"
    if wanted is int:
        return value, None if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
    if wanted is float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return value, "a number"
        return float(value), None
    if wanted is str:
        return value, None if isinstance(value, str) else "a text in quotes"
    if wanted == Mapping[str, str]:
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            return value, 'names with texts, such as { name = "text" }'
        return value, None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return value, 'a list of texts, such as ["a", "b"]'
    return tuple(value), None


def _apply_environment(settings: Settings, environ: Mapping[str, str]) -> tuple[Settings, list[str]]:
    text = environ.get("RATCHET_THREADS", "").strip()
    if not text:
        return settings, []
    if not text.isascii() or not text.isdecimal() or not 0 <= int(text[:9]) <= 1024:
        return settings, [f"RATCHET_THREADS = {_shown(text)}: expected a whole number, 0 to 1024"]
    return replace(settings, model=replace(settings.model, threads=int(text))), []


def _meant(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_toml(name)} = {_toml(item)}" for name, item in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, float):
        return repr(value)
    # TOML's basic strings, booleans and whole numbers are written as JSON writes them.
    return json.dumps(value)


def _notes() -> dict[str, str]:
    """The notes below the fields, read from this module's own source, so that they are written once."""
    notes: dict[str, str] = {}
    for node in ast.parse(Path(__file__).read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef):
            continue
        notes[node.name] = ast.get_docstring(node) or ""
        for key, note in zip(node.body, node.body[1:], strict=False):
            if isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name) and isinstance(note, ast.Expr):
                notes[f"{node.name}.{key.target.id}"] = " ".join(str(ast.literal_eval(note.value)).split())
    return notes
