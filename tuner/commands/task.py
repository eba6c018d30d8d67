"""The commands of the classic tasks: `task train`, `task eval` and `task predict`. For `agent.cli.parser`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.config.methods import TUNING_METHODS
from tuner.commands.console import ConfirmGuesses, ProgressLines, print_note, print_result
from tuner.tasks.data.columns import Columns
from tuner.tasks.data.records import TASKS
from tuner.tasks.settings import ADVERSARIAL, CHOICES, METHODS

if TYPE_CHECKING:
    from agent.config.project import Project
    from tuner.tasks.data.splits import Splits
    from tuner.tasks.origin import Origin
    from tuner.tasks.predictor import TaskPredictor

BATCH = 64
"""Texts that are predicted together when they come from a file or stdin."""
SETTINGS = ("method", "epochs", "learning_rate", "batch", "max_tokens", "frozen_layers", "adversarial", "seed")


def add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", choices=TASKS, help="what is learnt")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="PATH", help="a file, or a folder with one called train, …"
    )
    parser.add_argument("--test", type=Path, metavar="FILE", help="to measure with (default: a tenth of the data)")
    parser.add_argument(
        "--validation", type=Path, metavar="FILE", help="to watch the training with (default: a tenth of the rest)"
    )
    parser.add_argument("--model", metavar="NAME", help="an encoder or a language model, named as in ratchet.toml")
    parser.add_argument(
        "--method",
        choices=tuple(dict.fromkeys([*METHODS, *TUNING_METHODS])),
        help="all weights, a kind of adapter, or the head alone (default: by data); prompt, prefix and qlora are for "
        "language models, head and ngrams for encoders",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="a new folder (default: in the project's home)")
    parser.add_argument("--epochs", type=int, metavar="N", help="at most (default: by data)")
    parser.add_argument("--rate", type=float, metavar="X", dest="learning_rate", help="learning rate of the encoder")
    parser.add_argument("--batch", type=int, metavar="N")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="of a window (default: by data)")
    parser.add_argument("--freeze", type=int, metavar="N", dest="frozen_layers", help="layers left as they are")
    parser.add_argument("--into", metavar="LANGUAGE", default="", help="to translate into (default: by the data)")
    parser.add_argument("--adversarial", choices=ADVERSARIAL, help="train against changed embeddings as well")
    parser.add_argument("--class-weights", action="store_true", help="rare classes weigh as much as common ones")
    parser.add_argument("--seed", type=int, metavar="N", help="default: 0")
    parser.add_argument("--from", metavar="FOLDER", dest="start", help="go on from an earlier training, on its encoder")
    parser.add_argument("--replay", type=Path, metavar="PATH", help="older examples, of which a share is learnt again")
    parser.add_argument(
        "--replay-share", type=float, metavar="X", default=0.2, help="of the older examples, 0 to 1 (default: 0.2)"
    )
    parser.add_argument(
        "--leakage",
        choices=("refuse", "drop", "keep"),
        default="refuse",
        help="what to do with a training text that is in the test as well (default: refuse)",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask whether guessed columns are right")
    _add_columns(parser)


def add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="TASK", help="a trained task's folder, or the name of a task")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="PATH", help="a file, or a folder with one called test"
    )
    parser.add_argument("--most", type=int, metavar="N", help="measure with N examples at most, drawn by --seed")
    _add_prompted(parser)
    _add_columns(parser)


def add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="TASK", help="a trained task's folder, or the name of a task")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="what to read (default: lines of --file, or of stdin)")
    parser.add_argument("--file", type=Path, metavar="FILE", help="a text a line, or JSON lines")
    parser.add_argument("--context", metavar="TEXT", help="what questions are answered from")
    parser.add_argument("--pair", metavar="TEXT", help="the other text of each pair")
    parser.add_argument("--data", type=Path, metavar="PATH", help="by the name of a task: examples to show (--shots)")
    _add_prompted(parser)


def task(args: argparse.Namespace, project: Project) -> int:
    from tuner.commands import task_versions as keeping

    actions = {"train": _train, "eval": _evaluate, "predict": _predict, **keeping.ACTIONS}
    return actions[args.action](args, project)


def _train(args: argparse.Namespace, project: Project) -> int:
    from tuner.tasks.api import train
    from tuner.tasks.report import as_data, text_report

    settings = {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
    if args.class_weights:
        settings["class_weights"] = True
    made = train(
        args.task,
        args.data,
        test=args.test,
        validation=args.validation,
        model=args.model,
        out=args.out,
        columns=_columns(args),
        leakage=args.leakage,
        start=args.start,
        replay=args.replay,
        replay_share=args.replay_share,
        into=args.into,
        project=project,
        say=print_note if args.yes or not sys.stdin.isatty() else ConfirmGuesses(sys.stdin),
        on_progress=ProgressLines(),
        **settings,
    )
    if args.json:
        print_result({"folder": str(made.folder), "notes": list(made.notes), **as_data(made.scores)})
        return 0
    print_result(text_report(made.scores))
    print_result(f"\nfolder: {made.folder}\nreport: {made.folder / 'report' / 'report.html'}")
    print_result(f'next: ratchet task predict {made.folder} "…"')
    return 0


def _evaluate(args: argparse.Namespace, project: Project) -> int:
    from tuner.tasks.api import load, read_splits
    from tuner.tasks.fit import zero_shot
    from tuner.tasks.report import as_data, text_report

    if _is_prompted(args):
        splits = read_splits(args.folder.name, _origin(args, project), project, print_note)
        scores = zero_shot.measure(_prompted(args, splits, project), splits, most=args.most, seed=args.seed)
    else:
        predictor = load(args.folder, project=project, say=print_note)
        scores = predictor.evaluate_file(args.data, _columns(args), most=args.most, seed=args.seed, say=print_note)
    print_result(as_data(scores) if args.json else text_report(scores))
    return 0


def _predict(args: argparse.Namespace, project: Project) -> int:
    from tuner.tasks.api import load, read_splits
    from tuner.tasks.origin import Origin

    if _is_prompted(args):
        task = args.folder.name
        shots = None if args.data is None else Origin.of(project, args.data, leakage="drop")
        splits = None if shots is None else read_splits(task, shots, project, print_note)
        predictor = _prompted(args, splits, project)
    else:
        predictor = load(args.folder, project=project, say=print_note)
    second = args.context if predictor.task == "answer" else args.pair
    waiting: list[Any] = []
    for text in _texts(args):
        waiting.append(text if second is None or isinstance(text, tuple) else (text, second))
        if len(waiting) == BATCH:
            _tell(predictor, waiting)
            waiting = []
    if waiting:
        _tell(predictor, waiting)
    return 0


def _is_prompted(args: argparse.Namespace) -> bool:
    """Whether a model is to be asked as it is: by a task's name, where no folder is called so.

    Raises DatasetError where a trained task is told what only an untrained one can be.
    """
    from agent.errors import DatasetError

    if str(args.folder) in TASKS and not args.folder.is_dir():
        return True
    told = [name for name in ("model", "shots", "labels", "into") if getattr(args, name)]
    if told:
        raise DatasetError(
            f"--{told[0]} is for a task by its name ({', '.join(TASKS)}); {args.folder} is a trained task's folder, "
            "which has its own"
        )
    return False


def _origin(args: argparse.Namespace, project: Project) -> Origin:
    """Where the test, and the shots, are read from: a shot that is in the test as well is none."""
    from tuner.tasks.origin import Origin

    return Origin.of(project, args.data, columns=_columns(args), leakage="drop")


def _prompted(args: argparse.Namespace, splits: Splits | None, project: Project) -> TaskPredictor:
    from tuner.tasks.fit.zero_shot import open_untrained

    return open_untrained(
        args.folder.name,
        splits,
        model=args.model,
        few_shot=args.shots,
        selection=args.choose,
        labels=[one.strip() for one in args.labels.split(",") if one.strip()],
        into=args.into,
        seed=args.seed,
        project=project,
        say=print_note,
    )


def _tell(predictor: Any, texts: list[Any]) -> None:
    for text, one in zip(texts, predictor.predict(texts), strict=True):
        shown = {"text": text} if isinstance(text, str) else {"text": text[0], "other": text[1]}
        print(json.dumps({**shown, **one.to_dict()}, ensure_ascii=False), flush=True)


def _texts(args: argparse.Namespace) -> Iterator[str | tuple[str, str]]:
    """The texts of the arguments, of a file or of stdin; a line of JSON has `text` and perhaps a second one."""
    from agent.errors import DatasetError
    from tuner.tasks.data.sources import read_text

    if args.texts:
        yield from args.texts
        return
    lines = read_text(args.file).split("\n") if args.file else (line.rstrip("\n") for line in sys.stdin)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if not line.startswith("{"):
            yield line
            continue
        try:
            found = json.loads(line)
            first = found.get("text") or found["question"]
        except (ValueError, KeyError):
            raise DatasetError(f"line {number} is no JSON object with text or question: {line[:60]!r}") from None
        second = found.get("pair") or found.get("context")
        yield first if second is None else (first, second)


def _add_prompted(parser: argparse.ArgumentParser) -> None:
    """What a model is told that was not trained for the task."""
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="by the name of a task: a language model (default: the base; to classify without shots, the encoder)",
    )
    parser.add_argument("--shots", type=int, default=0, metavar="N", help="training examples to show it (default: 0)")
    parser.add_argument("--choose", choices=CHOICES, default="similar", help="which ones (default: those most alike)")
    parser.add_argument("--labels", default="", metavar="A,B", help="labels, where no data tells them")
    parser.add_argument("--into", default="", metavar="LANGUAGE", help="to translate into, where no data tells it")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn (default: 0)")


def _add_columns(parser: argparse.ArgumentParser) -> None:
    for name, what in (
        ("text", "of the texts (in CoNLL files its number, from 1)"),
        ("label", "of the labels; several of 0 and 1 with commas between (in CoNLL files its number)"),
        ("pair", "of the second texts"),
        ("question", "of the questions"),
        ("context", "of the contexts"),
        ("answer", "of the answers"),
        ("target", "of translations or summaries; of parallel lines the other file, or how its name ends"),
        ("rating", "of how good the answers were"),
    ):
        parser.add_argument(f"--{name}", metavar="COLUMN", help=f"column {what}")
    parser.add_argument(
        "--least-rating", type=float, metavar="X", help="leave lower rated answers out (default: up to the middle)"
    )
    parser.add_argument("--multi-label", action="store_true", help="a field may hold several labels")
    parser.add_argument("--separator", metavar="SIGN", help="what stands between them (default: | or ; or a comma)")
    parser.add_argument("--encoding", metavar="NAME", help="of the files (default: UTF-8)")


def _columns(args: argparse.Namespace) -> Columns:
    return Columns(**{one.name: getattr(args, one.name) for one in fields(Columns)})
