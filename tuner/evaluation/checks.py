"""Checks whether a finished run met the expectations of its task.

Reads the record and, for the final state, the databases of the run's workspace, opened read-only. Texts are compared
without regard to case, spacing and dashes, numbers in the answer exactly: "9 May" is not in "19 May". Does not measure
how well an answer is written.
"""

from __future__ import annotations

import math
import re
import sqlite3
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

from agent.records.run import Outcome, ToolCall, Trajectory
from tuner.evaluation.suite import Check, StateCheck, SuiteTask

ASPECTS = ("tool", "arguments", "facts", "state", "citations", "refusal")


@dataclass(frozen=True)
class RunScores:
    """The scores of a run; None for what the task does not check."""

    success: bool
    """Everything that the task checks holds, and the run ended as expected."""
    tool: bool | None = None
    """Every expected tool was called successfully, and no forbidden one."""
    arguments: bool | None = None
    facts: bool | None = None
    state: bool | None = None
    citations: bool | None = None
    refusal: bool | None = None
    """Escalated if, and only if, that was expected, and then without changing anything."""
    reasons: tuple[str, ...] = ()
    """What did not hold, a sentence each."""


def score(task: SuiteTask, trajectory: Trajectory, workspace: Path, *, pristine: Path | None = None) -> RunScores:
    """Score a finished run.

    Args:
        task: With its checks.
        trajectory: The record of the run.
        workspace: Of the run.
        pristine: The project's copy of the databases, a file or a folder. Tools copy a database into the workspace on
            first use, so for a run that used none this copy is the final state.
    """
    check = task.check
    done = tuple(step.call for step in trajectory.steps if step.call is not None and step.error is None)
    tool = _tool(check, done)
    arguments = _arguments(check, done)
    facts = _facts(check, trajectory)
    state = [_state(one, workspace, pristine) for one in check.state]
    citations = _citations(check, trajectory)
    refusal = _refusal(check, trajectory, workspace, pristine)
    wrong_state = [reason for found in state for reason in found]
    reasons = (*tool, *arguments, *facts, *wrong_state, *citations, *refusal)
    expected = Outcome.REFUSED if check.refusal else Outcome.ANSWERED
    if trajectory.outcome is not expected and not refusal:
        reasons = (*reasons, _ended(trajectory, "an answer was expected"))
    return RunScores(
        success=not reasons,
        tool=not tool if check.calls or check.forbidden_calls else None,
        arguments=not arguments if check.calls else None,
        facts=not facts if check.must or check.must_not else None,
        state=not any(state) if check.state else None,
        citations=not citations if check.cites else None,
        refusal=not refusal,
        reasons=reasons,
    )


def same_value(expected: Any, found: Any) -> bool:
    """Return whether two JSON values mean the same: "48213" and 48213 do, and texts that differ in case."""
    if expected is None or found is None:
        return expected is found
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        return expected.keys() == found.keys() and all(same_value(value, found[key]) for key, value in expected.items())
    if _is_list(expected) and _is_list(found):
        return len(expected) == len(found) and all(map(same_value, expected, found))
    if isinstance(expected, str) and isinstance(found, str):
        return plain(expected) == plain(found)
    if isinstance(expected, bool) or isinstance(found, bool):
        truth = {"true": True, "false": False, "1": True, "0": False}
        left, right = (truth.get(str(value).strip().lower()) for value in (expected, found))
        return left is not None and left == right
    left_number, right_number = _number(expected), _number(found)
    if left_number is None or right_number is None:
        return False
    if isinstance(expected, float) or isinstance(found, float):
        return math.isclose(left_number, right_number, rel_tol=1e-9)
    return left_number == right_number


def plain(text: str) -> str:
    """Normalise a text for comparison: NFKC, lower case, single spaces, plain dashes and quotes."""
    folded = unicodedata.normalize("NFKC", text).translate(_PLAIN).casefold()
    return " ".join(folded.split())


_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"
_PLAIN = str.maketrans(
    {
        **dict.fromkeys(_DASHES, "-"),
        **dict.fromkeys("\u2018\u2019\u201b\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201f\u2033", '"'),
        **dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff"),
    }
)
_NUMBER = re.compile(r"[+-]?(0|[1-9][0-9]*)(\.[0-9]+)?")


def _tool(check: Check, done: Sequence[ToolCall]) -> list[str]:
    names = {call.name for call in done}
    missing = [name for name in dict.fromkeys(call.name for call in check.calls) if name not in names]
    forbidden = [name for name in check.forbidden_calls if name in names]
    return [
        *(f"the tool {name} was never called successfully" for name in missing),
        *(f"the tool {name} was called, which is forbidden here" for name in forbidden),
    ]


def _arguments(check: Check, done: Sequence[ToolCall]) -> list[str]:
    return [
        f"no successful call of {expected.name} had {_listed(expected.arguments)}"
        for expected in check.calls
        if not any(_fits(expected, call) for call in done)
    ]


