"""Suites: tasks with checks, read from JSON lines.

A row has an id, a group, a task, the tools it may use and the checks of its run; rows for training have a worked
solution as well. All faults of a file are reported at once. Does not check that the named tools exist, which only a
project knows.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from agent.errors import TaskError
from agent.records.run import Task, ToolCall


@dataclass(frozen=True)
class StateCheck:
    """A query on a database of the run's workspace, and the rows it must give."""

    database: str
    """A file name inside the workspace."""
    query: str
    equals: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Check:
    """What must hold after a run has ended; empty parts are not checked."""

    calls: tuple[ToolCall, ...] = ()
    """Calls that must have succeeded, in any order; arguments that are not listed may have any value."""
    forbidden_calls: tuple[str, ...] = ()
    """Tools that must not have succeeded."""
    state: tuple[StateCheck, ...] = ()
    must: tuple[tuple[str, ...], ...] = ()
    """Required facts in the answer; of each inner tuple one is enough."""
    must_not: tuple[str, ...] = ()
    cites: tuple[str, ...] = ()
    """Documents that must be cited."""
    refusal: bool = False
    """Whether the run must end with `hand_over`, without having changed anything."""


@dataclass(frozen=True)
class SolutionStep:
    """A step of a worked solution; an argument may contain `{cite:DOCUMENT}`, which is resolved in the run."""

    call: ToolCall
    thought: str = ""
    plan: tuple[str, ...] = ()


@dataclass(frozen=True)
class SuiteTask:
    """A row of a suite."""

    id: str
    group: str
    task: Task
    check: Check
    tools: tuple[str, ...] | None = None
    """Names of the tools the run may use; None allows all tools of the project."""
    solution: tuple[SolutionStep, ...] = ()
    phrasing: str | None = None
    """The source of the wording, to show that held-out tasks share none with training."""


@dataclass(frozen=True)
class Suite:
    """Tasks in file order."""

    tasks: tuple[SuiteTask, ...]

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[SuiteTask]:
        return iter(self.tasks)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the rows in canonical form: it depends on their order, not on spacing or the order of keys."""
        digest = hashlib.sha256()
        for task in self.tasks:
            row = json.dumps(asdict(task), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
            digest.update(row.encode() + b"\n")
        return digest.hexdigest()

    @property
    def groups(self) -> dict[str, tuple[SuiteTask, ...]]:
        """The tasks by group, in file order."""
        groups: dict[str, list[SuiteTask]] = {}
        for task in self.tasks:
            groups.setdefault(task.group, []).append(task)
        return {name: tuple(tasks) for name, tasks in groups.items()}

    def head(self, n: int) -> Suite:
        """Return `n` tasks in file order, an even share of each group: the first of each, then the second …"""
        if n < 1:
            raise TaskError(f"a suite of {n} tasks was requested; expected at least 1")
        place: dict[str, int] = {}
        ranked: list[tuple[int, int]] = []
        for position, task in enumerate(self.tasks):
            rank = place.get(task.group, 0)
            place[task.group] = rank + 1
            ranked.append((rank, position))
        kept = sorted(position for _, position in sorted(ranked)[:n])
        return Suite(tuple(self.tasks[position] for position in kept))


def load_suite(path: Path, *, limit: int | None = None) -> Suite:
    """Read a suite, or `head(limit)` of it.

    Raises:
        TaskError: With every fault of the file as `file:line: reason`.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: cannot be read ({error}); expected JSON lines in UTF-8") from error
    tasks: list[SuiteTask] = []
    faults: list[str] = []
    first_seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _RowParser()
        task = row.parse(line)
        if task is not None and task.id in first_seen:
            row.faults.append(f"id {task.id!r} was used on line {first_seen[task.id]}; ids must differ")
        elif task is not None:
            first_seen[task.id] = number
            tasks.append(task)
        faults += [f"{path}:{number}: {fault}" for fault in row.faults]
    if not tasks and not faults:
        faults = [f"{path}:1: no rows; expected one JSON object a line"]
    if faults:
        raise TaskError("\n".join([f"{path}: {len(faults)} fault(s)", *(f"  - {fault}" for fault in faults)]))
    suite = Suite(tuple(tasks))
    return suite if limit is None else suite.head(limit)


_BUILT_IN = frozenset({"search_knowledge", "calculator", "answer", "hand_over"})
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# `meta` may hold anything; it is not read.
_ROW_KEYS = ("id", "group", "task", "tools", "check", "solution", "phrasing", "meta")
_CHECK_KEYS = ("calls", "forbidden_calls", "state", "must", "must_not", "cites", "refusal")


