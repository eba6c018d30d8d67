"""The commands `rate`, `correct`, `corrections` and `arbitrate`."""

from __future__ import annotations

import getpass
import json
from argparse import Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from agent.cli.console import call_text, note, result, result_json, table
from agent.cli.runs import pairs
from agent.cli.session import Session, UsageError

if TYPE_CHECKING:
    from agent.feedback.approved import CorrectionStatus
    from agent.records.feedback import Correction
    from agent.records.run import Trajectory


def rate(arguments: Namespace, session: Session) -> int:
    """Rate a run."""
    from agent.feedback import service

    with session.runtime() as runtime, session.store():
        rating = service.rate(
            runtime, arguments.run, arguments.verdict, reviewer=_reviewer(arguments), reason=arguments.reason
        )
    if arguments.json:
        result_json(asdict(rating))
    elif not arguments.quiet:
        result(f"run {rating.run} rated {rating.verdict} by {rating.reviewer}")
    return 0


def correct(arguments: Namespace, session: Session) -> int:
    """Correct a step of a run, or the output of a trained task that it called."""
    from agent.feedback import service

    if arguments.output is not None:
        return _correct_output(arguments, session)
    changes = pairs(arguments.arg, "--arg")
    whole = _arguments(arguments.args)
    if whole is not None and changes:
        raise UsageError("--args replaces all arguments and --arg single ones; give one of the two")
    if not changes and whole is None and not _names_a_part(arguments):
        raise UsageError("nothing to correct; give --thought, --plan, --tool, --arg, --args, --answer or --output")
    with session.runtime() as runtime, session.store():
        trajectory = runtime.store.get(arguments.run)
        correction = service.correct(
            runtime,
            trajectory.id,
            arguments.step,
            tool=arguments.tool,
            arguments=whole,
            changes=changes,
            answer=arguments.answer,
            citations=arguments.cite,
            thought=arguments.thought,
            plan=None if arguments.plan is None else _plan(arguments.plan),
            reviewer=_reviewer(arguments),
            reason=arguments.reason,
            kind=arguments.kind,
        )
    if arguments.json:
        result_json(asdict(correction) | ({} if arguments.kind is None else {"kind": arguments.kind}))
    elif not arguments.quiet:
        call = call_text(correction.call.name, correction.call.arguments)
        result(f"step {correction.step} of run {correction.run} corrected by {correction.reviewer}: {call}")
        _note_masked(correction, trajectory)
    return 0


def corrections(arguments: Namespace, session: Session) -> int:
    """List every correction with its kind, and what supersedes it."""
    from agent.feedback.approved import correction_statuses

    with session.store() as store:
        every = correction_statuses(store).values()
    statuses = [status for status in every if arguments.kind in (None, status.kind)]
    if arguments.json:
        result_json([_view(status) for status in statuses])
    elif statuses:
        columns = ["correction", "run", "step", "kind", "says", "call", "why"]
        result(table([_row(status) for status in statuses], columns))
    elif arguments.kind is None:
        note("There are no corrections yet.")
    else:
        note(f"No correction is {_with_article(arguments.kind)}.")
    return 0


def arbitrate(arguments: Namespace, session: Session) -> int:
    """Change the kind of a correction."""
    from agent.feedback import service

    with session.runtime() as runtime, session.store():
        arbitration = service.arbitrate(
            runtime, arguments.correction, arguments.kind, reviewer=_reviewer(arguments), reason=arguments.reason
        )
    if arguments.json:
        result_json(asdict(arbitration))
    elif not arguments.quiet:
        kind = _with_article(arbitration.kind)
        result(f"correction {arbitration.correction} is {kind}, says {arbitration.reviewer}")
    return 0


def _correct_output(arguments: Namespace, session: Session) -> int:
    from agent.feedback import service

    if _names_a_part(arguments) or arguments.arg or arguments.args is not None or arguments.kind is not None:
        raise UsageError("--output corrects the output of a tool, the other options the step; give one of the two")
    with session.runtime() as runtime, session.store():
        correction = service.correct_output(
            runtime,
            arguments.run,
            arguments.step,
            arguments.output,
            reviewer=_reviewer(arguments),
            reason=arguments.reason,
        )
    if arguments.json:
        result_json(asdict(correction))
    elif not arguments.quiet:
        output = json.dumps(correction.output, ensure_ascii=False)
        result(f"output of step {correction.step} of run {correction.run} corrected by {correction.reviewer}: {output}")
        note(f"next: ratchet task tune {correction.tool}")
    return 0


def _note_masked(correction: Correction, trajectory: Trajectory) -> None:
    """Warn of placeholders that the run does not show: the model cannot copy them, and no tool gets their values."""
    from agent.privacy.redaction import placeholders
    from agent.records.run import to_json

    shown = placeholders(to_json(trajectory))
    new = [name for name in placeholders(json.dumps(asdict(correction), ensure_ascii=False)) if name not in shown]
    if new:
        note(
            f"masked as {', '.join(new)}, which run {correction.run} does not show; where it shows the value masked "
            "(ratchet show), correct the step again with that placeholder"
        )


def _row(status: CorrectionStatus) -> list[str]:
    correction = status.correction
    call = call_text(correction.call.name, correction.call.arguments)
    kind: str = status.kind
    why = status.reason
    if status.superseded_by is not None:
        kind, why = f"{kind}, superseded", f"superseded by {status.superseded_by[:12]}"
    short = call if len(call) <= 60 else f"{call[:57]}..."
    reviewer = status.reviewer or "nobody"
    return [correction.id[:12], correction.run, str(correction.step), kind, reviewer, short, why]


def _view(status: CorrectionStatus) -> dict[str, Any]:
    return asdict(status.correction) | {
        "kind": status.kind,
        "decided_by": status.reviewer,
        "by_reviewer": bool(status.reviewer),
        "why": status.reason,
        "superseded_by": status.superseded_by,
        "trained": status.is_trained,
        "recalled": status.is_recalled,
    }


def _names_a_part(arguments: Namespace) -> bool:
    """Whether a part of the step is corrected, apart from single arguments."""
    parts = (arguments.thought, arguments.plan, arguments.tool, arguments.answer, arguments.cite)
    return any(value is not None for value in parts)


def _with_article(kind: str) -> str:
    return f"an {kind}" if kind == "exception" else f"a {kind}"


def _reviewer(arguments: Namespace) -> str:
    if arguments.reviewer is not None:
        return str(arguments.reviewer)
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        raise UsageError("the system does not know your user name; give --reviewer NAME") from None


def _plan(text: str) -> list[str]:
    return [item.strip() for item in text.split(";") if item.strip()]


def _arguments(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as fault:
        raise UsageError(f'--args is not JSON ({fault}); expected an object such as \'{{"id": "4711"}}\'') from None
    if not isinstance(value, dict):
        raise UsageError(f"--args is a JSON {type(value).__name__}; expected an object of the tool's arguments")
    return value
