"""Several processes train one adapter: each reads a share of every step's examples, and gradients are summed.

Started by `torchrun --nproc-per-node N -m agent.cli.main tune` or `accelerate launch`: the first process runs the
tuning, the others follow it. In a single process everything here does nothing. Processes exchange numbers and JSON.
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
def join_processes() -> Iterator[None]:
    """Join the other processes that a launcher started, if there are any."""
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
    """Return how many processes train together."""
    import torch

    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    return int(torch.distributed.get_world_size()) if joined else 1


def rank() -> int:
    """Return the number of this process; 0 writes and decides."""
    import torch

    return int(torch.distributed.get_rank()) if world() > 1 else 0


def own_share(batch: Batch) -> Batch:
    """Return this process's examples: neighbours in the tree, which share prefixes. May be empty."""
    count, processes, place = len(batch.rows), world(), rank()
    return Batch(batch.rows[place * count // processes : (place + 1) * count // processes])


def sum_gradients(parameters: Sequence[torch.nn.Parameter], *numbers: float) -> tuple[float, ...]:
    """Sum the gradients of all processes, in each of them; returns the sums of the numbers."""
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


def broadcast(message: Any) -> Any:
    """Return the message of the first process, sent as JSON; what the others pass is ignored."""
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
