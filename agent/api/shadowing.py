"""Report a file or folder of the user's that hides a package of Ratchet.

A script's own folder comes first on `sys.path`, so that a `tools.py` beside it is imported in place of the package.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

_FOLDER = Path(__file__).resolve().parents[2]
"""The folder that the packages `agent`, `tools` and `tuner` are installed in."""


def check_not_hidden(package: str) -> None:
    """Refuse to go on where another module has the name of a package of Ratchet.

    Raises:
        ImportError: Names the other module, the package, and what to do.
    """
    loaded = sys.modules.get(package)
    file = getattr(loaded, "__file__", None)
    if loaded is None:
        spec = find_spec(package)
        file = None if spec is None else spec.origin
    ours = _FOLDER / package / "__init__.py"
    if file is None or Path(file).resolve() != ours:
        other = file or f"a folder without __init__.py, or nothing, named {package}"
        raise ImportError(
            f"`{package}` is {other}, which hides the package `{package}` of Ratchet in {ours.parent}; rename yours "
            f"(for example my_{package}.py), or start your program from another folder",
            name=package,
            path=file,
        )
