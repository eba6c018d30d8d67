"""`rate`, `correct`, `corrections` and `arbitrate`: what people say of a run, and where it belongs."""

from __future__ import annotations

import getpass
import json
from argparse import Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from agent.cli.console import call_text, note, result, result_json, table
from agent.cli.runs import pairs
from agent.cli.session import Session, UsageError

if TYPE_CHECKING:
    from agent.feedback.approved import Ruling
    from agent.feedback.missing_facts import Addition
    from agent.privacy.redaction import Scrubber
    from agent.records.feedback import Arbitration, Correction
    from agent.records.run import Trajectory
    from agent.storage.store import Store


def rate(arguments: Namespace, session: Session) -> int:
    from agent.feedback.validation import make_rating
    from agent.util.ids import timestamp

    with session.runtime() as runtime, session.store() as store:
        trajectory = store.get(arguments.run)
        rating = make_rating(
            trajectory,
            arguments.verdict,
            scrubber=runtime.scrubber_of(trajectory),
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
    from agent.feedback.validation import make_correction
    from agent.run.tools import make_frame
    from agent.util.ids import timestamp

    if arguments.output is not None:
        return _correct_output(arguments, session)
    changes = pairs(arguments.arg, "--arg")
    whole = _arguments(arguments.args)
    if whole is not None and changes:
        raise UsageError("--args replaces all arguments and --arg one of them; give one kind")
    if not changes and whole is None and not _given(arguments):
        raise UsageError("nothing to correct; give --thought, --plan, --tool, --arg, --args, --answer or --output")
    with session.runtime() as runtime, session.store() as store:
        trajectory = store.get(arguments.run)
        scrubber = runtime.scrubber_of(trajectory)
        with runtime.checking_tools(trajectory.task) as tools:
            frame = make_frame(tools, runtime.options)
        correction = make_correction(
            trajectory,
            arguments.step,
            tools=tools,
            frame=frame,
            scrubber=scrubber,
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
        if arguments.kind is not None:
            store.arbitrate(_ruled(correction, arguments.kind, arguments, scrubber))
    if arguments.json:
        result_json(asdict(correction) | ({} if arguments.kind is None else {"kind": arguments.kind}))
    elif not arguments.quiet:
        call = call_text(correction.call.name, correction.call.arguments)
        result(f"step {correction.step} of run {correction.run} corrected by {correction.reviewer}: {call}")
        _note_masked(correction, trajectory)
    return 0


def _note_masked(correction: Correction, trajectory: Trajectory) -> None:
    """Tell of placeholders that the run does not show: the model cannot copy them, and no tool gets their values."""
    from agent.privacy.redaction import placeholders
    from agent.records.run import to_json

    shown = placeholders(to_json(trajectory))
    new = [one for one in placeholders(json.dumps(asdict(correction), ensure_ascii=False)) if one not in shown]
    if new:
        note(
            f"masked as {', '.join(new)}, which run {correction.run} does not show; where it shows the value masked "
            "(ratchet show), correct the step again with that placeholder"
        )


def _correct_output(arguments: Namespace, session: Session) -> int:
    """What a trained task should have given, kept for its next `ratchet task tune`."""
    from agent.feedback.validation import make_output_correction
    from agent.util.ids import timestamp

    if _given(arguments) or arguments.arg or arguments.args is not None or arguments.kind is not None:
        raise UsageError("--output says what a tool should have given, the others what the step should have been")
    with session.runtime() as runtime, session.store() as store:
        trajectory = store.get(arguments.run)
        correction = make_output_correction(
            trajectory,
            arguments.step,
            arguments.output,
            right_output=runtime.tasks.right_output,
            scrubber=runtime.scrubber_of(trajectory),
            reviewer=_reviewer(arguments),
            reason=arguments.reason,
            id=uuid4().hex,
            at=timestamp(),
        )
        store.correct_output(correction)
    if arguments.json:
        result_json(asdict(correction))
    elif not arguments.quiet:
        output = json.dumps(correction.output, ensure_ascii=False)
        result(f"output of step {correction.step} of run {correction.run} corrected by {correction.reviewer}: {output}")
        note(f"next: ratchet task tune {correction.tool}")
    return 0


def corrections(arguments: Namespace, session: Session) -> int:
    """Let the rule decide what is new, and list every correction; for facts, what a document could say."""
    from agent.feedback.approved import rulings

    with session.store():
        pass  # without a log there is nothing to decide
    with session.runtime() as runtime:
        runtime.arbitrate()
        ruled = [one for one in rulings(runtime.store).values() if arguments.kind in (None, one.kind)]
        additions = {one.correction.id: _addition(runtime.store, one) for one in ruled if one.kind == "fact"}
    if arguments.json:
        result_json([_view(one, additions.get(one.correction.id)) for one in ruled])
        return 0
    if not ruled:
        note(
            "There are no corrections yet." if arguments.kind is None else f"No correction is {_named(arguments.kind)}."
        )
        return 0
    result(table([_row(one) for one in ruled], ["correction", "run", "step", "kind", "says", "call", "why"]))
    for one in ruled:
        suggested = additions.get(one.correction.id)
        if suggested is not None and one.superseded_by is None:
            place = suggested.document or "a document of its own"
            heading = f" > {suggested.heading}" if suggested.heading else ""
            result(f"to do for {one.correction.id[:12]}: add to {place}{heading}\n    {suggested.text}")
    return 0


def arbitrate(arguments: Namespace, session: Session) -> int:
    """A reviewer's word on where a correction belongs; it goes before the rule's."""
    with session.runtime() as runtime, session.store() as store:
        correction = store.correction(arguments.correction)
        scrubber = runtime.scrubber_of(store.get(correction.run))
        arbitration = _ruled(correction, arguments.kind, arguments, scrubber)
        store.arbitrate(arbitration)
    if arguments.json:
        result_json(asdict(arbitration))
    elif not arguments.quiet:
        result(f"correction {arbitration.correction} is {_named(arbitration.kind)}, says {arbitration.reviewer}")
    return 0


def _ruled(correction: Correction, kind: str, arguments: Namespace, scrubber: Scrubber | None) -> Arbitration:
    from agent.feedback.validation import make_arbitration
    from agent.util.ids import timestamp

    reviewer = _reviewer(arguments)
    return make_arbitration(
        correction, kind, scrubber=scrubber, reviewer=reviewer, reason=arguments.reason, id=uuid4().hex, at=timestamp()
    )


def _addition(store: Store, ruling: Ruling) -> Addition | None:
    """What a document could say; of a fact by a reviewer's word, all that the answer says."""
    from agent.feedback.cases import case_of
    from agent.feedback.missing_facts import Lacking, addition, lacking

    correction = ruling.correction
    trajectory = store.get(correction.run)
    case = case_of(trajectory, correction.step, correction.as_step(), correction)
    lack = lacking(case) or (Lacking((case.text,), ()) if case.text else None)
    return None if lack is None else addition(case, lack, trajectory.steps[: correction.step])


def _row(one: Ruling) -> list[str]:
    call = call_text(one.correction.call.name, one.correction.call.arguments)
    kind = one.kind if one.superseded_by is None else f"{one.kind}, superseded"
    why = one.reason if one.superseded_by is None else f"superseded by {one.superseded_by[:12]}"
    short = call if len(call) <= 60 else f"{call[:57]}..."
    return [one.correction.id[:12], one.correction.run, str(one.correction.step), kind, one.by or "nobody", short, why]


def _view(one: Ruling, suggested: Addition | None) -> dict[str, Any]:
    view = asdict(one.correction) | {
        "kind": one.kind,
        "decided_by": one.by,
        "by_reviewer": one.is_reviewers,
        "why": one.reason,
        "superseded_by": one.superseded_by,
        "trained": one.is_trained,
        "recalled": one.is_recalled,
    }
    return view if suggested is None else view | {"suggested": asdict(suggested)}


def _given(arguments: Namespace) -> bool:
    """Whether a part of the step is corrected, its arguments left aside."""
    parts = (arguments.thought, arguments.plan, arguments.tool, arguments.answer, arguments.cite)
    return any(value is not None for value in parts)


def _named(kind: str) -> str:
    return f"an {kind}" if kind == "exception" else f"a {kind}"


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
