"""Any labelled CSV as a routing task: one tool call sends each message to one of its labels' desks.

Runs the agent on N training messages, corrects what it got wrong by the file's own labels, tunes, and reports
accuracy on messages it has not seen, for several N. From the checkout:

    python examples/routing.py --train TRAIN.csv --test TEST.csv

Without a test file, a part of the training file is kept apart. It goes by the weights alone; with `--by memory` by what
the log recalls of the reviewed runs, before anything is tuned; with `--by both` by both, the encoder being tuned too.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.config.project import find_project
from agent.errors import DatasetError, NotBetterError, RatchetError, TaskError
from agent.records.feedback import Correction, Rating
from agent.records.run import Task, ToolCall, Trajectory
from agent.run.state import Unrecorded
from agent.runtime import Runtime
from agent.util.ids import timestamp
from tuner.encoder.pipeline import promote_encoder, tune_encoder
from tuner.evaluation.statistics import wilson
from tuner.pipeline.pipeline import tune
from tuner.training.results import Progress

TEXT_NAMES = ("text", "message", "utterance", "instruction", "query", "question", "sentence")
LABEL_NAMES = ("label", "intent", "category", "class", "desk", "target")

TOOLS = """
import json
from pathlib import Path
from typing import Literal

from langchain_core.tools import StructuredTool
from pydantic import create_model

DESKS = tuple(json.loads((Path(__file__).parent / "desks.json").read_text("utf-8")))


def load_tools(context):
    arguments = create_model("Route", desk=(Literal[DESKS], ...))
    return [
        StructuredTool.from_function(
            func=lambda desk: desk,
            name="route",
            description="Send the message to a desk.",
            args_schema=arguments,
            metadata={"effect": "read", "ends": "answered"},
        )
    ]
"""

MOST_RECALLED = 20
"""Desks that memory gives odds for; the others share what is left."""

SETTINGS = """
[agent]
instructions = "Route the customer's message to the one desk that handles it."
plan = false
thought = false
max_steps = 1

[tools]
files = ["route.py"]
enabled = ["route"]

[memory]
recall = 0
recall_as = "odds"

[privacy]
scrub = false

