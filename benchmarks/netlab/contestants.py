"""The trainers that hvdtrain's steps are compared with: torch DDP over gloo, and plain Horovod."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.netlab.lab import NETWORK
from benchmarks.netlab.stand_in import StandIn

PORT = 29500
"""Where the ranks of torch.distributed meet, on the first host."""
COMPRESSIONS = {
    "hvdtrain": ("none", "fp16", "bf16", "powersgd"),
    "hvdtrain-torch": ("none", "fp16", "bf16", "powersgd"),
    "DDP": ("none", "fp16", "powersgd"),
    "Horovod": ("none", "fp16"),
}
"""What each can send; DDP by torch's own hooks."""
RANK = 4
"""Of PowerSGD, in all that have it."""
UNCOMPRESSED = 2
"""Least number of steps that torch's PowerSGD makes before it compresses, with a warm start."""


def ddp(model: StandIn, steps: int, compression: str) -> dict[str, Any]:
    """Seconds of each step with DistributedDataParallel over gloo."""
    from torch import distributed
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

    rank, size = (int(os.environ[f"OMPI_COMM_WORLD_{name}"]) for name in ("RANK", "SIZE"))
    address = f"tcp://{NETWORK}.1:{PORT}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
    # torch's PowerSGD waits for its second sum in a thread of gloo, which has two: with more buckets they all
    # wait without end.
    bucket_mb = 1000.0 if compression == "powersgd" else None
    network = torch.nn.parallel.DistributedDataParallel(
        model, bucket_cap_mb=bucket_mb, gradient_as_bucket_view=True
    )
    skipped = 1
    if compression == "fp16":
        network.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif compression == "powersgd":
        state = powerSGD_hook.PowerSGDState(
            None, matrix_approximation_rank=RANK, start_powerSGD_iter=UNCOMPRESSED
        )
        network.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        skipped += UNCOMPRESSED
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.zeros(1, requires_grad=True)

    def step() -> None:
        optimizer.zero_grad()
        network(x).backward()
        optimizer.step()

    seconds = timed(step, steps, skipped)
    distributed.destroy_process_group()
    return {"seconds": seconds}


def horovod(model: StandIn, steps: int, compression: str) -> dict[str, Any]:
    """Seconds of each step with Horovod's own optimizer and defaults."""
    import horovod.torch as hvd

    hvd.init()
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.01),
        named_parameters=model.named_parameters(),
        compression=hvd.Compression.fp16 if compression == "fp16" else hvd.Compression.none,
    )
    x = torch.zeros(1, requires_grad=True)

    def step() -> None:
        optimizer.zero_grad()
        model(x).backward()
        optimizer.step()

    seconds = timed(step, steps)
    hvd.shutdown()
    return {"seconds": seconds}


def timed(step: Callable[[], object], steps: int, skipped: int = 1) -> list[float]:
    """Seconds of each step except the first `skipped`, of which one opens connections.

    A step ends when all ranks have taken part in it.
    """
    seconds = []
    for _ in range(steps + skipped):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return seconds[skipped:]
