"""The pages that repeat the code say what the code says."""

from __future__ import annotations

from tests.bench import reference


def test_the_pages_of_commands_and_settings_are_those_that_the_code_gives() -> None:
    for path, text in reference.pages().items():
        assert path.read_text("utf-8") == text, f"{path.name} is out of date; run `make docs`"
