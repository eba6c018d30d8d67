"""Several processes train one adapter: each takes a share of every step's examples, and gradients are added up.

Started by `torchrun --nproc-per-node N -m agent.cli.main tune` or `accelerate launch`: the first process runs the tuning,
the others follow it. Alone, everything here does nothing. What passes between processes is numbers and JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tuner.tree.packing import Batch

if TYPE_CHECKING:
    import torch


@contextmanager
def together() -> Iterator[None]:
    """Join the other processes that the launcher started, if it did."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    import torch

    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def world() -> int:
    """How many processes train together."""
    import torch

    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    return int(torch.distributed.get_world_size()) if joined else 1


def rank() -> int:
    """Which of them this is; 0 writes and decides."""
    import torch

    return int(torch.distributed.get_rank()) if world() > 1 else 0


def own_share(batch: Batch) -> Batch:
    """This process's examples: neighbours in the tree, so that they share what they can. May be none."""
    count, of, place = len(batch.rows), world(), rank()
    return Batch(batch.rows[place * count // of : (place + 1) * count // of])


def add_up(parameters: Sequence[torch.nn.Parameter], *numbers: float) -> tuple[float, ...]:
    """Add the gradients of all processes, in each; returns the sums of the numbers."""
    import torch

    if world() == 1:
        return numbers
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        torch.distributed.all_reduce(parameter.grad)
    totals = torch.tensor(numbers, dtype=torch.float64, device=parameters[0].device)
    torch.distributed.all_reduce(totals)
    return tuple(totals.tolist())


def tell(message: Any) -> Any:
    """What the first process says, as JSON; the others get it whatever they pass."""
    import torch

    if world() == 1:
        return message
    device = "cuda" if torch.cuda.is_available() else "cpu"
    text = json.dumps(message).encode() if rank() == 0 else b""
    length = torch.tensor([len(text)], device=device)
    torch.distributed.broadcast(length, 0)
    data = torch.zeros(int(length), dtype=torch.uint8, device=device)
    if rank() == 0:
        data.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
    torch.distributed.broadcast(data, 0)
    return json.loads(bytes(data.tolist()))
