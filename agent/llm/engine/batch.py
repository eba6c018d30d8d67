"""TODO: agent/llm/engine/batch.py"""

from __future__ import annotations

from collections.abc import Sequence

PASS_TOKENS = 512
"""The most prompt tokens one pass reads, so that nobody waits long behind a long prompt."""


GUESS_TOKENS = 128
"""Guesses are made while a pass has fewer tokens than this: so many cost hardly more than one."""


def share_pass(pending: Sequence[int], since: Sequence[float]) -> list[int]:
    """How many of their pending ids the sessions of a pass bring to it, by since when each waits; at least one each.

    What is short is read at once, however long another's prompt is; whoever has waited longest may take half of the
    pass, so that many short prompts do not hold up a long one either.
    """
    takes = [1] * len(pending)
    room = PASS_TOKENS - len(pending)

    def give(index: int, most: int) -> None:
        nonlocal room
        more = max(0, min(pending[index] - takes[index], most, room))
        takes[index] += more
        room -= more

    reading = [index for index, count in enumerate(pending) if count > 1]
    if reading:
        give(min(reading, key=lambda one: since[one]), PASS_TOKENS // 2)
    for index in sorted(reading, key=lambda one: pending[one]):
        give(index, room)
    return takes
