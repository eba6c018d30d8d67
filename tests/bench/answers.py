"""Whether tuning teaches to cite and to abstain: the demo desk before it and after it.

Feedback is the worked solutions of training tickets, done step by step through the desk's own search and tools, and
accepted. Measured on held-out tickets that the articles answer, on those
that they do not, and on the answerable ones with the articles that answer them kept out of the search. RGB is another
domain, and a prompt of another form: what carries over. Neither is ever tuned on.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.cli import main as cli
from agent.config.project import Project
from agent.grounding.check import check_sentences, collect_evidence
from agent.knowledge.knowledge import Knowledge
from agent.records.run import Outcome, Trajectory
from agent.run.loop import run
from agent.run.state import Unrecorded
from agent.runtime import Runtime
from tests.bench.grounding import rgb_model, share_of
from tests.bench.results import write_result
from tests.tuner.desks import Clumsy
from tools.context import Passage, ToolContext
from tuner.demo.demo import capture_commands, prepare_desk
from tuner.demo.reviewer import Reviewer, load_tickets
from tuner.evaluation.evaluate import evaluate
from tuner.evaluation.suite import Check, Suite, SuiteTask
from tuner.pipeline.pipeline import tune
from tuner.pipeline.promote import project_suite

ROOT = Path(__file__).resolve().parents[2]
TICKETS = 40
"""Training tickets that are learnt from, of those for which the articles are searched."""
MIN_STEPS = 30
"""Optimizer steps of the tuning, at least."""
DEEPER = 4
"""How many times as many passages are looked through where some are kept out."""
FIGURES = ("rejection_rate", "false_rejection_rate", "citation_precision", "citation_recall")
"""Of each row; kept as metrics before tuning, and after it with the settings that are the default."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class HeldOut:
    """Held-out tickets, by what the articles say of them."""

    answerable: Suite
    """The articles answer them; some ask for more besides."""
    unanswerable: Suite
    """No article answers them, and the customer wants nothing else."""
    withheld: Suite
    """Those that are answerable and ask for nothing else, each to be done without the articles that answer it."""
    kept_out: Mapping[str, tuple[str, ...]]
    """Id of a withheld ticket to these articles."""


def answers(
    data: Path,
    *,
    home: Path = ROOT / ".ratchet",
    tickets: int = TICKETS,
    limit: int | None = None,
    questions: int = 60,
    say: Say = lambda text: None,
) -> list[dict[str, Any]]:
    """A row for the base and one for the tuned adapter; `home` is where the models are, or are put.

    `limit` bounds the tickets of each kind. `questions` are those of RGB, which `data` holds in a folder rgb_zh_en;
    0 leaves them out.
    """
    project = _desk(home)
    held_out = chosen(project_suite(project), limit)
    _feedback(project, tickets, say)
    rows = [_row("before", project, None, held_out, data, questions, say)]
    tuning = replace(project.settings.tuning, min_steps=MIN_STEPS)
    own = replace(project, settings=replace(project.settings, tuning=tuning))
    with Runtime(own) as runtime:
        tuned = tune(runtime, say=say)
    about = {
        # Earlier results have a row for a tuning with artificial contexts as well.
        "contexts": 0,
        "rows": sum(tuned.dataset.manifest["rows"].values()),
        "tuning_minutes": round(tuned.trained.seconds / 60, 1),
    }
    return [*rows, _row("contexts_0", own, tuned.adapter.id, held_out, data, questions, say) | about]


def chosen(suite: Suite, limit: int | None = None) -> HeldOut:
    """Of a suite the tickets that are about what the articles say."""
    answerable = [one for one in suite if one.check.cites and not one.check.refusal]
    unanswerable = [one for one in suite if (one.phrasing or "").startswith("unanswerable/")]
    alone = [one for one in answerable if {call.name for call in one.check.calls} == {"search_knowledge"}]
    withheld = [replace(one, id=f"{one.id}-withheld", check=Check(refusal=True)) for one in alone]
    kept_out = {made.id: one.check.cites for made, one in zip(withheld, alone, strict=True)}
    parts = (Suite(tuple(part[:limit])) for part in (answerable, unanswerable, withheld))
    return HeldOut(*parts, kept_out=kept_out)


def metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The `FIGURES` after the tuning, and `_before` it; None where not measured."""
    before = next((row for row in rows if row["side"] == "before"), {})
    default = next((row for row in rows if row.get("contexts") == 0), {})
    after = {name: default.get(name) for name in FIGURES}
    return after | {f"{name}_before": before.get(name) for name in FIGURES}


def figures(answerable: Sequence[tuple[SuiteTask, Trajectory]]) -> dict[str, float | None]:
    """What runs of answerable tickets cite, by document: the share of what they cite that is to be cited, and the share
    of what is to be cited that they cite; of a run that was handed over nothing is."""
    right, wanted = [], []
    for task, done in answerable:
        cited = [passage.document for passage in done.citations] if done.outcome is Outcome.ANSWERED else []
        right += [document in task.check.cites for document in cited]
        wanted += [document in cited for document in task.check.cites]
    return {
        "false_rejection_rate": share_of([done.outcome is Outcome.REFUSED for _, done in answerable]),
        "citation_precision": share_of(right),
        "citation_recall": share_of(wanted),
    }


class Without:
    """A desk's articles less some of them."""

    def __init__(self, memory: Knowledge, documents: Sequence[str]) -> None:
        self._memory = memory
        self._documents = documents

    def search(self, query: str, k: int) -> Sequence[Passage]:
        found = self._memory.search(query, DEEPER * k)
        return [passage for passage in found if passage.document not in self._documents][:k]


