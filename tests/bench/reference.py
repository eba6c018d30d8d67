"""Writes the pages that repeat what the code says: `python -m tests.bench.reference`, part of `make docs`.

`docs/reference/cli.md` from the parser of the command line, `docs/reference/settings.md` from the settings. With
`--check` nothing is written, and the exit code is 1 when a page is out of date.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from agent.cli.parser import build_parser
from agent.config.reader import settings_template
from tests.bench.results import ROOT


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.reference", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page is out of date")
    options = parser.parse_args(arguments)
    stale = [path for path, text in pages().items() if not path.is_file() or path.read_text("utf-8") != text]
    for path in stale:
        if options.check:
            print(f"{path.relative_to(ROOT)}: out of date; run `make docs`", file=sys.stderr)
        else:
            path.write_text(pages()[path], encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: written")
    return 1 if options.check and stale else 0


def pages() -> dict[Path, str]:
    """The generated pages by path."""
    folder = ROOT / "docs" / "reference"
    return {folder / "cli.md": _commands(), folder / "settings.md": _settings()}


def _commands() -> str:
    # argparse wraps its help to the terminal; a page has one width.
    os.environ["COLUMNS"] = "110"
    parts = ["# Command line", "Written by `make docs` from the parser; `ratchet COMMAND --help` prints the same."]
    parts += [f"## {name}\n\n```text\n{text.rstrip()}\n```" for name, text in _helps(build_parser())]
    return "\n\n".join(parts) + "\n"


def _helps(parser: argparse.ArgumentParser) -> list[tuple[str, str]]:
    """The help of a parser and of all commands below it."""
    helps = [(parser.prog, parser.format_help())]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                helps += _helps(inner)
    return helps


def _settings() -> str:
    return (
        "# Settings\n\nWritten by `make docs` from the settings; `ratchet init` writes the same as a `ratchet.toml`. "
        f"Unknown keys are refused.\n\n```toml\n{settings_template().rstrip()}\n```\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
