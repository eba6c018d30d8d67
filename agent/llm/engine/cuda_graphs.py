"""Work that is done again and again on the same tensors: captured once as a CUDA graph, or simply called again.

A decoding pass of a small model is some thousands of kernels, and a GPU waits longer for each to be started than it
takes to run; a graph is started once. Source: the notes on CUDA graphs in PyTorch's manual. Not promised: that the
capture works. It was written without a GPU at hand, and no test runs it; see `tests/agent/llm/engine/test_static_forward.py` for
what is run in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

WARM_UPS = 2
"""Times the work is done before its capture, so that libraries have set up what they need."""


class Runner(Protocol):
    """Makes work repeatable. Work reads and writes the same tensors each time, and asks nothing of their values."""

    def prepare(self, work: Callable[[], None]) -> Callable[[], None]:
        """What does the work when it is called. It may be done already meanwhile, more than once.

        Raises RuntimeError where the work cannot be prepared.
        """
        ...

    def forget(self) -> None:
        """Nothing that was prepared is called again."""
        ...


class CallAgain:
    """Does the work by calling it, on any device."""

    def prepare(self, work: Callable[[], None]) -> Callable[[], None]:
        return work

    def forget(self) -> None:
        return None


class CudaGraphs:
    """Captures the work as a CUDA graph and replays that. All graphs take their memory from one pool.

    So none may run beside another, and what one made must be taken before the next runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None
        self._pool: Any = None

    def prepare(self, work: Callable[[], None]) -> Callable[[], None]:
        import torch

        with torch.cuda.device(self._device):
            before = torch.cuda.current_stream()
            self._stream = self._stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
            try:
                self._stream.wait_stream(before)
                with torch.cuda.stream(self._stream):
                    for _ in range(WARM_UPS):
                        work()
                before.wait_stream(self._stream)
                graph = torch.cuda.CUDAGraph()
                # The encoder may compute in another thread: what that asks of CUDA is no fault of this capture.
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    work()
            finally:
                # A capture that fails leaves its own stream behind as the current one.
                torch.cuda.set_stream(before)
        self._pool = graph.pool()
        return graph.replay

    def forget(self) -> None:
        # A pool ends with the last graph in it, and cannot be named again.
        self._pool = None


def runner_on(device: torch.device) -> Runner:
    return CudaGraphs(device) if device.type == "cuda" else CallAgain()