def _fits(expected: ToolCall, call: ToolCall) -> bool:
    return expected.name == call.name and all(
        same_value(value, call.arguments.get(name)) for name, value in expected.arguments.items()
    )


def _listed(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items()) or "any arguments"


def _facts(check: Check, trajectory: Trajectory) -> list[str]:
    if not check.must and not check.must_not:
        return []
    said = trajectory.answer
    if said is None and check.refusal and trajectory.outcome is Outcome.REFUSED:
        call = trajectory.steps[-1].call if trajectory.steps else None
        said = str(call.arguments.get("reason", "")) if call else ""
    if said is None:
        return ["there is no answer to look for required facts in"]
    text = plain(said)
    return [
        *(
            f"the answer does not say {' or '.join(map(repr, anyof))}"
            for anyof in check.must
            if not any(_contains(text, fact) for fact in anyof)
        ),
        *(f"the answer says {fact!r}, which it must not" for fact in check.must_not if _contains(text, fact)),
    ]


def _contains(text: str, fact: str) -> bool:
    """Return whether a normalised text contains a fact; a number at its edges must be a whole number of the text."""
    wanted = plain(fact)
    before = r"(?<![0-9])(?<![0-9]\.)" if wanted[:1].isdigit() else ""
    # 45 also matches 45.00, but not 450, 45.50 or 45,000.
    after = r"(?![0-9])(?!\.(?!0+(?![0-9]))[0-9])(?!,[0-9]{3}(?![0-9]))" if wanted[-1:].isdigit() else ""
    return re.search(before + re.escape(wanted) + after, text) is not None


def _state(check: StateCheck, workspace: Path, pristine: Path | None) -> list[str]:
    path = _database(check.database, workspace, pristine)
    if path is None:
        return [f"the run left no {check.database}, and there is no untouched copy of it"]
    try:
        rows = _query(path, check.query)
    except (sqlite3.Error, sqlite3.Warning) as error:
        return [f"the state of {check.database} cannot be read: {error}"]
    if same_value([list(row) for row in check.equals], [list(row) for row in rows]):
        return []
    return [f"{check.database}: {check.query!r} gave {_rows(rows)}, expected {_rows(check.equals)}"]


def _database(name: str, workspace: Path, pristine: Path | None) -> Path | None:
    used = workspace / name
    if used.is_file():
        return used
    if pristine is None:
        return None
    untouched = pristine if pristine.name == Path(name).name and pristine.is_file() else pristine / name
    return untouched if untouched.is_file() else None


_READING = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})


def _query(path: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(_open(path)) as connection:
        # A query on a read-only database could still attach, and so create, another file.
        connection.set_authorizer(_authorize)
        return connection.execute(query).fetchall()


def _authorize(action: int, *_: object) -> int:
    return sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True)


def _rows(rows: Sequence[Sequence[Any]]) -> str:
    shown = repr([list(row) for row in rows])
    return shown if len(shown) <= 200 else shown[:200] + "…"


def _citations(check: Check, trajectory: Trajectory) -> list[str]:
    if not check.cites:
        return []
    cited: set[str] = set()
    if trajectory.answer is not None and trajectory.steps[-1].call is not None:
        labels = trajectory.steps[-1].call.arguments.get("citations")
        wanted = labels if isinstance(labels, list | tuple) else ()
        cited = {passage.document for passage in trajectory.passages if passage.label in wanted}
    return [f"{document} is not cited" for document in check.cites if document not in cited]


def _refusal(check: Check, trajectory: Trajectory, workspace: Path, pristine: Path | None) -> list[str]:
    refused = trajectory.outcome is Outcome.REFUSED
    if not check.refusal:
        return [_ended(trajectory, "an answer was expected")] if refused else []
    if not refused:
        return [_ended(trajectory, "an escalation was expected")]
    return [f"the run changed {name} before it escalated" for name in _changed(workspace, pristine)]


def _changed(workspace: Path, pristine: Path | None) -> list[str]:
    """Return the names of the workspace's databases whose content differs from the project's copy."""
    if pristine is None or not workspace.is_dir():
        return []
    changed = []
    originals = [pristine] if pristine.is_file() else sorted(pristine.glob("*.db"))
    for original in originals:
        used = workspace / original.name
        if used.is_file() and _dump(used) != _dump(original):
            changed.append(original.name)
    return changed


def _dump(path: Path) -> list[str] | str:
    try:
        with closing(_open(path)) as connection:
            return list(connection.iterdump())
    except sqlite3.Error as error:
        return f"{path}: {error}"


def _ended(trajectory: Trajectory, expected: str) -> str:
    if trajectory.outcome is None:
        return f"the run has not ended; {expected}"
    why = f": {trajectory.error}" if trajectory.error else ""
    return f"the run ended {trajectory.outcome} ({trajectory.outcome.meaning}{why}); {expected}"


def _number(value: Any) -> Decimal | None:
    if isinstance(value, str):
        return Decimal(value.strip()) if _NUMBER.fullmatch(value.strip()) else None
    return Decimal(repr(value)) if isinstance(value, int | float) else None


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)
