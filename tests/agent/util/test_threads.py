"""Work in a thread that ends with it: results and errors come through, and no team of threads is left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from agent.util.threads import give_back_memory, in_own_team, on_one_core


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """However many the process was given."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def threads_of_this_process() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_what_was_done_comes_back_from_a_thread_that_is_over() -> None:
    names = in_own_team(lambda: threading.current_thread().name)
    assert names == "ratchet-team"
    assert names not in [thread.name for thread in threading.enumerate()]


def test_an_error_comes_through() -> None:
    with pytest.raises(KeyError, match="gone"):
        in_own_team(lambda: {}["gone"])


def test_one_core_is_for_that_work_alone() -> None:
    before = torch.get_num_threads()
    assert on_one_core(torch.get_num_threads) == 1
    assert torch.get_num_threads() == before


def test_no_team_outlives_its_work() -> None:
    weight = torch.ones(512, 512)
    in_own_team(lambda: weight @ weight)
    before = threads_of_this_process()
    for _ in range(5):
        in_own_team(lambda: (weight @ weight).sum())
        on_one_core(lambda: (weight @ weight).sum())
    # The system takes a moment to bury a thread.
    for _ in range(100):
        if threads_of_this_process() <= before:
            break
        time.sleep(0.02)
    assert threads_of_this_process() <= before


def resident() -> int:
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_what_a_thread_freed_goes_back_to_the_system() -> None:
    def fill() -> None:
        # Pieces too small to be mapped one by one, so that they lie in the thread's own heap.
        pieces = [bytes(100_000) for _ in range(4000)]
        kept.append(pieces[-1])

    kept: list[bytes] = []
    give_back_memory()
    before = resident()
    for _ in range(3):
        in_own_team(fill)
    give_back_memory()
    assert resident() - before < 200 * 2**20
