"""What the reducer needs of each way to sum a group of gradients, and the plain sum."""

from __future__ import annotations

import contextlib
from typing import Protocol

import torch

from hvdtrain.comm.ranks import Comm, Handle
from hvdtrain.errors import CommError


class Exchange(Protocol):
    """Sums one flat buffer of gradients over all ranks, in place.

    Every rank calls `begin`, `follow`, `wait` and `settle` in this order in each step that communicates. What
    is kept from step to step changes in `settle` alone: a step that ends before it changes nothing.
    """

    step_bytes: int
    """Bytes that this rank hands to collectives in a step."""
    step_calls: int
    """Collectives of a step."""

    @property
    def in_flight(self) -> bool:
        """Whether `begin` was called, and `wait` was not yet."""

    @property
    def by_all_to_all(self) -> bool:
        """Whether `begin` starts an all-to-all, and not a sum."""

    def offers(self) -> dict[str, torch.Tensor]:
        """What `begin` starts, by name; for a rank that refuses it."""

    def begin(self) -> None:
        """Start to sum; called while the backward pass of other layers still runs."""

    def follow(self) -> None:
        """Wait for what `begin` has started, and start what depends on it; a second call does nothing."""

    def wait(self) -> None:
        """Wait until all sums have arrived. Raises CommError."""

    def settle(self) -> None:
        """Put the result into the buffer."""

    def abandon(self) -> None:
        """After an error: wait for what is still in flight, which ends with errors, too."""


class PlainSum:
    """One allreduce, in the gradients' own number type or another."""

    step_calls = 1
    by_all_to_all = False

    def __init__(
        self, comm: Comm, name: str, flat: torch.Tensor, wire: torch.dtype | None = None
    ) -> None:
        """`flat` [n]: the buffer. `wire`: number type on the network, None for its own."""
        self._comm, self._name, self._flat = comm, name, flat
        self._wire = torch.empty_like(flat, dtype=wire) if wire else flat
        self._handle: Handle | None = None
        self.step_bytes = size_bytes(self._wire)

    @property
    def in_flight(self) -> bool:
        """Whether its sum is on the way."""
        return self._handle is not None

    def offers(self) -> dict[str, torch.Tensor]:
        """The one sum."""
        return {self._name: self._wire}

    def begin(self) -> None:
        """Round, and start the sum."""
        if self._wire is not self._flat:
            self._wire.copy_(self._flat)
        self._handle = self._comm.sum_async_(self._wire, self._name)

    def follow(self) -> None:
        """Nothing follows."""

    def wait(self) -> None:
        """Wait for the sum."""
        handle, self._handle = self._handle, None
        assert handle is not None
        handle.wait()
        if self._wire is not self._flat:
            self._flat.copy_(self._wire)

    def settle(self) -> None:
        """It is there already."""

    def abandon(self) -> None:
        """Wait for the sum."""
        handle, self._handle = self._handle, None
        abandon(handle)


def abandon(handle: Handle | None) -> None:
    """Wait for a collective whose result, or error, is not needed."""
    if handle is not None:
        with contextlib.suppress(CommError):
            handle.wait()


def size_bytes(tensor: torch.Tensor) -> int:
    """Bytes of its elements."""
    return tensor.numel() * tensor.element_size()
