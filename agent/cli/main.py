"""The command `ratchet`: runs one command, and turns errors into one message and an exit code.

Exit codes: 0 success, 1 an error with an explanation, 2 wrong usage, 3 a run that ended without an answer or an
escalation, 4 a candidate that the gate rejected, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from agent.cli.parser import parse_arguments
from agent.cli.session import OpenRuntime, Session, UsageError
from agent.errors import RatchetError
from agent.util.logs import log_to_stderr

if TYPE_CHECKING:
    from agent.config.project import Project
    from agent.runtime import Runtime

FAILED, USAGE, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None, *, open_runtime: OpenRuntime | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: The arguments; by default those of the process.
        open_runtime: Opens runtimes of another kind, for tests.
    """
    try:
        arguments = parse_arguments(argv)
    except SystemExit as end:  # how argparse ends after --help, --version and wrong usage
        return end.code if isinstance(end.code, int) else USAGE
    try:
        with log_to_stderr(_log_level(arguments)):
            session = Session(arguments, open_runtime or _open_runtime, run_command=main)
            code: int = arguments.handler(arguments, session)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone; what is left in the buffer must not be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except RatchetError as fault:
        if arguments.debug:
            raise
        print(f"ratchet: {fault}", file=sys.stderr)
        return USAGE if isinstance(fault, UsageError) else FAILED
    except SystemExit as end:
        # So uvicorn ends where it cannot listen. With 0, an aborted command would look like a success.
        if isinstance(end.code, int) and end.code != 0:
            return end.code
        print(f"ratchet: the command was broken off by sys.exit({end.code!r})", file=sys.stderr)
        return FAILED
    except Exception as fault:
        if arguments.debug:
            raise
        text = f"{type(fault).__name__}: {fault}"
        print(f"ratchet: unexpected failure ({text}); run it again with --debug to see where", file=sys.stderr)
        return FAILED


def _log_level(arguments: argparse.Namespace) -> str:
    """Return the lowest level that --debug, --verbose and RATCHET_LOG name; "warning" without any of them."""
    if arguments.debug:
        return "debug"
    from agent.config.environment import read_log_level

    level = read_log_level()
    if arguments.verbose and level != "debug":
        return "info"
    return level or "warning"


def _open_runtime(project: Project, progress: Callable[[str], None]) -> Runtime:
    from tuner.api import open_runtime

    return open_runtime(project, progress)


if __name__ == "__main__":
    sys.exit(main())