[tuning]
epochs = {epochs}
max_tokens_per_pack = 1024
batch_targets = 40
validation_share = 0.0
seed = {seed}
"""


@dataclass(frozen=True)
class Message:
    """One labelled message."""

    text: str
    desk: str


@dataclass(frozen=True)
class Result:
    """Accuracy after a number of reviewed runs."""

    corrections: int
    """Runs that were reviewed: wrong ones corrected, right ones accepted."""
    seed: int
    by: str
    """`weights`, `memory` or `both`."""
    tasks: int
    accuracy: float
    low: float
    high: float
    """95 % Wilson interval over the test messages."""
    tuning_seconds: float
    seconds_per_message: float


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    try:
        results = study(args)
    except RatchetError as fault:
        print(f"routing: {fault}", file=sys.stderr)
        return 1
    if args.out:
        args.out.write_text(json.dumps([asdict(one) for one in results], indent=1), encoding="utf-8")
    print("| reviewed runs | seed | by | accuracy | 95 % interval | tuning, minutes |\n|---|---|---|---|---|---|")
    for one in results:
        shown = f"{one.accuracy:.1%} | {one.low:.1%} to {one.high:.1%} | {one.tuning_seconds / 60:.1f}"
        print(f"| {one.corrections} | {one.seed} | {one.by} | {shown} |")
    return 0


def study(args: argparse.Namespace) -> list[Result]:
    """Accuracy for each number of reviewed runs; the largest is repeated with every seed."""
    train = read_messages(args.train, args.text_column, args.label_column)
    if args.test:
        test = read_messages(args.test, args.text_column, args.label_column)
    else:
        train, test = _keep_apart(train)
    test = _check_apart(train, test)
    desks = sorted({message.desk for message in train})
    sample = random.Random(0).sample(test, min(args.test_size, len(test)))
    _say(f"{len(train)} training messages, {len(desks)} desks, {len(sample)} test messages")
    results = []
    for count in args.reviewed:
        for seed in args.seeds if count == max(args.reviewed) and count else args.seeds[:1]:
            results += measure(args, train, sample, desks, count, seed)
    return results


def measure(
    args: argparse.Namespace,
    train: list[Message],
    test: list[Message],
    desks: list[str],
    count: int,
    seed: int,
) -> list[Result]:
    """One turn of the loop from the base, in a home of its own."""
    folder = args.home / f"{count}-{seed}"
    _make_project(folder, desks, args.epochs, seed, args.home.parent / "models")
    results, adapter, seconds = [], None, 0.0

    def ask(runtime: Runtime, by: str) -> None:
        started = time.perf_counter()
        runs = _run_all(runtime, test, adapter)
        each = (time.perf_counter() - started) / len(test)
        right = sum(_desk(run) == message.desk for run, message in zip(runs, test, strict=True))
        found = wilson(right, len(test))
        results.append(Result(count, seed, by, len(test), found.mean, found.low, found.high, seconds, each))
        _say(f"{count} reviewed runs, seed {seed}, by {by}: {found.mean:.1%}")

    with _opened(folder) as runtime:
        if not count:
            ask(runtime, "weights")
            return results
        review(runtime, spread(train, count, seed))
    if "memory" in args.by:
        with _opened(folder, MOST_RECALLED) as runtime:
            ask(runtime, "memory")
    if {"weights", "both"} & set(args.by):
        with _opened(folder) as runtime:
            made = tune(runtime, on_progress=_Printer(), say=_say)
            adapter, seconds = made.adapter.id, made.trained.seconds
            if "weights" in args.by:
                ask(runtime, "weights")
    if "both" in args.by:
        with _opened(folder, MOST_RECALLED) as runtime:
            seconds += _tune_encoder(runtime)
            ask(runtime, "both")
    return results


def _opened(folder: Path, recall: int = 0) -> Runtime:
    """The project, with so many of the desks that memory finds likeliest weighing in."""
    settings = re.sub(r"(?m)^recall = \d+$", f"recall = {recall}", (folder / "ratchet.toml").read_text("utf-8"))
    (folder / "ratchet.toml").write_text(settings, encoding="utf-8")
    return Runtime(find_project(folder, {}), progress=_say)


def _tune_encoder(runtime: Runtime) -> float:
    """Tune what the memory compares messages with, and serve it if it is better. Returns the seconds of training."""
    try:
        made = tune_encoder(runtime, say=_say)
    except (DatasetError, NotBetterError) as fault:
        _say(f"the encoder stays as it is: {fault}")
        return 0.0
    for reason in promote_encoder(runtime, made.adapter.id).decision.reasons:
        _say(f"  {reason}")
    return made.trained.seconds


def review(runtime: Runtime, messages: Sequence[Message]) -> None:
    """Run the agent on messages and say of each run what the file says: right, or what would have been."""
    for number, run in enumerate(_run_all(runtime, messages, None, recorded=True)):
        right = messages[number].desk
        if _desk(run) == right:
            runtime.store.feedback.add_rating(
                Rating(f"r{number}", run.id, "up", "labels", "the file's label", timestamp())
            )
        else:
            call = ToolCall("route", {"desk": right})
            runtime.store.feedback.add_correction(
                Correction(f"c{number}", run.id, 0, call, "", (), "labels", "the file's label", timestamp())
            )


def spread(messages: Sequence[Message], count: int, seed: int) -> list[Message]:
    """A sample spread evenly over the desks."""
    rng = random.Random(seed)
    piles: dict[str, list[Message]] = defaultdict(list)
    for message in messages:
        piles[message.desk].append(message)
    for pile in piles.values():
        rng.shuffle(pile)
    chosen: list[Message] = []
    while len(chosen) < count and any(piles.values()):
        names = [name for name, pile in piles.items() if pile]
        rng.shuffle(names)
        chosen += [piles[name].pop() for name in names[: count - len(chosen)]]
    return chosen


def read_messages(path: Path, text_column: str | None, label_column: str | None) -> list[Message]:
    """The labelled messages of a CSV file. Raises TaskError on a file that is not one."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            text = _column(path, columns, text_column, TEXT_NAMES, "--text-column")
            label = _column(path, columns, label_column, LABEL_NAMES, "--label-column")
            messages = []
            for row in reader:
                if not (row[text] or "").strip() or not (row[label] or "").strip():
                    raise TaskError(f"{path}:{reader.line_num}: no text or no label; every row needs both")
                messages.append(Message(row[text].strip(), row[label].strip().replace("_", " ")))
    except (OSError, UnicodeDecodeError, csv.Error) as fault:
        raise TaskError(f"{path} cannot be read as CSV in UTF-8 ({fault})") from fault
    if len({message.desk for message in messages}) < 2:
        raise TaskError(f"{path} has {len(messages)} rows and fewer than two labels; there is nothing to route")
    return messages


