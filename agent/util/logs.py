"""The logger `ratchet`, which all modules log to through children such as `ratchet.run`.

It is silent by default; a program adds handlers of its own, and the command line uses `log_to_stderr`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_ROOT = logging.getLogger("ratchet")
_ROOT.addHandler(logging.NullHandler())


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a part of this project: `ratchet.` and its name."""
    return _ROOT.getChild(name)


@contextmanager
def log_to_stderr(level: str) -> Iterator[None]:
    """Write messages of a level ("debug", "info", "warning", "error") and above to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    level_before = _ROOT.level
    _ROOT.addHandler(handler)
    _ROOT.setLevel(level.upper())
    try:
        yield
    finally:
        _ROOT.setLevel(level_before)
        _ROOT.removeHandler(handler)
