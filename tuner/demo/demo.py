"""The whole loop on a desk: evaluate, run, correct, tune, gate, promote and serve.

A desk is a project folder with a `tickets/train.jsonl`, whose tickets have solutions for the scripted reviewer,
and a held-out suite that its settings name. Reviewer and tuner see nothing of the held-out tickets.
"""

from __future__ import annotations

import contextlib
import io
import random
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent.config.project import Home, Project, find_project
from agent.errors import NotBetterError, TaskError
from agent.runtime import Runtime
from tuner.demo.reviewer import Command, Review, Reviewer, load_tickets
from tuner.evaluation.evaluate import Evaluation
from tuner.evaluation.suite import Suite, SuiteTask
from tuner.pipeline.pipeline import Tuning, tune
from tuner.pipeline.promote import GateResult, evaluate_adapter, project_suite, promote
from tuner.reports.gate_report import comparison_rows, comparison_table
from tuner.training.results import Progress


@dataclass(frozen=True)
class Plan:
    """How much of the desk is done."""

    held_out: int | None = 60
    """Tickets to evaluate on; None for all."""
    rounds: tuple[int, ...] = (60, 120)
    """The corrections allowed before each tuning. What a small first round teaches is right from then on and costs no
    correction, so that the next one gets through more tickets."""
    min_steps: int | None = None
    """In place of the project's own `tuning.min_steps`."""
    seed: int = 0
    """Seed of the trainings. Any but 0 also takes the training tickets in another order, so that other ones are
    corrected."""


FULL = Plan()
QUICK = Plan(held_out=20, rounds=(50,), min_steps=25)
BENCH = Plan(held_out=None, rounds=(60, 240))


@dataclass(frozen=True)
class DemoResult:
    """The figures and the parts of one demo."""

    base: Evaluation
    tuned: Evaluation
    """The held-out tickets as served at the end."""
    reviews: tuple[Review, ...]
    tunings: tuple[Tuning, ...]
    gates: tuple[GateResult, ...]
    minutes: float

    @property
    def rows(self) -> list[dict[str, object]]:
        return comparison_rows(self.base, self.tuned)


class DemoWatcher:
    """Prints the progress of a demo as plain lines, and a line when nothing was printed for long.

    Use as a context manager: it has a thread.
    """

    def __init__(self, write: Callable[[str], None] = print, *, patience: float = 20.0) -> None:
        self._write = write
        self._patience = patience
        self._started = self._last_line = time.monotonic()
        self._last = 0.0
        self._stage = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch_silence, name="ratchet-watcher", daemon=True)

    def __enter__(self) -> DemoWatcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def stage(self, text: str) -> None:
        self._last = 0.0
        self._stage = text
        self._print(f"\n[{self._clock()}] {text}")

    def say(self, text: str) -> None:
        self._print(f"[{self._clock()}]   {text}")

    def _print(self, text: str) -> None:
        self._last_line = time.monotonic()
        self._write(text)

    def _watch_silence(self) -> None:
        while not self._over.wait(1.0):
            if time.monotonic() - self._last_line > self._patience:
                self.say(f"still at it: {self._stage}")

    def count(self, what: str, done: int, of: int) -> None:
        """Print at most one line in five seconds, and always the last."""
        now = time.monotonic()
        if done == of or now - self._last >= 5:
            self._last = now
            self.say(f"{what} {done}/{of}")

    def training(self, progress: Progress) -> None:
        held = "" if progress.held_out_loss is None else f", held-out {progress.held_out_loss:.3f}"
        now = time.monotonic()
        if progress.step == progress.steps or now - self._last >= 5:
            self._last = now
            self.say(
                f"epoch {progress.epoch + 1}, step {progress.step}/{progress.steps}, loss {progress.loss:.3f}{held}, "
                f"{progress.tokens_per_second:.0f} tokens/s, {progress.seconds_left / 60:.1f} min left"
            )

    def _clock(self) -> str:
        seconds = int(time.monotonic() - self._started)
        return f"{seconds // 60:02d}:{seconds % 60:02d}"


def prepare_desk(source: Path, home: Path) -> Project:
    """Copy the desk into `home`, in the place of an earlier copy, and return it as a project."""
    if not (source / "tickets" / "train.jsonl").is_file():
        raise TaskError(f"{source} is no desk: it has no tickets/train.jsonl; name a desk's folder")
    home = home.resolve()
    desk = home / "desk"
    if desk.exists():
        shutil.rmtree(desk)
    home.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, desk, ignore=shutil.ignore_patterns("__pycache__", ".ratchet"))
    project = find_project(desk)
    # The weights are converted once for all demos; all else is new.
    models = home / "models"
    models.mkdir(exist_ok=True)
    own = Home(desk / ".ratchet")
    own.root.mkdir()
    own.models.symlink_to(models, target_is_directory=True)
    return replace(project, home=own)


