"""Keeps the process to one team of OpenMP threads at a time, which is what makes small products fast.

A thread that computes with torch gets a team of OpenMP threads of its own, for as long as it lives. GNU's OpenMP lets
a team wait for its next product by spinning only while all teams together have no more threads than there are cores;
with a second team about, every one of the thousands of products of a pass waits for the system to wake somebody: a
decoding pass took 72 ms in place of 48, and training went at three quarters of its speed. So what computes with all
cores does so in a thread that ends with its work, and what is small uses one core.
"""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")

in_turn = threading.RLock()
"""Hold this while something short computes: side by side, two of them take longer than one after the other."""


def in_own_team(
    action: Callable[[], T], *, name: str = "ratchet-team", on_interrupt: Callable[[], None] | None = None
) -> T:
    """Do something in a thread that ends with it, and its team too. Raises what `action` raises.

    On Ctrl-C `on_interrupt` asks the thread to come to an end, which is waited for; without it nothing is waited for.
    """
    done: list[T] = []
    faults: list[BaseException] = []

    def work() -> None:
        try:
            done.append(action())
        except BaseException as fault:
            faults.append(fault)
        finally:
            over.set()

    # A `join` that was interrupted takes the thread for ended (Python 3.11); an event does not.
    over = threading.Event()
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        over.wait()
    except KeyboardInterrupt:
        if on_interrupt is not None:
            on_interrupt()
            over.wait()
        raise
    thread.join()
    if faults:
        raise faults[0]
    return done[0]


def give_back_memory() -> None:
    """Return what was freed to the system, where the C library is one that can.

    Each thread has a heap of its own, and what one leaves behind the next does not use: five trainings in threads of
    their own were seen to fill 24 GiB.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def on_one_core(action: Callable[[], T]) -> T:
    """Do something small with torch without any team: what it computes is computed by one thread."""

    def work() -> T:
        import torch

        # torch sets a thread's number of cores when that thread first asks for it; only then can it be lowered.
        torch.get_num_threads()
        with _pools().limit(limits=1, user_api="openmp"):
            return action()

    return in_own_team(work, name="ratchet-one-core")


@cache
def _pools() -> Any:
    """The process's libraries with threads, torch's among them. Looked for once: it takes a millisecond."""
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController()
