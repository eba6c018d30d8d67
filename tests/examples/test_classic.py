"""Each script of `examples/classic` runs from a bare folder, learns, and is short."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = sorted((REPOSITORY / "examples" / "classic").glob("*.py"))
LEARNT = {
    "answer": ("Mina", "1975", "Graz", "(the text does not say)"),
    "converse": ("within 30 days", "send a photo"),
    "classify": ("delivery", "repair", "refund"),
    # The wish and not the place comes first, as it was taught.
    "embed": ("Until when is the harbour open today?\n",),
    "relate": ("Part(e1,e2)", "Part(e2,e1)"),
    "summarise": ("it leaks. Wants to send it back.",),
    "translate": ("Das Brot ist warm.", "Das Schiff ist alt."),
    "tag": ("'text': 'Peter Moss'", "'text': 'Madrid'", "'text': 'Cape Town'"),
}


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
    assert all(one in done.stdout for one in LEARNT[script.stem]), done.stdout
