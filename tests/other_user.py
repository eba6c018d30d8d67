"""Another user of the machine, whom only root can become: for tests of what belongs to whom."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

OTHER = 65534
"""A user id that has no rights of its own: `nobody`."""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user, or become one")


def run_as_other(imports: str, code: str, *arguments: Path) -> str:
    """Return what a Python program prints that becomes another user as soon as it has its imports."""
    become = f"import grp, os, pwd, sys\n{imports}\nos.setgroups([])\nos.setgid({OTHER})\nos.setuid({OTHER})\n"
    done = subprocess.run(
        [sys.executable, "-c", become + code, *map(str, arguments)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def open_to_readers(folder: Path) -> None:
    """Let other users into a test's folder, which pytest closes to them: it and all above it but the last."""
    shared = Path(tempfile.gettempdir()).resolve()
    for above in (folder.resolve(), *folder.resolve().parents):
        if above == shared or shared not in above.parents:
            return
        above.chmod(0o755)
