"""Each script of `examples/classic` runs from a bare folder, learns, and is short."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = sorted((REPOSITORY / "examples" / "classic").glob("*.py"))
LEARNT = {
    "answer": ("Mina", "1975", "Graz", "(the text does not say)"),
    "classify": ("delivery", "repair", "refund"),
    # The wish and not the place comes first, as it was taught.
    "embed": ("Until when is the harbour open today?\n",),
    "relate": ("Part(e1,e2)", "Part(e2,e1)"),
    "tag": ("'text': 'Peter Moss'", "'text': 'Madrid'", "'text': 'Cape Town'"),
}

WRITES = ("converse", "summarise", "translate")
"""Whose words may differ from machine to machine, so that their figure is looked at."""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_under_sixty_lines(script: Path) -> None:
    assert len(script.read_text("utf-8").splitlines()) < 60


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_learns_what_it_shows(script: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if script.stem in WRITES:
        figures = re.search(r"(\d+)% before, (\d+)% after", done.stdout)
        assert figures is not None, done.stdout
        before, after = map(int, figures.groups())
        assert after >= max(70, before + 20), done.stdout
    else:
        assert all(one in done.stdout for one in LEARNT[script.stem]), done.stdout
