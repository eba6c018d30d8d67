"""Work in a thread of its own: its result or its error is passed on, and its memory is returned."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch

from agent.util.threads import give_back_memory, run_in_thread


def threads_of_this_process() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_a_result_is_returned_and_its_thread_has_ended() -> None:
    names = run_in_thread(lambda: threading.current_thread().name)
    assert names == "ratchet-work"
    assert names not in [thread.name for thread in threading.enumerate()]


def test_an_error_is_raised_in_the_calling_thread() -> None:
    with pytest.raises(KeyError, match="gone"):
        run_in_thread(lambda: {}["gone"])


def test_no_thread_outlives_its_work() -> None:
    weight = torch.ones(512, 512)
    run_in_thread(lambda: weight @ weight)
    before = threads_of_this_process()
    for _ in range(5):
        run_in_thread(lambda: (weight @ weight).sum())
    # The system takes a moment to bury a thread.
    for _ in range(100):
        if threads_of_this_process() <= before:
            break
        time.sleep(0.02)
    assert threads_of_this_process() <= before


def resident() -> int:
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_memory_that_a_thread_freed_is_returned_to_the_system() -> None:
    def fill() -> None:
        # Pieces too small to be mapped one by one, so that they lie in the thread's own heap.
        pieces = [bytes(100_000) for _ in range(4000)]
        last_pieces.append(pieces[-1])

    last_pieces: list[bytes] = []
    give_back_memory()
    before = resident()
    for _ in range(3):
        run_in_thread(fill)
    give_back_memory()
    assert resident() - before < 200 * 2**20
