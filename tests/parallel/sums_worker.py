"""Sum known numbers over the ranks of this job, in many lengths and types."""

from __future__ import annotations

import hashlib
import os
import sys

import torch

from hvdtrain.comm.ranks import Comm
from hvdtrain.comm.start import init_comm
from hvdtrain.launch.links import SLOW_LINK_SETTINGS

EAGER = 512 * 1024
"""Bytes of the largest message that hvdtrain has Open MPI send at once."""


def lengths(size: int, width: int) -> list[int]:
    """Lengths around one number for each rank, and around pieces of the largest eager message."""
    edges = [size, 1024 * size, EAGER // width * size]
    return [1, *[edge + off for edge in edges for off in (-1, 0, 1)], 100_003]


def check_exact(comm: Comm, dtype: torch.dtype) -> None:
    """Sums of small whole numbers, which every type holds exactly."""
    for length in lengths(comm.size, torch.empty(0, dtype=dtype).element_size()):
        numbers = torch.arange(length) % 97
        mine = (numbers + comm.rank).to(dtype)
        comm.sum_(mine, f"{dtype}.{length}")
        total = comm.size * numbers + sum(range(comm.size))
        assert torch.equal(mine.double(), total.double()), (dtype, length)


def check_same(comm: Comm) -> None:
    """A sum has the same bits on all ranks and at the second time."""
    digests = []
    for again in range(2):
        generator = torch.Generator().manual_seed(comm.rank)
        mine = torch.randn(70_001, generator=generator)
        comm.sum_(mine, f"random.{again}")
        digests += comm.gather_text(hashlib.sha256(mine.numpy().tobytes()).hexdigest())
    assert len(set(digests)) == 1


def check_together(comm: Comm) -> None:
    """Several sums may be in progress at a time."""
    tensors = [torch.full((20_000 + k,), float(comm.rank + k)) for k in range(6)]
    handles = [comm.sum_async_(tensor, f"together.{k}") for k, tensor in enumerate(tensors)]
    for k, (tensor, handle) in enumerate(zip(tensors, handles, strict=True)):
        handle.wait()
        assert (tensor == sum(range(comm.size)) + k * comm.size).all()


if __name__ == "__main__":
    comm = init_comm()
    for dtype in (torch.float32, torch.float16, torch.float64, torch.int32):
        check_exact(comm, dtype)
    check_same(comm)
    check_together(comm)
    settings = {name: os.environ.get(name) for name in SLOW_LINK_SETTINGS}
    sys.stdout.write(f"all sums are right {settings}\n")  # in one piece: print writes several
    comm.shutdown()