def run_demo(
    project: Project, command: Callable[[Path], Command], plan: Plan, watcher: DemoWatcher
) -> tuple[DemoResult, Runtime]:
    """Run the loop on a prepared desk. Returns the result and the runtime, which the caller closes."""
    started = time.monotonic()
    tuning = replace(project.settings.tuning, seed=plan.seed)
    if plan.min_steps is not None:
        tuning = replace(tuning, min_steps=plan.min_steps)
    project = replace(project, settings=replace(project.settings, tuning=tuning))
    suite = project_suite(project, limit=plan.held_out)
    tickets = load_tickets(project.folder / "tickets" / "train.jsonl")
    if plan.seed:
        random.Random(plan.seed).shuffle(tickets)
    runtime = Runtime(project, progress=watcher.say)
    try:
        build_database(runtime)
        _add_documents(runtime, watcher)
        watcher.stage(f"The base model on {len(suite)} held-out tickets")
        base = _measure_base(runtime, suite, watcher)
        reviews, tunings, gates = _run_rounds(runtime, command(project.folder), plan, suite, tickets, watcher)
        served = runtime.serving()
        watcher.stage(f"The running agent, which now serves {served.id if served else 'the base'}, on the same tickets")
        tuned = evaluate_adapter(
            runtime,
            suite,
            served.id if served else None,
            fresh=True,
            progress=lambda done, of: watcher.count("tickets", done, of),
        )
    except BaseException:
        runtime.close()
        raise
    minutes = (time.monotonic() - started) / 60
    return DemoResult(base, tuned, tuple(reviews), tuple(tunings), tuple(gates), minutes), runtime


def _add_documents(runtime: Runtime, watcher: DemoWatcher) -> None:
    watcher.stage("Documents")
    for folder in runtime.project.settings.memory.folders:
        report = runtime.memory.add_folder(runtime.project.resolve(folder))
        watcher.say(f"{len(report.added)} documents, {report.chunks_embedded} passages, {report.seconds:.0f} s")


def _run_rounds(
    runtime: Runtime,
    command: Command,
    plan: Plan,
    suite: Suite,
    tickets: Sequence[SuiteTask],
    watcher: DemoWatcher,
) -> tuple[list[Review], list[Tuning], list[GateResult]]:
    """Review, tune and gate in each round of the plan, until the training tickets run out."""
    reviews: list[Review] = []
    tunings: list[Tuning] = []
    gates: list[GateResult] = []
    for number, allowed in enumerate(plan.rounds, start=1):
        watcher.stage(f"Round {number}: training tickets, a reviewer corrects up to {allowed} steps")
        reviewed = sum(review.tickets for review in reviews)
        review = _review(runtime, command, tickets[reviewed:], allowed, watcher)
        if tunings and not review.tickets:
            watcher.say("no training tickets are left, so there is nothing new to tune on")
            break
        reviews.append(review)
        watcher.stage(f"Round {number}: tuning")
        try:
            tunings.append(tune(runtime, on_progress=watcher.training, say=watcher.say))
        except NotBetterError as fault:
            watcher.say(f"{fault}; what is served stays")
            continue
        adapter, trained = tunings[-1].adapter, tunings[-1].trained
        watcher.say(f"adapter {adapter.id}, {trained.seconds / 60:.1f} minutes")
        watcher.stage(f"Round {number}: the gate, on the held-out tickets")
        gates.append(
            promote(
                runtime,
                adapter.id,
                suite=suite,
                progress=lambda name, done, of: watcher.count(f"{name}:", done, of),
            )
        )
        for reason in gates[-1].decision.reasons:
            watcher.say(reason)
    return reviews, tunings, gates


def capture_commands(main: Callable[[Sequence[str]], int]) -> Callable[[Path], Command]:
    """Return a function that runs the command line for a project, with its output hidden."""

    def for_project(folder: Path) -> Command:
        def command(words: Sequence[str]) -> int:
            with contextlib.redirect_stdout(io.StringIO()):
                return main(["--project", str(folder), *words])

        return command

    return for_project


def format_result(result: DemoResult) -> str:
    """Return the comparison as a table, with the corrections and minutes it took."""
    corrections = sum(review.corrections for review in result.reviews)
    minutes = sum(tuning.trained.seconds for tuning in result.tunings) / 60
    return (
        f"{comparison_table(result.rows)}\n\n{len(result.base.rows)} held-out tickets, {corrections} corrections, "
        f"{minutes:.1f} minutes of training, {result.minutes:.1f} minutes in all.{_example_ticket(result)}"
    )


def _example_ticket(result: DemoResult) -> str:
    """Return a ticket that the base failed and the tuned agent solved, with both answers."""
    for before, after in zip(result.base.rows, result.tuned.rows, strict=True):
        if after.scores.success and not before.scores.success and after.answer:
            return (
                f"\n\nOne of them: {after.text}\n  before: {before.answer or f'({before.outcome})'}"
                f"\n  after:  {after.answer}"
            )
    return ""


def _measure_base(runtime: Runtime, suite: Suite, watcher: DemoWatcher) -> Evaluation:
    result = evaluate_adapter(
        runtime, suite, None, progress=lambda done, of: watcher.count("tickets", done, of), recall=False
    )
    watcher.say(f"solved {result.success:.0%}")
    return result


def _review(
    runtime: Runtime, command: Command, tickets: Sequence[SuiteTask], allowed: int, watcher: DemoWatcher
) -> Review:
    reviewer = Reviewer(
        runtime,
        command,
        corrections=allowed,
        progress=lambda done, of: watcher.count("corrections", done, of),
    )
    review = reviewer.review(tickets, at_once=runtime.project.settings.model.max_sessions)
    watcher.say(
        f"{review.tickets} tickets, {review.right_at_once} right at once, {review.corrections} corrections, "
        f"{review.rated_up} rated up"
    )
    return review


def build_database(runtime: Runtime) -> None:
    """Build the desk's database before any run, so that changes made by a run can be detected."""
    builder = runtime.project.folder / "desk_database.py"
    target = runtime.project.folder / "shop.db"
    if builder.is_file() and not target.exists():
        import importlib.util

        spec = importlib.util.spec_from_file_location("desk_database", builder)
        if spec is not None and spec.loader is not None:
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            module.build(target)
