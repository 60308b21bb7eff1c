"""Ranks that are threads of one process, for tests of what is summed over ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from hvdtrain.comm.ranks import Handle, Solo


class Thread(Solo):
    """A rank that is a thread; sums must have the same name on all of them."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.rank, self.size, self.meeting = rank, meeting.size, meeting

    def sum_async_(self, tensor: Tensor, name: str) -> Handle:
        """The sum is there on return."""
        self.sum_(tensor, name)
        return super().sum_async_(tensor, name)

    def sum_(self, tensor: Tensor, name: str) -> Tensor:
        return self.meeting.sum_(self.rank, tensor, name)


class Meeting:
    """The ranks of a job of `size` threads."""

    def __init__(self, size: int) -> None:
        self.size, self.names = size, [""] * size
        self._tensors: list[Tensor] = [torch.empty(0)] * size
        self._barrier = threading.Barrier(size, timeout=60)

    def sum_(self, rank: int, tensor: Tensor, name: str) -> Tensor:
        self._tensors[rank], self.names[rank] = tensor, name
        self._barrier.wait()
        total = torch.stack(self._tensors).sum(0)
        same = len(set(self.names)) == 1
        self._barrier.wait()
        assert same, self.names
        return tensor.copy_(total)

    def run(self, work: Callable[[Thread], Any]) -> list[Any]:
        """What `work` returns on every rank."""
        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(work, [Thread(rank, self) for rank in range(self.size)]))
