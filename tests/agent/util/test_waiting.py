"""OpenMP threads sleep while they wait, unless the user says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

NAMES = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}


def waiting(code: str, **environment: str) -> str:
    """What torch's OpenMP says of itself in a process that runs the code before it imports torch."""
    plain = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport torch\ntorch.ones(9)"],
        env={**plain, "OMP_DISPLAY_ENV": "VERBOSE", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr


def test_threads_wait_passively_whatever_of_ours_is_imported_first() -> None:
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in waiting("import tuner.tasks.api")


def test_what_the_user_has_set_is_kept() -> None:
    assert "GOMP_SPINCOUNT = '1234'" in waiting("import agent", GOMP_SPINCOUNT="1234")