class _RowParser:
    """Parses a line and collects its faults."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def parse(self, line: str) -> SuiteTask | None:
        try:
            data = json.loads(line, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            self.faults.append(f"not JSON ({error}); expected one object a line")
            return None
        row = self._object(data, "the row", _ROW_KEYS)
        if row is None:
            return None
        identifier = self._text(row, "id")
        if identifier and not _ID.fullmatch(identifier):
            self.faults.append(f"id {identifier!r}; expected up to 100 letters, digits, '.', '_' or '-', no mark first")
        group = self._text(row, "group")
        task = self._object(row.get("task"), "task", ("text", "facts")) or {}
        text = self._text(task, "text", "task.") if task else ""
        facts = self._facts(task.get("facts", {}))
        tools = None if row.get("tools") is None else self._texts(row["tools"], "tools")
        check = self._check(row.get("check"))
        solution = tuple(
            step
            for i, item in enumerate(self._list(row.get("solution", []), "solution"))
            if (step := self._solution_step(item, f"solution[{i}]")) is not None
        )
        phrasing = None if row.get("phrasing") is None else self._text(row, "phrasing")
        self._check_calls(check, tools)
        if self.faults:
            return None
        return SuiteTask(identifier, group, Task(identifier, text, facts), check, tools, solution, phrasing)

    def _check(self, data: object) -> Check:
        row = self._object(data, "check", _CHECK_KEYS)
        if row is None:
            return Check()
        refusal = row.get("refusal", False)
        if not isinstance(refusal, bool):
            self._unexpected(refusal, "check.refusal", "true or false")
        check = Check(
            calls=tuple(
                call
                for i, item in enumerate(self._list(row.get("calls", []), "check.calls"))
                if (call := self._call(item, f"check.calls[{i}]", ("tool", "args"))) is not None
            ),
            forbidden_calls=self._texts(row.get("forbidden_calls", []), "check.forbidden_calls"),
            state=tuple(
                state
                for i, item in enumerate(self._list(row.get("state", []), "check.state"))
                if (state := self._state(item, f"check.state[{i}]")) is not None
            ),
            must=tuple(
                self._texts([item] if isinstance(item, str) else item, f"check.must[{i}]", at_least=1)
                for i, item in enumerate(self._list(row.get("must", []), "check.must"))
            ),
            must_not=self._texts(row.get("must_not", []), "check.must_not"),
            cites=self._texts(row.get("cites", []), "check.cites"),
            refusal=refusal is True,
        )
        if not self.faults and check == Check():
            self.faults.append("check is empty, so any answer would pass; add what must hold")
        return check

    def _check_calls(self, check: Check, tools: tuple[str, ...] | None) -> None:
        for i, call in enumerate(check.calls):
            if call.name in check.forbidden_calls:
                self.faults.append(f"check.calls[{i}] expects {call.name!r}, which is a forbidden call")
            if tools is not None and call.name not in tools and call.name not in _BUILT_IN:
                self.faults.append(f"check.calls[{i}] expects {call.name!r}, which is not in the row's tools")
            if call in check.calls[:i]:
                self.faults.append(f"check.calls[{i}] is listed twice; one call would satisfy both")

    def _state(self, data: object, where: str) -> StateCheck | None:
        row = self._object(data, where, ("database", "query", "equals"))
        if row is None:
            return None
        database = self._text(row, "database", f"{where}.")
        if database and (PurePosixPath(database).is_absolute() or ".." in PurePosixPath(database).parts):
            self.faults.append(f"{where}.database is {database!r}; expected a file inside the workspace")
        rows: list[tuple[Any, ...]] = []
        if "equals" not in row:
            self.faults.append(f"{where}.equals is missing; expected a list of rows")
        for i, item in enumerate(self._list(row.get("equals", []), f"{where}.equals")):
            rows.append(tuple(self._list(item, f"{where}.equals[{i}]")))
        return StateCheck(database, self._text(row, "query", f"{where}."), tuple(rows))

    def _solution_step(self, data: object, where: str) -> SolutionStep | None:
        call = self._call(data, where, ("tool", "args", "thought", "plan"))
        if call is None or not isinstance(data, dict):
            return None
        thought = data.get("thought", "")
        if not isinstance(thought, str):
            self._unexpected(thought, f"{where}.thought", "text")
            thought = ""
        return SolutionStep(call, thought, self._texts(data.get("plan", []), f"{where}.plan"))

    def _call(self, data: object, where: str, keys: tuple[str, ...]) -> ToolCall | None:
        row = self._object(data, where, keys)
        if row is None:
            return None
        args = row.get("args", {})
        if not isinstance(args, dict):
            self._unexpected(args, f"{where}.args", "an object")
            args = {}
        return ToolCall(self._text(row, "tool", f"{where}."), args)

    def _facts(self, data: object) -> dict[str, str]:
        if not isinstance(data, dict):
            self._unexpected(data, "task.facts", "an object of text")
            return {}
        for key, value in data.items():
            if not isinstance(value, str):
                self._unexpected(value, f"task.facts.{key}", "text")
        return {key: value for key, value in data.items() if isinstance(value, str)}

    def _object(self, data: object, where: str, keys: tuple[str, ...]) -> Mapping[str, Any] | None:
        if not isinstance(data, dict):
            self._unexpected(data, where, "an object")
            return None
        for key in data:
            if key not in keys:
                self.faults.append(f"{where} has the unknown key {key!r}; expected one of {', '.join(keys)}")
        return data

    def _text(self, row: Mapping[str, Any], key: str, prefix: str = "") -> str:
        value = row.get(key)
        if isinstance(value, str) and value.strip():
            return value
        self._unexpected(value, f"{prefix}{key}", "text that is not empty")
        return ""

    def _texts(self, data: object, where: str, at_least: int = 0) -> tuple[str, ...]:
        items = self._list(data, where)
        good = tuple(item for item in items if isinstance(item, str) and item.strip())
        if len(good) < len(items) or len(good) < at_least:
            self._unexpected(data, where, "a list of texts, none empty")
        return good

    def _list(self, data: object, where: str) -> list[Any]:
        if isinstance(data, list):
            return data
        self._unexpected(data, where, "a list")
        return []

    def _unexpected(self, value: object, where: str, expected: str) -> None:
        shown = "missing or null" if value is None else json.dumps(value, ensure_ascii=False)[:80]
        self.faults.append(f"{where} is {shown}; expected {expected}")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
