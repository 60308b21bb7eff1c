"""Gradients in bf16 on the network, summed in fp32.

Neither Horovod nor gloo sums bf16 in fp32. So each rank sums a part: an all-to-all of bf16 brings it the others'
numbers of that part, and an allgather gives its sum, rounded once more, to all. Each link carries as much as in a
ring allreduce of bf16. Numbers have the range of fp32: what does not overflow there does not overflow here.
"""

from __future__ import annotations

import torch

from hvdtrain.comm.ranks import Comm, Handle
from hvdtrain.engine.compression.exchange import abandon, size_bytes


class Bf16Sum:
    """The exchange of one group on several ranks."""

    step_calls = 2
    by_all_to_all = True

    def __init__(self, comm: Comm, name: str, flat: torch.Tensor) -> None:
        """`flat` [n]: the buffer, whose last part is padded where ranks cannot share it equally."""
        self._comm, self._name, self._flat = comm, name, flat
        part = -(-flat.numel() // comm.size)
        self._rows = flat.new_zeros((comm.size, part), dtype=torch.bfloat16)
        """All of this rank's numbers; then all sums."""
        self._received = torch.zeros_like(self._rows)
        """Every rank's numbers of this rank's part."""
        self._wire = self._rows.view(-1)[: flat.numel()]
        self._handles: list[Handle | None] = [None, None]
        self._begun = False
        self.step_bytes = size_bytes(self._rows)

    @property
    def in_flight(self) -> bool:
        """Whether one of its collectives is on the way."""
        return self._begun

    def offers(self) -> dict[str, torch.Tensor]:
        """The all-to-all; without it nobody starts the allgather."""
        return {f"{self._name}.parts": self._rows}

    def begin(self) -> None:
        """Round, and start to exchange the parts."""
        self._begun = True
        self._wire.copy_(self._flat)
        self._handles[0] = self._comm.all_to_all_async(
            self._rows, self._received, f"{self._name}.parts"
        )

    def follow(self) -> None:
        """Sum this rank's part, and start to give it to all."""
        handle, self._handles[0] = self._handles[0], None
        if handle is None:
            return
        handle.wait()
        part = self._received.to(self._flat.dtype).sum(0).to(torch.bfloat16)
        self._handles[1] = self._comm.all_gather_async(part, self._rows, f"{self._name}.sums")

    def wait(self) -> None:
        """Wait for all parts."""
        self.follow()
        handle, self._handles[1] = self._handles[1], None
        assert handle is not None
        handle.wait()
        self._flat.copy_(self._wire)
        self._begun = False

    def settle(self) -> None:
        """It is there already."""

    def abandon(self) -> None:
        """Wait for what is on the way."""
        handles, self._handles, self._begun = self._handles, [None, None], False
        for handle in handles:
            abandon(handle)