def _column(path: Path, columns: list[str], named: str | None, known: Sequence[str], option: str) -> str:
    if named:
        if named not in columns:
            raise TaskError(f"{path} has no column {named!r}; it has {', '.join(columns)}")
        return named
    found = [name for guess in known for name in columns if name.strip().lower() == guess]
    if not found:
        raise TaskError(f"{path} has columns {', '.join(columns) or '(none)'}; say with {option} which it is")
    return found[0]


def _keep_apart(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """A fifth of the messages, spread over the desks, as the test."""
    test = spread(messages, len(messages) // 5, 0)
    kept = set(test)
    return [message for message in messages if message not in kept], test


def _check_apart(train: Sequence[Message], test: Sequence[Message]) -> list[Message]:
    """The test messages that are not training messages, of desks that are known."""
    seen, desks = {message.text.lower() for message in train}, {message.desk for message in train}
    kept = [message for message in test if message.text.lower() not in seen and message.desk in desks]
    if len(kept) < len(test):
        _say(f"{len(test) - len(kept)} test messages left out: also in the training file, or of an unknown desk")
    if not kept:
        raise TaskError("no test message is left that is not in the training file; name another test file")
    return kept


def _make_project(folder: Path, desks: list[str], epochs: int, seed: int, models: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    home = folder / ".ratchet"
    home.mkdir(parents=True)
    models.mkdir(parents=True, exist_ok=True)
    (home / "models").symlink_to(models.resolve(), target_is_directory=True)
    (folder / "desks.json").write_text(json.dumps(desks), encoding="utf-8")
    (folder / "route.py").write_text(TOOLS, encoding="utf-8")
    (folder / "ratchet.toml").write_text(SETTINGS.format(epochs=epochs, seed=seed), encoding="utf-8")


def _run_all(
    runtime: Runtime, messages: Sequence[Message], adapter: str | None, *, recorded: bool = False
) -> list[Trajectory]:
    started, done = time.perf_counter(), Counter[str]()

    def one(numbered: tuple[int, Message]) -> Trajectory:
        number, message = numbered
        run = runtime.run(
            Task(f"m{number}", message.text),
            adapter=adapter,
            tools=["route"],
            workspace=runtime.home.workspaces / "shared",
            recorder=None if recorded else Unrecorded(),
        )
        done["runs"] += 1
        if done["runs"] % 100 == 0:
            _say(f"  {done['runs']}/{len(messages)} messages, {time.perf_counter() - started:.0f} s")
        return run

    with ThreadPoolExecutor(runtime.project.settings.model.max_sessions) as pool:
        return list(pool.map(one, enumerate(messages)))


def _desk(run: Trajectory) -> str | None:
    call = run.steps[-1].call if run.steps else None
    return str(call.arguments.get("desk")) if call is not None and call.name == "route" else None


class _Printer:
    """A line of progress every ten seconds."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, progress: Progress) -> None:
        if time.monotonic() - self._last > 10:
            self._last = time.monotonic()
            _say(
                f"  step {progress.step}/{progress.steps}, loss {progress.loss:.3f}, "
                f"{progress.tokens_per_second:.0f} tokens/s, {progress.seconds_left:.0f} s left"
            )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Routing, corrected by the labels of a CSV file.")
    parser.add_argument("--train", type=Path, required=True, help="CSV of labelled messages")
    parser.add_argument("--test", type=Path, help="another; left out: a fifth of the training file is kept apart")
    parser.add_argument("--text-column", help="column of the messages, when it is not found by its name")
    parser.add_argument("--label-column", help="column of the labels, when it is not found by its name")
    parser.add_argument("--reviewed", type=int, nargs="+", default=[0, 100, 200, 500], help="numbers of runs")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="for the largest number; else the first"
    )
    parser.add_argument("--test-size", type=int, default=500, help="test messages, drawn once")
    parser.add_argument("--by", nargs="+", choices=("weights", "memory", "both"), default=["weights"])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--home", type=Path, default=Path(".ratchet/routing"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    return parser.parse_args(argv)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
