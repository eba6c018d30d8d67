"""Runs long work in a thread of its own, so that Ctrl-C reaches it and its memory can be returned to the system."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

compute_lock = threading.RLock()
"""Held during a forward pass: two at the same time take longer than one after the other."""


def run_in_thread(
    action: Callable[[], T], *, name: str = "ratchet-work", on_interrupt: Callable[[], None] | None = None
) -> T:
    """Run `action` in a new thread and wait for its result.

    Args:
        action: the work; what it raises is raised here.
        name: of the thread.
        on_interrupt: called on Ctrl-C to make the work end, which is then waited for. Without it nothing is waited for.
    """
    results: list[T] = []
    faults: list[BaseException] = []

    def work() -> None:
        try:
            results.append(action())
        except BaseException as fault:
            faults.append(fault)
        finally:
            ended.set()

    # An interrupted `join` takes the thread for ended (Python 3.11); an event does not.
    ended = threading.Event()
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        ended.wait()
    except KeyboardInterrupt:
        if on_interrupt is not None:
            on_interrupt()
            ended.wait()
        raise
    thread.join()
    if faults:
        raise faults[0]
    return results[0]


def give_back_memory() -> None:
    """Return freed memory to the system, where the C library can.

    Each thread has a heap of its own that other threads do not reuse: without this, five trainings in a row filled
    24 GiB.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
