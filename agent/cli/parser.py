"""The commands of `ratchet`, their arguments, and the functions that they call.

Nothing heavy is imported until a command is called. The commands of the tuner add their own arguments.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from agent.cli.session import Session, UsageError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

KINDS = ("fact", "habit", "exception")
SWITCHES = {
    "--debug": "show the traceback of an error, and log everything",
    "--verbose": "log what happens on standard error; RATCHET_LOG=debug logs more",
    "--quiet": "no progress and no confirmations",
}

Handler = Callable[[argparse.Namespace, Session], int]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line. Exits as argparse does after --help, --version and wrong usage."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    # Texts may also follow options, which argparse does not allow in a command of a command.
    if rest and (getattr(arguments, "texts", None) != [] or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.texts = rest
    return arguments


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="ratchet", description="A local agent that learns from corrections and only turns one way: better."
    )
    parser.add_argument(
        "--project", metavar="DIR", help="look for ratchet.toml in this folder and above (default: here)"
    )
    for option, summary in SWITCHES.items():
        parser.add_argument(option, action="store_true", help=summary)
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (
        _add_run_commands,
        _add_feedback_commands,
        _add_tuner_commands,
        _add_adapter_commands,
        _add_encoder_commands,
        _add_task_commands,
        _add_document_commands,
        _add_forget_command,
        _add_project_commands,
    ):
        add(commands)
    return parser


class _Version(argparse.Action):
    """Looks up the version only when it is needed."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from agent.cli.project import version_text

        print(version_text())
        parser.exit()


