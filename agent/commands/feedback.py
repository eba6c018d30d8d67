"""`rate` and `correct`: what people say of a run, checked and appended."""

from __future__ import annotations

import getpass
import json
from argparse import Namespace
from dataclasses import asdict
from typing import Any
from uuid import uuid4

from agent.commands.console import call_text, result, result_json
from agent.commands.runs import pairs
from agent.commands.session import Session, UsageError


def rate(arguments: Namespace, session: Session) -> int:
    from agent.feedback import make_rating
    from agent.loop import timestamp

    with session.store() as store:
        rating = make_rating(
            store.get(arguments.run),
            arguments.verdict,
            reviewer=_reviewer(arguments),
            reason=arguments.reason,
            id=uuid4().hex,
            at=timestamp(),
        )
        store.rate(rating)
    if arguments.json:
        result_json(asdict(rating))
    elif not arguments.quiet:
        result(f"run {rating.run} rated {rating.verdict} by {rating.reviewer}")
    return 0


def correct(arguments: Namespace, session: Session) -> int:
    from agent.feedback import make_correction
    from agent.loop import make_frame, timestamp

    changes = pairs(arguments.arg, "--arg")
    whole = _arguments(arguments.args)
    if whole is not None and changes:
        raise UsageError("--args replaces all arguments and --arg one of them; give one kind")
    given = (arguments.thought, arguments.plan, arguments.tool, whole, arguments.answer, arguments.cite)
    if not changes and all(value is None for value in given):
        raise UsageError("nothing to correct; give --thought, --plan, --tool, --arg, --args or --answer")
    with session.runtime() as runtime, session.store() as store:
        trajectory = store.get(arguments.run)
        with runtime.checking_tools(trajectory.task) as tools:
            frame = make_frame(tools, runtime.options)
        correction = make_correction(
            trajectory,
            arguments.step,
            tools=tools,
            frame=frame,
            tool=arguments.tool,
            arguments=whole,
            changes=changes,
            answer=arguments.answer,
            citations=arguments.cite,
            thought=arguments.thought,
            plan=None if arguments.plan is None else _plan(arguments.plan),
            reviewer=_reviewer(arguments),
            reason=arguments.reason,
            id=uuid4().hex,
            at=timestamp(),
        )
        store.correct(correction)
    if arguments.json:
        result_json(asdict(correction))
    elif not arguments.quiet:
        call = call_text(correction.call.name, correction.call.arguments)
        result(f"step {correction.step} of run {correction.run} corrected by {correction.reviewer}: {call}")
    return 0


def _reviewer(arguments: Namespace) -> str:
    if arguments.reviewer is not None:
        return str(arguments.reviewer)
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        raise UsageError("the system does not say who you are; give --reviewer NAME") from None


def _plan(text: str) -> list[str]:
    return [item.strip() for item in text.split(";") if item.strip()]


def _arguments(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError as fault:
        raise UsageError(f'--args is not JSON ({fault}); expected an object such as \'{{"id": "4711"}}\'') from None
    if not isinstance(found, dict):
        raise UsageError(f"--args is a JSON {type(found).__name__}; expected an object of the tool's arguments")
    return found
