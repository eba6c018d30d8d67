"""The command `ratchet`: reads arguments, calls what does the work, makes a line and an exit code of errors.

Exit codes: 0 done, 1 an error this project explains, 2 wrong usage, 3 a run that ended without an answer or a
hand-over, 4 a candidate that the gate refused, 130 interrupted. Nothing heavy is imported until
a command needs it.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from agent.cli.session import OpenRuntime, Session, UsageError
from agent.errors import RatchetError

if TYPE_CHECKING:
    from agent.config.project import Project
    from agent.runtime import Runtime

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

FAILED, USAGE, INTERRUPTED = 1, 2, 130

KINDS = ("fact", "habit", "exception")

Handler = Callable[[argparse.Namespace, Session], int]


def main(argv: Sequence[str] | None = None, *, open_runtime: OpenRuntime | None = None) -> int:
    """Run one command and return its exit code. `open_runtime` makes runtimes of another kind, for tests."""
    try:
        arguments = _parsed(argv)
    except SystemExit as end:  # how argparse ends after --help, --version and wrong usage
        return end.code if isinstance(end.code, int) else USAGE
    try:
        with _debug_log(arguments.debug):
            code: int = arguments.handler(arguments, Session(arguments, open_runtime or _open_runtime))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; what is left in the buffer must not be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except RatchetError as fault:
        if arguments.debug:
            raise
        print(f"ratchet: {fault}", file=sys.stderr)
        return USAGE if isinstance(fault, UsageError) else FAILED
    except SystemExit as end:
        # So uvicorn ends where it cannot listen. With 0, a command that was broken off would look as if it were done.
        if isinstance(end.code, int) and end.code != 0:
            return end.code
        print(f"ratchet: the command was broken off by sys.exit({end.code!r})", file=sys.stderr)
        return FAILED
    except Exception as fault:
        if arguments.debug:
            raise
        said = f"{type(fault).__name__}: {fault}"
        print(f"ratchet: unexpected failure ({said}); run it again with --debug to see where", file=sys.stderr)
        return FAILED


@contextmanager
def _debug_log(wanted: bool) -> Iterator[None]:
    """Write where tools raised their exceptions to stderr, if that is wanted."""
    if not wanted:
        yield
        return
    log, handler = logging.getLogger("ratchet"), logging.StreamHandler()
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.setLevel(before)
        log.removeHandler(handler)


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments. Texts may also stand behind options, which argparse does not allow in the command of a command."""
    parser = build_parser()
    arguments, more = parser.parse_known_args(argv)
    if more and (getattr(arguments, "texts", None) != [] or any(one.startswith("-") for one in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:
        arguments.texts = more
    return arguments


def build_parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    parser = argparse.ArgumentParser(
        prog="ratchet",
        description="A local agent that learns from corrections and only turns one way: better.",
    )
    parser.add_argument("--project", metavar="DIR", help="look for ratchet.toml from here up (default: here)")
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    parser.add_argument("--quiet", action="store_true", help="no progress and no confirmations")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (
        _add_run_commands,
        _add_feedback_commands,
        _add_tuner_commands,
        _add_adapter_commands,
        _add_encoder_commands,
        _add_task_commands,
    ):
        add(commands)
    _add_project_commands(commands)
    return parser


def _open_runtime(project: Project, progress: Callable[[str], None]) -> Runtime:
    from tuner.api import open_runtime

    return open_runtime(project, progress)


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from agent.cli.project import version_text

        print(version_text())
        parser.exit()


def _command(
    commands: Commands,
    name: str,
    summary: str,
    handler: Handler,
    *,
    as_json: bool = True,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    # May also stand behind the command; left out there, it keeps what stood in front.
    parser.add_argument("--project", metavar="DIR", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    for option in ("--debug", "--quiet"):
        parser.add_argument(option, action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    if as_json:
        parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(handler=handler)
    return parser


def _lazy(module: str, name: str) -> Handler:
    """A handler in `agent.cli`, imported when it is called."""

    def handle(arguments: argparse.Namespace, session: Session) -> int:
        function: Handler = getattr(importlib.import_module(f"agent.cli.{module}"), name)
        return function(arguments, session)

    return handle


# -- runs ----------------------------------------------------------------------------------------------------


def _add_run_commands(commands: Commands) -> None:
    run = _command(commands, "run", "do one task", _lazy("runs", "run"))
    run.add_argument("task", metavar="TASK")
    chat = _command(commands, "chat", "do tasks as they are typed, one a line", _lazy("runs", "chat"))
    for parser in (run, chat):
        parser.add_argument(
            "--fact", action="append", default=[], metavar="NAME=VALUE", help="what is known of the sender"
        )
        parser.add_argument("--adapter", metavar="ID", help="an adapter's id, or base (default: the active one)")
    resume = _command(
        commands,
        "resume",
        "go on with a run that was cut off, or behind its correction",
        _lazy("runs", "resume"),
    )
    _add_run_name(resume)
    log = _command(commands, "log", "list the newest runs", _lazy("runs", "log"))
    log.add_argument("--limit", type=_count, default=20, metavar="N", help="how many (default: 20)")
    log.add_argument("--unfinished", action="store_true", help="only those that were cut off")
    _add_run_name(_command(commands, "show", "show every step of a run", _lazy("runs", "show")))


def _add_run_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's id, the beginning of one, or last")


# -- feedback ------------------------------------------------------------------------------------------------


def _add_feedback_commands(commands: Commands) -> None:
    rate = _command(commands, "rate", "say whether a run was good", _lazy("feedback", "rate"))
    _add_run_name(rate)
    rate.add_argument("verdict", choices=("up", "down"))
    correct = _command(commands, "correct", "say what a step should have been", _lazy("feedback", "correct"))
    _add_run_name(correct)
    correct.add_argument("step", metavar="STEP", type=int, help="as `ratchet show` numbers it, from 0")
    correct.description = (
        "Say what a step should have been. Tool and arguments that are left out are those of the step as it was; a "
        "plan or a thought that is left out is not trained."
    )
    correct.add_argument("--thought", metavar="TEXT", help="left out: no thought is trained")
    correct.add_argument(
        "--plan", metavar="PARTS", help='parts with ; between: "find the order; cancel it"; left out: none is trained'
    )
    correct.add_argument("--tool", metavar="NAME", help="left out: the tool of the step as it was")
    correct.add_argument("--args", metavar="JSON", help="all arguments of the call, as a JSON object")
    correct.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE", help="one argument of it")
    correct.add_argument("--answer", metavar="TEXT", help="the step should have answered this")
    correct.add_argument("--cite", action="append", type=int, metavar="N", help="a passage the answer cites")
    correct.add_argument(
        "--output",
        metavar="TEXT",
        help="the trained task that was asked should have given this: a label, labels with | between, entities as "
        'JSON ([{"text": "Ada", "label": "PER"}]), or an answer',
    )
    correct.add_argument("--kind", choices=KINDS, help="where it belongs (default: what the rule says)")
    listing = _command(
        commands, "corrections", "list the corrections and say where each belongs", _lazy("feedback", "corrections")
    )
    listing.add_argument("--kind", choices=KINDS, help="only these; facts come with what a document could say")
    arbitrate = _command(commands, "arbitrate", "say where a correction belongs", _lazy("feedback", "arbitrate"))
    arbitrate.add_argument("correction", metavar="CORRECTION", help="its id, or the beginning of it")
    arbitrate.add_argument("kind", choices=KINDS, help="in the documents, in the weights, or in memory alone")
    for parser in (rate, correct, arbitrate):
        parser.add_argument("--reviewer", metavar="NAME", help="who says so (default: your user name)")
        parser.add_argument("--reason", default="", metavar="TEXT")


# -- tuning: the tuner has its own arguments -----------------------------------------------------------------


def _add_tuner_commands(commands: Commands) -> None:
    from tuner.commands import tune as tuner

    add = _command(commands, "tune", "train an adapter from what was accepted and corrected", _tune, as_json=False)
    tuner.add_tune(add)
    add = _command(commands, "eval", "run a suite of tasks and score it", _evaluate, as_json=False)
    tuner.add_eval(add)
    add = _command(commands, "demo", "show the whole loop on the demo desk", _demo, as_json=False)
    tuner.add_demo(add)


def _tune(arguments: argparse.Namespace, session: Session) -> int:
    from tuner.commands import tune as tuner

    fault = tuner.faults_of_tune(arguments)
    if fault is not None:
        raise UsageError(fault)
    return tuner.tune(arguments, session.project)


def _evaluate(arguments: argparse.Namespace, session: Session) -> int:
    from tuner.commands import tune as tuner

    return tuner.evaluate(arguments, session.project)


def _demo(arguments: argparse.Namespace, session: Session) -> int:
    from tuner.commands import tune as tuner

    return tuner.demo(arguments, main)


# -- adapters ------------------------------------------------------------------------------------------------


def _add_adapter_commands(commands: Commands) -> None:
    from tuner.commands import tune as tuner

    _command(commands, "adapters", "list the adapters and say which one is served", _lazy("project", "adapters"))
    merge = _command(commands, "merge", "add adapters up, each times its weight, as a new one", _merge, as_json=False)
    tuner.add_merge(merge)
    promote = _command(commands, "promote", "gate an adapter and serve it if it is better", _promote, as_json=False)
    tuner.add_promote(promote)
    rollback = _command(commands, "rollback", "serve what was served before", _lazy("project", "rollback"))
    rollback.add_argument(
        "--reason", default="rolled back by hand", metavar="TEXT", help="kept in the registry's history"
    )


def _add_encoder_commands(commands: Commands) -> None:
    from tuner.commands import encoder as tuner

    encoder = _command(commands, "encoder", "tune what documents are searched with", _encoder, as_json=False)
    actions = encoder.add_subparsers(dest="action", metavar="ACTION", required=True)
    tuner.add_tune(_command(actions, "tune", "train it from cited passages and from how runs began", _encoder))
    _command(actions, "list", "list its adapters and say which one is served", _encoder)
    tuner.add_promote(_command(actions, "promote", "gate one and serve it if it finds more", _encoder))
    tuner.add_rollback(_command(actions, "rollback", "search with what was served before", _encoder))


def _encoder(arguments: argparse.Namespace, session: Session) -> int:
    from tuner.commands import encoder as tuner

    return tuner.encoder(arguments, session.project)


def _add_task_commands(commands: Commands) -> None:
    from tuner.commands import task as tuner
    from tuner.commands import task_versions as keeping

    task = _command(commands, "task", "classify, tag, answer, translate, … learnt from a file", _task, as_json=False)
    actions = task.add_subparsers(dest="action", metavar="ACTION", required=True)
    tuner.add_train(_command(actions, "train", "train a head on an encoder, or a language model, from a file", _task))
    tuner.add_eval(
        _command(actions, "eval", "measure a trained task, or a language model by a task's name, on a file", _task)
    )
    tuner.add_predict(
        _command(
            actions,
            "predict",
            "ask a trained task, or a language model; a line of JSON for each text",
            _task,
            as_json=False,
        )
    )
    _command(actions, "list", "list the trained tasks, their tools and what is served", _task)
    keeping.add_tune(_command(actions, "tune", "learn from corrections of its output; served if better", _task))
    keeping.add_rollback(_command(actions, "rollback", "serve the version that was served before", _task))


def _task(arguments: argparse.Namespace, session: Session) -> int:
    from tuner.commands import task as tuner

    return tuner.task(arguments, session.project)


def _merge(arguments: argparse.Namespace, session: Session) -> int:
    from tuner.commands import tune as tuner

    return tuner.merge(arguments, session.project)


def _promote(arguments: argparse.Namespace, session: Session) -> int:
    from tuner.commands import tune as tuner

    return tuner.promote(arguments, session.project)


# -- the project ---------------------------------------------------------------------------------------------


def _add_document_commands(commands: Commands) -> None:
    run = _lazy("documents", "docs")
    docs = _command(commands, "docs", "add, list, search and remove documents", run, as_json=False)
    actions = docs.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = _command(actions, "add", "read a folder of documents, or what changed in it", run)
    add.add_argument("folder", nargs="?", metavar="FOLDER", help="default: those of ratchet.toml")
    add.add_argument("--trust", choices=("own", "outside"), help="whose texts these are (default: own)")
    sync = _command(actions, "sync", "read every folder again that documents came from", run)
    listing = _command(actions, "list", "list the documents", run)
    remove = _command(actions, "remove", "forget a document", run)
    remove.add_argument("name", metavar="NAME")
    search = _command(actions, "search", "find passages", run)
    search.add_argument("query", metavar="QUERY")
    search.add_argument("--limit", type=_count, metavar="N", help="how many passages (default: as in ratchet.toml)")
    search.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="only of documents with this in their front matter",
    )
    rebuild = _command(actions, "rebuild", "make the indexes anew", run)
    for action in (add, sync, listing, remove, search, rebuild):
        action.add_argument("--tenant", metavar="NAME", help="whose documents (default: as in ratchet.toml)")


def _add_forget(commands: Commands) -> None:
    summary = "remove what a person said, and what was made of it"
    forget = _command(commands, "forget", summary, _forget)
    forget.description = (
        "Remove a person's runs, with workspaces, datasets and reports made of them, and their documents; and list the "
        "adapters that learnt of them. A run is theirs when a fact's value is the ID, or when its task, facts, steps "
        "or feedback have the ID as a whole word, in capitals or not; so are its branches, and runs that were shown a "
        "document of theirs. A document is theirs when a value of its metadata is the ID; one that only names it is "
        "listed. What was masked in the log, such as an e-mail address, is not found by it: give the id that the "
        "facts have."
    )
    forget.add_argument("--subject", required=True, metavar="ID", help="an id, an address or a name, as it is written")
    forget.add_argument("--documents", action="store_true", help="remove documents that only name the ID, too")
    forget.add_argument(
        "--pages",
        action="store_true",
        help="take pages that name the ID out of adapter folders, which are sealed anew",
    )
    forget.add_argument("--dry-run", action="store_true", help="only say what would go")
    forget.add_argument("--yes", action="store_true", help="do not ask")


def _forget(arguments: argparse.Namespace, session: Session) -> int:
    from agent.cli.forget import forget
    from tuner.privacy.erasure import Made

    return forget(arguments, session, Made(session.project, session.note))


def _add_project_commands(commands: Commands) -> None:
    _add_document_commands(commands)
    _add_forget(commands)
    _command(commands, "models", "list the models that are there", _lazy("project", "models"))
    _command(commands, "doctor", "say what is there, what is missing and what to do", _lazy("project", "doctor"))
    _command(commands, "bench", "say how fast the model is on this machine", _lazy("project", "bench"))
    init = _command(
        commands, "init", "write a ratchet.toml with every setting", _lazy("project", "init"), as_json=False
    )
    init.add_argument("--print", action="store_true", help="print it instead")
    serve = _command(commands, "serve", "answer over HTTP", _lazy("project", "serve"), as_json=False)
    serve.add_argument("--host", metavar="HOST", help="address to listen on (default: as in ratchet.toml)")
    serve.add_argument("--port", type=int, metavar="PORT", help="0 takes a free one (default: as in ratchet.toml)")
    _command(commands, "version", "show the version", _lazy("project", "version"), as_json=False)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {number}")
    return number


if __name__ == "__main__":
    sys.exit(main())