def _add_command(
    commands: Commands, name: str, summary: str, handler: Handler, *, as_json: bool = True
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    # These may also follow the command; the default keeps the value from in front of it.
    parser.add_argument("--project", metavar="DIR", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    for option in SWITCHES:
        parser.add_argument(option, action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    if as_json:
        parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(handler=handler)
    return parser


def _cli(module: str, name: str) -> Handler:
    """Return a handler of `agent.cli` that is imported when it is called."""

    def handle(arguments: argparse.Namespace, session: Session) -> int:
        handler: Handler = getattr(importlib.import_module(f"agent.cli.{module}"), name)
        return handler(arguments, session)

    return handle


def _tuner(module: str, name: str) -> Handler:
    """Return a command of `tuner.commands` that is imported when it is called."""

    def handle(arguments: argparse.Namespace, session: Session) -> int:
        command = getattr(importlib.import_module(f"tuner.commands.{module}"), name)
        code: int = command(arguments, session.project)
        return code

    return handle


# -- runs ----------------------------------------------------------------------------------------------------


def _add_run_commands(commands: Commands) -> None:
    run = _add_command(commands, "run", "run one task", _cli("runs", "run"))
    run.add_argument("task", metavar="TASK")
    chat = _add_command(commands, "chat", "run tasks as they are typed, one per line", _cli("runs", "chat"))
    for parser in (run, chat):
        parser.add_argument(
            "--fact",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="a value of the task's context, such as the sender's customer number",
        )
        parser.add_argument("--adapter", metavar="ID", help="an adapter's id, or base (default: the active adapter)")
    resume = _add_command(
        commands, "resume", "continue a run that was interrupted, or a corrected run", _cli("runs", "resume")
    )
    _add_run_name(resume)
    log = _add_command(commands, "log", "list the newest runs", _cli("runs", "log"))
    log.add_argument("--limit", type=_positive, default=20, metavar="N", help="how many (default: 20)")
    log.add_argument("--unfinished", action="store_true", help="only runs that were interrupted")
    _add_run_name(_add_command(commands, "show", "show every step of a run", _cli("runs", "show")))


def _add_run_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's id, the beginning of an id, or last")


# -- feedback ------------------------------------------------------------------------------------------------


def _add_feedback_commands(commands: Commands) -> None:
    rate = _add_command(commands, "rate", "rate a run as good or bad", _cli("feedback", "rate"))
    _add_run_name(rate)
    rate.add_argument("verdict", choices=("up", "down"))
    correct = _add_command(commands, "correct", "correct a step of a run", _cli("feedback", "correct"))
    _add_run_name(correct)
    correct.add_argument("step", metavar="STEP", type=int, help="number of the step in `ratchet show`, from 0")
    correct.description = (
        "Correct a step of a run. Without --tool or arguments, those of the recorded step stay; without --plan or "
        "--thought, none is trained."
    )
    correct.add_argument("--thought", metavar="TEXT", help="the thought of the corrected step")
    correct.add_argument(
        "--plan", metavar="PARTS", help='the plan, its parts separated by ;: "find the order; cancel it"'
    )
    correct.add_argument("--tool", metavar="NAME", help="the tool to call (default: that of the recorded step)")
    correct.add_argument("--args", metavar="JSON", help="all arguments of the call, as a JSON object")
    correct.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE", help="one argument of the call")
    correct.add_argument("--answer", metavar="TEXT", help="the step should have given this answer")
    correct.add_argument("--cite", action="append", type=int, metavar="N", help="a passage that the answer cites")
    correct.add_argument(
        "--output",
        metavar="TEXT",
        help="the correct output of a trained task that the step called: a label, labels separated by |, entities as "
        'JSON ([{"text": "Ada", "label": "PER"}]), or an answer',
    )
    correct.add_argument("--kind", choices=KINDS, help="kind of the correction (default: habit); see `arbitrate`")
    listing = _add_command(
        commands, "corrections", "list the corrections and their kinds", _cli("feedback", "corrections")
    )
    listing.add_argument("--kind", choices=KINDS, help="only corrections of this kind")
    arbitrate = _add_command(commands, "arbitrate", "change the kind of a correction", _cli("feedback", "arbitrate"))
    arbitrate.add_argument("correction", metavar="CORRECTION", help="its id, or the beginning of it")
    arbitrate.add_argument(
        "kind",
        choices=KINDS,
        help="habit: it is trained; fact: a knowledge gap, which belongs in a document; exception: it is only recalled",
    )
    for parser in (rate, correct, arbitrate):
        parser.add_argument("--reviewer", metavar="NAME", help="who gives the feedback (default: your user name)")
        parser.add_argument("--reason", default="", metavar="TEXT", help="kept with the feedback")


# -- tuning --------------------------------------------------------------------------------------------------


def _add_tuner_commands(commands: Commands) -> None:
    from tuner.commands import tune as tuner

    tuner.add_tune(_add_command(commands, "tune", "train an adapter from feedback on runs", _tune, as_json=False))
    evaluate = _tuner("tune", "evaluate")
    tuner.add_eval(_add_command(commands, "eval", "run a suite of tasks and score it", evaluate, as_json=False))
    tuner.add_demo(_add_command(commands, "demo", "show the whole loop on the demo desk", _demo, as_json=False))


def _tune(arguments: argparse.Namespace, session: Session) -> int:
    from tuner.commands import tune as tuner

    fault = tuner.faults_of_tune(arguments)
    if fault is not None:
        raise UsageError(fault)
    return tuner.tune(arguments, session.project)


def _demo(arguments: argparse.Namespace, session: Session) -> int:
    from tuner.commands import tune as tuner

    return tuner.demo(arguments, session.run_command)


# -- adapters ------------------------------------------------------------------------------------------------


def _add_adapter_commands(commands: Commands) -> None:
    from tuner.commands import tune as tuner

    _add_command(commands, "adapters", "list the adapters and the served one", _cli("project", "adapters"))
    merge = _tuner("tune", "merge")
    tuner.add_merge(_add_command(commands, "merge", "add up weighted adapters to a new one", merge, as_json=False))
    promote = _tuner("tune", "promote")
    tuner.add_promote(
        _add_command(commands, "promote", "gate an adapter and serve it if it is better", promote, as_json=False)
    )
    rollback = _add_command(
        commands, "rollback", "serve the adapter that was served before", _cli("project", "rollback")
    )
    rollback.add_argument(
        "--reason", default="rolled back by hand", metavar="TEXT", help="kept in the registry's history"
    )


def _add_encoder_commands(commands: Commands) -> None:
    from tuner.commands import encoder as tuner

    run = _tuner("encoder", "encoder")
    encoder = _add_command(commands, "encoder", "tune the encoder of the document search", run, as_json=False)
    actions = encoder.add_subparsers(dest="action", metavar="ACTION", required=True)
    tuner.add_tune(_add_command(actions, "tune", "train it from cited passages and from first calls of runs", run))
    _add_command(actions, "list", "list its adapters and the served one", run)
    tuner.add_promote(_add_command(actions, "promote", "gate an adapter and serve it if it finds more", run))
    tuner.add_rollback(_add_command(actions, "rollback", "serve the adapter that was served before", run))


def _add_task_commands(commands: Commands) -> None:
    from tuner.commands import task as tuner
    from tuner.commands import task_versions

    run = _tuner("task", "task")
    task = _add_command(
        commands, "task", "train classic tasks (classify, tag, answer, …) from files", run, as_json=False
    )
    actions = task.add_subparsers(dest="action", metavar="ACTION", required=True)
    tuner.add_train(_add_command(actions, "train", "train a head on an encoder, or a language model, from a file", run))
    tuner.add_eval(
        _add_command(actions, "eval", "measure a trained task, or a language model by a task's name, on a file", run)
    )
    summary = "print the output of a trained task, or of a language model, for each text, as lines of JSON"
    tuner.add_predict(_add_command(actions, "predict", summary, run, as_json=False))
    _add_command(actions, "list", "list the trained tasks, their tools and the served versions", run)
    task_versions.add_tune(
        _add_command(actions, "tune", "train on corrections of its output; served if it is better", run)
    )
    task_versions.add_rollback(_add_command(actions, "rollback", "serve the version that was served before", run))


# -- the project ---------------------------------------------------------------------------------------------


def _add_document_commands(commands: Commands) -> None:
    run = _cli("documents", "docs")
    docs = _add_command(commands, "docs", "add, list, search and remove documents", run, as_json=False)
    actions = docs.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = _add_command(actions, "add", "add a folder of documents, or its changes", run)
    add.add_argument("folder", nargs="?", metavar="FOLDER", help="default: the folders in ratchet.toml")
    add.add_argument("--trust", choices=("own", "outside"), help="who wrote the texts (default: own)")
    sync = _add_command(actions, "sync", "read all folders of documents again", run)
    listing = _add_command(actions, "list", "list the documents", run)
    remove = _add_command(actions, "remove", "remove a document", run)
    remove.add_argument("name", metavar="NAME")
    search = _add_command(actions, "search", "find passages", run)
    search.add_argument("query", metavar="QUERY")
    search.add_argument("--limit", type=_positive, metavar="N", help="how many passages (default: as in ratchet.toml)")
    search.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="only documents with this value in their front matter",
    )
    rebuild = _add_command(actions, "rebuild", "rebuild the indexes", run)
    for action in (add, sync, listing, remove, search, rebuild):
        action.add_argument("--tenant", metavar="NAME", help="whose documents (default: as in ratchet.toml)")


def _add_forget_command(commands: Commands) -> None:
    summary = "remove a person's data, and what was made from it"
    forget = _add_command(commands, "forget", summary, _forget)
    forget.description = (
        "Remove a person's runs, with their workspaces, datasets and reports, and the person's documents; and list the "
        "adapters that were trained on them. A run is the person's when a value of its task context is the ID, or when "
        "its task, context, steps or feedback contain the ID as a whole word, in any case; so are its branches, and "
        "runs whose context includes one of the person's documents. A document is the person's when a value of its "
        "metadata is the ID; one that only mentions the ID is listed. Values masked in the log, such as e-mail "
        "addresses, are not found: give the id that the task context has."
    )
    forget.add_argument(
        "--subject", required=True, metavar="ID", help="an id, an address or a name, exactly as written"
    )
    forget.add_argument("--documents", action="store_true", help="also remove documents that only mention the ID")
    forget.add_argument(
        "--pages", action="store_true", help="also remove report pages that mention the ID from adapter folders"
    )
    forget.add_argument("--dry-run", action="store_true", help="only show what would be removed")
    forget.add_argument("--yes", action="store_true", help="do not ask for confirmation")


def _forget(arguments: argparse.Namespace, session: Session) -> int:
    from agent.cli.forget import forget
    from tuner.privacy.erasure import HomeTraining

    return forget(arguments, session, HomeTraining(session.project, session.note))


def _add_project_commands(commands: Commands) -> None:
    _add_command(commands, "models", "list the models on this machine", _cli("project", "models"))
    _add_command(
        commands, "doctor", "check what is installed, what is missing and what to do", _cli("project", "doctor")
    )
    _add_command(commands, "bench", "measure how fast the model is on this machine", _cli("project", "bench"))
    init = _add_command(
        commands, "init", "write a ratchet.toml with every setting", _cli("project", "init"), as_json=False
    )
    init.add_argument("--print", action="store_true", help="print it instead")
    serve = _add_command(commands, "serve", "start the HTTP service", _cli("project", "serve"), as_json=False)
    serve.add_argument("--host", metavar="HOST", help="address to listen on (default: as in ratchet.toml)")
    serve.add_argument("--port", type=int, metavar="PORT", help="0 takes a free one (default: as in ratchet.toml)")
    _add_command(commands, "version", "show the version", _cli("project", "version"), as_json=False)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {number}")
    return number