def _desk(home: Path) -> Project:
    own = home.resolve() / "bench-answers"
    own.mkdir(parents=True, exist_ok=True)
    (home / "models").mkdir(exist_ok=True)
    if not (own / "models").exists():
        (own / "models").symlink_to((home / "models").resolve(), target_is_directory=True)
    return prepare_desk(ROOT / "examples" / "desk", own)


def _feedback(project: Project, count: int, say: Say) -> None:
    """Training tickets done as their solutions say, through the project's own tools, and rated by the checks."""
    every = load_tickets(project.folder / "tickets" / "train.jsonl")
    tickets = [one for one in every if any(step.call.name == "search_knowledge" for step in one.solution)][:count]
    with Runtime(project, model=Clumsy(tickets, ())) as runtime:
        for folder in project.settings.memory.folders:
            runtime.memory.add_folder(project.resolve(folder))
        reviewer = Reviewer(
            runtime, capture_commands(cli.main)(project.folder), corrections=1, progress=lambda done, of: None
        )
        with contextlib.redirect_stderr(io.StringIO()):
            review = reviewer.review(tickets, at_once=4)
    say(f"{review.tickets} training tickets, {review.rated_up} accepted")


def _row(
    side: str,
    project: Project,
    adapter: str | None,
    held_out: HeldOut,
    data: Path,
    questions: int,
    say: Say,
) -> dict[str, Any]:
    with Runtime(project) as runtime:
        row = {"side": side} | measured(runtime, adapter, held_out)
        say(json.dumps(row))
        if questions:
            found = rgb_model(data, runtime, runtime.encoder, limit=questions, adapter=adapter)["metrics"]
            row |= {f"rgb_{name}": value for name, value in found.items() if "_model_" in name}
            say(json.dumps(row))
    return row


def measured(runtime: Runtime, adapter: str | None, held_out: HeldOut) -> dict[str, Any]:
    """Held-out tickets under an adapter; None is the base, which has learnt nothing and is shown nothing of the log."""
    answered, solved = _done(runtime, adapter, held_out.answerable)
    refused, handed_over = _done(runtime, adapter, held_out.unanswerable)
    withheld, _ = _done(runtime, adapter, held_out.withheld, held_out.kept_out)
    said = [one for _, done in answered for one in _supported(runtime, done)]
    return {
        "answerable": len(held_out.answerable),
        "unanswerable": len(held_out.unanswerable),
        "withheld": len(held_out.withheld),
        "rejection_rate": share_of([done.outcome is Outcome.REFUSED for _, done in refused]),
        "withheld_rejection_rate": share_of([done.outcome is Outcome.REFUSED for _, done in withheld]),
        **figures(answered),
        "supported_share": share_of(said),
        "solved_share": share_of([*solved, *handed_over]),
        "answerable_solved_share": share_of(solved),
    }


def _done(
    runtime: Runtime, adapter: str | None, suite: Suite, kept_out: Mapping[str, Sequence[str]] | None = None
) -> tuple[list[tuple[SuiteTask, Trajectory]], list[bool]]:
    """The tickets with their runs, and whether each is solved."""
    done: dict[str, Trajectory] = {}

    def run_one(task: SuiteTask, workspace: Path) -> Trajectory:
        made = _run(runtime, adapter, task, workspace, None if kept_out is None else kept_out[task.id])
        done[task.id] = made
        return made

    stepper = runtime.stepper(adapter)
    assert stepper.provenance().adapter == adapter
    result = evaluate(
        suite,
        run_one,
        workspaces=runtime.home.workspaces,
        pristine=runtime.project.folder,
        concurrency=runtime.project.settings.model.max_sessions,
    )
    return [(task, done[task.id]) for task in suite], [row.scores.success for row in result.rows]


def _run(
    runtime: Runtime, adapter: str | None, task: SuiteTask, workspace: Path, kept_out: Sequence[str] | None
) -> Trajectory:
    recall = adapter is not None
    if kept_out is None:
        made = runtime.run(task.task, adapter=adapter, workspace=workspace, recorder=Unrecorded(), recall=recall)
        return runtime.reveal(made)
    context = ToolContext(
        workspace,
        runtime.project.folder,
        facts=dict(task.task.facts),
        task=task.task.text,
        retriever=Without(runtime.memory, kept_out),
    )
    return run(
        task.task,
        runtime.stepper(adapter),
        runtime.tools(context),
        options=runtime.options,
        recall=runtime.recalled if recall else None,
        encoder=lambda: runtime.encoder,
    )


def _supported(runtime: Runtime, done: Trajectory) -> list[bool]:
    """Of each sentence of an answer, whether what its run was shown supports it."""
    if done.outcome is not Outcome.ANSWERED or not done.answer:
        return []
    return [
        one.supported
        for one in check_sentences(done.answer, collect_evidence(done.steps), lambda: runtime.encoder).sentences
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder that holds rgb_zh_en")
    parser.add_argument("--home", type=Path, default=ROOT / ".ratchet", help="where the models are, or are put")
    parser.add_argument("--tickets", type=int, default=TICKETS, help="training tickets")
    parser.add_argument("--limit", type=int, default=None, help="held-out tickets of each kind, at most")
    parser.add_argument("--questions", type=int, default=60, help="questions of RGB; 0 leaves them out")
    parser.add_argument("--write", action="store_true", help="write docs/results/answers.json as well")
    args = parser.parse_args()
    if args.questions and not (args.data / "rgb_zh_en").is_dir():
        parser.error(f"{args.data} has no folder rgb_zh_en; name the folder that has one with --data")
    rows = answers(
        args.data,
        home=args.home,
        tickets=args.tickets,
        limit=args.limit,
        questions=args.questions,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    print(json.dumps(rows, indent=1))
    if args.write:
        print(write_result("answers", "python -m tests.bench.answers --write", metrics(rows), rows), file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
