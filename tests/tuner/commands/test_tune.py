"""The commands of tuning find what they need."""

from __future__ import annotations

from tuner.commands.tune import packaged_desk


def test_the_demo_finds_the_desk_that_comes_along() -> None:
    assert (packaged_desk() / "tickets" / "train.jsonl").is_file()
