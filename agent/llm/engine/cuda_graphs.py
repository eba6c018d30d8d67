"""Work that is repeated on the same tensors: captured once as a CUDA graph and replayed, or simply called again.

A decoding pass of a small model is some thousands of kernels, and a GPU waits longer for each to be launched than it
takes to run; a graph is launched once. Source: the notes on CUDA graphs in PyTorch's manual. Does not guarantee that
the capture works: it has never run on a GPU, so nothing uses it unless asked to (see `Engine`), and
`tests/agent/llm/engine/test_static_forward.py` tests stand-ins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

WARM_UPS = 2
"""Times the work runs before its capture, so that libraries have set up what they need."""


class PassRunner(Protocol):
    """Makes work repeatable. The work uses the same tensors each time, and never asks for their values."""

    def prepare(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return a function that does the work; preparing may already do it, more than once.

        Raises RuntimeError where the work cannot be prepared.
        """
        ...

    def forget(self) -> None:
        """Release what all preparations share; no function that was prepared is called again."""
        ...


class PlainCalls:
    """Repeats work by calling it, on any device."""

    def prepare(self, work: Callable[[], None]) -> Callable[[], None]:
        return work

    def forget(self) -> None:
        return None


class CudaGraphs:
    """Captures work as a CUDA graph and replays it. All graphs take their memory from one pool.

    So no two may run at once, and the results of one must be copied before the next runs.
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
                # The encoder may compute in another thread; its CUDA calls must not invalidate this capture.
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    work()
            finally:
                # A capture that fails leaves its own stream as the current one.
                torch.cuda.set_stream(before)
        self._pool = graph.pool()
        return graph.replay

    def forget(self) -> None:
        # A pool ends with the last graph in it, and cannot be used again.
        self._pool = None
