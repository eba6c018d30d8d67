"""The record, the store, the registry and `ratchet --help` load nothing heavy and are there at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "peft", "chromadb", "sentence_transformers", "matplotlib")
SECONDS = 0.5
"""Of the processor, so that a busy machine makes no difference."""

LIGHT = (
    "import agent, tuner, tools",
    "from agent import Agent",
    "from tools import Copied, Quoted, tool",
    "import agent.records.run",
    "import agent.config.settings",
    "import agent.storage.store",
    "import agent.registry.registry",
    "import sys, runpy; sys.argv = ['ratchet', '--help']; runpy.run_module('agent.cli.main', run_name='__main__')",
)

PROBE = """
import contextlib, io, json, sys, time
started = time.process_time()
try:
    with contextlib.redirect_stdout(io.StringIO()):
        exec(sys.argv[1])
except SystemExit as end:
    assert not end.code, end.code
seconds = time.process_time() - started
print(json.dumps([seconds, [name for name in sys.argv[2:] if name in sys.modules]]))
"""


@pytest.mark.parametrize("code", LIGHT)
def test_it_loads_nothing_heavy_and_takes_under_half_a_second(code: str) -> None:
    best = float("inf")
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", PROBE, code, *HEAVY],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        seconds, heavy = json.loads(done.stdout)
        assert heavy == []
        best = min(best, seconds)
    assert best < SECONDS
